"""Connections to the targets of an upstream: `pool` lends them, `queue` decides who is next."""
