"""What the operating system gives this process: descriptors, sockets from a predecessor, systemd.

Start with `shortage` (a lack of ours is never the upstream's failure) and `handover` (a new version
without a pause).
"""
