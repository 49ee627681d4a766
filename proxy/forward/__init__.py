"""One request to its upstream: `attempts` is where to begin reading.

`exchange` is the record of one request, `routing/` holds what is known before it (the plan),
`relay/` moves the bytes. Knows the resilience room and the connections; knows nothing of routes'
features, which it calls through hooks.
"""
