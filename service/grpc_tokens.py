"""Tokenize and Detokenize of albireo.v1: objects to token ids, and token ids to the numbers that they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from albireo.models.engine import Engine, Tokens
from albireo.observations.catalogs import COLUMNS
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.modalities import MODALITIES
from albireo.observations.spaces import identity
from albireo.service import grpc_answers as answers
from albireo.service import grpc_messages as messages
from albireo.service.decoded_replies import AXES
from albireo.service.grpc_calls import Call
from albireo.service.inputs import check_count
from albireo.service.predictions import Prediction
from albireo.service.protos.albireo.v1 import albireo_pb2 as pb
from albireo.service.token_verbs import Decoded, Given, Quantiser, quantisers


def tokenize(call: Call, request: pb.TokenizeRequest, max_items: int) -> pb.TokenizeResponse:
    """Token ids of the objects of a request."""
    call.ticket.narrow(priority=messages.priority(request.options.priority))
    call.core.check_model(request.model or None)
    with call.tally.timings.stage("parse"):
        _, given = messages.Given.of_request(request, max_items)
    core = call.core.under(messages.terms(request.options))
    made, known = core.tokenize(given.subjects), quantisers(core.engine)
    with call.tally.timings.stage("serialize"):
        items = [_tokenized(one, n, known) for one, n in zip(made, given.items, strict=True)]
        occurring = {key for one in made if one.answer for key in one.answer.ids}
    failed = sum(one.outcome.error is not None for one in made)
    return pb.TokenizeResponse(
        envelope=envelope(call, sum(one.n_tokens for one in made), failed),
        quantisers={one.name: _quantiser(one) for key, one in known.items() if key in occurring},
        items=items,
    )


def detokenize(call: Call, request: pb.DetokenizeRequest, max_items: int) -> pb.DetokenizeResponse:
    """The numbers that the token ids of a request stand for."""
    if not request.items:
        raise BadInput("request_invalid", "nothing was sent", field="items", fix="send tokens")
    check_count(len(request.items), max_items)
    call.core.check_model(request.model or None)
    engine = call.core.engine
    with call.tally.timings.stage("parse"):
        given = [_given(one, f"items.{n}") for n, one in enumerate(request.items)]
    good = iter(call.core.detokenize([one for one in given if isinstance(one, Given)], request.codecs))
    decoded = [
        Decoded(sent.id or None, {}, one) if isinstance(one, AlbireoError) else next(good)
        for sent, one in zip(request.items, given, strict=True)
    ]
    tokens = sum(
        len(ids)
        for one, done in zip(given, decoded, strict=True)
        if isinstance(one, Given) and done.error is None
        for ids in one.tokens.values()
    )
    occurring = {key for one in decoded for key in one.values}
    return pb.DetokenizeResponse(
        envelope=envelope(call, tokens, sum(one.error is not None for one in decoded)),
        modalities=dict(_modalities(engine, (one for key, one in quantisers(engine).items() if key in occurring))),
        items=[
            pb.DecodedItem(
                item=n,
                id=one.id or "",
                status="error" if one.error else "ok",
                values={MODALITIES[key].name: messages.tensor(values) for key, values in one.values.items()},
                error=answers.trouble(one.error) if one.error else None,
            )
            for n, one in enumerate(decoded)
        ],
    )


def _tokenized(one: Prediction[Tokens], item: int | None, known: Any) -> pb.TokenizedItem:
    ids = one.answer.ids if one.answer else {}
    return pb.TokenizedItem(
        item=item,
        tokens={known[key].name: messages.tensor(ids[key].astype(known[key].dtype)) for key in ids},
        n_tokens=one.n_tokens,
        **answers.about(one.outcome),
    )


def _given(sent: pb.TokensOfOne, where: str) -> Given | AlbireoError:
    """Tokens as they were sent, or why they are none."""
    try:
        tokens = {name: messages.array(one, f"{where}.tokens.{name}") for name, one in sent.tokens.items()}
    except AlbireoError as error:
        return error
    return Given(sent.id or None, tokens)


def _quantiser(one: Quantiser) -> pb.Quantiser:
    height, width = one.grid
    return pb.Quantiser(
        codec=one.codec, n_tokens=one.n_tokens, vocabulary=one.vocabulary, grid_height=height, grid_width=width
    )


def _modalities(engine: Engine, known: Iterable[Quantiser]) -> Iterable[tuple[str, pb.Decoded]]:
    """What the numbers of each modality are."""
    for one in known:
        yield one.name, what_numbers_are(engine, one, AXES[MODALITIES[one.key].kind])


def what_numbers_are(engine: Engine, quantiser: Quantiser, axes: Sequence[str]) -> pb.Decoded:
    """What the numbers of a modality are, along these axes."""
    row, wavelength = MODALITIES[quantiser.key], engine.wavelength(quantiser.key)
    return pb.Decoded(
        unit=row.unit,
        axes=axes,
        bands=row.bands or (COLUMNS if row.kind == "catalog" else ()),
        wavelength=messages.tensor(np.asarray(wavelength, np.float32)) if len(wavelength) else None,
        pixel_scale=row.pixel_scale or 0.0,
        codec=quantiser.codec,
    )


def envelope(call: Call, tokens: int, failed: int) -> pb.TokenEnvelope:
    """What answers about tokens carry."""
    engine = call.core.engine
    return pb.TokenEnvelope(
        checkpoint=identity(engine.space("mean")).removesuffix(":mean"),
        model=engine.name,
        numerics=pb.Numerics(**asdict(engine.numerics)),
        tokens=tokens,
        n_failed=failed,
        timings_ms=call.tally.timings.milliseconds(),
        request_id=call.request_id,
    )
