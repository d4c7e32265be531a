"""Fits the heads that a checkpoint ships with: redshift, class, galaxy and stellar.

    albireo simulate SKY --objects 5000 --seed 20261127 --shard-size 1000 --workers 2
    python -m benchmarks.shipped_heads CHECKPOINT --sky SKY --state STATE

SKY is a simulated sky that the checkpoint was not pre-trained on. Real objects are those that nothing is tested on: the
galaxies of SDSS, zCOSMOS and VVDS that `labelled.held_out` leaves, and Gaia XP stars of the wheel. Each object is given
as it was observed and once more with some of its modalities only, as in use; both are in the same part of every split.
Token states are kept in STATE. A head that is there already is fitted anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.models.head_fitting import Labels, Plan, fit
from albireo.models.heads import Head, Pooling
from albireo.models.masking import group_of
from albireo.models.shard_tokens import Data, read
from albireo.models.token_states import TokenStates
from albireo.models.torch_engine import TorchEngine
from albireo.observations.observation import Observation
from benchmarks.datasets import DATASETS
from benchmarks.encoding import Encoder
from benchmarks.labelled import Dataset, held_out

SEED = 0
POOLING: Pooling = "mean_per_modality"
"""Of all shipped heads: attention over a thousand tokens of ten thousands of objects takes hours to fit on a CPU."""

STARS = 8000
"""Real stars that the stellar head is fitted on."""


@dataclass(frozen=True)
class Shipped:
    """One head: its plan, the sets it is fitted to, and which of their objects."""

    plan: Plan
    sets: tuple[str, ...]
    classes: tuple[str, ...]


PLANS = (
    Shipped(
        Plan("redshift", ("redshift",), name="redshift", pooling=POOLING, group="origin", seed=SEED),
        ("sky", "photoz_kcorrect_gst", "photoz_zcosmos", "photoz_vvds"),
        ("GALAXY", "QSO"),
    ),
    Shipped(
        Plan("classification", ("class",), name="class", pooling=POOLING, group="origin", balanced=True, seed=SEED),
        ("sky",),
        ("GALAXY", "QSO", "STAR"),
    ),
    Shipped(
        Plan("regression", ("log_mass", "log_ssfr", "age", "metallicity"), name="galaxy", group="origin",
             pooling=POOLING, seed=SEED,
             units={"log_mass": "dex(solMass)", "log_ssfr": "dex(1 / yr)", "age": "Gyr", "metallicity": "dex"}),
        ("sky",),
        ("GALAXY",),
    ),
    Shipped(
        # Epochs are long: each of 110 coefficients is read by a map of its own.
        Plan("regression", ("teff", "logg", "fe_h", "alpha_m"), name="stellar", group="origin",
             pooling=POOLING, seed=SEED, epochs=25,
             units={"teff": "K", "logg": "dex(cm / s2)", "fe_h": "dex", "alpha_m": "dex"}),
        ("sky", "gaia_xp_wheel"),
        ("STAR",),
    ),
)  # fmt: skip


def sky(folder: Path) -> Dataset:
    """The simulated sky of a folder of shards, with what was drawn of each object as labels."""
    rows = [one for path in Data(folder, 1.0).shards for one in read(path)]
    names = sorted({name for one in rows for name in one.metadata})
    labels: dict[str, NDArray[Any]] = {}
    for name in names:
        cells = [one.metadata.get(name) for one in rows]
        texts = any(isinstance(cell, str) for cell in cells)
        labels[name] = np.array([("" if texts else np.nan) if cell is None else cell for cell in cells])
    return Dataset("sky", tuple(rows), labels, tuple(one.id for one in rows), False, f"simulated, {len(rows)} objects")


def training(name: str, folder: Path) -> Dataset:
    """The objects of a real set that may be learnt from."""
    whole = DATASETS[name](folder)
    assert not whole.test_only, name
    if name == "gaia_xp_wheel":
        whole = whole.subset(np.isfinite(whole.labels["fe_h"]))
        chosen = np.random.default_rng(SEED).permutation(len(whole))[:STARS]
        return whole.subset(np.sort(chosen))
    return whole.subset(~held_out(whole.groups))


def with_parts(dataset: Dataset, inputs: Sequence[str]) -> Dataset:
    """Every object as it is, and once more with a part of its modalities, if it has several groups of them."""
    rng = np.random.default_rng(SEED)
    observations: list[Observation] = []
    origin: list[int] = []
    for k, one in enumerate(dataset.observations):
        data = {key: payload for key, payload in one.data.items() if key in inputs}
        if not data:
            continue
        observations.append(replace(one, data=data, extras={}, metadata={}))
        origin.append(k)
        groups = sorted({group_of(key) for key in data})
        if len(groups) > 1:
            kept = set(rng.choice(groups, rng.integers(1, len(groups)), replace=False).tolist())
            part = {key: payload for key, payload in data.items() if group_of(key) in kept}
            observations.append(replace(one, id=f"{one.id} in part", data=part, extras={}, metadata={}))
            origin.append(k)
    at = np.array(origin)
    labels = {name: column[at] for name, column in dataset.labels.items()}
    groups_ = tuple(dataset.groups[k] for k in origin)
    return replace(dataset, observations=tuple(observations), labels=labels, groups=groups_)


def joined(parts: Sequence[tuple[TokenStates, Dataset]], shipped: Shipped) -> tuple[TokenStates, Labels]:
    """The token states of all sets, and a table of the labels that the head is fitted to."""
    first = parts[0][0]
    states = TokenStates(first.space, first.dim, first.checkpoint, first.z_limit)
    ids: list[str] = []
    columns: dict[str, list[Any]] = {name: [] for name in (*shipped.plan.targets, "origin")}
    texts = shipped.plan.task == "classification"
    for of, dataset in parts:
        states.join(of)
        chosen = np.ones(len(dataset), bool)
        if "class" in dataset.labels:
            chosen = np.isin(dataset.labels["class"], shipped.classes)
        for k in np.flatnonzero(chosen):
            ids.append(dataset.observations[k].id)
            for target in shipped.plan.targets:
                column = dataset.labels.get(target)
                columns[target].append(("" if texts else np.nan) if column is None else column[k])
            columns["origin"].append(dataset.groups[k])
    content = json.dumps([ids, {name: [str(one) for one in column] for name, column in columns.items()}])
    source = "; ".join(f"{dataset.name}: {dataset.note}" for _, dataset in parts)
    arrays = {name: np.array(column) for name, column in columns.items()}
    return states, Labels(tuple(ids), arrays, hashlib.sha256(content.encode()).hexdigest(), source)


def make(
    encoder: Encoder, shipped: Shipped, read_set: Callable[[str], Dataset], say: Callable[[str], None] = print
) -> Head:
    """Fit one head."""
    datasets = [read_set(name) for name in shipped.sets]
    states, labels = joined([(encoder.states(one), one) for one in datasets], shipped)
    head = fit(states, labels, shipped.plan)
    say(f"{shipped.plan.name}: {len(labels.ids)} labels; {json.dumps(head.card.metrics)[:400]}")
    return head


def main() -> None:
    """Command line: see the module's first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--sky", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--head", action="append", choices=[one.plan.name for one in PLANS], help="default: all")
    args = parser.parse_args()
    engine = TorchEngine.open(args.checkpoint)
    encoder = Encoder("shipped", engine, args.state)
    known: dict[str, Dataset] = {}

    def read_set(name: str) -> Dataset:
        if name not in known:
            whole = sky(args.sky) if name == "sky" else training(name, Path(os.environ["ALBIREO_TEST_DATA"]))
            known[name] = with_parts(whole, tuple(engine.inputs))
        return known[name]

    folder = args.checkpoint / "heads"
    folder.mkdir(exist_ok=True)
    for shipped in PLANS:
        if args.head is None or shipped.plan.name in args.head:
            make(encoder, shipped, read_set).save(folder / f"{shipped.plan.name}.safetensors")


if __name__ == "__main__":
    main()
