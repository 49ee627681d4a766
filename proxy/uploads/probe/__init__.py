"""The probe: a sandboxed process for each upload, on both sides of its socket.

Here: `pool` and `session`. There: `process`, `source` and `sandbox`. This file imports nothing, so
that neither side loads the other's half.
"""
