"""Lets only real audio of the right size and length through.

From the outside in: `rules` (what a route wants) make a `check` (one upload: what the engine
calls). It reads the body with `form.reader`, writes it anew with `form.rewrite`, puts the file into
the spool and has it examined by a `probe.session` of the `probe.pool`, our side of the probe
processes. On the other side of the socket, in a process per upload that can do nothing else,
`probe.process` reads the spooled file through `probe.source`, chooses a family from
`formats.families` and lets `formats.measure` walk the packets; `probe.sandbox` keeps it there.
`rejections` words every refusal.

This file imports nothing: the probe process must not load the proxy's half, and the other way
round.
"""
