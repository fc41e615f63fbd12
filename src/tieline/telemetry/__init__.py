"""What an operator sees of a running sidecar: logs, metrics and a line for each failed call."""
