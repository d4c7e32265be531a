"""The operations of the HTTP door: parse the body, call one verb of the core, answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import anyio.to_thread
import numpy as np
from anyio import CapacityLimiter
from fastapi import Request
from fastapi.responses import Response

from albireo.models.heads import Prior
from albireo.observations.errors import AlbireoError, BadInput, Conflict, Unavailable
from albireo.observations.reading import FileReport
from albireo.service import replies, schemas
from albireo.service import reply_formats as formats
from albireo.service.bodies import Body, Received, receive
from albireo.service.core import Core, Outcome
from albireo.service.descriptions import plain
from albireo.service.inputs import check_count
from albireo.service.prediction_schemas import (
    HeadCard,
    HeadsReply,
    PredictOne,
    PredictOptions,
    PredictRequest,
    PriorCells,
)
from albireo.service.predictions import AnyPrior
from albireo.service.priors import prior_of
from albireo.service.readiness import Readiness
from albireo.service.reply_formats import Form
from albireo.service.settings import Settings
from albireo.service.shelf import Shelved
from albireo.service.subjects import Subject, join
from albireo.service.terms import USUAL
from albireo.service.tickets import Ticket
from albireo.service.watch import EMBEDS, tally

Result = TypeVar("Result")


SPARE = 16
"""Threads beyond those of the requests that admission lets in: for what makes no work, and is always answered."""


class Doors:
    """The handlers, over one core. Whatever computes runs in a thread: the event loop never waits."""

    def __init__(self, core: Core, settings: Settings, readiness: Readiness) -> None:
        self.core = core
        self.settings = settings
        self.readiness = readiness
        # A request waits in a thread for what the pipeline computes; admission says how many there are.
        self._working = CapacityLimiter(settings.max_requests + SPARE)
        self._probing = CapacityLimiter(1)

    async def validate(self, request: Request) -> Response:
        """Read files or items and say what was understood; nothing is embedded."""
        received = await receive(request)
        return await self._work(self._validate, request, received)

    async def embed(self, request: Request) -> Response:
        """Embeddings of the objects in files or items. One bad object fails alone; 422 when none is good."""
        forms = formats.wanted(request, formats.EMBEDDINGS)
        received = await receive(request)
        return await self._work(self._embed, request, received, forms)

    async def predict(self, request: Request) -> Response:
        """What several heads say of the objects in files or items: one pass of the encoder for all of them."""
        forms = formats.wanted(request, formats.ROWS)
        received = await receive(request)
        return await self._work(self._predict, request, received, None, forms)

    async def predict_one(self, head: str, request: Request) -> Response:
        """What one head says of the objects in files or items. One bad object fails alone; 422 when none is good."""
        forms = formats.wanted(request, formats.ROWS)
        received = await receive(request)
        return await self._work(self._predict, request, received, head, forms)

    async def heads(self, request: Request) -> Response:
        """The heads that can be asked, each with its card: what it was fitted on, and how well it does."""
        return await self._work(self._heads, request)

    async def put_collection(self, c: str, body: schemas.CollectionRequest | None = None) -> Response:
        """Make a collection, or find that it is there with this definition; 409 if it is there with another."""
        return await self._work(self._put, c, body or schemas.CollectionRequest())

    async def collections(self, request: Request) -> Response:
        """All collections."""
        return await self._work(self._list, request)

    async def collection(self, c: str) -> Response:
        """One collection."""
        return await self._work(lambda: replies.reply(replies.collection_reply(self.core.collections.get(c))))

    async def objects(self, c: str, request: Request) -> Response:
        """Add or replace objects: raw inputs as for /v1/embed, or vectors. On disk when this answers."""
        received = await receive(request)
        return await self._work(self._objects, c, request, received)

    async def search(self, c: str, request: Request) -> Response:
        """The nearest objects, exactly, to an object of the collection, a vector, or what files or inputs hold."""
        forms = formats.wanted(request, formats.ROWS)
        received = await receive(request)
        return await self._work(self._search, c, request, received, forms)

    async def livez(self) -> schemas.LiveReply:
        """The event loop turns."""
        return schemas.LiveReply(status="alive")

    async def readyz(self, request: Request) -> Response:
        """200 if a known observation just got its known embedding and searching works; else 503."""
        report = await anyio.to_thread.run_sync(self.readiness.report, limiter=self._probing)
        if not report.ready:
            return replies.not_ready(
                Unavailable("not_ready", report.reason, fix="see `capabilities`"), request, report.capabilities
            )
        return replies.reply(
            schemas.ReadyReply(status="ready", capabilities=report.capabilities, request_id=request.state.request_id)
        )

    async def startupz(self, request: Request) -> Response:
        """200 once the model is loaded and gave its known embedding; until then 503 with what is being done."""
        if not self.readiness.started:
            return replies.not_ready(Unavailable("not_ready", self.readiness.starting), request, {})
        return replies.reply(schemas.StartedReply(status="started"))

    async def info(self, request: Request) -> Response:
        """The model, what it reads, and the limits."""
        return await self._work(self._info, request)

    async def _work(self, function: Callable[..., Result], *args: Any) -> Result:
        return await anyio.to_thread.run_sync(function, *args, limiter=self._working)

    def _core(self, request: Request, options: Any = None) -> Core:
        """The verbs for one request; its options may say how urgent it is and until when, and on which terms."""
        ticket: Ticket | None = getattr(request.state, "ticket", None)
        core = self.core
        if ticket is not None:
            ticket.narrow(getattr(options, "deadline_ms", None), getattr(options, "priority", None))
            ticket.check()
            core = core.on(ticket)
        return core.under(getattr(options, "terms", USUAL))

    def _subjects(self, body: Body[Any]) -> list[Subject]:
        """The objects of a body: of its items, or of all its files."""
        items = body.content.items
        self.core.check_model(body.content.model)
        gatherer = body.gatherer()
        self._check_count(len(items))
        subjects = gatherer.items(items) if items else gatherer.everything()
        self._check_count(len(subjects))
        return join(subjects) if body.content.options.join else subjects

    def _check_count(self, n: int) -> None:
        check_count(n, self.settings.max_items)

    def _validate(self, request: Request, received: Received) -> Response:
        with tally().timings.stage("parse"):
            body = received.body(schemas.EmbedRequest)
            gatherer = body.gatherer()
            reports: list[FileReport] = []
            if body.content.items:
                subjects = gatherer.items(body.content.items)
            else:
                reports, subjects = gatherer.reports_of_all()
        if not subjects and not reports:
            raise BadInput("request_invalid", "nothing was sent", field="items", fix="send files or items")
        understood = self.core.under(body.content.options.terms).validate(reports, subjects)
        common = {
            "model": self.core.engine.name,
            "timings_ms": tally().timings.milliseconds("parse"),
            "request_id": request.state.request_id,
        }
        return replies.reply(schemas.ValidateReply(**common, **understood))

    def _embed(self, request: Request, received: Received, forms: Sequence[Form]) -> Response:
        with tally().timings.stage("parse"):
            body = received.body(schemas.EmbedRequest)
            subjects = self._subjects(body)
        options = body.content.options
        embedded = self._core(request, options).embed(subjects, options.pooling, normalize=options.normalize)
        with tally().timings.stage("serialize"):
            common = partial(replies.envelope, embedded, self.core.engine, request)
            return replies.embed_answer(forms, embedded, common, options, request)

    def _predict(self, request: Request, received: Received, head: str | None, forms: Sequence[Form]) -> Response:
        """What the head of the address says, None: what the heads that the body names say."""
        with tally().timings.stage("parse"):
            body: Body[Any] = received.body(PredictRequest) if head is None else received.body(PredictOne)
            options: PredictOptions = body.content.options
            heads = {name: self.core.shelf.open(name) for name in ([head] if head is not None else body.content.heads)}
            subjects = self._subjects(body)
        predicted = self._core(request, options).predict(subjects, heads, prior=_prior(options.prior))
        with tally().timings.stage("serialize"):
            common = partial(replies.envelope, predicted, self.core.engine, request)
            return replies.predict_answer(forms, predicted, self.core.engine, common, options.density, request)

    def _heads(self, request: Request) -> Response:
        model, found = self.core.described, list(self.core.shelf.all())
        return replies.reply(
            HeadsReply(
                heads=[HeadCard(**plain(one.about(model))) for one in found if isinstance(one, Shelved)],
                errors=[replies.trouble(one) for one in found if isinstance(one, AlbireoError)],
                model=model.name,
                request_id=request.state.request_id,
            )
        )

    def _put(self, name: str, body: schemas.CollectionRequest) -> Response:
        collection = self.core.create(name, body.space, body.dim, body.metric)
        return replies.reply(replies.collection_reply(collection))

    def _list(self, request: Request) -> Response:
        known = self.core.collections
        rows = [replies.collection_reply(known.get(name)) for name in known.names()]
        return replies.reply(schemas.CollectionsReply(collections=rows, request_id=request.state.request_id))

    def _objects(self, name: str, request: Request, received: Received) -> Response:
        with tally().timings.stage("parse"):
            body = received.body(schemas.ObjectsRequest)
            if body.content.objects:
                return self._vectors(name, request, body)
            _need_mean(body.content.options)
            collection = self.core.collections.get(name)
            subjects = self._subjects(body)
        embedded, kept = self._core(request, body.content.options).index(name, subjects)
        with tally().timings.stage("serialize"):
            items = [replies.item_data(outcome, "none") for outcome in embedded.outcomes]
        failure = replies.all_failed(embedded, lambda: items, request)
        if failure is not None:
            return failure
        content = {
            "collection": name,
            "space": embedded.space,
            "model": self.core.engine.name,
            "indexed": kept,
            "count": collection.count,
            "items": items,
            "timings_ms": tally().timings.milliseconds(*EMBEDS),
            "request_id": request.state.request_id,
        }
        return formats.respond(formats.json_bytes(content), formats.JSON, embedded.n_failed)

    def _vectors(self, name: str, request: Request, body: Body[schemas.ObjectsRequest]) -> Response:
        content = body.content
        if content.items or body.parts:
            raise BadInput("request_invalid", "give items or files, or objects, not both", field="objects")
        self._check_count(len(content.objects))
        collection = self.core.collections.get(name)
        stored = [replies.stored_of(row, n) for n, row in enumerate(content.objects)]
        stated = [row.vector.space if isinstance(row.vector, schemas.Vector) else None for row in content.objects]
        for space in dict.fromkeys(space or content.space for space in stated):
            if space is None:
                raise _space_missing("space")
            self.core.check_space(collection, space)
        refused = self.core.under(content.options.terms).index_vectors(name, stored, collection.space)
        items = [replies.vector_data(row.id, error) for row, error in zip(stored, refused, strict=True)]
        failed = sum(error is not None for error in refused)
        first = next((error for error in refused if error is not None), None)
        if first is not None and failed == len(refused):
            return replies.refused(first, items, request, 409 if isinstance(first, Conflict) else 422)
        answer = {
            "collection": name,
            "space": collection.space,
            "model": self.core.engine.name,
            "indexed": len(refused) - failed,
            "count": collection.count,
            "items": items,
            "timings_ms": tally().timings.milliseconds("parse"),
            "request_id": request.state.request_id,
        }
        return formats.respond(formats.json_bytes(answer), formats.JSON, failed)

    def _search(self, name: str, request: Request, received: Received, forms: Sequence[Form]) -> Response:
        with tally().timings.stage("parse"):
            body = received.body(schemas.SearchRequest)
        query, k = body.content.query, body.content.k
        self.core.check_model(body.content.model)
        _need_mean(body.content.options)
        stated = [] if query is None else [f for f in ("id", "vector", "inputs") if getattr(query, f) is not None]
        if query is not None and len(stated) != 1:
            raise BadInput("request_invalid", "give exactly one of id, vector and inputs", field="query")
        if body.parts and stated and stated != ["inputs"]:
            raise BadInput("request_invalid", f"files beside a query by {stated[0]}", field="query")
        collection = self.core.collections.get(name)
        embedded = None
        if query is not None and query.id is not None:
            found = [self.core.search_id(name, query.id, k)]
        elif query is not None and query.vector is not None:
            if query.vector.space is None:
                raise _space_missing("query.vector.space")
            vector = schemas.vector_of(query.vector, "query.vector")
            found = [self.core.search_vector(name, vector, query.vector.space, k)]
        else:
            with tally().timings.stage("parse"):
                subjects = self._queried(body)
            embedded, found = self._core(request, body.content.options).search_subjects(name, subjects, k)
            failure = replies.all_failed(
                embedded, lambda: [replies.item_data(one, "none") for one in embedded.outcomes], request
            )
            if failure is not None:
                return failure
        outcomes: Sequence[Outcome | None] = embedded.outcomes if embedded else [None] * len(found)
        asked = query.id if query is not None else None
        ids = [asked if one is None else one.subject.id for one in outcomes]
        with tally().timings.stage("serialize"):
            common = partial(replies.search_envelope, collection, self.core.engine, k, embedded, request)
            return replies.search_answer(forms, common, outcomes, found, ids)

    def _queried(self, body: Body[schemas.SearchRequest]) -> list[Subject]:
        """The objects whose neighbours are asked for: of the inputs of the query, or of all files of the body."""
        query, gatherer = body.content.query, body.gatherer()
        if query is not None and query.inputs is not None:
            subjects = gatherer.items([schemas.Item(inputs=query.inputs)])
        else:
            subjects = gatherer.everything()
        self._check_count(len(subjects))
        return join(subjects) if body.content.options.join else subjects

    def _info(self, request: Request) -> Response:
        about = replies.info(self.core.engine, self.settings)
        return replies.reply(schemas.InfoReply(**about, request_id=request.state.request_id))


def _prior(stated: str | PriorCells) -> AnyPrior:
    if isinstance(stated, PriorCells):
        return Prior(np.array(stated.edges), np.array(stated.n))
    return prior_of(stated)


def _space_missing(field: str) -> BadInput:
    return BadInput(
        "request_invalid",
        "the embedding space of a vector is not stated",
        field=field,
        fix="give the `space` that came with the embedding",
    )


def _need_mean(options: schemas.Options) -> None:
    if options.pooling != "mean":
        raise BadInput(
            "option_invalid",
            f"collections hold one vector an object, pooling {options.pooling!r} makes several",
            field="pooling",
            fix="use pooling mean",
        )
