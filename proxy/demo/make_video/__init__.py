"""A stand-in for the make-video service: its HTTP side, its worker, and faults to inject."""
