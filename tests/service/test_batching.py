"""The batcher: progress, budget, order, cancellation, deadlines; by a state machine and by threads."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from albireo.observations.errors import AlbireoError, Gone, Late, TooLarge, Unavailable
from albireo.service.batching import Batcher, Together, Work
from albireo.service.tickets import PRIORITIES, Priority, Ticket

BUDGET = 10


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Machine(RuleBasedStateMachine):
    """A batcher against a list of what should happen. `take` is only called when it must not block."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.serial = 0
        self.waiting: list[Work[int, str]] = []
        self.computing: list[list[Work[int, str]]] = []
        self.settled: dict[int, object] = {}
        self.computed: list[int] = []
        self.tickets: list[Ticket] = []

    @initialize(parallel=st.integers(1, 3), patience=st.sampled_from([0.5, 1e9]))
    def begin(self, parallel: int, patience: float) -> None:
        self.batcher: Batcher[int, str] = Batcher(BUDGET, 0.0, parallel, patience, self.clock)

    @rule(
        priority=st.sampled_from(PRIORITIES),
        costs=st.lists(st.integers(1, BUDGET + 3), min_size=1, max_size=6),
        seconds=st.none() | st.floats(0.1, 3.0),
    )
    def put(self, priority: Priority, costs: list[int], seconds: float | None) -> None:
        ticket = Ticket(priority, None if seconds is None else self.clock() + seconds)
        self.tickets.append(ticket)
        works = []
        for cost in costs:
            works.append(self._work(cost, ticket))
        self.batcher.put(works)
        for work in works:
            if work.cost > BUDGET:
                assert isinstance(self.settled[work.given], TooLarge)
            else:
                assert work.given not in self.settled
                self.waiting.append(work)

    def _work(self, cost: int, ticket: Ticket) -> Work[int, str]:
        self.serial += 1
        serial = self.serial

        def settle(result: object) -> None:
            assert serial not in self.settled, "settled twice"
            self.settled[serial] = result

        return Work(serial, cost, ticket, settle)

    @rule(seconds=st.floats(0.01, 1.0))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(which=st.integers(0, 1000))
    @precondition(lambda self: self.tickets)
    def cancel(self, which: int) -> None:
        ticket = self.tickets[which % len(self.tickets)]
        ticket.cancel()
        for work in [work for work in self.waiting if work.ticket is ticket]:
            assert isinstance(self.settled[work.given], Gone), "cancelled work still waits"
            self.waiting.remove(work)

    @rule()
    @precondition(lambda self: any(not self._ended(work) for work in self.waiting))
    def take(self) -> None:
        full = sum(work.cost for work in self.waiting) >= BUDGET
        if not full and len(self.computing) >= self.batcher.parallel:
            return  # it would wait
        before = list(self.waiting)
        batch = self.batcher.take()
        assert batch, "there was work, and none was given"
        assert sum(work.cost for work in batch) <= BUDGET
        for work in batch:
            assert not self._ended(work), "computed what nobody waits for"
            assert work in before
        for priority in PRIORITIES:
            taken = [work.given for work in batch if work.ticket.priority == priority]
            line = [work.given for work in before if work.ticket.priority == priority and not self._ended(work)]
            assert taken == line[: len(taken)], "not in order"
        for work in before:
            if work in batch or work.given in self.settled:
                self.waiting.remove(work)
                assert work in batch or self._ended(work), "dropped what somebody waits for"
        self.computing.append(batch)

    def _ended(self, work: Work[int, str]) -> bool:
        deadline = work.ticket.deadline
        return work.ticket.cancelled or (deadline is not None and deadline <= self.clock())

    @rule(which=st.integers(0, 1000))
    @precondition(lambda self: self.computing)
    def done(self, which: int) -> None:
        batch = self.computing.pop(which % len(self.computing))
        self.batcher.done(batch)
        for work in batch:
            work.settle("done")

    @invariant()
    def counts_agree(self) -> None:
        if hasattr(self, "batcher"):
            assert self.batcher.waiting == sum(work.cost for work in self.waiting)
            for priority in PRIORITIES:
                costs = [work.cost for work in self.waiting if work.ticket.priority == priority]
                assert self.batcher.cost_of(priority) == sum(costs)
            assert self.batcher.computing == len(self.computing)

    def teardown(self) -> None:
        """Whatever happened: closed, everything that waits is settled, and then there is no more."""
        if not hasattr(self, "batcher"):
            return
        for batch in self.computing:
            self.batcher.done(batch)
            for work in batch:
                work.settle("done")
        self.batcher.close()
        while batch := self.batcher.take():
            self.batcher.done(batch)
            for work in batch:
                work.settle("done")
        assert len(self.settled) == self.serial
        assert self.batcher.waiting == 0


Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestMachine = Machine.TestCase


def works(ticket: Ticket, *costs: int) -> list[Work[int, str]]:
    return [Work(i, cost, ticket, lambda result: None) for i, cost in enumerate(costs)]


