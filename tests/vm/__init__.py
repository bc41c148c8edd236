"""A whole Debian with systemd, cgroup v2 and AppArmor, in a virtual machine: what the lab cannot be."""
