"""Request bodies: a multipart form, a bare file, or JSON; and the limit on their size.

Body    what was sent: the JSON model (or its defaults) and file parts
Limits  ASGI middleware: a request id for every request, and no body over the limit
"""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from albireo.observations.errors import AlbireoError, TooLarge
from albireo.observations.options import ReadOptions
from albireo.observations.source import Source
from albireo.service.inputs import Gatherer, Part, override
from albireo.service.prediction_schemas import PredictOptions
from albireo.service.problems import Malformed, WrongContentType, from_validation, problem
from albireo.service.reading_flags import FLAGS, read_options
from albireo.service.schemas import Model, Options

FILE_TYPES = frozenset({"application/fits", "image/fits", "application/octet-stream"})
MAX_PARTS = 10_000

M = TypeVar("M", bound=Model)


@dataclass(frozen=True)
class Body(Generic[M]):
    """`content` is the JSON part or the model's defaults; `parts` the files; `options` read options of the whole."""

    content: M
    parts: tuple[Part, ...]
    options: ReadOptions

    def gatherer(self) -> Gatherer:
        return Gatherer(self.parts, self.options)


async def read_body(request: Request, model: type[M]) -> Body[M]:
    """The body of a request in any of its forms; query parameters fill what a JSON part does not say."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    parts: list[Part] = []
    text: bytes | None = None
    if kind == "multipart/form-data":
        text, parts = await _form(request)
    elif kind in FILE_TYPES:
        name = request.query_params.get("filename", "body")
        parts = [_part("body", name, await request.body())]
    elif kind == "application/json":
        text = await request.body()
    else:
        raise WrongContentType(
            "content_type",
            f"a body of type {kind or '(not stated)'!r}",
            field="Content-Type",
            fix="send application/json, multipart/form-data, or a file as application/fits or "
            "application/octet-stream (curl: -H 'Content-Type: application/octet-stream')",
        )
    query = _from_query(request, model, text is not None)
    try:
        content = model.model_validate(query) if text is None else model.model_validate_json(text)
    except ValidationError as error:
        raise from_validation(error.errors()) from error
    return Body(content, tuple(parts), _options(request, content))


def _options(request: Request, content: Model) -> ReadOptions:
    many = {flag.field for flag in FLAGS if flag.shape in ("words", "pairs")}
    query = request.query_params
    texts = {f.field: query.getlist(f.field) if f.field in many else query.get(f.field) for f in FLAGS}
    options = read_options(texts)
    stated: Options | PredictOptions = getattr(content, "options", Options())
    if stated.read is not None:
        own = ReadOptions(**{flag.field: getattr(stated.read, flag.field) for flag in FLAGS})
        options = override(options, own)
    return options


def _from_query(request: Request, model: type[Model], has_json: bool) -> dict[str, Any]:
    """The model's fields that query parameters give, unless a JSON part does; unknown parameters are refused."""
    query = dict(request.query_params)
    chosen = getattr(model.model_fields.get("options"), "annotation", None)
    stated = () if has_json or chosen is None else chosen.in_query
    options = {name: query.pop(name) for name in stated if name in query}
    named = () if has_json else [name for name in ("k", "model", "heads") if name in model.model_fields]
    values: dict[str, Any] = {name: query.pop(name) for name in named if name in query}
    if "heads" in values:
        values["heads"] = values["heads"].split(",")
    unknown = query.keys() - {flag.field for flag in FLAGS} - {"filename"}
    if unknown:
        raise Malformed(
            "request_invalid",
            "no such query parameter",
            field=min(unknown),
            fix="see /docs; a JSON part says it all itself",
        )
    return values | ({"options": options} if options else {})


async def _form(request: Request) -> tuple[bytes | None, list[Part]]:
    """The `request` part and the files of a multipart body."""
    text: bytes | None = None
    parts = []
    end = f"--{request.headers['content-type'].partition('boundary=')[2].partition(';')[0].strip().strip(chr(34))}--"
    tail = b""

    async def watched() -> AsyncGenerator[bytes, None]:
        nonlocal tail
        async for chunk in request.stream():
            tail = (tail + chunk)[-256:]
            yield chunk

    try:
        # The size of the whole body is limited already; a JSON part may carry base64 files.
        parser = MultiPartParser(request.headers, watched(), max_files=MAX_PARTS, max_part_size=1 << 40)
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:
        raise Malformed("request_invalid", f"multipart: {error}", field="body") from error
    try:
        # The parser takes a body that breaks off for a whole one, and would drop its last part.
        if end.encode() not in tail:
            raise Malformed("request_invalid", "the multipart body breaks off", field="body", fix="send it again")
        fields = [
            (name, value, await value.read() if isinstance(value, UploadFile) else value.encode())
            for name, value in form.multi_items()
        ]
    finally:
        await form.close()
    for name, value, content in fields:
        if name == "request":
            text = content
        elif isinstance(value, UploadFile):
            parts.append(_part(name, value.filename or name, content))
        else:
            raise Malformed(
                "request_invalid",
                "a form field that is neither `request` nor a file",
                field=name,
                fix="put options into the JSON part `request` or into the query string",
            )
    return text, parts


def _part(name: str, filename: str, content: bytes) -> Part:
    try:
        return Part(name, filename, Source(filename, content))
    except AlbireoError as error:
        return Part(name, filename, error)


class Limits:
    """Gives every request an id, taken from X-Request-Id if it is a fit one, and refuses bodies over the limit."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", "")
        request_id = given if re.fullmatch(r"[A-Za-z0-9._-]{1,128}", given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def tagged(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        stated = headers.get(b"content-length", "")
        if stated.isdigit() and int(stated) > self.max_body_bytes:
            await self._refuse(scope, receive, tagged)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.max_body_bytes:
                raise self.error()
            return message

        await self.app(scope, counted, tagged)

    def error(self) -> TooLarge:
        return TooLarge(
            "too_large",
            f"the body is over {self.max_body_bytes} bytes",
            field="body",
            fix="send fewer files a request, or raise ALBIREO_MAX_BODY_BYTES",
        )

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.responses import JSONResponse

        body: Mapping[str, Any] = problem(self.error(), scope["state"]["request_id"])
        await JSONResponse(body, 413, media_type="application/problem+json")(scope, receive, send)
