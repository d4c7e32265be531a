"""Tokenizer workers in other processes: the same tokens, and what happens when they or Redis die."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from redis import Redis

from albireo.models.engine import Tokens
from albireo.models.torch_engine import TorchEngine
from albireo.observations.errors import AlbireoError, BadInput, Gone, Late
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Observation
from albireo.observations.sky import simulate
from albireo.service.observing import Telemetry
from albireo.service.payload_bytes import pack, unpack
from albireo.service.readiness import probe
from albireo.service.remote_tokens import GROUP, RemoteTokens
from albireo.service.settings import Settings
from albireo.service.tickets import Ticket, under
from albireo.service.tokenizer_worker import Worker
from albireo.service.tracing import Tracing
from albireo.tokenizers.checkpoint import MINI

LEASE = 0.6


class Server:
    """A redis-server on a free port."""

    def __init__(self, folder: Path) -> None:
        found = shutil.which("redis-server")
        assert found, "redis-server is not installed: apt-get install redis-server"
        self.program, self.folder = found, folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [self.program, "--port", str(self.port), "--save", "", "--dir", str(self.folder)], stdout=subprocess.DEVNULL
        )
        with Redis.from_url(self.url) as client:
            until(lambda: _answers(client))

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except Exception:
        return False


def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("redis"))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def mini() -> TorchEngine:
    return TorchEngine.open(MINI)


@pytest.fixture(scope="module")
def settings(server: Server) -> Settings:
    return Settings(redis_url=server.url, worker_lease_seconds=LEASE)


@pytest.fixture
def remote(mini: TorchEngine, server: Server) -> Iterator[RemoteTokens]:
    made = RemoteTokens(mini, server.url, ("image", "spectrum"), LEASE)
    yield made
    made.close()


@pytest.fixture
def start(settings: Settings) -> Iterator[Callable[[str], Worker]]:
    """Starts workers in threads of this process."""
    running: list[tuple[Worker, threading.Thread]] = []

    def begin(pool: str, settings: Settings = settings) -> Worker:
        worker = Worker(settings, pool)
        thread = threading.Thread(target=worker.run)
        thread.start()
        running.append((worker, thread))
        return worker

    yield begin
    for worker, thread in running:
        worker.stop()
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def objects(mini: TorchEngine) -> list[Observation]:
    sky = simulate(40, np.random.default_rng(3))
    full = [one for one in sky if {"tok_image", "tok_spectrum_sdss"} <= one.data.keys()][:4]
    return [
        Observation(str(i), {key: payload for key, payload in one.data.items() if key in mini.inputs})
        for i, one in enumerate(full)
    ]


def same(some: list[Tokens | AlbireoError], others: list[Tokens | AlbireoError]) -> bool:
    return all(
        isinstance(one, Tokens)
        and isinstance(other, Tokens)
        and one.flags == other.flags
        and one.ids.keys() == other.ids.keys()
        and all((one.ids[key] == other.ids[key]).all() for key in one.ids)
        for one, other in zip(some, others, strict=True)
    )


@pytest.mark.parametrize("kind", ["image", "spectrum", "coefficients", "scalar", "segmentation", "catalog"])
def test_a_payload_comes_back_to_the_bit(kind: str) -> None:
    key = next(key for key, row in MODALITIES.items() if row.kind == kind)
    payload = probe([key]).data[key]
    back = unpack(pack(payload))
    assert type(back) is type(payload)
    assert pack(back) == pack(payload)
    for name, value in vars(payload).items():
        if isinstance(value, np.ndarray):
            assert vars(back)[name].dtype == value.dtype
            assert (vars(back)[name] == value).all()
        else:
            assert vars(back)[name] == value


@given(st.binary(max_size=200))
def test_bytes_that_are_no_payload_are_refused(content: bytes) -> None:
    with pytest.raises(BadInput):
        unpack(content)


def test_a_payload_that_breaks_off_is_refused(objects: list[Observation]) -> None:
    content = pack(objects[0].data["tok_image"])
    for end in (3, 10, len(content) - 1):
        with pytest.raises(BadInput):
            unpack(content[:end])
    with pytest.raises(BadInput):
        unpack(content + b"x")


def test_workers_give_the_tokens_that_the_service_would(
    remote: RemoteTokens, mini: TorchEngine, objects: list[Observation], start: Callable[[str], Worker]
) -> None:
    workers = {pool: start(pool) for pool in ("image", "spectrum")}
    until(lambda: remote.workers == {"image": 1, "spectrum": 1})
    for pool, worker in workers.items():
        assert same(remote.tokenize(objects, {pool}), mini.tokenize(objects, {pool}))
        assert worker.done >= len(objects)
    with Redis.from_url(worker_url(remote)) as client:
        for worker in workers.values():
            until(lambda: client.xlen(worker.stream) == 0)  # noqa: B023
            assert client.xpending(worker.stream, GROUP)["pending"] == 0


def worker_url(remote: RemoteTokens) -> str:
    told = remote.streams.redis.connection_pool.connection_kwargs
    return f"redis://{told['host']}:{told['port']}/{told['db']}"


def test_numbers_and_mixtures_stay_here(remote: RemoteTokens, mini: TorchEngine, objects: list[Observation]) -> None:
    assert same(remote.tokenize(objects, {"scalar"}), mini.tokenize(objects, {"scalar"}))
    assert same(remote.tokenize(objects), mini.tokenize(objects))


def test_a_bad_object_fails_alone_with_the_same_error(
    remote: RemoteTokens, mini: TorchEngine, objects: list[Observation], start: Callable[[str], Worker]
) -> None:
    start("spectrum")
    until(lambda: remote.workers["spectrum"] == 1)
    spectrum: Any = objects[0].data["tok_spectrum_sdss"]
    bad = type(spectrum)(**{**vars(spectrum), "wavelength": spectrum.wavelength[::-1].copy()})
    some = [objects[1], Observation("bad", {"tok_spectrum_sdss": bad}), objects[2]]
    first, told, last = remote.tokenize(some, {"spectrum"})
    alone = mini.tokenize(some, {"spectrum"})
    assert isinstance(told, BadInput)
    assert isinstance(alone[1], BadInput)
    assert told.as_dict() == alone[1].as_dict()
    assert same([first, last], [alone[0], alone[2]])


def test_without_workers_the_service_does_it_itself(
    remote: RemoteTokens, mini: TorchEngine, objects: list[Observation]
) -> None:
    until(lambda: remote.workers == {"image": 0, "spectrum": 0}, 5)
    assert same(remote.tokenize(objects[:1], {"image"}), mini.tokenize(objects[:1], {"image"}))


def test_what_a_killed_worker_held_is_taken_over_once(
    remote: RemoteTokens,
    mini: TorchEngine,
    objects: list[Observation],
    start: Callable[[str], Worker],
    server: Server,
    tmp_path: Path,
) -> None:
    """One worker takes the entry and is stopped as it stands, like a machine that lost its power; another is there."""
    environment = os.environ | {"ALBIREO_REDIS_URL": server.url, "ALBIREO_WORKER_LEASE_SECONDS": str(LEASE)}
    held = tmp_path / "held"
    code = (
        "import sys, time, pathlib\n"
        "from albireo.tokenizers.bank import TokenizerBank\n"
        f"TokenizerBank.tokens = lambda *_: (pathlib.Path({str(held)!r}).touch(), time.sleep(3600))\n"
        "from albireo.service.cli import main\n"
        "sys.argv = ['albireo', 'worker', 'image']\n"
        "main()\n"
    )
    doomed = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL)
    try:
        until(lambda: remote.workers["image"] == 1, 60)
        with ThreadPoolExecutor(1) as threads:
            answer = threads.submit(remote.tokenize, objects[:1], {"image"})
            until(held.exists)
            other = start("image")
            until(lambda: remote.workers["image"] == 2)
            doomed.send_signal(signal.SIGKILL)
            assert same(answer.result(20), mini.tokenize(objects[:1], {"image"}))
        assert other.done == 1
    finally:
        doomed.kill()
        doomed.wait()


def test_an_object_that_two_workers_died_of_is_given_up(
    remote: RemoteTokens, objects: list[Observation], start: Callable[[str], Worker], server: Server, mini: TorchEngine
) -> None:
    stream = remote._stream["image"]
    with Redis.from_url(server.url) as client, ThreadPoolExecutor(1) as threads:
        remote.streams.open(stream)
        client.zadd(f"{stream}:workers", {"first": time.time() + 60})
        until(lambda: remote.workers["image"] == 1)
        answer = threads.submit(remote.tokenize, objects[:1], {"image"})
        until(lambda: client.xreadgroup(GROUP, "first", {stream: ">"}, count=1))
        until(lambda: client.xautoclaim(stream, GROUP, "second", 1, count=1)[1])
        start("image")
        (told,) = answer.result(20)
        client.zrem(f"{stream}:workers", "first")
    assert isinstance(told, AlbireoError)
    assert told.code == "internal"
    until(lambda: remote.workers["image"] == 1)
    assert same(remote.tokenize(objects[:1], {"image"}), mini.tokenize(objects[:1], {"image"}))


def test_long_work_is_not_taken_from_a_worker_that_lives(
    remote: RemoteTokens, objects: list[Observation], start: Callable[[str], Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start("image")
    taken = 0
    real = first.bank.tokens

    def slow(*args: Any) -> Any:
        nonlocal taken
        taken += 1
        time.sleep(4 * LEASE)
        return real(*args)

    monkeypatch.setattr(first.bank, "tokens", slow)
    until(lambda: remote.workers["image"] == 1)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(remote.tokenize, objects[:1], {"image"})
        until(lambda: taken)
        second = start("image")
        assert isinstance(answer.result(20)[0], Tokens)
    assert (taken, second.done) == (1, 0)


@pytest.mark.parametrize("end", ["cancelled", "late"])
def test_what_nobody_waits_for_any_more_is_taken_back(
    remote: RemoteTokens, objects: list[Observation], server: Server, end: str
) -> None:
    stream = remote._stream["image"]
    ticket = Ticket.within(0.4 if end == "late" else None)

    def ask() -> object:
        with under(ticket):
            return remote.tokenize(objects[:1], {"image"})

    with Redis.from_url(server.url) as client, ThreadPoolExecutor(1) as threads:

        def added() -> int:
            """Entries that there ever were: one may be gone before it is looked for."""
            return int(client.xinfo_stream(stream)["entries-added"]) if client.exists(stream) else 0

        client.zadd(f"{stream}:workers", {"one that takes nothing": time.time() + 60})
        until(lambda: remote.workers["image"] == 1)
        before = added()
        answer = threads.submit(ask)
        until(lambda: added() > before)
        if end == "cancelled":
            ticket.cancel()
        with pytest.raises(Gone if end == "cancelled" else Late):
            answer.result(5)
        assert client.xlen(stream) == 0
        client.zrem(f"{stream}:workers", "one that takes nothing")


def test_a_worker_works_as_a_part_of_the_request(
    remote: RemoteTokens,
    objects: list[Observation],
    start: Callable[[str], Worker],
    caplog: pytest.LogCaptureFixture,
) -> None:
    exporter = InMemorySpanExporter()
    tracing, worker = Tracing.through(exporter), start("image")
    worker.telemetry.tracing = tracing
    until(lambda: remote.workers["image"] == 1)
    trace = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
    with caplog.at_level("INFO"), Telemetry().request("rest", "asked-1", trace=trace):
        remote.tokenize(objects[:1], {"image"})
    until(lambda: [one for one in caplog.records if getattr(one, "door", "") == "worker"])
    (line,) = [one for one in caplog.records if getattr(one, "door", "") == "worker"]
    assert vars(line)["operation"] == "tokenize"
    worker.telemetry.tracing = None
    tracing.close()
    spans = exporter.get_finished_spans()
    assert {f"{span.context.trace_id:032x}" for span in spans if span.context} == {"ab" * 16}
    assert {span.name for span in spans} == {"worker tokenize", "tokenize"}
    assert "asked-1" in {(span.attributes or {}).get("albireo.request_id") for span in spans}


def test_redis_gone_and_back(mini: TorchEngine, objects: list[Observation], tmp_path: Path) -> None:
    server = Server(tmp_path)
    remote = RemoteTokens(mini, server.url, ("image",), LEASE)
    worker = Worker(Settings(redis_url=server.url, worker_lease_seconds=LEASE), "image")
    thread = threading.Thread(target=worker.run)
    thread.start()
    want = mini.tokenize(objects[:1], {"image"})
    try:
        until(lambda: remote.workers["image"] == 1)
        server.stop()
        assert same(remote.tokenize(objects[:1], {"image"}), want)
        until(lambda: remote.workers["image"] == 0)
        server.start()
        until(lambda: remote.workers["image"] == 1)
        until(lambda: same(remote.tokenize(objects[:1], {"image"}), want) and worker.done > 0)
    finally:
        worker.stop()
        thread.join(20)
        remote.close()
        server.stop()
