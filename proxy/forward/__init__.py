"""One request to its upstream: `attempts` is where to begin reading.

`exchange` is the record of one request, `routing/` compiles and finds its plan, `relay/` moves the
bytes. Uses `resilience` and `http1`; calls the routes' features through hooks only.
"""
