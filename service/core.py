"""The verbs of the service, written once: every door calls these. Here an embedding meets the index.

Core       validate, tokenize, detokenize, embed, predict, generate, index, search
Outcome    what became of one object
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from albireo.observations.errors import AlbireoError, BadInput, Conflict, NotFound
from albireo.observations.modalities import MODALITIES
from albireo.observations.spaces import same_space
from albireo.service.ahead import ahead, portions
from albireo.service.descriptions import plain, select, unusable, validation
from albireo.service.subjects import Subject
from albireo.service.terms import USUAL, Refused, Terms
from albireo.service.watch import tally

if TYPE_CHECKING:
    from albireo.index.collection import Collection, Collections, Hit, StoredObject
    from albireo.index.flat import Metric
    from albireo.models.engine import CodecEngine, Embedding, Engine, Numerics, Pooling, Tokens
    from albireo.models.generation import Sampling
    from albireo.models.heads import Answer
    from albireo.observations.reading import FileReport
    from albireo.service.draws import Drawn, Wanted
    from albireo.service.embedding_cache import EmbeddingCache
    from albireo.service.pipeline import Pipeline, Staffing
    from albireo.service.predictions import AnyPrior, Predicted, Prediction
    from albireo.service.settings import Settings
    from albireo.service.shelf import Shelf, Shelved
    from albireo.service.tickets import Ticket
    from albireo.service.token_verbs import Decoded, Given
    from albireo.service.watch import Watch
    from albireo.tokenizers.checkpoint import TokenSpec

Value = TypeVar("Value")
Entry = TypeVar("Entry")

CHUNK = 256
"""Objects that go to the engine in one call; between calls progress is reported and other requests get their turn."""

PORTION = 8192
"""Tokens that go to the encoder in one call, while the next portion is tokenized: enough to keep a device busy."""

MAX_NEIGHBOURS = 10_000


@lru_cache(maxsize=1024)
def names_of(keys: tuple[str, ...]) -> tuple[str, ...]:
    """Public names of modalities, each once; many objects have the same ones."""
    return tuple(MODALITIES[key].name for key in dict.fromkeys(keys))


@dataclass(frozen=True)
class Outcome:
    """What became of one object: an embedding, or an error in `subject`. `flags` are QA flags."""

    subject: Subject
    embedding: Embedding | None = None
    warnings: tuple[AlbireoError, ...] = ()
    flags: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def error(self) -> AlbireoError | None:
        return self.subject.error

    @property
    def status(self) -> Literal["ok", "degraded", "error"]:
        """ "ok", "degraded" when a modality was left out, "error"."""
        return "error" if self.error else "degraded" if self.left_out else "ok"

    @property
    def modalities(self) -> tuple[str, ...]:
        """Public names of the modalities that contributed."""
        return names_of(self.embedding.modalities) if self.embedding else ()

    @property
    def cache(self) -> Literal["hit", "miss"] | None:
        """ "hit" if the embedding was remembered, "miss" if it was computed for this; None without one."""
        return None if self.embedding is None else "hit" if self.embedding.cached else "miss"

    def failed(self, error: AlbireoError) -> Outcome:
        return replace(self, subject=self.subject.failed(error), embedding=None)


@dataclass(frozen=True)
class Embedded:
    """Outcomes in the order of the subjects, their space, how they were computed, and the seconds that took."""

    space: str
    numerics: Numerics
    outcomes: tuple[Outcome, ...]
    tokenize_seconds: float = 0.0
    encode_seconds: float = 0.0

    @property
    def n_tokens(self) -> int:
        return sum(o.embedding.n_tokens for o in self.outcomes if o.embedding)

    @property
    def n_failed(self) -> int:
        return sum(o.error is not None for o in self.outcomes)


@dataclass(frozen=True)
class Neighbours:
    """The hits of one query; `short_reason` says why there are fewer than were asked for."""

    hits: tuple[Hit, ...]
    short_reason: str | None = None


class Described(Protocol):
    """What can be said of a checkpoint without its network."""

    @property
    def name(self) -> str: ...

    @property
    def inputs(self) -> Mapping[str, TokenSpec]: ...

    @property
    def outputs(self) -> Mapping[str, TokenSpec]: ...

    def space(self, pooling: Pooling) -> str: ...


class Core:
    """The verbs. The engine, the collections and the checkpoint's description are opened when first needed."""

    def __init__(
        self,
        engine: Callable[[], Engine],
        collections: Callable[[], Collections],
        described: Callable[[], Described] | None = None,
        shelf: Callable[[], Shelf] | None = None,
    ) -> None:
        self._engine = _Once(engine)
        self._collections = _Once(collections)
        self._described = _Once(described or (lambda: self.engine))
        self._shelf = _Once(shelf or _bare_shelf)
        self._pipeline: _Once[Pipeline] | None = None
        self._results: EmbeddingCache | None = None
        self.terms = USUAL

    @classmethod
    def local(cls, settings: Settings) -> Core:
        """The checkpoint that the settings name, run by torch on the cores of this process, beside its collections."""

        def engine() -> Engine:
            from albireo.models.cores import Cores  # torch takes seconds to load
            from albireo.models.cpu import available_cores
            from albireo.models.torch_engine import TorchEngine, use_threads

            use_threads(settings.threads)
            opened = TorchEngine.open(
                settings.model_folder,
                settings.device,
                settings.dtype,
                settings.preprocessing,
                settings.tokenizer_dtype,
                Cores(settings.threads or available_cores()),
            )
            return _around(opened, settings)

        def collections() -> Collections:
            from albireo.index.collection import Collections  # only if searched or indexed

            return Collections(settings.collections_file)

        def described() -> Described:
            from albireo.tokenizers.checkpoint import Checkpoint

            return Checkpoint(settings.model_folder, settings.preprocessing)

        def shelf() -> Shelf:
            from albireo.service.shelf import Shelf  # only if heads are asked for

            return Shelf(settings.head_folders)

        core = cls(engine, collections, described, shelf)
        if settings.result_cache_bytes:
            from albireo.service.embedding_cache import EmbeddingCache

            core._results = EmbeddingCache(settings.result_cache_bytes)
        return core

    @property
    def engine(self) -> Engine:
        return self._engine()

    @property
    def loaded(self) -> bool:
        """Whether the engine is open."""
        return self._engine.value is not None

    @property
    def collections(self) -> Collections:
        return self._collections()

    @property
    def described(self) -> Described:
        """The checkpoint, without its network where that can be."""
        return self._described()

    @property
    def inputs(self) -> Mapping[str, TokenSpec]:
        return self.described.inputs

    @property
    def shelf(self) -> Shelf:
        """The heads that there are."""
        return self._shelf()

    def on(self, ticket: Ticket) -> Core:
        """The same verbs for one request: its work goes through the pipeline under its ticket, if there is one."""
        pipeline = self._pipeline
        if pipeline is None:
            return self
        twin = copy(self)
        twin._engine = _Once(lambda: _remembering(pipeline().on(ticket), self._results))
        return twin

    def under(self, terms: Terms) -> Core:
        """The same verbs under the terms of a request. Refused by a verb if they let a bad object fail all of it."""
        twin = copy(self)
        twin.terms = terms
        if terms.cache == "bypass":
            from albireo.service.engine_around import uncached  # only in a service

            twin._engine = _Once(lambda: uncached(self.engine))
        return twin

    def staff(self, staffing: Staffing, watch: Watch) -> None:
        """Let the engine's work be done by threads of its own, for all requests together."""

        def pipeline() -> Pipeline:
            from albireo.service.pipeline import Pipeline  # only in a service

            return Pipeline(self.engine, staffing, watch)

        self._pipeline = _Once(pipeline)

    @property
    def pipeline(self) -> Pipeline | None:
        """The pipeline, None while there is none or it has not begun."""
        return None if self._pipeline is None else self._pipeline.value

    def close(self, seconds: float = 30.0) -> None:
        """Compute what waits, so long at most, then close the collections if they were opened."""
        if self.pipeline is not None:
            self.pipeline.close(seconds)
        if self._collections.value is not None:
            self._collections.value.close()

    def validate(self, reports: Sequence[FileReport], subjects: Sequence[Subject]) -> dict[str, Any]:
        """What was understood, as plain data. Loads no engine if the checkpoint can be described without."""
        return validation(reports, subjects, self.inputs, self.terms)

    def embed(
        self,
        subjects: Sequence[Subject],
        pooling: Pooling = "mean",
        progress: Callable[[int], None] = lambda done: None,
        normalize: bool = False,
    ) -> Embedded:
        """An embedding of every object that has one, of length 1 if `normalize`; the others fail alone.

        progress  is told how many more objects are done
        """
        engine, inputs = self.engine, self.inputs
        self.terms.check_dims(engine.dim)
        outcomes: list[Outcome] = []
        tokenizing = encoding = 0.0
        for chunk, tokens, seconds in tokenized_ahead(engine, inputs, subjects, self.terms):
            began = time.perf_counter()
            outcomes += all_good(_encode(engine, chunk, tokens, pooling, normalize), self.terms)
            tokenizing += seconds
            encoding += time.perf_counter() - began
            progress(len(chunk))
        _count(outcomes, sum(o.embedding.n_tokens for o in outcomes if o.embedding))
        return Embedded(engine.space(pooling, normalize), engine.numerics, tuple(outcomes), tokenizing, encoding)

    def embed_tokens(
        self, tokens: Sequence[Tokens], pooling: Pooling = "mean", normalize: bool = False
    ) -> list[Embedding | AlbireoError]:
        """An embedding of every object of which tokens are given, or why it has none; of length 1 if `normalize`."""
        tally().count(tokens=sum(one.n_tokens for one in tokens))
        results = self.engine.embed_each(tokens, pooling)
        return [_of_length_one(one) if normalize and not isinstance(one, AlbireoError) else one for one in results]

    def tokenize(self, subjects: Sequence[Subject]) -> list[Prediction[Tokens]]:
        """The tokens of every object that has any; the others fail alone."""
        from albireo.service.token_verbs import tokenize  # only if tokens are asked for

        made = tokenize(self.engine, self.inputs, subjects, self.terms)
        _count([one.outcome for one in made], sum(one.n_tokens for one in made))
        return made

    def detokenize(self, given: Sequence[Given], codecs: Mapping[str, str] | None = None) -> list[Decoded]:
        """What the tokens of every object stand for; bad objects fail alone.

        codecs  fingerprints that came with the tokens, by modality: Conflict space_mismatch if one is another's
        """
        from albireo.service.token_verbs import detokenize  # only if tokens are asked for

        decoded = detokenize(self.engine, given, codecs or {})
        tally().count(len(decoded), (one.error.code for one in decoded if one.error))
        return decoded

    def predict(
        self,
        subjects: Sequence[Subject],
        heads: Mapping[str, Shelved],
        progress: Callable[[int], None] = lambda done: None,
        prior: AnyPrior = None,
    ) -> Predicted:
        """What the heads say of every object, after one pass of the encoder for all of them; bad objects fail alone.

        heads     by name, from the `shelf`. Conflict space_mismatch if one was fitted on other states than these
        progress  is told how many more objects are done
        prior     of redshift, in the place of the one that each head was fitted on; "flat" is even on its grid
        """
        from albireo.service.predictions import predict  # heads are loaded only when they are asked

        predicted = predict(self.engine, self.inputs, subjects, heads, prior, progress, self.terms)
        _count(predicted.outcomes, predicted.n_tokens)
        return predicted

    def predict_tokens(
        self, tokens: Sequence[Tokens], head: Shelved, prior: AnyPrior = None
    ) -> list[Answer | AlbireoError]:
        """What a head says of every object of which tokens are given, or why it says nothing.

        prior  as of `predict`. Flags that look at measurements are not set: tokens do not carry them
        """
        from albireo.service.predictions import predict_tokens  # heads are loaded only when they are asked

        tally().count(tokens=sum(one.n_tokens for one in tokens))
        return predict_tokens(self.engine, tokens, head, prior)

    def generate(
        self,
        subjects: Sequence[Subject],
        wanted: Wanted,
        sampling: Sampling,
        progress: Callable[[int], None] = lambda rounds: None,
    ) -> list[Prediction[Drawn]]:
        """Draws of one modality for every object; those that nothing can be drawn for fail alone.

        progress  is told how many more rounds are done, of `sampling.rounds` for each object
        """
        from albireo.service.draws import generate  # sampling needs torch

        drawn = generate(self.engine, self.inputs, subjects, wanted, sampling, progress, self.terms)
        _count([one.outcome for one in drawn], sum(one.n_tokens for one in drawn))
        return drawn

    def index(
        self, name: str, subjects: Sequence[Subject], progress: Callable[[int], None] = lambda done: None
    ) -> tuple[Embedded, int]:
        """Embed objects and keep them in collection `name`; on disk when it returns. Outcomes, and how many kept."""
        collection = self.collections.get(name)
        self.check_space(collection, self.engine.space("mean"))
        embedded = self.embed(subjects, "mean", progress)
        outcomes = all_good(_once_each(embedded.outcomes), self.terms)
        good = list({o.subject.id: i for i, o in reversed(list(enumerate(outcomes))) if o.embedding}.values())
        refused = self._upsert(collection, [_stored(outcomes[i], embedded.numerics) for i in good])
        for i, error in zip(good, refused, strict=True):
            if error is not None:
                outcomes[i] = outcomes[i].failed(error)
        before = zip(embedded.outcomes, outcomes, strict=True)
        tally().count(failed=[now.error.code for was, now in before if now.error and not was.error])
        kept = sum(error is None for error in refused)
        return replace(embedded, outcomes=tuple(outcomes)), kept

    def index_vectors(self, name: str, objects: Sequence[StoredObject], space: str) -> list[AlbireoError | None]:
        """Keep ready vectors of embedding space `space`; per object why it was refused, or None."""
        collection = self.collections.get(name)
        self.check_space(collection, space)
        refused = self._upsert(collection, objects)
        tally().count(len(objects), (error.code for error in refused if error is not None))
        return refused

    def search_subjects(self, name: str, subjects: Sequence[Subject], k: int) -> tuple[Embedded, list[Neighbours]]:
        """The k nearest objects to each object given; one that cannot be embedded has no neighbours."""
        collection = self.collections.get(name)
        self.check_space(collection, self.engine.space("mean"))
        embedded = self.embed(subjects, "mean")
        good = [(o.embedding.values, o.subject.id) for o in embedded.outcomes if o.embedding]
        found = iter(self._neighbours(collection, *zip(*good, strict=True), k=k) if good else ())
        nothing = Neighbours((), "the query has no embedding")
        return embedded, [next(found) if o.embedding else nothing for o in embedded.outcomes]

    def search_id(self, name: str, id: str, k: int) -> Neighbours:
        """The k nearest objects to one of the collection, itself left out."""
        collection = self.collections.get(name)
        (query,) = collection.fetch([id])
        return self._neighbours(collection, [query.vector], [id], k=k)[0]

    def search_vector(self, name: str, vector: NDArray[np.float32], space: str, k: int) -> Neighbours:
        """The k nearest objects to a vector (D,) of embedding space `space`."""
        return self.search_vectors(name, [vector], space, k)[0]

    def search_vectors(
        self, name: str, vectors: Sequence[NDArray[np.float32]], space: str, k: int, without: Sequence[str | None] = ()
    ) -> list[Neighbours]:
        """The same for several vectors (D,); `without` names an object that is left out of what each finds."""
        collection = self.collections.get(name)
        self.check_space(collection, space)
        return self._neighbours(collection, vectors, without or [None] * len(vectors), k=k)

    def create(
        self, name: str, space: str | None = None, dim: int | None = None, metric: Metric = "cosine"
    ) -> Collection:
        """Make a collection, by default of this model's mean embeddings, or find that it is there with this definition.

        Conflict if it is there with another; BadInput if another model's space comes without its dimension
        """
        engine = self.engine
        space = space or engine.space("mean")
        if dim is None and not same_space(space, engine.space("mean")):
            raise BadInput("request_invalid", "dim is needed for the space of another model", field="dim")
        return self.collections.create(name, space, dim or engine.dim, metric)

    def check_model(self, model: str | None) -> None:
        """NotFound model_unknown unless this is the model that is loaded, or none in particular."""
        from albireo.models.engine import POOLINGS

        engine = self.engine
        if model is not None and model not in (engine.name, *(engine.space(p).partition(":")[0] for p in POOLINGS)):
            raise NotFound("model_unknown", f"no model {model!r}", field="model", fix=f"loaded: {engine.name}")

    def check_space(self, collection: Collection, space: str) -> None:
        """Conflict space_mismatch unless the collection is of `space`."""
        if not same_space(collection.space, space):
            raise Conflict(
                "space_mismatch",
                f"collection {collection.name!r} holds vectors of {collection.space}, these are of {space}",
                field="space",
                fix="use the model the collection was made with, or a new collection",
            )

    def _upsert(self, collection: Collection, objects: Sequence[StoredObject]) -> list[AlbireoError | None]:
        """All in one transaction; if one is refused, each alone, so that only the bad ones are, or none is kept."""
        try:
            collection.upsert(objects)
        except (BadInput, Conflict):
            if self.terms.on_error == "fail":
                raise
            return [_upsert_one(collection, stored) for stored in objects]
        return [None] * len(objects)

    def _neighbours(
        self, collection: Collection, vectors: Sequence[NDArray[np.float32]], ids: Sequence[str | None], *, k: int
    ) -> list[Neighbours]:
        if not 1 <= k <= MAX_NEIGHBOURS:
            raise BadInput("request_invalid", f"k = {k}", field="k", fix=f"1 to {MAX_NEIGHBOURS}")
        with tally().timings.stage("search"):
            found = collection.search(np.stack(vectors), k, space=collection.space, exclude=ids)
        short = "the collection holds no other object"
        return [Neighbours(tuple(hits), None if len(hits) == k else short) for hits in found]


