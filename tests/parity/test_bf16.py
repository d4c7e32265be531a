"""bfloat16 beside the released package in float32; and whether neighbours stay neighbours, on trained weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from albireo.models.engine import Tokens
from albireo.models.torch_engine import TorchEngine
from albireo.observations.modalities import AION_KEYS, MODALITIES
from albireo.observations.sky import mixed, simulate
from albireo.tokenizers.checkpoint import MINI
from tests.parity.conftest import Pair
from tests.parity.transformers import SHAPES, answers, errors

ROUNDED = 0.1
"""Largest error in bfloat16: rms difference over the rms distance of objects from their mean."""

OVERLAP, NEIGHBOURS = 0.95, 10


def in_bfloat16(folder: Path, compute: str) -> TorchEngine:
    """An engine that keeps its weights in bfloat16 and computes in `compute`, whatever this machine is fast at."""
    engine = TorchEngine.open(folder, dtype="bfloat16")
    engine.numerics = dataclasses.replace(engine.numerics, compute=compute)
    return engine


MANY = tuple(key for key in AION_KEYS if MODALITIES[key].kind in ("scalar", "coefficients", "segmentation"))
"""Modalities of a few tokens: without products in bfloat16, a processor takes long over more."""


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(("tok_flux_g", "tok_ebv", "tok_z"), id="numbers"),
        pytest.param(MANY, id="many"),
        pytest.param(("tok_image",), id="image", marks=pytest.mark.slow),
        pytest.param([key for key in AION_KEYS if key != "catalog"], id="all", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("compute", ["bfloat16", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_states_and_logits(
    shape: str,
    compute: str,
    keys: Sequence[str],
    pair_of_shape: Callable[[str], Pair],
    tokens: list[Tokens],
    report: Callable[[str], None],
) -> None:
    pair, targets = pair_of_shape(shape), ("tok_z", "tok_xp_bp")
    engine = in_bfloat16(pair.folder, compute)
    given = [Tokens({key: one.ids[key] for key in keys}) for one in tokens[-4:]]
    expected = [answers(pair.model, one, list(one.ids), targets) for one in given]
    of_states, _ = errors([one.values for one in engine.embed(given, "tokens")], [rows for rows, _ in expected])
    of_means, _ = errors([one.values for one in engine.embed(given)], [rows.mean(axis=0) for rows, _ in expected])
    found = engine.logits(given, targets)
    of_logits = max(errors([one[key] for one in found], [one[key] for _, one in expected])[0] for key in targets)
    report(
        f"{shape}, weights in bfloat16, computed in {compute}, {len(keys)} modalities: "
        f"error of states {of_states:.1e}, of means {of_means:.1e}, of logits {of_logits:.1e}"
    )
    assert max(of_states, of_means, of_logits) <= ROUNDED


def nearest(engine: TorchEngine, objects: list[Tokens]) -> np.ndarray:
    """Indices (n, 10) of the nearest neighbours of each object by cosine, itself left out."""
    x = np.stack([one.values for one in engine.embed(objects)])
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    scores = x @ x.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1)[:, :NEIGHBOURS]


@pytest.mark.parametrize("n", [40, pytest.param(240, marks=pytest.mark.slow)])
def test_neighbours_on_trained_weights(n: int, report: Callable[[str], None]) -> None:
    """albireo-mini, objects with different modalities: at least 95 % of the ten nearest stay among them."""
    rng = np.random.default_rng(1)
    exact = TorchEngine.open(MINI)
    given = exact.tokenize([mixed(one, rng) for one in simulate(n, np.random.default_rng(2))])
    objects = [one for one in given if isinstance(one, Tokens)]
    assert len(objects) == n
    expected = nearest(exact, objects)
    for compute in ("bfloat16", "float32"):
        found = nearest(in_bfloat16(MINI, compute), objects)
        overlap = np.mean([len(set(a) & set(b)) / NEIGHBOURS for a, b in zip(found, expected, strict=True)])
        report(f"albireo-mini in bfloat16, computed in {compute}, {n} objects: overlap of ten neighbours {overlap:.3f}")
        assert overlap >= OVERLAP
