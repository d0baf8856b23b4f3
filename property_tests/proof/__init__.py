"""The code of slots and kernel over a simulated kernel: every interleaving, kills included."""
