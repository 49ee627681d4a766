"""Pipeline metrics of the video service, derived from job documents and counted once in the fleet.

`events` reads documents, `counting` claims and counts, `totals` persist, `metrics` shows.
"""
