"""Quotas that several services count together, in a Redis of their own on a free port; gone, and back."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from albireo.observations.errors import Busy
from albireo.service.access import Access
from albireo.service.keys import Key, Quota, entry, new_key, sha256_of
from albireo.service.quotas import Counters
from albireo.service.quotas_redis import RedisCounters
from albireo.service.settings import Settings


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts a Redis of its own at `port`, as often as it is called; all are ended after the test."""
    program = shutil.which("redis-server") or "/usr/bin/redis-server"
    if not Path(program).exists():
        pytest.fail("install redis-server (Debian: apt-get install redis-server)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        running.append(
            subprocess.Popen(
                [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
                cwd=tmp_path, stdout=subprocess.DEVNULL,
            )
        )  # fmt: skip
        return running[-1]

    start.url = f"redis://127.0.0.1:{port}/0"  # type: ignore[attr-defined]
    yield start
    for process in running:
        process.kill()
        process.wait()


def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not come"
        time.sleep(0.02)


def left(counters: Counters, key: Key) -> list[int]:
    return [state.remaining for state in counters.states(key)]


DAILY = Key("a", "0" * 64, "read", Quota(requests_per_day=100, tokens_per_day=1000))


def test_services_count_together_in_redis(redis_server) -> None:
    redis_server()
    here, there = (RedisCounters(redis_server.url) for _ in range(2))
    for counters in (here, there):
        counters.know([DAILY])
    try:
        until(lambda: here.report() == there.report() == (True, "in Redis"))
        for _ in range(5):
            here.take(DAILY)
        here.charge(DAILY, 30)
        there.take(DAILY)
        until(lambda: left(here, DAILY) == left(there, DAILY) == [94, 970])
    finally:
        here.close()
        there.close()
    again = RedisCounters(redis_server.url)  # a service that starts anew knows what was used
    again.know([DAILY])
    until(lambda: left(again, DAILY) == [94, 970])
    again.close()


def test_redis_gone_and_back(redis_server, caplog) -> None:
    process = redis_server()
    counters = RedisCounters(redis_server.url)
    counters.know([DAILY])
    try:
        counters.take(DAILY)
        until(lambda: counters.report()[1] == "in Redis")
        process.kill()
        process.wait()
        until(lambda: not counters.report()[0])
        slowest = 0.0
        for _ in range(200):
            if left(counters, DAILY)[0] < 1:
                break
            began = time.perf_counter()
            counters.take(DAILY)
            slowest = max(slowest, time.perf_counter() - began)
        assert slowest < 0.05
        with pytest.raises(Busy):  # counted by this service alone, on from what was known
            counters.take(DAILY)
        assert "each service counts for itself" in counters.report()[1]
        redis_server()
        until(lambda: counters.report()[0])
        other = RedisCounters(redis_server.url)
        other.know([DAILY])
        until(lambda: left(other, DAILY)[0] <= 1)  # what was spent meanwhile was told
        other.close()
    finally:
        counters.close()
    assert "Redis is gone" in caplog.text


def test_a_redis_that_never_was(tmp_path: Path) -> None:
    text = new_key()
    (tmp_path / "keys.toml").write_text(entry(Key("a", sha256_of(text), "read", Quota(requests_per_minute=5))))
    settings = Settings(keys_file=tmp_path / "keys.toml", redis_url="redis://127.0.0.1:1/0")
    access = Access.of(settings)
    assert access.check(text, "embed").name == "a"
    until(lambda: not access.report()[0])
    assert not access.shared
    access.close()
