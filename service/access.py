"""Who may use the service: API keys with roles and quotas, the same for all doors.

    OPERATIONS  which role an operation needs
    Access      looks at a key, and lets it do an operation or not
    Grant       one request that was let in: who asks, and what is left to them
    charge      puts what an answer cost on the account of who asked
    Guard       ASGI middleware: every HTTP request is looked at before anything else is done for it

Without a file of keys everybody may do everything.
"""

from __future__ import annotations

import hmac
import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from albireo.observations.errors import AlbireoError, Denied, NoKey
from albireo.service.keys import ROLES, Key, Role, read_keys, sha256_of
from albireo.service.problems import document
from albireo.service.quotas import Counters, Exceeded, Limit, State
from albireo.service.settings import Settings
from albireo.service.watch import tally

log = logging.getLogger(__name__)

OPERATIONS: tuple[tuple[str, Role | None], ...] = (
    # HTTP: method and address. Requests of browsers for permission carry no key.
    (r"OPTIONS .*", None),
    (r"(GET|HEAD) /(livez|readyz|startupz|openapi\.json|docs(/.*)?)", None),
    (r"(GET|HEAD) /v2/(health/(live|ready)|models/[^/]+(/versions/[^/]+)?/ready)", None),
    (r"(GET|HEAD) /(v1|v2)(/.*)?", "read"),
    (r"POST /v1/(validate|tokenize|detokenize|embed|predict(/[^/]+)?|generate|collections/[^/]+/search)", "read"),
    (r"POST /v2/(repository/index|models/[^/]+(/versions/[^/]+)?/infer)", "read"),
    (r"PUT /v1/collections/[^/]+", "write"),
    (r"POST /v1/collections/[^/]+/objects", "write"),
    # gRPC: albireo.v1, then inference.GRPCInferenceService; the name of the method
    (r"server_reflection_info|server_live|server_ready|model_ready", None),
    (r"validate|tokenize|detokenize|embed|embed_stream|predict|predict_stream|generate|list_heads", "read"),
    (r"search|search_batch|get|list_collections", "read"),
    (r"server_metadata|model_metadata|model_config|model_infer|model_stream_infer|repository_index", "read"),
    (r"create_collection|upsert", "write"),
)
"""Operation (all of it matches) -> the role that it needs; the first row decides. What is in no row is for admins."""

SCHEMES: dict[str, dict[str, str]] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key: `Authorization: Bearer KEY`"},
    "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "the same, for proxies"},
}
"""Where a request may carry its key, as the OpenAPI document says it; `key_of` looks there."""

METRICS = r"(GET|HEAD) /metrics"

ADMIN: Role = "admin"

USAGE = "GET /v1/usage"
"""Never refused for what was used up, and counted as nothing: it says so."""

COSTLESS = re.compile(r"(GET|HEAD) .*|POST /v2/repository/index|list_.*|get|.*_metadata|model_config|repository_index")
"""Operations that encode nothing: they go on when the tokens are used up."""

LOOK_SECONDS = 2.0
"""Between two looks at whether the file of keys has changed."""

CHALLENGE = 'Bearer realm="albireo"'

EXPOSED = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset", "RateLimit-Policy", "Retry-After",
           "Server-Timing", "X-Items-Failed", "X-Request-Id")  # fmt: skip
"""Headers of answers that pages of other origins may read."""


@dataclass(eq=False)
class Grant:
    """One request that was let in. `key` is None where no key was needed or none is known."""

    key: Key | None = None
    states: Sequence[State] = ()
    charged: int = 0
    _access: Access | None = field(default=None, repr=False)

    @property
    def name(self) -> str | None:
        """Name of the key."""
        return None if self.key is None else self.key.name

    def charge(self, tokens: int) -> None:
        """Put tokens on the account of the key."""
        self.charged += tokens
        if tokens and self.key is not None and self._access is not None:
            self.states = self._access.counters.charge(self.key, tokens)

    def go_on(self) -> None:
        """Busy quota_exceeded if the key has used up its tokens: for requests that are long, between their parts."""
        if self.key is not None and self._access is not None:
            self._access.counters.go_on(self.key)

    def headers(self) -> list[tuple[str, str]]:
        """RateLimit-* of the limit that is nearest to its end, and all limits as the policy; nothing without limits."""
        return rate_limit(self.states)


