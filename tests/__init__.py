"""The tests of jobserver: one file a topic, every start method, nothing left behind."""
