"""Routes: plans compiled from the config, and the router that finds the one for a request.

Start with `compile`, which makes a `plan` of each upstream and listener; `route` binds the stages
(`binding`) of each route. Compiling has no side effects.
"""
