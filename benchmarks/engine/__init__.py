"""How fast one engine is on this machine, against what the machine can do and against its peers."""
