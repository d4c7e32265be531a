"""Answers of the service as tables: one row an object, its error beside it, and how it was computed in `meta`.

AnswerTable      what all have: ok(), failed(), errors(), write() and read()
EmbeddingTable   id, ra, dec, embedding, status, QA flags, modalities, tokens
NeighborTable    the neighbours of each query
ValidationTable  what was understood of each object
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from astropy import units
from astropy.io import fits
from astropy.io.fits.verify import VerifyError
from astropy.io.registry import IORegistryError
from astropy.table import QTable
from astropy.table.meta import YamlParseError
from numpy.typing import NDArray

from albireo.observations.errors import AlbireoError, BadInput, Conflict, NotFound
from albireo.observations.fits_bounds import MAX_HEADER_BYTES, check_beginning
from albireo.observations.parquet_footer import footer_of, row_groups
from albireo.observations.spaces import same_space
from albireo.service.client_requests import Batch
from albireo.service.client_transport import rebuilt

CARD = "ALBIREO"
"""Card of a FITS table that holds the metadata as JSON."""

JSON = "json_columns"
"""Entry of the metadata that names columns of Python objects, written as JSON."""

ERROR = {"error_code": "code", "error_message": "message", "error_field": "field", "error_fix": "fix"}
"""Column -> entry of an error."""


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Around what reads a file back: its errors, and those of astropy and Arrow, are ours."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound("file_not_found", "there is no such file", file=str(path)) from error
    except (OSError, ValueError, TypeError, LookupError, AttributeError, EOFError, OverflowError, RecursionError,
            AssertionError, IORegistryError, VerifyError, YamlParseError, pa.ArrowException) as error:  # fmt: skip
        told = str(error).partition("\n")[0] or type(error).__name__
        raise BadInput("damaged_file", told, file=str(path), fix="name a file that `write` wrote") from error


def _opened(path: str | Path, **options: Any) -> Any:
    """A file as astropy reads it, after what it states of sizes is checked; of FITS the first table."""
    with Path(path).open("rb") as stream:
        head = stream.read(2 * MAX_HEADER_BYTES)
    if head[:4] == b"PAR1":
        row_groups(footer_of(Path(path)))
    if options or head[:6] != b"SIMPLE":
        return QTable.read(path, **options)
    check_beginning(head)
    with fits.open(path, memmap=False) as hdus:
        place, there = hdus[1].fileinfo(), Path(path).stat().st_size
        # astropy takes memory for so many rows of these columns, whatever the header's other sizes say.
        rows = hdus[1].columns.dtype.itemsize * hdus[1].header["NAXIS2"]
        if place["datLoc"] + max(place["datSpan"], rows) > there:
            raise ValueError("the file ends within its table")
        return QTable.read(hdus[1], format="fits")


class AnswerTable(QTable):  # type: ignore[misc]
    """One row an object or a part of one, in the order of what was given. `meta` says what computed it.

    Texts that are lists (flags, modalities) have commas between their words; what is not known is NaN or empty.
    """

    def ok(self) -> Self:
        """The rows of objects that are good, whole or in part."""
        return self._where(self["status"] != "error")

    def failed(self) -> Self:
        """The rows of objects that failed."""
        return self._where(self["status"] == "error")

    def errors(self) -> list[AlbireoError]:
        """The errors of the rows that failed, as they were raised."""
        return [
            rebuilt({name: str(row[column]) for column, name in ERROR.items()} | {"file": str(row["file"])})
            for row in self.failed()
        ]

    def write(self, path: str | Path, format: str | None = None, **options: Any) -> None:
        """Write to .parquet, .fits or .ecsv, so that `read` gives the same table; other formats as astropy does."""
        form = format or {".parquet": "parquet", ".fits": "fits", ".fit": "fits", ".ecsv": "ascii.ecsv"}.get(
            Path(path).suffix.lower()
        )
        if form not in ("parquet", "fits", "ascii.ecsv"):
            QTable(self).write(path, format=format, **options)
            return
        plain = QTable(self, copy=False)
        objects = [name for name in plain.colnames if plain[name].dtype.kind == "O"]
        plain.meta = {**self.meta, JSON: objects} if objects else dict(self.meta)
        for name in objects:
            plain[name] = [json.dumps(cell, default=np.ndarray.tolist) for cell in plain[name]]
        if form == "fits":
            plain.meta = {CARD: json.dumps(plain.meta)}
            for name in [name for name in plain.colnames if plain[name].dtype.kind == "U"]:
                plain[name] = np.char.encode(np.asarray(plain[name]), "utf-8")
        plain.write(path, format=form, **options)

    @classmethod
    def read(cls, path: str | Path, **options: Any) -> Self:
        """A table that `write` wrote. NotFound file_not_found, BadInput damaged_file if it is none."""
        with reading(path):
            return cls._read(path, **options)

    @classmethod
    def _read(cls, path: str | Path, **options: Any) -> Self:
        plain = _opened(path, **options)
        if CARD in plain.meta:
            plain.meta = json.loads(plain.meta[CARD])
        for name in plain.colnames:
            column = plain[name]
            values = (
                np.ma.filled(column, "" if column.dtype.kind == "U" else b"") if column.dtype.kind in "US" else column
            )
            if column.dtype.kind == "S":
                values = np.char.decode(np.asarray(values), "utf-8")
            plain[name] = values if column.dtype.kind in "US" else values.astype(column.dtype.newbyteorder("="))
        for name in plain.meta.pop(JSON, ()):
            plain[name] = boxed([json.loads(cell) for cell in plain[name]])
        return cls(plain)

    def _where(self, chosen: Any) -> Self:
        found: Self = self[np.asarray(chosen, bool)]
        return found


class EmbeddingTable(AnswerTable):
    """`embedding` (D,) float32 of each object; NaN of those that failed.

    With pooling mean_per_modality or tokens every vector has a row, and `row` names its modality.
    """


class NeighborTable(AnswerTable):
    """A row for each neighbour: `query` is the id of what was asked about, `rank` counts from 1."""


class ValidationTable(AnswerTable):
    """What was understood of each object; `meta` has the files, and under `items` all that the service said."""


@dataclass(frozen=True)
class Answered:
    """What came of one batch: the content of the answer; {} where its pieces have errors of their own."""

    batch: Batch
    content: Mapping[str, Any]

    @property
    def items(self) -> list[Mapping[str, Any]]:
        """An item an object; of pieces that failed as a whole, one each."""
        if "items" in self.content:
            return list(self.content["items"])
        return [
            {"id": piece.id, "file": piece.name, "status": "error", "error": piece.error.as_dict()}
            for piece in self.batch.pieces
            if piece.error is not None
        ]


def items_of(answers: Sequence[Answered]) -> list[Mapping[str, Any]]:
    """The items of all batches, in order. If none is good, the first error is raised."""
    items = [item for answer in answers for item in answer.items]
    check(items, answers)
    return items


def check(items: Sequence[Mapping[str, Any]], answers: Sequence[Answered]) -> None:
    """Raise the first error if every item failed."""
    bad = [item for item in items if item["status"] == "error"]
    if len(bad) < len(items) or not items:
        return
    raised = next((piece.error for piece in answers[0].batch.pieces if piece.error is not None), None)
    error = raised or rebuilt(bad[0].get("error") or bad[0]["errors"][0])
    if len(bad) > 1:
        error.add_note(f"all {len(bad)} objects failed; this is the first")
    raise error


def envelope(answers: Sequence[Answered]) -> dict[str, Any]:
    """What all answers say of the computation: the space and the model, times and tokens in sum, ids of the requests.

    Conflict if they are of several spaces: the service changed its model between two requests.
    """
    good = [answer.content for answer in answers if "request_id" in answer.content and "status" not in answer.content]
    meta: dict[str, Any] = {}
    for content in good:
        if "space" in meta and "space" in content and not same_space(meta["space"], content["space"]):
            raise Conflict(
                "space_mismatch", f"answers of {meta['space']} and of {content['space']}", field="space",
                fix="ask again: the service has changed its model",
            )  # fmt: skip
        meta |= {name: value for name, value in content.items() if isinstance(value, str | int | float | bool)}
    meta.pop("request_id", None)
    for name in ("timings_ms", "usage"):
        sums: dict[str, float] = {}
        for content in good:
            for key, value in content.get(name, {}).items():
                sums[key] = round(sums.get(key, 0) + value, 3)
        if sums:
            meta[name] = sums
    meta["request_ids"] = [answer.content["request_id"] for answer in answers if "request_id" in answer.content]
    return meta


def about(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The columns that every table has."""
    errors: list[Mapping[str, Any]] = [item.get("error") or next(iter(item.get("errors") or ()), {}) for item in items]
    columns: dict[str, Any] = {
        "id": texts(items, lambda item: item.get("id")),
        "file": texts(items, lambda item: item.get("file")),
        "ra": numbers([item.get("ra") for item in items]) * units.deg,
        "dec": numbers([item.get("dec") for item in items]) * units.deg,
        "status": texts(items, lambda item: item["status"]),
        "modalities": texts(items, lambda item: ",".join(item.get("modalities_used", ()))),
        "n_tokens": np.array([item.get("n_tokens", 0) for item in items], np.int64),
        "qa_flags": texts(items, lambda item: ",".join(item.get("qa_flags", ()))),
        "warnings": texts(
            items, lambda item: "; ".join(f"{w['code']}: {w['message']}" for w in item.get("warnings", ()))
        ),
    }
    return columns | {column: texts(errors, lambda error, name=name: error.get(name)) for column, name in ERROR.items()}


