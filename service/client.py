"""The Python client: files, tables, spectra and images in; tables with embeddings, predictions and neighbours out.

    Client       talks to a service over HTTP
    AsyncClient  the same verbs as coroutines, several requests at a time
    Local        the same verbs in this process, without a server

No torch is needed but for Local. Every verb that takes objects takes the same: a path, a folder or a pattern; bytes; an
HDUList; a table of astropy, pandas or Arrow; a specutils Spectrum or SpectrumList; CCDData or NDData; a dict of
modalities or of the JSON form; or a sequence of these. Keywords beyond those named are reading options
(docs/formats.md), what the files do not say, or terms (docs/client.md): `on_error`, `missing`, `qa`, `cache`. One bad
object fails alone, in its row; if none is good, or with on_error="fail", the first error is raised. With
`get_query_payload=True` nothing is sent: the list of Requests is returned that would be.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import httpx
from astropy.table import QTable

from albireo.observations.errors import AlbireoError
from albireo.service import client_verbs as verbs
from albireo.service.client_answers import Answered, EmbeddingTable, ValidationTable
from albireo.service.client_asking import Asking, accepted, gone, instead
from albireo.service.client_async import AsyncClient
from albireo.service.client_collections import Collection
from albireo.service.client_generation import DRAWS, DrawsTable
from albireo.service.client_predictions import PredictionTable, RedshiftResult
from albireo.service.client_reading import Reading
from albireo.service.client_requests import Batch, Limits, Request, loaded
from albireo.service.client_tokens import DecodedTable, TokenTable, decoded_table
from albireo.service.client_transport import Patience, content_of, refusal, unanswered
from albireo.service.client_verbs import Pooling, Question, Verb

if TYPE_CHECKING:
    from albireo.service.core import Core
    from albireo.service.settings import Settings

Result = TypeVar("Result")

__all__ = [
    "AsyncClient",
    "Client",
    "DecodedTable",
    "DrawsTable",
    "EmbeddingTable",
    "Local",
    "PredictionTable",
    "RedshiftResult",
    "TokenTable",
    "ValidationTable",
]


class Client(Asking):
    """A service over HTTP. Connections are kept and used again; close it, or use it in a `with` statement."""

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
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(
            url, token, connect=connect, read=read, total=total, priority=priority, deadline=deadline, progress=progress
        )
        self._http = httpx.Client(**self.access.options(), transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # About objects

    def validate(self, given: Any, *, get_query_payload: bool = False, **read: Any) -> ValidationTable:
        """What the service understands of each object; nothing is embedded, and what is of no use is a row too."""
        return self._of_objects(verbs.validate(Reading.asked(read)), given, get_query_payload)

    def embed(
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
        """An embedding of each object, in the order of what was given.

        pooling    mean of all tokens, one mean_per_modality, or all tokens
        normalize  to length 1
        join       objects of the same id in several files are one object
        dims       numbers of an embedding: refused unless they are all that the model gives
        """
        verb = verbs.embed(pooling, normalize, join, Reading.asked(read), dims)
        return self._of_objects(verb, given, get_query_payload)

    def predict(
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
        """What heads say of each object, after one pass of the encoder for all of them.

        density  also the probability of each cell of a redshift
        prior    of redshift: "flat", (edges, n), or a table of z_low, z_high, n
        """
        names = [heads] if isinstance(heads, str) else list(heads)
        verb = verbs.predict(names, density, prior, join, Reading.asked(read))
        return self._of_objects(verb, given, get_query_payload)

    def predict_redshift(self, given: Any, *, head: str = "redshift", **options: Any) -> RedshiftResult:
        """Redshifts with intervals and densities; the options are those of `predict`."""
        return RedshiftResult(self.predict(given, head, **options), head)

    def predict_galaxy(self, given: Any, *, head: str = "galaxy", **options: Any) -> PredictionTable:
        """Properties of galaxies, with units and intervals."""
        return self.predict(given, head, **options)

    def predict_stellar(self, given: Any, *, head: str = "stellar", **options: Any) -> PredictionTable:
        """Parameters of stars, with units and intervals."""
        return self.predict(given, head, **options)

    def classify(self, given: Any, *, head: str = "class", **options: Any) -> PredictionTable:
        """The most probable class, and the probability of each."""
        return self.predict(given, head, **options)

    def tokenize(self, given: Any, *, join: bool = False, get_query_payload: bool = False, **read: Any) -> TokenTable:
        """The tokens of each object, and what the quantisers of its modalities are."""
        return self._of_objects(verbs.tokenize(join, Reading.asked(read)), given, get_query_payload)

    def detokenize(self, tokens: Any) -> DecodedTable:
        """What tokens stand for: of a TokenTable, of {modality: ids}, or of a sequence of such dicts.

        Conflict if the tokens of a table are of other quantisers than those of the service.
        """
        questions = verbs.detokenize(tokens, self._known_limits())
        return decoded_table([self._ask(question) for question in questions])

    def generate(
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
        """Draws of a modality that was not observed: possibilities as the model sees them, and no measurements.

        target   what is drawn
        sources  nothing but these modalities of an object is used, default: all
        mask     x0, y0, x1, y1: the image is kept but for this box of pixels, which is filled in
        keep     low, high: these wavelengths of the spectrum are kept, and the rest is drawn; a Quantity, or Angstrom
        draws    independent draws for each object; same seed, same object: same draws
        options  of the sampling, as of `albireo generate`: rounds, schedule, temperature, cooling, top_k, top_p,
                 guidance; of the reading; and terms
        """
        verb = verbs.generate(target, sources, mask, keep, draws, seed, join, options)
        return self._of_objects(verb, given, get_query_payload)

    # About the service

    def info(self) -> dict[str, Any]:
        """The model, what it reads, and the limits."""
        return self._ask(verbs.info())

    def ready(self) -> dict[str, Any]:
        """Whether the service is ready, why not, and the report by capability; asked once, without patience."""
        return self._ask(verbs.ready(), patience=0.0)

    def heads(self) -> list[dict[str, Any]]:
        """The heads that can be asked, each with its card."""
        return self._ask(verbs.heads())

    # Collections

    def collections(self) -> QTable:
        """All collections: name, space, dim, metric, count."""
        return self._ask(verbs.collections())

    def create_collection(
        self, name: str, *, space: str | None = None, dim: int | None = None, metric: str = "cosine"
    ) -> Collection:
        """Make a collection, by default of the model that is loaded, or find it there with this definition."""
        self._ask(verbs.create(name, space, dim, metric))
        return Collection(self, name)

    def collection(self, name: str) -> Collection:
        """A collection by its name; nothing is asked yet."""
        return Collection(self, name)

    # How it is done

    def _of_objects(self, verb: Verb[Result], given: Any, payload: bool = False) -> Result:
        if payload:
            return cast(Result, self.payload(verb, given))
        verb, todo = self.plan(verb, given, self._known_limits())
        answers: list[Answered] = []
        lost: AlbireoError | None = None
        with self.bar(verb, todo) as advance:
            for batch in todo:
                found = self._answers(verb, batch if lost is None else batch.failed(lost))
                answers += [accepted(verb, answer) for answer in found]
                lost = lost or gone(answers[-1])
                advance(batch.n)
        return verb.finish(answers)

    def _answers(self, verb: Verb[Any], batch: Batch) -> Iterator[Answered]:
        """What came of a batch; one that is refused is parted and sent again."""
        for part, contents in loaded(batch):
            if part.form == "error":
                yield Answered(part, {})
                continue
            try:
                request = verb.request(part, contents)
                self._known_limits().check(request)
                yield Answered(part, self._send(request))
            except AlbireoError as error:
                for smaller in instead(verb, part, error):
                    yield from self._answers(verb, smaller)

    def _known_limits(self) -> Limits:
        if self.limits is None:
            self.limits = verbs.limits_of(self.info())
        return self.limits

    def _ask(self, question: Question[Result], patience: float | None = None) -> Result:
        return question.finish(self._send(question.request, patience))

    def _send(self, request: Request, patience: float | None = None) -> dict[str, Any]:
        """The content of the answer; tried again as long as there is hope and time."""
        waiting = Patience(self.access.total if patience is None else patience)
        made = self._http.build_request(request.method, request.path, **request.arguments())
        made.headers["X-Request-Id"] = uuid.uuid4().hex
        while True:
            try:
                response = self._http.send(made)
            except httpx.TransportError as error:
                failure, asked = unanswered(error, self.access.url), None
            else:
                refused = refusal(response)
                if refused is None or refused.tells:
                    return content_of(response)
                failure, asked = refused.error, refused.asked
            time.sleep(waiting.pause(failure, asked))


class Local(Client):
    """The verbs in this process: the same requests, answered by the same app over a core of its own, without a server.

    model     name of a model, or a checkpoint folder; default: that of the settings
    settings  of the service (docs/settings.md), default: the environment's
    core      instead of one that the settings describe; closed with the client
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        settings: Settings | None = None,
        core: Core | None = None,
        progress: bool = True,
    ) -> None:
        from albireo.service.client_local import InProcess, local_app  # the whole service

        app = local_app(None if model is None else str(model), settings, core)
        super().__init__("http://in.process", progress=progress, transport=InProcess(app))
