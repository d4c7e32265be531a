"""Token states of many objects on disk, so that heads are fitted again without encoding again.

A folder holds shards of some hundred objects: `00000.npy` (rows, D), mapped into memory, and `00000.json`, which says
whose rows they are. A shard is there as a whole or not at all, and a writer goes on where another was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.models.applicability import Facts
from albireo.models.engine import Embedding, Engine
from albireo.observations.errors import BadInput, Conflict
from albireo.observations.observation import Observation

ABOUT = "states.json"
SHARD = 512
"""Objects of a shard."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Held:
    """Rows of one object: `runs` are its modalities, in order, and how many rows each has."""

    facts: Facts
    runs: tuple[tuple[str, int], ...]

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for key, _ in self.runs)

    @property
    def n_rows(self) -> int:
        return sum(n for _, n in self.runs)


class TokenStates:
    """States of the tokens of objects, in the order in which they were written.

    space       `engine.space("tokens")` of the engine that made them
    dim         D
    checkpoint  the engine's name
    z_limit     redshifts from here on are one token, or None if the engine reads none
    """

    def __init__(self, space: str, dim: int, checkpoint: str, z_limit: float | None) -> None:
        self.space, self.dim, self.checkpoint, self.z_limit = space, dim, checkpoint, z_limit
        self.objects: list[Held] = []
        self._arrays: list[NDArray[Any]] = []
        self._at: list[tuple[int, int]] = []

    @classmethod
    def open(cls, folder: Path) -> TokenStates:
        """States that a `StatesWriter` wrote, mapped into memory."""
        about = _about(folder)
        states = cls(about["space"], about["dim"], about["checkpoint"], about["z_limit"])
        for path in sorted(folder.glob("[0-9]*.json")):
            held = [_held(record) for record in json.loads(path.read_text())]
            states.extend(held, np.load(path.with_suffix(".npy"), mmap_mode="r"))
        return states

    @classmethod
    def of(cls, engine: Engine, observations: Sequence[Observation], embeddings: Sequence[Embedding]) -> TokenStates:
        """States in memory."""
        states = cls(engine.space("tokens"), engine.dim, engine.name, z_limit(engine))
        for observation, embedding in zip(observations, embeddings, strict=True):
            states.extend([held_by(observation, embedding)], embedding.values)
        return states

    def __len__(self) -> int:
        return len(self.objects)

    @property
    def ids(self) -> list[str]:
        return [one.facts.id for one in self.objects]

    def rows(self, i: int) -> tuple[Floats, tuple[str, ...]]:
        """(N, D) states of object i, and the token key of each row."""
        array, start = self._at[i]
        runs = self.objects[i].runs
        values = self._arrays[array][start : start + self.objects[i].n_rows]
        return values.astype(np.float32), tuple(key for key, n in runs for _ in range(n))

    def extend(self, held: Sequence[Held], rows: NDArray[Any]) -> None:
        """Objects whose rows stand one after another in `rows`, which is kept, not copied."""
        start = 0
        for one in held:
            self._at.append((len(self._arrays), start))
            start += one.n_rows
        assert rows.shape == (start, self.dim), (rows.shape, start, self.dim)
        self.objects += held
        self._arrays.append(rows)

    def join(self, other: TokenStates) -> None:
        """The objects of other states in the same space, behind these; no row is copied."""
        assert other.space == self.space, (other.space, self.space)
        self._at += [(array + len(self._arrays), start) for array, start in other._at]
        self._arrays += other._arrays
        self.objects += other.objects


