"""How the agents are scraped: as a PodMonitor for the Prometheus operator, and as a plain scrape configuration.

Both give a series the labels job, instance and node, and no other. The agent's pod is none of them on purpose: with
it, every rollout would begin all series of all nodes anew. And `pod`, `namespace` and `container` are names of the
agent's own labels, for the workloads that findings are about; a target that had them, too, would push those aside as
`exported_pod`.
"""

SAMPLE_LIMIT = 1000
"""Five times what a healthy node has; a scrape with more is refused as a whole, so it is a last defence only."""
EXPECTED_SERIES = 500
SCRAPE_INTERVAL = "30s"
SCRAPE_TIMEOUT = "10s"

PODMONITOR = f"""\
# For the Prometheus operator. A Prometheus that selects its PodMonitors by label (kube-prometheus-stack: release: NAME)
# needs that label here as well.
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata:
  name: nodediag
  namespace: nodediag
  labels:
    app.kubernetes.io/name: nodediag
spec:
  # job="nodediag", which the rules ask for; without it, it would be nodediag/nodediag.
  jobLabel: app.kubernetes.io/name
  selector:
    matchLabels:
      app.kubernetes.io/name: nodediag
  namespaceSelector:
    matchNames: [nodediag]
  # A last defence against an agent gone wrong: a scrape with more is refused as a whole. A healthy node has under 200;
  # NodediagTooManySeries warns from {EXPECTED_SERIES}.
  sampleLimit: {SAMPLE_LIMIT}
  podMetricsEndpoints:
    # The agent is in the node's network, so its pod's address is the node's own.
    - port: metrics
      path: /metrics
      # Findings are confirmed by the agent within 15 s; scraping twice as often would double what is stored and tell
      # little sooner. It answers within 10 ms whatever its node does: the rest of the time is for the network.
      interval: {SCRAPE_INTERVAL}
      scrapeTimeout: {SCRAPE_TIMEOUT}
      relabelings:
        - sourceLabels: [__meta_kubernetes_pod_node_name]
          targetLabel: node
        # What the operator adds, and what would begin every series anew with each rollout.
        - action: labeldrop
          regex: pod|namespace|container|endpoint
"""

SCRAPE_CONFIG = f"""\
# For a Prometheus without the operator: an entry of scrape_configs. Its account needs get, list and watch of pods in
# the namespace nodediag.
- job_name: nodediag
  # Findings are confirmed by the agent within 15 s; scraping twice as often would double what is stored and tell little
  # sooner. It answers within 10 ms whatever its node does: the rest of the time is for the network.
  scrape_interval: {SCRAPE_INTERVAL}
  scrape_timeout: {SCRAPE_TIMEOUT}
  # A last defence against an agent gone wrong: a scrape with more is refused as a whole. A healthy node has under 200;
  # NodediagTooManySeries warns from {EXPECTED_SERIES}.
  sample_limit: {SAMPLE_LIMIT}
  kubernetes_sd_configs:
    - role: pod
      namespaces:
        names: [nodediag]
      # Asked of the API server, so that it does not send what would be thrown away here.
      selectors:
        - role: pod
          label: app.kubernetes.io/name=nodediag
  relabel_configs:
    - source_labels: [__meta_kubernetes_pod_container_port_name]
      regex: metrics
      action: keep
    # An evicted pod stays on the list with its node's address, where its successor answers by now.
    - source_labels: [__meta_kubernetes_pod_phase]
      regex: Failed|Succeeded
      action: drop
    - source_labels: [__meta_kubernetes_pod_node_name]
      target_label: node
"""
