"""Simulated days: what is pure and bounded is led through its worst, by a clock of the tests' own."""
