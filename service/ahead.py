"""One step ahead: the next portion is made ready while the last one is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

Part = TypeVar("Part")
Made = TypeVar("Made")


def ahead(make: Callable[[Part], Made], parts: Sequence[Part]) -> Iterator[Made]:
    """What `make` makes of each part, in order; from the second on in a thread, while the caller uses the one before.

    At most one is made that the caller has not asked for. What `make` raises is raised where its part is due. The
    thread works for the same request as the caller.
    """
    if len(parts) < 2:
        yield from map(make, parts)
        return
    context = copy_context()
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        coming = thread.submit(context.run, make, parts[0])
        for part in parts[1:]:
            made = coming.result()
            coming = thread.submit(context.run, make, part)
            yield made
        yield coming.result()


def portions(costs: Sequence[int], budget: int, most: int | None = None) -> list[list[int]]:
    """Numbers 0, 1, .. in order: in each portion as many as the budget holds, `most` at most, and at least one."""
    out: list[list[int]] = []
    total = 0
    for i, cost in enumerate(costs):
        if not out or total + cost > budget or len(out[-1]) == most:
            out.append([])
            total = 0
        out[-1].append(i)
        total += cost
    return out
