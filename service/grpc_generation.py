"""Generate of albireo.v1: draws of what was not observed, given what was."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from albireo.observations.modalities import MODALITIES
from albireo.service import grpc_answers as answers
from albireo.service import grpc_messages as messages
from albireo.service.decoded_replies import AXES
from albireo.service.draws import Drawn, check_draws
from albireo.service.generation_schemas import GenerateOptions
from albireo.service.grpc_calls import Call
from albireo.service.grpc_tokens import envelope, what_numbers_are
from albireo.service.predictions import Prediction
from albireo.service.problems import from_validation
from albireo.service.protos.albireo.v1 import albireo_pb2 as pb
from albireo.service.terms import TERMS
from albireo.service.token_verbs import Quantiser, quantisers

TEXTS = ("schedule", "cooling", *TERMS)
NUMBERS = ("draws", "rounds", "temperature", "top_k", "top_p", "guidance", "seed")


def generate(call: Call, request: pb.GenerateRequest, max_items: int, max_draws: int) -> pb.GenerateResponse:
    """Draws for the objects of a request."""
    options = _understood(request.options)
    wanted, sampling = options.wanted, options.sampling
    call.ticket.narrow(priority=messages.priority(request.options.priority))
    call.core.check_model(request.model or None)
    with call.tally.timings.stage("parse"):
        _, given = messages.Given.of_request(request, max_items)
    check_draws(len(given.subjects), sampling, max_draws)
    made = call.core.under(options.terms).generate(given.subjects, wanted, sampling)
    engine, row = call.core.engine, MODALITIES[wanted.target]
    quantiser = quantisers(engine)[wanted.target]
    with call.tally.timings.stage("serialize"):
        items = [_generated(one, n, quantiser) for one, n in zip(made, given.items, strict=True)]
    failed = sum(one.answer is None for one in made)
    return pb.GenerateResponse(
        envelope=envelope(call, sum(one.n_tokens for one in made), failed),
        target=row.name,
        drawn=what_numbers_are(engine, quantiser, ["draw", *AXES[row.kind]]) if failed < len(made) else None,
        items=items,
    )


def _understood(stated: pb.GenerateOptions) -> GenerateOptions:
    """The options as every door understands them. BadInput if they cannot be."""
    given: dict[str, Any] = {name: getattr(stated, name) for name in NUMBERS if stated.HasField(name)}  # type: ignore[arg-type]
    given |= {name: getattr(stated, name) for name in TEXTS if getattr(stated, name)}
    given |= {"target": stated.target} if stated.target else {}
    given |= {"from": list(stated.sources)} if stated.sources else {}
    if stated.HasField("mask"):
        given["mask"] = (stated.mask.x0, stated.mask.y0, stated.mask.x1, stated.mask.y1)
    if stated.HasField("keep"):
        given["keep"] = (stated.keep.low, stated.keep.high)
    try:
        return GenerateOptions.model_validate(given)
    except ValidationError as error:
        raise from_validation([{**one, "loc": ("options", *one["loc"])} for one in error.errors()]) from error


def _generated(one: Prediction[Drawn], item: int | None, quantiser: Quantiser) -> pb.GeneratedItem:
    drawn = one.answer
    return pb.GeneratedItem(
        item=item,
        tokens=None if drawn is None else messages.tensor(drawn.codes.astype(quantiser.dtype)),
        values=None if drawn is None else messages.tensor(drawn.values),
        modalities_used=one.modalities,
        n_tokens=one.n_tokens,
        **answers.about(one.outcome),
    )
