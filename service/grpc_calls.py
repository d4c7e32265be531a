"""What happens around every gRPC call, whatever it asks for: it is observed, let in, given a ticket, and answered.

Call       one call while it is being answered; `current()` gives that of this task or thread
Calls      the interceptor through which all calls of a server go: servicers only compute, and raise AlbireoErrors

A call is let in before its message is read: one that is refused costs next to nothing.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import urllib.parse
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import anyio.to_thread
import grpc
from anyio import CapacityLimiter
from google.protobuf.message import Message

from albireo.observations.errors import AlbireoError, BadInput, Busy
from albireo.observations.room import room_for
from albireo.service.admission import ending
from albireo.service.core import Core
from albireo.service.grpc_errors import abort
from albireo.service.observing import server_timing
from albireo.service.problems import grpc_status_of
from albireo.service.tickets import Ticket
from albireo.service.watch import Tally

if TYPE_CHECKING:
    from albireo.service.access import Grant
    from albireo.service.admission import Admission, Place
    from albireo.service.observing import Telemetry

Result = TypeVar("Result")
Context = Any
"""A grpc.aio.ServicerContext, which the stubs of gRPC type by the messages of each method."""

HEALTH = "/grpc.health.v1.Health/"
REFLECTION = "/grpc.reflection."

PROBES = frozenset({"server_live", "server_ready"})
"""Operations of the Open Inference Protocol that machines ask every few seconds, as they ask Health."""

IDLE = PROBES | {
    *("list_heads", "list_collections", "create_collection"),
    *("model_ready", "server_metadata", "model_metadata", "model_config", "repository_index"),
}
"""Operations that compute nothing: they are answered also when there is more work than can be done."""

PATIENCE = 1.0
"""Seconds after which a window of a stream asks for a place again, at most."""


class Access(Protocol):
    """Who may do what."""

    def check(self, key: str | None, operation: str) -> Grant | None:
        """NoKey, Denied or Busy unless the key may do this; else what it was let in with."""


@dataclass(eq=False)
class Call:
    """One call, or one window of a stream. `core` has the verbs under its `ticket`."""

    core: Core
    ticket: Ticket
    tally: Tally
    _calls: Calls
    grant: Grant | None = None
    _windows: set[Ticket] = field(default_factory=set)

    @property
    def request_id(self) -> str:
        return self.tally.request_id

    async def work(self, function: Callable[..., Result], *args: Any) -> Result:
        """What a function computes in a thread. If the call ends meanwhile, the thread is not waited for: the ticket
        tells it. It keeps its place among the threads until it is done."""

        def run() -> Result:
            self.ticket.check()
            with room_for(self._calls.max_decompressed_bytes):
                return function(*args)

        thread = asyncio.ensure_future(anyio.to_thread.run_sync(run, limiter=self._calls.working))
        thread.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(thread)

    @asynccontextmanager
    async def window(self, n_bytes: int) -> AsyncIterator[Call]:
        """A place for so much of a stream: while there is none, the stream waits, and so does its client."""
        while True:
            self.ticket.check()
            if self.grant is not None:
                self.grant.go_on()
            ticket = Ticket(self.ticket.priority, self.ticket.deadline)
            try:
                place = self._calls.admission.enter(n_bytes, ticket)
            except Busy as busy:
                await asyncio.sleep(min(busy.retry_after, PATIENCE))
                continue
            break
        self._windows.add(ticket)
        done = False
        try:
            yield Call(self._calls.core.on(ticket), ticket, self.tally, self._calls)
            done = True
        finally:
            self.charge()
            self._windows.discard(ticket)
            place.leave(done)

    def charge(self) -> None:
        """Put what was computed since the last time on the account of the key."""
        if self.grant is not None:
            self.grant.charge(self.tally.tokens - self.grant.charged)

    def end(self) -> None:
        """Nothing of it is computed any more, however it ended."""
        self.charge()
        for ticket in (self.ticket, *self._windows):
            ticket.cancel()


_CURRENT: ContextVar[Call] = ContextVar("albireo_grpc_call")


def current() -> Call:
    """The call that this task or thread works for."""
    return _CURRENT.get()


class Calls(grpc.aio.ServerInterceptor):
    """All calls of one server."""

    def __init__(
        self,
        core: Core,
        admission: Admission,
        telemetry: Telemetry,
        deadline_seconds: float,
        max_requests: int,
        access: Access | None = None,
        max_decompressed_bytes: int = 1 << 30,
    ) -> None:
        self.max_decompressed_bytes = max_decompressed_bytes
        self.core, self.admission, self.telemetry, self.access = core, admission, telemetry, access
        self.deadline_seconds, self.max_requests = deadline_seconds, max_requests
        self.working = CapacityLimiter(max_requests)
        self.streams = 0
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The method's handler inside what happens around every call."""
        method = handler_call_details.method
        known = self._wrapped.get(method)
        if known is None:
            handler = await continuation(handler_call_details)
            if handler is None or method.startswith(REFLECTION):
                return handler
            known = self._wrapped[method] = self._around(method, handler)
        return known

    def _around(self, method: str, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        """A handler that takes its message as a stream of one, so that it is let in before the message is read."""
        several = bool(handler.request_streaming)
        behaviour = handler.stream_stream or handler.stream_unary or handler.unary_stream or handler.unary_unary
        operation = operation_of(method)
        codecs = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }

        async def unary(requests: AsyncIterable[Message], context: Context) -> Any:
            async with self._call(method, operation, several, context) as (call, place):
                given = _counted(requests, call, None) if several else await _the_one(_counted(requests, call, place))
                answer = await behaviour(given, context)
                call.tally.bytes_out += answer.ByteSize()
                return answer

        async def stream(requests: AsyncIterable[Message], context: Context) -> None:
            async with self._call(method, operation, several, context) as (call, place):
                given = _counted(requests, call, None) if several else await _the_one(_counted(requests, call, place))
                async with aclosing(behaviour(given, context)) as answers:
                    async for answer in answers:
                        call.tally.bytes_out += answer.ByteSize()
                        await context.write(answer)

        if handler.response_streaming:
            assert inspect.isasyncgenfunction(behaviour), f"{method} is no async generator"
            return grpc.stream_stream_rpc_method_handler(stream, **codecs)
        return grpc.stream_unary_rpc_method_handler(unary, **codecs)

    @asynccontextmanager
    async def _call(
        self, method: str, operation: str, several: bool, context: Context
    ) -> AsyncIterator[tuple[Call, Place | None]]:
        """Everything around one call. Errors leave it as the status of the call."""
        sent = {key.lower(): value for key, value in context.invocation_metadata() or ()}
        request_id = ""
        try:
            with self.telemetry.request(
                "grpc",
                _text(sent.get("x-request-id")),
                _host(context.peer()),
                {name: _text(sent.get(name)) or "" for name in ("traceparent", "tracestate")},
                probe=method.startswith(HEALTH) or operation in PROBES,
                answers=(grpc.aio.AbortError,),
            ) as tally:
                request_id, tally.operation = tally.request_id, operation
                try:
                    async with self._let_in(method, operation, several, sent, tally, context) as inside:
                        yield inside
                except AlbireoError as error:
                    tally.status = grpc_status_of(error)
                    raise
                except grpc.aio.AbortError:
                    tally.status = grpc.StatusCode(context.code()).name
                    raise
                tally.status = "OK"
        except AlbireoError as error:
            await abort(context, error, request_id)
        except (grpc.aio.AbortError, asyncio.CancelledError, GeneratorExit):
            raise
        except Exception:  # telemetry wrote it into the log; the client learns nothing of our insides
            await abort(context, AlbireoError("internal", "the service failed on this request"), request_id)

    @asynccontextmanager
    async def _let_in(
        self, method: str, operation: str, several: bool, sent: dict[str, Any], tally: Tally, context: Context
    ) -> AsyncIterator[tuple[Call, Place | None]]:
        """A call that may come in, with its ticket; a stream takes places window by window."""
        is_health = method.startswith(HEALTH)
        grant = None if self.access is None or is_health else self.access.check(key_of(sent), operation)
        tally.key = None if grant is None else grant.name
        free = is_health or operation in IDLE
        own = [] if several or is_health else [self.deadline_seconds]
        limits = [seconds for seconds in (context.time_remaining(), *own) if seconds is not None]
        ticket = Ticket.within(min(limits, default=None), "bulk" if several else "interactive")
        place = None
        if several:
            self._open_stream()
        elif not free:
            place = self.admission.enter(ticket=ticket)
        call = Call(self.core.on(ticket), ticket, tally, self, grant)
        token = _CURRENT.set(call)
        done = False
        try:
            about = (("x-request-id", tally.request_id),)
            context.set_trailing_metadata(about)
            if several:  # its trailer may be hours away; of other calls this would be a packet more
                await context.send_initial_metadata(about)
            yield call, place
            done = True
            call.charge()
            left = () if grant is None else ((name.lower(), text) for name, text in grant.headers())
            context.set_trailing_metadata((*about, ("server-timing", server_timing(tally)), *left))
        finally:
            _CURRENT.reset(token)
            call.end()
            self.streams -= several
            if place is not None:
                place.leave(done)

    def _open_stream(self) -> None:
        if self.admission.closed:
            raise ending()
        if self.streams >= self.max_requests:
            raise Busy("overloaded", f"{self.streams} streams are open", fix="close one, or try again later")
        self.streams += 1


