"""What tests this library, and programs on top of it: doubles, machines, chaos."""
