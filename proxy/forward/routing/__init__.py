"""What is known before a request is: plans compiled from the config, and the router.

Start with `compile`, which makes a `plan` for each route. Compiling has no side effects.
"""
