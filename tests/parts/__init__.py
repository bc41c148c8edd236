"""The act flow on real parts that each test has for itself, so that several may run side by side.

What needs an agent as a process is in tests/integration; what all tests share (names of services, sysctls, an agent
that watches everything there is) is in tests/e2e, one at a time.
"""
