"""An Engine that answers as another one does: what stands around an engine says only what it does otherwise."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.models.engine import Embedding, Engine, Numerics, Pooling, Tokens
from albireo.observations.errors import AlbireoError
from albireo.observations.observation import Observation
from albireo.tokenizers.checkpoint import TokenSpec


class EngineAround:
    """The engine inside (see models/engine.py)."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def dim(self) -> int:
        return self.engine.dim

    @property
    def inputs(self) -> Mapping[str, TokenSpec]:
        return self.engine.inputs

    @property
    def outputs(self) -> Mapping[str, TokenSpec]:
        return self.engine.outputs

    @property
    def numerics(self) -> Numerics:
        return self.engine.numerics

    @property
    def elsewhere(self) -> Sequence[str]:
        """Who computes in other processes, for people."""
        return getattr(self.engine, "elsewhere", ())

    @property
    def uncached(self) -> Engine:
        """What computes anew whatever this remembers."""
        return self

    def space(self, pooling: Pooling, normalize: bool = False) -> str:
        return self.engine.space(pooling, normalize)

    def tokenize(
        self, observations: Sequence[Observation], kinds: Collection[str] | None = None
    ) -> list[Tokens | AlbireoError]:
        return self.engine.tokenize(observations, kinds)

    def embed(self, tokens: Sequence[Tokens], pooling: Pooling | Sequence[Pooling] = "mean") -> list[Embedding]:
        out = []
        for result in self.embed_each(tokens, pooling):
            if isinstance(result, AlbireoError):
                raise result
            out.append(result)
        return out

    def embed_each(
        self, tokens: Sequence[Tokens], pooling: Pooling | Sequence[Pooling] = "mean"
    ) -> list[Embedding | AlbireoError]:
        return self.engine.embed_each(tokens, pooling)

    def logits(
        self,
        tokens: Sequence[Tokens],
        targets: Sequence[str] | Sequence[Mapping[str, NDArray[np.int64]]],
        attention: str | None = None,
    ) -> list[dict[str, NDArray[np.float32]]]:
        return self.engine.logits(tokens, targets, attention)

    def values(self, key: str, ids: NDArray[np.int64], **target: Any) -> NDArray[np.float32]:
        return self.engine.values(key, ids, **target)

    def n_codes(self, key: str) -> int:
        return self.engine.n_codes(key)

    def wavelength(self, key: str) -> NDArray[np.float32]:
        return self.engine.wavelength(key)

    def positions(self, key: str, region: Sequence[float]) -> NDArray[np.bool_]:
        return self.engine.positions(key, region)


def uncached(engine: Engine) -> Engine:
    """The engine that computes anew what caches around it remember."""
    return engine.uncached if isinstance(engine, EngineAround) else engine
