"""The status page: what the proxy is doing, live, for people."""
