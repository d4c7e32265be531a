"""Logs: one line a request, its id in every line of it, exceptions once, and nothing of what must stay secret."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import anyio.to_thread
import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from albireo.service import problems
from albireo.service.app import create_app
from albireo.service.core import Core
from albireo.service.logs import OURS, configure, without_secrets
from albireo.service.observing import Observe, Telemetry
from albireo.service.readiness import Readiness
from albireo.service.settings import Settings
from albireo.service.watch import tally

log = logging.getLogger("albireo.tests")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where logs go that the test configures; the process's logging is as before afterwards."""
    root = logging.getLogger()
    loggers = [root, *map(logging.getLogger, (*OURS, "py.warnings"))]
    levels, handlers, hook = [one.level for one in loggers], root.handlers[:], threading.excepthook
    yield io.StringIO()
    for one, level in zip(loggers, levels, strict=True):
        one.setLevel(level)
    root.handlers[:] = handlers
    threading.excepthook = hook
    logging.captureWarnings(False)


@pytest.fixture
def client(core: Core, settings: Settings) -> Iterator[TestClient]:
    readiness = Readiness(core, settings.data_folder, fresh_seconds=3600.0, wait_seconds=20.0)
    with TestClient(create_app(core, settings, readiness), raise_server_exceptions=False) as made:
        assert made.get("/readyz").status_code == 200  # the first probes are over
        yield made


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def requests(stream: io.StringIO) -> list[dict[str, Any]]:
    return [line for line in lines(stream) if line["logger"] == "albireo.access"]


def test_one_line_for_a_request(client: TestClient, stream: io.StringIO, image: Callable[..., bytes]) -> None:
    configure("json", "info", stream)
    files = [("file", ("a.fits", image("a"))), ("file", ("b.fits", image("b")[:3000]))]
    answer = client.post("/v1/embed", files=files, headers={"X-Request-Id": "mine-1"})
    (line,) = requests(stream)
    assert line["request_id"] == answer.headers["x-request-id"] == "mine-1"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line.pop("ms") >= sum(line["stages_ms"].values()) > 0
    assert set(line.pop("stages_ms")) >= {"tokenize", "queue", "encode"}
    assert line.pop("bytes_in") > len(image("a")) + 3000
    assert line == {
        "level": "info",
        "logger": "albireo.access",
        "message": "request",
        "door": "rest",
        "operation": "embed",
        "status": "200",
        "bytes_out": len(answer.content),
        "objects": 2,
        "failed": 1,
        "tokens": 4,
        "client": "testclient",
        "request_id": "mine-1",
    }


def test_what_went_wrong_is_told(client: TestClient, stream: io.StringIO) -> None:
    configure("json", "info", stream)
    client.get("/v1/collections/none", headers={"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"})
    (line,) = requests(stream)
    assert (line["operation"], line["status"], line["code"]) == ("collection", "404", "collection_unknown")
    assert line["trace_id"] == "a" * 32


def test_health_checks_are_told_if_something_is_wrong(
    client: TestClient, stream: io.StringIO, engine: Any, core: Core, settings: Settings
) -> None:
    configure("json", "info", stream)
    for path in ("/livez", "/readyz", "/metrics"):
        assert client.get(path).status_code == 200
    assert requests(stream) == []
    configure("json", "debug", stream)
    client.get("/livez")
    assert [line["operation"] for line in requests(stream)] == ["livez"]
    configure("json", "info", stream)
    engine.crash = True
    with TestClient(create_app(core, settings, Readiness(core, settings.data_folder, fresh_seconds=0.0))) as fresh:
        fresh.get("/readyz")
    assert [(line["operation"], line["status"]) for line in requests(stream)][1:] == [("readyz", "503")]


