"""Who is let in: a request is refused before its body is read, when it could not be answered in time.

    Admission  how many requests and bytes are inside, how fast they leave, and whether one more is let in
    Admit      ASGI middleware: a place and a ticket for every request that makes work

A refusal says when to come back: when the backlog will have shrunk to what is allowed, as fast as it drains now.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from albireo.observations.errors import AlbireoError, Busy, TooLarge, Unavailable
from albireo.service.problems import document
from albireo.service.tickets import Ticket

WINDOW = 2.0
"""Seconds of work over which is counted how many requests leave, at least."""

WEIGHT = 0.3
"""Of the last window in the mean: what leaves in batches leaves unevenly."""

TOGETHER = 0.01
"""Share of it within which two that leave were computed together."""

MOMENTS = 3
"""Times at which some have left, at least: the first of those that are computed together says nothing."""

LONGEST_RETRY = 300.0
"""Seconds after which a refused request is told to come back at most."""


class Admission:
    """A count of what is inside. Safe to use from several threads; nothing here waits.

    max_requests  that are inside at a time
    max_bytes     of their bodies in sum
    max_delay     seconds that a request may be expected to wait for those before it
    backlog       seconds of work that wait in the queues of the pipeline
    """

    def __init__(
        self,
        max_requests: int,
        max_bytes: int,
        max_delay: float,
        backlog: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_requests, self.max_bytes, self.max_delay = max_requests, max_bytes, max_delay
        self.backlog = backlog
        self.clock = clock
        self.requests = 0
        self.bytes = 0
        self._interval = 0.0
        self._since = 0.0
        self._last = 0.0
        self._left = self._moments = 0
        self._tickets: set[Ticket] = set()
        self._closed = False
        self._lock = threading.Lock()

    def enter(self, n_bytes: int = 0, ticket: Ticket | None = None) -> Place:
        """A place for a request with a body of so many bytes, as far as that is known. Busy if there is none.

        ticket  of the request, which ends with the service
        """
        with self._lock:
            if self._closed:
                raise ending()
            if n_bytes > self.max_bytes:
                raise TooLarge(
                    "too_large",
                    f"the body is over {self.max_bytes} bytes",
                    field="body",
                    fix="send fewer files a request, or raise ALBIREO_MAX_INFLIGHT_BYTES",
                )
            delay = self._delay()
            if self.requests >= self.max_requests:
                raise self._busy(f"{self.requests} requests are inside", max(delay - self.max_delay, self._interval))
            if self.requests and self.bytes + n_bytes > self.max_bytes:
                raise self._busy(f"{self.bytes} bytes of bodies are inside", self._interval)
            if delay > self.max_delay:
                raise self._busy(f"a request would wait {delay:.0f} s", delay - self.max_delay)
            if not self.requests:
                self._begin(self.clock())
            self.requests += 1
            self.bytes += n_bytes
            if ticket is not None:
                self._tickets.add(ticket)
        return Place(self, n_bytes, ticket)

    @property
    def delay(self) -> float:
        """Seconds that a request which comes now is expected to wait."""
        with self._lock:
            return self._delay()

    def close(self) -> None:
        """Let nobody in any more."""
        self._closed = True

    @property
    def closed(self) -> bool:
        return self._closed

    def end(self) -> None:
        """Tell whoever is still inside that there will be no answer."""
        with self._lock:
            tickets = tuple(self._tickets)
        for ticket in tickets:
            ticket.cancel(ending())

    def _delay(self) -> float:
        return max(self.requests * self._interval, self.backlog())

    def _busy(self, why: str, seconds: float) -> Busy:
        return Busy(
            "overloaded",
            f"the service has more to do than it can: {why}",
            retry_after=min(max(seconds, 1.0), LONGEST_RETRY),
            fix="send it again later, or fewer at a time",
        )

    def _grow(self, n_bytes: int) -> None:
        with self._lock:
            if self.requests > 1 and self.bytes + n_bytes > self.max_bytes:
                raise self._busy(f"{self.bytes} bytes of bodies are inside", self._interval)
            self.bytes += n_bytes

    def _begin(self, now: float) -> None:
        """Count from now on who leaves."""
        self._since, self._last = now, now
        self._left = self._moments = 0

    def _count(self, now: float) -> None:
        """One leaves. How fast requests are done while there is work is known when some have left several times."""
        if now - self._last > TOGETHER * (now - self._since):
            if self._moments >= MOMENTS and self._last - self._since >= WINDOW:
                interval = (self._last - self._since) / self._left
                self._interval += (interval - self._interval) * (WEIGHT if self._interval else 1.0)
                self._since, self._left, self._moments = self._last, 0, 0
            self._moments += 1
        self._left += 1
        self._last = now

    def _leave(self, n_bytes: int, ticket: Ticket | None, worked: bool) -> None:
        with self._lock:
            if ticket is not None:
                self._tickets.discard(ticket)
            now = self.clock()
            if worked:
                self._count(now)
            self.requests -= 1
            self.bytes -= n_bytes


def ending() -> Unavailable:
    """What is told to requests that the service will not answer any more."""
    return Unavailable("not_ready", "the service is shutting down", fix="send it again: another one may answer")


class Place:
    """Of one request, until it leaves."""

    def __init__(self, admission: Admission, n_bytes: int, ticket: Ticket | None) -> None:
        self._admission = admission
        self._ticket = ticket
        self._bytes = n_bytes
        self._stated = n_bytes
        self._read = 0

    def read(self, n_bytes: int) -> None:
        """So many more bytes of the body came; Busy if a body of unknown length grows too large."""
        self._read += n_bytes
        more = self._read - self._bytes
        if more > 0:
            self._admission._grow(more)
            self._bytes += more

    def leave(self, worked: bool = True) -> None:
        """`worked`: it was answered, not refused; else it says nothing of how fast work is done."""
        self._admission._leave(self._bytes, self._ticket, worked)


class Admit:
    """Lets requests in that make work: every POST but those to other addresses than /v1 and /v2."""

    def __init__(self, app: ASGIApp, admission: Admission, deadline_seconds: float) -> None:
        self.app, self.admission, self.deadline_seconds = app, admission, deadline_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        works = scope["type"] == "http" and scope["method"] == "POST" and scope["path"].startswith(("/v1/", "/v2/"))
        if not works:
            await self.app(scope, receive, send)
            return
        stated = dict(scope["headers"]).get(b"content-length", b"")
        ticket = Ticket.within(self.deadline_seconds)
        try:
            place = self.admission.enter(int(stated) if stated.isdigit() else 0, ticket)
        except AlbireoError as error:
            await self._refuse(error, scope, receive, send)
            return
        scope.setdefault("state", {})["ticket"] = ticket
        status = 0
        watching: asyncio.Task[None] | None = None

        async def cancel_if_gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            ticket.cancel()

        async def counted() -> Message:
            nonlocal watching
            if watching is not None:  # the body is read: what comes now is that the client went away
                await watching
                return {"type": "http.disconnect"}
            message = await receive()
            place.read(len(message.get("body", b"")))
            if message["type"] == "http.request" and not message.get("more_body", False):
                watching = asyncio.ensure_future(cancel_if_gone())
            return message

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, counted, seen)
        except asyncio.CancelledError:
            # The server cuts what is not answered when it ends: a body that did not come, for one.
            if status or not self.admission.closed:
                raise
            await self._refuse(ending(), scope, receive, send)
        finally:
            if watching is not None:
                watching.cancel()
            place.leave(status == 200)

    async def _refuse(self, error: AlbireoError, scope: Scope, receive: Receive, send: Send) -> None:
        answer = document(error, scope["path"], scope.get("state", {}).get("request_id", ""))
        with suppress(OSError):
            await answer(scope, receive, send)
