"""A worker process of one pool: takes payloads from a stream, tokenizes them, sends the tokens back.

It holds what it works on under a lease and renews it; it takes over what others lost, and says so of what two workers
died of. At SIGTERM it finishes what it holds.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from albireo.models.cpu import fast_bf16
from albireo.models.torch_engine import DTYPES, numerics_of
from albireo.observations.errors import AlbireoError
from albireo.observations.modalities import MODALITIES
from albireo.service.observing import Telemetry
from albireo.service.payload_bytes import unpack
from albireo.service.remote_tokens import DELIVERIES, GROUP, REPLIES_LIVE, Streams, packed_result, stream_of
from albireo.service.settings import Settings
from albireo.tokenizers.bank import TokenizerBank
from albireo.tokenizers.checkpoint import Checkpoint

log = logging.getLogger("albireo.worker")

Entry = tuple[bytes, Mapping[bytes, bytes]]


class Worker:
    """Tokenizes the payloads of a pool with the codecs of a checkpoint. `run` ends after `stop`."""

    def __init__(self, settings: Settings, pool: str) -> None:
        assert settings.redis_url is not None
        checkpoint = Checkpoint(settings.model_folder, settings.preprocessing)
        computed = numerics_of(settings.dtype, settings.device, fast_bf16(), settings.tokenizer_dtype).tokens
        self.bank = TokenizerBank.open(checkpoint, settings.device, DTYPES[computed])
        codecs = {key: f"{checkpoint.codec_fingerprint(key)}:{computed}" for key in checkpoint.inputs}
        self.stream = stream_of(pool, codecs)
        self.telemetry = Telemetry.of(settings)
        self.name = uuid.uuid4().hex
        self.streams = Streams(
            Redis.from_url(settings.redis_url, socket_timeout=10, socket_connect_timeout=2, health_check_interval=10),
            settings.worker_lease_seconds,
        )
        self.done = 0
        self._held: bytes | None = None
        self._stopped = threading.Event()
        self._looked = 0.0

    def stop(self) -> None:
        """End after what is held is done."""
        self._stopped.set()

    def run(self) -> None:
        """Work until `stop`; a Redis that is gone is waited for."""
        renewing = threading.Thread(target=self._renew, name="lease", daemon=True)
        renewing.start()
        while not self._stopped.is_set():
            try:
                entry = self._lost() or self._next()
                if entry is not None:
                    self._held = entry[0]
                    self._answer(*entry)
            except ResponseError as error:
                if "NOGROUP" not in str(error):
                    raise
                self.streams.open(self.stream)
            except RedisError as error:
                log.warning("Redis does not answer: %s", error)
                self._stopped.wait(1.0)
            finally:
                self._held = None
        renewing.join()
        self.telemetry.close()

    def _next(self) -> Entry | None:
        """An entry that nobody has; waits a second for it."""
        found: Any = self.streams.redis.xreadgroup(GROUP, self.name, {self.stream: ">"}, count=1, block=1000)
        return found[0][1][0] if found else None

    def _lost(self) -> Entry | None:
        """An entry whose worker's lease ran out; looked for twice in a lease."""
        if time.monotonic() - self._looked < self.streams.lease / 2:
            return None
        redis, idle = self.streams.redis, int(self.streams.lease * 1000)
        found: Any = redis.xautoclaim(self.stream, GROUP, self.name, idle, count=1)
        entries = [(name, fields) for name, fields in found[1] if fields]
        if not entries:
            self._looked = time.monotonic()
            return None
        ((name, fields),) = entries
        pending: Any = redis.xpending_range(self.stream, GROUP, name, name, 1)
        if pending and pending[0]["times_delivered"] > DELIVERIES:
            log.error("%d workers died of an object, it is given up", DELIVERIES)
            self._reply(name, fields, AlbireoError("internal", "the tokenizer ended without an answer"))
            return None
        return name, fields

    def _answer(self, entry: bytes, fields: Mapping[bytes, bytes]) -> None:
        """Tokenize a payload as a part of the request that it came with: in the log, and in its trace."""
        key = fields[b"key"].decode()
        request, trace = fields.get(b"request", b"").decode(), json.loads(fields.get(b"trace", b"{}"))
        result: Any
        with self.telemetry.request("worker", request, trace=trace) as tally:
            tally.operation, tally.status = "tokenize", "OK"
            try:
                with tally.timings.stage("tokenize", str(MODALITIES[key].kind)):
                    (result,) = self.bank.tokens(key, [unpack(fields[b"payload"])])
            except AlbireoError as error:
                result = error
            except Exception:
                log.exception("a defect of a tokenizer")
                tally.status, tally.code = "INTERNAL", "internal"
                result = AlbireoError("internal", "the service failed on this object")
            tally.count(1, [result.code] if isinstance(result, AlbireoError) else [])
        self._reply(entry, fields, result)
        self.done += 1

    def _reply(self, entry: bytes, fields: Mapping[bytes, bytes], result: Any) -> None:
        """Send the result, then let the entry go: the other way round a worker that dies between loses it."""
        with self.streams.redis.pipeline(transaction=True) as calls:
            calls.rpush(fields[b"reply"], fields[b"name"] + packed_result(result))
            calls.expire(fields[b"reply"], REPLIES_LIVE)
            calls.xack(self.stream, GROUP, entry)
            calls.xdel(self.stream, entry)
            calls.execute()

    def _renew(self) -> None:
        """Tell every third of a lease that this worker is there, and works on what it holds."""
        while True:
            try:
                self.streams.open(self.stream)
                self.streams.present(self.stream, self.name)
                held = self._held
                if held is not None:
                    self.streams.redis.xclaim(self.stream, GROUP, self.name, 0, [held], justid=True)
            except RedisError as error:
                log.warning("the lease could not be renewed: %s", error)
            if self._stopped.wait(self.streams.lease / 3):
                break
        try:
            self.streams.absent(self.stream, self.name)
        except RedisError as error:
            log.warning("Redis does not answer: %s", error)