class StatesWriter:
    """Writes a folder of token states; `written` are the ids that are in it already.

    To be used as a context manager, or closed: what is left is then written. Half precision keeps 3 digits, a tenth of
    what a head could make use of; states that do not fit in it are refused, not clipped.
    """

    def __init__(self, folder: Path, engine: Engine, dtype: str = "float16") -> None:
        assert dtype in ("float16", "float32"), dtype
        self.folder = folder
        about = {
            "space": engine.space("tokens"),
            "dim": engine.dim,
            "checkpoint": engine.name,
            "z_limit": z_limit(engine),
            "dtype": dtype,
        }
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / ABOUT).exists():
            there = _about(folder)
            if there["space"] != about["space"] or there["dtype"] != dtype:
                raise Conflict(
                    "space_mismatch",
                    f"the folder holds token states of {there['space']} in {there['dtype']}",
                    file=str(folder),
                    fix="name another folder, or delete it",
                )
        else:
            _replace(folder / ABOUT, json.dumps(about, indent=1).encode())
        self._dtype = np.dtype(dtype)
        self._held: list[Held] = []
        self._rows: list[NDArray[Any]] = []
        shards = sorted(folder.glob("[0-9]*.json"))
        self._next = len(shards)
        self.written = {record["facts"]["id"] for path in shards for record in json.loads(path.read_text())}

    def add(self, observation: Observation, embedding: Embedding) -> None:
        """One object: what was embedded of it, and its states (pooling "tokens"). An id can be written once."""
        held = held_by(observation, embedding)
        if observation.id in self.written:
            raise BadInput("id_duplicate", f"object {observation.id!r} comes twice", field="id")
        with np.errstate(over="ignore"):
            rows = embedding.values.astype(self._dtype)
        if not np.isfinite(rows).all():
            raise BadInput("not_finite", f"states of object {observation.id!r} do not fit in {self._dtype}", field="id")
        self.written.add(observation.id)
        self._held.append(held)
        self._rows.append(rows)
        if len(self._held) == SHARD:
            self._write()

    def close(self) -> TokenStates:
        """Write what is left; the states of the whole folder."""
        self._write()
        return TokenStates.open(self.folder)

    def __enter__(self) -> StatesWriter:
        return self

    def __exit__(self, *raised: object) -> None:
        self._write()

    def _write(self) -> None:
        if not self._held:
            return
        path = self.folder / f"{self._next:05d}.npy"
        part = path.with_suffix(".part")
        with part.open("wb") as stream:
            np.save(stream, np.concatenate(self._rows))
        os.replace(part, path)
        # The list of objects comes last: rows without one do not count, and are written over.
        _replace(path.with_suffix(".json"), json.dumps([asdict(one) for one in self._held]).encode())
        self._next += 1
        self._held, self._rows = [], []


def folder_of(root: Path, space: str, inputs_sha256: str) -> Path:
    """Where under `root` the states of these inputs in this space are kept."""
    return root / hashlib.sha256(f"{space} {inputs_sha256}".encode()).hexdigest()[:16]


def held_by(observation: Observation, embedding: Embedding) -> Held:
    """Facts of an observation, and the runs of equal modalities among the rows of its states."""
    assert embedding.pooling == "tokens", embedding.pooling
    runs: list[tuple[str, int]] = []
    for key in embedding.modalities:
        if runs and runs[-1][0] == key:
            runs[-1] = (key, runs[-1][1] + 1)
        else:
            runs.append((key, 1))
    return Held(Facts.of(observation), tuple(runs))


def z_limit(engine: Engine) -> float | None:
    """Lower edge of the last code of `tok_z`, which stands for everything beyond; None if the engine reads none."""
    if "tok_z" not in engine.inputs:
        return None
    return float(engine.values("tok_z", np.array([[engine.n_codes("tok_z") - 2]]))[0, 0])


def _held(record: dict[str, Any]) -> Held:
    facts = record["facts"]
    bands = {key: tuple(names) for key, names in facts["bands"].items()}
    return Held(Facts(**{**facts, "bands": bands}), tuple((key, n) for key, n in record["runs"]))


def _about(folder: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads((folder / ABOUT).read_text())
    except (OSError, ValueError) as error:
        raise BadInput("file_not_found", f"no token states are here: {error}", file=str(folder)) from error
    return about


def _replace(path: Path, content: bytes) -> None:
    """A file that is there as a whole or not at all."""
    part = path.with_suffix(path.suffix + ".part")
    part.write_bytes(content)
    os.replace(part, path)
