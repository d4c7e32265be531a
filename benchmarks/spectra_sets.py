"""Real spectra with labels: SDSS and BOSS, DESI, LAMOST, and the MILES library of stars.

All are in vacuum but MILES, which is in air and converted. No checkpoint has a modality for LAMOST and MILES: their
spectra stand in for SDSS's, whose resolution and range they about share.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Observation, Payload, Scalar, Spectrum
from albireo.observations.wavelengths import air_to_vacuum
from benchmarks.labelled import Dataset

SDSS, DESI = "tok_spectrum_sdss", "tok_spectrum_desi"
MILES_SNR = 100.0
"""Signal to noise that is assumed for MILES, which states no errors; its authors say "typically above 100"."""

Doubles = NDArray[np.float64]


def sdss_boss(folder: Path) -> Dataset:
    """85 spectra of quasars, galaxies and stars on the survey's grid, with class and redshift of its pipeline."""
    arrays = np.load(folder / "eval" / "sdss_boss_spectra.npz")
    table = _table(folder / "eval" / "sdss_boss_spectra.csv")
    wavelength = 10.0 ** arrays["loglam"]
    rows = [
        _observation(f"{row['plate']}-{row['mjd']}-{row['fiber']}", SDSS, wavelength, flux, ivar)
        for row, flux, ivar in zip(table, arrays["flux"], arrays["ivar"], strict=True)
    ]
    labels = {
        "class": _texts(table, "cls"),
        "subclass": _texts(table, "subclass"),
        "redshift": _numbers(table, "z"),
        "zwarning": _numbers(table, "zwarn"),
    }
    note = "vacuum; class and redshift are the pipeline's, secure where ZWARNING is 0; test only"
    return Dataset("sdss_boss_spectra", tuple(rows), labels, tuple(one.id for one in rows), True, note)


def desi(folder: Path) -> Dataset:
    """24 spectra, cameras co-added here by inverse variance, with Legacy Survey fluxes; 14 have redshift and class."""
    arrays = np.load(folder / "eval" / "desi_spectra.npz")
    table = _table(folder / "eval" / "desi_spectra.csv")
    rows = []
    for row, flux, ivar in zip(table, arrays["flux"], arrays["ivar"], strict=True):
        grid, mean, weight = _over_cameras(arrays["wave_brz"], flux, ivar)
        fluxes: dict[str, Payload] = {}
        for band in ("g", "r", "z", "w1", "w2"):
            # Bands that were not observed are filled with 0.
            if row[f"flux_{band}"] and (value := float(row[f"flux_{band}"])) != 0.0:
                fluxes[f"tok_flux_{band}"] = Scalar(value, "nanomaggy")
        rows.append(_observation(f"{row['targetid']}", DESI, grid, mean, weight, fluxes))
    labels = {"class": _texts(table, "spectype"), "redshift": _numbers(table, "z")}
    note = "vacuum; sky fibres and targets without redrock row have no label; test only"
    return Dataset("desi_spectra", tuple(rows), labels, tuple(one.id for one in rows), True, note)


def lamost(folder: Path) -> Dataset:
    """108 stars of LAMOST DR1 with subclass, about 80 with Teff, logg, [Fe/H] and radial velocity (km / s)."""
    arrays = np.load(folder / "eval" / "lamost_spectra.npz")
    table = _table(folder / "eval" / "lamost_spectra.csv")
    rows = []
    for row, wavelength, flux, ivar in zip(table, arrays["wave"], arrays["flux"], arrays["ivar"], strict=True):
        there = wavelength > 0  # rows are padded to 4,000
        grid = wavelength[there].astype(np.float64)
        rows.append(_observation(row["file"].removesuffix(".fits"), SDSS, grid, flux[there], ivar[there]))
    labels = {
        "class": _texts(table, "cls"),
        "subclass": _texts(table, "subclass"),
        "redshift": _numbers(table, "z"),
        "teff": _numbers(table, "teff"),
        "logg": _numbers(table, "logg"),
        "fe_h": _numbers(table, "feh"),
        "rv": _numbers(table, "rv"),
    }
    note = "vacuum, relative flux; stands in for an SDSS spectrum; test only"
    return Dataset("lamost_spectra", tuple(rows), labels, tuple(one.id for one in rows), True, note)


