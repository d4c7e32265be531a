"""The gRPC door: one server on the event loop of the HTTP app, over the same core.

SERVICES      one row a service: its name, what it needs to work, and how it is added to a server
add_services  adds all of them, their health, and reflection
Door          the server, from open to close

grpc is imported with this file, and this file only where a door is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import grpc
from google.protobuf.descriptor_pool import Default, DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from albireo.observations.errors import BadInput
from albireo.service import oip_grpc
from albireo.service.core import Core
from albireo.service.grpc_calls import Access, Calls
from albireo.service.grpc_embedding import Embedding, Heads
from albireo.service.grpc_health import Health
from albireo.service.grpc_search import Search
from albireo.service.oip import Models
from albireo.service.protos.albireo.v1 import albireo_pb2_grpc as pb_grpc
from albireo.service.readiness import Readiness
from albireo.service.settings import Settings

if TYPE_CHECKING:
    from albireo.service.admission import Admission
    from albireo.service.observing import Telemetry

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

DRAIN_SECONDS = 25.0
"""How long calls that were let in may take when the door closes."""

DEAD_AFTER_MS = 60_000
"""A client that says nothing for so long is asked whether it is there, and lost if it does not answer in a third."""


@dataclass(frozen=True)
class Service:
    """One service. Its health is that of a capability of readiness: "embed" or "search".

    add   puts it into a server
    pool  of the descriptors of its messages; None: the one that all libraries share
    """

    name: str
    capability: str
    add: Callable[[grpc.aio.Server, Core, Settings, Readiness], object]
    pool: DescriptorPool | None = None


def _embedding(server: grpc.aio.Server, core: Core, settings: Settings, readiness: Readiness) -> None:
    pb_grpc.add_EmbeddingServicer_to_server(Embedding(settings.max_items, settings.max_draws), server)


def _heads(server: grpc.aio.Server, core: Core, settings: Settings, readiness: Readiness) -> None:
    pb_grpc.add_HeadsServicer_to_server(Heads(settings.max_items), server)


def _search(server: grpc.aio.Server, core: Core, settings: Settings, readiness: Readiness) -> None:
    pb_grpc.add_SearchServicer_to_server(Search(settings.max_items), server)


def _inference(server: grpc.aio.Server, core: Core, settings: Settings, readiness: Readiness) -> None:
    oip_grpc.add(server, Models(core), settings, readiness)


SERVICES: tuple[Service, ...] = (
    Service("albireo.v1.Embedding", "embed", _embedding),
    Service("albireo.v1.Heads", "embed", _heads),
    Service("albireo.v1.Search", "search", _search),
    Service(oip_grpc.SERVICE, "embed", _inference, oip_grpc.POOL),
)


def add_services(
    server: grpc.aio.Server,
    core: Core,
    settings: Settings,
    readiness: Readiness,
    services: Sequence[Service] = SERVICES,
) -> Health:
    """Add services to a server, with reflection and their health, which is returned."""
    for service in services:
        service.add(server, core, settings, readiness)
    health = Health(readiness, {service.name: service.capability for service in services})
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = [service.name for service in services]
    pools = Pools(dict.fromkeys((Default(), *(service.pool for service in services if service.pool is not None))))
    reflection.enable_server_reflection([*names, HEALTH, reflection.SERVICE_NAME], server, cast(DescriptorPool, pools))
    return health


class Pools:
    """Several pools of descriptors as the one that reflection looks into: whatever is asked for, the first that has it
    answers. KeyError if none has."""

    def __init__(self, pools: Iterable[DescriptorPool]) -> None:
        self._pools = tuple(pools)

    def __getattr__(self, find: str) -> Callable[..., Any]:
        def first(*args: Any) -> Any:
            for pool in self._pools:
                with suppress(KeyError):
                    return getattr(pool, find)(*args)
            raise KeyError(args)

        return first


class Door:
    """A server that listens. `port` is the one that it got, `calls` what happens around its calls."""

    def __init__(self, server: grpc.aio.Server, calls: Calls, health: Health, port: int) -> None:
        self._server = server
        self.calls, self.health, self.port = calls, health, port

    @classmethod
    async def open(
        cls,
        core: Core,
        settings: Settings,
        readiness: Readiness,
        admission: Admission,
        telemetry: Telemetry,
        access: Access | None = None,
        certificate: tuple[Path, Path] | None = None,
        client_ca: Path | None = None,
        port: int | None = None,
    ) -> Door:
        """Listen at the address of the settings. BadInput option_invalid if that cannot be.

        access       who may do what; None: everybody everything
        certificate  files of the chain of certificates and of its key, PEM; None: no TLS
        client_ca    file of certificates, PEM: only clients with one that these have signed are served
        port         in the place of that of the settings; 0: any that is free
        """
        calls = Calls(
            core,
            admission,
            telemetry,
            settings.deadline_seconds,
            settings.max_requests,
            access,
            settings.max_decompressed_bytes,
        )
        server = grpc.aio.server(interceptors=(calls,), options=options(settings))
        health = add_services(server, core, settings, readiness)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{host}:{settings.grpc_port if port is None else port}"
        try:
            if certificate is None:
                got = server.add_insecure_port(address)
            else:
                chain, key = (path.read_bytes() for path in certificate)
                authority = None if client_ca is None else client_ca.read_bytes()
                credentials = grpc.ssl_server_credentials([(key, chain)], authority, authority is not None)
                got = server.add_secure_port(address, credentials)
        except (RuntimeError, OSError) as error:
            await server.stop(None)
            raise BadInput(
                "option_invalid",
                f"gRPC cannot listen on {address}",
                field="ALBIREO_GRPC_PORT",
                fix="name another port, or 0 for no gRPC",
            ) from error
        await server.start()
        return cls(server, calls, health, got)

    async def close(self, seconds: float = DRAIN_SECONDS) -> None:
        """Take no new calls, let those that were let in end, so long at most, and stop."""
        self.health.close()
        await self._server.stop(seconds)


def options(settings: Settings) -> list[tuple[str, Any]]:
    """Limits of the server, in gRPC's own words."""
    return [
        ("grpc.max_receive_message_length", settings.grpc_max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),  # a second service on this port is an error, not a share of the calls
        ("grpc.keepalive_time_ms", DEAD_AFTER_MS),
        ("grpc.keepalive_timeout_ms", DEAD_AFTER_MS // 3),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
