"""A service on a free port for tests of clients, with a door that can refuse, and that remembers who came."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from albireo.index.collection import Collections
from albireo.models.engine import Engine
from albireo.observations.errors import AlbireoError
from albireo.service.app import create_app
from albireo.service.core import Core
from albireo.service.problems import problem, status_of
from albireo.service.readiness import Readiness
from albireo.service.settings import Settings
from albireo.service.shelf import Shelf


class Door:
    """Stands before the app. Requests to /v1/embed and /v1/predict are counted, and refused by `refusals`, first first.

    refusals  an error and the Retry-After that goes with it, or None to let a request in
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.refusals: list[tuple[AlbireoError, str | None] | None] = []
        self.seen: list[Request] = []
        self.inside = self.most_inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        refused = self._refused(request)
        if refused is not None:
            error, after = refused
            headers = {"Retry-After": after} if after else {}
            document = problem(error, "refused-at-the-door")
            answer = JSONResponse(document, status_of(error), headers, "application/problem+json")
            await answer(scope, receive, send)
            return
        self.inside += 1
        self.most_inside = max(self.inside, self.most_inside)
        try:
            await self.app(scope, receive, send)
        finally:
            self.inside -= 1

    def _refused(self, request: Request) -> tuple[AlbireoError, str | None] | None:
        if request.url.path in ("/v1/embed", "/v1/predict"):
            self.seen.append(request)
            return self.refusals.pop(0) if self.refusals else None
        return None


class Served:
    """A service that answers at `url`, over `core`, behind `door`."""

    def __init__(self, core: Core, settings: Settings) -> None:
        self.core, self.settings = core, settings
        readiness = Readiness(core, settings.data_folder, fresh_seconds=0.0, wait_seconds=20.0)
        self.door = Door(create_app(core, settings, readiness))
        self._server = uvicorn.Server(uvicorn.Config(self.door, port=0, log_level="warning", lifespan="on"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def start(self) -> None:
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.005)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)


def new_core(engine: Engine, settings: Settings) -> Core:
    """A core over an engine, with heads and collections under the settings' folders."""
    shelf = Shelf({"own": settings.data_folder / "heads"})
    return Core(lambda: engine, lambda: Collections(settings.collections_file), shelf=lambda: shelf)


@contextmanager
def served(engine: Engine, folder: Path, **settings: Any) -> Iterator[Served]:
    """A service over an engine, from its start to its end."""
    stated = Settings(data_folder=folder / "data", model=str(folder), **settings)
    with running(Served(new_core(engine, stated), stated)) as service:
        yield service


@contextmanager
def running(service: Served) -> Iterator[Served]:
    """A service, from its start to its end."""
    service.start()
    try:
        yield service
    finally:
        service.stop()
