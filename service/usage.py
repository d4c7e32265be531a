"""GET /v1/usage: what the key of a request may use, and what is left of it."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from albireo.service import replies
from albireo.service.access import Access, grant_of
from albireo.service.keys import Role
from albireo.service.openapi import problems_of
from albireo.service.quotas import Unit
from albireo.service.schemas import Model


class LimitReply(Model):
    unit: Unit
    amount: int = Field(description="requests or tokens in a window")
    window_seconds: int
    burst: int = Field(description="most of them at once")
    remaining: int
    reset_seconds: int = Field(description="until all of `burst` are left again, if nothing is used")


class UsageReply(Model):
    key: str | None = Field(description="name of the key; null where no keys are asked for")
    role: Role | None
    limits: list[LimitReply] = Field(description="empty for a key that may use any amount")
    counted: Literal["here", "together"] = Field(
        description="whether this service counts for itself, or all services of the deployment together"
    )
    request_id: str


def router(access: Access) -> APIRouter:
    """The operation."""
    routes = APIRouter()

    async def usage(request: Request) -> Response:
        """What this key may use, and what is left of it. Tokens are those of `usage` in answers."""
        grant = grant_of(request)
        limits = [
            LimitReply(
                unit=state.limit.unit,
                amount=state.limit.amount,
                window_seconds=state.limit.seconds,
                burst=state.limit.capacity,
                remaining=state.remaining,
                reset_seconds=state.reset,
            )
            for state in grant.states
        ]
        return replies.reply(
            UsageReply(
                key=grant.name,
                role=None if grant.key is None else grant.key.role,
                limits=limits,
                counted="together" if access.shared else "here",
                request_id=request.state.request_id,
            )
        )

    routes.add_api_route(
        "/v1/usage",
        usage,
        methods=["GET"],
        response_model=UsageReply,
        responses=problems_of(401, 403, 429),
        operation_id="usage",
        summary="What this key may use, and what is left of it",
    )
    return routes
