"""The agent as a process, at its default settings, against the faults of the lab."""