def texts(rows: Sequence[Any], of: Callable[..., str | None]) -> NDArray[np.str_]:
    """A column of texts, "" where there is none."""
    return np.array([of(row) or "" for row in rows], dtype=np.str_)


def boxed(cells: Sequence[Any]) -> NDArray[np.object_]:
    """A column of Python objects."""
    column = np.empty(len(cells), object)
    column[:] = cells
    return column


def numbers(values: Sequence[float | None]) -> NDArray[np.float64]:
    """A column of numbers, NaN where there is none."""
    return np.array([np.nan if value is None else value for value in values], np.float64)


# Embeddings


def vectors(item: Mapping[str, Any]) -> NDArray[np.float32] | None:
    """(M, D) or (D,) embedding of an item, None if it has none; base64 of float32, numbers, or decoded already."""
    value = item.get("embedding")
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value), "<f4").astype(np.float32).reshape(item["shape"])
    return None if value is None else np.asarray(value, np.float32)


def embedding_table(answers: Sequence[Answered], pooling: str) -> EmbeddingTable:
    """The embeddings of all batches."""
    items = items_of(answers)
    meta = envelope(answers) | {"pooling": pooling}
    rows: list[Mapping[str, Any]] = []
    values: list[NDArray[np.float32]] = []
    names: list[str] = []
    for item in items:
        found = vectors(item)
        parts = np.full((1, meta["dim"]), np.nan, np.float32) if found is None else np.atleast_2d(found)
        rows += [item] * len(parts)
        values.append(parts)
        names += item.get("rows") or [""] * len(parts)
    columns = about(rows)
    columns["embedding"] = np.concatenate(values) if values else np.zeros((0, meta.get("dim", 0)), np.float32)
    columns["cache"] = texts(rows, lambda item: item.get("cache"))
    order = ["id", "file", "ra", "dec", "embedding"]
    if pooling != "mean":
        columns["row"] = np.array(names, dtype=np.str_)
        order.append("row")
    return EmbeddingTable({name: columns[name] for name in (*order, *set_out(columns, order))}, meta=meta)


