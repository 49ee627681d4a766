"""Callers that ask a proxy all the time, while something is done to it."""

from __future__ import annotations

import threading

from tests.http1.process import wait_until
from tests.http1.site import Site, get


class Load:
    """Threads that ask all the time, each on a new connection for every request, or on one that is
    kept for as long as it may be. `failed` has what was no 200."""

    def __init__(self, site: Site, threads: int) -> None:
        self._site = site
        self._over = threading.Event()
        self.failed: list[object] = []
        self.answered = 0
        self._threads = [
            threading.Thread(target=self._ask, args=(number % 2 == 0,)) for number in range(threads)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, keep: bool) -> None:
        while not self._over.is_set():
            try:
                with self._site.connect() as client:
                    again = True
                    while again and not self._over.is_set():
                        client.send(get())
                        response = client.response()
                        if response.status != 200:
                            self.failed.append(response)
                        self.answered += 1
                        again = keep and response.keeps_alive
            except (OSError, AssertionError) as error:
                self.failed.append(error)


def more_answers(load: Load) -> None:
    """Until it has had some."""
    before = load.answered
    wait_until(lambda: load.answered > before + 50, "more answers", 60)