OPEN = Grant()


class Access:
    """The keys of a file, and what they have used. Safe to use from several threads; nothing here waits.

    path          the file; it is read again when it has changed. None: everybody may do everything
    metrics_role  that reading /metrics needs
    """

    def __init__(
        self,
        path: Path | None = None,
        counters: Counters | None = None,
        metrics_role: Role | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self.counters = counters or Counters()
        self.clock = clock
        table: tuple[tuple[str, Role | None], ...] = ((METRICS, metrics_role), *OPERATIONS)
        self._rows = [(re.compile(pattern), role) for pattern, role in table]
        self._roles: dict[str, Role | None] = {}
        self._keys: dict[str, Key] = {}
        self._read: tuple[int, int] | None = None
        self._looked = clock()
        self._trouble: str | None = None
        self._lock = threading.Lock()
        if path is not None:
            self._read = _stamp(path)
            self._keys = read_keys(path)
            self.counters.know(self._keys.values())

    @classmethod
    def of(cls, settings: Settings) -> Access:
        """As the settings say. Raises what is wrong with the file of keys."""
        counters = Counters()
        if settings.keys_file is not None and settings.redis_url is not None:
            from albireo.service.quotas_redis import RedisCounters

            counters = RedisCounters(settings.redis_url)
        role = None if settings.metrics_role == "none" else settings.metrics_role
        return cls(settings.keys_file and settings.keys_file.expanduser(), counters, role)

    @property
    def open(self) -> bool:
        """True if everybody may do everything."""
        return self.path is None

    @property
    def shared(self) -> bool:
        """True if the services of a deployment count together now."""
        return self.counters.shared and self.counters.report()[0]

    def role_of(self, operation: str) -> Role | None:
        """The role that an operation needs, None if nobody is asked for a key."""
        if operation not in self._roles:
            if len(self._roles) > 1000:  # addresses have names in them
                self._roles.clear()
            rows = (role for pattern, role in self._rows if pattern.fullmatch(operation))
            self._roles[operation] = next(rows, ADMIN)
        return self._roles[operation]

    def check(self, key: str | None, operation: str) -> Grant:
        """Let a key do an operation: a method and an address, or the name of a gRPC method (see OPERATIONS).

        NoKey key_missing, key_unknown; Denied role_missing; Busy quota_exceeded
        """
        if self.path is None:
            return OPEN
        needed = self.role_of(operation)
        if needed is None:
            return OPEN
        if not key:
            raise NoKey("key_missing", "no key was given", fix="send the header Authorization: Bearer KEY")
        found = self._find(key)
        if found is None:
            raise NoKey("key_unknown", "nobody has this key", fix="ask whoever runs the service for a key")
        if ROLES.index(found.role) < ROLES.index(needed):
            raise RoleMissing(found, needed, self.counters.states(found))
        if operation == USAGE:
            return Grant(found, self.counters.states(found), _access=self)
        costs = COSTLESS.fullmatch(operation) is None
        return Grant(found, self.counters.take(found, costs), _access=self)

    def report(self) -> tuple[bool, str]:
        """Whether keys and quotas work as they are configured, and how."""
        if self.path is None:
            return True, "no keys: everybody may do everything"
        ok, counted = self.counters.report()
        if self._trouble is not None:
            return False, f"the keys in use are those of before: {self._trouble}"
        return ok, f"{len(self._keys)} keys; quotas are counted {counted}" if ok else counted

    def close(self) -> None:
        """Count no more."""
        self.counters.close()

    def _find(self, key: str) -> Key | None:
        if self.clock() - self._looked > LOOK_SECONDS:
            self._look()
        digest = sha256_of(key)
        found = self._keys.get(digest)
        return found if found is not None and hmac.compare_digest(found.sha256, digest) else None

    def _look(self) -> None:
        """Read the file again if it has changed. One that is wrong changes nothing, and is reported."""
        assert self.path is not None
        with self._lock:
            self._looked = self.clock()
            stamp = _stamp(self.path)
            if stamp == self._read:
                return
            self._read = stamp
            try:
                self._keys = read_keys(self.path)
            except AlbireoError as error:
                self._trouble = str(error)
                log.error("the file of API keys cannot be used: the keys of before stay", extra={"error": str(error)})
                return
            self._trouble = None
            self.counters.know(self._keys.values())
            log.info("the file of API keys was read again", extra={"keys": len(self._keys)})


class RoleMissing(Denied):
    """The role of the key `name` may not do this. `states` say what is left of its limits."""

    def __init__(self, key: Key, needed: Role, states: Sequence[State]) -> None:
        super().__init__(
            "role_missing",
            f"the key {key.name!r} has the role {key.role}, this needs {needed}",
            fix="ask whoever runs the service for a key with that role",
        )
        self.name = key.name
        self.states = states


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_size


def rate_limit(states: Sequence[State]) -> list[tuple[str, str]]:
    """The headers that say what is left: https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/."""
    if not states:
        return []
    nearest = min(states, key=lambda state: state.remaining / state.limit.capacity)
    return [
        ("RateLimit-Limit", str(nearest.limit.capacity)),
        ("RateLimit-Remaining", str(nearest.remaining)),
        ("RateLimit-Reset", str(nearest.reset)),
        ("RateLimit-Policy", _policy(tuple(state.limit for state in states))),
    ]


@lru_cache(maxsize=1024)
def _policy(limits: tuple[Limit, ...]) -> str:
    return ", ".join(f'"{limit.name}";q={limit.amount};w={limit.seconds}' for limit in limits)


def grant_of(request: HTTPConnection) -> Grant:
    """What an HTTP request was let in with."""
    grant: Grant = getattr(request.state, "grant", OPEN)
    return grant


def charge(whose: HTTPConnection | Grant, tokens: int) -> None:
    """Put what an answer cost on the account of who asked. HTTP requests are charged by Guard, from their tally."""
    (whose if isinstance(whose, Grant) else grant_of(whose)).charge(tokens)


def key_of(headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    """The key among the headers of a request: `Authorization: Bearer KEY`, or `X-API-Key: KEY`."""
    key = None
    for name, value in headers:
        if name == b"authorization":
            scheme, _, text = value.partition(b" ")
            if scheme.lower() == b"bearer" and text.strip():
                return text.strip().decode("latin-1")
        elif name == b"x-api-key":
            key = value.strip().decode("latin-1") or None
    return key


def asks_for_key(operation: str) -> bool:
    """Whether a service with keys asks for one."""
    return next((role for pattern, role in OPERATIONS if re.fullmatch(pattern, operation)), ADMIN) is not None


class Guard:
    """Looks at the key of every HTTP request, and says in every answer what is left to it."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self.access.open:
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        try:
            grant = self.access.check(key_of(scope["headers"]), f"{scope['method']} {scope['path']}")
        except (NoKey, RoleMissing, Exceeded) as error:
            answer = document(error, scope["path"], state["request_id"])
            if isinstance(error, NoKey):
                answer.headers["WWW-Authenticate"] = CHALLENGE
            else:
                state["key_name"] = error.name
                for name, value in rate_limit(error.states):
                    answer.headers[name] = value
            await answer(scope, receive, send)
            return
        state["grant"], state["key_name"] = grant, grant.name
        if grant.key is None:
            await self.app(scope, receive, send)
            return
        request = tally()

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                grant.charge(request.tokens - grant.charged)
                about = [(name.lower().encode(), value.encode()) for name, value in grant.headers()]
                message["headers"] = [*message.get("headers", ()), *about]
            await send(message)

        try:
            await self.app(scope, receive, told)
        finally:
            # Of an answer that is written while it is computed, and of one that nobody waited for.
            grant.charge(request.tokens - grant.charged)
