"""Every operation of the HTTP door: its address, its handler, and what the OpenAPI document says of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import APIRouter

from albireo.service import reply_formats as formats
from albireo.service import schemas
from albireo.service import token_schemas as tokens
from albireo.service.generation_routes import GenerationDoors
from albireo.service.generation_schemas import GenerateReply, GenerateRequest
from albireo.service.openapi import answers_of, body_of, problems_of
from albireo.service.prediction_schemas import HeadsReply, PredictOne, PredictReply, PredictRequest

INFERENCE = (400, 413, 415, 422, 503, 504)
"""Statuses of problem documents that every operation with a body may answer with."""

GUARDED = (401, 403, 429)
"""Those that every operation below /v1 may answer with: keys, roles, quotas, too much work."""

NPZ_BODIES = ("application/x-npz", "application/octet-stream")


def router(doors: GenerationDoors) -> APIRouter:
    """The operations."""
    routes = APIRouter()

    def add(
        method: str,
        path: str,
        handler: Callable[..., Any],
        model: type[schemas.Model],
        *failures: int,
        offered: Sequence[str] = (formats.JSON,),
        **more: Any,
    ) -> None:
        name = handler.__name__ if handler.__name__ != "put_collection" else "create_collection"
        refusals = {*failures, *((406,) if len(offered) > 1 else ()), *(GUARDED if path.startswith("/v1/") else ())}
        routes.add_api_route(
            path,
            handler,
            methods=[method],
            response_model=model,
            responses=answers_of(model, offered) | problems_of(*sorted(refusals)),
            operation_id=name,
            summary=(handler.__doc__ or "").partition(".")[0].partition(":")[0],
            **more,
        )

    embed, objects, search = (
        body_of(model) for model in (schemas.EmbedRequest, schemas.ObjectsRequest, schemas.SearchRequest)
    )
    add("POST", "/v1/validate", doors.validate, schemas.ValidateReply, *INFERENCE, **embed)
    add(
        "POST", "/v1/tokenize", doors.tokenize, tokens.TokenizeReply, 404, *INFERENCE, offered=formats.TOKENS,
        **body_of(tokens.TokenizeRequest),
    )  # fmt: skip
    add(
        "POST", "/v1/detokenize", doors.detokenize, tokens.DetokenizeReply, 404, 409, *INFERENCE,
        offered=formats.NUMBERS, **body_of(tokens.DetokenizeRequest, NPZ_BODIES, form=False),
    )  # fmt: skip
    add("POST", "/v1/embed", doors.embed, schemas.EmbedReply, 404, *INFERENCE, offered=formats.EMBEDDINGS, **embed)
    heads = (404, 409, *INFERENCE)
    add(
        "POST", "/v1/predict", doors.predict, PredictReply, *heads, offered=formats.ROWS, **body_of(PredictRequest)
    )  # fmt: skip
    add(
        "POST", "/v1/predict/{head}", doors.predict_one, PredictReply, *heads, offered=formats.ROWS,
        **body_of(PredictOne),
    )  # fmt: skip
    add("GET", "/v1/heads", doors.heads, HeadsReply)
    add(
        "POST", "/v1/generate", doors.generate, GenerateReply, 404, *INFERENCE, offered=formats.DRAWS,
        **body_of(GenerateRequest),
    )  # fmt: skip
    add("PUT", "/v1/collections/{c}", doors.put_collection, schemas.CollectionReply, 400, 409, 422, 503, 507)
    add("GET", "/v1/collections", doors.collections, schemas.CollectionsReply, 503)
    add("GET", "/v1/collections/{c}", doors.collection, schemas.CollectionReply, 404, 422, 503)
    add("POST", "/v1/collections/{c}/objects", doors.objects, schemas.ObjectsReply, *heads, 507, **objects)
    add(
        "POST", "/v1/collections/{c}/search", doors.search, schemas.SearchReply, *heads, offered=formats.ROWS, **search
    )  # fmt: skip
    add("GET", "/v1/models", doors.models, tokens.ModelsReply)
    add("GET", "/v1/models/{id}", doors.model, tokens.ModelReply, 404, 422)
    add("GET", "/v1/modalities", doors.modalities, tokens.ModalitiesReply)
    add("GET", "/v1/formats", doors.formats, tokens.FormatsReply)
    add("GET", "/v1/limits", doors.limits, tokens.LimitsReply)
    add("GET", "/v1/info", doors.info, schemas.InfoReply)
    add("GET", "/livez", doors.livez, schemas.LiveReply)
    add("GET", "/startupz", doors.startupz, schemas.StartedReply, 503)
    add("GET", "/readyz", doors.readyz, schemas.ReadyReply, 503)
    for probe in (doors.livez, doors.startupz, doors.readyz):  # some who probe want the status alone
        name = probe.__name__
        routes.add_api_route(f"/{name}", probe, methods=["HEAD"], operation_id=name, include_in_schema=False)
    return routes