def all_surveys(folder: Path) -> Dataset:
    """The spectra of SDSS, BOSS, DESI and LAMOST with class and redshift, in one set."""
    parts = [sdss_boss(folder), desi(folder), lamost(folder)]
    labels = {name: np.concatenate([part.labels[name] for part in parts]) for name in ("class", "redshift")}
    # Only SDSS' pipeline tells of doubts.
    unknown = [part.labels.get("zwarning", np.zeros(len(part))) for part in parts]
    return Dataset(
        "real_spectra",
        tuple(one for part in parts for one in part.observations),
        labels | {"zwarning": np.concatenate(unknown)},
        tuple(name for part in parts for name in part.groups),
        True,
        "; ".join(f"{part.name}: {part.note}" for part in parts),
    )


def miles(folder: Path) -> Dataset:
    """570 stars of the MILES library, 3540 to 7410 A, wavelengths converted from air, with Teff, logg and [Fe/H]."""
    arrays = np.load(folder / "eval" / "miles_stars.npz")
    wavelength = air_to_vacuum(arrays["wave"].astype(np.float64))
    rows = []
    for k, flux in enumerate(arrays["flux"]):
        good = flux > 0
        ivar = np.where(good, (MILES_SNR / np.median(flux[good])) ** 2, 0.0)
        rows.append(_observation(f"miles-{k}", SDSS, wavelength, flux, ivar))
    labels = {name: _present(arrays[column]) for name, column in (("teff", "teff"), ("logg", "logg"), ("fe_h", "feh"))}
    note = "air to vacuum; relative flux; no errors are given, S/N 100 is assumed; stands in for an SDSS spectrum"
    return Dataset("miles_stars", tuple(rows), labels, tuple(one.id for one in rows), False, note)


def _observation(
    name: str, key: str, wavelength: Doubles, flux: Any, ivar: Any, others: dict[str, Payload] | None = None
) -> Observation:
    """One spectrum, without what only fills up its array: ends where the inverse variance is 0."""
    measured = np.flatnonzero(np.asarray(ivar) > 0)
    ends = slice(measured[0], measured[-1] + 1) if len(measured) else slice(0, 0)
    f, w = np.asarray(flux, np.float32)[ends], np.asarray(ivar, np.float32)[ends]
    bad = ~((w > 0) & np.isfinite(f))
    spectrum = Spectrum(
        wavelength[ends], np.where(bad, np.float32(0), f), np.where(bad, np.float32(0), w), bad,
        MODALITIES[key].unit, "heliocentric",
    )  # fmt: skip
    return Observation(name, ({key: spectrum} if len(measured) else {}) | (others or {}))


def _over_cameras(wavelength: Doubles, flux: Any, ivar: Any) -> tuple[Doubles, Doubles, Doubles]:
    """Mean over cameras by inverse variance, where they overlap: all are on one grid of 0.8 A."""
    grid, place = np.unique(np.round(wavelength, 1), return_inverse=True)
    good = np.isfinite(flux) & (ivar > 0)
    w = np.where(good, ivar, 0.0).astype(np.float64)
    weight = np.bincount(place, weights=w)
    total = np.bincount(place, weights=w * np.where(good, flux, 0.0))
    return grid, np.divide(total, weight, out=np.zeros_like(total), where=weight > 0), weight


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def _texts(table: Sequence[dict[str, str]], name: str) -> NDArray[np.str_]:
    return np.array([row[name].strip() for row in table])


def _numbers(table: Sequence[dict[str, str]], name: str) -> Doubles:
    return _present(np.array([float(row[name]) if row[name] else np.nan for row in table]))


def _present(values: Any) -> Doubles:
    """NaN for the numbers that mean "none": -9999, 9999, 99999."""
    v = np.asarray(values, np.float64)
    return np.where(np.isin(v, (-9999.0, 9999.0, 99999.0)), np.nan, v)
