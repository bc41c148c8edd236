"""What Prometheus and Grafana are given, tried out with promtool."""
