"""Tokens as the HTTP door answers them, and takes them back: JSON, NumPy archives, raw numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from fastapi import Request
from fastapi.responses import Response
from numpy.typing import NDArray

from albireo.models.engine import Engine, Tokens
from albireo.observations.archive import Archive
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.modalities import MODALITIES
from albireo.observations.source import Source
from albireo.observations.spaces import identity
from albireo.service import reply_formats as formats
from albireo.service.predictions import Prediction
from albireo.service.replies import Common, in_milliseconds, refused, trouble_data
from albireo.service.reply_formats import Form
from albireo.service.table_bytes import archive_bytes
from albireo.service.token_verbs import Given, Quantiser

TOKENS, OBJECTS, LENGTHS, CODEC = "tokens.", "objects.", "lengths.", "codec."
"""What the names of arrays begin with; the modality's name follows."""


def token_envelope(engine: Engine, request: Request, seconds: Mapping[str, float], n_tokens: int) -> dict[str, Any]:
    """What an answer says of the computation, as `token_schemas.TokenEnvelope`."""
    return {
        "model": engine.name,
        "checkpoint": identity(engine.space("mean")).removesuffix(":mean"),
        **asdict(engine.numerics),
        "timings_ms": in_milliseconds(seconds),
        "usage": {"tokens": n_tokens},
        "request_id": request.state.request_id,
    }


def quantiser_data(one: Quantiser) -> dict[str, Any]:
    return {
        "key": one.key,
        "codec": one.codec,
        "n_tokens": one.n_tokens,
        "vocabulary": one.vocabulary,
        "grid": one.grid,
        "dtype": np.dtype(one.dtype).name,
    }


# Tokens


@dataclass(frozen=True)
class TokenArray:
    """Ids of one modality of all objects that have it: (K, n), or flat where objects have different numbers.

    objects  (K,) numbers of the objects, counted from 0 in the order of the request
    lengths  (K,) tokens of each object; None if all have as many
    """

    ids: NDArray[Any]
    objects: NDArray[np.int64]
    lengths: NDArray[np.int64] | None


def token_arrays(made: Sequence[Prediction[Tokens]], known: Mapping[str, Quantiser]) -> dict[str, TokenArray]:
    """Token key -> array, of what there is, in the table's order."""
    out = {}
    for key, quantiser in known.items():
        rows = [(i, one.answer.ids[key]) for i, one in enumerate(made) if one.answer and key in one.answer.ids]
        if rows:
            lengths = np.array([len(ids) for _, ids in rows])
            alike = len(set(lengths.tolist())) == 1
            ids = np.stack([ids for _, ids in rows]) if alike else np.concatenate([ids for _, ids in rows])
            out[key] = TokenArray(
                ids.astype(quantiser.dtype), np.array([i for i, _ in rows]), None if alike else lengths
            )
    return out


def tokenize_answer(
    form: Form, made: Sequence[Prediction[Tokens]], known: Mapping[str, Quantiser], common: Common, request: Request
) -> Response:
    """The tokens in one of the forms `formats.TOKENS`."""
    errors = [error for one in made if (error := one.outcome.error) is not None]
    in_json = form.media_type == formats.JSON
    items = [_tokenized_data(one, in_json) for one in made]
    if len(errors) == len(made):
        return refused(first_of(errors), items, request)
    arrays = token_arrays(made, known)
    quantisers = {known[key].name: quantiser_data(known[key]) for key in arrays}
    if in_json:
        text = formats.json_bytes(items)
        content = formats.with_entries({**common(), "quantisers": quantisers}, "items", text)
        return formats.respond(content, formats.JSON, len(errors))
    if form.media_type == formats.RAW:
        header = {"quantisers": quantisers, "arrays": list(_array_data(arrays))}
        text = formats.json_bytes(items)
        return formats.as_raw(
            formats.with_entries({**common(), **header}, "items", text),
            [one.ids for one in arrays.values()],
            len(errors),
        )
    stored: dict[str, Any] = {}
    for key, one in arrays.items():
        name = MODALITIES[key].name
        stored |= {TOKENS + name: one.ids, OBJECTS + name: one.objects, CODEC + name: np.array(known[key].codec)}
        stored |= {} if one.lengths is None else {LENGTHS + name: one.lengths}
    stored |= object_arrays([(item["id"], item["status"], item["error"]) for item in items])
    stored = {name: np.array(text) for name, text in formats.about(common()).items()} | stored
    return formats.respond(archive_bytes(stored), formats.NPZ, len(errors))


