"""Audio formats: how to recognise each family, and how to measure the duration of its files.

Start with `families` and `measure`. Only the tables are used outside the probe process.
"""
