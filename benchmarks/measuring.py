"""What the benchmarks share: alternation, ratios of medians, a steady machine or no figure, peak memory.

Two sides are never timed one after the other: ours, theirs, ours, theirs. A product of matrices is timed before and
after; if its rate differs by more than `STEADY`, somebody else was using the machine, and the figures are VOID.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from albireo.models.cpu import available_cores, fast_bf16

ROUNDS = 15
"""Alternations that a figure needs to be quotable."""

STEADY = 0.15
"""Largest relative change of the machine's speed during a case."""

VOID_EXIT = 3
"""Exit code of a benchmark whose figures are VOID."""

FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "bf16", "sve")
"""Instructions that decide how fast matrices are multiplied, as /proc/cpuinfo names them."""

Seconds = dict[str, list[float]]
"""Name of a side -> its time in each round."""


def seconds(call: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def gemm_rate() -> float:
    """GFLOP/s of a 1024 x 1024 product in float32: the median of those of a second, after as long a start."""
    a = torch.randn(1024, 1024)
    taken: list[float] = []
    until = time.perf_counter() + 2.0
    while time.perf_counter() < until:
        taken.append(seconds(lambda: a @ a))
    return float(2 * 1024**3 / np.median(taken[len(taken) // 2 :]) / 1e9)


def steady(before: float, after: float) -> bool:
    """Whether the machine was as fast after a case as before it."""
    return abs(after / before - 1) <= STEADY


@cache
def bandwidth() -> float:
    """GB/s of memory: a copy of 256 MiB, reads and writes counted, best of 5; once in a process."""
    source = torch.ones(1 << 26)
    target = torch.empty_like(source)
    best = min(seconds(lambda: target.copy_(source)) for _ in range(5))
    return 2 * source.nbytes / best / 1e9


def use_all_cores() -> None:
    """As many threads as the process may keep busy."""
    torch.set_num_threads(available_cores())


def machine() -> dict[str, object]:
    """What the figures depend on: processor, instructions, threads, memory, versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    words = (facts.get("flags") or facts.get("Features") or "").split()
    return {
        "processor": facts.get("model name", platform.processor() or platform.machine()),
        "flags": [flag for flag in FLAGS if flag in words],
        "fast_bf16": fast_bf16(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def alternate(
    sides: Mapping[str, Callable[[int], object]],
    rounds: int,
    budget: float | None = None,
    before: Callable[[int], object] = lambda number: None,
    between: Callable[[], object] = lambda: None,
    progress: Callable[[str], None] = lambda line: None,
) -> Seconds:
    """Seconds of every side in every round: all sides in turn, again and again, after one call of each that warms up.

    sides    name -> what is timed, given the number of the round
    budget   seconds in all: rounds that would go over it are left out, but never the first
    before   called before every round, for what makes it ready
    between  called after every round, for what is measured in the same run
    """
    began = time.perf_counter()
    before(0)
    for name, call in sides.items():
        progress(f"warming up: {name} {seconds(lambda call=call: call(0)):.3g} s")  # type: ignore[misc]
    between()
    taken: Seconds = {name: [] for name in sides}
    for number in range(rounds):
        start = time.perf_counter()
        before(number)
        for name, call in sides.items():
            taken[name].append(seconds(lambda call=call, number=number: call(number)))  # type: ignore[misc]
        between()
        now = time.perf_counter()
        last = ", ".join(f"{name} {times[-1]:.3g} s" for name, times in taken.items())
        progress(f"round {number + 1} of {rounds}: {last}")
        if budget is not None and now - began + (now - start) > budget:
            break
    return taken


def quartiles(values: Sequence[float]) -> list[float]:
    """First quartile, median, third quartile."""
    return [float(q) for q in np.quantile(values, (0.25, 0.5, 0.75))]


def ratio(theirs: Sequence[float], ours: Sequence[float], draws: int = 2000) -> dict[str, float]:
    """Ratio of medians theirs / ours with its 95 % interval: rounds drawn again with replacement, in pairs."""
    pairs = np.array([theirs, ours])
    drawn = pairs[:, np.random.default_rng(1).integers(0, pairs.shape[1], (draws, pairs.shape[1]))]
    low, high = np.quantile(np.divide(*np.median(drawn, axis=2)), (0.025, 0.975))
    return {"value": float(np.divide(*np.median(pairs, axis=1))), "low": float(low), "high": float(high)}


def status(field: str) -> int:
    """A line of /proc/self/status in bytes: VmHWM (most memory ever resident), RssAnon (memory that is no file)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise ValueError(f"no {field} in /proc/self/status")


class PeakAnonymous:
    """Most anonymous memory of this process while the block runs, in bytes above what it had at its start.

    Sampled by a thread every millisecond: `peak`, and `start`, what there was before.
    """

    def __enter__(self) -> PeakAnonymous:
        self.start = self._highest = status("RssAnon")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    @property
    def peak(self) -> int:
        return self._highest - self.start

    def _watch(self) -> None:
        while not self._done.wait(0.001):
            self._look()

    def _look(self) -> None:
        self._highest = max(self._highest, status("RssAnon"))
