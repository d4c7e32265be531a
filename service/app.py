"""The HTTP service: one app over one core."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from albireo.observations.spaces import identity
from albireo.service import oip_rest, openapi, problems
from albireo.service.admission import Admission, Admit
from albireo.service.bodies import Limits
from albireo.service.core import Core
from albireo.service.observing import Observe, Telemetry
from albireo.service.oip import Models
from albireo.service.readiness import KnownAnswer, Readiness, Report
from albireo.service.routes import Doors, router
from albireo.service.settings import Settings, read_settings
from albireo.service.telemetry import install as install_metrics

DESCRIPTION = """Raw survey files in, embeddings and neighbours out.

Bodies: files as `multipart/form-data`, one bare file, or JSON. Errors are problem documents (RFC 9457) with a
machine `code`, listed at [/docs/errors](/docs/errors). A bad object fails alone."""


def create_app(
    core: Core, settings: Settings, readiness: Readiness | None = None, telemetry: Telemetry | None = None
) -> FastAPI:
    """The app over `core`. It answers at once; the engine is loaded while /readyz still says 503."""
    readiness = readiness or Readiness(
        core,
        settings.data_folder.expanduser(),
        # The stored answer is of the model's own preprocessing.
        lambda: KnownAnswer.read(settings.model_folder) if settings.preprocessing is None else None,
        settings.redis_url,
    )

    telemetry = telemetry or Telemetry.of(settings)
    telemetry.metrics.about(lambda: _ready(readiness.report()), lambda: _model(core))
    core.staff(settings.staffing, telemetry.metrics)
    admission = Admission(
        settings.max_requests,
        settings.max_inflight_bytes,
        settings.max_delay_seconds,
        lambda: core.pipeline.seconds_to_drain if core.pipeline is not None else 0.0,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        readiness.start()
        yield
        drain()
        core.close()
        telemetry.close()

    def drain() -> None:
        """Begin nothing new; what was let in is answered."""
        readiness.drain()
        admission.close()

    app = FastAPI(
        title="Albireo", version=version("albireo"), description=DESCRIPTION, lifespan=lifespan, redoc_url=None
    )
    app.state.drain = drain
    app.add_middleware(Admit, admission=admission, deadline_seconds=settings.deadline_seconds)
    app.add_middleware(Limits, max_body_bytes=settings.max_body_bytes)
    app.add_middleware(Observe, telemetry=telemetry)  # the last is the outermost: it also sees what the others refuse
    problems.install(app)
    openapi.install(app)
    install_metrics(app, telemetry.metrics)
    app.include_router(router(Doors(core, settings, readiness)))
    app.include_router(oip_rest.router(oip_rest.OipDoors(Models(core), settings, readiness)))
    return app


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
