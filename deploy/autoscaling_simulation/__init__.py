"""A fleet of simulated generators under the chart's own autoscaling rule."""
