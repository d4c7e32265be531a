"""Faults: nothing hangs, nothing lies, and the other objects are what they would have been without the bad one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from albireo.index.collection import Collections
from albireo.models.torch_engine import TorchEngine
from albireo.service import inputs
from albireo.service.app import create_app
from albireo.service.core import Core
from albireo.service.readiness import KnownAnswer, Readiness
from albireo.service.settings import Settings
from albireo.tokenizers.checkpoint import MINI
from tests.service.conftest import ToyEngine
from tests.service.served import Served, served

READ = {"survey": "legacysurvey", "release": "dr10", "system": "AB", "kind": "model", "extinction_corrected": False}


def flux(n: int, value: float | None = None) -> dict[str, Any]:
    values = {"flux_g": float(n + 1) if value is None else value, "flux_g_unit": "nanomaggy"}
    return {"id": str(n), "inputs": [{"modality": "photometry", "values": values, "read": READ}]}


def embeddings(answer: Any) -> dict[str, Any]:
    return {item["id"]: item["embedding"] for item in answer.json()["items"] if item["status"] != "error"}


def until(true: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.01)


@pytest.fixture
def service(engine: ToyEngine, tmp_path: Path) -> Iterator[Served]:
    with served(engine, tmp_path) as made:
        yield made


@pytest.fixture
def client(core: Core, settings: Settings) -> Iterator[TestClient]:
    """A service that takes 64 files in one request."""
    wide = settings.model_copy(update={"max_items": 100, "max_body_bytes": 64 << 20})
    with TestClient(create_app(core, wide)) as made:
        yield made


@pytest.mark.parametrize("value", ["NaN", "Infinity"])
def test_a_number_that_is_none_in_one_of_64(client: TestClient, value: str) -> None:
    items = [flux(n) for n in range(64)]
    want = embeddings(client.post("/v1/embed", json={"items": items}))
    text = json.dumps({"items": [*items[:7], flux(7, 12345.0), *items[8:]]}).replace("12345.0", value)
    answer = client.post("/v1/embed", content=text, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    assert answer.headers["x-items-failed"] == "1"
    del want["7"]
    assert embeddings(answer) == want


def test_a_truncated_file_among_64(client: TestClient, image: Callable[..., bytes]) -> None:
    files = [("file", (f"{n}.fits", image(str(n)), "application/fits")) for n in range(8)]
    files += [("file", (f"{n}.fits", image(str(n)), "application/fits")) for n in range(8, 64)]
    want = embeddings(client.post("/v1/embed", files=files))
    name, (file, content, kind) = files[40]
    files[40] = (name, (file, content[: len(content) // 2], kind))
    answer = client.post("/v1/embed", files=files)
    assert answer.headers["x-items-failed"] == "1"
    (bad,) = [item for item in answer.json()["items"] if item["status"] == "error"]
    assert bad["file"] == "40.fits"
    assert bad["error"]["code"] == "damaged_file"
    gone = set(want) - set(embeddings(answer))
    assert len(gone) == 1
    assert embeddings(answer) == {name: values for name, values in want.items() if name not in gone}


def test_an_engine_that_breaks_says_nothing_of_its_insides_and_mends(client: TestClient, engine: ToyEngine) -> None:
    engine.crash = True
    answer = client.post("/v1/embed", json={"items": [flux(1)]})
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal"
    assert "secret" not in answer.text
    engine.crash = False
    assert client.post("/v1/embed", json={"items": [flux(1)]}).status_code == 200


def test_a_client_that_goes_away_in_the_middle_of_its_upload(service: Served) -> None:
    def inside() -> int:
        return int(httpx.get(f"{service.url}/v1/info").status_code == 200)

    head = f"POST /v1/embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/fits\r\nContent-Length: {1 << 20}\r\n\r\n"
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", service.port)) as connection:
            connection.sendall(head.encode() + b"SIMPLE  =" + b" " * 5000)
    assert inside()
    answer = httpx.post(f"{service.url}/v1/embed", json={"items": [flux(1)]})
    assert answer.status_code == 200


def test_a_client_that_does_not_wait_costs_nothing(engine: ToyEngine, tmp_path: Path) -> None:
    with served(engine, tmp_path) as service:
        httpx.post(f"{service.url}/v1/embed", json={"items": [flux(0)]})
        assert service.core.pipeline is not None
        queue = service.core.pipeline.encoding
        engine.gate.clear()
        with ThreadPoolExecutor(1) as threads:
            running = threads.submit(httpx.post, f"{service.url}/v1/embed", json={"items": [flux(1)]}, timeout=30)
            until(lambda: queue.computing == 1)
            for n in range(10):
                with pytest.raises(httpx.ReadTimeout):
                    httpx.post(f"{service.url}/v1/embed", json={"items": [flux(n)]}, timeout=0.3)
            until(lambda: queue.waiting == 0)
            given = len(engine.given)
            engine.gate.set()
            assert running.result(10).status_code == 200
        assert len(engine.given) == given


def test_a_full_disk_stops_writing_and_nothing_else(core: Core, client: TestClient) -> None:
    """Simulated by SQLite's own limit of pages."""
    collection = core.create("sky")
    stored = [{"id": str(n), "vector": [float(n + 1)] * core.engine.dim} for n in range(99)]
    send = {"objects": stored[:3], "space": collection.space}
    assert client.post("/v1/collections/sky/objects", json=send).status_code == 200
    (pages,) = collection._connection.execute("PRAGMA page_count").fetchone()
    collection._connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    refused = client.post("/v1/collections/sky/objects", json=send | {"objects": stored})
    assert (refused.status_code, refused.json()["code"]) == (507, "storage_full")
    found = client.post("/v1/collections/sky/search", json={"query": {"id": "1"}, "k": 5})
    assert {hit["id"] for hit in found.json()["results"][0]["hits"]} == {"0", "2"}
    assert client.get("/readyz").status_code == 200
    collection._connection.execute("PRAGMA max_page_count = 1000000")
    assert client.post("/v1/collections/sky/objects", json=send | {"objects": stored}).json()["count"] == 99


