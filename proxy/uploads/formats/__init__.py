"""Audio formats: what each family looks like, and how long a file of it plays.

Start with `families` and `measure`. Runs inside the probe process only, except for the tables.
"""
