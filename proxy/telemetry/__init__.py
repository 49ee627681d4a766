"""What leaves the process for people and machines to read: log lines and metrics."""
