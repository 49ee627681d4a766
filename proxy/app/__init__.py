"""The composition root: the only room that knows all others.

`composition.Proxy` is the running proxy. `parts` builds what it consists of, `lifecycle` starts,
drains and stops it, `reload` swaps its config, and `upgrade` hands it to a new process.
`readiness` answers `/readyz`. `process` turns signals into calls to `Proxy`; `hosted_targets` runs
the aiohttp applications that the config names as targets.
"""