def set_out(columns: Mapping[str, Any], taken: Sequence[str]) -> list[str]:
    """The names of the columns that are not taken yet, in their order."""
    return [name for name in columns if name not in taken]


# Neighbours, validation, what was kept


def neighbor_table(answers: Sequence[Answered]) -> NeighborTable:
    """The hits of all queries of all batches, each a row; a query without a hit is a row with rank 0."""
    rows: list[Mapping[str, Any]] = []
    queries: list[Mapping[str, Any]] = []
    for answer in answers:
        for result in answer.content.get("results", ()):
            query = result["query"]
            shared = {name: query.get(name) for name in ("file", "status", "error")} | {"query": query["id"]}
            rows += [{**hit, **shared, "rank": rank} for rank, hit in enumerate(result["hits"], 1)]
            rows += [] if result["hits"] else [{**shared, "rank": 0}]
            queries.append(query)
        if "results" not in answer.content:
            rows += [{**item, "query": item["id"], "id": None, "rank": 0} for item in answer.items]
            queries += answer.items
    check(queries, answers)
    columns = about(rows)
    columns["query"] = texts(rows, lambda row: row["query"])
    columns["rank"] = np.array([row["rank"] for row in rows], np.int64)
    columns["score"] = numbers([row.get("score") for row in rows])
    columns["modalities"] = texts(rows, lambda row: ",".join(row.get("modalities", ())))
    columns["metadata"] = boxed([row.get("metadata", {}) for row in rows])
    order = ["query", "rank", "id", "score", "ra", "dec", "modalities", "metadata", "file", "status", *ERROR]
    return NeighborTable({name: columns[name] for name in order}, meta=envelope(answers))


def validation_table(answers: Sequence[Answered]) -> ValidationTable:
    """What was understood of the objects of all batches. Objects that are of no use are rows too: nothing is raised."""
    items = [item for answer in answers for item in answer.items]
    detected = [item.get("detected") or {} for item in items]
    columns = about(items)
    columns["usable"] = np.array([bool(item.get("usable")) for item in items])
    columns["format"] = texts(detected, lambda found: found.get("format"))
    columns["modalities"] = texts(
        detected, lambda found: ",".join(one["modality"] for one in found.get("modalities", ()))
    )
    columns["n_tokens"] = np.array([found.get("n_tokens", 0) for found in detected], np.int64)
    order = ["id", "file", "ra", "dec", "usable", "status", "format", "modalities", "n_tokens"]
    meta = envelope(answers) | {"items": items}
    meta["files"] = [file for answer in answers for file in answer.content.get("files", ())]
    return ValidationTable({name: columns[name] for name in (*order, *set_out(columns, order))}, meta=meta)


def kept_table(answers: Sequence[Answered]) -> AnswerTable:
    """What became of the objects that a collection was given; `meta["indexed"]` are on disk."""
    items = items_of(answers)
    meta = envelope(answers)
    meta["indexed"] = sum(answer.content.get("indexed", 0) for answer in answers)
    return AnswerTable(about(items), meta=meta)
