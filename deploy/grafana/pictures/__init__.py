"""Pictures of the dashboards: a real run, scraped by Prometheus, drawn with Grafana's UI components."""
