"""Items of a request as subjects: parts, base64 files, values and tables, all through the same readers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from albireo.observations.arrow import FILE_MAGIC, STREAM_MAGIC
from albireo.observations.errors import AlbireoError, BadInput, TooLarge
from albireo.observations.modalities import MODALITIES, modality
from albireo.observations.options import ReadOptions
from albireo.observations.reading import FileReport, read_files
from albireo.observations.source import Source
from albireo.observations.stated import stated_table
from albireo.service import schemas
from albireo.service.subjects import Subject, as_one, from_reports, read_opened

POSITION_TOLERANCE = 3.0
"""Arcsec between the position stated and the file's above which a warning says so."""

KINDS = {
    "photometry": "scalar",
    "image": "image",
    "spectrum": "spectrum",
    "lightcurve": "lightcurve",
    "gaia.xp": "coefficients",
}
"""Names of a kind, where the survey is left to the reader -> kind of the table."""

_MAGIC: dict[str, bytes | tuple[bytes, ...]] = {
    "fits": b"SIMPLE",
    "arrow": (FILE_MAGIC, STREAM_MAGIC),
    "parquet": b"PAR1",
    "avro": b"Obj\x01",
    "npz": b"PK",
    "votable": b"<",
    "ecsv": b"# %ECSV",
}


@dataclass(frozen=True)
class Part:
    """One file of a multipart body: the field's name, the file's name, and its bytes or why there are none."""

    name: str
    filename: str
    source: Source | AlbireoError