def test_every_line_of_a_request_has_its_id(stream: io.StringIO) -> None:
    configure("json", "info", stream)
    telemetry = Telemetry()

    async def request(name: str) -> None:
        with telemetry.request("rest", name):
            log.info("in the task of %s", name)
            await anyio.sleep(0)
            await anyio.to_thread.run_sync(log.info, "in a thread of %s", name)

    async def all_at_once() -> None:
        async with anyio.create_task_group() as group:
            for n in range(8):
                group.start_soon(request, f"r{n}")
        log.info("outside")

    asyncio.run(all_at_once())
    told = [line for line in lines(stream) if line["logger"] == "albireo.tests"]
    assert len(told) == 17
    assert all(line["message"].endswith(line.get("request_id", "outside")) for line in told)


def test_a_defect_of_the_engine_is_told_with_the_request(
    client: TestClient, stream: io.StringIO, engine: Any, image: Callable[..., bytes]
) -> None:
    configure("json", "info", stream)
    engine.crash = True
    answer = client.post("/v1/embed", content=image("a"), headers={"Content-Type": "application/fits"})
    defects = [line for line in lines(stream) if "exception" in line]
    assert [line["request_id"] for line in defects] == [answer.headers["x-request-id"]]
    assert "RuntimeError" in defects[0]["exception"]


def broken_app() -> FastAPI:
    """An app with operations that fail by defects."""
    app = FastAPI()
    app.add_middleware(Observe, telemetry=Telemetry())
    problems.install(app)

    @app.get("/broken")
    async def broken() -> None:
        await anyio.to_thread.run_sync(fail)

    @app.post("/body")
    async def body(request: Request) -> int:
        tally().key = "a-key"
        return len(await request.body())

    def fail() -> None:
        raise ValueError("a defect")

    return app


@pytest.fixture
def server(stream: io.StringIO) -> Iterator[str]:
    """Uvicorn as the service runs it, on a free port: its address. Its log goes to `stream`, as JSON."""
    configure("json", "info", stream)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        host, port = taken.getsockname()
        made = uvicorn.Server(uvicorn.Config(broken_app(), log_config=None, access_log=False))
        thread = threading.Thread(target=made.run, kwargs={"sockets": [taken]})
        thread.start()
        while not made.started:
            time.sleep(0.01)
        yield f"http://{host}:{port}"
        made.should_exit = True
        thread.join()


def test_an_exception_stands_in_the_log_once(server: str, stream: io.StringIO) -> None:
    answer = httpx.get(f"{server}/broken", headers={"X-Request-Id": "broken-1"})
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal"
    (access,) = requests(stream)
    assert (access["status"], access["code"], access["operation"]) == ("500", "internal", "/broken")
    defects = [line for line in lines(stream) if "exception" in line]
    assert [(line["level"], line["request_id"]) for line in defects] == [("error", "broken-1")]
    assert "ValueError: a defect" in defects[0]["exception"]
    assert "in fail" in defects[0]["exception"]


def test_what_another_uvicorn_set_does_not_silence_ours(stream: io.StringIO) -> None:
    uvicorn.Config(broken_app(), log_level="critical")
    configure("json", "info", stream)
    logging.getLogger("uvicorn.error").info("Started")
    assert [line["message"] for line in lines(stream)] == ["Started"]


def test_the_server_logs_through_it(server: str, stream: io.StringIO) -> None:
    httpx.post(f"{server}/body", content=b"12345")
    assert any("Started server process" in line["message"] for line in lines(stream) if "uvicorn" in line["logger"])
    (access,) = requests(stream)
    assert access["bytes_in"] == 5
    assert access["key"] == "a-key"
    assert access["client"] == "127.0.0.1"


