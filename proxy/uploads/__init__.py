"""Accepts only real audio of an accepted type, size and duration.

From the outside in: `rules` (a route's settings) begin a `check` (one upload, as the engine sees
it). The check parses the body with `form.reader`, rewrites it with `form.rewrite`, writes the file
to the spool and has it examined through a `probe.session` of the `probe.pool`, the proxy's side of
the probe processes. On the other side of the socket, in one confined process per upload,
`probe.process` reads the spooled file through `probe.source`, picks a family from
`formats.families` and measures it with `formats.measure`; `probe.sandbox` confines it.
`rejections` words every error.

This file imports nothing: the probe process must not load the proxy's half, nor the proxy the
probe's.
"""
