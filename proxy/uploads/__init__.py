"""Lets only real audio of the right size and length through.

From the outside in: a `validator` (the rules of a route) makes a `check` (one upload: what the
engine calls), which reads the body with `proxy.uploads.form`, writes it anew with `rewrite`, puts the file
into the spool and has it examined by a `session` of the `pool` (the proxy's side of the probe
processes). On the other side of the socket, in a process per upload that can do nothing else,
`probe` reads the spooled file through `source`, sniffs with `sniff`, chooses a family from
`families` and lets `measure` walk the packets; `proxy.uploads.probe.sandbox` is what keeps it there. `verdicts`
words every refusal.

This file imports nothing: the probe process must not load the proxy's half, and the other way
round.
"""