def _around(engine: CodecEngine, settings: Settings) -> Engine:
    """The engine with what the settings put around it: workers in other processes, caches."""
    if settings.remote_pools:
        from albireo.service.remote_tokens import RemoteTokens

        engine = RemoteTokens(engine, str(settings.redis_url), settings.remote_pools, settings.worker_lease_seconds)
    out: Engine = engine
    if settings.token_cache is not None:
        from albireo.service.token_cache import CachedTokens, TokenCache

        out = CachedTokens(engine, TokenCache(settings.token_cache, settings.token_cache_bytes))
    return out


def _remembering(engine: Engine, results: EmbeddingCache | None) -> Engine:
    """The engine of a request: what was computed before does not wait in the queue again."""
    if results is None:
        return engine
    from albireo.service.embedding_cache import CachedEmbeddings

    return CachedEmbeddings(engine, results)


def _bare_shelf() -> Shelf:
    from albireo.service.shelf import Shelf  # only if heads are asked for

    return Shelf()


class _Once(Generic[Value]):
    """A value made at the first call, by one thread; a factory that fails is asked again."""

    def __init__(self, make: Callable[[], Value]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self.value: Value | None = None

    def __call__(self) -> Value:
        with self._lock:
            if self.value is None:
                self.value = self._make()
            return self.value


def selected(subject: Subject, inputs: Mapping[str, TokenSpec], terms: Terms = USUAL) -> Outcome:
    """The object with the modalities that the checkpoint reads, and warnings for the others."""
    observation = subject.observation
    if observation is None:
        return Outcome(subject, warnings=subject.warnings)
    readable, warnings = select(observation, inputs)
    left_out = tuple(key for key in observation.data if key not in readable)
    outcome = Outcome(subject, warnings=subject.warnings + warnings, flags=observation.flags, left_out=left_out)
    blocking = unusable(observation, readable, inputs) or terms.objection(observation, observation.flags, left_out)
    if blocking is not None:
        return outcome.failed(blocking.at(file=subject.file))
    return replace(outcome, subject=replace(subject, observation=replace(observation, data=readable)))


def tokenized(
    engine: Engine, outcomes: list[Outcome], terms: Terms = USUAL
) -> tuple[list[Outcome], list[Tokens | None]]:
    """Tokens of the objects that have any, None for the others."""
    given = [(i, seen) for i, o in enumerate(outcomes) if not o.error and (seen := o.subject.observation) is not None]
    results = engine.tokenize([observation for _, observation in given])
    done = list(outcomes)
    out: list[Tokens | None] = [None] * len(outcomes)
    for (i, observation), result in zip(given, results, strict=True):
        if not isinstance(result, AlbireoError):
            done[i] = replace(done[i], flags=tuple(dict.fromkeys(done[i].flags + result.flags)))
        refused = result if isinstance(result, AlbireoError) else terms.objection(observation, done[i].flags)
        if refused is not None:
            done[i] = done[i].failed(refused.at(file=done[i].subject.file))
        elif not isinstance(result, AlbireoError):
            out[i] = result
    return done, out


def tokenized_ahead(
    engine: Engine, inputs: Mapping[str, TokenSpec], subjects: Sequence[Subject], terms: Terms = USUAL
) -> Iterator[tuple[list[Outcome], list[Tokens | None], float]]:
    """A portion of the objects at a time, with tokens of those that have any, and the seconds that tokenizing took.

    Where one bad object fails all, every object is known to be good before the first portion is given: see `all_good`.
    """
    chosen = all_good([selected(subject, inputs, terms) for subject in subjects], terms)

    def make(part: Sequence[int]) -> tuple[list[Outcome], list[Tokens | None], float]:
        began = time.perf_counter()
        outcomes, tokens = tokenized(engine, [chosen[i] for i in part], terms)
        return all_good(outcomes, terms), tokens, time.perf_counter() - began

    costs = [
        sum(inputs[key].n_tokens for key in subject.observation.data if key in inputs) if subject.observation else 0
        for subject in subjects
    ]
    made = ahead(make, portions(costs, PORTION, CHUNK))
    return iter(list(made)) if terms.on_error == "fail" else made


def all_good(outcomes: list[Outcome], terms: Terms) -> list[Outcome]:
    """The outcomes; Refused if an object is bad, and terms let that fail all."""
    bad = [outcome for outcome in outcomes if outcome.error] if terms.on_error == "fail" else []
    if not bad:
        return outcomes
    first = bad[0].error
    assert first is not None
    _count(bad, 0)
    raise Refused(bad) if isinstance(first, BadInput) else first


def all_or_each(
    compute: Callable[[list[Entry]], Sequence[Value]], batch: Sequence[Entry]
) -> list[Value | AlbireoError]:
    """What is computed for a batch of objects; if it is refused, each object is tried alone."""
    try:
        return list(compute(list(batch))) if batch else []
    except BadInput as error:
        if len(batch) == 1:
            return [error]
        return [result for entry in batch for result in all_or_each(compute, [entry])]


def _encode(
    engine: Engine, outcomes: Sequence[Outcome], tokens: Sequence[Tokens | None], pooling: Pooling, normalize: bool
) -> list[Outcome]:
    """The outcomes with their embeddings."""
    at = [i for i, entry in enumerate(tokens) if entry is not None]
    batch = [entry for entry in tokens if entry is not None]
    done = list(outcomes)
    for i, result in zip(at, engine.embed_each(batch, pooling), strict=True):
        done[i] = (
            done[i].failed(result.at(file=done[i].subject.file))
            if isinstance(result, AlbireoError)
            else replace(done[i], embedding=_of_length_one(result) if normalize else result)
        )
    return done


def _of_length_one(embedding: Embedding) -> Embedding:
    """Every vector divided by its Euclidean length."""
    values = embedding.values.astype(np.float64)
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    return replace(embedding, values=(values / length).astype(np.float32))


def _count(outcomes: Sequence[Outcome], tokens: int) -> None:
    """Put objects and their tokens into the tally of the request."""
    tally().count(len(outcomes), (outcome.error.code for outcome in outcomes if outcome.error), tokens)


def _once_each(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """An id that comes twice in one request fails the second time if its embedding is another: which was meant?"""
    first: dict[str | None, Outcome] = {}
    out = []
    for outcome in outcomes:
        known = first.setdefault(outcome.subject.id, outcome) if outcome.embedding else outcome
        if known is not outcome and not _equal(known, outcome):
            outcome = outcome.failed(
                BadInput(
                    "request_invalid",
                    f"object {outcome.subject.id!r} is given twice (also in {known.subject.file})",
                    file=outcome.subject.file,
                    field="id",
                    fix="give each object once, or ask for `join`: objects of the same id are one",
                )
            )
        out.append(outcome)
    return out


def _equal(one: Outcome, other: Outcome) -> bool:
    return bool(one.embedding and other.embedding and np.array_equal(one.embedding.values, other.embedding.values))


def _stored(outcome: Outcome, numerics: Numerics) -> StoredObject:
    from albireo.index.collection import StoredObject  # the index is loaded only when it is used

    subject = outcome.subject
    assert subject.id is not None
    assert subject.observation is not None
    assert outcome.embedding is not None
    observation = subject.observation
    metadata = plain(observation.metadata) | {"file": subject.file, "sha256": subject.sha256}
    metadata["computed"] = asdict(numerics)
    if outcome.flags:
        metadata["qa_flags"] = list(outcome.flags)
    return StoredObject(
        subject.id, outcome.embedding.values, observation.ra, observation.dec, metadata, outcome.modalities
    )


def _upsert_one(collection: Collection, stored: StoredObject) -> AlbireoError | None:
    try:
        collection.upsert([stored])
    except (BadInput, Conflict) as error:
        return error
    return None
