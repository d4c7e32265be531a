"""Rows of a DESI FIBERMAP: which belong to one target, which are no target, and the photometry they carry.

Photometry is that of the Legacy Surveys that the target was selected from: total model fluxes in nanomaggies (AB, WISE
too), not corrected for Galactic extinction (https://desidatamodel.readthedocs.io, FIBERMAP). PHOTSYS says south (DECam
filters) or north (BASS g and r, MzLS z); RELEASE 9010 is DR9. An inverse variance of 0 means that the target was not
observed in that band, whatever the flux column holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.observations.fits_cells import plain
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Convention, Scalar
from albireo.observations.spectral_terms import known

BANDS = {
    "S": {"g": "DES-G", "r": "DES-R", "i": "DES-I", "z": "DES-Z"},
    "N": {"g": "BASS-G", "r": "BASS-R", "z": "MzLS-Z"},
}
WISE = {"w1": "W1", "w2": "W2", "w3": "W3", "w4": "W4"}

_METADATA = {
    "fiber": "FIBER",
    "fiberstatus": "COADD_FIBERSTATUS",
    "morphtype": "MORPHTYPE",
    "photsys": "PHOTSYS",
    "maskbits": "MASKBITS",
    "n_exposures": "COADD_NUMEXP",
    "exposure_time": "COADD_EXPTIME",
}
_GAIA = {"parallax": "PARALLAX", "pmra": "PMRA", "pmdec": "PMDEC", "gaia_g_mag": "GAIA_PHOT_G_MEAN_MAG"}


@dataclass(frozen=True)
class Target:
    """One TARGETID: its rows in the file that are used, the cells of the first, why it is no target (or None)."""

    id: int
    rows: NDArray[np.int64]
    row: Mapping[str, Any]
    reason: str | None
    flags: tuple[str, ...]


def group(fibermap: Mapping[str, NDArray[Any]]) -> list[Target]:
    """Targets by first appearance. Of a target's several exposures those with FIBERSTATUS 0 are used, if any is."""
    ids = fibermap["TARGETID"].tolist()
    status = fibermap.get("COADD_FIBERSTATUS", fibermap.get("FIBERSTATUS", np.zeros(len(ids), np.int64)))
    groups: dict[int, list[int]] = {}
    for number, target in enumerate(ids):
        groups.setdefault(target, []).append(number)
    targets = []
    for target, numbers in groups.items():
        rows = np.array(numbers)
        good = rows[status[rows] == 0]
        used = good if len(good) else rows
        flags = []
        if not len(good):
            flags.append("fiberstatus")
        if len(used) > 1:
            flags.append("exposures_coadded")
        if len(used) < len(rows):
            flags.append("exposures_left_out")
        row = {name: plain(cells[used[0]]) for name, cells in fibermap.items()}
        targets.append(Target(target, used, row, _reason(row), tuple(flags)))
    return targets


def _reason(row: Mapping[str, Any]) -> str | None:
    kind = row.get("OBJTYPE")
    if kind is not None and str(kind).upper() != "TGT":
        return f"OBJTYPE is {kind!r}, FIBERSTATUS {row.get('COADD_FIBERSTATUS', row.get('FIBERSTATUS'))}"
    return "TARGETID is negative: the fibre was not assigned" if row["TARGETID"] < 0 else None


def target_metadata(target: Target) -> dict[str, Any]:
    """What the FIBERMAP says beside photometry; Gaia values only if a Gaia catalogue was matched."""
    found = known(target.row, _METADATA)
    catalog = str(target.row.get("REF_CAT", ""))
    if catalog.startswith("G"):
        found |= known(target.row, _GAIA) | {"ref_cat": catalog, "ref_id": str(target.row.get("REF_ID", ""))}
    if len(target.rows) > 1:
        found["rows"] = tuple(int(row) for row in target.rows)
    return found


def photometry(row: Mapping[str, Any]) -> tuple[dict[str, Scalar], str | None, tuple[str, ...]]:
    """(scalars by token key, release, flags); nothing if PHOTSYS names no Legacy Survey."""
    system = str(row.get("PHOTSYS", "")).upper()
    if system not in BANDS:
        return {}, None, ()
    number = int(row.get("RELEASE") or 0)
    release = f"dr{number // 1000}" if number >= 1000 else None
    scalars: dict[str, Scalar] = {}
    for short, band in {**BANDS[system], **WISE}.items():
        flux, ivar = row.get(f"FLUX_{short.upper()}"), row.get(f"FLUX_IVAR_{short.upper()}")
        if flux is None or not _is_number(flux) or (ivar is None and flux == 0):
            continue
        if ivar is not None and not (_is_number(ivar) and ivar > 0):
            continue
        convention = Convention("legacysurvey", band, "AB", "model", extinction_corrected=False, release=release)
        error = None if ivar is None else 1 / math.sqrt(ivar)
        scalars[f"tok_flux_{short}"] = Scalar(float(flux), "nanomaggy", error, convention)
    if _is_number(row.get("EBV")) and row["EBV"] > 0:
        scalars["tok_ebv"] = Scalar(float(row["EBV"]), "mag")
    # A point source has no shape: the columns are 0 there.
    if _is_number(row.get("SHAPE_R")) and row["SHAPE_R"] > 0:
        for name in ("SHAPE_R", "SHAPE_E1", "SHAPE_E2"):
            if _is_number(row.get(name)):
                key = f"tok_{name.lower()}"
                scalars[key] = Scalar(float(row[name]), MODALITIES[key].unit)
    northern = ("northern_filters",) if system == "N" and scalars else ()
    return scalars, release, northern


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
