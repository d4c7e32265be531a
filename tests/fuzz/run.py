"""Readers one after another or side by side, each in processes that are watched and begun again.

Limits  how long each reader is tried, and the seed
Result  what came of a reader
run     all of some readers, with a line now and then
repeat  one input again, in this process
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.fuzz import bounds
from tests.fuzz.child import ROOT, Board, Order, judged, prepare, save, unpacked, warm
from tests.fuzz.readers import find

DEATHS = 12
"""Processes of one reader that may die before it is given up."""

LOOK = 0.25
"""Seconds between two looks at a process."""

SAY = 30.0
"""Seconds of CPU time between two lines on one reader."""

ENVIRONMENT = {
    "PYTHONHASHSEED": "0",  # the same seed gives the same inputs
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",  # allocators that set nothing aside, so that addresses can be counted
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "PYTHONPATH": str(ROOT),
}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Limits:
    """CPU seconds and inputs of each reader, at most; seed of the changes."""

    seconds: float = 60.0
    inputs: int = 1 << 62
    seed: int = 0


@dataclass
class Result:
    """What came of a reader: inputs with typed errors, and without; ways: answers that could be told apart; findings:
    kind -> how often."""

    reader: str
    inputs: int = 0
    seconds: float = 0.0
    errors: int = 0
    answers: int = 0
    ways: int = 0
    findings: dict[str, int] = field(default_factory=dict)
    complete: bool = False

    @property
    def good(self) -> bool:
        return self.complete and not self.findings

    def line(self) -> str:
        found = f"  FOUND {sum(self.findings.values())}: {', '.join(sorted(self.findings))}" if self.findings else ""
        told = f"{self.reader:<16} {self.inputs:>8} inputs {self.seconds:>6.0f} s {self.errors:>8} typed errors"
        return f"{told} {self.ways:>5} ways{found}{'' if self.complete else '  NOT FINISHED'}"

    def add(self, kind: str, number: int = 1) -> None:
        self.findings[kind] = self.findings.get(kind, 0) + number


def run(readers: Sequence[str], limits: Limits, folder: Path, jobs: int, say: Say) -> list[Result]:
    """Try every reader, `jobs` at a time; what is found is below `folder`."""
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(lambda name: _try(name, limits, folder / name, say), readers))


def _try(name: str, limits: Limits, folder: Path, say: Say) -> Result:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "kept").mkdir(parents=True)
    board, result = Board(folder / "board"), Result(name)
    deaths = 0
    while not result.complete and deaths < DEATHS:
        before = result.inputs
        order = Order(name, limits.seed, before, limits.seconds, limits.inputs, str(folder))
        ended = _watched(order, board, lambda line: say(f"{name:<16} {line}"))
        result.inputs, result.seconds, result.errors, result.answers, _, result.ways, grown, done = board.read()
        if not done:
            deaths += 1
            log = (folder / "log").read_text(errors="replace")[-20_000:]
            kind = _kind(ended if result.inputs > before else f"{ended}-at-start", log)
            place = save(folder, f"{kind}-{max(result.inputs - 1, 0)}", _current(folder), log)
            say(f"{name:<16} {kind}: {place}")
            result.add(kind)
        elif grown > bounds.GROWTH:
            result.add("leak")
            deaths += 1
        result.complete = bool(done) and (result.inputs >= limits.inputs or result.seconds >= limits.seconds)
    counts = folder / "counts"
    for line in counts.read_text().splitlines() if counts.exists() else ():
        kind, _, number = line.rpartition(" ")
        result.add(kind, int(number))
    say(result.line())
    return result


def _watched(order: Order, board: Board, say: Say) -> str:
    """Run a process to its end; how it ended: "", the name of a signal, "hang", or "stuck"."""
    command = [sys.executable, "-m", "tests.fuzz.child", json.dumps(asdict(order))]
    path = Path(order.folder) / "log"
    with path.open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | ENVIRONMENT, stdout=log, stderr=log)
    try:
        said, quiet = board.read()[1], 0.0
        last = (0, 0)
        while process.poll() is None:
            time.sleep(LOOK)  # when this process is stopped too, no time passes between two looks
            n, spent, errors, _, findings, ways, grown, _ = board.read()
            if spent >= said + SAY:
                said = spent
                told = f"{n:>8} inputs {spent:>6.0f} s {errors:>8} typed errors {ways:>5} ways"
                say(f"{told}, {grown >> 20} MiB grown, {findings} found")
            now = (_ticks(process.pid), n)
            quiet = quiet + LOOK if now == last and _asleep(process.pid) else 0.0
            last = now
            if quiet >= bounds.SILENT:
                process.send_signal(signal.SIGABRT)  # so that it says where it is
                process.wait()
                return "stuck"
        return _how(process.returncode, path.read_text(errors="replace"))
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _how(code: int, log: str) -> str:
    """How a process ended, by its code and the last words of it."""
    if code >= 0:
        return f"exit-{code}" if code else ""
    # Time is up in the middle of anything: to tell where Python was may fail, and then ends as a crash of its own.
    if code == -signal.SIGPROF or log.find("Stack (most recent call first)") in range(log.find("Fatal Python error")):
        return "hang"
    return signal.Signals(-code).name


def _kind(ended: str, log: str) -> str:
    """A death by how it came, and where Python was."""
    at = re.search(r'File ".*?/([\w.-]+)", line (\d+) in (?!_limited)\w+', log)
    return ended if at is None else f"{ended}-{at[1]}:{at[2]}"


def _current(folder: Path) -> tuple[bytes, ...]:
    """The input that a process read when it died."""
    path = folder / "current"
    content = path.read_bytes() if path.exists() else b""
    return unpacked(content[16 : 16 + int.from_bytes(content[8:16], "little")])


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _ticks(pid: int) -> int:
    """CPU time of a process, in ticks."""
    stat = _stat(pid)
    return int(stat[11]) + int(stat[12]) if stat else 0


def _asleep(pid: int) -> bool:
    stat = _stat(pid)
    return bool(stat) and stat[0] in "SD"


def repeat(name: str, path: Path) -> int:
    """Read the input of a finding once, in this process; 1 if it is a finding still."""
    prepare()
    reader, parts = find(name), unpacked((path / "input").read_bytes())
    warm(reader, reader.seeds()[:1])
    verdict = judged(reader, parts)
    print(verdict.wrong or ("a typed error" if verdict.error else "an answer"))
    return int(verdict.wrong is not None)
