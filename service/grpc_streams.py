"""Streams of any length: what has come is computed together, while more is read, and answered in order.

Ahead     reads a stream while others compute: a window of what has come, never more than fits
in_order  windows computed a few at a time, their results in the order of the stream

A window is whatever came since the last one was taken: a client that waits for each answer gets it at once, and one
that sends as fast as it can fills the windows. Nobody waits for a window to fill. When the results are not read,
nothing is computed; when nothing is computed, nothing is read; and then the client's own writes wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeVar

WINDOW_ITEMS = 256
"""Messages of a window, at most."""

WINDOW_BYTES = 32 << 20
"""Bytes of a window, at most, unless a single message has more."""

AT_ONCE = 2
"""Windows that are computed at a time: one is parsed while another is encoded."""


class Sized(Protocol):
    """What a window holds."""

    @property
    def n_bytes(self) -> int: ...


One = TypeVar("One", bound=Sized)
Result = TypeVar("Result")


class Ahead(Generic[One]):
    """A stream that is read ahead of those who take windows of it. Used as a context: it stops reading at the end."""

    def __init__(
        self, messages: AsyncIterable[One], max_items: int = WINDOW_ITEMS, max_bytes: int = WINDOW_BYTES
    ) -> None:
        self._messages = messages
        self._max_items, self._max_bytes = max_items, max_bytes
        self._waiting: list[One] = []
        self._bytes = 0
        self._room, self._there = asyncio.Event(), asyncio.Event()

    async def __aenter__(self) -> Ahead[One]:
        self._reading = asyncio.ensure_future(self._read())
        self._reading.add_done_callback(lambda done: self._there.set())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def window(self) -> list[One]:
        """What has come, at least one message; empty at the end of the stream. Raises what reading it raised."""
        while not self._waiting and not self._reading.done():
            self._there.clear()
            await self._there.wait()
        if not self._waiting:
            self._reading.result()
        taken, self._waiting, self._bytes = self._waiting, [], 0
        self._room.set()
        return taken

    async def _read(self) -> None:
        async for message in self._messages:
            while self._waiting and not self._fits(message):
                self._room.clear()
                await self._room.wait()
            self._waiting.append(message)
            self._bytes += message.n_bytes
            self._there.set()

    def _fits(self, message: One) -> bool:
        return len(self._waiting) < self._max_items and self._bytes + message.n_bytes <= self._max_bytes


async def in_order(
    messages: AsyncIterable[One],
    compute: Callable[[list[One]], Awaitable[Sequence[Result]]],
    at_once: int = AT_ONCE,
) -> AsyncIterator[Result]:
    """What `compute` makes of the windows of a stream. Its errors end the stream, after the results before them."""
    places = asyncio.Semaphore(at_once)
    begun: asyncio.Queue[asyncio.Future[Sequence[Result]] | None] = asyncio.Queue()

    async def begin() -> None:
        try:
            while True:
                await places.acquire()
                window = await ahead.window()
                if not window:
                    return
                begun.put_nowait(asyncio.ensure_future(compute(window)))
        finally:
            begun.put_nowait(None)

    async with Ahead(messages) as ahead:
        beginning = asyncio.ensure_future(begin())
        running: asyncio.Future[Sequence[Result]] | None = None
        try:
            while (running := await begun.get()) is not None:
                results = await running
                places.release()
                for result in results:
                    yield result
            await beginning
        finally:
            beginning.cancel()
            await asyncio.gather(beginning, return_exceptions=True)
            left = [running] if running is not None else []
            while not begun.empty():
                task = begun.get_nowait()
                left += [task] if task is not None else []
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