@dataclass
class Gatherer:
    """Reads the items of one request; a file that many items name is read once."""

    parts: Sequence[Part]
    options: ReadOptions
    used: set[int] = field(default_factory=set)
    _read: dict[Any, list[Subject]] = field(default_factory=dict)

    def everything(self) -> list[Subject]:
        """Every object of every part, read together so that companions find each other."""
        return self.reports_of_all()[1]

    def reports_of_all(self) -> tuple[list[FileReport], list[Subject]]:
        """The file reports of all parts, in order, and their subjects."""
        self.used.update(range(len(self.parts)))
        names = [part.filename for part in self.parts]
        reports = read_opened(names, [part.source for part in self.parts], self.options)
        return reports, from_reports(reports)

    def items(self, items: Sequence[schemas.Item]) -> list[Subject]:
        """The objects of the items, in order. An item that cannot be read fails alone."""
        subjects = [subject for n, item in enumerate(items) for subject in self.item(item, f"items.{n}")]
        self.check_used()
        return subjects

    def item(self, item: schemas.Item, where: str) -> list[Subject]:
        """The objects of one item, which errors call `where`; one failed subject if it cannot be read."""
        try:
            return self._item(item, where)
        except AlbireoError as error:
            return [Subject(item.id, None, error=error.at(field=where))]

    def check_used(self) -> None:
        """BadInput if a file was sent that no item names: nothing is dropped in silence."""
        idle = [part.name for i, part in enumerate(self.parts) if i not in self.used]
        if idle:
            raise BadInput(
                "request_invalid",
                f"no item names the part {idle[0]!r}",
                field=idle[0],
                fix=f'add {{"ref": "part:{idle[0]}"}} to an item, or send the files without items',
            )

    def _item(self, item: schemas.Item, where: str) -> list[Subject]:
        groups: dict[str, tuple[ReadOptions, list[Source], list[schemas.Input]]] = {}
        for m, given in enumerate(item.inputs):
            at = f"{where}.inputs.{m}"
            options = self._options(given)
            group = groups.setdefault(repr(options), (options, [], []))
            group[1].append(self._source(given, item, at))
            group[2].append(given)
        subjects: list[Subject] = []
        for options, sources, inputs in groups.values():
            found = self._subjects(sources, options)
            wanted = next((given.object for given in inputs if given.object is not None), None)
            if wanted is not None:
                found = [_chosen(found, wanted)]
            _check_modalities(found, inputs)
            subjects += found
        if len(item.inputs) == 1 and len(subjects) > 1:
            if item.id is not None:
                raise BadInput(
                    "request_invalid",
                    f"the file holds {len(subjects)} objects, the item has one id",
                    field="id",
                    fix='say which by "object", or leave the id out to get all of them',
                )
            return [_with_meta(subject, item.meta) for subject in subjects]
        return [_with_meta(as_one(subjects, item.id), item.meta)]

    def _options(self, given: schemas.Input) -> ReadOptions:
        """The request's options, the input's own over them, and the survey that a modality's name states."""
        options = self.options
        if given.read is not None:
            options = override(options, given.read)
        if given.modality is not None and given.modality not in KINDS:
            survey = modality(given.modality).survey
            if options.survey is None and survey != "any":
                options = replace(options, survey=survey)
        return options

    def _source(self, given: schemas.Input, item: schemas.Item, at: str) -> Source:
        named = [name for name in ("ref", "b64", "values", "table") if getattr(given, name) is not None]
        if len(named) != 1:
            raise BadInput("request_invalid", "give exactly one of ref, b64, values and table", field=at)
        if given.ref is not None:
            source = self._part(given.ref, at)
        elif given.b64 is not None:
            source = Source(given.filename or f"{at}.b64", schemas.decoded(given.b64, f"{at}.b64"))
        else:
            source = _tabulated(given, item, at)
        magic = _MAGIC.get(given.format or "")
        if magic is not None and not source.content.lstrip().startswith(magic):
            raise BadInput(
                "request_invalid",
                f"said to be {given.format}, begins with {source.content[:16]!r}",
                file=source.name,
                field=f"{at}.format",
                fix="leave `format` out: the content tells it",
            )
        return source

    def _part(self, ref: str, at: str) -> Source:
        name = ref.removeprefix("part:")
        found = self._places.get(name, [])
        if len(found) != 1:
            known = ", ".join(part.name for part in self.parts) or "none"
            why = "no part" if not found else f"{len(found)} parts"
            raise BadInput(
                "request_invalid", f"{why} of this body called {name!r}", field=f"{at}.ref", fix=f"parts: {known}"
            )
        self.used.add(found[0])
        source = self.parts[found[0]].source
        if isinstance(source, AlbireoError):
            raise source
        return source

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        """Name of a part or of its file -> the parts called so."""
        places: dict[str, list[int]] = {}
        for i, part in enumerate(self.parts):
            for name in {part.name, part.filename}:
                places.setdefault(name, []).append(i)
        return places

    def _subjects(self, sources: Sequence[Source], options: ReadOptions) -> list[Subject]:
        key = (tuple(source.sha256 + source.name for source in sources), repr(options))
        if key not in self._read:
            self._read[key] = from_reports(read_files(sources, options))
        return self._read[key]


def check_count(n: int, limit: int) -> None:
    """TooLarge if a request is about more objects than one may be."""
    if n > limit:
        raise TooLarge(
            "too_large",
            f"{n} objects, the limit is {limit} a request",
            field="items",
            fix="send fewer at a time, or raise ALBIREO_MAX_ITEMS",
        )


def override(options: ReadOptions, own: ReadOptions) -> ReadOptions:
    """`options` with every field that `own` states."""
    values = {name: getattr(own, name) for name in _OPTIONS}
    stated = {name: value for name, value in values.items() if value != getattr(_UNSET, name)}
    return replace(options, **stated) if stated else options


_OPTIONS = tuple(f.name for f in fields(ReadOptions))
_UNSET = ReadOptions()


def _chosen(subjects: Sequence[Subject], wanted: str) -> Subject:
    for subject in subjects:
        if subject.id == wanted:
            return subject
    have = ", ".join(str(subject.id) for subject in subjects[:5])
    raise BadInput("request_invalid", f"the file has no object {wanted!r}", field="object", fix=f"it has {have}, ...")