def test_a_file_that_many_objects_of_a_request_name_is_read_once(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(f"t{n},{n + 1.0}\n" for n in range(20))
    table = f"id,flux_g\n{rows}".encode()
    read: list[str] = []
    real = inputs.read_files

    def counted(sources: Any, options: Any) -> Any:
        read.extend(source.name for source in sources)
        return real(sources, options)

    monkeypatch.setattr(inputs, "read_files", counted)
    how = READ | {"unit": "nanomaggy"}
    items = [{"id": f"t{n}", "inputs": [{"ref": "part:many", "object": f"t{n}", "read": how}]} for n in range(20)]
    answer = client.post("/v1/embed", data={"request": json.dumps({"items": items})}, files={"many": ("t.csv", table)})
    assert answer.status_code == 200, answer.text
    assert [item["id"] for item in answer.json()["items"]] == [f"t{n}" for n in range(20)]
    assert read == ["t.csv"]


SERVE = """
import sys
from pathlib import Path
from tests.service.conftest import ToyEngine
from tests.service.served import new_core
from albireo.service.app import create_app
from albireo.service.server import run
from albireo.service.settings import Settings
import time
class Slow(ToyEngine):
    def embed(self, tokens, pooling="mean"):
        if any(len(one.ids) == 1 for one in tokens):  # the probe has more
            time.sleep(float(sys.argv[3]))
        return super().embed(tokens, pooling)
settings = Settings(data_folder=Path(sys.argv[1]), model=sys.argv[1], drain_seconds=float(sys.argv[4]))
run(create_app(new_core(Slow(), settings), settings), "127.0.0.1", int(sys.argv[2]))
"""


@contextmanager
def serving(folder: Path, seconds: float, drain: float) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A service in a process of its own, whose batches take so long, and its address, when it is ready."""
    port = free_port()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", SERVE, str(folder), str(port), str(seconds), str(drain)]
    process = subprocess.Popen(command, env=environment, cwd=folder)
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        try:
            return httpx.get(f"{url}/readyz", timeout=10).status_code == 200
        except httpx.HTTPError:
            return False

    try:
        until(ready, 60)
        yield process, url
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_sigterm_under_load(tmp_path: Path) -> None:
    """Every request that was let in is answered; what comes meanwhile is refused, not lost; the process ends well."""
    with serving(tmp_path, 2.0, 30.0) as (process, url), ThreadPoolExecutor(16) as threads:
        first = [threads.submit(ask, url, n) for n in range(16)]
        inside(url, 16)
        process.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{url}/readyz").status_code == 503)
        assert "shutting down" in httpx.get(f"{url}/readyz").json()["detail"]
        assert httpx.get(f"{url}/livez").status_code == 200
        late = httpx.post(f"{url}/v1/embed", json={"items": [flux(99)]})
        assert (late.status_code, late.json()["code"]) == (503, "not_ready")
        assert late.headers["retry-after"]
        answers = [future.result(60).status_code for future in first]
        assert answers == [200] * 16
        assert process.wait(30) in (0, -signal.SIGTERM)
        with pytest.raises(httpx.ConnectError):
            ask(url, 99)


def test_what_takes_longer_than_the_end_of_a_service_is_told_so(tmp_path: Path) -> None:
    """By the error that sends it elsewhere, whether it is computed or still comes in; and the process does end."""
    with serving(tmp_path, 20.0, 1.0) as (process, url), ThreadPoolExecutor(4) as threads:
        first = [threads.submit(ask, url, n) for n in range(3)]
        header = {"Content-Type": "application/json"}
        slow = threads.submit(httpx.post, f"{url}/v1/embed", content=dripping(), headers=header, timeout=60)
        inside(url, 4)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        for answer in [future.result(60) for future in (*first, slow)]:
            assert (answer.status_code, answer.json()["code"]) == (503, "not_ready"), answer.text
            assert answer.headers["retry-after"]
        assert process.wait(30) in (0, -signal.SIGTERM)
        assert time.monotonic() - began < 20


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, 20.0, 60.0) as (process, url), ThreadPoolExecutor(1) as threads:
        first = threads.submit(ask, url, 1)
        inside(url, 1)
        process.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{url}/readyz").status_code == 503)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
        assert time.monotonic() - began < 10
        assert isinstance(first.exception(10), httpx.HTTPError)


def ask(url: str, n: int) -> httpx.Response:
    return httpx.post(f"{url}/v1/embed", json={"items": [flux(n)]}, timeout=60)


def inside(url: str, n: int) -> None:
    """Wait until so many requests are inside, beside the one that asks."""
    pattern = re.compile(r"^albireo_requests_in_flight(?:\{.*\})? ([0-9.]+)$", re.MULTILINE)
    until(lambda: sum(map(float, pattern.findall(httpx.get(f"{url}/metrics").text))) > n)


def dripping() -> Iterator[bytes]:
    """A body that does not come to its end."""
    yield b'{"items": ['
    time.sleep(9)
    yield b"]}"


def test_weights_that_are_damaged_on_disk_are_never_ready(tmp_path: Path) -> None:
    """One number of the encoder is another: the model loads, and the known answer is not its answer."""

    folder = tmp_path / "model"
    shutil.copytree(MINI, folder)
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(1)
    for at in rng.integers(len(content) // 2, len(content) - 4, 200):
        content[at] ^= 0x40
    path.write_bytes(content)
    settings = Settings(model=str(folder), data_folder=tmp_path / "data")
    core = Core(lambda: TorchEngine.open(folder), lambda: Collections(settings.collections_file))
    readiness = Readiness(core, settings.data_folder, lambda: KnownAnswer.read(folder), wait_seconds=60)
    try:
        report = readiness.report()
    finally:
        core.close()
    assert not report.ready
    assert not report.capabilities["embed"]["ok"]
