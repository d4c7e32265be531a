"""Shards of observations that a checkpoint is pre-trained on, and their tokens, which are kept on disk.

Data      a folder of shards, and its share of the steps
tokenize  tokens of every shard
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from albireo.models import mini
from albireo.models.stages import Progress
from albireo.observations.observation import Observation, Scalar
from albireo.observations.options import ReadOptions
from albireo.observations.shards import read_shard
from albireo.observations.source import Source
from albireo.tokenizers.bank import TokenizerBank

Object = Mapping[str, NDArray[np.int32]]
"""Token key -> tokens of one object."""


@dataclass(frozen=True)
class Data:
    """A folder of shards, and its share of the steps."""

    folder: Path
    share: float

    @classmethod
    def of(cls, text: str) -> Data:
        """FOLDER=SHARE"""
        folder, _, share = text.rpartition("=")
        data = cls(Path(folder), float(share))
        if not data.shards:
            raise SystemExit(
                f"no shards in {folder}: make them with `albireo simulate` or `python -m benchmarks.real_sky`"
            )
        return data

    @property
    def shards(self) -> list[Path]:
        return sorted(self.folder.glob("*-[0-9]*.parquet"))


def read(path: Path) -> Iterator[Observation]:
    """The observations of a shard; an unreadable row ends it all."""
    for item in read_shard(Source.from_path(path), ReadOptions(), []):
        if not isinstance(item, Observation):
            raise item
        yield item


def tokenize(data: Sequence[Data], bank: TokenizerBank, state: Path) -> list[list[Path]]:
    """Tokens of every shard of every folder: one safetensors file each, key -> (objects that have it), key.ids -> their
    tokens. Redshift is a target of objects whose shard states it: real ones do not."""
    out: list[list[Path]] = []
    for number, source in enumerate(data):
        folder = state / "tokens" / f"{number}-{source.folder.name}"
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{shard.stem}.safetensors" for shard in source.shards]
        progress = Progress(
            f"tokenize {source.folder.name}", len(paths), sum(map(Path.exists, paths)), Path(os.devnull)
        )
        for shard, path in zip(source.shards, paths, strict=True):
            if not path.exists():
                tensors = _tokens(list(read(shard)), bank)
                part = path.with_suffix(".part")
                save_file(tensors, part)
                os.replace(part, path)
                progress.update(sum(map(Path.exists, paths)))
        out.append(paths)
    return out


def _tokens(observations: Sequence[Observation], bank: TokenizerBank) -> dict[str, NDArray[np.int32]]:
    payloads: dict[str, list[Any]] = {}
    rows: dict[str, list[int]] = {}
    for row, observation in enumerate(observations):
        given = dict(observation.data)
        if "redshift" in observation.metadata:
            given["tok_z"] = Scalar(float(observation.metadata["redshift"]), "")
        for key, payload in given.items():
            if key in bank:
                rows.setdefault(key, []).append(row)
                payloads.setdefault(key, []).append(payload)
    tensors = {key: np.array(rows[key], np.int32) for key in rows} | {
        "objects": np.array([len(observations)], np.int32)
    }
    for key, of_key in payloads.items():
        parts = [bank[key].encode(of_key[i : i + 16]) for i in range(0, len(of_key), 16)]
        tensors[f"{key}.ids"] = torch.cat(parts).numpy().astype(np.int32)
    return tensors


def load_tokens(paths: Sequence[Path]) -> list[Object]:
    """Tokens of every object, by key."""
    objects: list[Object] = []
    for path in paths:
        tensors = load_file(path)
        batch: list[dict[str, NDArray[np.int32]]] = [{} for _ in range(int(tensors.pop("objects")[0]))]
        for key in tensors:
            if not key.endswith(".ids"):
                for row, ids in zip(tensors[key], tensors[f"{key}.ids"], strict=True):
                    batch[row][key] = ids
        objects += [one for one in batch if one.keys() & set(mini.INPUTS)]
    return objects