def _check_modalities(subjects: Sequence[Subject], inputs: Sequence[schemas.Input]) -> None:
    """What an input states it is must be among what was read: of every object of a lone input, of one of several."""
    read = [subject for subject in subjects if subject.observation is not None]
    for given in inputs:
        others = [subject for subject in read if not _is_of(subject, given.modality)]
        if others and (len(inputs) == 1 or len(others) == len(read)):
            assert others[0].observation is not None
            names = ", ".join(MODALITIES[key].name for key in others[0].observation.data) or "no modality"
            raise BadInput(
                "request_invalid",
                f"said to be {given.modality}, read as {names}",
                file=others[0].file,
                field="modality",
                fix="correct or leave out `modality`",
            )


def _is_of(subject: Subject, name: str | None) -> bool:
    """True if an object has a modality, by the name of it or of its kind; None is any."""
    if name is None or subject.observation is None:
        return True
    kind, data = KINDS.get(name), subject.observation.data
    return any(MODALITIES[key].kind == kind for key in data) if kind else modality(name).key in data


def _with_meta(subject: Subject, meta: schemas.Meta) -> Subject:
    """The position and labels that the item states, over the file's; a warning if the positions differ."""
    observation = subject.observation
    if observation is None:
        return subject
    if (meta.ra is None) != (meta.dec is None):
        return subject.failed(BadInput("request_invalid", "ra and dec belong together", field="meta"))
    warnings = subject.warnings
    ra, dec = observation.ra, observation.dec
    if meta.ra is not None and meta.dec is not None:
        off = 0.0 if ra is None or dec is None else _separation(meta.ra, meta.dec, ra, dec)
        if off > POSITION_TOLERANCE:
            told = f"the position stated is {off:.1f} arcsec from the file's; the one stated is kept"
            warnings += (BadInput("position_differs", told, field="meta"),)
        ra, dec = meta.ra, meta.dec
    observation = replace(observation, ra=ra, dec=dec, metadata={**observation.metadata, **meta.labels})
    return replace(subject, observation=observation, warnings=warnings)


def _separation(ra1: float, dec1: float, ra2: float, dec2: float) -> float:
    """Arcsec between two positions in degrees, by haversine: exact for small angles."""
    a1, d1, a2, d2 = map(math.radians, (ra1, dec1, ra2, dec2))
    h = math.sin((d2 - d1) / 2) ** 2 + math.cos(d1) * math.cos(d2) * math.sin((a2 - a1) / 2) ** 2
    return math.degrees(2 * math.asin(min(1.0, math.sqrt(h)))) * 3600


def _tabulated(given: schemas.Input, item: schemas.Item, at: str) -> Source:
    """Values or a table as the ECSV file that states them: columns with units, read like any file."""
    units = dict(given.units)
    columns: dict[str, list[Any]] = {}
    if given.table is not None:
        columns |= given.table
        lengths = {len(column) for column in columns.values()}
        if len(lengths) != 1 or lengths == {0}:
            raise BadInput("shape_mismatch", f"columns of lengths {sorted(lengths)}", field=f"{at}.table")
    else:
        for name, value in (given.values or {}).items():
            stem = name.removesuffix("_unit")
            if name.endswith("_unit") and stem in (given.values or {}):
                units[stem] = str(value)
            else:
                columns[name] = [value]
    if given.values is not None:
        stated = {"id": item.id, "ra": item.meta.ra, "dec": item.meta.dec}
        columns = {
            name: [value] for name, value in stated.items() if value is not None and name not in columns
        } | columns
        units |= {name: "deg" for name in ("ra", "dec") if name in columns and name not in units}
    lost = units.keys() - columns.keys()
    if lost:
        raise BadInput("request_invalid", f"a unit for {min(lost)!r}, which is not there", field=f"{at}.units")
    return stated_table(given.filename or f"{at}.ecsv", columns, units)
