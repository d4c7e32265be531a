"""Quotas that several services count together, in Redis: what each has spent is added up there, a few times a second.

Requests never wait for Redis. Each service counts in memory, and a thread tells Redis what was spent since it last did,
and learns what the others spent. Between two such moments services do not know of each other, so that together they
may let through a little more than a quota. While Redis is gone each counts for itself; what was spent meanwhile is told
when it is back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from albireo.service.keys import Key
from albireo.service.quotas import Counters

log = logging.getLogger(__name__)

EVERY_SECONDS = 0.1
"""Between two times that Redis is told what was spent."""

ASKED_SECONDS = 1.0
"""Between two times that Redis is asked what the others have spent of keys that are in use."""

IN_USE_SECONDS = 60.0
"""How long a key is in use after a request."""

GONE_SECONDS = 1.0
"""After which a Redis that is gone is tried again."""

TIMEOUT = 1.0
"""Seconds that the thread waits for Redis."""

PREFIX = "albireo:quota:"

SPEND = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local levels, longest = {}, 1
for i = 1, #ARGV, 4 do
    local name, capacity = ARGV[i], tonumber(ARGV[i + 1])
    local rate, spent = tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
    local kept = redis.call('HMGET', KEYS[1], name, name .. ':at')
    local level, at = tonumber(kept[1]) or capacity, tonumber(kept[2]) or now
    level = math.min(capacity, level + math.max(now - at, 0) * rate) - spent
    redis.call('HSET', KEYS[1], name, string.format('%.17g', level), name .. ':at', string.format('%.17g', now))
    longest = math.max(longest, (capacity - level) / rate)
    levels[#levels + 1] = string.format('%.17g', level)
end
redis.call('EXPIRE', KEYS[1], math.ceil(longest) + 60)
return levels
"""
"""Of one key, at once: fill its buckets, take out what was spent, say what is left. A full bucket is forgotten."""


class RedisCounters(Counters):
    """Buckets in memory, kept in step with those in Redis by a thread of their own."""

    shared = True

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self.url = url
        self._ok: bool | None = None
        self._detail = "not asked yet"
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def know(self, keys: Iterable[Key]) -> None:
        super().know(keys)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="quotas", daemon=True)
            self._thread.start()

    def report(self) -> tuple[bool, str]:
        if self._ok is None:
            return True, "Redis was not asked yet"
        return self._ok, "in Redis" if self._ok else f"Redis is gone, each service counts for itself: {self._detail}"

    def close(self) -> None:
        """Tell Redis what is left to tell, and end the thread."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(2 * TIMEOUT)

    def _run(self) -> None:
        from redis import Redis, RedisError  # only where it is configured

        asked, everybody = -ASKED_SECONDS, True
        with Redis.from_url(
            self.url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT, decode_responses=True
        ) as client:
            script = client.register_script(SPEND)
            while True:
                last = self._ended.is_set()
                names = self._due(everybody, self.clock() - asked >= ASKED_SECONDS)
                pause = EVERY_SECONDS
                try:
                    if names:
                        asked, everybody = self.clock(), True
                        self._tell(client, script, names)
                        everybody = False
                        self._note(True, "")
                except (RedisError, OSError) as error:
                    pause = GONE_SECONDS
                    self._note(False, str(error))
                if last:
                    return
                self._ended.wait(pause)

    def _due(self, everybody: bool, ask: bool) -> list[str]:
        """Keys that have spent something; at times also those in use, and at first all, to hear what others spent."""
        with self._lock:
            since = self.clock() - IN_USE_SECONDS
            return [
                name
                for name, buckets in self._buckets.items()
                if buckets.limits and (everybody or any(buckets.spent) or (ask and buckets.used >= since))
            ]

    def _tell(self, client: Any, script: Any, names: list[str]) -> None:
        told = []
        with client.pipeline(transaction=False) as pipe:
            for name in names:
                with self._lock:
                    buckets = self._buckets.get(name)
                    spent = list(buckets.spent) if buckets is not None else []
                if buckets is None:
                    continue
                arguments: list[Any] = []
                for limit, amount in zip(buckets.limits, spent, strict=True):
                    arguments += [limit.name, limit.capacity, repr(limit.rate), amount]
                script(keys=[PREFIX + name], args=arguments, client=pipe)
                told.append((buckets, spent))
            answers = pipe.execute()
        with self._lock:
            now = self.clock()
            for (buckets, spent), levels in zip(told, answers, strict=True):
                buckets.filled = now
                buckets.spent = [all_ - then for all_, then in zip(buckets.spent, spent, strict=True)]
                buckets.levels = [float(level) - more for level, more in zip(levels, buckets.spent, strict=True)]

    def _note(self, ok: bool, detail: str) -> None:
        if ok is not self._ok:
            message = "quotas are counted in Redis" if ok else "Redis is gone: quotas are counted by each service"
            log.log(logging.INFO if ok else logging.WARNING, message, extra={} if ok else {"error": detail})
        self._ok, self._detail = ok, detail