def test_bulk_waits_for_interactive_but_not_for_ever() -> None:
    clock = Clock()
    batcher: Batcher[int, str] = Batcher(BUDGET, patience=2.0, clock=clock)
    batcher.put(works(Ticket("bulk"), 10))
    batcher.put(works(Ticket(), 10, 10, 10))
    priorities = []
    for _ in range(3):
        batch = batcher.take()
        priorities += [work.ticket.priority for work in batch]
        clock.now += 1.5
        batcher.done(batch)
    assert priorities == ["interactive", "interactive", "bulk"]


def test_bulk_fills_what_interactive_leaves() -> None:
    batcher: Batcher[int, str] = Batcher(BUDGET)
    batcher.put(works(Ticket("bulk"), 4, 4, 4))
    batcher.put(works(Ticket(), 5))
    assert [(work.ticket.priority, work.cost) for work in batcher.take()] == [("interactive", 5), ("bulk", 4)]


def test_a_batch_that_takes_far_longer_than_others_is_stuck() -> None:
    clock = Clock()
    batcher: Batcher[int, str] = Batcher(BUDGET, clock=clock)
    batcher.put(works(Ticket(), 2))
    first = batcher.take()
    clock.now += 1000.0
    assert batcher.stuck() is None, "nobody knows how long the first one takes"
    clock.now -= 996.0
    batcher.done(first)
    batcher.put(works(Ticket(), 1))
    small = batcher.take()
    clock.now += 19.0
    assert batcher.stuck() is None
    clock.now += 2.0
    assert batcher.stuck() == pytest.approx(21.0)
    batcher.done(small)
    assert batcher.stuck() is None
    batcher.put(works(Ticket(), 8))
    batcher.take()
    clock.now += 79.0
    assert batcher.stuck() is None, "it costs four times as much as the longest that was as it should be"
    clock.now += 2.0
    assert batcher.stuck() == pytest.approx(81.0)


def test_an_idle_batcher_gives_at_once_and_a_busy_one_gathers() -> None:
    batcher: Batcher[int, str] = Batcher(BUDGET)
    batcher.put(works(Ticket(), 1))
    first = batcher.take()
    taken: list[int] = []
    thread = threading.Thread(target=lambda: taken.append(len(batcher.take())))
    thread.start()
    for _ in range(3):
        batcher.put(works(Ticket(), 1))
    time.sleep(0.05)
    assert not taken, "a batch that is not full was taken while another one is computed"
    batcher.done(first)
    thread.join(5)
    assert taken == [3]


def test_a_full_batch_is_taken_while_another_one_is_computed() -> None:
    batcher: Batcher[int, str] = Batcher(BUDGET)
    batcher.put(works(Ticket(), 1))
    batcher.take()
    batcher.put(works(Ticket(), 6, 4))
    assert [work.cost for work in batcher.take()] == [6, 4]


def test_max_wait_lets_a_batch_grow() -> None:
    batcher: Batcher[int, str] = Batcher(BUDGET, max_wait=0.1)
    batcher.put(works(Ticket(), 1))
    threading.Timer(0.03, lambda: batcher.put(works(Ticket(), 1))).start()
    began = time.monotonic()
    assert len(batcher.take()) == 2
    assert 0.05 < time.monotonic() - began < 2.0


def test_waiting_ends_with_the_ticket() -> None:
    batcher: Batcher[str, str] = Batcher(BUDGET)
    for end, error in ((lambda ticket: ticket.cancel(), Gone), (lambda ticket: None, Late)):
        ticket = Ticket.within(0.1)
        together: Together[str, str] = Together(ticket)
        batcher.put([together.work("x", 1)])
        threading.Timer(0.02, end, [ticket]).start()
        began = time.monotonic()
        with pytest.raises(error):
            together.wait()
        assert time.monotonic() - began < 1.0


def test_results_come_in_the_order_of_the_works() -> None:
    together: Together[str, str] = Together(Ticket())
    first, second = together.work("a", 1), together.work("b", 1)
    second.settle("B")
    first.settle(AlbireoError("internal", "a is broken"))
    a, b = together.wait()
    assert isinstance(a, AlbireoError)
    assert b == "B"


def test_a_closed_batcher_takes_nothing_more_and_gives_what_it_has() -> None:
    batcher: Batcher[int, str] = Batcher(BUDGET)
    batcher.put(works(Ticket(), 3))
    batcher.close()
    with pytest.raises(Unavailable):
        batcher.put(works(Ticket(), 1))
    assert len(batcher.take()) == 1
    assert batcher.take() == []


def test_seconds_follow_what_was_computed() -> None:
    clock = Clock()
    batcher: Batcher[int, str] = Batcher(BUDGET, parallel=2, clock=clock)
    assert batcher.seconds == 0.0
    batcher.put(works(Ticket(), 10, 10, 10))
    batch = batcher.take()
    clock.now += 5.0
    batcher.done(batch)
    assert batcher.seconds == pytest.approx(20 / (10 / 5.0 * 2))
