"""The REST door of the Open Inference Protocol, version 2: everything below /v2.

Tensors travel as JSON or, by the extension for binary data, behind it. Errors are {"error": "..."}.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ValidationError

from albireo.observations.errors import BadInput, NotFound, Unavailable
from albireo.service import oip_schemas as schemas
from albireo.service.body_bounds import weigh
from albireo.service.oip import InferAnswer, Models, infer, model_config, model_metadata, refuse, server_metadata
from albireo.service.oip_models import InferRequest
from albireo.service.oip_tensors import Tensor, Value, from_bytes, from_json, to_bytes, to_json
from albireo.service.openapi import REF
from albireo.service.problems import OIP, Malformed, from_validation
from albireo.service.readiness import Readiness
from albireo.service.routes import SPARE
from albireo.service.settings import Settings
from albireo.service.tickets import Ticket
from albireo.service.watch import tally

Result = TypeVar("Result")
Body = TypeVar("Body", bound=BaseModel)

LENGTH = "Inference-Header-Content-Length"
"""Header: how many bytes of the body are JSON. The others are tensors, one after another."""

ELSEWHERE = {
    "systemsharedmemory": "shared memory",
    "cudasharedmemory": "shared memory",
    "load": "loading and unloading models",
    "unload": "loading and unloading models",
    "stats": "statistics",
    "trace": "traces",
    "logging": "logs",
}
"""Word of an address below /v2 -> the extension that it belongs to, which is not served."""


class OipDoors:
    """The handlers, over the models. Whatever computes runs in a thread."""

    def __init__(self, models: Models, settings: Settings, readiness: Readiness) -> None:
        self.models = models
        self.settings = settings
        self.readiness = readiness
        self._working = CapacityLimiter(settings.max_requests + SPARE)
        self._probing = CapacityLimiter(1)

    async def oip_server(self) -> Response:
        """The server, and the extensions of the protocol that it serves."""
        return _reply(server_metadata())

    async def oip_live(self) -> Response:
        """The process answers."""
        return _reply({"live": True})

    async def oip_ready(self) -> Response:
        """200 if the server is ready, as /readyz has it; else 503."""
        await self._check_ready()
        return _reply({"ready": True})

    async def oip_model(self, model: str, version: str = "") -> Response:
        """What tensors a model takes and gives, and what they mean."""
        return _reply(await self._work(lambda: model_metadata(self.models.get(model, version))))

    async def oip_model_ready(self, model: str, version: str = "") -> Response:
        """200 if the server is ready and the model fits the engine that is loaded."""
        error = await self._work(self.models.unready, model, version)
        if error is not None:
            raise error
        await self._check_ready()
        return _reply({"name": model, "ready": True})

    async def oip_config(self, model: str, version: str = "") -> Response:
        """A model in the words of Triton's model configuration."""
        most = self.settings.max_items
        return _reply(await self._work(lambda: model_config(self.models.get(model, version), most)))

    async def oip_index(self, request: Request) -> Response:
        """All models, or those that are ready."""
        body = await request.body()
        wanted = _parsed(schemas.IndexRequest, body) if body.strip() else schemas.IndexRequest()
        rows = await self._work(lambda: list(self.models.index()))
        return _reply([row for row in rows if row["state"] == "READY" or not wanted.ready])

    async def oip_infer(self, model: str, request: Request, version: str = "") -> Response:
        """Compute one request of a model. A row that fails, fails it."""
        body = await request.body()
        return await self._work(self._infer, model, version, request, body)

    async def oip_nothing(self, request: Request) -> Response:
        """What extensions of the protocol have elsewhere, and is not served here."""
        words = set(request.url.path.split("/"))
        extension = next((what for word, what in ELSEWHERE.items() if word in words), None)
        told = f"the extension for {extension} is not served" if extension else "there is no such address"
        raise NotFound("route_unknown", told, field=request.url.path, fix="the operations are listed at /docs")

    async def _work(self, function: Callable[..., Result], *args: Any) -> Result:
        return await anyio.to_thread.run_sync(function, *args, limiter=self._working)

    async def _check_ready(self) -> None:
        """Unavailable unless the service is ready."""
        report = await anyio.to_thread.run_sync(self.readiness.report, limiter=self._probing)
        if not report.ready:
            raise Unavailable("not_ready", report.reason, fix="see /readyz")

    def _infer(self, model: str, version: str, request: Request, body: bytes) -> Response:
        with tally().timings.stage("parse"):
            asked, binary = parsed(model, version, body, request.headers.get(LENGTH))
        ticket: Ticket = getattr(request.state, "ticket", None) or Ticket()
        answer = infer(self.models, asked, ticket, self.settings.max_items)
        with tally().timings.stage("serialize"):
            return _written(answer, binary)


def parsed(model: str, version: str, content: bytes, length: str | None) -> tuple[InferRequest, Callable[[str], bool]]:
    """A body as a request, and which outputs it wants in binary form; `length` bytes of it are JSON, None = all."""
    whole = length is None or (length.isascii() and length.isdecimal() and len(length) < 20)
    if length is not None and not (whole and int(length) <= len(content)):
        raise Malformed("request_invalid", f"{length!r} for a body of {len(content)} bytes", field=LENGTH)
    end = len(content) if length is None else int(length)
    weigh(content[:end])  # clients of the protocol do not say that it is JSON
    stated = _parsed(schemas.InferenceRequest, content[:end])
    if stated.model_name not in (None, model):
        raise BadInput("request_invalid", f"model_name {stated.model_name!r} at /v2/models/{model}", field="model_name")
    inputs, end = _inputs(stated.inputs, memoryview(content), end)
    if end != len(content):
        raise BadInput("shape_mismatch", f"{len(content) - end} bytes after the last tensor", field="body")
    everything = _flag(stated.parameters, "binary_data_output", False)
    forms = {one.name: _flag(one.parameters, "binary_data", everything) for one in stated.outputs}
    for one in stated.outputs:
        refuse(one.parameters, one.name)
    asked = InferRequest(
        model, inputs, stated.parameters, tuple(one.name for one in stated.outputs), version, stated.id
    )
    return asked, lambda name: forms.get(name, everything)


