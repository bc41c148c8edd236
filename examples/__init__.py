"""Programs that use the agent's API."""
