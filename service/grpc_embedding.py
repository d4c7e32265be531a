"""albireo.v1.Embedding and albireo.v1.Heads: messages in, one verb of the core, messages out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Generic, TypeVar

from albireo.models.engine import Pooling
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.options import ReadOptions
from albireo.service import grpc_answers as answers
from albireo.service import grpc_messages as messages
from albireo.service.descriptions import plain
from albireo.service.grpc_calls import Call, current
from albireo.service.grpc_generation import generate
from albireo.service.grpc_messages import Given
from albireo.service.grpc_streams import in_order
from albireo.service.grpc_tokens import detokenize, tokenize
from albireo.service.predictions import AnyPrior
from albireo.service.protos.albireo.v1 import albireo_pb2 as pb
from albireo.service.protos.albireo.v1 import albireo_pb2_grpc as pb_grpc
from albireo.service.shelf import Shelved
from albireo.service.terms import Terms
from albireo.service.tickets import Priority

Options = TypeVar("Options", "EmbedAsked", "PredictAsked")
Stated = TypeVar("Stated", pb.EmbedOptions, pb.PredictOptions)


class Embedding(pb_grpc.EmbeddingServicer):
    """Embeddings. `max_items` objects and `max_draws` draws in one request at most."""

    def __init__(self, max_items: int, max_draws: int) -> None:
        self.max_items = max_items
        self.max_draws = max_draws

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:
        call = current()
        return await call.work(_embed, call, request, self.max_items)

    async def EmbedStream(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.ItemResult]:
        call = current()

        async def compute(window: list[Numbered[EmbedAsked]]) -> Sequence[pb.ItemResult]:
            async with call.window(sum(one.n_bytes for one in window)) as part:
                return await part.work(_embed_window, part, window)

        async for result in in_order(_numbered(request_iterator, "embed", EmbedAsked.of, call), compute):
            yield result

    async def Validate(self, request: pb.EmbedRequest, context: Any) -> pb.ValidateResponse:
        call = current()
        return await call.work(_validate, call, request, self.max_items)

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:
        call = current()
        return await call.work(tokenize, call, request, self.max_items)

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Any) -> pb.DetokenizeResponse:
        call = current()
        return await call.work(detokenize, call, request, self.max_items)

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:
        call = current()
        return await call.work(generate, call, request, self.max_items, self.max_draws)


class Heads(pb_grpc.HeadsServicer):
    """What heads say. `max_items` objects in one request at most."""

    def __init__(self, max_items: int) -> None:
        self.max_items = max_items

    async def Predict(self, request: pb.PredictRequest, context: Any) -> pb.PredictResponse:
        call = current()
        return await call.work(_predict, call, request, self.max_items)

    async def PredictStream(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.Prediction]:
        call = current()

        async def compute(window: list[Numbered[PredictAsked]]) -> Sequence[pb.Prediction]:
            async with call.window(sum(one.n_bytes for one in window)) as part:
                return await part.work(_predict_window, part, window)

        async for result in in_order(_numbered(request_iterator, "predict", PredictAsked.of, call), compute):
            yield result

    async def ListHeads(self, request: pb.ListHeadsRequest, context: Any) -> pb.ListHeadsResponse:
        call = current()
        return await call.work(_list_heads, call)


@dataclass(frozen=True)
class EmbedAsked:
    """EmbedOptions, understood."""

    pooling: Pooling
    normalize: bool
    read: ReadOptions
    priority: Priority | None
    terms: Terms

    @classmethod
    def of(cls, options: pb.EmbedOptions, in_stream: bool = False) -> EmbedAsked:
        pooling, priority = messages.pooling(options.pooling), messages.priority(options.priority)
        terms = messages.terms(options, in_stream)
        return cls(pooling, options.normalize, messages.reading(options.read), priority, terms)


@dataclass(frozen=True, eq=False)
class PredictAsked:
    """PredictOptions, understood. Heads are opened window by window: they come and go with their files."""

    heads: tuple[str, ...]
    density: bool
    prior: AnyPrior
    read: ReadOptions
    priority: Priority | None
    terms: Terms

    @classmethod
    def of(cls, options: pb.PredictOptions, in_stream: bool = False) -> PredictAsked:
        if not options.heads:
            raise BadInput("request_invalid", "no head is named", field="heads", fix="ListHeads gives their names")
        density = options.density if options.HasField("density") else True
        prior, priority = messages.prior(options), messages.priority(options.priority)
        terms = messages.terms(options, in_stream)
        return cls(tuple(options.heads), density, prior, messages.reading(options.read), priority, terms)

    def opened(self, call: Call) -> dict[str, Shelved]:
        return {name: call.core.shelf.open(name) for name in self.heads}


@dataclass(frozen=True)
class Numbered(Generic[Options]):
    """One item of a stream with its number and the options that hold for it; `first` of those that they hold for."""

    n: int
    item: pb.Item
    options: Options
    first: bool
    n_bytes: int


async def _numbered(
    items: Any, kind: str, understood: Callable[[Any, bool], Options], call: Call
) -> AsyncIterator[Numbered[Options]]:
    """The items of a stream, each with the options stated last. BadInput if they cannot be: that ends the stream."""
    n = 0
    options: Options | None = None
    async for item in items:
        stated = item.WhichOneof("stream_options")
        first = stated is not None or options is None
        if stated not in (kind, None):
            raise BadInput(
                "request_invalid", f"options of another kind of stream: {stated}", field=f"items.{n}.{stated}"
            )
        if stated is not None or options is None:
            given = getattr(item, kind)
            if given.join:
                raise BadInput("option_invalid", "objects of a stream are not joined", field=f"items.{n}.{kind}.join")
            options = understood(given, True)
            call.ticket.narrow(priority=options.priority)
        yield Numbered(n, item, options, first, item.ByteSize())
        n += 1


def _embed(call: Call, request: pb.EmbedRequest, max_items: int) -> pb.EmbedResponse:
    options = EmbedAsked.of(request.options)
    call.ticket.narrow(priority=options.priority)
    call.core.check_model(request.model or None)
    with call.tally.timings.stage("parse"):
        _, given = Given.of_request(request, max_items)
    embedded = call.core.under(options.terms).embed(given.subjects, options.pooling, normalize=options.normalize)
    with call.tally.timings.stage("serialize"):
        items = [
            answers.item_result(outcome, n, embedded.space)
            for outcome, n in zip(embedded.outcomes, given.items, strict=True)
        ]
    return pb.EmbedResponse(envelope=answers.envelope(embedded, call.core.engine, call), items=items)


def _embed_window(call: Call, window: Sequence[Numbered[EmbedAsked]]) -> list[pb.ItemResult]:
    results: list[pb.ItemResult] = []
    for options, run in _runs(window):
        with call.tally.timings.stage("parse"):
            given = Given.of([one.item for one in run], options.read, [one.n for one in run], in_stream=True)
        core = call.core.under(options.terms)
        embedded = core.embed(given.subjects, options.pooling, normalize=options.normalize)
        outcomes = zip(embedded.outcomes, given.items, strict=True)
        results += [answers.item_result(outcome, n, embedded.space) for outcome, n in outcomes]
    return results


def _validate(call: Call, request: pb.EmbedRequest, max_items: int) -> pb.ValidateResponse:
    call.core.check_model(request.model or None)
    with call.tally.timings.stage("parse"):
        reports, given = Given.of_request(request, max_items)
    understood = call.core.under(messages.terms(request.options)).validate(reports, given.subjects)
    return answers.validated(understood, given.items, call.core.engine.name, call.request_id)


def _predict(call: Call, request: pb.PredictRequest, max_items: int) -> pb.PredictResponse:
    options = PredictAsked.of(request.options)
    call.ticket.narrow(priority=options.priority)
    call.core.check_model(request.model or None)
    heads = options.opened(call)
    with call.tally.timings.stage("parse"):
        _, given = Given.of_request(request, max_items)
    predicted = call.core.under(options.terms).predict(given.subjects, heads, prior=options.prior)
    with call.tally.timings.stage("serialize"):
        items = [
            answers.prediction(one, n, options.density)
            for one, n in zip(predicted.predictions, given.items, strict=True)
        ]
    return pb.PredictResponse(
        envelope=answers.envelope(predicted, call.core.engine, call),
        heads=answers.heads(predicted, call.core.engine, options.density),
        items=items,
    )


def _predict_window(call: Call, window: Sequence[Numbered[PredictAsked]]) -> list[pb.Prediction]:
    results: list[pb.Prediction] = []
    for options, run in _runs(window):
        with call.tally.timings.stage("parse"):
            given = Given.of([one.item for one in run], options.read, [one.n for one in run], in_stream=True)
        core = call.core.under(options.terms)
        predicted = core.predict(given.subjects, options.opened(call), prior=options.prior)
        made = [
            answers.prediction(one, n, options.density)
            for one, n in zip(predicted.predictions, given.items, strict=True)
        ]
        if made and run[0].first:
            for name, head in answers.heads(predicted, call.core.engine, options.density).items():
                made[0].heads[name].CopyFrom(head)
        results += made
    return results


def _list_heads(call: Call) -> pb.ListHeadsResponse:
    model, found = call.core.described, list(call.core.shelf.all())
    heads = []
    for one in found:
        if isinstance(one, Shelved):
            about = one.about(model)
            card = answers.struct(plain(about["card"])) if about["card"] else None
            heads.append(answers.head(one, model.space("tokens"), fits=about["fits"], card=card))
    errors = [answers.trouble(one) for one in found if isinstance(one, AlbireoError)]
    return pb.ListHeadsResponse(heads=heads, errors=errors, model=model.name, request_id=call.request_id)


def _runs(window: Sequence[Numbered[Options]]) -> list[tuple[Options, list[Numbered[Options]]]]:
    """A window in its parts that have the same options."""
    parts = [list(run) for _, run in groupby(window, key=lambda one: id(one.options))]
    return [(run[0].options, run) for run in parts]
