"""One process that reads inputs under bounds, until its time is up or an input ends it.

    Order   what it is told
    Board   what it tells, in a file that is there also when the process is not
    work    reads input after input

It keeps inputs that a reader answered in a new way (another line raised the error, other things were read), and changes
those too. What is no typed error is written down as a finding. What kills the process is told by who watches it.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import mmap
import os
import resource
import signal
import struct
import sys
import time
import traceback
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any

from albireo.observations.errors import AlbireoError
from albireo.observations.room import Room, room_for
from tests.fuzz import bounds
from tests.fuzz.mutation import Mutator, Parts
from tests.fuzz.readers import Reader, find

ROOT = Path(__file__).parents[2]

KEPT_BYTES = 64 << 20
"""Of inputs that were answered in a new way; what is more is not kept."""

SAVED = 3
"""Findings of one kind that are written down; the others are counted."""


@dataclass(frozen=True)
class Order:
    """seed, first  of the inputs; seconds  of CPU time, and inputs  at most; folder  for what is found and kept."""

    reader: str
    seed: int
    first: int
    seconds: float
    inputs: int
    folder: str


class Board:
    """n inputs begun, CPU seconds spent, errors, answers, findings, kept inputs, bytes grown, whether it is done."""

    FORM = struct.Struct("<QdQQQQqQ")

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(self.FORM.size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), self.FORM.size)

    def write(self, *values: float) -> None:
        self.FORM.pack_into(self._map, 0, *values)

    def read(self) -> tuple[Any, ...]:
        return self.FORM.unpack_from(self._map, 0)


def packed(parts: Parts) -> bytes:
    """An input as one file."""
    return b"".join(struct.pack("<Q", len(part)) + part for part in parts)


def unpacked(content: bytes) -> Parts:
    """The input of a file."""
    parts, at = [], 0
    while at < len(content):
        (size,) = struct.unpack_from("<Q", content, at)
        parts.append(content[at + 8 : at + 8 + size])
        at += 8 + size
    return tuple(parts)


@dataclass(frozen=True)
class Verdict:
    """What came of an input. `signature` tells answers apart; `wrong` is why it is a finding, or None."""

    signature: int
    error: bool
    wrong: str | None = None
    kind: str = ""


def warm(reader: Reader, seeds: Sequence[Parts]) -> None:
    """Read inputs without bounds: what is loaded at first use is not the doing of an input."""
    for parts in seeds:
        with room_for(bounds.ROOM):
            _answered(reader, parts)


def judged(reader: Reader, parts: Parts) -> Verdict:
    """Read one input, and say whether what came of it is all right."""
    given = sum(map(len, parts))
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    began = time.process_time()
    with _limited(), room_for(bounds.ROOM) as room:
        verdict = _answered(reader, parts)
    seconds, grown = time.process_time() - began, _memory("VmHWM") - before
    if verdict.wrong:
        return verdict
    wrong = None
    if grown > bounds.MEMORY:
        wrong, kind = f"{grown >> 20} MiB of memory, {bounds.MEMORY >> 20} are allowed", "memory"
    elif seconds > (most := bounds.allowed(given, _taken(room))):
        wrong, kind = f"{seconds:.1f} s of CPU time for {given} bytes, {most:.1f} are allowed", "slow"
    return (
        verdict
        if wrong is None
        else Verdict(verdict.signature, verdict.error, wrong, f"{kind}-{verdict.signature:08x}")
    )


def _answered(reader: Reader, parts: Parts) -> Verdict:
    try:
        facts = list(reader.read(parts))
        errors = [fact for fact in facts if isinstance(fact, BaseException)]
    except Exception as error:
        facts, errors = [], [error]
    told = []
    for error in errors:
        chain = list(_chain(error))
        told.append((type(error).__name__, getattr(error, "code", ""), *(_places(one.__traceback__) for one in chain)))
        if isinstance(error, AlbireoError) and not any(isinstance(one, MemoryError) for one in chain):
            continue
        wrong = "".join(traceback.format_exception(error, limit=-40))
        kind = "memory" if isinstance(error, AlbireoError) else type(error).__name__
        return Verdict(_mark(told[-1]), True, wrong, f"{kind}-{_where(error)}")
    plain = sorted({repr(fact) for fact in facts if not isinstance(fact, BaseException)})
    return Verdict(_mark((sorted({repr(one) for one in told}), plain)), bool(errors))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those it came of."""
    found: BaseException | None = error
    for _ in range(8):
        if found is None:
            return
        yield found
        found = found.__cause__ or found.__context__


def _places(at: TracebackType | None) -> list[tuple[str, int]]:
    """File and line of every call of a traceback, up to some."""
    return [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(at, limit=-30)]


