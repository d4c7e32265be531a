"""The format of an answer: what `Accept` asks for among what an operation can give.

wanted      the forms that a request takes, the most welcome first
as_table    a table in one of them
as_raw      numbers with a JSON header in front
as_npy      one array, where nothing failed and all rows are alike
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from fastapi import Request
from fastapi.responses import Response
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter

from albireo.observations.errors import BadInput
from albireo.service import table_bytes
from albireo.service.core import Outcome
from albireo.service.problems import NotAcceptable

JSON = "application/json"
NPY = "application/x-npy"
NPZ = "application/x-npz"
ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"
FITS = "application/fits"
VOTABLE = "application/x-votable+xml"
CSV = "text/csv"
RAW = "application/vnd.albireo.raw"

TABLES = (ARROW, PARQUET, FITS, VOTABLE, CSV)
EMBEDDINGS = (JSON, RAW, NPY, NPZ, *TABLES)
ROWS = (JSON, *TABLES)
TOKENS = (JSON, RAW, NPZ)
NUMBERS = (JSON, NPZ, FITS)
DRAWS = (JSON, NPZ, ARROW, PARQUET, FITS)
"""What the operations offer; the first is what is given where nothing is asked for."""

ALIGNMENT = 8
"""The numbers of a raw answer begin at a multiple of this many bytes."""

_ANY: TypeAdapter[Any] = TypeAdapter(Any, config=ConfigDict(ser_json_inf_nan="null"))


@dataclass(frozen=True)
class Form:
    """A media type, and what of its parameters matters."""

    media_type: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def wanted(request: Request, offered: Sequence[str]) -> list[Form]:
    """The forms among `offered` that a request takes, the most welcome first. NotAcceptable if there is none."""
    found = preferred(", ".join(request.headers.getlist("accept")), offered)
    if not found:
        raise NotAcceptable(
            "not_acceptable",
            f"no answer in {request.headers['accept']!r}",
            field="Accept",
            fix="one of " + ", ".join(offered),
        )
    return found


def preferred(accept: str, offered: Sequence[str]) -> list[Form]:
    """The forms among `offered` by their q-value in an `Accept` header (RFC 9110, 12.5.1).

    Of two with the same, a type that is named comes before one that a pattern fits, and then the one named first.
    """
    ranges = [one for part in accept.split(",") if (one := _range(part)) is not None] or [("*/*", {}, 1.0)]
    found = []
    for n, media_type in enumerate(offered):
        fits = [
            (_specificity(pattern, media_type), -k, q, parameters)
            for k, (pattern, parameters, q) in enumerate(ranges)
            if _specificity(pattern, media_type)
        ]
        if fits:
            # The most specific range decides, whatever q others give.
            specificity, place, q, parameters = max(fits, key=lambda one: one[:2])
            if q > 0:
                found.append(((-q, -specificity, -place, n), Form(media_type, parameters)))
    return [form for _, form in sorted(found, key=lambda one: one[0])]


def _range(text: str) -> tuple[str, dict[str, str], float] | None:
    """The pattern, parameters and q-value of one part of `Accept`; None if it cannot be understood."""
    pattern, *rest = (part.strip().lower() for part in text.split(";"))
    parameters = {name.strip(): value.strip().strip('"') for name, _, value in (one.partition("=") for one in rest)}
    try:
        q = float(parameters.pop("q", "1"))
    except ValueError:
        return None
    return (pattern, parameters, min(q, 1.0)) if pattern.count("/") == 1 and q >= 0 else None


def _specificity(pattern: str, media_type: str) -> int:
    """How precisely a pattern names a media type: 3 exactly, 2 by its first half, 1 as any, 0 not."""
    if pattern == media_type:
        return 3
    first, _, second = pattern.partition("/")
    if second != "*":
        return 0
    return 1 if first == "*" else 2 if media_type.startswith(f"{first}/") else 0


def respond(content: bytes, media_type: str, failed: int = 0) -> Response:
    """200 with these bytes, and the number of failed items in a header."""
    headers = {"Vary": "Accept"} | ({"X-Items-Failed": str(failed)} if failed else {})
    return Response(content, 200, headers, media_type)


def json_bytes(content: Any) -> bytes:
    """Plain data as JSON; NaN and infinity are null."""
    return _ANY.dump_json(content)


def with_entries(content: Mapping[str, Any], name: str, entries: bytes) -> bytes:
    """Plain data as JSON with one more entry, which is JSON already: what says how long that took comes after it."""
    return b"%b,%b:%b}" % (json_bytes(content)[:-1], json_bytes(name), entries)


def about(content: Mapping[str, Any]) -> dict[str, str]:
    """The envelope of an answer as metadata of a table: text stays text, the rest is JSON."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in content.items()}


def as_table(table: pa.Table, form: Form, failed: int = 0, envelope: Mapping[str, Any] | None = None) -> Response:
    """A table in one of the forms TABLES or NPZ, with the envelope of the answer as its metadata."""
    if envelope is not None:
        table = table.replace_schema_metadata(about(envelope))
    if form.media_type == VOTABLE:
        text = form.parameters.get("serialization") == "tabledata"
        serialization: Literal["binary2", "tabledata"] = "tabledata" if text else "binary2"
        content = table_bytes.votable_bytes(table, serialization)
        return respond(content, f"{VOTABLE};serialization={serialization}", failed)
    write = {
        ARROW: table_bytes.arrow_bytes,
        PARQUET: table_bytes.parquet_bytes,
        FITS: table_bytes.fits_bytes,
        CSV: table_bytes.csv_bytes,
        NPZ: table_bytes.npz_bytes,
    }[form.media_type]
    return respond(write(table), form.media_type, failed)


def as_raw(text: bytes, numbers: Sequence[NDArray[Any]], failed: int = 0) -> Response:
    """u32 length of the header, the header `text` (JSON) and spaces, all numbers row by row; little-endian."""
    text += b" " * (-(len(text) + 4) % ALIGNMENT)
    parts = [np.ascontiguousarray(one, one.dtype.newbyteorder("<")).tobytes() for one in numbers]
    return respond(b"".join([struct.pack("<I", len(text)), text, *parts]), RAW, failed)


def as_npy(outcomes: Sequence[Outcome]) -> Response:
    """The embeddings as one array (N, D), or (N, M, D) where all have the same M rows; else NotAcceptable."""
    embeddings = [outcome.embedding for outcome in outcomes]
    there = [one for one in embeddings if one is not None]
    failed = next((outcome.error for outcome in outcomes if outcome.error is not None), None)
    if failed is not None:
        raise _no_array(f"{len(embeddings) - len(there)} of {len(embeddings)} objects failed, the first: {failed}")
    if len({one.values.shape for one in there}) > 1 or (
        there[0].values.ndim > 1 and len({one.modalities for one in there}) > 1
    ):
        raise _no_array("the objects have rows of different modalities")
    out = io.BytesIO()
    np.save(out, np.stack([one.values for one in there]).astype("<f4", copy=False), allow_pickle=False)
    return respond(out.getvalue(), NPY)


def _no_array(why: str) -> BadInput:
    others = ", ".join(form for form in EMBEDDINGS if form != NPY)
    return NotAcceptable("not_acceptable", f"one array cannot hold the answer: {why}", field="Accept", fix=others)
