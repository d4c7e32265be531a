"""SNANA light curves: the FITS pair HEAD + PHOT, and text files with one or many objects.

FLUXCAL is a flux at zero point 27.5, in the native magnitude system of the survey's filters. It is not corrected for
Galactic extinction, unless MWEBV_APPLYFLAG says so; MWEBV stands beside it. -9, -99, -999 and so on mean "no value".
Rows PTROBS_MIN..PTROBS_MAX of PHOT, counted from 1 and both included, belong to a row of HEAD; between objects stands a
separator row with MJD = -777. Times are in no order, SNIDs are names even where they look like numbers.
"""

from __future__ import annotations

import re
import sys
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePath
from typing import Any

import numpy as np

from albireo.observations.bands import band_name, band_system
from albireo.observations.columns import Columns, load_columns, lower_names
from albireo.observations.epochs import light_curve
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.identifiers import about
from albireo.observations.observation import Observation
from albireo.observations.options import ReadOptions
from albireo.observations.source import Source

ZERO_POINT = 27.5
SEPARATOR_MJD = -777.0
NO_VALUE = frozenset({-9.0, -99.0, -999.0, -9999.0, -99999.0, 999.0, 9999.0})

_NAMED_PHOT = re.compile(r"(^|[_.-])phot($|[_.-])")
_NAMED_HEAD = re.compile(r"(^|[_.-])head($|[_.-])")
_BLOCK_START = ("SURVEY", "SNID")
_INTERNAL = frozenset({"ptrobs_min", "ptrobs_max", "nobs", "nvar", "snid", "ra", "dec", "decl"})


# FITS pair


def is_head(source: Source) -> bool:
    """A HEAD table: one row per object, with the rows of PHOT that are its epochs."""
    return source.is_fits and {"snid", "ptrobs_min", "ptrobs_max"} <= lower_names(source)


def is_phot(source: Source) -> bool:
    """A PHOT table: one row per epoch."""
    names = lower_names(source)
    return (
        source.is_fits
        and {"mjd", "fluxcal", "fluxcalerr"} <= names
        and bool({"flt", "band"} & names)
        and not {"ptrobs_min", "snid"} & names
    )


def head_completes(head: Source, other: Source, options: ReadOptions) -> bool:
    """True if `other` is the PHOT of this HEAD.

    It is told by name (PHOTFILE, or FOO_PHOT for FOO_HEAD). Files whose names say nothing are told by VERSION, SURVEY
    and the number of rows.
    """
    if not is_phot(other):
        return False
    facts, others = _facts(head), _facts(other)
    if facts is None or others is None:
        return False  # damaged: reading it says so
    name = _stem(other.name)
    if name in {_stem(facts.partner), _phot_name(head.name)} - {""}:
        return True
    if _NAMED_PHOT.search(name) and _NAMED_HEAD.search(_stem(head.name)):
        return False
    return facts.version == others.version and others.rows - facts.last in (0, 1)


@dataclass(frozen=True)
class _Facts:
    """What tells which files are a pair: PHOTFILE, (VERSION, SURVEY), number of rows, largest PTROBS_MAX."""

    partner: str
    version: tuple[Any, Any]
    rows: int
    last: int


_FACTS: weakref.WeakKeyDictionary[Source, _Facts | None] = weakref.WeakKeyDictionary()


def _facts(source: Source) -> _Facts | None:
    """Facts of a HEAD or PHOT file, None if it is damaged; remembered, as every file is compared with every other."""
    if source not in _FACTS:
        try:
            table = load_columns(source)
            end = table.find("ptrobs_max")
            last = int(np.nanmax(end.numbers())) if end is not None and table.rows else -1
            version = (table.meta.get("version"), table.meta.get("survey"))
            _FACTS[source] = _Facts(str(table.meta.get("photfile") or ""), version, table.rows, last)
        except AlbireoError:
            _FACTS[source] = None
    return _FACTS[source]


