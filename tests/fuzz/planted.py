"""Readers that are bad on purpose, so that tests can see that what is bad is told. None of them is in the table."""

from __future__ import annotations

import ctypes
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from albireo.observations.errors import BadInput, TooLarge
from tests.fuzz import bounds
from tests.fuzz.mutation import Parts
from tests.fuzz.readers import Reader

GOOD = b"a good input, of which there is a second one\n"


def _after(change: Callable[[Parts], Any]) -> Callable[[Parts], Iterator[Any]]:
    """A reader that is bad to inputs with another first letter, and answers others with a typed error or none."""

    def read(parts: Parts) -> Iterator[Any]:
        if parts[0][:1] != GOOD[:1]:
            change(parts)
        if len(parts[0]) % 2:
            raise BadInput("damaged_file", "of odd length")
        yield len(parts[0]) > 100

    return read


def _crash(parts: Parts) -> None:
    ctypes.string_at(8)


def _abort(parts: Parts) -> None:
    ctypes.CDLL(None).abort()


def _hang(parts: Parts) -> None:
    sum(itertools.repeat(0))  # in C, where no signal handler of Python is called


def _wait(parts: Parts) -> None:
    threading.Event().wait()


def _slow(parts: Parts) -> None:
    until = time.process_time() + bounds.allowed(sum(map(len, parts)), 0) + 0.5
    while time.process_time() < until:
        pass


def _swell(parts: Parts) -> None:
    assert np.ones(bounds.MEMORY // 8 + (4 << 20)).all()


def _ask(parts: Parts) -> None:
    try:
        np.empty(bounds.ADDRESSES + (1 << 30), np.uint8)
    except MemoryError as error:
        raise TooLarge("too_large", "there is not so much memory") from error


def _untyped(parts: Parts) -> None:
    raise KeyError(parts[0][:8])


def _nothing(parts: Parts) -> None:
    return None


PLANTED = tuple(
    Reader(f"planted-{name}", "bad on purpose", lambda: [(GOOD,), (GOOD + GOOD[:9],)], _after(change))
    for name, change in (
        ("crash", _crash), ("abort", _abort), ("hang", _hang), ("wait", _wait), ("slow", _slow), ("swell", _swell),
        ("ask", _ask), ("untyped", _untyped), ("nothing", _nothing),
    )
)  # fmt: skip
