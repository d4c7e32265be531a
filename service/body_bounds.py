"""Bodies that grow when they are read: gzipped ones, and JSON, of which every two bytes may become an object.

Bounds  ASGI middleware: unfolds `Content-Encoding: gzip` or `deflate`, and takes room for JSON before it is parsed
weigh   takes room for a JSON text
"""

from __future__ import annotations

import zlib

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from albireo.observations.errors import TooLarge
from albireo.observations.room import current_room
from albireo.service.problems import Malformed, WrongContentType, document

ENCODINGS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
"""Content-Encoding -> the format, as zlib names it."""

WEIGHTS = ((b"{", 2000), (b"[", 100), (b",", 32))
"""Character -> bytes that a parsed and validated JSON text takes for each at most: an object, a list, a number."""


def weigh(text: bytes) -> None:
    """Take room for what a JSON text becomes in memory. TooLarge if there is not so much."""
    room = current_room()
    if room is not None:
        room.take(sum(weight * text.count(mark) for mark, weight in WEIGHTS))


class Bounds:
    """What comes out of a body, never more than a body may have.

    max_body_bytes  also of a body once it is unfolded
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        encoding = headers.get(b"content-encoding", b"").strip().lower()
        if encoding in ENCODINGS:
            # The headers now tell of the unfolded body, of which nobody knows the length.
            gone = (b"content-encoding", b"content-length")
            scope["headers"] = [(name, value) for name, value in scope["headers"] if name not in gone]
            receive = self._unfolded(receive, encoding)
        elif encoding not in (b"", b"identity"):
            error = WrongContentType(
                "content_type",
                f"a body in encoding {encoding.decode('latin-1')!r}",
                field="Content-Encoding",
                fix="send it as it is, or by gzip or deflate",
            )
            await document(error, scope["path"], scope["state"]["request_id"])(scope, receive, send)
            return
        if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() == b"application/json":
            receive = _weighed(receive)
        await self.app(scope, receive, send)

    def _unfolded(self, receive: Receive, encoding: bytes) -> Receive:
        name = encoding.decode()
        unfolding = zlib.decompressobj(ENCODINGS[encoding])
        left = self.max_body_bytes
        begun = False

        async def unfolded() -> Message:
            nonlocal unfolding, left, begun
            message = await receive()
            if message["type"] != "http.request":
                return message
            some, parts = message.get("body", b""), []
            try:
                while some:
                    if unfolding.eof:  # another member follows
                        unfolding = zlib.decompressobj(ENCODINGS[encoding])
                    begun = True
                    parts.append(unfolding.decompress(some, left + 1))
                    left -= len(parts[-1])
                    if left < 0:
                        raise TooLarge(
                            "too_large",
                            f"the body unfolds to more than {self.max_body_bytes} bytes",
                            field="body",
                            fix="send fewer files a request, or raise ALBIREO_MAX_BODY_BYTES",
                        )
                    some = unfolding.unused_data
            except zlib.error as error:
                raise Malformed("request_invalid", f"{name}: {error}", field="body", fix="send it again") from error
            if begun and not message.get("more_body", False) and not unfolding.eof:
                raise Malformed("request_invalid", f"the {name} body breaks off", field="body", fix="send it again")
            return {**message, "body": b"".join(parts)}

        return unfolded


def _weighed(receive: Receive) -> Receive:
    async def weighed() -> Message:
        message = await receive()
        weigh(message.get("body", b""))
        return message

    return weighed
