"""Scripts the Makefile calls."""
