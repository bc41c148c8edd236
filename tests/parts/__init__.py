"""The act flow on real parts that each test has for itself, so that several may run side by side.

What needs an agent as a process is in tests/integration; an agent that watches everything there is, in tests/e2e, in a
node of its own; what all tests share (sysctls, all of this machine) in tests/machine, one at a time.
"""
