"""Answers of the HTTP doors from what the core's verbs return."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel

from albireo.index.collection import Collection, StoredObject
from albireo.models.engine import POOLINGS, Engine
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.modalities import MODALITIES
from albireo.observations.reading import FORMATS
from albireo.service import schemas
from albireo.service.core import Embedded, Neighbours, Outcome
from albireo.service.prediction_schemas import AnswerReply, PredictedItem
from albireo.service.predictions import Answers, Predicted, Prediction, as_data
from albireo.service.problems import MEDIA_TYPE, RETRY_AFTER, problem, status_of
from albireo.service.settings import Settings


def reply(model: BaseModel, failed: int = 0) -> Response:
    """200 with the model as JSON, and the number of failed items in a header."""
    headers = {"X-Items-Failed": str(failed)} if failed else {}
    return Response(model.model_dump_json(by_alias=True), 200, headers, "application/json")


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


def predicted_item(one: Prediction[Answers], density: bool) -> PredictedItem:
    """What the heads say of one object; `density` also gives the probabilities of cells."""
    outcome = one.outcome
    refused = any(isinstance(answer, AlbireoError) for answer in (one.answer or {}).values())
    return PredictedItem(
        id=outcome.subject.id,
        file=outcome.subject.file,
        status="degraded" if refused else outcome.status,
        predictions={
            name: AnswerReply(error=trouble(answer))
            if isinstance(answer, AlbireoError)
            else AnswerReply(**as_data(answer, density))
            for name, answer in (one.answer or {}).items()
        },
        modalities_used=list(one.modalities),
        n_tokens=one.n_tokens,
        qa_flags=list(outcome.flags),
        warnings=[trouble(warning) for warning in outcome.warnings],
        error=trouble(outcome.error) if outcome.error else None,
    )


def predict_reply(
    predicted: Predicted, engine: Engine, items: list[PredictedItem], parse: float, density: bool
) -> dict[str, Any]:
    """What heads say of a request, but for its id; `density` also gives the edges of their cells."""
    heads = {
        name: one.identity(predicted.space, one.edges(engine) if density else None)
        for name, one in predicted.heads.items()
    }
    return {
        "space": predicted.space,
        "model": engine.name,
        **asdict(predicted.numerics),
        "dim": engine.dim,
        "timings_ms": milliseconds(parse, predicted, predict=predicted.predict_seconds),
        "usage": {"tokens": predicted.n_tokens},
        "heads": heads,
        "items": items,
    }


def trouble(error: AlbireoError) -> schemas.Trouble:
    return schemas.Trouble(**error.as_dict())


def all_failed(done: Embedded | Predicted, items: Sequence[BaseModel], request: Request) -> Response | None:
    """The problem document of a request without one good object; None if there is one.

    It speaks of the first error, and lists every object with its own.
    """
    errors = [outcome.error for outcome in done.outcomes if outcome.error is not None]
    if len(errors) < len(done.outcomes):
        return None
    if not errors:
        raise BadInput("request_invalid", "nothing was sent", field="items", fix="send files or items")
    return refused(errors[0], items, request, max(422, status_of(errors[0])))


def refused(first: AlbireoError, items: Sequence[BaseModel], request: Request, status: int = 422) -> Response:
    """The problem document of a request whose every object failed, the first of them with error `first`."""
    body = problem(first, request.state.request_id, status, items=[item.model_dump(by_alias=True) for item in items])
    if len(items) > 1:
        body["detail"] = f"all {len(items)} objects failed; the first: {first.message}"
    text = schemas.Problem(**body).model_dump_json(exclude_unset=True)
    return Response(text, status, media_type=MEDIA_TYPE)


def not_ready(error: AlbireoError, request: Request, capabilities: dict[str, Any]) -> Response:
    """503, with the report by capability."""
    body = problem(error, request.state.request_id, capabilities=capabilities)
    text = schemas.Problem(**body).model_dump_json(exclude_unset=True)
    return Response(text, 503, {"Retry-After": RETRY_AFTER}, MEDIA_TYPE)


def info(engine: Engine, settings: Settings) -> dict[str, Any]:
    """The model, what it reads, and the limits."""
    return {
        "name": "albireo",
        "version": version("albireo"),
        "model": engine.name,
        "dim": engine.dim,
        "spaces": {pooling: engine.space(pooling) for pooling in POOLINGS},
        "modalities": [
            {
                "modality": MODALITIES[key].name,
                "key": key,
                "kind": MODALITIES[key].kind,
                "unit": MODALITIES[key].unit,
                "bands": list(MODALITIES[key].bands),
                "shape": list(MODALITIES[key].shape),
                "n_tokens": spec.n_tokens,
            }
            for key, spec in engine.inputs.items()
        ],
        "formats": [{"name": row.name, "description": row.description} for row in FORMATS],
        "limits": {"max_body_bytes": settings.max_body_bytes, "max_items": settings.max_items},
    }


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


def milliseconds(parse: float, done: Embedded | Predicted | None = None, **more: float) -> dict[str, float]:
    """Timings in ms, from seconds."""
    seconds = {"parse": parse}
    if done is not None:
        seconds |= {"tokenize": done.tokenize_seconds, "encode": done.encode_seconds}
    return {name: round(value * 1e3, 3) for name, value in (seconds | more).items()}
