"""The fault lab: real faults, made on purpose on real parts, and taken away again.

Every fault maker is a context manager.  On entry it makes the fault and waits
until the fault is there; on exit it takes all of it away, also when the body
raised.  Nothing here decides what a fault means: that is the agent's work, and
the lab must stay independent of it, so no module imports the agent.

The lab needs root, Debian's containerd, runc, busybox-static, iproute2,
iptables and conntrack, and gcc with a static libc for the process that breeds
zombies.  It signals only processes which it started itself.
"""
