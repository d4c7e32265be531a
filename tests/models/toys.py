"""Objects whose token states hold what heads are asked for, by construction; an engine that made none of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from albireo.models.engine import Embedding, Pooling
from albireo.models.head_fitting import Labels, Plan, fit
from albireo.models.heads import Head
from albireo.models.token_states import TokenStates
from albireo.observations.observation import Image, Observation, Scalar
from albireo.tokenizers.checkpoint import TokenSpec


class ToyEngine:
    """What a head and token states ask of an engine."""

    name = "toy"
    inputs: Mapping[str, TokenSpec] = {"tok_z": TokenSpec(1, 1024)}

    def __init__(self, dim: int = 16, identity: str = "0123456789ab") -> None:
        self.dim, self.identity = dim, identity

    def space(self, pooling: Pooling, normalize: bool = False) -> str:
        return f"toy@{self.identity}:{pooling}"

    def n_codes(self, key: str) -> int:
        return 1024

    def values(self, key: str, ids: np.ndarray, **target: Any) -> np.ndarray:
        return (ids / 1023).astype(np.float32)


@dataclass(frozen=True)
class Toys:
    """Objects side by side: what was observed, the token states, and the labels by name."""

    engine: ToyEngine
    observations: list[Observation]
    embeddings: list[Embedding]
    labels: dict[str, np.ndarray]

    def fit(self, plan: Plan, **columns: np.ndarray) -> Head:
        return fit(self.states, self.table(**columns), plan)

    @property
    def states(self) -> TokenStates:
        return TokenStates.of(self.engine, self.observations, self.embeddings)  # type: ignore[arg-type]

    def table(self, **columns: np.ndarray) -> Labels:
        return Labels(tuple(one.id for one in self.observations), {**self.labels, **columns}, "0" * 64, "toys")

    def part(self, rows: Sequence[int]) -> Toys:
        return Toys(
            self.engine,
            [self.observations[i] for i in rows],
            [self.embeddings[i] for i in rows],
            {name: column[list(rows)] for name, column in self.labels.items()},
        )


def toys(n: int, seed: int = 0, dim: int = 16, image_rows: int = 5, with_image: float = 0.5) -> Toys:
    """Objects with g and r fluxes, and an image of some tokens for a share of them.

    t        a number that the state of g holds with a noise of 0.3, and the image's first token with one of 0.1
    cubic    t^3 + t, missing for every fifth object
    kind     "low", "middle" or "high" by t
    redshift about 0.3 exp(t / 3)
    """
    rng = np.random.default_rng(seed)
    t = rng.normal(size=n)
    directions = np.random.default_rng(99).normal(size=(3, dim))
    observations, embeddings = [], []
    for i in range(n):
        g = t[i] * directions[0] + 0.3 * rng.normal(size=dim)
        r = 0.5 * directions[1] + rng.normal(size=dim)
        rows, keys = [g, r], ["tok_flux_g", "tok_flux_r"]
        data: dict[str, Any] = {
            "tok_flux_g": Scalar(float(np.exp(rng.normal())), "nanomaggy"),
            "tok_flux_r": Scalar(float(np.exp(rng.normal())), "nanomaggy"),
        }
        if rng.random() < with_image:
            image = rng.normal(size=(image_rows, dim))
            image[0] += t[i] * directions[2] * 3
            rows = [*image, *rows]
            keys = ["tok_image"] * image_rows + keys
            data["tok_image"] = picture("DES-G", "DES-R", "DES-I", "DES-Z")
        observations.append(
            Observation(f"toy-{seed}-{i}", data, ra=float(rng.uniform(0, 40)), dec=float(rng.uniform(-10, 10)))
        )
        embeddings.append(states_of(np.array(rows), keys))
    labels = {
        "t": t,
        "cubic": np.where(np.arange(n) % 5 == 0, np.nan, t**3 + t),
        "kind": np.where(t < -0.5, "low", np.where(t < 0.5, "middle", "high")),
        "redshift": 0.3 * np.exp(t / 3),
    }
    return Toys(ToyEngine(dim), observations, embeddings, labels)


def needles(n: int, seed: int, rows: int = 30) -> Toys:
    """Objects of which one token of many, marked in its first number, holds y in its second."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=n)
    observations, embeddings = [], []
    for i in range(n):
        values = rng.normal(size=(rows, 16))
        at = rng.integers(rows)
        values[at, 0], values[at, 1] = 6.0, y[i]
        observations.append(Observation(f"needle-{seed}-{i}", {"tok_image": picture("DES-G")}))
        embeddings.append(states_of(values, ["tok_image"] * rows))
    return Toys(ToyEngine(), observations, embeddings, {"y": y})


def picture(*bands: str) -> Image:
    shape = (len(bands), 1, 1)
    return Image(np.ones(shape, np.float32), bands, 0.262, "nanomaggy", 22.5, np.zeros(shape, bool), ())


def states_of(values: np.ndarray, keys: Sequence[str]) -> Embedding:
    return Embedding("tokens", values.astype(np.float32), tuple(keys), len(keys))


def changed(embedding: Embedding, change: Callable[[np.ndarray], np.ndarray]) -> Embedding:
    """The same rows in another order or number: `change` maps row numbers."""
    at = change(np.arange(len(embedding.values)))
    return states_of(embedding.values[at], [embedding.modalities[i] for i in at])
