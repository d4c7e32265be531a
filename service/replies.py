"""Answers of the HTTP doors from what the core's verbs return."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel

from albireo.index.collection import Collection, StoredObject
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.modalities import MODALITIES
from albireo.service import schemas
from albireo.service.core import Embedded, Neighbours, Outcome
from albireo.service.problems import MEDIA_TYPE, RETRY_AFTER, problem


def reply(model: BaseModel, failed: int = 0) -> Response:
    """200 with the model as JSON, and the number of failed items in a header."""
    headers = {"X-Items-Failed": str(failed)} if failed else {}
    return Response(model.model_dump_json(), 200, headers, "application/json")


def item_reply(outcome: Outcome, encoding: str = "float", with_embedding: bool = True) -> schemas.ItemReply:
    """One object. The embedding is a (nested) list, or base64 of little-endian float32 in row-major order."""
    embedding = outcome.embedding
    values: Any = None
    if embedding is not None and with_embedding:
        raw = embedding.values
        values = base64.b64encode(raw.astype("<f4").tobytes()).decode() if encoding == "base64" else raw.tolist()
    return schemas.ItemReply(
        id=outcome.subject.id,
        file=outcome.subject.file,
        status=outcome.status,
        embedding=values,
        shape=list(embedding.values.shape) if embedding is not None and with_embedding else None,
        rows=[MODALITIES[key].name for key in embedding.modalities]
        if embedding is not None and embedding.pooling != "mean"
        else None,
        modalities_used=list(outcome.modalities),
        n_tokens=embedding.n_tokens if embedding else 0,
        qa_flags=list(outcome.flags),
        warnings=[trouble(warning) for warning in outcome.warnings],
        error=trouble(outcome.error) if outcome.error else None,
    )


def trouble(error: AlbireoError) -> schemas.Trouble:
    return schemas.Trouble(**error.as_dict())


def all_failed(embedded: Embedded, items: Sequence[schemas.ItemReply], request: Request) -> Response | None:
    """The problem document of a request without one good object; None if there is one.

    It speaks of the first error, and lists every object with its own.
    """
    errors = [outcome.error for outcome in embedded.outcomes if outcome.error is not None]
    if len(errors) < len(embedded.outcomes):
        return None
    if not errors:
        raise BadInput("request_invalid", "nothing was sent", field="items", fix="send files or items")
    return refused(errors[0], items, request)


def refused(first: AlbireoError, items: Sequence[schemas.ItemReply], request: Request, status: int = 422) -> Response:
    """The problem document of a request whose every object failed, the first of them with error `first`."""
    body = problem(first, request.state.request_id, status, items=[item.model_dump() for item in items])
    if len(items) > 1:
        body["detail"] = f"all {len(items)} objects failed; the first: {first.message}"
    text = schemas.Problem(**body).model_dump_json(exclude_unset=True)
    return Response(text, status, media_type=MEDIA_TYPE)


def not_ready(error: AlbireoError, request: Request, capabilities: dict[str, Any]) -> Response:
    """503, with the report by capability."""
    body = problem(error, request.state.request_id, capabilities=capabilities)
    text = schemas.Problem(**body).model_dump_json(exclude_unset=True)
    return Response(text, 503, {"Retry-After": RETRY_AFTER}, MEDIA_TYPE)


def stored_of(row: schemas.Stored, n: int) -> StoredObject:
    """An object that came with its vector, as the index keeps it."""
    vector = schemas.vector_of(row.vector, f"objects.{n}.vector")
    return StoredObject(row.id, vector, row.ra, row.dec, row.metadata, tuple(row.modalities))


def vector_reply(id: str, error: AlbireoError | None) -> schemas.ItemReply:
    """What became of an object that came with its vector."""
    return schemas.ItemReply(
        id=id,
        file=None,
        status="error" if error else "ok",
        modalities_used=[],
        n_tokens=0,
        qa_flags=[],
        warnings=[],
        error=trouble(error) if error else None,
    )


def query_reply(outcome: Outcome | None, found: Neighbours) -> schemas.QueryReply:
    """The neighbours of one query."""
    return schemas.QueryReply(
        query=item_reply(outcome, with_embedding=False) if outcome else None,
        k_returned=len(found.hits),
        short_reason=found.short_reason,
        hits=[
            schemas.HitReply(
                id=hit.id,
                score=hit.score,
                ra=hit.ra,
                dec=hit.dec,
                modalities=list(hit.modalities),
                metadata=dict(hit.metadata),
            )
            for hit in found.hits
        ],
    )


def collection_reply(collection: Collection) -> schemas.CollectionReply:
    return schemas.CollectionReply(
        name=collection.name,
        space=collection.space,
        dim=collection.dim,
        metric=collection.metric,
        count=collection.count,
    )


def milliseconds(parse: float, embedded: Embedded | None = None, **more: float) -> dict[str, float]:
    """Timings in ms, from seconds."""
    seconds = {"parse": parse}
    if embedded is not None:
        seconds |= {"tokenize": embedded.tokenize_seconds, "encode": embedded.encode_seconds}
    return {name: round(value * 1e3, 3) for name, value in (seconds | more).items()}
