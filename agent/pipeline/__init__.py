"""When detectors run and what becomes of what they say. No host, no policy of any one detector."""
