"""The HTTP service: one app over one core."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from albireo.observations.spaces import identity
from albireo.service import docs_page, oip_rest, openapi, problems, usage
from albireo.service.access import EXPOSED, Access, Guard
from albireo.service.admission import Admission, Admit
from albireo.service.bodies import Limits
from albireo.service.body_bounds import Bounds
from albireo.service.core import Core
from albireo.service.generation_routes import GenerationDoors
from albireo.service.observing import Observe, Telemetry
from albireo.service.oip import Models
from albireo.service.operations import router
from albireo.service.readiness import KnownAnswer, Readiness, Report
from albireo.service.replies import refused_whole
from albireo.service.settings import Settings, read_settings
from albireo.service.telemetry import install as install_metrics
from albireo.service.terms import Refused
from albireo.service.tickets import Priority
from albireo.service.tls import Tls

if TYPE_CHECKING:
    from albireo.service.grpc_door import Door

LAST_SECONDS = 5.0
"""What the parts of the service get to end when everybody inside was answered, each."""

DESCRIPTION = """Raw survey files in, embeddings and neighbours out.

Bodies: files as `multipart/form-data`, one bare file, or JSON. Errors are problem documents (RFC 9457) with a
machine `code`, listed at [/docs/errors](/docs/errors). A bad object fails alone."""


def create_app(
    core: Core, settings: Settings, readiness: Readiness | None = None, telemetry: Telemetry | None = None
) -> FastAPI:
    """The app over `core`. It answers at once; the engine is loaded while /readyz still says 503."""
    access = Access.of(settings)
    readiness = readiness or Readiness(
        core,
        settings.data_folder.expanduser(),
        # The stored answer is of the model's own preprocessing.
        lambda: KnownAnswer.read(settings.model_folder) if settings.preprocessing is None else None,
        settings.redis_url,
        {"keys": access.report},
    )

    telemetry = telemetry or Telemetry.of(settings)
    telemetry.metrics.about(partial(_waiting, core), lambda: _ready(readiness.report()), lambda: _model(core))
    core.staff(settings.staffing, telemetry.metrics)
    tls = Tls.of(settings)
    admission = Admission(
        settings.max_requests,
        settings.max_inflight_bytes,
        settings.max_delay_seconds,
        lambda: core.pipeline.seconds_to_drain if core.pipeline is not None else 0.0,
    )

    until = 0.0
    """When what is inside has had its time, once the end has begun."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        door = await open_door() if settings.grpc_port else None
        readiness.start()
        yield
        await drained()
        if door is not None:
            await door.close(LAST_SECONDS)
        core.close(LAST_SECONDS)
        access.close()
        telemetry.close()

    async def open_door() -> Door:
        """The gRPC door beside this one, on the same event loop."""
        from albireo.service.grpc_door import Door  # grpc only where it is served

        files = (None, None) if tls is None else ((tls.certificate, tls.key), tls.client_ca)
        return await Door.open(core, settings, readiness, admission, telemetry, access, *files)

    def drain() -> None:
        """Begin nothing new; what was let in is answered."""
        nonlocal until
        until = until or time.monotonic() + settings.drain_seconds
        readiness.drain()
        admission.close()

    async def drained() -> None:
        """What was let in is answered, or told that it will not be, when the time for that is over."""
        drain()
        while admission.requests and time.monotonic() < until:
            await asyncio.sleep(0.05)
        admission.end()

    app = FastAPI(
        title="Albireo",
        version=version("albireo"),
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.drain, app.state.drained = drain, drained
    app.add_middleware(Admit, admission=admission, deadline_seconds=settings.deadline_seconds)
    app.add_middleware(Bounds, max_body_bytes=settings.max_body_bytes)
    app.add_middleware(
        Limits, max_body_bytes=settings.max_body_bytes, max_decompressed_bytes=settings.max_decompressed_bytes
    )
    app.add_middleware(Guard, access=access)
    if origins := settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[origin.strip() for origin in origins.split(",")],
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
        )
    app.add_middleware(Observe, telemetry=telemetry)  # the last is the outermost: it also sees what the others refuse
    problems.install(app)
    app.add_exception_handler(Refused, refused_whole)
    openapi.install(app)
    docs_page.install(app)
    install_metrics(app, telemetry.metrics)
    app.include_router(router(GenerationDoors(core, settings, readiness)))
    app.include_router(usage.router(access))
    app.include_router(oip_rest.router(oip_rest.OipDoors(Models(core), settings, readiness)))
    return app


def _waiting(core: Core, priority: Priority) -> int:
    """Tokens of a priority that wait for the encoder."""
    return core.pipeline.encoding.cost_of(priority) if core.pipeline is not None else 0


def _ready(report: Report) -> tuple[bool, dict[str, bool | None]]:
    """The report as the metrics tell it."""
    return report.ready, {name: found["ok"] for name, found in report.capabilities.items()}


def _model(core: Core) -> tuple[str, str]:
    """Name and fingerprint of the model."""
    described = core.described
    return described.name, identity(described.space("mean")).partition(":")[0]


def local_app() -> FastAPI:
    """The app that the settings describe, over the checkpoint and the collections of this machine."""
    settings = read_settings()
    core = Core.local(settings)
    return create_app(core, settings)
