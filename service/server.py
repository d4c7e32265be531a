"""The process that serves: uvicorn, with an end that answers what was begun.

At SIGTERM or Ctrl-C the service stops being ready and lets nobody in, which it says to whoever asks; it answers the
requests that are inside, and ends. What is not answered when the time for that is over is told so. A second signal ends
it at once.
"""

from __future__ import annotations

import asyncio
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

LAST_SECONDS = 5
"""For answers that are being sent when everybody inside was answered."""


class Server(uvicorn.Server):
    """Uvicorn that goes on listening while the app answers what is inside."""

    _ending: tuple[int, FrameType | None] | None = None
    _drained: asyncio.Future[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the end, another one cuts it short."""
        if self._ending is None and self.started:
            self._ending = (sig, frame)
            self._state.drain()
        else:
            self.force_exit = True
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: the listener is closed when the app has answered everybody."""
        if self._ending is not None and not self.should_exit:
            self._drained = self._drained or asyncio.ensure_future(self._state.drained())
            if self._drained.done():
                super().handle_exit(*self._ending)
        return await super().on_tick(counter)

    @property
    def _state(self) -> Any:
        return self.config.app.state  # type: ignore[union-attr]


def run(app: FastAPI, host: str, port: int, **options: Any) -> None:
    """Serve until a signal says to end."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=LAST_SECONDS,
        **options,
    )
    Server(config).run()
