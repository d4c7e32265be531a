"""Answers of the HTTP doors from what the core's verbs return."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, Literal

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel

from albireo.index.collection import Collection, StoredObject
from albireo.models.engine import POOLINGS, Engine
from albireo.models.heads import Answer
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.modalities import MODALITIES
from albireo.observations.reading import FORMATS
from albireo.service import reply_formats as formats
from albireo.service import schemas
from albireo.service.core import Embedded, Neighbours, Outcome
from albireo.service.embedding_table import embedding_schema, embedding_table
from albireo.service.neighbour_table import neighbour_table
from albireo.service.prediction_tables import prediction_schema, prediction_table
from albireo.service.predictions import Answers, Predicted, Prediction, as_data
from albireo.service.predictions import status_of as predicted_status
from albireo.service.problems import MEDIA_TYPE, RETRY_AFTER, NotAcceptable, problem, status_of
from albireo.service.reply_formats import Form
from albireo.service.settings import Settings
from albireo.service.subjects import Subject
from albireo.service.terms import Refused
from albireo.service.watch import EMBEDS, Stage, tally


def reply(model: BaseModel, failed: int = 0) -> Response:
    """200 with the model as JSON, and the number of failed items in a header."""
    headers = {"X-Items-Failed": str(failed)} if failed else {}
    return Response(model.model_dump_json(by_alias=True), 200, headers, "application/json")


Numbers = Literal["float", "base64", "apart", "none"]
"""How an item gives its embedding: a (nested) list, base64 of little-endian float32 in row-major order, behind the
header of a raw answer, or not at all."""


def item_data(outcome: Outcome, numbers: Numbers) -> dict[str, Any]:
    """One object, as `schemas.ItemReply`; plain data, because thousands of models take longer than their embeddings."""
    embedding, subject = outcome.embedding, outcome.subject
    values: Any = None
    if embedding is not None and numbers == "base64":
        values = base64.b64encode(embedding.values.astype("<f4").tobytes()).decode()
    elif embedding is not None and numbers == "float":
        values = embedding.values.tolist()
    given = embedding is not None and numbers != "none"
    return {
        "id": subject.id,
        "file": subject.file,
        "ra": subject.ra,
        "dec": subject.dec,
        "status": outcome.status,
        "embedding": values,
        "shape": embedding.values.shape if embedding is not None and given else None,
        "rows": [MODALITIES[key].name for key in embedding.modalities]
        if embedding is not None and embedding.pooling != "mean"
        else None,
        "modalities_used": outcome.modalities,
        "n_tokens": embedding.n_tokens if embedding else 0,
        "cache": outcome.cache,
        "qa_flags": outcome.flags,
        "warnings": [trouble_data(warning) for warning in outcome.warnings],
        "error": trouble_data(outcome.error) if outcome.error else None,
    }


def predicted_data(one: Prediction[Answers], density: bool) -> dict[str, Any]:
    """What the heads say of one object, as `PredictedItem`; `density` also gives the probabilities of cells."""
    outcome = one.outcome
    return {
        "id": outcome.subject.id,
        "file": outcome.subject.file,
        "ra": outcome.subject.ra,
        "dec": outcome.subject.dec,
        "status": predicted_status(one),
        "predictions": {name: _answer_data(answer, density) for name, answer in (one.answer or {}).items()},
        "modalities_used": one.modalities,
        "n_tokens": one.n_tokens,
        "qa_flags": outcome.flags,
        "warnings": [trouble_data(warning) for warning in outcome.warnings],
        "error": trouble_data(outcome.error) if outcome.error else None,
    }


def _answer_data(answer: Answer | AlbireoError, density: bool) -> dict[str, Any]:
    if isinstance(answer, AlbireoError):
        nothing: dict[str, Any] = {"numbers": [], "class": None, "classes": {}, "density": None, "flags": []}
        return nothing | {"typicality": None, "error": trouble_data(answer)}
    data = as_data(answer, density) | {"error": None}
    if data["density"] is not None:
        data["density"].setdefault("probability", None)
    return data


Common = Callable[[], dict[str, Any]]
"""Gives the envelope of an answer, with the time until then: asked for when the rest of the answer is made."""


def envelope(done: Embedded | Predicted, engine: Engine, request: Request) -> dict[str, Any]:
    """What an answer says of the computation, as `schemas.Envelope`."""
    return {
        "space": done.space,
        "model": engine.name,
        **asdict(done.numerics),
        "dim": engine.dim,
        "timings_ms": tally().timings.milliseconds(*EMBEDS),
        "usage": {"tokens": done.n_tokens},
        "request_id": request.state.request_id,
    }


def search_envelope(
    collection: Collection, engine: Engine, k: int, embedded: Embedded | None, request: Request
) -> dict[str, Any]:
    """What an answer says of a search; `embedded` are the queries that were objects."""
    stages: tuple[Stage, ...] = ("parse", "search", "serialize") if embedded is None else (*EMBEDS, "search")
    total = round((time.monotonic() - tally().began) * 1e3, 3)
    return {
        "collection": collection.name,
        "space": collection.space,
        "model": engine.name,
        "metric": collection.metric,
        "exact": True,
        "k": k,
        "timings_ms": tally().timings.milliseconds(*stages) | {"total": total},
        "request_id": request.state.request_id,
    }


def embed_answer(
    forms: Sequence[Form], embedded: Embedded, common: Common, options: schemas.Options, request: Request
) -> Response:
    """The embeddings in the first of the forms that can hold them."""
    outcomes, failed, dim = embedded.outcomes, embedded.n_failed, common()["dim"]

    def given(numbers: Numbers) -> list[dict[str, Any]]:
        return [item_data(outcome, numbers) for outcome in outcomes]

    if (failure := all_failed(embedded, lambda: given("none"), request)) is not None:
        return failure
    refused_by: AlbireoError | None = None
    for form in forms:
        if form.media_type == formats.JSON:
            items = formats.json_bytes(given(options.encoding))
            return formats.respond(formats.with_entries(common(), "items", items), formats.JSON, failed)
        if form.media_type == formats.RAW:
            there = [outcome.embedding.values for outcome in outcomes if outcome.embedding]
            numbers = {"dtype": "<f4", "shape": [sum(values.size // dim for values in there), dim]}
            items = formats.json_bytes(given("apart"))
            header = formats.with_entries({**common(), "numbers": numbers}, "items", items)
            return formats.as_raw(header, there, failed)
        if form.media_type == formats.NPY:
            try:
                return formats.as_npy(outcomes)
            except NotAcceptable as error:
                refused_by = error
                continue
        table = embedding_table(outcomes, embedding_schema(dim, {}, outcome=True))
        return formats.as_table(table, form, failed, {**common(), "pooling": options.pooling})
    assert refused_by is not None
    return documented(refused_by, given("none"), request, 406)


def predict_answer(
    forms: Sequence[Form], predicted: Predicted, engine: Engine, common: Common, density: bool, request: Request
) -> Response:  # fmt: skip
    """What heads say, in the first of the forms; `density` also gives the cells of redshifts and their edges."""

    def given() -> list[dict[str, Any]]:
        return [predicted_data(one, density) for one in predicted.predictions]

    if (failure := all_failed(predicted, given, request)) is not None:
        return failure
    heads = {
        name: one.identity(predicted.space, one.edges(engine) if density else None)
        for name, one in predicted.heads.items()
    }
    if forms[0].media_type == formats.JSON:
        items = formats.json_bytes(given())
        content = formats.with_entries({**common(), "heads": heads}, "items", items)
        return formats.respond(content, formats.JSON, predicted.n_failed)
    schema = prediction_schema(predicted.heads, density, {}, outcome=True)
    table = prediction_table(predicted.predictions, predicted.heads, density, schema)
    return formats.as_table(table, forms[0], predicted.n_failed, {**common(), "heads": heads})


def search_answer(
    forms: Sequence[Form],
    common: Common,
    outcomes: Sequence[Outcome | None],
    found: Sequence[Neighbours],
    ids: Sequence[str | None],
) -> Response:
    """The neighbours of each query, in the first of the forms; `ids` are those of the queries."""
    failed = sum(outcome is not None and outcome.error is not None for outcome in outcomes)
    if forms[0].media_type == formats.JSON:
        results = [query_data(outcome, one) for outcome, one in zip(outcomes, found, strict=True)]
        content = formats.with_entries(common(), "results", formats.json_bytes(results))
        return formats.respond(content, formats.JSON, failed)
    return formats.as_table(neighbour_table(outcomes, found, ids, {}), forms[0], failed, common())


def trouble(error: AlbireoError) -> schemas.Trouble:
    return schemas.Trouble(**error.as_dict())


def trouble_data(error: AlbireoError) -> dict[str, Any]:
    """The same as plain data."""
    return {
        "code": error.code, "message": error.message, "file": error.file, "field": error.field, "fix": error.fix
    }  # fmt: skip


def all_failed(
    done: Embedded | Predicted, items: Callable[[], Sequence[dict[str, Any]]], request: Request
) -> Response | None:
    """The problem document of a request without one good object; None if there is one.

    It speaks of the first error, and lists every object with its own.
    """
    errors = [outcome.error for outcome in done.outcomes if outcome.error is not None]
    if len(errors) < len(done.outcomes):
        return None
    if not errors:
        raise BadInput("request_invalid", "nothing was sent", field="items", fix="send files or items")
    return refused(errors[0], items(), request, max(422, status_of(errors[0])))


def refused(first: AlbireoError, items: Sequence[dict[str, Any]], request: Request, status: int = 422) -> Response:
    """The problem document of a request whose every object failed, the first of them with error `first`."""
    detail = f"all {len(items)} objects failed; the first: {first.message}" if len(items) > 1 else first.message
    return documented(first, items, request, status, detail)


def documented(
    error: AlbireoError, items: Sequence[dict[str, Any]], request: Request, status: int, detail: str | None = None
) -> Response:
    """A problem document that lists every object."""
    body = problem(error, request.state.request_id, status, items=items)
    return Response(formats.json_bytes(body | {"detail": detail or error.message}), status, media_type=MEDIA_TYPE)


async def refused_whole(request: Request, error: Exception) -> Response:
    """The problem document of a request that a bad object fails as a whole; it lists those that were found bad."""
    assert isinstance(error, Refused)
    return documented(error, [item_data(outcome, "none") for outcome in error.outcomes], request, 422)


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


def vector_data(id: str, error: AlbireoError | None) -> dict[str, Any]:
    """What became of an object that came with its vector, as `schemas.ItemReply`."""
    subject = Subject(id, None, error=error)
    return item_data(Outcome(subject), "none")


def query_data(outcome: Outcome | None, found: Neighbours) -> dict[str, Any]:
    """The neighbours of one query, as `schemas.QueryReply`."""
    return {
        "query": item_data(outcome, "none") if outcome else None,
        "k_returned": len(found.hits),
        "short_reason": found.short_reason,
        "hits": [
            {
                "id": hit.id,
                "score": hit.score,
                "ra": hit.ra,
                "dec": hit.dec,
                "modalities": hit.modalities,
                "metadata": dict(hit.metadata),
            }
            for hit in found.hits
        ],
    }


def collection_reply(collection: Collection) -> schemas.CollectionReply:
    return schemas.CollectionReply(
        name=collection.name,
        space=collection.space,
        dim=collection.dim,
        metric=collection.metric,
        count=collection.count,
    )


def in_milliseconds(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value * 1e3, 3) for name, value in seconds.items()}
