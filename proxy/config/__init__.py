"""The YAML file: what may stand in it, and how it is read. Start with `load` and `schema`."""
