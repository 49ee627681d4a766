"""The composition root: the only room that knows all others.

`composition.Proxy` builds, starts, reloads, drains and stops the parts; `process` turns signals
into calls to it; `hosted_targets` runs aiohttp applications that the config names as targets.
"""
