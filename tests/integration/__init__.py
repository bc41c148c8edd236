"""The agent or its API as a process, asked by its clients; no node of the lab, so that several may run side by side."""