def read_head(source: Source, options: ReadOptions, companions: Sequence[Source]) -> list[Observation | AlbireoError]:
    """One observation per row of HEAD; its PHOT must be among the companions."""
    head = load_columns(source)
    wanted = str(head.meta.get("photfile") or _phot_name(source.name) or "its PHOT file")
    phots = [other for other in companions if is_phot(other)]
    if not phots:
        raise BadInput(
            "companion_missing", "an SNANA HEAD file without its PHOT file", file=source.name, field="PHOTFILE",
            fix=f"give {wanted} along",
        )  # fmt: skip
    if len(phots) > 1:
        raise BadInput(
            "statement_conflict", f"several PHOT files fit: {', '.join(p.name for p in phots)}", file=source.name,
            fix=f"give {wanted} alone",
        )  # fmt: skip
    phot = load_columns(phots[0])
    first, last = (head.named(f"PTROBS_{end}").numbers() for end in ("MIN", "MAX"))
    if len(last) and np.nanmax(last) > phot.rows:
        raise BadInput(
            "shape_mismatch",
            f"epochs up to row {int(np.nanmax(last))}, but {phots[0].name} has {phot.rows} rows",
            file=source.name, field="PTROBS_MAX", fix="give the PHOT file that was written with this HEAD file",
        )  # fmt: skip
    epochs = _Epochs(phot)
    source.make(head.rows)
    ids = _snids(head, source)
    seen = Counter(ids)
    items: list[Observation | AlbireoError] = []
    for i, snid in enumerate(ids):
        try:
            if seen[snid] > 1:
                raise BadInput("id_duplicate", f"{seen[snid]} rows have SNID {snid!r}", field="SNID")
            labels = {c.name: c.values[i].item() for c in head.columns if c.values.ndim == 1 and not c.missing[i]}
            labels["PHOT_FILE"] = phots[0].name
            rows = slice(int(first[i]) - 1, int(last[i]))
            if first[i] < 1 or last[i] < first[i]:
                raise BadInput("no_epoch", f"no row of PHOT belongs to {snid!r}", field="PTROBS_MIN")
            if "NOBS" in labels and rows.stop - rows.start != labels["NOBS"]:
                raise BadInput(
                    "shape_mismatch", f"NOBS = {labels['NOBS']}, but {rows.stop - rows.start} rows", field="NOBS"
                )
            items.append(_observation(snid, labels, epochs.of(rows), head.meta, options, source, i))
        except AlbireoError as error:
            items.append(about(error, snid, source.name))
    return items


def read_phot(source: Source, options: ReadOptions, companions: Sequence[Source]) -> list[Observation | AlbireoError]:
    """A PHOT file that no HEAD claimed: its rows cannot be told apart."""
    name = re.sub(r"phot", lambda m: {"PHOT": "HEAD", "Phot": "Head"}.get(m[0], "head"), source.name, flags=re.I)
    raise BadInput(
        "companion_missing", "an SNANA PHOT file without its HEAD file", file=source.name, field="PTROBS_MIN",
        fix=f"give {name if name != source.name else 'its HEAD file'} along",
    )  # fmt: skip


def _stem(name: str) -> str:
    """A file name in lower case without folders, .gz and .fits."""
    return re.sub(r"(\.fits?)?(\.gz)?$", "", PurePath(name.strip().lower()).name)


def _phot_name(head: str) -> str:
    stem = _stem(head)
    return re.sub(r"head", "phot", stem) if "head" in stem else ""


def _snids(head: Columns, source: Source) -> list[str]:
    column = head.named("SNID")
    if column.values.dtype.kind == "f":
        raise BadInput("id_inexact", "SNID is a floating-point column", file=source.name, field="SNID")
    return column.texts()


class _Epochs:
    """The columns of PHOT that are used, as plain arrays."""

    def __init__(self, phot: Columns) -> None:
        band = phot.find("flt") or phot.find("band")
        assert band is not None
        self.band = band.texts()
        self.time = phot.named("MJD").numbers()
        self.flux = phot.named("FLUXCAL").numbers()
        self.error = phot.named("FLUXCALERR").numbers()
        flags = phot.find("photflag")
        self.photflag = None if flags is None else flags.values.astype(np.int64)

    def of(self, rows: slice) -> dict[str, Any]:
        if (self.time[rows] == SEPARATOR_MJD).any():
            raise BadInput(
                "shape_mismatch", "a separator row (MJD = -777) lies among the epochs", field="PTROBS_MAX",
                fix="give the PHOT file that was written with this HEAD file",
            )  # fmt: skip
        return {
            "time": self.time[rows],
            "band": self.band[rows],
            "flux": self.flux[rows],
            "flux_err": self.error[rows],
            "photflag": None if self.photflag is None else self.photflag[rows],
        }


# Text


