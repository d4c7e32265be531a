"""Epochs become a light curve: sorted, checked, with non-detections and non-observations kept apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from albireo.observations.errors import BadInput
from albireo.observations.observation import Bools, Doubles, LightCurve

MJD_OF_JD = 2400000.5
LAST_MJD = 200000.0
"""The year 2406: beyond it a number is no MJD but a JD or a Unix time."""


def check_mjd(time: Doubles, field: str) -> None:
    """Refuse times that cannot be MJD: JD, Unix seconds, phases, NaN."""
    bad = ~((time > 0.0) & (time < LAST_MJD))
    if bad.any():
        raise BadInput(
            "time_unit",
            f"{field} = {float(time[bad][0])!r} cannot be a Modified Julian Date in days",
            field=field,
            fix="give MJD; a Julian Date is converted if its column is called jd",
        )


def mjd_from_jd(time: Doubles, field: str) -> Doubles:
    """JD (T,) to MJD; numbers that cannot be JD are refused."""
    bad = ~((time > MJD_OF_JD) & (time < MJD_OF_JD + LAST_MJD))
    if bad.any():
        raise BadInput(
            "time_unit",
            f"{field} = {float(time[bad][0])!r} cannot be a Julian Date in days",
            field=field,
            fix="call the column mjd if it is one",
        )
    return time - MJD_OF_JD


def light_curve(
    *,
    time: Doubles,
    band: Sequence[str],
    flux: Doubles,
    flux_err: Doubles,
    zero_point: Doubles,
    system: Sequence[str],
    extinction_corrected: bool,
    kind: str,
    detected: Bools | None = None,
    limit: Doubles | None = None,
    time_field: str = "mjd",
) -> tuple[LightCurve, tuple[str, ...]]:
    """The light curve of one object and its QA flags, from arrays (T,) in any order; inputs are not changed.

    A row without flux is a non-detection if it has a limit or `detected` is False, else nothing was observed: such
    rows are left out (flag not_observed_epochs). Errors that are not positive are no errors: NaN (missing_errors).
    Raises no_epoch, time_unit, not_finite.
    """
    total = len(time)
    limit = np.full(total, np.nan) if limit is None else np.asarray(limit, np.float64)
    seen = np.isfinite(flux)
    if np.isinf(flux).any():
        raise BadInput("not_finite", "an infinite flux", field="flux", fix="give a limit for what was not detected")
    found = seen if detected is None else np.asarray(detected, bool) & seen
    keep = seen | np.isfinite(limit) | (np.zeros(total, bool) if detected is None else ~np.asarray(detected, bool))
    flags = []
    if not keep.any():
        raise BadInput("no_epoch", "no epoch with a measurement", field="flux", fix="leave the object out")
    if not keep.all():
        flags.append("not_observed_epochs")
    check_mjd(np.asarray(time, np.float64)[keep], time_field)
    errors = np.where(np.isfinite(flux_err) & (flux_err > 0), flux_err, np.nan)
    if np.isnan(errors[keep & seen]).any():
        flags.append("missing_errors")
    if not found[keep].all():
        flags.append("non_detections")
    order = np.flatnonzero(keep)
    order = order[np.argsort(np.asarray(time)[order], kind="stable")]
    curve = LightCurve(
        time=np.array(time, np.float64)[order],
        band=np.array(band, np.str_)[order],
        flux=np.array(flux, np.float64)[order],
        flux_err=errors[order],
        zero_point=np.array(zero_point, np.float64)[order],
        system=np.array(system, np.str_)[order],
        detected=np.array(found)[order],
        limit=limit[order],
        extinction_corrected=extinction_corrected,
        kind=kind,
    )
    return curve, tuple(flags)
