"""Request bodies: a multipart form, a bare file, or JSON; and the limit on their size.

receive   takes a body in any of its forms
Received  a body as it came in
Body      what was sent: the JSON model (or its defaults) and file parts
Limits    ASGI middleware: no body over the limit
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from albireo.observations.errors import AlbireoError, TooLarge
from albireo.observations.options import ReadOptions
from albireo.observations.room import room_for
from albireo.observations.source import Source
from albireo.service.body_bounds import weigh
from albireo.service.inputs import Gatherer, Part, override
from albireo.service.problems import Malformed, WrongContentType, document, from_validation
from albireo.service.reading_flags import FLAGS, read_options
from albireo.service.schemas import Model

FILE_TYPES = (
    "application/fits",
    "image/fits",
    "application/vnd.apache.arrow.stream",
    "application/vnd.apache.arrow.file",
    "application/vnd.apache.parquet",
    "application/x-npz",
    "application/x-votable+xml",
    "text/csv",
    "application/avro",
    "application/octet-stream",
)
"""Types of a body that is one file. Its content tells the format: the last of them is for any that is read."""

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


@dataclass(frozen=True)
class Received:
    """A body as it came in; `text` is its JSON, if it has any. To understand it takes time: that is for a thread."""

    request: Request
    text: bytes | None
    parts: tuple[Part, ...]

    def body(self, model: type[M]) -> Body[M]:
        """What was sent; query parameters fill what a JSON part does not say."""
        query = _from_query(self.request, model, self.text is not None)
        try:
            content = model.model_validate(query) if self.text is None else model.model_validate_json(self.text)
        except ValidationError as error:
            raise from_validation(error.errors()) from error
        return Body(content, self.parts, _options(self.request, content))


async def receive(request: Request) -> Received:
    """The body of a request in any of its forms."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        text, parts = await _form(request)
        return Received(request, text, tuple(parts))
    if kind == "application/json":
        return Received(request, await request.body(), ())
    if kind in FILE_TYPES:
        name = request.query_params.get("filename", "body")
        return Received(request, None, (_part("body", name, await request.body()),))
    raise WrongContentType(
        "content_type",
        f"a body of type {kind or '(not stated)'!r}",
        field="Content-Type",
        fix="send application/json, multipart/form-data, or a file as " + " or ".join(FILE_TYPES)
        + " (curl: -H 'Content-Type: application/octet-stream')",
    )  # fmt: skip


def _options(request: Request, content: Model) -> ReadOptions:
    many = {flag.field for flag in FLAGS if flag.shape in ("words", "pairs")}
    query = request.query_params
    texts = {f.field: query.getlist(f.field) if f.field in many else query.get(f.field) for f in FLAGS}
    options = read_options(texts)
    stated: ReadOptions | None = getattr(getattr(content, "options", None), "read", None)
    return options if stated is None else override(options, stated)


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
            weigh(content)
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
    """Refuses bodies over the limit, and gives their files one room to unfold in."""

    def __init__(self, app: ASGIApp, max_body_bytes: int, max_decompressed_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.max_decompressed_bytes = max_decompressed_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        stated = headers.get(b"content-length", "")
        if stated.isdecimal() and int(stated) > self.max_body_bytes:
            await self._refuse(scope, receive, send)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.max_body_bytes:
                raise self.error()
            return message

        with room_for(self.max_decompressed_bytes):
            await self.app(scope, counted, send)

    def error(self) -> TooLarge:
        return TooLarge(
            "too_large",
            f"the body is over {self.max_body_bytes} bytes",
            field="body",
            fix="send fewer files a request, or raise ALBIREO_MAX_BODY_BYTES",
        )

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        await document(self.error(), scope["path"], scope["state"]["request_id"])(scope, receive, send)
