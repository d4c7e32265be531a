"""Collections of embeddings, as a client sees them: objects go in, neighbours come out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from albireo.observations.errors import BadInput
from albireo.service import client_verbs as verbs
from albireo.service.client_answers import AnswerTable, EmbeddingTable, NeighborTable, kept_table, neighbor_table
from albireo.service.client_reading import Reading

if TYPE_CHECKING:
    from albireo.service.client import Client
    from albireo.service.client_async import AsyncClient


@dataclass(frozen=True)
class Collection:
    """One collection of a service. `search` and `upsert` take whatever `Client.embed` takes, or an EmbeddingTable."""

    client: Client
    name: str

    def about(self) -> dict[str, Any]:
        """Name, space, dim, metric and the number of objects."""
        return self.client._ask(verbs.about_collection(self.name))

    def upsert(self, given: Any, *, join: bool = False, get_query_payload: bool = False, **read: Any) -> AnswerTable:
        """Add or replace objects; they are on disk when this returns. Columns added to an EmbeddingTable are kept."""
        if not isinstance(given, EmbeddingTable):
            verb = verbs.upsert(self.name, join, Reading.asked(read))
            return self.client._of_objects(verb, given, get_query_payload)
        _no_options(read, join)
        questions = verbs.upsert_vectors(self.name, given, self.client._known_limits())
        return kept_table([self.client._ask(question) for question in questions])

    def search(
        self,
        like: Any = None,
        *,
        id: str | None = None,
        vector: Any = None,
        space: str | None = None,
        k: int = 10,
        join: bool = False,
        get_query_payload: bool = False,
        **read: Any,
    ) -> NeighborTable:
        """The k nearest objects, exactly, to one of these: objects `like` these, the object `id` of the collection, or
        a vector of embedding space `space`. Of several queries each has its rows."""
        _one_of(like=like, id=id, vector=vector)
        if id is None and vector is None and not isinstance(like, EmbeddingTable):
            verb = verbs.search(self.name, k, join, Reading.asked(read))
            return self.client._of_objects(verb, like, get_query_payload)
        _no_options(read, join)
        questions = _questions(self.name, like if vector is None else vector, id, space, k)
        return neighbor_table([self.client._ask(question) for question in questions])


@dataclass(frozen=True)
class AsyncCollection:
    """A `Collection` whose verbs are coroutines."""

    client: AsyncClient
    name: str

    async def about(self) -> dict[str, Any]:
        """Name, space, dim, metric and the number of objects."""
        return await self.client._ask(verbs.about_collection(self.name))

    async def upsert(
        self, given: Any, *, join: bool = False, get_query_payload: bool = False, **read: Any
    ) -> AnswerTable:
        """Add or replace objects; they are on disk when this returns. Columns added to an EmbeddingTable are kept."""
        if not isinstance(given, EmbeddingTable):
            verb = verbs.upsert(self.name, join, Reading.asked(read))
            return await self.client._of_objects(verb, given, get_query_payload)
        _no_options(read, join)
        questions = verbs.upsert_vectors(self.name, given, await self.client._known_limits())
        return kept_table([await self.client._ask(question) for question in questions])

    async def search(
        self,
        like: Any = None,
        *,
        id: str | None = None,
        vector: Any = None,
        space: str | None = None,
        k: int = 10,
        join: bool = False,
        get_query_payload: bool = False,
        **read: Any,
    ) -> NeighborTable:
        """As `Collection.search`."""
        _one_of(like=like, id=id, vector=vector)
        if id is None and vector is None and not isinstance(like, EmbeddingTable):
            verb = verbs.search(self.name, k, join, Reading.asked(read))
            return await self.client._of_objects(verb, like, get_query_payload)
        _no_options(read, join)
        questions = _questions(self.name, like if vector is None else vector, id, space, k)
        return neighbor_table([await self.client._ask(question) for question in questions])


def _questions(name: str, vectors: Any, id: str | None, space: str | None, k: int) -> list[Any]:
    return verbs.search_vectors(name, vectors, space, k) if id is None else [verbs.search_id(name, id, k)]


def _one_of(**queries: Any) -> None:
    if sum(query is not None for query in queries.values()) != 1:
        raise BadInput("request_invalid", "give exactly one of like, id and vector", field="query")


def _no_options(read: dict[str, Any], join: bool) -> None:
    if read or join:
        raise BadInput("option_invalid", "reading options beside vectors", field=min(read, default="join"))
