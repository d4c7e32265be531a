"""A service inside the process of its only client: requests go to the app itself, by no network."""

from __future__ import annotations

import asyncio
import atexit
import threading
from concurrent.futures import Future
from typing import Any

import httpx
from fastapi import FastAPI

from albireo.service.app import create_app
from albireo.service.core import Core
from albireo.service.settings import Settings, read_settings


def local_app(model: str | None, settings: Settings | None, core: Core | None) -> FastAPI:
    """The app over a core, by default the one that the settings describe; without other doors, and without keys."""
    changed: dict[str, Any] = {"grpc_port": None, "keys_file": None} | ({} if model is None else {"model": model})
    settings = (settings or read_settings()).model_copy(update=changed)
    return create_app(core or Core.local(settings), settings)


class InProcess(httpx.BaseTransport):
    """Carries requests to an app that runs in a thread beside, from here to `close` or the end of the program."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._running: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=self._run, name="albireo-local", daemon=True)
        self._thread.start()
        self._loop, self._closing = self._running.result()
        atexit.register(self.close)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        whole = httpx.Request(request.method, request.url, headers=request.headers, content=request.read())
        return asyncio.run_coroutine_threadsafe(self._answer(whole), self._loop).result()

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        response = await self._transport.handle_async_request(request)
        return httpx.Response(response.status_code, headers=response.headers, content=await response.aread())

    def close(self) -> None:
        """End the service; what was asked is answered."""
        atexit.unregister(self.close)
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._running.done():
                raise
            self._running.set_exception(error)

    async def _serve(self) -> None:
        closing = asyncio.Event()
        async with self._app.router.lifespan_context(self._app):
            self._running.set_result((asyncio.get_running_loop(), closing))
            await closing.wait()
