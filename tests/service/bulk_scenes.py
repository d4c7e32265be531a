"""Runs of `albireo embed` that are killed, stopped and starved, in forked processes; prints what it saw as JSON.

bulk_scenes.py FOLDER
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import typer

from albireo.models.engine import Embedding, Numerics, Tokens
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.observation import Observation, Scalar
from albireo.service import bulk, token_cache  # noqa: F401  imported once, before the processes are forked
from albireo.service.bulk_run import MANIFEST
from albireo.service.cli import app
from albireo.service.core import Core
from albireo.tokenizers.checkpoint import TokenSpec

PAUSE = 0.006
"""Seconds that a batch takes."""

COMMAND = typer.main.get_command(app)

FLAGS = ("--survey", "legacysurvey", "--release", "dr10", "--kind", "model", "--system", "AB", "--unit", "nanomaggy",
         "--no-extinction-corrected")  # fmt: skip


class SlowEngine:
    """An Engine of g fluxes whose vectors tell in their last digits how large a batch was; keeps what it computed."""

    name = "slow"
    dim = 8
    numerics = Numerics()

    def __init__(self, log: Path) -> None:
        self.log = log
        self.inputs = {"tok_flux_g": TokenSpec(1, 1 << 30)}
        self.outputs: dict[str, TokenSpec] = {}

    def space(self, pooling: str, normalize: bool = False) -> str:
        return f"slow@0123456789ab:{pooling}"

    def tokenize(self, observations: Sequence[Observation], kinds: Any = None) -> list[Tokens | AlbireoError]:
        out: list[Tokens | AlbireoError] = []
        for one in observations:
            payload = one.data["tok_flux_g"]
            assert isinstance(payload, Scalar)
            if payload.value > 1e6:
                out.append(BadInput("value_out_of_range", "too bright", field="flux"))
            else:
                out.append(Tokens({"tok_flux_g": np.array([round(payload.value * 8)])}))
        return out

    def embed_each(self, tokens: Sequence[Tokens], pooling: str = "mean") -> list[Embedding]:
        time.sleep(PAUSE)
        with self.log.open("a") as log:
            log.writelines(f"{one.ids['tok_flux_g'][0]}\n" for one in tokens)
        return [
            Embedding("mean", (np.random.default_rng(one.ids["tok_flux_g"]).normal(size=8) + len(tokens) * 1e-6).astype(
                np.float32), ("tok_flux_g",), 1)
            for one in tokens
        ]  # fmt: skip


def make_inputs(folder: Path) -> dict[str, Any]:
    """Small tables, one large one with an id that comes twice, and a picture."""
    folder.mkdir()
    number = 0

    def row(note: str = "") -> str:
        nonlocal number
        number += 1
        return f"o{number},{number if number % 50 else 2e6}{note}"

    for k in range(5):
        (folder / f"small{k}.csv").write_text("\n".join(["id,flux_g", *(row() for _ in range(40))]) + "\n")
    note = "," + "x" * 14_000
    rows = [row(note) for _ in range(80)]
    rows[70] = rows[70].replace("o271,", "o205,")
    (folder / "large.csv").write_text("\n".join(["id,flux_g,note", *rows]) + "\n")
    (folder / "picture.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(100))
    return {
        "objects": number + 1,
        "bad": 7,
        "codes": ["value_out_of_range"] * 5 + ["id_duplicate", "not_photometric"],
    }


def start(inputs: Path, out: Path, log: Path, said: Path, before: Callable[[], None] = lambda: None) -> int:
    """Fork a process that embeds; its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sink = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        before()
        arguments = ["embed", str(inputs), "-o", str(out), "--chunk", "8", "--resume", *FLAGS]
        core = Core(lambda: SlowEngine(log), lambda: None)  # type: ignore[arg-type, return-value]
        code = COMMAND.main(arguments, obj=lambda settings: core, standalone_mode=False)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int, wait: bool = True) -> int | None:
    """Exit code, minus the signal that killed it, None while it runs."""
    done, status = os.waitpid(pid, 0 if wait else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def lines(out: Path) -> list[dict[str, Any]]:
    """Chunks that the manifest of an unfinished run says are finished."""
    path = out.with_name(out.name + ".parts") / MANIFEST
    try:
        whole = path.read_bytes()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in whole[: whole.rfind(b"\n") + 1].splitlines()[1:]]


