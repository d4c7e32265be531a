"""Tokens of objects as a table, and what tokens stand for.

TokenTable    `tokens` of each object: modality -> ids (n,)
DecodedTable  the numbers that tokens stand for, a column for each modality
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from astropy import units
from numpy.typing import NDArray

from albireo.observations.errors import BadInput
from albireo.service.client_answers import (
    ERROR,
    Answered,
    AnswerTable,
    about,
    boxed,
    envelope,
    items_of,
    set_out,
    texts,
)
from albireo.service.client_requests import Limits

DECODED_AT_ONCE = 64
"""Objects that are decoded in one request: an image is a thousand times larger than its tokens."""


class TokenTable(AnswerTable):
    """`tokens` of each object: {modality: ids (n,)}, empty of those that failed; `meta["quantisers"]` says of which."""

    @classmethod
    def _read(cls, path: str | Path, **options: Any) -> Self:
        table = super()._read(path, **options)
        if missing := {"id", "status", "tokens"} - set(table.colnames):
            raise ValueError(f"no columns {', '.join(sorted(missing))}")
        for one in table.meta["quantisers"].values():
            if not isinstance(one["codec"], str) or one["dtype"] not in ("uint16", "uint32"):
                raise ValueError(f"a quantiser that is none: {one}")
        table["tokens"] = boxed([_ids(cell, table.meta["quantisers"]) for cell in table["tokens"]])
        return table


class DecodedTable(AnswerTable):
    """The numbers of each object, a column for each modality, NaN where it has none; with units where they have one.

    Columns are arrays (N, ...) or, where objects differ in length, objects; `meta["modalities"]` has axes, bands and
    wavelengths.
    """


def token_table(answers: Sequence[Answered]) -> TokenTable:
    """The tokens of the objects of all batches."""
    items = items_of(answers)
    quantisers: dict[str, Any] = {}
    for answer in answers:
        quantisers |= answer.content.get("quantisers", {})
    columns = about(items)
    names = [list(item.get("tokens") or {}) for item in items]
    columns["modalities"] = texts(names, ",".join)
    columns["tokens"] = boxed([_ids(item.get("tokens") or {}, quantisers) for item in items])
    order = ["id", "file", "ra", "dec", "tokens"]
    meta = envelope(answers) | {"quantisers": quantisers}
    return TokenTable({name: columns[name] for name in (*order, *set_out(columns, order))}, meta=meta)


def _ids(tokens: Mapping[str, Any], quantisers: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    return {name: np.asarray(ids, quantisers[name]["dtype"]) for name, ids in tokens.items()}


def requests_of(tokens: Any, limits: Limits) -> list[dict[str, Any]]:
    """The JSON parts that ask what tokens stand for: of a TokenTable, {modality: ids}, or a sequence of such dicts."""
    body: dict[str, Any] = {"options": {"encoding": "base64"}}
    items: list[dict[str, Any]] = []
    if isinstance(tokens, TokenTable):
        body["codecs"] = {name: one["codec"] for name, one in tokens.meta["quantisers"].items()}
        rows = [(str(row["id"]) or None, row["tokens"]) for row in tokens.ok()]
    else:
        rows = [(None, one) for one in ([tokens] if isinstance(tokens, Mapping) else tokens)]
    for whose, one in rows:
        ids = {name: np.asarray(values).ravel().tolist() for name, values in one.items()}
        items.append({"tokens": ids} | ({} if whose is None else {"id": whose}))
    if not items:
        raise BadInput("request_invalid", "no tokens were given", field="items", fix="give a TokenTable")
    step = min(DECODED_AT_ONCE, limits.max_items)
    return [{**body, "items": items[start : start + step]} for start in range(0, len(items), step)]


def decoded_table(answers: Sequence[Answered]) -> DecodedTable:
    """The numbers of the objects of all answers."""
    items = items_of(answers)
    modalities: dict[str, Any] = {}
    for answer in answers:
        modalities |= answer.content.get("modalities", {})
    columns = {name: column for name, column in about(items).items() if name in ("id", "status", *ERROR)}
    for name, said in modalities.items():
        columns[name] = stacked([numbers_of(item.get("values", {}).get(name)) for item in items], said["unit"])
    meta = envelope(answers) | {"modalities": modalities}
    return DecodedTable(columns, meta=meta)


def numbers_of(value: Mapping[str, Any] | None) -> NDArray[np.float32] | None:
    """The numbers of an answer, whose shape it tells; None if it has none."""
    if value is None:
        return None
    if isinstance(value["values"], str):
        flat = np.frombuffer(base64.b64decode(value["values"]), "<f4").astype(np.float32)
        return flat.reshape(value["shape"])
    return np.array(value["values"], np.float32)


def stacked(values: Sequence[NDArray[np.float32] | None], unit: str) -> Any:
    """(N, ...) with a unit where that is possible, else objects."""
    shapes = {one.shape for one in values if one is not None}
    if len(shapes) != 1:
        return boxed([None if one is None else one.tolist() for one in values])
    blank = np.full(shapes.pop(), np.nan, np.float32)
    column = np.stack([blank if one is None else one for one in values])
    known = units.Unit(unit, parse_strict="silent")
    return column if not unit or isinstance(known, units.UnrecognizedUnit) else column << known
