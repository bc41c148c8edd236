"""What is told to the outside. Reads the board, never the host."""
