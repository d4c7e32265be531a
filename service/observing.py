"""Every request is observed once, by all of metrics, log and traces; doors only say what it was.

Telemetry  of one service. Doors open `request(...)` around each request and fill the tally it gives
Observe    does so for the HTTP doors, as the outermost ASGI middleware
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from albireo.observations.errors import AlbireoError
from albireo.service.logs import TOLD
from albireo.service.settings import Settings
from albireo.service.telemetry import Metrics
from albireo.service.watch import Door, Stage, Tally, Timings, working_for

if TYPE_CHECKING:
    from albireo.service.tracing import Tracing

access_log = logging.getLogger("albireo.access")
log = logging.getLogger(__name__)

DEFECT: dict[Door, str] = {"rest": "500", "grpc": "INTERNAL", "worker": "INTERNAL"}
CANCELLED: dict[Door, str] = {"rest": "499", "grpc": "CANCELLED", "worker": "CANCELLED"}
"""Door -> the status of a request that ended by an exception, or whose client went away."""

PROBES = frozenset({"/livez", "/readyz", "/startupz", "/metrics", "/v2/health/live", "/v2/health/ready"})
"""Asked every few seconds by machines: not traced, and logged only if something is wrong."""

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")


class Telemetry:
    """What operators see of one service. `metrics` is also the Watch of its pipeline."""

    def __init__(self, metrics: Metrics | None = None, tracing: Tracing | None = None) -> None:
        self.metrics = metrics or Metrics()
        self.tracing = tracing

    @classmethod
    def of(cls, settings: Settings) -> Telemetry:
        """As the settings say. AlbireoError dependency_missing if traces are configured and cannot be made."""
        if settings.otlp_endpoint is None:
            return cls()
        try:
            from albireo.service.tracing import Tracing
        except ImportError as error:
            raise AlbireoError(
                "dependency_missing",
                f"traces need OpenTelemetry: {error}",
                field="ALBIREO_OTLP_ENDPOINT",
                fix="pip install 'albireo[otel]'",
            ) from error
        return cls(tracing=Tracing.to(settings.otlp_endpoint))

    @contextmanager
    def request(
        self,
        door: Door,
        request_id: str | None = None,
        client: str = "",
        trace: Mapping[str, str] | None = None,
        probe: bool = False,
        answers: tuple[type[Exception], ...] = (),
    ) -> Iterator[Tally]:
        """What runs inside is one request, in its threads too: fill the tally, and it is told when the request is over.

        request_id  as the client gave it; one that could break a log is replaced
        trace       W3C trace context that came with it: `traceparent`, `tracestate`
        probe       True for a health check
        answers     exceptions that are no defects, but the way in which the door answers
        """
        tally = Tally(
            request_id if request_id and _ID.fullmatch(request_id) else uuid.uuid4().hex,
            door,
            client,
            probe,
            Timings(self.metrics),
            trace=_fit(trace or {}),
        )
        self.metrics.began(door)
        with working_for(tally):
            try:
                with self.tracing.request(tally) if self.tracing and not probe else nullcontext():
                    try:
                        yield tally
                    except BaseException as error:
                        _ended_by(error, tally, answers)
                        raise
            finally:
                seconds = time.monotonic() - tally.began
                stages = tally.timings.seconds()
                if "queue" in stages:
                    self.metrics.stage("queue", stages["queue"])
                self.metrics.over(tally, seconds)
                _tell(tally, seconds, stages, logging.DEBUG if probe and tally.code is None else logging.INFO)

    def close(self) -> None:
        """Send what is left of the traces."""
        if self.tracing is not None:
            self.tracing.close()


class Observe:
    """Gives every HTTP request an id, observes it, and tells the client both: `X-Request-Id`, `Server-Timing`."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self.app = app
        self.telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        client = scope.get("client")
        with self.telemetry.request(
            "rest",
            headers.get(b"x-request-id"),
            client[0] if client else "",
            {name: headers.get(name.encode(), "") for name in ("traceparent", "tracestate")},
            scope["path"] in PROBES,
        ) as tally:
            state = scope.setdefault("state", {})
            state["request_id"] = tally.request_id

            async def counted() -> Message:
                message = await receive()
                tally.bytes_in += len(message.get("body", b""))
                return message

            async def told(message: Message) -> None:
                if message["type"] == "http.response.start":
                    tally.status = str(message["status"])
                    about = ((b"x-request-id", tally.request_id), (b"server-timing", server_timing(tally)))
                    message["headers"] = [*message.get("headers", ()), *((name, text.encode()) for name, text in about)]
                else:
                    tally.bytes_out += len(message.get("body", b""))
                await send(message)

            try:
                await self.app(scope, counted, told)
            finally:
                tally.operation = _operation(scope)
                tally.key = tally.key or state.get("key_name")


def _operation(scope: Scope) -> str:
    """The name of the operation, or the template of its address; never the address itself."""
    route = scope.get("route")
    named = getattr(route, "operation_id", None) or getattr(route, "path", None)
    return str(named or "unknown")


def server_timing(tally: Tally) -> str:
    """https://www.w3.org/TR/server-timing/: ms by stage, and of all until now."""
    total = (time.monotonic() - tally.began) * 1e3
    return ", ".join(f"{name};dur={ms:.3f}" for name, ms in (tally.timings.milliseconds() | {"total": total}).items())


def _fit(trace: Mapping[str, str]) -> dict[str, str]:
    """The trace context, without what is none."""
    if not _TRACEPARENT.fullmatch(trace.get("traceparent", "")):
        return {}
    kept = {"traceparent": trace["traceparent"]}
    return kept | ({"tracestate": state} if _TRACESTATE.fullmatch(state := trace.get("tracestate", "")) else {})


def _ended_by(error: BaseException, tally: Tally, answers: tuple[type[Exception], ...]) -> None:
    """Note the exception that ended a request; a defect goes into the log, once."""
    if isinstance(error, asyncio.CancelledError | ClientDisconnect):
        tally.status, tally.code = CANCELLED[tally.door], "cancelled"
        setattr(error, TOLD, True)
    elif isinstance(error, AlbireoError):
        tally.code = error.code
    elif not isinstance(error, answers):
        tally.status, tally.code = DEFECT[tally.door], "internal"
        log.error("a request failed by a defect", exc_info=error)
        setattr(error, TOLD, True)


def _tell(tally: Tally, seconds: float, stages: Mapping[Stage, float], level: int) -> None:
    """One line for one request."""
    if access_log.isEnabledFor(level):
        fields = {
            "door": tally.door,
            "operation": tally.operation,
            "status": tally.status,
            "code": tally.code,
            "ms": round(seconds * 1e3, 3),
            "bytes_in": tally.bytes_in,
            "bytes_out": tally.bytes_out,
            "objects": tally.objects,
            "failed": tally.n_failed,
            "tokens": tally.tokens,
            "key": tally.key,
            "client": tally.client,
            "stages_ms": {name: round(value * 1e3, 3) for name, value in stages.items()},
        }
        access_log.log(level, "request", extra={name: value for name, value in fields.items() if value is not None})
