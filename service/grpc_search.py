"""albireo.v1.Search: collections searched, read and written, message by message."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar, cast

from albireo.index.collection import StoredObject
from albireo.index.flat import Metric
from albireo.observations.errors import AlbireoError, BadInput, Conflict, NotFound
from albireo.observations.options import ReadOptions
from albireo.service import grpc_answers as answers
from albireo.service import grpc_messages as messages
from albireo.service.core import MAX_NEIGHBOURS, Neighbours
from albireo.service.grpc_calls import Call, current
from albireo.service.grpc_messages import Floats, Given
from albireo.service.grpc_streams import in_order
from albireo.service.inputs import check_count
from albireo.service.protos.albireo.v1 import albireo_pb2 as pb
from albireo.service.protos.albireo.v1 import albireo_pb2_grpc as pb_grpc

Entry = TypeVar("Entry")
Result = TypeVar("Result")

OF_THE_OBJECT = (BadInput, Conflict, NotFound)
"""Errors that fail one object of a stream; any other says that the service cannot go on, and ends the stream."""


class Search(pb_grpc.SearchServicer):
    """Collections. `max_items` queries, ids or objects in one request at most; a stream has no such limit."""

    def __init__(self, max_items: int) -> None:
        self.max_items = max_items

    async def Search(self, request: pb.SearchRequest, context: Any) -> pb.SearchResponse:
        call = current()
        whole = pb.SearchBatchRequest(
            collection=request.collection, queries=[request.query], k=request.k, model=request.model, read=request.read
        )
        return await call.work(_search, call, whole, self.max_items, True)

    async def SearchBatch(self, request: pb.SearchBatchRequest, context: Any) -> pb.SearchResponse:
        call = current()
        return await call.work(_search, call, request, self.max_items, False)

    async def Get(self, request: pb.GetRequest, context: Any) -> pb.GetResponse:
        call = current()
        return await call.work(_get, call, request, self.max_items)

    async def Upsert(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.Ack]:
        call = current()

        async def compute(window: list[Row]) -> Sequence[pb.Ack | AlbireoError]:
            async with call.window(sum(row.n_bytes for row in window)) as part:
                return await part.work(_upsert, part, window)

        # One window at a time: rows are applied in the order of the stream.
        async for result in in_order(_rows(request_iterator), compute, at_once=1):
            if isinstance(result, AlbireoError):
                raise result
            yield result

    async def ListCollections(self, request: pb.ListCollectionsRequest, context: Any) -> pb.ListCollectionsResponse:
        call = current()
        return await call.work(_list, call)

    async def CreateCollection(self, request: pb.CreateCollectionRequest, context: Any) -> pb.Collection:
        call = current()
        return await call.work(_create, call, request)


def _search(call: Call, request: pb.SearchBatchRequest, max_items: int, alone: bool) -> pb.SearchResponse:
    """`alone`: what is wrong with the only query is wrong with the request."""
    core, k = call.core, request.k or 10
    if not 1 <= k <= MAX_NEIGHBOURS:
        raise BadInput("request_invalid", f"k = {k}", field="k", fix=f"1 to {MAX_NEIGHBOURS}")
    if not request.queries:
        raise BadInput("request_invalid", "nothing was sent", field="queries", fix="send queries")
    check_count(len(request.queries), max_items)
    core.check_model(request.model or None)
    collection = core.collections.get(request.collection)
    results: list[list[pb.QueryResult | AlbireoError]] = [[] for _ in request.queries]
    wanted: list[Wanted] = []
    with call.tally.timings.stage("parse"):
        for q, query in enumerate(request.queries):
            try:
                one = _wanted(call, request.collection, query, q)
                wanted += [one] if one is not None else []
            except OF_THE_OBJECT as error:
                results[q] = [error]
        measured = [(q, query.item) for q, query in enumerate(request.queries) if query.WhichOneof("by") == "item"]
        numbers = [q for q, _ in measured]
        given = Given.of([item for _, item in measured], messages.reading(request.read), numbers, "queries")
        check_count(len(given.subjects) + len(wanted), max_items)
    for (space, _), group in groupby(sorted(wanted, key=lambda one: one.kind), key=lambda one: one.kind):
        some = list(group)

        def compute(part: Sequence[Wanted], space: str = space) -> list[Neighbours]:
            vectors = [one.vector for one in part]
            return core.search_vectors(request.collection, vectors, space, k, [one.without for one in part])

        for one, found in zip(some, _together(compute, some), strict=True):
            results[one.q] = [found if isinstance(found, AlbireoError) else _query_result(found, one.q)]
    if given.subjects:
        try:
            embedded, neighbours = core.search_subjects(request.collection, given.subjects, k)
        except Conflict as error:
            for q in numbers:
                results[q] = [error]
        else:
            for outcome, item, near in zip(embedded.outcomes, given.items, neighbours, strict=True):
                result = outcome.error or _query_result(near, item or 0)
                if isinstance(result, pb.QueryResult):
                    result.read.CopyFrom(answers.item_result(outcome, None, embedded.space, with_embedding=False))
                results[item or 0].append(result)
    errors = [one for row in results for one in row if isinstance(one, AlbireoError)]
    if alone and errors and len(errors) == len(results[0]):
        raise errors[0]
    return pb.SearchResponse(
        collection=collection.name,
        space=collection.space,
        model=core.engine.name,
        metric=collection.metric,
        exact=True,
        k=k,
        results=[_told(one, q) for q, row in enumerate(results) for one in row],
        timings_ms=call.tally.timings.milliseconds(),
        request_id=call.request_id,
    )


@dataclass(frozen=True, eq=False)
class Wanted:
    """Query number `q` by a vector; `without` is the object that it came from."""

    q: int
    vector: Floats
    space: str
    without: str | None = None

    @property
    def kind(self) -> tuple[str, int]:
        """What vectors that are searched together share: the space and the dimension."""
        return self.space, len(self.vector)


def _wanted(call: Call, name: str, query: pb.Query, q: int) -> Wanted | None:
    """A query by id or vector; None of one by an item."""
    by, where = query.WhichOneof("by"), f"queries.{q}"
    if by is None:
        raise BadInput("request_invalid", "give exactly one of id, vector and item", field=where)
    if by == "vector":
        return Wanted(q, messages.vector(query.vector, f"{where}.vector"), query.vector.space)
    if by == "item":
        return None
    collection = call.core.collections.get(name)
    (known,) = collection.fetch([query.id])
    return Wanted(q, known.vector, collection.space, query.id)


def _query_result(found: Neighbours, q: int) -> pb.QueryResult:
    hits = [answers.hit(one) for one in found.hits]
    return pb.QueryResult(query=q, hits=hits, short_reason=found.short_reason or "")


def _told(result: pb.QueryResult | AlbireoError, q: int) -> pb.QueryResult:
    return pb.QueryResult(query=q, error=answers.trouble(result)) if isinstance(result, AlbireoError) else result


def _get(call: Call, request: pb.GetRequest, max_items: int) -> pb.GetResponse:
    check_count(len(request.ids), max_items)
    collection = call.core.collections.get(request.collection)
    found = _together(collection.fetch, request.ids)
    results = [
        pb.GetResult(id=name, error=answers.trouble(one))
        if isinstance(one, AlbireoError)
        else pb.GetResult(id=name, object=answers.stored(one, collection.space))
        for name, one in zip(request.ids, found, strict=True)
    ]
    return pb.GetResponse(results=results, request_id=call.request_id)


def _list(call: Call) -> pb.ListCollectionsResponse:
    known = call.core.collections
    rows = [answers.collection(known.get(name)) for name in known.names()]
    return pb.ListCollectionsResponse(collections=rows, request_id=call.request_id)


def _create(call: Call, request: pb.CreateCollectionRequest) -> pb.Collection:
    metric = cast(Metric, request.metric or "cosine")
    return answers.collection(call.core.create(request.name, request.space or None, request.dim or None, metric))


@dataclass(frozen=True)
class Row:
    """One row of a stream with its number."""

    n: int
    row: pb.ObjectRow
    n_bytes: int


async def _rows(rows: Any) -> AsyncIterator[Row]:
    n = 0
    async for row in rows:
        yield Row(n, row, row.ByteSize())
        n += 1


def _upsert(call: Call, window: Sequence[Row]) -> list[pb.Ack | AlbireoError]:
    """Acknowledgements in the order of the rows; an error at the end if the service cannot go on."""
    acks: list[pb.Ack | AlbireoError] = []
    for (name, kind), run in groupby(window, key=lambda one: (one.row.collection, one.row.WhichOneof("row"))):
        rows = list(run)
        try:
            acks += _upsert_items(call, name, rows) if kind == "item" else _upsert_objects(call, name, rows)
        except OF_THE_OBJECT as error:
            acks += [pb.Ack(row=one.n, status="error", error=answers.trouble(error)) for one in rows]
        except AlbireoError as error:
            return [*acks, error]
    return acks


def _upsert_items(call: Call, name: str, rows: Sequence[Row]) -> list[pb.Ack]:
    """Objects to be embedded first."""
    call.core.check_space(call.core.collections.get(name), call.core.engine.space("mean"))
    with call.tally.timings.stage("parse"):
        given = Given.of([one.row.item for one in rows], ReadOptions(), [one.n for one in rows], "rows")
    acks: list[pb.Ack] = []
    entries = list(zip(given.subjects, given.items, strict=True))
    for part in _distinct(entries, lambda entry: entry[0].id):
        embedded, _ = call.core.index(name, [subject for subject, _ in part])
        acks += [answers.ack(outcome, n or 0) for outcome, (_, n) in zip(embedded.outcomes, part, strict=True)]
    return acks


def _upsert_objects(call: Call, name: str, rows: Sequence[Row]) -> list[pb.Ack]:
    """Objects that come with their vectors."""
    collection = call.core.collections.get(name)
    acks: dict[int, pb.Ack] = {}
    good: list[tuple[int, StoredObject]] = []
    for one in rows:
        try:
            good.append((one.n, _stored(one, lambda space: call.core.check_space(collection, space))))
        except OF_THE_OBJECT as error:
            acks[one.n] = answers.stored_ack(one.row.object.id, error.at(field=f"rows.{one.n}"), one.n)
    for part in _distinct(good, lambda entry: entry[1].id):
        refused = call.core.index_vectors(name, [stored for _, stored in part], collection.space)
        for (n, stored), why in zip(part, refused, strict=True):
            acks[n] = answers.stored_ack(stored.id, why, n)
    return [acks[one.n] for one in rows]


def _stored(one: Row, check_space: Callable[[str], None]) -> StoredObject:
    """An object that came with its vector, as the index keeps it."""
    if one.row.WhichOneof("row") is None:
        raise BadInput("request_invalid", "give exactly one of item and object")
    given, where = one.row.object, f"rows.{one.n}.object"
    values = messages.vector(given.vector, f"{where}.vector")
    check_space(given.vector.space)
    ra, dec = (given.pos.ra, given.pos.dec) if given.HasField("pos") else (None, None)
    metadata = messages.plain_struct(given.metadata, f"{where}.metadata")
    return StoredObject(given.id, values, ra, dec, metadata, tuple(given.modalities))


def _distinct(entries: Sequence[Entry], id_of: Callable[[Entry], str | None]) -> Iterator[list[Entry]]:
    """Entries in order, in parts without an id that comes twice: the later one replaces what the earlier one wrote."""
    part: list[Entry] = []
    seen: set[str] = set()
    for entry in entries:
        name = id_of(entry)
        if name is not None and name in seen:
            yield part
            part, seen = [], set()
        part.append(entry)
        seen |= {name} if name is not None else set()
    if part:
        yield part


def _together(
    compute: Callable[[Sequence[Entry]], Sequence[Result]], entries: Sequence[Entry]
) -> list[Result | AlbireoError]:
    """What is computed for all entries; if that is refused, each is tried alone, and fails alone."""
    try:
        return list(compute(entries)) if entries else []
    except OF_THE_OBJECT as error:
        if len(entries) == 1:
            return [error]
        return [result for entry in entries for result in _together(compute, [entry])]
