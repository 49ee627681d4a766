"""The config file: its schema, how it is loaded, and the rules between its keys.

Start with `schema` and `load`; `rules/` checks what the schema cannot express.
"""
