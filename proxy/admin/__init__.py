"""The operator's door: metrics, probes, state and commands."""
