"""How the client talks HTTP: where, with which key, how long it waits, what it tries again; errors as they were raised.

Access      address, key and timeouts
Patience    when a request is sent again, and when no more
refusal     the error that an answer stands for, None for a good one
unanswered  the error that a broken or missing connection stands for
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import prod
from typing import Any

import httpx
import numpy as np

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

URL, TOKEN = "ALBIREO_URL", "ALBIREO_TOKEN"
DEFAULT_URL = "http://127.0.0.1:8000"

RAW = "application/vnd.albireo.raw"
ACCEPT = f"{RAW}, application/json;q=0.9"

CLASSES: dict[int, type[AlbireoError]] = {
    400: BadInput,
    401: NoKey,
    403: Denied,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    429: Busy,
    499: Gone,
    502: Unavailable,
    503: Unavailable,
    504: Late,
    507: Full,
}
"""HTTP status -> error class: the table of `problems.STATUS` turned round, and 502 of a proxy before a lost service."""

BY_CODE: dict[str, type[AlbireoError]] = {
    "cancelled": Gone,
    "checkpoint_invalid": BadCheckpoint,
    "collection_damaged": Unavailable,
    "deadline_exceeded": Late,
    "dependency_missing": Unavailable,
    "dimension_mismatch": Conflict,
    "file_not_found": NotFound,
    "internal": AlbireoError,
    "overloaded": Busy,
    "space_mismatch": Conflict,
    "storage_unavailable": Unavailable,
    "storage_full": Full,
    "too_large": TooLarge,
    "unknown_format": UnknownFormat,
}
"""Code -> error class where no status tells it, as in the error of one item; other codes are BadInput."""

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 20.0


@dataclass(frozen=True)
class Access:
    """Where the service is and who asks. Seconds.

    connect  until a connection stands
    read     between two parts of an answer: the service computes before the first
    total    during which a request is tried again; an attempt that has begun is waited for
    """

    url: str
    token: str | None = field(default=None, repr=False)
    connect: float = 5.0
    read: float = 300.0
    total: float = 120.0

    @classmethod
    def of(cls, url: str | None, token: str | None, **seconds: float) -> Access:
        """What is not given comes from the environment: ALBIREO_URL, ALBIREO_TOKEN."""
        where = url or os.environ.get(URL) or DEFAULT_URL
        if not where.startswith(("http://", "https://")):
            raise BadInput(
                "option_invalid", f"{where!r} is no address", field="url", fix="http://host:port or https://host"
            )
        return cls(where.rstrip("/"), token or os.environ.get(TOKEN) or None, **seconds)

    def options(self) -> dict[str, Any]:
        """What both kinds of httpx client are made with."""
        headers = {"Accept": ACCEPT, "User-Agent": "albireo-client"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        timeout = httpx.Timeout(self.read, connect=self.connect, pool=None)
        return {"base_url": self.url, "headers": headers, "timeout": timeout}


class Patience:
    """Of one request: pauses that double, each a random part of its length, at least as long as the server asks for."""

    def __init__(self, total: float, clock: Callable[[], float] = time.monotonic, seed: int | None = None) -> None:
        self.clock = clock
        self.until = clock() + total
        self.random = random.Random(seed)
        self.attempts = 0

    def pause(self, error: AlbireoError, asked: float | None) -> float:
        """Seconds to wait before the next attempt; raises the error if there shall be none.

        asked  seconds that the server asked for by Retry-After
        """
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2**self.attempts)
        seconds = max(asked or 0.0, self.random.uniform(longest / 2, longest))
        self.attempts += 1
        if not _worth_another(error) or self.clock() + seconds > self.until:
            if self.attempts > 1:
                error.add_note(f"after {self.attempts} attempts")
            raise error
        return seconds


def _worth_another(error: AlbireoError) -> bool:
    """429, 502, 503 and lost connections; never another 4xx, and not a deadline that passed."""
    return isinstance(error, Unavailable) and not isinstance(error, Late | Gone)


@dataclass(frozen=True)
class Refusal:
    """An answer that is an error, and its document; `asked` is its Retry-After in seconds."""

    error: AlbireoError
    document: Mapping[str, Any]
    asked: float | None = None

    @property
    def tells(self) -> bool:
        """True if the document says what was asked: of every object why it failed, or why the service is not ready."""
        return "items" in self.document or "capabilities" in self.document


def refusal(response: httpx.Response) -> Refusal | None:
    """The error that an answer stands for: of the class, and with the code, file, field and fix, that was raised."""
    if response.is_success:
        return None
    try:
        document = response.json()
    except (ValueError, RecursionError):
        document = {}
    document = document if isinstance(document, dict) else {}
    asked = _seconds(response.headers.get("Retry-After"))
    error = rebuilt(document, response.status_code, asked)
    if not document.get("code"):
        error.message = f"{response.request.url} answered {response.status_code}, and not as Albireo does"
    request_id = document.get("request_id") or response.headers.get("X-Request-Id")
    if request_id:
        error.add_note(f"request {request_id}")
    return Refusal(error, document, asked)


def rebuilt(document: Mapping[str, Any], status: int | None = None, asked: float | None = None) -> AlbireoError:
    """An error from its document, or from the `error` of an item; a code unknown here stands in the message."""
    code = str(document.get("code", ""))
    message = str(document.get("detail") or document.get("message") or f"status {status}")
    kind = CLASSES.get(status or 0) or BY_CODE.get(code, BadInput if (status or 422) < 500 else AlbireoError)
    if code not in CODES:
        message = f"{code}: {message}" if code else message
        code = (
            "not_ready" if issubclass(kind, Unavailable) else "internal" if kind is AlbireoError else "request_invalid"
        )
    where = {name: document[name] for name in ("file", "field", "fix") if document.get(name)}
    if issubclass(kind, Busy):
        return kind(code, message, retry_after=asked or 1.0, **where)
    return kind(code, message, **where)


def unanswered(error: httpx.TransportError, url: str) -> AlbireoError:
    """What a connection that failed stands for: Late where the service did not answer in time, else Unavailable."""
    why = str(error) or type(error).__name__
    if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):
        return Late("deadline_exceeded", f"{url} did not answer in time", field="url", fix="send less, or wait longer")
    return Unavailable(
        "not_ready", f"no answer from {url}: {why}", field="url", fix="is it running? `albireo serve` starts one"
    )


def _seconds(stated: str | None) -> float | None:
    """Retry-After in seconds, which may be a date."""
    if stated is None:
        return None
    try:
        return max(0.0, float(stated))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(stated) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def content_of(response: httpx.Response) -> dict[str, Any]:
    """The content of a good answer, raw or JSON. Unavailable if it is neither: something else answers there."""
    try:
        raw = response.headers.get("Content-Type", "").startswith(RAW)
        content = _from_raw(response.content) if raw else response.json()
        if isinstance(content, dict):
            return content
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError, SyntaxError):
        pass
    raise Unavailable("not_ready", f"{response.request.url} answers, and not as Albireo does", field="url")


def _from_raw(content: bytes) -> dict[str, Any]:
    """A raw answer: u32 length of a JSON header, the header, and behind it the numbers of its items, row by row."""
    begin = 4 + int.from_bytes(content[:4], "little")
    header: dict[str, Any] = json.loads(content[4:begin])
    if "arrays" in header:
        return _with_tokens(header, content, begin)
    numbers = np.frombuffer(content, header["numbers"]["dtype"], offset=begin)
    at = 0
    for item in header["items"]:
        if item["shape"] is not None:
            size = _entries(item["shape"])
            item["embedding"] = numbers[at : at + size].reshape(item["shape"])
            at += size
    if at != len(numbers):
        raise ValueError(f"{len(numbers)} numbers, {at} are of items")
    return header


def _entries(shape: Any) -> int:
    """Entries of an array of a shape; ValueError if it is none: a text times a number is a long text."""
    if not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"shape {shape!r}")
    return prod(shape)


def _with_tokens(header: dict[str, Any], content: bytes, at: int) -> dict[str, Any]:
    """A header with the tokens of its items, which lie behind it modality by modality."""
    for item in header["items"]:
        item["tokens"] = {}
    for array in header["arrays"]:
        flat = np.frombuffer(content, array["dtype"], count=_entries(array["shape"]), offset=at)
        at += flat.nbytes
        stops = np.cumsum(array["lengths"] or [array["shape"][1]] * array["shape"][0])
        for number, ids in zip(array["objects"], np.split(flat, stops[:-1]), strict=True):
            header["items"][number]["tokens"][array["modality"]] = ids
    if at != len(content):
        raise ValueError(f"{len(content)} bytes, {at} are of arrays")
    return header
