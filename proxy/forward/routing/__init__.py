"""Routes: plans compiled from the config, and the router that finds the one for a request.

Start with `compile`, which makes a `plan` for each route. Compiling has no side effects.
"""
