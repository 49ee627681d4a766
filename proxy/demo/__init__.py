"""Stand-in services and a guided tour."""

from __future__ import annotations


def run(once: bool) -> int:
    """Start everything, give the tour, and stay up unless `once`.

    Returns the exit code: 0 if every step did what it should, 1 otherwise. Blocks; ends on SIGINT
    or SIGTERM. Nothing is left behind: no process, no file.
    """
    # Imported here because the stand-ins' processes import this package too, and start often.
    from proxy.demo.tour.show import main

    return main(once)
