"""Densities of redshift as an ensemble of the package qp, which LSST DESC's tools read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from albireo.models.redshift import Posterior
from albireo.observations.errors import BadInput, Unavailable

SUFFIXES = (".hdf5", ".h5")


def check_qp(path: Path) -> None:
    """BadInput unless the name says HDF5, Unavailable dependency_missing without the package."""
    if path.suffix not in SUFFIXES:
        raise BadInput("option_invalid", f"{path.name}: ensembles are written as HDF5", field="qp", fix="NAME.hdf5")
    need_qp()


def need_qp() -> None:
    """Unavailable dependency_missing without the package."""
    try:
        import qp  # noqa: F401
    except ImportError as error:
        raise Unavailable(
            "dependency_missing", "the package qp-prob is not installed", field="qp", fix="pip install 'albireo[qp]'"
        ) from error


def write_qp(path: Path, densities: Sequence[Posterior], about: Mapping[str, Sequence[Any]]) -> None:
    """Write the `ensemble` of `densities` to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    ensemble(densities, about).write_to(str(path))


def ensemble(densities: Sequence[Posterior], about: Mapping[str, Sequence[Any]]) -> Any:
    """An ensemble of histograms on the cells of `densities`, which are the same for all.

    about  columns of the table `ancil`, one value a density; z_mean, z_std and z_mode are added. qp 1.1 takes all cells
           for as wide as the first when it computes moments, so that its own `mean()` and `std()` are wrong on cells
           of different widths; `pdf`, `cdf` and `ppf` are right.
    A cell without width, which holds what is at its edge or below, is put into the one above it: qp has no such cell.
    """
    import qp

    edges = densities[0].edges
    assert all(np.array_equal(one.edges, edges) for one in densities), "one grid"
    probability = np.stack([one.probability for one in densities])
    while edges[0] == edges[1]:
        probability = np.concatenate([probability[:, :1] + probability[:, 1:2], probability[:, 2:]], axis=1)
        edges = edges[1:]
    moments = {f"z_{name}": np.array([getattr(one, name) for one in densities]) for name in ("mean", "std", "mode")}
    ancil = {name: np.array(values) for name, values in about.items()} | moments
    return qp.Ensemble(qp.hist, {"bins": edges, "pdfs": probability / np.diff(edges)}, ancil)
