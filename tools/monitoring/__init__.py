"""What Prometheus and Grafana are given, made from the code: alerts, fleet views, how to scrape, the dashboard.

`python -m tools.generate_monitoring FOLDER` writes it. To add what a new condition needs, see `condition_texts`.
"""
