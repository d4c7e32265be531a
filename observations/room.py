"""How much the files of one request may unfold to in memory: taken before the memory is.

A megabyte can state a gigabyte: by gzip, by tiles of a compressed image, by a number of rows. Every file has its own
limit (`Source.limit`); a request of ten thousand files has one room for all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

from albireo.observations.errors import TooLarge


class Room:
    """Bytes that may still be unfolded. Safe to use from several threads."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._left = size
        self._lock = threading.Lock()

    @property
    def left(self) -> int:
        return self._left

    def take(self, n: int, file: str | None = None) -> None:
        """Take `n` bytes of the room for a file. TooLarge if there is not so much left, and nothing is taken."""
        with self._lock:
            if n > self._left:
                raise TooLarge(
                    "too_large",
                    f"what was sent unfolds to more than {self.size} bytes",
                    file=file,
                    fix="send fewer files a request, or raise ALBIREO_MAX_DECOMPRESSED_BYTES",
                )
            self._left -= n


_CURRENT: ContextVar[Room | None] = ContextVar("albireo_room", default=None)


def current_room() -> Room | None:
    """Of the request that this thread or task reads the files of."""
    return _CURRENT.get()


@contextmanager
def room_for(size: int) -> Iterator[Room]:
    """All sources that are made inside share a room of so many bytes, also in threads that anyio starts from here."""
    room = Room(size)
    token = _CURRENT.set(room)
    try:
        yield room
    finally:
        with suppress(ValueError):  # a stream that nobody reads any more is closed by another task
            _CURRENT.reset(token)
