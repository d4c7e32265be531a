"""Work that waits, and the batches that are taken of it: by cost, not by count.

    Work      one thing to compute, with its cost and the ticket of its request
    Together  the works of one caller, waited for as one
    Batcher   the queue: interactive before bulk, in order within each, never more than a budget at a time

A batch is taken when it is full, or when nothing is being computed: work gathers while the last batch is on its way,
so that batches grow with the load and an idle service answers at once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from albireo.observations.errors import AlbireoError, Late, TooLarge, Unavailable
from albireo.service.tickets import PRIORITIES, Priority, Ticket
from albireo.service.watch import Tally, current

WEIGHT = 0.2
"""Of the last batch in the mean rate."""

TELLING = 0.25
"""Share of the budget that a batch must have to say how fast work is done: small ones take nearly as long."""

STUCK = 10.0
"""Seconds that any batch may take."""

STUCK_TIMES = 5.0
"""Times as long as the longest before it that a batch may take."""

Given = TypeVar("Given")
Result = TypeVar("Result")

PATIENCE = 2.0
"""Seconds after which bulk work that still waits goes first, once: it is slowed down by others, never stopped."""


@dataclass(eq=False)
class Work(Generic[Given, Result]):
    """One thing to compute. `settle` is called once, from any thread, with what came of it.

    since, taken, ended  when it was put into a queue, taken out, and computed
    request              that it is part of, if it is part of one
    """

    given: Given
    cost: int
    ticket: Ticket
    settle: Callable[[Result | AlbireoError], None]
    since: float = 0.0
    taken: float = 0.0
    ended: float = 0.0
    request: Tally | None = field(default_factory=current)


class Together(Generic[Given, Result]):
    """The works of one caller: put each into a batcher, then `wait` for all of them."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.works: list[Work[Given, Result]] = []
        self._results: list[Result | AlbireoError | None] = []
        self._left = 0
        self._lock = threading.Lock()
        self._woken = threading.Event()

    def work(self, given: Given, cost: int) -> Work[Given, Result]:
        """One more of them."""
        place = len(self.works)

        def settle(result: Result | AlbireoError) -> None:
            with self._lock:
                self._results[place] = result
                self._left -= 1
                if not self._left:
                    self._woken.set()

        self.works.append(Work(given, cost, self.ticket, settle))
        self._results.append(None)
        self._left += 1
        return self.works[-1]

    def wait(self) -> list[Result | AlbireoError]:
        """What came of each, in order; the error of the ticket if that ends before."""
        self.ticket.when_cancelled(self._woken.set)
        while self._left:
            self._woken.wait(self.ticket.remaining())
            if self._left:
                self.ticket.check()
        results = [result for result in self._results if result is not None]
        for result in results:
            if isinstance(result, AlbireoError) and (isinstance(result, Late) or result is self.ticket.why):
                raise result
        return results


