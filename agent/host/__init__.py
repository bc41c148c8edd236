"""Read-only senses. Roots are injected; no thresholds, no judgement, and nothing is ever written to the host."""
