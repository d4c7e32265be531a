"""What travels with a request through the service: how urgent it is, until when, and whether anybody still waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

from albireo.observations.errors import AlbireoError, Gone, Late

Priority = Literal["interactive", "bulk"]
PRIORITIES: tuple[Priority, ...] = ("interactive", "bulk")


@dataclass(eq=False)
class Ticket:
    """Of one request. Verbs look at it between steps; whoever took the request may cancel it from any thread.

    deadline  by time.monotonic(), None = whenever
    why       it was cancelled, None if it was not
    """

    priority: Priority = "interactive"
    deadline: float | None = None
    why: AlbireoError | None = None
    _told: list[Callable[[], None]] = field(default_factory=list)

    @classmethod
    def within(cls, seconds: float | None, priority: Priority = "interactive") -> Ticket:
        """A ticket whose deadline is so many seconds from now, None = none."""
        return cls(priority, None if seconds is None else time.monotonic() + seconds)

    def narrow(self, milliseconds: float | None = None, priority: Priority | None = None) -> None:
        """Take a priority, and a deadline so many milliseconds from now if that is earlier."""
        if priority is not None:
            self.priority = priority
        if milliseconds is not None:
            deadline = time.monotonic() + milliseconds / 1e3
            self.deadline = deadline if self.deadline is None else min(self.deadline, deadline)

    @property
    def cancelled(self) -> bool:
        return self.why is not None

    def cancel(self, why: AlbireoError | None = None) -> None:
        """What has not begun is not computed, and whoever waits is told why: by default, that nobody should wait."""
        self.why = self.why or why or Gone("cancelled", "the request was taken back")
        for tell in tuple(self._told):
            tell()

    def when_cancelled(self, tell: Callable[[], None]) -> None:
        """Call `tell` when the ticket is cancelled, at once if it is already."""
        self._told.append(tell)
        if self.cancelled:
            tell()

    def remaining(self, now: float | None = None) -> float | None:
        """Seconds until the deadline, negative after it; None without one."""
        return None if self.deadline is None else self.deadline - (time.monotonic() if now is None else now)

    def check(self, now: float | None = None) -> None:
        """The reason if the ticket was cancelled, Late if its deadline passed."""
        if self.why is not None:
            raise self.why
        left = self.remaining(now)
        if left is not None and left <= 0:
            raise Late("deadline_exceeded", "the deadline passed", fix="allow more time, or send fewer objects")


_CURRENT: ContextVar[Ticket | None] = ContextVar("albireo_ticket", default=None)


def current() -> Ticket | None:
    """Of the request that this thread computes one object for; None if it computes for several, or for nobody."""
    return _CURRENT.get()


@contextmanager
def under(ticket: Ticket) -> Iterator[None]:
    """What runs inside is computed for one request."""
    token = _CURRENT.set(ticket)
    try:
        yield
    finally:
        _CURRENT.reset(token)