def finished(out: Path) -> list[str]:
    """Tokens of the objects that the parts of an unfinished run hold."""
    folder = out.with_name(out.name + ".parts")
    names = [line["part"][0] for line in lines(out) if line["part"]]
    ids = [name for part in names for name in pq.read_table(folder / part).column("id").to_pylist()]
    return [str(8 * int(name[1:])) for name in ids]


def until(out: Path, chunks: int, pid: int) -> int | None:
    """Wait until so many chunks are finished, or the process ended: its exit code."""
    path = out.with_name(out.name + ".parts") / MANIFEST
    while not path.exists() or path.read_bytes().count(b"\n") <= chunks:
        code = ended(pid, wait=False)
        if code is not None:
            return code
        time.sleep(0.003)
    return None


def killed(inputs: Path, folder: Path) -> dict[str, Any]:
    """Kill it at random moments: at once, or some time after it finished another chunk."""
    rng = random.Random(7)
    out, log = folder / "rows.parquet", folder.parent / "killed.log"
    seen: dict[str, list[Any]] = {"statuses": [], "before": [], "finished": [], "computed": []}
    while True:
        seen["before"].append(len(lines(out)))
        seen["finished"].append(finished(out))
        log.write_text("")
        pid = start(inputs, out, log, folder.parent / "killed.said")
        kills = len(seen["statuses"])
        code: int | None = None
        if kills < 7:
            if kills % 4:
                code = until(out, seen["before"][-1] + rng.randint(1, 2), pid)
            if code is None:
                time.sleep(rng.uniform(0, 0.02))
                os.kill(pid, signal.SIGKILL)
        code = ended(pid) if code is None else code
        seen["statuses"].append(code)
        seen["computed"].append(log.read_text().split())
        if code != -signal.SIGKILL:
            return seen


def stopped(inputs: Path, folder: Path) -> dict[str, Any]:
    """Ctrl-C after three chunks, then the rest."""
    out, said = folder / "rows.parquet", folder.parent / "stopped.said"
    pid = start(inputs, out, folder.parent / "stopped.log", said)
    until(out, 3, pid)
    os.kill(pid, signal.SIGINT)
    status = ended(pid)
    seen = {"status": status, "said": said.read_text(), "finished": len(lines(out))}
    parts = out.with_name(out.name + ".parts")
    seen["left"] = [str(path) for path in parts.rglob("*") if path.name.endswith(".tmp")]
    ended(start(inputs, out, folder.parent / "stopped.log", said))
    return seen


def full(inputs: Path, folder: Path) -> dict[str, Any]:
    """No file may grow beyond a size that the manifest reaches after some chunks."""
    out, said, log = folder / "rows.parquet", folder.parent / "full.said", folder.parent / "full.log"
    pid = start(inputs, out, log, said, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (11_000, 11_000)))
    status = ended(pid)
    done = finished(out)
    seen = {"status": status, "said": said.read_text(), "finished": len(lines(out))}
    log.write_text("")
    ended(start(inputs, out, log, said))
    seen["computed_again"] = sorted(set(done) & set(log.read_text().split()))
    return seen


def second(inputs: Path, folder: Path) -> dict[str, Any]:
    """Another process at the same run."""
    out, said = folder / "rows.parquet", folder.parent / "second.said"
    first = start(inputs, out, folder.parent / "second.log", folder.parent / "first.said")
    until(out, 1, first)
    status = ended(start(inputs, out, folder.parent / "second.log", said))
    os.kill(first, signal.SIGKILL)
    ended(first)
    return {"status": status, "said": said.read_text()}


def main(folder: Path) -> None:
    inputs = folder / "in"
    seen: dict[str, Any] = make_inputs(inputs)
    for name in ("clean", "killed", "stopped", "full", "second"):
        (folder / name).mkdir()
    clean = start(inputs, folder / "clean" / "rows.parquet", folder / "clean.log", folder / "clean.said")
    assert ended(clean) == 1, (folder / "clean.said").read_text()
    for scene in (killed, stopped, full, second):
        seen[scene.__name__] = scene(inputs, folder / scene.__name__)
    about = pq.read_metadata(folder / "clean" / "rows.parquet").metadata
    seen["chunks"] = int(about[b"chunks"])
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
