"""Sampled XP spectra to coefficients and back, against GaiaXPy itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from albireo.models.xp_inversion import XpInversion
from albireo.observations.gaia import FORMATS
from albireo.observations.observation import Coefficients, Observation
from albireo.observations.options import ReadOptions
from albireo.observations.source import Source

GRID = np.arange(336.0, 1021.0, 2.0)


@pytest.fixture(scope="module")
def inversion() -> XpInversion:
    return XpInversion.of(GRID, np.full(len(GRID), 0.01))


def smooth(n: int, seed: int) -> np.ndarray:
    """(n, 110) coefficients that fall off as those of stars do."""
    rng = np.random.default_rng(seed)
    scale = np.tile((np.arange(55) + 1.0) ** -2, 2)
    return 1000.0 * np.abs(rng.normal(1.0, 0.1, (n, 1))) * scale * (
        np.arange(110) % 55 == 0
    ) + 100.0 * scale * rng.normal(size=(n, 110))


def test_flux_comes_back(inversion: XpInversion) -> None:
    flux = inversion.flux(smooth(50, 1))
    before = flux.copy()
    assert inversion.design.shape == (110, len(GRID))
    assert np.median(inversion.loss(flux)) < 1e-3
    assert (flux == before).all()
    assert inversion.coefficients(flux) == pytest.approx(inversion.coefficients(flux[:, :]), rel=0)


def test_it_is_linear(inversion: XpInversion) -> None:
    flux = inversion.flux(smooth(2, 2))
    both = inversion.coefficients(flux.sum(axis=0, keepdims=True))
    assert both == pytest.approx(inversion.coefficients(flux).sum(axis=0, keepdims=True), rel=1e-9, abs=1e-6)


@pytest.mark.real
def test_the_archives_coefficients_come_back(test_data: Path, inversion: XpInversion) -> None:
    """Forward: as GaiaXPy calibrates. Back: to the numbers of the archive."""
    path = test_data / "raw" / "gaia" / "XP_CONTINUOUS_RAW.csv"
    (row,) = [row for row in FORMATS if row[2](Source.from_path(path))]
    items = row[3](Source.from_path(path), ReadOptions(), [])
    archive = []
    for item in items:
        assert isinstance(item, Observation)
        parts = [item.data[key] for key in ("tok_xp_bp", "tok_xp_rp")]
        archive.append(np.concatenate([part.values for part in parts if isinstance(part, Coefficients)]))
    true = np.array(archive, np.float64)
    with matplotlib.rc_context():  # its import turns pictures over to LaTeX
        from gaiaxpy import calibrate
    theirs, _ = calibrate(str(path), sampling=GRID, save_file=False)
    flux = np.array(theirs["flux"].tolist())
    assert inversion.flux(true) == pytest.approx(flux, rel=1e-4)
    assert (inversion.loss(flux) < 3e-3).all()
    error = np.abs(inversion.coefficients(flux) - true)
    assert (error[:, :55] / true[:, :1]).max() < 0.01
    assert (error[:, 55:] / true[:, 55:56]).max() < 0.005


def test_pictures_of_the_process_stay_as_they_were() -> None:
    """In a process of its own: the package changes settings when it is first imported."""
    script = (
        "import matplotlib, numpy, sys; before = dict(matplotlib.rcParams);"
        "from albireo.models.xp_inversion import design_matrix; design_matrix(numpy.linspace(400.0, 900.0, 20));"
        "assert 'gaiaxpy' in sys.modules; assert dict(matplotlib.rcParams) == before"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)
