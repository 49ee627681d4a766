"""Redis clients made from the config: `url` parses, `client` connects."""
