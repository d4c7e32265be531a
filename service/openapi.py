"""What the OpenAPI document says beyond what FastAPI finds by itself: the forms of a body, the problem documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from albireo.service import examples, oip_schemas, schemas, token_schemas
from albireo.service import reply_formats as formats
from albireo.service.access import SCHEMES, asks_for_key
from albireo.service.bodies import FILE_TYPES
from albireo.service.generation_schemas import GenerateRequest
from albireo.service.prediction_schemas import PredictOne, PredictRequest
from albireo.service.problems import MEDIA_TYPE, OIP
from albireo.service.reading_flags import FLAGS, Flag

REF = "#/components/schemas/{model}"

MODELS = (
    schemas.EmbedRequest,
    PredictOne,
    PredictRequest,
    schemas.ObjectsRequest,
    schemas.SearchRequest,
    token_schemas.TokenizeRequest,
    token_schemas.DetokenizeRequest,
    GenerateRequest,
    oip_schemas.IndexRequest,
    oip_schemas.InferenceRequest,
    schemas.Problem,
)
"""Bodies that the handlers parse themselves, and what every operation may answer."""

_TYPES = {"number": "number", "switch": "boolean"}


def body_of(model: type[schemas.Model], files: Sequence[str] = FILE_TYPES, form: bool = True) -> dict[str, Any]:
    """The forms in which the request `model` may come, and the query parameters of the forms without JSON.

    files  content types of a body that is one file
    form   whether files may come in a multipart body
    """
    named = {"$ref": REF.format(model=model.__name__)}
    example = examples.REQUESTS[model.__name__]
    content: dict[str, Any] = {"application/json": {"schema": named, "examples": {"values": {"value": example}}}}
    if form:
        parts = {
            "type": "object",
            "description": "files, each under a name of its own or all as `file`, and optionally the JSON as `request`",
            "properties": {
                "request": named,
                "file": {"type": "array", "items": {"type": "string", "format": "binary"}},
            },
        }
        content["multipart/form-data"] = {
            "schema": parts,
            "encoding": {"request": {"contentType": "application/json"}},
            "examples": {"values": {"summary": "the JSON alone", "value": {"request": example}}},
        }
    for kind in files:
        content[kind] = {"schema": {"type": "string", "format": "binary", "description": examples.BODIES[kind]}}
        if kind == formats.CSV:
            content[kind]["examples"] = {"photometry": {"value": examples.TABLE_TEXT}}
    parameters = _parameters(model) if form else []
    return {"openapi_extra": {"requestBody": {"required": True, "content": content}, "parameters": parameters}}


def answers_of(model: type[schemas.Model], offered: Sequence[str] = (formats.JSON,)) -> dict[int | str, dict[str, Any]]:
    """What an operation answers if it succeeds, in every form that `Accept` may ask for."""
    example = examples.ANSWERS.get(model.__name__)
    content: dict[str, Any] = {}
    for kind in offered:
        if kind != formats.JSON:
            content[kind] = {"schema": {"type": "string", "format": "binary", "description": examples.LAYOUTS[kind]}}
        elif example is not None:
            content[kind] = {"examples": {"values": {"value": example}}}
        if kind == formats.CSV:
            content[kind]["examples"] = {"values": {"value": examples.CSV_ANSWERS[model.__name__]}}
    return {200: {"content": content}}


def problems_of(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem documents that an operation answers with."""
    content = {MEDIA_TYPE: {"schema": {"$ref": REF.format(model="Problem")}}}
    return {status: {"description": "problem document (RFC 9457)", "content": content} for status in statuses}


def install(app: FastAPI) -> None:
    """Let the OpenAPI document name the models of bodies that the handlers parse themselves."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            for path, row in made["paths"].items():
                if path.startswith(OIP):  # where a request that is not as it must be is answered with 400
                    for operation in row.values():
                        operation["responses"].pop("422", None)
            known = made.setdefault("components", {}).setdefault("schemas", {})
            for model in MODELS:
                schema = model.model_json_schema(ref_template=REF)
                for name, part in schema.pop("$defs", {}).items():
                    known.setdefault(name, part)
                known.setdefault(model.__name__, schema)
            for unused in ("HTTPValidationError", "ValidationError"):
                known.pop(unused, None)
            known["Problem"]["examples"] = [examples.ANSWERS["Problem"]]
            made["components"]["securitySchemes"] = SCHEMES
            for path, row in made["paths"].items():
                for method, operation in row.items():
                    if asks_for_key(f"{method.upper()} {path}"):  # {}: a service without keys asks for none
                        operation["security"] = [*({name: []} for name in SCHEMES), {}]
            made["components"]["parameters"] = {flag.field: _reading(flag) for flag in FLAGS}
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _parameters(model: type[schemas.Model]) -> list[dict[str, Any]]:
    """Query parameters: the read options, and what a JSON part would say."""
    rows: list[tuple[str, dict[str, Any], str]] = [
        ("filename", {"type": "string"}, "name of a bare file, in messages and provenance")
    ]
    if "k" in model.model_fields:
        rows.append(("k", {"type": "integer", "default": 10}, "neighbours wanted"))
    if "heads" in model.model_fields:
        rows.append(("heads", {"type": "string"}, "names with commas between them; without a JSON part"))
    options: Any = model.model_fields["options"].annotation
    fields = {field.alias or name: field for name, field in options.model_fields.items()}
    for name, form in options.in_query.items():
        rows.append((name, form, f"{fields[name].description}; without a JSON part"))
    own = [_query(name, schema, text) for name, schema, text in rows]
    return own + [{"$ref": f"#/components/parameters/{flag.field}"} for flag in FLAGS]


def _reading(flag: Flag) -> dict[str, Any]:
    """A reading option as a query parameter."""
    schema: dict[str, Any] = {"type": _TYPES.get(flag.shape, "string")}
    if flag.choices:
        schema |= {"enum": list(flag.choices)}
    if flag.shape in ("words", "pairs"):
        schema = {"type": "array", "items": schema}
    return _query(flag.field, schema, flag.help)


def _query(name: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": text}
