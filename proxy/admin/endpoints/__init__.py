"""One file for each group of admin endpoints: request in, JSON out."""
