"""Tests: `unit` needs no container engine, `lab` makes real faults, `e2e` shows the agent finding them."""
