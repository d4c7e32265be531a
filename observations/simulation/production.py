"""Shards of simulated objects on disk: seeded, resumable, the same bytes however often it was stopped.

OUT/mix-00000.parquet ...  shards of `observations/shards.py`; object k of a seed is the same in shards of any size
OUT/labels.parquet         id and labels of all objects, a plain table
OUT/manifest.json          the order, versions, counts, conventions, sha256 of every file; written last
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from albireo.observations.errors import BadInput, Conflict
from albireo.observations.modalities import LABEL_KEYS, MODALITIES
from albireo.observations.shards import write_shard
from albireo.observations.simulation import survey
from albireo.observations.simulation.templates import package

RECIPE = 1
"""Raised when the same seed gives other objects than before."""

PACKAGES = ("albireo", "numpy", "scipy", "pyarrow", "bagpipes", "galsim", "speclite")

CONVENTIONS = {
    "wavelengths": "vacuum, Angstrom; templates in air were converted (Ciddor 1996)",
    "fluxes": "raw: dimmed by Galactic dust, whose E(B-V) (of the SFD map) stands beside them",
    "extinction": "Fitzpatrick (1999), R_V = 3.1, with 0.86 of the map's E(B-V); the map is right to 8 %",
    "images": "96 x 96 pixels, row 0 south, column 0 east; nanomaggies, HSC at zero point 27; correlated noise",
    "spectra": "1e-17 erg / (s cm2 Angstrom); ivar is that of the Gaussian noise, sky-line residuals come on top",
    "labels": "in metadata and labels.parquet, never among the modalities; redshift of stars is velocity / c",
    "cosmology": "flat, H0 = 70 km/s/Mpc, Omega_m = 0.3; masses for the Kroupa IMF",
}


@dataclass(frozen=True)
class Order:
    """What is to be made.

    photometry  whether nothing but photometry is observed
    """

    objects: int
    kind: survey.Kind
    seed: int
    shard_size: int = 500
    recipe: int = RECIPE
    photometry: bool = False

    def __post_init__(self) -> None:
        for name, low in (("objects", 1), ("seed", 0), ("shard_size", 1)):
            if getattr(self, name) < low:
                raise BadInput("option_invalid", f"{name} {getattr(self, name)}", field=name, fix=f"{low} or more")
        if self.kind not in survey.KINDS:
            raise BadInput("option_invalid", f"kind {self.kind!r}", field="kind", fix=", ".join(survey.KINDS))

    def shards(self) -> Iterator[tuple[str, range]]:
        """File name, and the numbers of its objects."""
        for k, start in enumerate(range(0, self.objects, self.shard_size)):
            yield f"{self.kind}-{k:05d}.parquet", range(start, min(start + self.shard_size, self.objects))


def make_shard(task: tuple[Order, str, str, range]) -> int:
    """Write one shard; returns how many objects it holds."""
    order, folder, name, numbers = task
    observe = survey.photometry if order.photometry else survey.simulate
    observations = [observe(order.seed, number, order.kind) for number in numbers]
    origin = {"origin": "simulated", "seed": order.seed, "kind": order.kind, "recipe": order.recipe}
    write_shard(observations, Path(folder) / name, origin)
    return len(numbers)


def produce(out: Path, order: Order, workers: int = 1, progress: Callable[[int], None] = lambda done: None) -> Path:
    """Make what is missing of the order in the folder `out`; returns the manifest's path.

    Shards that are there are kept. `progress` hears of every shard how many objects it holds. Raises statement_conflict
    if the folder holds another order.
    """
    for name in ("bagpipes", "galsim", "speclite"):
        package(name)
    out.mkdir(parents=True, exist_ok=True)
    plan = out / "order.json"
    if plan.exists():
        there = {"photometry": False} | json.loads(plan.read_text())
        if there != asdict(order):
            differ = ", ".join(f"{k} {there.get(k)}" for k, v in asdict(order).items() if there.get(k) != v)
            raise Conflict(
                "statement_conflict", f"the folder holds another order: {differ}", file=str(out),
                fix="name another folder, or ask for the same again",
            )  # fmt: skip
    else:
        _replace(plan, json.dumps(asdict(order), indent=1) + "\n")
    tasks = []
    for name, numbers in order.shards():
        if _whole(out / name, len(numbers)):
            progress(len(numbers))
        else:
            tasks.append((order, str(out), name, numbers))
    if tasks:
        survey.prepare()
    if workers > 1 and len(tasks) > 1:
        # Forked, so that the templates are in memory once.
        with multiprocessing.get_context("fork").Pool(min(workers, len(tasks))) as pool:
            for done in pool.imap_unordered(make_shard, tasks):
                progress(done)
    else:
        for task in tasks:
            progress(make_shard(task))
    return _finish(out, order)


def _whole(path: Path, rows: int) -> bool:
    try:
        return bool(pq.read_metadata(path).num_rows == rows)
    except (OSError, pa.ArrowException):
        return False


def _replace(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


def _finish(out: Path, order: Order) -> Path:
    """The table of labels, and the manifest over everything."""
    names = [name for name, _ in order.shards()]
    objects, modalities, classes = _labels(out, names)
    columns = sorted({key for row in objects for key in row} - {"id"})
    table = pa.table({key: [row.get(key) for row in objects] for key in ("id", *columns)})
    part = out / "labels.parquet.part"
    pq.write_table(table, part, compression="zstd")
    os.replace(part, out / "labels.parquet")
    redshifts = {}
    for kind in classes:
        values = [row["redshift"] for row in objects if row["class"] == kind]
        redshifts[kind] = [round(float(q), 4) for q in np.percentile(values, [0, 25, 50, 75, 100])]
    manifest = {
        "order": asdict(order),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "conventions": CONVENTIONS,
        "classes": dict(sorted(classes.items())),
        "redshift_quartiles": dict(sorted(redshifts.items())),
        "modalities": {row.name: modalities[row.name] for row in MODALITIES.values() if modalities[row.name]},
        "files": {
            name: {
                "bytes": (out / name).stat().st_size,
                "sha256": hashlib.sha256((out / name).read_bytes()).hexdigest(),
            }
            for name in (*names, "labels.parquet")
        },
    }
    path = out / "manifest.json"
    _replace(path, json.dumps(manifest, indent=1) + "\n")
    return path


def _labels(out: Path, names: list[str]) -> tuple[list[dict[str, Any]], Counter[str], Counter[str]]:
    """Id and metadata of every object; how many have each modality; how many are of each class."""
    objects: list[dict[str, Any]] = []
    modalities: Counter[str] = Counter()
    rows = {row.name: row for key, row in MODALITIES.items() if key not in LABEL_KEYS}
    for name in names:
        file = pq.ParquetFile(out / name)
        plain = file.read(columns=["id", "metadata"]).to_pylist()
        objects += [{"id": row["id"], **json.loads(row["metadata"])} for row in plain]
        for column in rows.keys() & set(file.schema_arrow.names):
            small = "value" if rows[column].kind == "scalar" else "shape"
            modalities[column] += len(plain) - file.read(columns=[f"{column}.{small}"]).column(0).null_count
    return objects, modalities, Counter(row["class"] for row in objects)
