"""What was named is mended on request, and every way to be refused."""
