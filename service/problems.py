"""Errors as RFC 9457 problem documents: one table from error class to HTTP status, one document, one handler each."""

from __future__ import annotations

import html
import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from albireo.observations.errors import (
    CODES,
    AlbireoError,
    BadCheckpoint,
    BadInput,
    Busy,
    Conflict,
    Denied,
    Full,
    Gone,
    Late,
    NoKey,
    NotFound,
    TooLarge,
    Unavailable,
    UnknownFormat,
)
from albireo.service.watch import tally


class Malformed(BadInput):
    """A body that cannot be parsed at all."""


class WrongContentType(BadInput):
    """A body of a content type that is not read here."""


class NotAcceptable(BadInput):
    """An answer cannot be given in any format that was asked for."""


STATUS: dict[type[AlbireoError], int] = {
    AlbireoError: 500,
    BadInput: 422,
    Malformed: 400,
    WrongContentType: 415,
    NotAcceptable: 406,
    UnknownFormat: 415,
    TooLarge: 413,
    NotFound: 404,
    Conflict: 409,
    BadCheckpoint: 500,
    Denied: 403,
    NoKey: 401,
    Unavailable: 503,
    Busy: 429,
    Full: 507,
    Late: 504,
    Gone: 499,
}
"""Error class -> HTTP status; the nearest class in the tree decides."""

GRPC_STATUS: dict[type[AlbireoError], str] = {
    AlbireoError: "INTERNAL",
    BadInput: "INVALID_ARGUMENT",
    NotFound: "NOT_FOUND",
    Conflict: "FAILED_PRECONDITION",
    BadCheckpoint: "INTERNAL",
    Denied: "PERMISSION_DENIED",
    NoKey: "UNAUTHENTICATED",
    Unavailable: "UNAVAILABLE",
    Busy: "RESOURCE_EXHAUSTED",
    Full: "RESOURCE_EXHAUSTED",
    Late: "DEADLINE_EXCEEDED",
    Gone: "CANCELLED",
}
"""Error class -> name of the gRPC status; the nearest class in the tree decides."""

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = "5"

OIP = "/v2"
"""Below it errors are answered as the Open Inference Protocol has it."""

_HTTP_CODES = {404: "route_unknown", 405: "method_not_allowed", 413: "too_large", 415: "content_type"}


def status_of(error: AlbireoError) -> int:
    """The HTTP status of an error."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def grpc_status_of(error: AlbireoError) -> str:
    """The name of the gRPC status of an error."""
    return next(GRPC_STATUS[kind] for kind in type(error).__mro__ if kind in GRPC_STATUS)


def retry_after(error: AlbireoError) -> str:
    """Whole seconds after which a refused request may be sent again."""
    return str(math.ceil(error.retry_after)) if isinstance(error, Busy) else RETRY_AFTER


def problem(error: AlbireoError, request_id: str, status: int | None = None, **more: Any) -> dict[str, Any]:
    """The problem document of an error that answers a request; absent parts are left out."""
    tally().code = error.code
    return {
        "type": f"/docs/errors#{error.code}",
        "title": CODES[error.code],
        "status": status or status_of(error),
        "detail": error.message,
        **{key: value for key, value in error.as_dict().items() if key != "message"},
        "request_id": request_id,
        **more,
    }


def respond(error: AlbireoError, request: Request, status: int | None = None) -> JSONResponse:
    """The answer to a request that failed."""
    return document(error, request.url.path, request.state.request_id, status)


def document(error: AlbireoError, path: str, request_id: str, status: int | None = None) -> JSONResponse:
    """The answer to a request to `path` that failed: a problem document; below /v2 a text, and 400 for bad input."""
    status = status or status_of(error)
    headers = {"Retry-After": retry_after(error)} if status in (429, 503) else {}
    content = problem(error, request_id, status)
    if path == OIP or path.startswith(f"{OIP}/"):
        return JSONResponse({"error": str(error)}, 400 if status == 422 else status, headers)
    return JSONResponse(content, status, headers, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Let every error of `app` leave as a problem document, and serve the page that explains the codes."""

    @app.exception_handler(AlbireoError)
    async def known(request: Request, error: AlbireoError) -> JSONResponse:
        return respond(error, request)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return respond(from_validation(error.errors()), request)

    @app.exception_handler(HTTPException)
    async def routing(request: Request, error: HTTPException) -> JSONResponse:
        code = _HTTP_CODES.get(error.status_code, "request_invalid")
        fix = "the operations are listed at /docs" if error.status_code in (404, 405) else None
        where = f"{request.method} {request.url.path}"
        return respond(AlbireoError(code, str(error.detail), field=where, fix=fix), request, error.status_code)

    @app.exception_handler(Exception)
    async def defect(request: Request, error: Exception) -> JSONResponse:
        # The server logs the traceback under the same request id; the client learns nothing of our insides.
        return respond(AlbireoError("internal", "the service failed on this request"), request)

    @app.get("/docs/errors", include_in_schema=False)
    async def explain() -> HTMLResponse:
        rows = "".join(f'<dt id="{code}"><code>{code}</code></dt><dd>{html.escape(CODES[code])}</dd>' for code in CODES)
        return HTMLResponse(f"<!doctype html><title>Albireo: error codes</title><h1>Error codes</h1><dl>{rows}</dl>")


def from_validation(errors: Any) -> BadInput:
    """The first complaint of pydantic, as ours; a body that is no JSON is `Malformed`."""
    first = errors[0]
    field = ".".join(str(part) for part in first["loc"] if part != "body") or None
    if first["type"] == "json_invalid":
        return Malformed("request_invalid", f"not JSON: {first.get('ctx', {}).get('error', first['msg'])}", field=field)
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return BadInput("request_invalid", first["msg"] + more, field=field, fix="the request is described at /docs")
