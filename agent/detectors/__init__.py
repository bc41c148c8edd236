"""One file, one detector: senses in, observation out, and a pure decision. None imports another."""