def router(doors: OipDoors) -> APIRouter:
    """Every operation, and what the OpenAPI document says of it."""
    routes = APIRouter(tags=["Open Inference Protocol v2"])

    def add(method: str, path: str, handler: Callable[..., Any], answer: Any, *failures: int, **more: Any) -> None:
        operation = handler.__name__ + ("_of_version" if "{version}" in path else "")
        routes.add_api_route(
            path,
            handler,
            methods=[method],
            response_model=answer,
            responses={status: {"model": schemas.OipError, "description": "why"} for status in failures},
            operation_id=operation,
            summary=(handler.__doc__ or "").partition(".")[0],
            **more,
        )

    binary = _body(schemas.InferenceRequest, True, "application/octet-stream")
    add("GET", f"{OIP}", doors.oip_server, schemas.ServerMetadata)
    everything = ["GET", "POST", "PUT", "DELETE", "PATCH"]
    routes.add_api_route(f"{OIP}/models/stats", doors.oip_nothing, methods=everything, include_in_schema=False)
    add("GET", f"{OIP}/health/live", doors.oip_live, schemas.ServerLive)
    add("GET", f"{OIP}/health/ready", doors.oip_ready, schemas.ServerReady, 503)
    add(
        "POST",
        f"{OIP}/repository/index",
        doors.oip_index,
        list[schemas.IndexEntry],
        400,
        413,
        429,
        503,
        **_body(schemas.IndexRequest, False),
    )
    for path in (f"{OIP}/models/{{model}}", f"{OIP}/models/{{model}}/versions/{{version}}"):
        add("GET", path, doors.oip_model, schemas.ModelMetadata, 404)
        add("GET", f"{path}/ready", doors.oip_model_ready, schemas.ModelReady, 400, 404, 409, 503)
        add("GET", f"{path}/config", doors.oip_config, schemas.ModelConfig, 404)
        failures = (400, 404, 409, 413, 429, 503, 504)
        add("POST", f"{path}/infer", doors.oip_infer, schemas.InferenceResponse, *failures, **binary)
    routes.add_api_route(f"{OIP}/{{rest:path}}", doors.oip_nothing, methods=everything, include_in_schema=False)
    return routes


def _parsed(model: type[Body], content: bytes | memoryview) -> Body:
    try:
        return model.model_validate_json(bytes(content))
    except ValidationError as error:
        raise from_validation(error.errors()) from error


def _inputs(stated: Sequence[schemas.RequestInput], content: memoryview, at: int) -> tuple[list[Tensor], int]:
    """The tensors of a request, and where the binary ones end; they begin at `at`."""
    out = []
    for one in stated:
        size = one.parameters.pop("binary_data_size", None)
        refuse(one.parameters, one.name)
        if size is None:
            out.append(from_json(one.name, one.datatype, one.shape, one.data))
        else:
            if one.data is not None:
                raise BadInput("request_invalid", "data and binary_data_size", field=one.name, fix="give one of them")
            if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(content) - at:
                told = f"binary_data_size {size!r}, {len(content) - at} bytes are left"
                raise BadInput("shape_mismatch", told, field=one.name, fix=f"send the header {LENGTH}")
            out.append(from_bytes(one.name, one.datatype, one.shape, content[at : at + size]))
            at += size
    return out, at


def _flag(parameters: dict[str, Value], name: str, default: bool) -> bool:
    """A parameter that says in which form something is given, taken out of the others."""
    stated = parameters.pop(name, default)
    if not isinstance(stated, bool):
        raise BadInput("option_invalid", f"{name} {stated!r}", field=name, fix="true or false")
    return stated


def _written(answer: InferAnswer, binary: Callable[[str], bool]) -> Response:
    """An answer as JSON, and behind it the outputs that were asked for in binary form."""
    outputs, parts = [], []
    for tensor in answer.outputs:
        about = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.values.shape)}
        if binary(tensor.name):
            parts.append(to_bytes(tensor))
            more: dict[str, Any] = {"parameters": {**tensor.parameters, "binary_data_size": len(parts[-1])}}
        else:
            more = {"parameters": dict(tensor.parameters), "data": to_json(tensor)}
        outputs.append(about | more)
    head = {"model_name": answer.model, "model_version": answer.version, "id": answer.id}
    text = _json(head | {"parameters": dict(answer.parameters), "outputs": outputs})
    if not parts:
        return Response(text, media_type="application/json")
    return Response(b"".join([text, *parts]), 200, {LENGTH: str(len(text))}, "application/octet-stream")


def _reply(content: Any) -> Response:
    return Response(_json(content), media_type="application/json")


def _json(content: Any) -> bytes:
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def _body(model: type[BaseModel], required: bool, *also: str) -> dict[str, Any]:
    """The OpenAPI document's words on a body that a handler parses itself; `also` are binary forms."""
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": REF.format(model=model.__name__)}}}
    content |= {kind: {"schema": {"type": "string", "format": "binary"}} for kind in also}
    return {"openapi_extra": {"requestBody": {"required": required, "content": content}}}
