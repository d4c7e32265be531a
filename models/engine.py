"""The engine's contract: observations in, tokens and embeddings out. Its methods are pure in their arguments.

`torch_engine.TorchEngine` runs a checkpoint; the tests of the service have a toy engine. This file needs no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

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
    `modalities` names the modality keys that contributed ("mean"), or that of each row; `cached` says whether it was
    computed before."""

    pooling: Pooling
    values: NDArray[np.float32]
    modalities: tuple[str, ...]
    n_tokens: int
    cached: bool = False


@dataclass(frozen=True)
class Numerics:
    """How an engine computes. It is told beside an embedding, and is no part of its space.

    dtype    what the weights are kept in: "float32" (exact) or "bfloat16"
    compute  what products are computed in
    device   "cpu", "cuda", ...
    tokens   what the tokenizers' networks compute in: in "bfloat16" a few tokens in a hundred differ
    """

    dtype: str = "float32"
    compute: str = "float32"
    device: str = "cpu"
    tokens: str = "float32"


class Engine(Protocol):
    """What the service needs: described by `name`, `dim`, `inputs`; raising only AlbireoError."""

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    @property
    def inputs(self) -> Mapping[str, TokenSpec]: ...

    @property
    def numerics(self) -> Numerics: ...

    def space(self, pooling: Pooling, normalize: bool = False) -> str:
        """Name of the embedding space, of vectors of length 1 if `normalize`: others are never compared."""

    def tokenize(
        self, observations: Sequence[Observation], kinds: Collection[str] | None = None
    ) -> list[Tokens | AlbireoError]:
        """Tokens of each object, or why it has none; one bad object does not touch the others.

        kinds  of modalities that are wanted, None: all. Parts put together in the table's order are the whole: flags
               that are of the object and of none of its modalities come with its first kind
        """

    def embed(self, tokens: Sequence[Tokens], pooling: Pooling | Sequence[Pooling] = "mean") -> list[Embedding]:
        """Embedding of each object; `pooling` of all, or of each. Raises the first error if one has none."""

    def embed_each(
        self, tokens: Sequence[Tokens], pooling: Pooling | Sequence[Pooling] = "mean"
    ) -> list[Embedding | AlbireoError]:
        """Embedding of each object, or why it has none; one bad object does not touch the others."""

    @property
    def outputs(self) -> Mapping[str, TokenSpec]:
        """What it predicts."""

    def logits(
        self,
        tokens: Sequence[Tokens],
        targets: Sequence[str] | Sequence[Mapping[str, NDArray[np.int64]]],
        attention: str | None = None,
    ) -> list[dict[str, NDArray[np.float32]]]:
        """Logits (n, V) of tokens of the target modalities for each object: of every token of the keys named, or of
        chosen positions (n,) by key, for each object."""

    def values(self, key: str, ids: NDArray[np.int64], **target: Any) -> NDArray[np.float32]:
        """The physical numbers that tokens (B, n) of a modality stand for, in its unit (see its tokenizer)."""

    def n_codes(self, key: str) -> int:
        """Number of tokens of a modality that stand for something; the model's vocabulary may be larger."""

    def wavelength(self, key: str) -> NDArray[np.float32]:
        """(L,) Angstrom of the `values` of a spectrum; empty for other modalities."""

    def positions(self, key: str, region: Sequence[float]) -> NDArray[np.bool_]:
        """(n_tokens,) True where a token of a modality stands for any part of a region: x0, y0, x1, y1 in pixels of
        an image, low, high in Angstrom of a spectrum (see `Tokenizer.positions`)."""


class CodecEngine(Engine, Protocol):
    """An Engine that says what its tokens depend on, so that they can be kept."""

    def codec(self, key: str) -> str:
        """What decides the tokens and flags of a payload of a modality, beside the payload: equal for engines that give
        equal ones, whatever their encoders are."""

    def grid(self, key: str) -> tuple[int, int]:
        """(height, width) of the tokens of a modality: `n_tokens` in all; row 0 is the bottom of a picture."""

    def object_flags(self, observation: Observation) -> tuple[str, ...]:
        """QA flags that are of the object and of none of its modalities; `tokenize` gives them first."""
