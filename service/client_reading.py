"""The client's keyword arguments: what the files do not say, and the terms of a request, as on every other door.

Quantities, units, SkyCoords and paths are taken as well as what the JSON form has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.table import Table
from astropy.units.function import FunctionUnitBase

from albireo.observations.errors import BadInput
from albireo.observations.options import ReadOptions
from albireo.service.terms import TERMS

NAMES = tuple(option.name for option in fields(ReadOptions))


@dataclass(frozen=True)
class Reading:
    """Options as JSON carries them. `positions` is the table of positions, if it is none of the files given; `terms`
    are those that are stated."""

    data: Mapping[str, Any] = field(default_factory=dict)
    positions: Path | Table | None = None
    terms: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def asked(cls, stated: Mapping[str, Any]) -> Reading:
        """Of the keywords of a verb. BadInput option_invalid as of `of`."""
        terms = {name: stated[name] for name in TERMS if name in stated}
        for name, value in terms.items():
            if value not in TERMS[name]:
                raise BadInput("option_invalid", repr(value), field=name, fix="one of " + ", ".join(TERMS[name]))
        return replace(cls.of({name: value for name, value in stated.items() if name not in TERMS}), terms=terms)

    @classmethod
    def of(cls, stated: Mapping[str, Any]) -> Reading:
        """BadInput option_invalid for an option that there is not, or a value that it cannot have."""
        unknown = stated.keys() - set(NAMES)
        if unknown:
            raise BadInput(
                "option_invalid",
                "there is no such reading option",
                field=min(unknown),
                fix="one of " + ", ".join(NAMES),
            )
        data: dict[str, Any] = {}
        positions: Any = None
        for name, value in stated.items():
            if value is None:
                continue
            if name == "positions":
                positions, value = _positions(value)
            data[name] = _plain(name, value)
        return cls(data, positions)

    @property
    def columns(self) -> Mapping[str, str]:
        """Our names of columns -> the table's."""
        found: Mapping[str, str] = self.data.get("columns", {})
        return found

    @property
    def together(self) -> bool:
        """True if the files must be in one request: one of them says where to cut the others."""
        return "positions" in self.data


def _positions(value: Any) -> tuple[Path | Table | None, str]:
    """(the table if it is to be sent along, its name)."""
    if isinstance(value, Table):
        return value, "positions.ecsv"
    try:
        path = Path(value).expanduser()
        return (path if path.is_file() else None), path.name
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise BadInput(
            "option_invalid", f"{value!r} names no file", field="positions", fix="a path or a table"
        ) from error


def _plain(name: str, value: Any) -> Any:
    """One option as JSON carries it."""
    if name == "at":
        return _position(value)
    try:
        if name in ("bands", "tokens"):
            return [value] if isinstance(value, str) else [str(word) for word in value]
        if name == "columns":
            return {str(ours): str(theirs) for ours, theirs in value.items()}
    except (TypeError, AttributeError) as error:
        wanted = "{our name: the file's}" if name == "columns" else "words"
        raise BadInput("option_invalid", f"{value!r}", field=name, fix=wanted) from error
    if isinstance(value, units.Quantity):
        return _number(name, value)
    if isinstance(value, units.UnitBase | FunctionUnitBase):
        return str(value)
    return value.item() if isinstance(value, np.generic) else value


def _number(name: str, value: Any) -> float:
    """A pixel scale in arcsec (per pixel), or an AB zero point in magnitudes."""
    wanted = {"pixel_scale": ("arcsec", "arcsec / pix"), "zero_point": ("mag", "mag(AB)")}.get(name, ())
    if str(value.unit) in wanted:
        return float(value.value)
    for unit in wanted:
        if value.unit.is_equivalent(units.Unit(unit)):
            return float(value.to_value(units.Unit(unit)))
    raise BadInput(
        "option_invalid", f"{value} in {value.unit}", field=name, fix="in " + " or ".join(wanted or ("none",))
    )


def _position(value: Any) -> list[float]:
    """[ra, dec] in degrees ICRS of a SkyCoord, or of two numbers."""
    try:
        if isinstance(value, SkyCoord):
            return [float(value.icrs.ra.deg), float(value.icrs.dec.deg)]
        ra, dec = (one.to_value(units.deg) if isinstance(one, units.Quantity) else one for one in value)
        return [float(ra), float(dec)]
    except (ValueError, TypeError, OverflowError) as error:
        raise BadInput(
            "option_invalid", f"{value!r} is no position", field="at", fix="a SkyCoord, or (ra, dec) in degrees"
        ) from error
