"""Does the embedding mean something? Agreement of an object with its nearest neighbours, beside two rivals.

    python -m albireo.models.neighbours --objects 2000 --json

Held-out simulated objects with mixed modality sets; redshift and class are labels here and never inputs. The rivals:
the same network untrained, and PCA of arcsinh-scaled, standardised, block-weighted inputs at equal dimension.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from albireo.models import first_weights, mini
from albireo.models.engine import Tokens
from albireo.models.pretrain import Recipe
from albireo.models.torch_engine import TorchEngine
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Image, Observation, Scalar, Spectrum
from albireo.observations.sky import mixed, simulate
from albireo.tokenizers.bank import TokenizerBank, build
from albireo.tokenizers.checkpoint import MINI

Matrix = NDArray[np.float32]
K = 10
DZ = 0.05
SPECTRUM_GRID = 3500.0 + 0.8 * np.arange(8704)
"""Angstrom: the grid of the spectrum tokenizer, averaged by 4 for the rival."""

HELD_OUT, RIVAL_TRAINING = 900_001, 900_002
"""Shard numbers that no training stage reaches."""


@dataclass(frozen=True)
class Agreement:
    """Per object (n,): the fraction of its K nearest neighbours of its class, and within DZ of its redshift."""

    label: NDArray[np.float64]
    redshift: NDArray[np.float64]


def held_out(n: int, seed: int, stream: int) -> list[Observation]:
    """Objects with mixed modality sets from a part of the seed's sky that training never draws."""
    rng = np.random.default_rng([seed, stream])
    return [mixed(observation, rng) for observation in simulate(n, np.random.default_rng([seed, stream, 1]))]


def agreement(vectors: Matrix, labels: NDArray[np.str_], redshift: NDArray[np.float64]) -> Agreement:
    """By cosine similarity, as the service searches; the object itself does not count."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :K]
    return Agreement(
        (labels[nearest] == labels[:, None]).mean(axis=1),
        (np.abs(redshift[nearest] - redshift[:, None]) < DZ).mean(axis=1),
    )


def paired_bootstrap(
    ours: NDArray[np.float64], rival: NDArray[np.float64], seed: int = 0, draws: int = 10_000
) -> tuple[float, float]:
    """95 % interval of the mean difference, resampling objects."""
    difference = ours - rival
    rng = np.random.default_rng(seed)
    means = [difference[rng.integers(0, len(difference), len(difference))].mean() for _ in range(draws)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def untrained(engine: TorchEngine, seed: int) -> TorchEngine:
    """The same network with the weights it had before the first step, behind the same tokenizers."""
    redshift = build(MODALITIES["tok_z"], mini.codec_config("tok_z"))
    bank = TokenizerBank({**engine.bank, "tok_z": redshift})
    return TorchEngine(engine.checkpoint, engine.bank, first_weights.untrained(bank, seed))


def embed(engine: TorchEngine, observations: Sequence[Observation]) -> Matrix:
    """Mean-pooled embeddings (n, D)."""
    tokens = engine.tokenize(observations)
    assert all(isinstance(one, Tokens) for one in tokens), [one for one in tokens if not isinstance(one, Tokens)][:3]
    return np.stack([e.values for e in engine.embed([one for one in tokens if isinstance(one, Tokens)])])


def raw_blocks(engine: TorchEngine, observations: Sequence[Observation]) -> dict[str, Matrix]:
    """Per modality (n, features): arcsinh-scaled inputs, NaN where the object does not have it."""
    blocks: dict[str, Matrix] = {}
    for key in engine.inputs:
        row = MODALITIES[key]
        features = {"image": len(row.bands) * 96 * 96 // 4, "spectrum": 8704 // 4}.get(row.kind, 1)
        block = np.full((len(observations), features), np.nan, np.float32)
        for i, observation in enumerate(observations):
            payload = observation.data.get(key)
            if isinstance(payload, Image):
                small = payload.flux.reshape(len(payload.bands), 48, 2, 48, 2).mean(axis=(2, 4))
                block[i] = np.arcsinh(small / 0.01).ravel()
            elif isinstance(payload, Spectrum):
                grid = SPECTRUM_GRID
                good = ~payload.mask
                flux = np.interp(grid, payload.wavelength[good], payload.flux[good], left=0, right=0)
                block[i] = np.arcsinh(flux.reshape(-1, 4).mean(axis=1))
            elif isinstance(payload, Scalar):
                block[i] = np.arcsinh(payload.value / 0.1)
        blocks[key] = block
    return blocks


def pca_rival(engine: TorchEngine, training: Sequence[Observation], test: Sequence[Observation], seed: int) -> Matrix:
    """PCA at the engine's dimension: features standardised, blocks weighted to equal variance, absent = mean."""
    from sklearn.decomposition import PCA

    fitted, shown = [], []
    train_blocks, test_blocks = raw_blocks(engine, training), raw_blocks(engine, test)
    for key, block in train_blocks.items():
        with np.errstate(invalid="ignore"):
            mean = np.nan_to_num(np.nanmean(block, axis=0))
            scale = np.nan_to_num(np.nanstd(block, axis=0), nan=1.0)
        weight = 1.0 / (np.where(scale > 0, scale, 1.0) * np.sqrt(block.shape[1]))
        fitted.append(np.nan_to_num((block - mean) * weight))
        shown.append(np.nan_to_num((test_blocks[key] - mean) * weight))
    pca = PCA(n_components=engine.dim, svd_solver="randomized", random_state=seed).fit(np.hstack(fitted))
    out: Matrix = pca.transform(np.hstack(shown)).astype(np.float32)
    return out


