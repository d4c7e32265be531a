"""Cores shared by the threads that compute: one alone gets them all, several get a part each.

Threads that all compute on all cores wait for one another: two on two cores are slower together than in turn.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Cores:
    """n cores, or as many as torch takes by itself if n is None: then nothing is shared out."""

    def __init__(self, n: int | None = None) -> None:
        self.n = n
        self._lock = threading.Lock()
        self._working = 0

    @contextmanager
    def share(self) -> Iterator[None]:
        """Compute in this thread on an equal part of the cores, at least one; how many work counts at the beginning."""
        if self.n is None:
            yield
            return
        with self._lock:
            self._working += 1
            mine = max(1, self.n // self._working)
        # The first call in a thread takes the process's number; made later, it would undo what is set here.
        if torch.get_num_threads() != mine:
            torch.set_num_threads(mine)
        try:
            yield
        finally:
            with self._lock:
                self._working -= 1
