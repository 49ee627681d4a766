"""Stages from outside (`use:` on a route): `runner` calls their hooks, each behind its `guard`."""
