"""PLAsTiCC: light curves in one table, labels and host galaxies in another.

Fluxes are at zero point 27.5 in AB, differences to a template, already corrected for Galactic extinction; passbands
0 to 5 are LSST's ugrizy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from albireo.observations.aliases import PLASTICC_BANDS
from albireo.observations.columns import load_columns, lower_names
from albireo.observations.epochs import light_curve
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.identifiers import about, exact_ids, rows_by_id
from albireo.observations.observation import Observation
from albireo.observations.options import ReadOptions
from albireo.observations.source import Source

ZERO_POINT = 27.5
_POSITION = ("ra", "decl", "dec")
Items = list[Observation | AlbireoError]


def is_plasticc(source: Source) -> bool:
    """Columns of the PLAsTiCC light curves."""
    return {"object_id", "mjd", "passband", "flux"} <= lower_names(source)


def is_plasticc_metadata(source: Source) -> bool:
    """Columns of the PLAsTiCC metadata: labels and host galaxies, no measurement."""
    names = lower_names(source)
    return {"object_id", "hostgal_photoz"} <= names and bool({"ddf", "ddf_bool"} & names) and "mjd" not in names


def plasticc_completes(source: Source, other: Source, options: ReadOptions) -> bool:
    """The metadata table completes any table of light curves."""
    return is_plasticc_metadata(other)


def read_plasticc(source: Source, options: ReadOptions, companions: Sequence[Source]) -> Items:
    """One observation per object_id; labels of the metadata table become metadata, never tokens."""
    table = load_columns(source, text=("object_id",))
    labels = _plasticc_labels([other for other in companions if is_plasticc_metadata(other)])
    if options.extinction_corrected is False:
        raise BadInput(
            "statement_conflict", "PLAsTiCC fluxes are corrected for Galactic extinction", file=source.name,
            field="extinction_corrected", fix="leave the option out",
        )  # fmt: skip
    number = table.named("passband").numbers()
    codes = {float(code): name for code, name in PLASTICC_BANDS.items()}
    errors = table.find("flux_err", "fluxerr")
    if errors is None:
        raise BadInput("column_missing", "no column flux_err", file=source.name, field="flux_err")
    time, flux, error = table.named("mjd").numbers(), table.named("flux").numbers(), errors.numbers()
    flag = table.find("detected_bool", "detected")
    detected = None if flag is None else flag.numbers() > 0
    objects = rows_by_id(exact_ids(table.named("object_id")))
    source.make(len(objects))
    items: Items = []
    for name, rows in objects:
        try:
            if not name:
                raise BadInput("value_missing", "rows without object_id", field="object_id")
            unknown = [code for code in number[rows].tolist() if code not in codes]
            if unknown:
                raise BadInput("band_unknown", f"passband {unknown[0]:g}", field="passband", fix="0 to 5 are ugrizy")
            curve, flags = light_curve(
                time=time[rows],
                band=[codes[code] for code in number[rows].tolist()],
                flux=flux[rows],
                flux_err=error[rows],
                zero_point=np.full(len(rows), ZERO_POINT),
                system=["AB"] * len(rows),
                detected=None if detected is None else detected[rows],
                extinction_corrected=True,
                kind="difference",
            )
            known = labels.get(name)
            ra, dec = place(known or {})
            items.append(
                Observation(
                    id=name,
                    data={"lightcurve": curve},
                    ra=ra,
                    dec=dec,
                    metadata=known or {},
                    provenance={"lightcurve": source.provenance("plasticc", survey="plasticc", row=int(rows[0]))},
                    flags=flags if known or not labels else (*flags, "metadata_missing"),
                )
            )
        except AlbireoError as problem:
            items.append(about(problem, name, source.name))
    return items


def read_plasticc_metadata(source: Source, options: ReadOptions, companions: Sequence[Source]) -> Items:
    """Labels without light curves are no observations."""
    raise BadInput(
        "companion_missing", "PLAsTiCC metadata without light curves", file=source.name, field="mjd",
        fix="give the light-curve CSV along",
    )  # fmt: skip


def _plasticc_labels(sources: Sequence[Source]) -> dict[str, dict[str, Any]]:
    """object_id -> labels. `redshift` is that of the host's spectrum, else the true one of the simulation."""
    found: dict[str, dict[str, Any]] = {}
    for source in sources:
        table = load_columns(source, text=("object_id",))
        ids = exact_ids(table.named("object_id"))
        cells = {c.name.lower(): c.values.tolist() for c in table.columns}
        gone = {c.name.lower(): c.missing.tolist() for c in table.columns}
        for row, name in enumerate(ids):
            labels = {key: cells[key][row] for key in cells if key != "object_id" and not gone[key][row]}
            labels = {key: value for key, value in labels.items() if key in _POSITION or not _is_no_value(value)}
            for key in ("hostgal_specz", "true_z"):
                if isinstance(labels.get(key), int | float) and "redshift" not in labels:
                    labels["redshift"] = float(labels[key])
            found[name] = labels
    return found


def _is_no_value(value: Any) -> bool:
    return isinstance(value, int | float) and (not np.isfinite(value) or value in (-9, -99, -999))


def place(labels: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """ra, dec in degrees, None where either is absent."""
    ra, dec = labels.get("ra"), labels.get("decl", labels.get("dec"))
    if not isinstance(ra, int | float) or not isinstance(dec, int | float):
        return None, None
    if not (0 <= ra <= 360 and -90 <= dec <= 90):
        raise BadInput("value_out_of_range", f"ra {ra}, dec {dec}", field="ra", fix="give degrees, ra from 0 to 360")
    return float(ra) % 360.0, float(dec)
