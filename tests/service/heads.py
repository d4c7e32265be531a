"""A table of objects whose labels follow from two fluxes, and commands on it: what the tests of heads share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from typer.testing import CliRunner, Result

from albireo.index.collection import Collections
from albireo.service.cli import app
from albireo.service.core import Core
from albireo.service.settings import Settings
from albireo.service.shelf import Shelf

Run = Callable[..., Result]

TARGETS = {"redshift": "z_spec", "classification": "kind", "regression": "mass"}


def write_objects(path: Path, n: int = 400, seed: int = 0, without: Sequence[str] = (), **more: Any) -> Path:
    """n objects, fluxes in nanomaggy of the Legacy Survey, and labels; `more` are further columns."""
    rng = np.random.default_rng(seed)
    g, r = rng.uniform(1, 20, (2, n))
    table = Table({"id": [f"o{seed}-{i}" for i in range(n)]}, meta={"survey": "legacysurvey"})
    table["ra"], table["dec"] = rng.uniform(0, 360, n), rng.uniform(-80, 80, n)
    table["ra"].unit = table["dec"].unit = "deg"
    for name, values in (("FLUX_G", g), ("FLUX_R", r)):
        table[name] = values
        table[name].unit = "nmgy"
    table["z_spec"] = 0.1 + 0.03 * g + 0.01 * r + rng.normal(0, 0.02, n)
    table["kind"] = np.where(g > r, "blue", "red")
    table["mass"] = 10 + 0.05 * (g - r) + rng.normal(0, 0.05, n)
    table["mass"].unit = "dex(solMass)"
    table["size"] = 3 + 0.1 * r + rng.normal(0, 0.1, n)
    for name, values in more.items():
        table[name] = values
    table.remove_columns(list(without))
    table.write(path, format="ascii.ecsv" if path.suffix == ".ecsv" else None, overwrite=True)
    return path


def runner(engine: Any, folder: Path) -> Run:
    """Runs a command with this engine; collections and heads are under `folder`."""

    def open_core(settings: Settings) -> Core:
        shelf = Shelf({"own": folder / "heads", "shipped": folder / "model" / "heads"})
        return Core(lambda: engine, lambda: Collections(folder / "c.sqlite"), shelf=lambda: shelf)

    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments], obj=open_core)


def fit(run: Run, name: str, table: Path, folder: Path, task: str, *more: object) -> Result:
    """Fits a head on a table that holds its own labels, fast."""
    rest = ("--labels", table, "--target", TARGETS[task], "--task", task, "--data", folder, "--epochs", 10)
    return run("heads", "fit", name, table, *rest, *more)
