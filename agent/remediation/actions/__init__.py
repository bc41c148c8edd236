"""One file, one action. Each declares what it takes and mends (see `agent.remediation.remedy`) and imports no other."""
