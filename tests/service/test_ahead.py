"""The next portion is made while the last one is used, in order, once, and by the request's own account."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from albireo.service.ahead import ahead, portions

REQUEST: ContextVar[str] = ContextVar("request", default="nobody")


def test_the_next_is_made_while_one_is_used() -> None:
    begun = {n: threading.Event() for n in range(3)}

    def make(n: int) -> int:
        begun[n].set()
        return n

    used = []
    for n in ahead(make, range(3)):
        assert n == 2 or begun[n + 1].wait(5), f"{n + 1} is not made while {n} is used"
        used.append(n)
    assert used == [0, 1, 2]


def test_no_more_than_one_is_made_that_nobody_asked_for() -> None:
    made: list[int] = []
    each = ahead(lambda n: made.append(n) or n, range(10))
    next(each)
    each.close()
    assert len(made) <= 2


@pytest.mark.parametrize("n", [1, 2, 5])
def test_it_works_for_the_request_of_the_caller(n: int) -> None:
    token = REQUEST.set("mine")
    try:
        assert list(ahead(lambda part: REQUEST.get(), range(n))) == ["mine"] * n
    finally:
        REQUEST.reset(token)


@pytest.mark.parametrize("n", [1, 4])
def test_what_fails_fails_where_it_is_due(n: int) -> None:
    def make(part: int) -> int:
        if part == n - 1:
            raise ValueError("the last one")
        return part

    each = ahead(make, range(n))
    assert [next(each) for _ in range(n - 1)] == list(range(n - 1))
    with pytest.raises(ValueError, match="the last one"):
        next(each)


def test_nothing_of_nothing() -> None:
    assert list(ahead(lambda part: part, [])) == []


@given(st.lists(st.integers(0, 50)), st.integers(1, 60), st.integers(1, 8) | st.none())
def test_portions_hold_everything_once_within_the_budget(costs: list[int], budget: int, most: int | None) -> None:
    parts = portions(costs, budget, most)
    assert [i for part in parts for i in part] == list(range(len(costs)))
    for part in parts:
        assert part
        assert len(part) == 1 or sum(costs[i] for i in part) <= budget
        assert most is None or len(part) <= most
    for one, other in pairwise(parts):
        full = len(one) == most or sum(costs[i] for i in one) + costs[other[0]] > budget
        assert full, "one more would have fitted"