def is_text(source: Source) -> bool:
    """SNANA text: keys SNID and VARLIST (or VARNAMES), and rows that begin with OBS."""
    head = source.content[: 1 << 18]
    return bool(
        b"\x00" not in head[:4096]
        and re.search(rb"(?m)^\s*SNID:", head)
        and re.search(rb"(?m)^\s*(VARLIST|VARNAMES):", head)
        and re.search(rb"(?m)^\s*OBS:", head)
    )


def read_text(source: Source, options: ReadOptions, companions: Sequence[Source]) -> list[Observation | AlbireoError]:
    """One observation per object block of the text."""
    blocks = _blocks(source.text())
    source.make(len(blocks))
    seen = Counter(block.header.get("SNID", "") for block in blocks)
    items: list[Observation | AlbireoError] = []
    for i, block in enumerate(blocks):
        snid = block.header.get("SNID", "")
        try:
            if not snid:
                raise BadInput("value_missing", f"object {i} has no SNID", field="SNID")
            if seen[snid] > 1:
                raise BadInput("id_duplicate", f"{seen[snid]} objects have SNID {snid!r}", field="SNID")
            labels = {key: _value(text) for key, text in block.header.items()}
            items.append(_observation(snid, labels, block.epochs(), {}, options, source, i))
        except AlbireoError as error:
            items.append(about(error, snid, source.name))
    return items


class _Block:
    """The header words and the rows of one object."""

    def __init__(self) -> None:
        self.header: dict[str, str] = {}
        self.columns: list[str] = []
        self.rows: list[list[str]] = []

    def epochs(self) -> dict[str, Any]:
        """The rows as arrays. NVAR is not looked at: real files say 7 above rows of 9 values; VARLIST tells."""
        stated = self.header.get("NOBS")
        if stated is not None and stated != str(len(self.rows)):
            raise BadInput(
                "damaged_file", f"NOBS is {stated}, but there are {len(self.rows)} rows", field="NOBS",
                fix="fetch the file again",
            )  # fmt: skip
        for row in self.rows:
            if len(row) != len(self.columns):
                raise BadInput(
                    "damaged_file", f"a row has {len(row)} values for {len(self.columns)} columns", field="OBS"
                )
        if not self.rows:
            raise BadInput("no_epoch", "no OBS row", field="OBS")
        band = next((name for name in ("FLT", "BAND", "FILTER") if name in self.columns), "BAND")
        text = {name: [row[j] for row in self.rows] for j, name in enumerate(self.columns)}
        for name in ("MJD", band, "FLUXCAL", "FLUXCALERR"):
            if name not in text:
                raise BadInput("column_missing", f"VARLIST has no {name}", field=name)
        try:
            numbers = {name: np.array(text[name], np.float64) for name in ("MJD", "FLUXCAL", "FLUXCALERR")}
            photflag = np.array(text["PHOTFLAG"], np.int64) if "PHOTFLAG" in text else None
        except ValueError as error:
            raise BadInput("damaged_file", f"an OBS row: {error}", field="OBS", fix="fetch the file again") from error
        return {
            "time": numbers["MJD"],
            "band": text[band],
            "flux": numbers["FLUXCAL"],
            "flux_err": numbers["FLUXCALERR"],
            "photflag": photflag,
        }


def _blocks(text: str) -> list[_Block]:
    """The objects of a text: a block ends at END, or where SURVEY or SNID comes again after rows."""
    blocks: list[_Block] = []
    block: _Block | None = None
    documentation = False
    for line in text.splitlines():
        words = line.split("#", 1)[0].split()
        if words and words[0].startswith("DOCUMENTATION"):
            documentation = words[0] == "DOCUMENTATION:"
            continue
        if not words or documentation:
            continue
        key = words[0].rstrip(":") if words[0].endswith(":") else ""
        if key == "END":
            block = None
            continue
        if block is None or (block.rows and key in _BLOCK_START):
            block = _Block()
            blocks.append(block)
        if key == "OBS":
            block.rows.append(words[1:])
        elif key in ("VARLIST", "VARNAMES"):
            block.columns = words[1:]
        else:
            block.header |= _keys(words)
    return [block for block in blocks if "SNID" in block.header or block.rows]


def _keys(words: list[str]) -> dict[str, str]:
    """The keys of a line: "RA: 1.5 deg DECL: 2" gives both; "0.02 +- 0.001 (CMB)" gives a value and <key>_ERR."""
    found: dict[str, str] = {}
    starts = [j for j, word in enumerate(words) if re.fullmatch(r"[A-Za-z]\w*:", word)]
    for j, end in pairwise([*starts, len(words)]):
        key, values = words[j][:-1], words[j + 1 : end]
        if values:
            found[key] = values[0]
            if len(values) > 2 and values[1] == "+-":
                found[f"{key}_ERR"] = values[2]
    return found


