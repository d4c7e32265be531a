"""What keys have used: a bucket for each limit, which fills evenly, and out of which requests and tokens are taken.

    Limit     an amount a window of time
    State     what is left of one
    Counters  the buckets of all keys, in memory
    Exceeded  a key has used up a limit

A bucket starts full and fills at its rate, so a key that was idle may use a whole window's amount at once. A request
takes its place before it is done; what it costs in tokens is known afterwards, and may take a bucket below zero: then
the key waits until it is filled again.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from albireo.observations.errors import Busy
from albireo.service.keys import Key, Quota

Unit = Literal["requests", "tokens"]
MINUTE, DAY = 60, 86_400


@dataclass(frozen=True)
class Limit:
    """`amount` requests or tokens in `seconds`; at most `capacity` of them at once."""

    unit: Unit
    amount: int
    seconds: int
    capacity: int

    @cached_property
    def rate(self) -> float:
        """A second."""
        return self.amount / self.seconds

    @cached_property
    def name(self) -> str:
        return f"{self.unit}_per_{'minute' if self.seconds == MINUTE else 'day'}"


class State(NamedTuple):
    """What is left of a limit: `remaining`, not below 0, and the seconds until it is full again."""

    limit: Limit
    remaining: int
    reset: int


def limits_of(quota: Quota) -> tuple[Limit, ...]:
    """The limits that a quota states. A burst without requests a minute is of those of a day."""
    stated: tuple[tuple[Unit, int | None, int], ...] = (
        ("requests", quota.requests_per_minute, MINUTE),
        ("requests", quota.requests_per_day, DAY),
        ("tokens", quota.tokens_per_minute, MINUTE),
        ("tokens", quota.tokens_per_day, DAY),
    )
    limits = [Limit(unit, amount, seconds, amount) for unit, amount, seconds in stated if amount is not None]
    if quota.burst is not None and limits and limits[0].unit == "requests":
        first = limits[0]
        limits[0] = Limit(first.unit, first.amount, first.seconds, quota.burst)
    return tuple(limits)


class Buckets:
    """Of one key: how full its limits are, as of `filled`; what was `spent` that nobody else knows of; when `used`."""

    def __init__(self, limits: tuple[Limit, ...], now: float) -> None:
        self.limits = limits
        self.levels = [float(limit.capacity) for limit in limits]
        self.spent = [0] * len(limits)
        self.filled = now
        self.used = -math.inf

    def fill(self, now: float) -> None:
        """Add what has come since."""
        passed, self.filled = max(now - self.filled, 0.0), now
        for i, limit in enumerate(self.limits):
            self.levels[i] = min(float(limit.capacity), self.levels[i] + passed * limit.rate)

    def spend(self, unit: Unit, amount: int) -> None:
        self.used = self.filled
        for i, limit in enumerate(self.limits):
            if limit.unit == unit:
                self.levels[i] -= amount
                self.spent[i] += amount

    def states(self) -> list[State]:
        return [
            State(limit, max(math.floor(level), 0), math.ceil((limit.capacity - level) / limit.rate))
            for limit, level in zip(self.limits, self.levels, strict=True)
        ]


class Counters:
    """The buckets of all keys, by name. Safe to use from several threads; nothing here waits."""

    shared = False
    """True if the services of a deployment count together."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[str, Buckets] = {}

    def know(self, keys: Iterable[Key]) -> None:
        """The keys that there are. One that stays keeps what it has used, unless it has got other limits."""
        with self._lock:
            before, now = self._buckets, self.clock()
            self._buckets = {}
            for key in keys:
                limits = limits_of(key.quota)
                old = before.get(key.name)
                self._buckets[key.name] = old if old is not None and old.limits == limits else Buckets(limits, now)

    def take(self, key: Key, costs: bool = True) -> list[State]:
        """One request of a key, and what is left. Exceeded, and nothing is taken, if it has used up a limit.

        costs  False for a request that will cost no tokens: then those may be used up
        """
        with self._lock:
            buckets = self._filled(key)
            _refuse_empty(key, buckets, ("requests", "tokens") if costs else ("requests",))
            buckets.spend("requests", 1)
            return buckets.states()

    def go_on(self, key: Key) -> None:
        """Exceeded if a key has used up its tokens: for requests that are long, between their parts."""
        with self._lock:
            _refuse_empty(key, self._filled(key), ("tokens",))

    def charge(self, key: Key, tokens: int) -> list[State]:
        """Tokens that a request of a key has cost, and what is left."""
        with self._lock:
            buckets = self._filled(key)
            buckets.spend("tokens", tokens)
            return buckets.states()

    def states(self, key: Key) -> list[State]:
        """What is left of each limit of a key."""
        with self._lock:
            return self._filled(key).states()

    def report(self) -> tuple[bool, str]:
        """Whether counting works, and how."""
        return True, "in the memory of this process"

    def close(self) -> None:
        """Nothing is counted any more."""

    def _filled(self, key: Key) -> Buckets:
        now = self.clock()
        buckets = self._buckets.get(key.name)
        if buckets is None:  # taken out of the file while its request was being answered
            return Buckets((), now)
        buckets.fill(now)
        return buckets


class Exceeded(Busy):
    """The key `name` has used up a limit. `states` say what is left of each."""

    def __init__(self, key: Key, limit: Limit, wait: float, states: Sequence[State]) -> None:
        super().__init__(
            "quota_exceeded",
            f"the key {key.name!r} may use {limit.amount} {limit.unit} a {limit.name.rpartition('_')[2]}",
            retry_after=wait,
            field=limit.name,
            fix="wait, or ask whoever runs the service for more",
        )
        self.name = key.name
        self.states = states


def _refuse_empty(key: Key, buckets: Buckets, units: Sequence[Unit]) -> None:
    """Exceeded, of the bucket that takes longest to fill, unless each of these units holds something."""
    waits = [
        ((1 - level) / limit.rate, limit)
        for limit, level in zip(buckets.limits, buckets.levels, strict=True)
        if level < 1 and limit.unit in units
    ]
    if waits:
        wait, limit = max(waits, key=lambda one: one[0])
        raise Exceeded(key, limit, wait, buckets.states())
