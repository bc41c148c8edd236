"""Whole outputs of a fixture node, compared with what they are known to be."""