def _tokenized_data(one: Prediction[Tokens], with_tokens: bool) -> dict[str, Any]:
    outcome, tokens = one.outcome, one.answer
    ids = {MODALITIES[key].name: tokens.ids[key].tolist() for key in tokens.ids} if tokens and with_tokens else None
    return {
        "id": outcome.subject.id,
        "file": outcome.subject.file,
        "ra": outcome.subject.ra,
        "dec": outcome.subject.dec,
        "status": outcome.status,
        **({"tokens": ids} if with_tokens else {}),
        "n_tokens": one.n_tokens,
        "qa_flags": outcome.flags,
        "warnings": [trouble_data(warning) for warning in outcome.warnings],
        "error": trouble_data(outcome.error) if outcome.error else None,
    }


def _array_data(arrays: Mapping[str, TokenArray]) -> Iterator[dict[str, Any]]:
    """How the arrays behind a raw header lie, one after another."""
    for key, one in arrays.items():
        yield {
            "modality": MODALITIES[key].name,
            "dtype": one.ids.dtype.newbyteorder("<").str,
            "shape": one.ids.shape,
            "objects": one.objects.tolist(),
            "lengths": None if one.lengths is None else one.lengths.tolist(),
        }


def given_of(source: Source) -> tuple[list[Given], dict[str, str]]:
    """Objects and the codecs of their tokens from an archive as `tokenize_answer` writes it."""
    archive = Archive(source, {})
    wanted = [name.removeprefix(TOKENS) for name in archive.names if name.startswith(TOKENS)]
    if not wanted:
        raise BadInput(
            "column_missing", "no array of tokens", file=source.name, field=TOKENS,
            fix="send what /v1/tokenize answers, or arrays tokens.MODALITY (N, n)",
        )  # fmt: skip
    rows: dict[int, dict[str, NDArray[Any]]] = {}
    codecs = {}
    for name in wanted:
        found = np.atleast_1d(archive.array(TOKENS + name))
        objects = archive.array(OBJECTS + name) if OBJECTS + name in archive.names else np.arange(len(found))
        lengths = archive.array(LENGTHS + name) if LENGTHS + name in archive.names else None
        for i, ids in zip(objects.ravel().tolist(), _rows(name, found, objects, lengths), strict=True):
            rows.setdefault(i, {})[name] = ids
        if CODEC + name in archive.names:
            codec = archive.array(CODEC + name)
            if codec.size != 1 or codec.dtype.kind != "U":
                raise BadInput("shape_mismatch", "no one text", file=source.name, field=CODEC + name)
            codecs[name] = str(codec.item())
    stated = archive.texts("ids", ("ids", "id"))
    names = dict(enumerate(stated[1])) if stated is not None else {}
    if stated is not None and len(names) <= max(rows, default=-1):
        raise BadInput("shape_mismatch", f"{len(names)} ids of objects up to {max(rows)}", file=source.name)
    return [Given(names.get(i), rows[i]) for i in sorted(rows)], codecs


def _rows(name: str, found: NDArray[Any], objects: NDArray[Any], lengths: NDArray[Any] | None) -> list[NDArray[Any]]:
    """The ids of each object."""
    whole = all(array.dtype.kind in "iu" for array in (found, objects, *([] if lengths is None else [lengths])))
    if whole and lengths is None and found.ndim == 2 and objects.shape == (len(found),) and (objects >= 0).all():
        return list(found)
    if (
        whole and lengths is not None and found.ndim == 1 and lengths.shape == objects.shape and (lengths >= 0).all()
        and lengths.sum() == len(found)
    ):  # fmt: skip
        return np.split(found, np.cumsum(lengths)[:-1])
    raise BadInput(
        "shape_mismatch", f"{found.dtype} {found.shape} for {objects.size} objects", field=TOKENS + name,
        fix="whole numbers (N, n), or flat with lengths.MODALITY (N,)",
    )  # fmt: skip


# What both have


def object_arrays(rows: Sequence[tuple[str | None, str, Mapping[str, Any] | None]]) -> dict[str, NDArray[Any]]:
    """ids and status of all objects; `errors` are the numbers of those that failed, and why."""
    failed = [i for i, (_, _, error) in enumerate(rows) if error is not None]
    found: dict[str, NDArray[Any]] = {
        "ids": np.array([name or "" for name, _, _ in rows]),
        "status": np.array([status for _, status, _ in rows]),
        "errors": np.array(failed, np.int64),
    }
    for part in ("code", "message", "field", "fix"):
        found[f"error_{part}"] = np.array([(rows[i][2] or {})[part] or "" for i in failed], np.str_)
    return found


def first_of(errors: Sequence[AlbireoError]) -> AlbireoError:
    if not errors:
        raise BadInput("request_invalid", "nothing was sent", field="items", fix="send files or items")
    return errors[0]