def operation_of(method: str) -> str:
    """What logs and keys call a method: /albireo.v1.Embedding/EmbedStream is `embed_stream`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", method.rpartition("/")[2]).lower()


def key_of(sent: dict[str, Any]) -> str | None:
    """The API key among the metadata of a call: `authorization: Bearer KEY`, or `x-api-key: KEY`."""
    scheme, _, key = (_text(sent.get("authorization")) or "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key.strip() else _text(sent.get("x-api-key"))


async def _counted(requests: AsyncIterable[Any], call: Call, place: Place | None) -> AsyncIterator[Any]:
    """The messages of a call, whose bytes are counted where there is somebody to count them."""
    async for request in requests:
        n_bytes = request.ByteSize()
        call.tally.bytes_in += n_bytes
        if place is not None:
            place.read(n_bytes)
        yield request


async def _the_one(requests: AsyncIterator[Any]) -> Any:
    """The message of a call that has one."""
    async for request in requests:
        return request
    raise BadInput("request_invalid", "the call ended before its message came")


def _text(value: str | bytes | None) -> str | None:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _host(peer: str) -> str:
    """Of "ipv4:192.0.2.1:5000" or "ipv6:%5B::1%5D:5000" the address."""
    return urllib.parse.unquote(peer.partition(":")[2].rpartition(":")[0]).strip("[]") or peer
