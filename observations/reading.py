"""Files in, observations out: the format is told by content, and a bad object or file fails alone.

FORMATS     the table of formats, in the order they are tried
read_files  what the doors call
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from albireo.observations import gaia, images, lightcurves, packed, shards, spectra, table_catalogs, tables
from albireo.observations.errors import AlbireoError, BadInput, TooLarge, UnknownFormat
from albireo.observations.modalities import LABEL_KEYS, modality
from albireo.observations.observation import Observation, Scalar
from albireo.observations.options import ReadOptions
from albireo.observations.source import Source

Item = Observation | AlbireoError


@dataclass(frozen=True)
class Format:
    """One row: how a format is recognised and read.

    sniff      true if the content is of this format; cheap, never raises on foreign bytes
    read       (source, options, companions) -> one item per object, in file order; raises if nothing can be read
    completes  (source, other, options) -> true if `other` is a companion that `read` wants beside `source`
               (a PHOT table, a redrock table, a list of positions); such a file is not read by itself
    """

    name: str
    description: str
    sniff: Callable[[Source], bool]
    read: Callable[[Source, ReadOptions, Sequence[Source]], list[Item]]
    completes: Callable[[Source, Source, ReadOptions], bool] = lambda source, other, options: False


FORMATS: tuple[Format, ...] = (
    *(Format(*row) for row in shards.FORMATS),
    *(Format(*row) for row in images.FORMATS),
    *(Format(*row) for row in spectra.FORMATS),
    *(Format(*row) for row in gaia.FORMATS),
    *(Format(*row) for row in lightcurves.FORMATS),
    *(Format(*row) for row in packed.FORMATS),
    *(Format(*row) for row in table_catalogs.FORMATS),
    *(Format(*row) for row in tables.FORMATS),
)
"""Special formats before general ones: tables take whatever table is left."""


@dataclass(frozen=True)
class FileReport:
    """What became of one file: its format, its objects, or why it could not be read.

    `companion_of` names the file that this one completed.
    """

    file: str
    format: str | None
    items: tuple[Item, ...] = ()
    error: AlbireoError | None = None
    companion_of: str | None = None

    @property
    def observations(self) -> list[Observation]:
        return [item for item in self.items if isinstance(item, Observation)]


def detect(source: Source) -> Format:
    """The format of a file, by its content."""
    for row in FORMATS:
        if row.sniff(source):
            return row
    raise UnknownFormat(
        "unknown_format",
        f"begins with {source.content[:16]!r}; no known format begins or is laid out so",
        file=source.name,
        fix="accepted: " + "; ".join(row.description for row in FORMATS),
    )


def read_files(sources: Sequence[Source], options: ReadOptions | None = None) -> list[FileReport]:
    """Read files together, so that those which come in pairs find each other; one report per file, in order.

    Never raises for what is in a file: the report carries the error, and objects that fail stand in `items`.
    """
    options = options or ReadOptions()
    kinds: list[Format | AlbireoError] = []
    for source in sources:
        try:
            kinds.append(detect(source))
        except AlbireoError as error:
            kinds.append(error.at(file=source.name))
        except (MemoryError, RecursionError) as error:
            kinds.append(_too_much(error, source))
    partners: dict[int, list[int]] = {}
    owner: dict[int, int] = {}
    for i, row in enumerate(kinds):
        if isinstance(row, Format):
            partners[i] = [j for j, other in enumerate(sources) if j != i and row.completes(sources[i], other, options)]
            owner.update(dict.fromkeys(partners[i], i))
    reports = []
    for i, (source, row) in enumerate(zip(sources, kinds, strict=True)):
        if isinstance(row, AlbireoError):
            reports.append(FileReport(source.name, None, error=row))
        elif i in owner:
            reports.append(FileReport(source.name, row.name, companion_of=sources[owner[i]].name))
        else:
            reports.append(_read_one(source, row, options, [sources[j] for j in partners[i]]))
    return reports


def _read_one(source: Source, row: Format, options: ReadOptions, companions: Sequence[Source]) -> FileReport:
    try:
        items = row.read(source, options, companions)
        if not items:
            raise BadInput("empty_file", "the file holds no object", file=source.name)
    except AlbireoError as error:
        return FileReport(source.name, row.name, error=error.at(file=source.name))
    except (MemoryError, RecursionError) as error:
        return FileReport(source.name, row.name, error=_too_much(error, source))
    done: list[Item] = []
    for item in items:
        try:
            done.append(_with_tokens(item, options) if isinstance(item, Observation) else item.at(file=source.name))
        except AlbireoError as error:
            done.append(error.at(file=source.name))
    return FileReport(source.name, row.name, tuple(done))


def _too_much(error: Exception, source: Source) -> AlbireoError:
    """A file that takes more memory, or is nested deeper, than there is room for, where nothing else has told so."""
    what = "memory" if isinstance(error, MemoryError) else "nesting"
    told = TooLarge("too_large", f"reading it takes more {what} than there is", file=source.name)
    told.__cause__ = error
    return told


def _with_tokens(observation: Observation, options: ReadOptions) -> Observation:
    """Metadata becomes a token only when `options.tokens` names it."""
    if not options.tokens:
        return observation
    data = dict(observation.data)
    for name in options.tokens:
        row = modality(name)
        if row.key not in LABEL_KEYS:
            raise BadInput("option_invalid", f"tokens={name!r}", field="tokens", fix="use redshift, ra or dec")
        value = {"tok_z": observation.metadata.get("redshift"), "tok_ra": observation.ra, "tok_dec": observation.dec}[
            row.key
        ]
        if value is None:
            raise BadInput("value_missing", f"object {observation.id!r} has no {name}", field=name)
        data[row.key] = Scalar(float(value), row.unit)
    return replace(observation, data=data)
