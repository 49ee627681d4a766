"""Pipeline metrics of the video service, derived from job documents and counted once in the fleet.

`events` reads documents, `counting` locks and counts events, `totals` persists, `metrics` exposes.
"""
