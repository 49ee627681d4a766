"""Connections to the targets of one upstream: `pool` lends them, `queue` decides whose turn it is."""
