"""What can only be shown in this machine's first namespaces, or looks at all of it; nothing else runs meanwhile."""
