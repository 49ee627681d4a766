"""The process and its host: descriptors, sockets from a predecessor, systemd.

Start with `shortage` (our own lack of resources never counts as an upstream's failure) and
`handover` (upgrades without downtime).
"""