@dataclass
class Batcher(Generic[Given, Result]):
    """A queue for one stage. Safe to use from several threads.

    budget    cost of a batch at most; a work that costs more can never be computed, and is refused
    max_wait  seconds that a batch which is not full waits for more, when nothing is being computed
    parallel  batches that are computed at a time
    """

    budget: int
    max_wait: float = 0.0
    parallel: int = 1
    patience: float = PATIENCE
    clock: Callable[[], float] = time.monotonic
    _queues: dict[Priority, deque[Work[Given, Result]]] = field(
        default_factory=lambda: {priority: deque() for priority in PRIORITIES}
    )
    _costs: dict[Priority, int] = field(default_factory=lambda: dict.fromkeys(PRIORITIES, 0))
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _computing: dict[int, tuple[float, int]] = field(default_factory=dict)
    _closed: bool = False
    _rate: float = 0.0
    _longest: tuple[float, int] = (0.0, 1)
    _bulk_first: float = 0.0

    @property
    def waiting(self) -> int:
        """Cost of all that waits."""
        return sum(self._costs.values())

    def cost_of(self, priority: Priority) -> int:
        """Cost of what waits with a priority."""
        return self._costs[priority]

    @property
    def computing(self) -> int:
        """Batches that were taken and are not done."""
        return len(self._computing)

    def stuck(self) -> float | None:
        """Seconds for which a batch is computed that should have been done long ago, None if none is."""
        with self._changed:
            now = self.clock()
            running = [(now - taken, cost) for taken, cost in self._computing.values()]
            return max((seconds for seconds, cost in running if seconds > self._most(cost)), default=None)

    def _most(self, cost: int) -> float:
        """Seconds that a batch of this cost may take: STUCK, and STUCK_TIMES as long as the longest that did not take
        too long itself, or longer as it costs more. Before there was one nobody knows."""
        longest, its_cost = self._longest
        return max(STUCK, STUCK_TIMES * longest * max(1.0, cost / its_cost)) if longest else float("inf")

    def oldest(self) -> float | None:
        """Seconds that the work waits which came first, None if none waits."""
        with self._changed:
            first = [queue[0].since for queue in self._queues.values() if queue]
            return self.clock() - min(first) if first else None

    def put(self, works: Sequence[Work[Given, Result]]) -> None:
        """Queue works; one that costs more than a batch may is settled at once with TooLarge."""
        for work in works:
            if work.cost > self.budget:
                work.settle(self._too_large(work.cost))
        works = [work for work in works if work.cost <= self.budget]
        with self._changed:
            if self._closed:
                raise Unavailable("not_ready", "the service is shutting down", fix="try another one")
            now = self.clock()
            for work in works:
                work.since = now
                self._queues[work.ticket.priority].append(work)
                self._costs[work.ticket.priority] += work.cost
            self._changed.notify_all()
        for ticket in {id(work.ticket): work.ticket for work in works}.values():
            ticket.when_cancelled(lambda ticket=ticket: self._forget(ticket))  # type: ignore[misc]

    def take(self) -> list[Work[Given, Result]]:
        """The next batch, when there is one; `done` must follow. Empty after `close`, when nothing waits any more.

        Work whose request was taken back or is late is settled with the reason, and not computed.
        """
        while True:
            with self._changed:
                while (wait := self._not_yet()) is None or wait > 0:
                    self._changed.wait(wait)
                batch, dropped = self._filled()
                if batch:
                    self._computing[id(batch[0])] = batch[0].taken, sum(work.cost for work in batch)
                ended = self._closed and not batch and not dropped
            for work, reason in dropped:
                work.settle(reason)
            if batch or ended:
                return batch

    def done(self, batch: Sequence[Work[Given, Result]]) -> None:
        """A batch that was taken has been computed."""
        if batch:
            with self._changed:
                taken, cost = self._computing.pop(id(batch[0]))
                seconds = max(self.clock() - taken, 1e-6)
                if seconds <= self._most(cost):
                    self._longest = max(self._longest, (seconds, cost))
                rate = cost / seconds
                if cost >= TELLING * self.budget or (self._rate and rate > self._rate):
                    self._rate += (rate - self._rate) * (WEIGHT if self._rate else 1.0)
                self._changed.notify_all()

    @property
    def seconds(self) -> float:
        """How long what waits will take, as fast as batches were computed lately; 0 before there was one that tells."""
        return self.waiting / (self._rate * self.parallel) if self._rate else 0.0

    def _too_large(self, cost: int) -> TooLarge:
        return TooLarge(
            "too_many_tokens",
            f"{cost} tokens, the service computes {self.budget} at a time",
            field="tokens",
            fix="raise ALBIREO_BATCH_TOKENS",
        )

    def close(self) -> None:
        """Take no more work; what waits is still computed."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _not_yet(self) -> float | None:
        """Seconds until a batch may be taken, 0 = now, None = when something changes."""
        first = [queue[0].since for queue in self._queues.values() if queue]
        if not first:
            return 0.0 if self._closed else None
        if self._closed or self.waiting >= self.budget:
            return 0.0
        if len(self._computing) >= self.parallel:
            return None
        return max(0.0, min(first) + self.max_wait - self.clock())

    def _filled(self) -> tuple[list[Work[Given, Result]], list[tuple[Work[Given, Result], AlbireoError]]]:
        """What is taken now, and what is dropped with the reason."""
        now = self.clock()
        batch: list[Work[Given, Result]] = []
        dropped: list[tuple[Work[Given, Result], AlbireoError]] = []
        left = self.budget
        for priority in self._order(now):
            queue = self._queues[priority]
            while queue:
                work = queue[0]
                ended = _ended(work.ticket, now)
                if ended is None and work.cost > left:
                    break
                queue.popleft()
                self._costs[priority] -= work.cost
                if ended is not None:
                    dropped.append((work, ended))
                else:
                    work.taken = now
                    batch.append(work)
                    left -= work.cost
        return batch, dropped

    def _order(self, now: float) -> tuple[Priority, ...]:
        bulk = self._queues["bulk"]
        if bulk and now - max(bulk[0].since, self._bulk_first) > self.patience:
            self._bulk_first = now
            return ("bulk", "interactive")
        return PRIORITIES

    def _forget(self, ticket: Ticket) -> None:
        """Drop the work of a request that was taken back."""
        with self._changed:
            gone: list[Work[Given, Result]] = []
            for priority, queue in self._queues.items():
                mine = [work for work in queue if work.ticket is ticket]
                if mine:
                    self._queues[priority] = deque(work for work in queue if work.ticket is not ticket)
                    self._costs[priority] -= sum(work.cost for work in mine)
                    gone += mine
            self._changed.notify_all()
        for work in gone:
            assert ticket.why is not None
            work.settle(ticket.why)


def _ended(ticket: Ticket, now: float) -> AlbireoError | None:
    """Why a ticket's work is not to be computed any more, None if it is."""
    try:
        ticket.check(now)
    except AlbireoError as error:
        return error
    return None
