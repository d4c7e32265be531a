"""The operations of the HTTP door: parse the body, call one verb of the core, answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import anyio.to_thread
import numpy as np
from anyio import CapacityLimiter
from fastapi import APIRouter, Request
from fastapi.responses import Response

from albireo.models.engine import POOLINGS
from albireo.models.heads import Prior
from albireo.observations.errors import AlbireoError, BadInput, Conflict, NotFound, TooLarge, Unavailable
from albireo.observations.reading import FileReport
from albireo.observations.spaces import same_space
from albireo.service import replies, schemas
from albireo.service.bodies import Body, read_body
from albireo.service.core import Core
from albireo.service.descriptions import plain
from albireo.service.openapi import body_of, problems_of
from albireo.service.prediction_schemas import (
    HeadCard,
    HeadsReply,
    PredictOne,
    PredictOptions,
    PredictReply,
    PredictRequest,
    PriorCells,
)
from albireo.service.predictions import AnyPrior
from albireo.service.priors import prior_of
from albireo.service.readiness import Readiness
from albireo.service.settings import Settings
from albireo.service.shelf import Shelved
from albireo.service.subjects import Subject, join
from albireo.service.tickets import Ticket

Result = TypeVar("Result")


class Doors:
    """The handlers, over one core. Whatever computes runs in a thread: the event loop never waits."""

    def __init__(self, core: Core, settings: Settings, readiness: Readiness) -> None:
        self.core = core
        self.settings = settings
        self.readiness = readiness
        # A request waits in a thread for what the pipeline computes; admission says how many there are.
        self._working = CapacityLimiter(settings.max_requests)
        self._probing = CapacityLimiter(1)

    async def validate(self, request: Request) -> Response:
        """Read files or items and say what was understood; nothing is embedded."""
        body = await read_body(request, schemas.EmbedRequest)
        return await self._work(self._validate, request, body)

    async def embed(self, request: Request) -> Response:
        """Embeddings of the objects in files or items. One bad object fails alone; 422 when none is good."""
        body = await read_body(request, schemas.EmbedRequest)
        return await self._work(self._embed, request, body)

    async def predict(self, request: Request) -> Response:
        """What several heads say of the objects in files or items: one pass of the encoder for all of them."""
        body = await read_body(request, PredictRequest)
        return await self._work(self._predict, request, body, body.content.heads)

    async def predict_one(self, head: str, request: Request) -> Response:
        """What one head says of the objects in files or items. One bad object fails alone; 422 when none is good."""
        body = await read_body(request, PredictOne)
        return await self._work(self._predict, request, body, [head])

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
        body = await read_body(request, schemas.ObjectsRequest)
        return await self._work(self._objects, c, request, body)

    async def search(self, c: str, request: Request) -> Response:
        """The nearest objects, exactly, to an object of the collection, a vector, or what files or inputs hold."""
        body = await read_body(request, schemas.SearchRequest)
        return await self._work(self._search, c, request, body)

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

    async def info(self, request: Request) -> Response:
        """The model, what it reads, and the limits."""
        return await self._work(self._info, request)

    async def _work(self, function: Callable[..., Result], *args: Any) -> Result:
        return await anyio.to_thread.run_sync(function, *args, limiter=self._working)

    def _core(self, request: Request, options: Any = None) -> Core:
        """The verbs for one request; its options may say how urgent it is and until when."""
        ticket: Ticket | None = getattr(request.state, "ticket", None)
        if ticket is None:
            return self.core
        ticket.narrow(getattr(options, "deadline_ms", None), getattr(options, "priority", None))
        ticket.check()
        return self.core.on(ticket)

    def _subjects(self, body: Body[Any]) -> list[Subject]:
        """The objects of a body: of its items, or of all its files."""
        items = body.content.items
        self._check_model(body.content.model)
        gatherer = body.gatherer()
        self._check_count(len(items))
        subjects = gatherer.items(items) if items else gatherer.everything()
        self._check_count(len(subjects))
        return join(subjects) if body.content.options.join else subjects

    def _check_count(self, n: int) -> None:
        if n > self.settings.max_items:
            raise TooLarge(
                "too_large",
                f"{n} objects, the limit is {self.settings.max_items} a request",
                field="items",
                fix="send fewer at a time, or raise ALBIREO_MAX_ITEMS",
            )

    def _check_model(self, model: str | None) -> None:
        engine = self.core.engine
        if model is not None and model not in (engine.name, *(engine.space(p).partition(":")[0] for p in POOLINGS)):
            raise NotFound("model_unknown", f"no model {model!r}", field="model", fix=f"loaded: {engine.name}")

    def _validate(self, request: Request, body: Body[schemas.EmbedRequest]) -> Response:
        gatherer = body.gatherer()
        if body.content.items:
            reports: list[FileReport] = []
            subjects = gatherer.items(body.content.items)
        else:
            reports, subjects = gatherer.reports_of_all()
        if not subjects and not reports:
            raise BadInput("request_invalid", "nothing was sent", field="items", fix="send files or items")
        understood = self.core.validate(reports, subjects)
        model = self.core.engine.name
        return replies.reply(schemas.ValidateReply(model=model, request_id=request.state.request_id, **understood))

    def _embed(self, request: Request, body: Body[schemas.EmbedRequest]) -> Response:
        began = time.perf_counter()
        subjects = self._subjects(body)
        parsed = time.perf_counter() - began
        options = body.content.options
        embedded = self._core(request, options).embed(subjects, options.pooling, normalize=options.normalize)
        items = [replies.item_reply(outcome, options.encoding) for outcome in embedded.outcomes]
        failure = replies.all_failed(embedded, items, request)
        if failure is not None:
            return failure
        return replies.reply(
            schemas.EmbedReply(
                space=embedded.space,
                model=self.core.engine.name,
                **asdict(embedded.numerics),
                dim=self.core.engine.dim,
                timings_ms=replies.milliseconds(parsed, embedded),
                usage={"tokens": embedded.n_tokens},
                request_id=request.state.request_id,
                items=items,
            ),
            embedded.n_failed,
        )

    def _predict(self, request: Request, body: Body[Any], names: Sequence[str]) -> Response:
        began = time.perf_counter()
        options: PredictOptions = body.content.options
        heads = {name: self.core.shelf.open(name) for name in names}
        subjects = self._subjects(body)
        parsed = time.perf_counter() - began
        predicted = self._core(request, options).predict(subjects, heads, prior=_prior(options.prior))
        items = [replies.predicted_item(one, options.density) for one in predicted.predictions]
        failure = replies.all_failed(predicted, items, request)
        if failure is not None:
            return failure
        content = replies.predict_reply(predicted, self.core.engine, items, parsed, options.density)
        reply = PredictReply(**content, request_id=request.state.request_id)
        return replies.reply(reply, predicted.n_failed)

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
        engine = self.core.engine
        space = body.space or engine.space("mean")
        if body.dim is None and not same_space(space, engine.space("mean")):
            raise BadInput("request_invalid", "dim is needed for the space of another model", field="dim")
        collection = self.core.collections.create(name, space, body.dim or engine.dim, body.metric)
        return replies.reply(replies.collection_reply(collection))

    def _list(self, request: Request) -> Response:
        known = self.core.collections
        rows = [replies.collection_reply(known.get(name)) for name in known.names()]
        return replies.reply(schemas.CollectionsReply(collections=rows, request_id=request.state.request_id))

    def _objects(self, name: str, request: Request, body: Body[schemas.ObjectsRequest]) -> Response:
        began = time.perf_counter()
        if body.content.objects:
            return self._vectors(name, request, body)
        _need_mean(body.content.options)
        collection = self.core.collections.get(name)
        subjects = self._subjects(body)
        parsed = time.perf_counter() - began
        embedded, kept = self._core(request, body.content.options).index(name, subjects)
        items = [replies.item_reply(outcome, with_embedding=False) for outcome in embedded.outcomes]
        failure = replies.all_failed(embedded, items, request)
        if failure is not None:
            return failure
        return replies.reply(
            schemas.ObjectsReply(
                collection=name,
                space=embedded.space,
                model=self.core.engine.name,
                indexed=kept,
                count=collection.count,
                items=items,
                timings_ms=replies.milliseconds(parsed, embedded),
                request_id=request.state.request_id,
            ),
            embedded.n_failed,
        )

    def _vectors(self, name: str, request: Request, body: Body[schemas.ObjectsRequest]) -> Response:
        began = time.perf_counter()
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
        refused = self.core.index_vectors(name, stored, collection.space)
        items = [replies.vector_reply(row.id, error) for row, error in zip(stored, refused, strict=True)]
        failed = sum(error is not None for error in refused)
        first = next((error for error in refused if error is not None), None)
        if first is not None and failed == len(refused):
            return replies.refused(first, items, request, 409 if isinstance(first, Conflict) else 422)
        return replies.reply(
            schemas.ObjectsReply(
                collection=name,
                space=collection.space,
                model=self.core.engine.name,
                indexed=len(refused) - failed,
                count=collection.count,
                items=items,
                timings_ms=replies.milliseconds(time.perf_counter() - began),
                request_id=request.state.request_id,
            ),
            failed,
        )

    def _search(self, name: str, request: Request, body: Body[schemas.SearchRequest]) -> Response:
        began = time.perf_counter()
        query, k = body.content.query, body.content.k
        self._check_model(body.content.model)
        _need_mean(body.content.options)
        stated = [] if query is None else [f for f in ("id", "vector", "inputs") if getattr(query, f) is not None]
        if query is not None and len(stated) != 1:
            raise BadInput("request_invalid", "give exactly one of id, vector and inputs", field="query")
        if body.parts and stated and stated != ["inputs"]:
            raise BadInput("request_invalid", f"files beside a query by {stated[0]}", field="query")
        collection = self.core.collections.get(name)
        embedded, parsed = None, 0.0
        if query is not None and query.id is not None:
            found = [self.core.search_id(name, query.id, k)]
        elif query is not None and query.vector is not None:
            if query.vector.space is None:
                raise _space_missing("query.vector.space")
            vector = schemas.vector_of(query.vector, "query.vector")
            found = [self.core.search_vector(name, vector, query.vector.space, k)]
        else:
            gatherer = body.gatherer()
            if query is not None and query.inputs is not None:
                subjects = gatherer.items([schemas.Item(inputs=query.inputs)])
            else:
                subjects = gatherer.everything()
            self._check_count(len(subjects))
            subjects = join(subjects) if body.content.options.join else subjects
            parsed = time.perf_counter() - began
            embedded, found = self._core(request, body.content.options).search_subjects(name, subjects, k)
            failure = replies.all_failed(
                embedded, [replies.item_reply(o, with_embedding=False) for o in embedded.outcomes], request
            )
            if failure is not None:
                return failure
        outcomes = embedded.outcomes if embedded else [None] * len(found)
        return replies.reply(
            schemas.SearchReply(
                collection=name,
                space=collection.space,
                model=self.core.engine.name,
                metric=collection.metric,
                exact=True,
                k=k,
                results=[replies.query_reply(o, found) for o, found in zip(outcomes, found, strict=True)],
                timings_ms=replies.milliseconds(parsed, embedded, total=time.perf_counter() - began),
                request_id=request.state.request_id,
            ),
            embedded.n_failed if embedded else 0,
        )

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


def router(doors: Doors) -> APIRouter:
    """Every operation, and what the OpenAPI document says of it."""
    routes = APIRouter()

    def add(
        method: str, path: str, handler: Callable[..., Any], model: type[schemas.Model], *failures: int, **more: Any
    ) -> None:
        name = handler.__name__ if handler.__name__ != "put_collection" else "create_collection"
        routes.add_api_route(
            path,
            handler,
            methods=[method],
            response_model=model,
            responses=problems_of(*failures),
            operation_id=name,
            summary=(handler.__doc__ or "").partition(".")[0].partition(":")[0],
            **more,
        )

    inference = (400, 413, 415, 422, 503)
    add("POST", "/v1/validate", doors.validate, schemas.ValidateReply, *inference, **body_of(schemas.EmbedRequest))
    add("POST", "/v1/embed", doors.embed, schemas.EmbedReply, *inference, **body_of(schemas.EmbedRequest))
    heads = (404, 409, *inference)
    add("POST", "/v1/predict", doors.predict, PredictReply, *heads, **body_of(PredictRequest))
    add("POST", "/v1/predict/{head}", doors.predict_one, PredictReply, *heads, **body_of(PredictOne))
    add("GET", "/v1/heads", doors.heads, HeadsReply)
    add("PUT", "/v1/collections/{c}", doors.put_collection, schemas.CollectionReply, 400, 409, 422)
    add("GET", "/v1/collections", doors.collections, schemas.CollectionsReply)
    add("GET", "/v1/collections/{c}", doors.collection, schemas.CollectionReply, 404, 422)
    add(
        "POST", "/v1/collections/{c}/objects", doors.objects, schemas.ObjectsReply, 404, 409, *inference,
        **body_of(schemas.ObjectsRequest),
    )  # fmt: skip
    add(
        "POST", "/v1/collections/{c}/search", doors.search, schemas.SearchReply, 404, 409, *inference,
        **body_of(schemas.SearchRequest),
    )  # fmt: skip
    add("GET", "/livez", doors.livez, schemas.LiveReply)
    add("GET", "/readyz", doors.readyz, schemas.ReadyReply, 503)
    add("GET", "/v1/info", doors.info, schemas.InfoReply)
    return routes
