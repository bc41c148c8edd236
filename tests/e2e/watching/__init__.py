"""Faults are named and clear; where nothing is wrong nobody is accused."""
