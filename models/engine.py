"""The engine's contract: observations in, tokens and embeddings out. Its methods are pure in their arguments.

`torch_engine.TorchEngine` runs a checkpoint; the tests of the service have a toy engine. This file needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from albireo.observations.errors import AlbireoError
from albireo.observations.observation import Observation
from albireo.tokenizers.checkpoint import TokenSpec

Pooling = Literal["mean", "mean_per_modality", "tokens"]
POOLINGS: tuple[Pooling, ...] = ("mean", "mean_per_modality", "tokens")


@dataclass(frozen=True)
class Tokens:
    """Tokens of one object: ids[key] (n_tokens,) int64; mask[key] (n_tokens,) True = leave out; QA flags."""

    ids: Mapping[str, NDArray[np.int64]]
    mask: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    flags: tuple[str, ...] = ()

    @property
    def n_tokens(self) -> int:
        """Tokens that count."""
        left_out = sum(int(self.mask[key].sum()) for key in self.mask)
        return sum(len(ids) for ids in self.ids.values()) - left_out


@dataclass(frozen=True)
class Embedding:
    """Of one object. `values` is (D,) for "mean", (M, D) for "mean_per_modality", (N, D) for "tokens", float32;
    `modalities` names the modality keys that contributed ("mean"), or that of each row."""

    pooling: Pooling
    values: NDArray[np.float32]
    modalities: tuple[str, ...]
    n_tokens: int


class Engine(Protocol):
    """What the service needs: described by `name`, `dim`, `inputs`; raising only AlbireoError."""

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    @property
    def inputs(self) -> Mapping[str, TokenSpec]: ...

    def space(self, pooling: Pooling) -> str:
        """Fingerprint of the embedding space: vectors of different spaces are never compared."""

    def tokenize(self, observations: Sequence[Observation]) -> list[Tokens | AlbireoError]:
        """Tokens of each object, or why it has none; one bad object does not touch the others."""

    def embed(self, tokens: Sequence[Tokens], pooling: Pooling = "mean") -> list[Embedding]:
        """Embedding of each object."""
