"""What is delivered beside the agent: manifests, rules, dashboards and pages; held against the code."""
