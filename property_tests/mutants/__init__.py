"""Mutation testing: small faults in the library's code, each of which some test finds."""
