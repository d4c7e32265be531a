"""The verbs of the client as coroutines, over the same requests and answers."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import anyio
import anyio.to_thread
import httpx
from astropy.table import QTable

from albireo.observations.errors import AlbireoError
from albireo.service import client_verbs as verbs
from albireo.service.client_answers import Answered, EmbeddingTable, ValidationTable
from albireo.service.client_asking import Asking, accepted, gone, instead
from albireo.service.client_collections import AsyncCollection
from albireo.service.client_generation import DRAWS, DrawsTable
from albireo.service.client_predictions import PredictionTable, RedshiftResult
from albireo.service.client_reading import Reading
from albireo.service.client_requests import Batch, Limits, Request, loaded
from albireo.service.client_tokens import DecodedTable, TokenTable, decoded_table
from albireo.service.client_transport import Patience, content_of, refusal, unanswered
from albireo.service.client_verbs import Pooling, Question, Verb

Result = TypeVar("Result")

AT_A_TIME = 4
"""Requests that an AsyncClient has under way."""


class AsyncClient(Asking):
    """The verbs of `Client` as coroutines. Of many objects `at_a_time` requests are under way, and order is kept."""

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        connect: float = 5.0,
        read: float = 300.0,
        total: float = 120.0,
        priority: str | None = None,
        deadline: float | None = None,
        progress: bool = True,
        at_a_time: int = AT_A_TIME,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(
            url, token, connect=connect, read=read, total=total, priority=priority, deadline=deadline, progress=progress
        )
        self.at_a_time = at_a_time
        self._http = httpx.AsyncClient(**self.access.options(), transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def validate(self, given: Any, *, get_query_payload: bool = False, **read: Any) -> ValidationTable:
        """As `Client.validate`."""
        return await self._of_objects(verbs.validate(Reading.asked(read)), given, get_query_payload)

    async def embed(
        self,
        given: Any,
        *,
        pooling: Pooling = "mean",
        normalize: bool = False,
        join: bool = False,
        dims: int | None = None,
        get_query_payload: bool = False,
        **read: Any,
    ) -> EmbeddingTable:
        """As `Client.embed`."""
        verb = verbs.embed(pooling, normalize, join, Reading.asked(read), dims)
        return await self._of_objects(verb, given, get_query_payload)

    async def predict(
        self,
        given: Any,
        heads: str | Sequence[str],
        *,
        density: bool = True,
        prior: Any = None,
        join: bool = False,
        get_query_payload: bool = False,
        **read: Any,
    ) -> PredictionTable:
        """As `Client.predict`."""
        names = [heads] if isinstance(heads, str) else list(heads)
        verb = verbs.predict(names, density, prior, join, Reading.asked(read))
        return await self._of_objects(verb, given, get_query_payload)

    async def predict_redshift(self, given: Any, *, head: str = "redshift", **options: Any) -> RedshiftResult:
        """As `Client.predict_redshift`."""
        return RedshiftResult(await self.predict(given, head, **options), head)

    async def predict_galaxy(self, given: Any, *, head: str = "galaxy", **options: Any) -> PredictionTable:
        """As `Client.predict_galaxy`."""
        return await self.predict(given, head, **options)

    async def predict_stellar(self, given: Any, *, head: str = "stellar", **options: Any) -> PredictionTable:
        """As `Client.predict_stellar`."""
        return await self.predict(given, head, **options)

    async def classify(self, given: Any, *, head: str = "class", **options: Any) -> PredictionTable:
        """As `Client.classify`."""
        return await self.predict(given, head, **options)

    async def tokenize(
        self, given: Any, *, join: bool = False, get_query_payload: bool = False, **read: Any
    ) -> TokenTable:
        """As `Client.tokenize`."""
        return await self._of_objects(verbs.tokenize(join, Reading.asked(read)), given, get_query_payload)

    async def detokenize(self, tokens: Any) -> DecodedTable:
        """As `Client.detokenize`."""
        questions = verbs.detokenize(tokens, await self._known_limits())
        return decoded_table([await self._ask(question) for question in questions])

    async def generate(
        self,
        given: Any,
        target: str,
        *,
        sources: str | Sequence[str] | None = None,
        mask: Sequence[int] | None = None,
        keep: Any = None,
        draws: int = DRAWS,
        seed: int = 0,
        join: bool = False,
        get_query_payload: bool = False,
        **options: Any,
    ) -> DrawsTable:
        """As `Client.generate`."""
        verb = verbs.generate(target, sources, mask, keep, draws, seed, join, options)
        return await self._of_objects(verb, given, get_query_payload)

    async def info(self) -> dict[str, Any]:
        """As `Client.info`."""
        return await self._ask(verbs.info())

    async def ready(self) -> dict[str, Any]:
        """As `Client.ready`."""
        return await self._ask(verbs.ready(), patience=0.0)

    async def heads(self) -> list[dict[str, Any]]:
        """As `Client.heads`."""
        return await self._ask(verbs.heads())

    async def collections(self) -> QTable:
        """As `Client.collections`."""
        return await self._ask(verbs.collections())

    async def create_collection(
        self, name: str, *, space: str | None = None, dim: int | None = None, metric: str = "cosine"
    ) -> AsyncCollection:
        """As `Client.create_collection`."""
        await self._ask(verbs.create(name, space, dim, metric))
        return AsyncCollection(self, name)

    def collection(self, name: str) -> AsyncCollection:
        """A collection by its name; nothing is asked yet."""
        return AsyncCollection(self, name)

    async def _of_objects(self, verb: Verb[Result], given: Any, payload: bool = False) -> Result:
        if payload:
            return cast(Result, await anyio.to_thread.run_sync(self.payload, verb, given))
        limits = await self._known_limits()
        # Reading files and writing bodies must not stop the event loop.
        verb, todo = await anyio.to_thread.run_sync(self.plan, verb, given, limits)
        answers: list[list[Answered]] = [[] for _ in todo]
        lost: AlbireoError | None = None
        room = anyio.Semaphore(self.at_a_time)
        raised: list[Exception] = []

        async def one(number: int, batch: Batch) -> None:
            nonlocal lost
            try:
                found = await self._answers(verb, batch if lost is None else batch.failed(lost))
                answers[number] = [accepted(verb, answer) for answer in found]
                lost = lost or gone(answers[number][-1])
                advance(batch.n)
            except Exception as error:
                raised.append(error)
                tasks.cancel_scope.cancel()
            finally:
                room.release()

        with self.bar(verb, todo) as advance:
            async with anyio.create_task_group() as tasks:
                for number, batch in enumerate(todo):
                    await room.acquire()
                    tasks.start_soon(one, number, batch)
        if raised:
            raise raised[0]
        return verb.finish([answer for part in answers for answer in part])

    async def _answers(self, verb: Verb[Any], batch: Batch) -> list[Answered]:
        """What came of a batch; one that is refused is parted and sent again."""
        out: list[Answered] = []
        for part, contents in await anyio.to_thread.run_sync(list, loaded(batch)):
            if part.form == "error":
                out.append(Answered(part, {}))
                continue
            try:
                request = verb.request(part, contents)
                (await self._known_limits()).check(request)
                out.append(Answered(part, await self._send(request)))
            except AlbireoError as error:
                for smaller in instead(verb, part, error):
                    out += await self._answers(verb, smaller)
        return out

    async def _known_limits(self) -> Limits:
        if self.limits is None:
            self.limits = verbs.limits_of(await self.info())
        return self.limits

    async def _ask(self, question: Question[Result], patience: float | None = None) -> Result:
        return question.finish(await self._send(question.request, patience))

    async def _send(self, request: Request, patience: float | None = None) -> dict[str, Any]:
        """The content of the answer; tried again as long as there is hope and time."""
        waiting = Patience(self.access.total if patience is None else patience)
        made = self._http.build_request(request.method, request.path, **request.arguments())
        made.headers["X-Request-Id"] = uuid.uuid4().hex
        while True:
            try:
                response = await self._http.send(made)
            except httpx.TransportError as error:
                failure, asked = unanswered(error, self.access.url), None
            else:
                refused = refusal(response)
                if refused is None or refused.tells:
                    return content_of(response)
                failure, asked = refused.error, refused.asked
            await anyio.sleep(waiting.pause(failure, asked))
