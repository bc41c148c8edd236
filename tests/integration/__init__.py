"""Tests on real parts that leave the rest of the node alone, so that several may run side by side.

What needs an agent that watches everything there is, or ends what all share, belongs to tests/e2e, one at a time.
"""
