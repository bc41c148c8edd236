"""Node conditions and Events: what the board says, told to the API server about this node alone; off by default.

It patches and creates; it reads, lists and watches nothing. `plan` decides what to send when (pure: no clock, no
network), `bodies` writes the objects, `api` is the one module that loads the kubernetes package and sends, and
`exporter` is the thread between them.
"""
