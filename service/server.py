"""The process that serves: uvicorn, with an end that answers what was begun.

At SIGTERM or Ctrl-C the service stops being ready and lets nobody in, answers the requests that are inside, and ends.
A second signal ends it at once.
"""

from __future__ import annotations

from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI


class Server(uvicorn.Server):
    """Uvicorn that tells the app when the end begins."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.config.app.state.drain()  # type: ignore[union-attr]
        super().handle_exit(sig, frame)


def run(app: FastAPI, host: str, port: int, drain_seconds: float, **options: Any) -> None:
    """Serve until a signal says to end; requests that are inside get so many seconds then."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=int(drain_seconds),
        **options,
    )
    Server(config).run()
