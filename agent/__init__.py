"""nodediag: what is wrong on this node, where, and whose.

The house and its import law are described in ARCHITECTURE.md.
"""

__version__ = "0.1.0"
