"""Extension stages (`use:` on a route): `runner` calls their hooks, each inside a `guard`."""
