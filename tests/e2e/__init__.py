"""The agent as a process, at its default settings, against the faults of the lab; in a node of its own."""
