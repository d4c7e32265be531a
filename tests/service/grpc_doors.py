"""A gRPC door that listens while a test runs, and stubs of a stock client."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from albireo.service.admission import Admission
from albireo.service.core import Core
from albireo.service.grpc_door import Door
from albireo.service.observing import Telemetry
from albireo.service.protos.albireo.v1 import albireo_pb2 as pb
from albireo.service.protos.albireo.v1 import albireo_pb2_grpc as pb_grpc
from albireo.service.readiness import Readiness
from albireo.service.settings import Settings

UNITS = {"flux_g": "nanomaggy", "flux_r": "nanomaggy"}
READ = pb.ReadOptions(survey="legacysurvey", system="AB", kind="model", extinction_corrected=False)

_LOOP = asyncio.new_event_loop()
"""One for all doors: gRPC has one poller a process."""


def on_loop(coroutine: Any) -> Any:
    """What a coroutine gives on the doors' event loop."""
    if not _LOOP.is_running():
        threading.Thread(target=_LOOP.run_forever, name="doors", daemon=True).start()
    return asyncio.run_coroutine_threadsafe(coroutine, _LOOP).result(20)


@dataclass(frozen=True)
class Served:
    """An open door, what stands behind it, and a client."""

    door: Door
    core: Core
    admission: Admission
    telemetry: Telemetry
    channel: grpc.Channel

    @property
    def embedding(self) -> pb_grpc.EmbeddingStub:
        return pb_grpc.EmbeddingStub(self.channel)

    @property
    def heads(self) -> pb_grpc.HeadsStub:
        return pb_grpc.HeadsStub(self.channel)

    @property
    def search(self) -> pb_grpc.SearchStub:
        return pb_grpc.SearchStub(self.channel)


@contextmanager
def served(core: Core, settings: Settings, **more: Any) -> Iterator[Served]:
    """A door over `core` on a free port; `more` goes to Door.open."""
    telemetry = Telemetry()
    core.staff(settings.staffing, telemetry.metrics)
    admission = Admission(settings.max_requests, settings.max_inflight_bytes, settings.max_delay_seconds)
    readiness = Readiness(core, settings.data_folder, fresh_seconds=0.0, wait_seconds=20.0)
    door = on_loop(Door.open(core, settings, readiness, admission, telemetry, port=0, **more))
    try:
        with grpc.insecure_channel(f"127.0.0.1:{door.port}", [("grpc.max_send_message_length", -1)]) as channel:
            yield Served(door, core, admission, telemetry, channel)
    finally:
        on_loop(door.close(0.0))


def of_file(content: bytes, id: str = "", **more: Any) -> pb.Item:
    return pb.Item(id=id, inputs=[pb.Input(file=content, **more)])


def of_fluxes(id: str, g: float = 12.0, r: float = 20.0, **more: Any) -> pb.Item:
    """An object with two fluxes of the Legacy Survey, in nanomaggy; the toy engine refuses more than 1e6."""
    return pb.Item(id=id, inputs=[pb.Input(scalars={"flux_g": g, "flux_r": r}, units=UNITS, read=READ)], **more)


def embedded(*items: pb.Item, **options: Any) -> pb.EmbedRequest:
    return pb.EmbedRequest(items=items, options=pb.EmbedOptions(**options))


def detail(error: grpc.RpcError, kind: str) -> Any:
    """The google.rpc detail of a status, by its name; None if it has none."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    made = getattr(error_details_pb2, kind)()
    return made if any(one.Unpack(made) for one in status.details) else None
