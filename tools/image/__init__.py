"""What makes the image; the shell scripts beside it call one another from the Makefile."""
