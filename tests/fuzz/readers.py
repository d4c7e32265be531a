"""Every reader of what comes from outside: how it is called with an input, and the inputs that changes begin with.

READERS  the table
find     one of them, or one of those that are bad on purpose (planted.py)

A reader gives what came of an input as facts: errors that stand in the place of objects, and what tells answers apart.
It raises what cannot be read. Reading goes through the doors that users have, with the limits of bounds.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from albireo.observations.errors import AlbireoError
from albireo.observations.observation import Observation, Payload
from albireo.observations.options import ReadOptions
from albireo.observations.reading import FileReport, read_files
from albireo.observations.source import Source
from tests.fuzz import bounds
from tests.fuzz import seeds as made
from tests.fuzz.mutation import Parts


@dataclass(frozen=True)
class Reader:
    """One row.

    what   is read
    seeds  () -> inputs that are good, or nearly
    read   input -> facts
    """

    name: str
    what: str
    seeds: Callable[[], Sequence[Parts]]
    read: Callable[[Parts], Iterator[Any]]


def stated(text: bytes) -> ReadOptions:
    """Options in JSON, as a request states them."""
    from pydantic import ValidationError

    from albireo.service.inputs import override
    from albireo.service.problems import from_validation
    from albireo.service.schemas import Options

    try:
        options = Options.model_validate_json(b'{"read": %s}' % (text or b"{}"))
    except ValidationError as error:
        raise from_validation(error.errors()) from error
    return override(ReadOptions(), options.read or ReadOptions())


def files(parts: Parts) -> Iterator[Any]:
    """Files together, after the options: what HTTP, gRPC and the command line do with them."""
    options = stated(parts[0])
    sources = [Source(f"f{k}", part, bounds.FILE) for k, part in enumerate(parts[1:])]
    for report in read_files(sources, options):
        yield from of_report(report)


def of_report(report: FileReport) -> Iterator[Any]:
    """The errors of a file and of its objects; of what was read, which fields it has."""
    yield report.format, report.companion_of is not None, min(len(report.items), 3)
    if report.error is not None:
        yield report.error
    for item in report.items[:200]:
        yield item if isinstance(item, AlbireoError) else of_object(item)


def of_object(one: Observation) -> tuple[Any, ...]:
    """What an object has: modalities with the shapes that say something, flags, names of metadata."""
    assert isinstance(one.id, str)
    data = tuple((key, _about(payload)) for key, payload in sorted(one.data.items()))
    return data, one.flags, tuple(sorted(one.metadata)), tuple(sorted(one.extras)), one.ra is None


def _about(payload: Payload) -> tuple[Any, ...]:
    bands, ivar = getattr(payload, "bands", ()), getattr(payload, "ivar", None)
    return type(payload).__name__, len(bands), ivar is not None


def service(name: str) -> Callable[[Parts], Iterator[Any]]:
    """A reader of the service, which is loaded when it is first asked: tests/fuzz/services.py."""

    def read(parts: Parts) -> Iterator[Any]:
        from tests.fuzz import services

        facts: Iterator[Any] = getattr(services, name)(parts)
        return facts

    return read


def service_seeds(name: str) -> Callable[[], Sequence[Parts]]:
    def seeds() -> Sequence[Parts]:
        from tests.fuzz import service_seeds

        found: Sequence[Parts] = getattr(service_seeds, name)()
        return found

    return seeds


READERS: tuple[Reader, ...] = (
    Reader("images", "FITS images, mosaics with tables of positions, compressed images", made.images, files),
    Reader("sdss", "SDSS and BOSS spectra: spec, spSpec, spPlate", made.sdss, files),
    Reader("lamost", "LAMOST spectra", made.lamost, files),
    Reader("desi", "DESI coadds with redrock files", made.desi, files),
    Reader("spectra", "tables that are a spectrum", made.plain_spectra, files),
    Reader("gaia", "Gaia XP coefficients", made.gaia, files),
    Reader("snana", "SNANA: HEAD with PHOT, and text", made.snana, files),
    Reader("alerts", "ZTF and LSST alerts in Avro", made.alerts, files),
    Reader("lightcurves", "PLAsTiCC and tables of epochs", made.lightcurves, files),
    Reader("npz", "NumPy archives", made.archives, files),
    Reader("tables", "tables in CSV and ECSV, catalogs of cutouts", made.tables, files),
    Reader("columns", "tables in Parquet and Arrow", made.columns, files),
    Reader("votables", "tables in VOTable and FITS", made.votables, files),
    Reader("shards", "whole observations in Parquet and Arrow", made.shards, files),
    Reader("bombs", "files that unfold to much", made.bombs, files),
    Reader("spans", "large tables span by span, and units of bulk runs", made.spans, service("spans")),
    Reader("labels", "label tables of heads", made.labels, service("labels")),
    Reader("heads", "head files, and what is asked of them", service_seeds("heads"), service("heads")),
    Reader("checkpoints", "checkpoint folders", service_seeds("checkpoints"), service("checkpoints")),
    Reader("keys", "files of API keys", service_seeds("keys"), service("keys")),
    Reader("payloads", "payloads and results of tokenizer workers", service_seeds("payloads"), service("payloads")),
    Reader("oip", "requests of the Open Inference Protocol, REST and gRPC", service_seeds("oip"), service("oip")),
    Reader("grpc", "messages of albireo.v1", service_seeds("grpc"), service("grpc")),
    Reader("http", "bodies of the HTTP door: JSON, forms, files, encodings", service_seeds("http"), service("http")),
    Reader("tokens", "tokens read back from JSON, npz and tables", service_seeds("tokens"), service("tokens")),
    Reader("client", "the client's options, and answers of a service", service_seeds("client"), service("client")),
    Reader("storage", "collection files and token caches", service_seeds("storage"), service("storage")),
)
"""Of readers of files, the first part of an input are the options."""


def find(name: str) -> Reader:
    """A reader by its name. KeyError if there is none."""
    from tests.fuzz.planted import PLANTED

    return {reader.name: reader for reader in (*READERS, *PLANTED)}[name]