def _value(text: str) -> Any:
    """A header word as a number if it is one; names that look like numbers are read from the text itself."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


# Both


def _observation(
    snid: str,
    labels: Mapping[str, Any],
    epochs: Mapping[str, Any],
    cards: Mapping[str, Any],
    options: ReadOptions,
    source: Source,
    row: int,
) -> Observation:
    said = str(labels.get("SURVEY") or cards.get("survey") or "").strip() or None
    survey = said or options.survey
    bands = [band_name(text, survey) for text in epochs["band"]]
    corrected, extinction_flag = cards.get("mwebv_applyflag"), options.extinction_corrected
    if corrected is not None and extinction_flag is not None and bool(corrected) != extinction_flag:
        raise BadInput(
            "statement_conflict", f"the file says MWEBV_APPLYFLAG = {corrected}", field="extinction_corrected",
            fix="leave the option out",
        )  # fmt: skip
    mask = int(cards.get("photflag_detect") or 0)
    photflag = epochs["photflag"]
    detected = (photflag & mask) != 0 if mask and photflag is not None else None
    flux, error = (np.where(np.isin(epochs[k], (-9.0, -777.0)) & (epochs["flux_err"] < 0), np.nan, epochs[k])
                   for k in ("flux", "flux_err"))  # fmt: skip
    curve, flags = light_curve(
        time=epochs["time"],
        band=bands,
        flux=flux,
        flux_err=error,
        zero_point=np.full(len(bands), ZERO_POINT),
        system=[_system(band, options) for band in bands],
        detected=detected,
        extinction_corrected=bool(corrected if corrected is not None else extinction_flag),
        kind="difference",
        time_field="MJD",
    )
    metadata = _metadata(labels)
    if said:
        metadata["survey"] = said
    if photflag is not None and photflag.any():
        metadata["photflag"] = tuple(photflag[np.argsort(epochs["time"], kind="stable")].tolist())
    ra, dec = _position(labels)
    return Observation(
        id=snid,
        data={"lightcurve": curve},
        ra=ra,
        dec=dec,
        metadata=metadata,
        provenance={"lightcurve": source.provenance("snana", survey=survey, row=row)},
        flags=flags,
    )


def _system(band: str, options: ReadOptions) -> str:
    """FLUXCAL is in the native system of the band."""
    native = band_system(band)
    if native and options.system and native != options.system:
        raise BadInput("statement_conflict", f"{band} is in {native}, the option says {options.system}", field="system")
    if native is None and options.system is None:
        raise BadInput(
            "convention_missing", f"the magnitude system of {band} is not stated", field="system",
            fix="state system: AB or Vega",
        )  # fmt: skip
    return str(native or options.system)


def _metadata(labels: Mapping[str, Any]) -> dict[str, Any]:
    """Header values that are values, lower case. `redshift` is the heliocentric one if there is one, as in spectra."""
    metadata: dict[str, Any] = {}
    for name, value in labels.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name.lower() in _INTERNAL or (number and (value in NO_VALUE or not abs(value) <= sys.float_info.max)):
            continue
        metadata[name.lower()] = value.strip() if isinstance(value, str) else value
    frames = (
        ("redshift_helio", "heliocentric"), ("redshift_final", "CMB"), ("redshift_cmb", "CMB"), ("redshift", "unstated")
    )  # fmt: skip
    for key, frame in frames:
        if isinstance(metadata.get(key), int | float) and metadata[key] > -1:
            metadata |= {"redshift": float(metadata[key]), "redshift_frame": frame}
            break
    return metadata


def _position(labels: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """ra, dec in degrees; absent if either is, or if RA is no right ascension (-9 is a declination, but no RA)."""
    ra, dec = labels.get("RA"), labels.get("DEC", labels.get("DECL"))
    if not isinstance(ra, int | float) or not isinstance(dec, int | float) or ra in NO_VALUE:
        return None, None
    if not (0 <= ra <= 360 and -90 <= dec <= 90):
        raise BadInput("value_out_of_range", f"RA {ra}, DEC {dec}", field="RA", fix="give degrees, RA from 0 to 360")
    return float(ra) % 360.0, float(dec)