def test_who_leaves_while_sending_is_no_defect(server: str, stream: io.StringIO) -> None:
    host, _, port = server.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as half:
        half.sendall(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n12345")
        time.sleep(0.1)
    deadline = time.monotonic() + 5
    while not requests(stream) and time.monotonic() < deadline:
        time.sleep(0.01)
    (access,) = requests(stream)
    assert (access["status"], access["code"]) == ("499", "cancelled")
    assert [line for line in lines(stream) if line["level"] == "error"] == []


def test_no_secret_and_no_content_is_told(client: TestClient, stream: io.StringIO, engine: Any) -> None:
    configure("json", "debug", stream)
    engine.crash = True
    secrets = {"Authorization": "Bearer s3cr3t-key", "X-Api-Key": "s3cr3t-key", "Cookie": "s3cr3t=1"}
    values = {"survey.x": {"secret": "s3cr3t"}}
    client.post("/v1/embed?filename=s3cr3t", content=b"s3cr3t", headers=secrets | {"Content-Type": "application/fits"})
    client.post("/v1/embed", json={"items": [{"id": "s3cr3t", "inputs": [values]}]}, headers=secrets)
    client.get("/v1/collections/s3cr3t", headers=secrets)
    client.get("/s3cr3t", headers=secrets)
    assert len(requests(stream)) == 4
    assert "s3cr3t" not in stream.getvalue()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("redis://user:s3cr3t@host:6379/0 is gone", "redis://user:***@host:6379/0 is gone"),
        ("redis://:s3cr3t@host", "redis://:***@host"),
        ("Authorization: Bearer abc.DEF-123", "Authorization: Bearer ***"),
        ("basic dXNlcjpwYXNz", "basic ***"),
        ("http://host:80/a@b stays", "http://host:80/a@b stays"),
        ("nothing to hide: 12:34", "nothing to hide: 12:34"),
    ],
)
def test_secrets_in_messages(text: str, told: str) -> None:
    assert without_secrets(text) == told


def test_secrets_in_tracebacks(stream: io.StringIO) -> None:
    configure("json", "info", stream)
    try:
        raise OSError("redis://u:s3cr3t@host")
    except OSError:
        log.exception("could not connect to redis://u:s3cr3t@host")
    assert "s3cr3t" not in stream.getvalue()
    assert lines(stream)[0]["exception"].endswith("OSError: redis://u:***@host")


def test_text_for_people(stream: io.StringIO) -> None:
    configure("text", "info", stream)
    with Telemetry().request("rest", "mine-1") as mine:
        mine.operation, mine.status, mine.key = "embed", "200", 'a "key" = x'
        log.warning("one\nforged 2026-01-01 INFO albireo: line")
    first, second = stream.getvalue().splitlines()
    assert first.endswith(" WARNING albireo.tests: one\\nforged 2026-01-01 INFO albireo: line request_id=mine-1")
    assert " INFO    albireo.access: request door=rest operation=embed status=200 ms=" in second
    assert ' key="a \\"key\\" = x"' in second


def test_a_terminal_gets_text_and_a_file_json(stream: io.StringIO) -> None:
    configure(None, "info", stream)
    log.info("hello")
    assert lines(stream)[0]["message"] == "hello"

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    configure(None, "info", terminal)
    log.info("hello")
    assert terminal.getvalue().endswith("INFO    albireo.tests: hello\n")


def test_levels(stream: io.StringIO) -> None:
    configure("json", "warning", stream)
    log.info("not told")
    logging.getLogger("someone.else").info("not told")
    logging.getLogger("someone.else").warning("told")
    warnings.warn("of a reader, which may quote a file", stacklevel=1)
    assert [line["message"] for line in lines(stream)] == ["told"]
    configure("json", "debug", stream)
    log.debug("told too")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("for who writes code", stacklevel=1)
    debug, warning = lines(stream)[1:]
    assert debug["message"] == "told too"
    assert "for who writes code" in warning["message"]


def test_fields_of_a_record_are_told(stream: io.StringIO) -> None:
    configure("json", "info", stream)
    log.info("job", extra={"job": "j1", "path": object})
    assert lines(stream)[0]["job"] == "j1"
    assert lines(stream)[0]["path"] == "<class 'object'>"


def test_a_thread_that_ends_by_an_exception_is_told(stream: io.StringIO) -> None:
    configure("json", "info", stream)

    def fail() -> None:
        raise ValueError("of a thread")

    thread = threading.Thread(target=fail, name="worker-3")
    thread.start()
    thread.join()
    (line,) = lines(stream)
    assert line["message"] == "thread worker-3 ended by an exception"
    assert line["exception"].endswith("ValueError: of a thread")
