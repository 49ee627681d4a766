"""Connections to the targets of an upstream.

`balancer` chooses a target, `pool` lends its connections, `queue` decides who is next, `connection`
is one of them.
"""
