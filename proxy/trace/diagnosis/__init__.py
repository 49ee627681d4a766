"""Finds the likely cause of what went wrong in a timeline.

`rules.diagnose` tries the rules in order; `requests`, `jobs` and `services` have the rules about
each; `context` is what a rule gets and returns. Pure; knows only the events of the trace.
"""
