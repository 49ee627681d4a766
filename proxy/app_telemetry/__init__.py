"""Metrics of the app beyond its requests: statsd, the app's own metrics page, resources.

`collectors` starts and stops what the config enables.
"""
