"""The HTTP service: one app over one core."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from albireo.service import openapi, problems
from albireo.service.bodies import Limits
from albireo.service.core import Core
from albireo.service.readiness import KnownAnswer, Readiness
from albireo.service.routes import Doors, router
from albireo.service.settings import Settings, read_settings

DESCRIPTION = """Raw survey files in, embeddings and neighbours out.

Bodies: files as `multipart/form-data`, one bare file, or JSON. Errors are problem documents (RFC 9457) with a
machine `code`, listed at [/docs/errors](/docs/errors). A bad object fails alone."""


def create_app(core: Core, settings: Settings, readiness: Readiness | None = None) -> FastAPI:
    """The app over `core`. It answers at once; the engine is loaded while /readyz still says 503."""
    readiness = readiness or Readiness(
        core,
        settings.data_folder.expanduser(),
        # The stored answer is of the model's own preprocessing.
        lambda: KnownAnswer.read(settings.model_folder) if settings.preprocessing is None else None,
        settings.redis_url,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        readiness.start()
        yield
        core.close()

    app = FastAPI(
        title="Albireo", version=version("albireo"), description=DESCRIPTION, lifespan=lifespan, redoc_url=None
    )
    app.add_middleware(Limits, max_body_bytes=settings.max_body_bytes)
    problems.install(app)
    openapi.install(app)
    app.include_router(router(Doors(core, settings, readiness)))
    return app


def local_app() -> FastAPI:
    """The app that the settings describe, over the checkpoint and the collections of this machine."""
    settings = read_settings()
    core = Core.local(settings)
    return create_app(core, settings)