def compare(folder: Path, n: int, seed: int) -> dict[str, object]:
    """Agreement of the checkpoint and of both rivals, with paired bootstrap intervals of the differences."""
    engine = TorchEngine.open(folder)
    test = held_out(n, seed, HELD_OUT)
    labels = np.array([observation.metadata["class"] for observation in test])
    redshift = np.array([observation.metadata["redshift"] for observation in test])
    training = held_out(n + n // 2, seed, RIVAL_TRAINING)
    vectors = {
        "checkpoint": embed(engine, test),
        "untrained": embed(untrained(engine, seed), test),
        "pca": pca_rival(engine, training, test, seed),
        "chance": np.random.default_rng(seed).normal(size=(n, engine.dim)).astype(np.float32),
    }
    scores = {name: agreement(matrix, labels, redshift) for name, matrix in vectors.items()}
    ours = scores["checkpoint"]
    return {
        "objects": n,
        "checkpoint": engine.space("mean"),
        "agreement": {
            name: {"class": float(one.label.mean()), "redshift": float(one.redshift.mean())}
            for name, one in scores.items()
        },
        "difference_95": {
            name: {
                "class": paired_bootstrap(ours.label, scores[name].label),
                "redshift": paired_bootstrap(ours.redshift, scores[name].redshift),
            }
            for name in ("untrained", "pca")
        },
    }


def main() -> None:
    """Command line: see the module's first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=MINI, help="default: the shipped albireo-mini")
    parser.add_argument("--objects", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    result = compare(args.checkpoint, args.objects, args.seed)
    if args.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{result['objects']} held-out simulated objects, {K} nearest neighbours of {result['checkpoint']}")
    print(f"{'':12}{'class':>8}{'redshift':>10}")
    for name, row in result["agreement"].items():  # type: ignore[attr-defined]
        print(f"{name:12}{row['class']:8.3f}{row['redshift']:10.3f}")
    for name, row in result["difference_95"].items():  # type: ignore[attr-defined]
        text = ", ".join(f"{what} {low:+.3f} to {high:+.3f}" for what, (low, high) in row.items())
        print(f"better than {name} by (95 %): {text}")


if __name__ == "__main__":
    main()