def _where(error: BaseException) -> str:
    """The last place in our own code, and the last one at all if that is elsewhere."""
    places = [(name, line) for name, line in _places(error.__traceback__) if name != __file__] or [("nowhere", 0)]
    ours = [place for place in places if place[0].startswith(str(ROOT)) and "site-packages" not in place[0]]
    chosen = dict.fromkeys((*ours[-1:], places[-1]))
    return "-".join(f"{Path(name).name}:{line}" for name, line in chosen)


def _mark(value: object) -> int:
    return zlib.crc32(repr(value).encode("utf-8", "backslashreplace"))


def _taken(room: Room) -> int:
    return room.size - room.left


@contextmanager
def _limited() -> Iterator[None]:
    """SIGPROF ends the process after so much CPU time; a pause costs none. Larger arrays than may be are refused."""
    addresses = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + bounds.ADDRESSES, addresses[1]))
    signal.setitimer(signal.ITIMER_PROF, bounds.SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, addresses)


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def work(order: Order) -> None:
    """Read inputs, from number `first` on."""
    folder, reader = Path(order.folder), find(order.reader)
    board = Board(folder / "board")
    seeds: Sequence[Parts] = reader.seeds()
    mutator = Mutator(seeds)
    warm(reader, seeds)
    known = {int(line) for line in _lines(folder / "seen")}
    kept = [unpacked(path.read_bytes()) for path in sorted((folder / "kept").iterdir())]
    room = KEPT_BYTES - sum(len(part) for parts in kept for part in parts)
    counts = {kind: int(n) for kind, n in (line.rsplit(" ", 1) for line in _lines(folder / "counts"))}
    _, before, errors, answers, _, _, _, _ = board.read()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    start, rss = time.process_time(), _memory("VmRSS")
    current = (folder / "current").open("r+b" if (folder / "current").exists() else "w+b", buffering=0)
    for n in count(order.first):
        spent = before + time.process_time() - start
        grown = _memory("VmRSS") - rss
        done = spent >= order.seconds or n >= order.inputs or grown > bounds.GROWTH
        board.write(n, spent, errors, answers, sum(counts.values()), len(kept), grown, done)
        if done:
            break
        parts = _next(Random(f"{order.seed}/{reader.name}/{n}"), n, seeds, kept, mutator)
        content = packed(parts)
        current.seek(0)
        current.write(struct.pack("<QQ", n, len(content)) + content)
        board.write(n + 1, spent, errors, answers, sum(counts.values()), len(kept), grown, 0)
        verdict = judged(reader, parts)
        errors += verdict.error
        answers += not verdict.error
        if verdict.wrong is not None:
            counts[verdict.kind] = counts.get(verdict.kind, 0) + 1
            (folder / "counts").write_text("".join(f"{kind} {number}\n" for kind, number in counts.items()))
            if counts[verdict.kind] <= SAVED:
                save(folder, f"{verdict.kind}-{n}", parts, verdict.wrong)
        if verdict.signature not in known:
            known.add(verdict.signature)
            with (folder / "seen").open("a") as file:
                file.write(f"{verdict.signature}\n")
            if len(content) < room:
                room -= len(content)
                kept.append(parts)
                (folder / "kept" / f"{n:012d}").write_bytes(content)


def _next(rng: Random, n: int, seeds: Sequence[Parts], kept: Sequence[Parts], mutator: Mutator) -> Parts:
    """Input number n: a seed as it is, then changes of seeds and of what was kept, of late more often."""
    if n < len(seeds):
        return seeds[n]
    if not kept or rng.random() < 0.4:
        return mutator.changed(rng, rng.choice(seeds))
    recent = kept[-30:] if rng.random() < 0.4 else kept
    return mutator.changed(rng, rng.choice(recent))


def save(folder: Path, name: str, parts: Parts, why: str) -> Path:
    """Write a finding down: the input, its parts one by one, and why it is one."""
    place = folder / "findings" / name
    place.mkdir(parents=True, exist_ok=True)
    (place / "input").write_bytes(packed(parts))
    for k, part in enumerate(parts):
        (place / f"part{k}").write_bytes(part)
    (place / "why").write_text(why)
    return place


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def prepare() -> None:
    """Nothing but findings is told: warnings and logs are not; where the process was when it died, is."""
    warnings.simplefilter("ignore")
    logging.disable()
    faulthandler.enable(sys.stderr)
    faulthandler.register(signal.SIGPROF, sys.stderr, all_threads=False, chain=True)


if __name__ == "__main__":
    prepare()
    work(Order(**json.loads(sys.argv[1])))
    sys.stdout.flush()
    os._exit(0)  # threads of services and of C libraries are not waited for
