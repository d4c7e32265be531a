"""grpc.health.v1: what readiness says, service by service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import anyio.to_thread
import grpc
from anyio import CapacityLimiter
from grpc_health.v1 import health_pb2, health_pb2_grpc

from albireo.service.readiness import Readiness, Report

EVERY = 3.0
"""Seconds after which whoever watches is told of a change, at most."""

NAMES = ("embed", "search")
"""Capabilities that decide whether the service takes traffic."""

Status = health_pb2.HealthCheckResponse
"""Its states are its attributes: SERVING, NOT_SERVING, SERVICE_UNKNOWN."""


class Health(health_pb2_grpc.HealthServicer):
    """Health of the whole (service ""), and of every service by the capability of readiness that it needs.

    capabilities  name of a service -> its capability
    """

    def __init__(self, readiness: Readiness, capabilities: Mapping[str, str], every: float = EVERY) -> None:
        self.readiness, self.capabilities, self.every = readiness, dict(capabilities), every
        self._probing = CapacityLimiter(1)
        self._closing = asyncio.Event()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        status = await self._status(request.service)
        if status == Status.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r}")
        return Status(status=status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The state now, and whenever it changes."""
        last = None
        while True:
            closing = self._closing.is_set()
            status = await self._status(request.service)
            if status != last:
                yield Status(status=status)
            last = status
            if closing:
                return
            try:
                await asyncio.wait_for(self._closing.wait(), self.every)
            except TimeoutError:
                continue

    def close(self) -> None:
        """Nothing is served any more; whoever watches is told so."""
        self._closing.set()

    async def _status(self, service: str) -> Any:
        if service and service not in self.capabilities:
            return Status.SERVICE_UNKNOWN
        if self._closing.is_set():
            return Status.NOT_SERVING
        report = await anyio.to_thread.run_sync(self.readiness.report, limiter=self._probing)
        return Status.SERVING if serves(report, self.capabilities.get(service)) else Status.NOT_SERVING


def serves(report: Report, capability: str | None) -> bool:
    """Whether a service of this capability takes calls; None = the whole.

    One that works still does while another is broken; a report that is no good for another reason holds for all.
    """
    if report.ready or capability is None:
        return report.ready
    works = {name: report.capabilities.get(name, {}).get("ok") is True for name in NAMES}
    return not all(works.values()) and works[capability]
