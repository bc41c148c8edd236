"""Allow or refuse; pure."""
