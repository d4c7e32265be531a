"""Tokenizer workers in other processes, on this machine or another, fed through Redis Streams.

    RemoteTokens  an engine whose images, spectra or numbers are tokenized by the workers that are there
    Streams       names in Redis, and the calls that both ends need

A stream for each pool and codec, one consumer group: an entry is given to one worker, which holds it under a lease and
renews it while it works. A worker that dies loses its lease, and another one takes its entry over, once: an object that
two workers died of fails. Results come back through a list of the service that asked; one that comes twice, or after
somebody else computed it, is not looked at. Where no worker is, or Redis is gone, the service tokenizes itself.

Written on redis-py's own calls: brokers of the task libraries claim a dead worker's entries only when a new one comes,
and do not renew leases, so that long work is done twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import struct
import threading
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from redis import Redis
from redis.exceptions import RedisError, ResponseError

from albireo.models.engine import CodecEngine, Tokens
from albireo.observations.errors import CODES, AlbireoError, BadInput, Unavailable
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Observation
from albireo.service import tickets, watch
from albireo.service.engine_around import EngineAround
from albireo.service.payload_bytes import pack
from albireo.service.pipeline import POOL_OF
from albireo.service.tickets import Ticket

log = logging.getLogger("albireo.remote")

GROUP = "tokenizers"
DELIVERIES = 2
"""Workers that an entry is given to at most: the first, and one more if that died."""

LOOK = 0.5
"""Seconds between two looks at who is there."""

REPLIES_LIVE = 600
"""Seconds that results are kept for a service that does not fetch them."""


@dataclass(frozen=True)
class Streams:
    """redis  of binary answers; lease  seconds after which a silent worker counts as dead."""

    redis: Redis
    lease: float

    def open(self, stream: str) -> None:
        """Make the stream and its group, if they are not there."""
        try:
            self.redis.xgroup_create(stream, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def present(self, stream: str, worker: str) -> None:
        """Tell that a worker is there, for the time of a lease."""
        self.redis.zadd(f"{stream}:workers", {worker: time.time() + self.lease})

    def absent(self, stream: str, worker: str) -> None:
        """Tell that a worker is gone."""
        self.redis.zrem(f"{stream}:workers", worker)

    def workers(self, stream: str) -> int:
        """How many workers are there."""
        return int(self.redis.zcount(f"{stream}:workers", time.time(), "+inf"))


def stream_of(pool: str, codecs: Mapping[str, str]) -> str:
    """The stream of a pool of workers: those with other codecs have another one. `codecs`: by token key."""
    mine = {key: codec for key, codec in codecs.items() if POOL_OF.get(str(MODALITIES[key].kind)) == pool}
    digest = hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).hexdigest()
    return f"albireo:tokenize:{pool}:{digest[:16]}"


def packed_result(result: tuple[np.ndarray, tuple[str, ...]] | AlbireoError) -> bytes:
    """Tokens and flags, or an error, as bytes."""
    if isinstance(result, AlbireoError):
        return _headed({"error": result.as_dict()})
    ids, flags = result
    return _headed({"flags": flags}, ids.astype("<i8").tobytes())


def unpacked_result(content: bytes) -> tuple[np.ndarray, tuple[str, ...]] | AlbireoError:
    """The same back; AlbireoError internal if it is no result."""
    try:
        (length,) = struct.unpack_from("<I", content)
        header = json.loads(content[4 : 4 + length])
        if "error" in header:
            told = header["error"]
            where = {name: told.get(name) for name in ("file", "field", "fix")}
            if told["code"] not in CODES:
                raise ValueError(f"no code {told['code']!r}")
            kind = AlbireoError if told["code"] == "internal" else BadInput
            return kind(told["code"], told["message"], **where)
        flags = tuple(header["flags"])
        if not all(isinstance(flag, str) for flag in flags):
            raise ValueError(f"flags {flags!r}")
        return np.frombuffer(content, "<i8", offset=4 + length).astype(np.int64), flags
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return AlbireoError("internal", f"what a tokenizer answered is no result: {error}")


def _headed(header: Mapping[str, Any], content: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<I", len(text)) + text + content


@dataclass(eq=False)
class _Asked:
    """One payload that was sent out as an entry of a stream, until its result is there."""

    name: str
    entry: bytes = b""
    result: bytes = b""
    done: threading.Event = field(default_factory=threading.Event)


class RemoteTokens(EngineAround):
    """An Engine that lets the workers of some pools tokenize; `pools` names those. `close` ends its thread."""

    def __init__(self, engine: CodecEngine, redis_url: str, pools: Collection[str], lease: float) -> None:
        super().__init__(engine)
        self.codecs = engine
        self.pools = frozenset(pools)
        self.streams = Streams(
            Redis.from_url(redis_url, socket_timeout=5, socket_connect_timeout=1, health_check_interval=10), lease
        )
        # Without the device: workers elsewhere may have another one.
        known = {key: engine.codec(key).rpartition(":")[0] for key in engine.inputs}
        self._stream = {pool: stream_of(pool, known) for pool in self.pools}
        self._mine = f"albireo:tokenized:{uuid.uuid4().hex}"
        self._asked: dict[str, _Asked] = {}
        self._lock = threading.Lock()
        self._workers: dict[str, int] = dict.fromkeys(self.pools, 0)
        self._told = ""
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=run, name=f"remote-{name}", daemon=True)
            for name, run in (("replies", self._fetch), ("workers", self._look))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def workers(self) -> dict[str, int]:
        """Workers that are there, by pool; none while Redis is gone."""
        return dict(self._workers)

    @property
    def elsewhere(self) -> Sequence[str]:
        return [f"{pool}: {n} worker processes" for pool, n in sorted(self._workers.items())]

    def close(self) -> None:
        self._closed.set()
        for thread in self._threads:
            thread.join(5)
        self.streams.redis.close()

    def codec(self, key: str) -> str:
        return self.codecs.codec(key)

    def grid(self, key: str) -> tuple[int, int]:
        return self.codecs.grid(key)

    def object_flags(self, observation: Observation) -> tuple[str, ...]:
        return self.codecs.object_flags(observation)

    def tokenize(
        self, observations: Sequence[Observation], kinds: Collection[str] | None = None
    ) -> list[Tokens | AlbireoError]:
        """By the workers of the pool, if all kinds that are asked for are of one and somebody is there."""
        pools = {POOL_OF.get(kind, "") for kind in kinds or ("",)}
        (pool,) = pools if len(pools) == 1 else ("",)
        lacking = any(observation.data.keys() - self.inputs.keys() for observation in observations)
        if not self._workers.get(pool) or lacking:
            return self.codecs.tokenize(observations, kinds)
        keys = [key for key in MODALITIES if kinds is None or MODALITIES[key].kind in kinds]
        asked = [{key: self._send(pool, key, one) for key in keys if key in one.data} for one in observations]
        return [self._whole(pool, one, mine, kinds) for one, mine in zip(observations, asked, strict=True)]

    def _send(self, pool: str, key: str, observation: Observation) -> _Asked | None:
        """Put one payload into the stream; None if that cannot be."""
        asked = _Asked(uuid.uuid4().hex)
        fields = {"name": asked.name, "key": key, "payload": pack(observation.data[key]), "reply": self._mine}
        if (request := watch.current()) is not None:
            fields |= {"request": request.request_id, "trace": json.dumps(request.trace)}
        with self._lock:
            self._asked[asked.name] = asked
        try:
            asked.entry = self.streams.redis.xadd(self._stream[pool], fields)  # type: ignore[arg-type, assignment]
        except RedisError as error:
            self._lost(error)
            self._forget(asked)
            return None
        return asked

    def _whole(
        self,
        pool: str,
        observation: Observation,
        asked: Mapping[str, _Asked | None],
        kinds: Collection[str] | None,
    ) -> Tokens | AlbireoError:
        """The parts of an object put together; the engine of this process does what no worker did."""
        ids: dict[str, np.ndarray] = {}
        flags: list[str] = []
        if next(iter(key for key in MODALITIES if key in observation.data), None) in asked:
            flags += self.object_flags(observation)
        for key, sent in asked.items():
            content = None if sent is None else self._waited(pool, sent)
            if content is None:
                return self.codecs.tokenize([observation], kinds)[0]
            result = unpacked_result(content)
            if isinstance(result, AlbireoError):
                return result
            ids[key] = result[0]
            flags += result[1]
        return Tokens(ids, flags=tuple(dict.fromkeys(flags)))

    def _waited(self, pool: str, asked: _Asked) -> bytes | None:
        """The result of one payload; None when nobody is there any more to give it.

        The error of its ticket when the request that it is for has ended: the payload is taken back, if no worker has
        it yet.
        """
        ticket = tickets.current() or Ticket()
        ticket.when_cancelled(asked.done.set)
        try:
            while not asked.done.wait(LOOK if (left := ticket.remaining()) is None else max(0.0, min(left, LOOK))):
                ticket.check()
                if not self._workers[pool]:
                    return None
            if not asked.result:
                ticket.check()
            return asked.result
        except Unavailable:
            self._take_back(pool, asked)
            raise
        finally:
            self._forget(asked)

    def _take_back(self, pool: str, asked: _Asked) -> None:
        try:
            self.streams.redis.xdel(self._stream[pool], asked.entry)
        except RedisError as error:
            self._lost(error)

    def _forget(self, asked: _Asked) -> None:
        with self._lock:
            self._asked.pop(asked.name, None)

    def _fetch(self) -> None:
        """Hand results to who waits for them."""
        while not self._closed.is_set():
            try:
                found: Any = self.streams.redis.blpop([self._mine], timeout=1)
            except RedisError as error:
                self._lost(error)
                self._closed.wait(LOOK)
                continue
            if found is None:
                continue
            name, content = found[1][:32].decode(), found[1][32:]
            with self._lock:
                asked = self._asked.get(name)
            if asked is not None:
                asked.result = content
                asked.done.set()

    def _look(self) -> None:
        """Keep count of the workers that are there."""
        while not self._closed.is_set():
            for pool, stream in self._stream.items():
                try:
                    self.streams.open(stream)
                    now = self.streams.workers(stream)
                except RedisError as error:
                    self._lost(error)
                    break
                if now != self._workers[pool]:
                    log.info("%s tokenizers that are there: %d", pool, now)
                self._workers[pool] = now
                self._told = ""
            self._closed.wait(LOOK)

    def _lost(self, error: RedisError) -> None:
        """Redis does not answer: who waits computes here. Said once."""
        self._workers = dict.fromkeys(self.pools, 0)
        if str(error) != self._told:
            self._told = str(error)
            log.warning("Redis does not answer, the service tokenizes itself: %s", error)
