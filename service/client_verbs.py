"""What the client can ask, as data: the address, the JSON part, and what becomes of the answers. Nothing is sent here.

Verb      asked about objects, in as many requests as they need
Question  asked about nothing: one request
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

import numpy as np
from astropy.table import QTable
from numpy.typing import NDArray

from albireo.observations.errors import BadInput
from albireo.service.client_answers import (
    ERROR,
    Answered,
    AnswerTable,
    EmbeddingTable,
    NeighborTable,
    ValidationTable,
    embedding_table,
    kept_table,
    neighbor_table,
    validation_table,
)
from albireo.service.client_generation import DRAWN_AT_ONCE, SAMPLING, DrawsTable, asked, draws_table
from albireo.service.client_predictions import PredictionTable, prediction_table
from albireo.service.client_reading import Reading
from albireo.service.client_requests import BATCH_OBJECTS, Batch, Contents, Limits, Request, request_of
from albireo.service.client_tokens import TokenTable, requests_of, token_table

Pooling = Literal["mean", "mean_per_modality", "tokens"]
Result = TypeVar("Result")

STANDARD = frozenset(
    {
        *("id", "file", "ra", "dec", "embedding", "row", "status", "modalities", "n_tokens", "cache", "qa_flags"),
        *("warnings", *ERROR),
    }
)
"""Columns of an EmbeddingTable that the service made; others are the user's."""


@dataclass(frozen=True)
class Verb(Generic[Result]):
    """Asked about objects.

    body      the JSON part, beside items
    finish    the result, from what came of each batch
    together  all objects go in one request
    of_query  items are sent one by one, as the query of a search
    most      objects that go in one request, None: as many as the server allows
    """

    name: str
    path: str
    body: Mapping[str, Any]
    finish: Callable[[Sequence[Answered]], Result]
    reading: Reading
    together: bool = False
    of_query: bool = False
    most: int | None = None

    def request(self, batch: Batch, contents: Contents) -> Request:
        made = request_of(batch, contents, self.path, self.body)
        if not self.of_query or batch.form != "items":
            return made
        assert made.json is not None
        (item,) = made.json["items"]
        return Request("POST", self.path, {**self.body, "query": {"inputs": item["inputs"]}}, made.files)

    def with_options(self, options: Mapping[str, Any]) -> Verb[Result]:
        """The same, with options that the client states for all that it asks."""
        return replace(
            self, body={**self.body, "options": {**self.body.get("options", {}), **options}} if options else self.body
        )

    @property
    def whole(self) -> bool:
        """True if a bad object fails all."""
        return self.reading.terms.get("on_error") == "fail"

    def within(self, limits: Limits) -> Limits:
        """The limits of the server, or those of this verb if they are narrower."""
        return limits if self.most is None else replace(limits, max_items=min(self.most, limits.max_items))

    def batched(self, todo: Sequence[Batch]) -> list[Batch]:
        """The batches as this verb can be asked about them."""
        if not self.of_query:
            return list(todo)
        return [one for batch in todo for one in (_one_by_one(batch) if batch.form == "items" else [batch])]


def _one_by_one(batch: Batch) -> Iterator[Batch]:
    yield from (Batch((group,)) for group in batch.groups)


def validate(reading: Reading) -> Verb[ValidationTable]:
    return Verb("reading", "/v1/validate", _body(reading, {}), validation_table, reading, reading.together)


def embed(
    pooling: Pooling, normalize: bool, join: bool, reading: Reading, dims: int | None = None
) -> Verb[EmbeddingTable]:
    options = {"pooling": pooling, "normalize": normalize, "encoding": "base64", "join": join, "dims": dims}
    return Verb(
        "embedding", "/v1/embed", _body(reading, options), lambda answers: embedding_table(answers, pooling),
        reading, join or reading.together,
    )  # fmt: skip


def predict(heads: Sequence[str], density: bool, prior: Any, join: bool, reading: Reading) -> Verb[PredictionTable]:
    options = {"density": density, "prior": _prior(prior), "join": join}
    body = {"heads": list(heads), **_body(reading, options)}
    return Verb("predicting", "/v1/predict", body, prediction_table, reading, join or reading.together)


def tokenize(join: bool, reading: Reading) -> Verb[TokenTable]:
    return Verb(
        "tokenizing", "/v1/tokenize", _body(reading, {"join": join}), token_table, reading, join or reading.together
    )


def generate(
    target: str, sources: Any, mask: Any, keep: Any, draws: int, seed: int, join: bool, options: Mapping[str, Any]
) -> Verb[DrawsTable]:
    """`options` are those of the sampling, of the reading, and terms."""
    reading = Reading.asked({name: value for name, value in options.items() if name not in SAMPLING})
    sampling = {"draws": draws, "seed": seed} | {name: options[name] for name in SAMPLING if name in options}
    body = _body(reading, {**asked(target, sources, mask, keep), **sampling, "encoding": "base64", "join": join})
    return Verb(
        "drawing", "/v1/generate", body, draws_table, reading, join or reading.together,
        most=max(1, DRAWN_AT_ONCE // max(1, draws)),
    )  # fmt: skip


def upsert(name: str, join: bool, reading: Reading) -> Verb[AnswerTable]:
    return Verb(
        "indexing", f"{_collection(name)}/objects", _body(reading, {"join": join}), kept_table, reading,
        join or reading.together,
    )  # fmt: skip


def search(name: str, k: int, join: bool, reading: Reading) -> Verb[NeighborTable]:
    body = {"k": k, **_body(reading, {"join": join})}
    return Verb(
        "searching", f"{_collection(name)}/search", body, _named_neighbors, reading, join or reading.together, True
    )


def _named_neighbors(answers: Sequence[Answered]) -> NeighborTable:
    named = []
    for answer in answers:
        own = answer.batch.pieces[0].id
        results = [
            {**one, "query": {**one["query"], "id": own or one["query"]["id"]}} if one.get("query") else one
            for one in answer.content.get("results", ())
        ]
        named.append(Answered(answer.batch, {**answer.content, "results": results}) if results else answer)
    return neighbor_table(named)


def _body(reading: Reading, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are stated; those left out are the service's defaults."""
    stated = {name: value for name, value in options.items() if value is not None} | dict(reading.terms)
    if reading.data:
        stated["read"] = dict(reading.data)
    return {"options": stated} if stated else {}


def _prior(prior: Any) -> Any:
    """A word, or (edges, n) of a distribution of redshift; a table of z_low, z_high, n as `--prior` takes it."""
    if prior is None or isinstance(prior, str | Mapping):
        return prior
    if isinstance(prior, QTable) or hasattr(prior, "colnames"):
        low, high = np.asarray(prior["z_low"], float), np.asarray(prior["z_high"], float)
        if not np.array_equal(low[1:], high[:-1]):
            raise BadInput("option_invalid", "cells of the prior that do not touch", field="prior", fix="leave no gap")
        return {"edges": [*low.tolist(), float(high[-1])], "n": np.asarray(prior["n"], float).tolist()}
    edges, n = prior
    return {"edges": np.asarray(edges, float).tolist(), "n": np.asarray(n, float).tolist()}


# One request each


@dataclass(frozen=True)
class Question(Generic[Result]):
    """One request, and what becomes of its answer."""

    request: Request
    finish: Callable[[Mapping[str, Any]], Result]


def info() -> Question[dict[str, Any]]:
    return Question(Request("GET", "/v1/info"), dict)


def limits_of(content: Mapping[str, Any]) -> Limits:
    """The limits that /v1/info tells."""
    known = {
        name: int(content["limits"][name]) for name in ("max_body_bytes", "max_items") if name in content["limits"]
    }
    return Limits(**known)


def ready() -> Question[dict[str, Any]]:
    def told(content: Mapping[str, Any]) -> dict[str, Any]:
        good = content["status"] == "ready"
        return {"ready": good, "reason": None if good else content["detail"], "capabilities": content["capabilities"]}

    return Question(Request("GET", "/readyz"), told)


def heads() -> Question[list[dict[str, Any]]]:
    return Question(Request("GET", "/v1/heads"), lambda content: list(content["heads"]))


def create(name: str, space: str | None, dim: int | None, metric: str) -> Question[dict[str, Any]]:
    stated = {"space": space, "dim": dim, "metric": metric}
    body = {key: value for key, value in stated.items() if value is not None}
    return Question(Request("PUT", _collection(name), body), dict)


def collections() -> Question[QTable]:
    def told(content: Mapping[str, Any]) -> QTable:
        names = ("name", "space", "dim", "metric", "count")
        return QTable({name: [row[name] for row in content["collections"]] for name in names})

    return Question(Request("GET", "/v1/collections"), told)


def about_collection(name: str) -> Question[dict[str, Any]]:
    return Question(Request("GET", _collection(name)), dict)


def detokenize(tokens: Any, limits: Limits) -> list[Question[Answered]]:
    """What tokens stand for, a few objects in each question."""
    return [
        Question(Request("POST", "/v1/detokenize", body), lambda content: Answered(Batch(()), content))
        for body in requests_of(tokens, limits)
    ]


def search_id(name: str, id: str, k: int) -> Question[Answered]:
    """The neighbours of an object of the collection."""
    return _asked(name, {"id": id}, k, id)


def search_vectors(name: str, vectors: Any, space: str | None, k: int) -> list[Question[Answered]]:
    """One question for each vector (D,) of an EmbeddingTable or an array, which must say of which space it is."""
    if isinstance(vectors, EmbeddingTable):
        good = vectors.ok()
        _need_mean(good)
        space, ids, rows = good.meta["space"], good["id"].tolist(), np.asarray(good["embedding"])
    else:
        rows = np.atleast_2d(np.asarray(vectors, np.float32))
        ids = [""] * len(rows)
    if space is None:
        raise BadInput(
            "request_invalid", "the embedding space of a vector is not stated", field="space",
            fix="give the `space` that came with the embedding, or the EmbeddingTable",
        )  # fmt: skip
    return [
        _asked(name, {"vector": {"b64": _b64(row), "space": space}}, k, asked)
        for row, asked in zip(rows, ids, strict=True)
    ]


def _asked(name: str, query: Mapping[str, Any], k: int, asked: str) -> Question[Answered]:
    """The neighbours of what is no object: its row is called `asked`."""

    def told(content: Mapping[str, Any]) -> Answered:
        results = [{**one, "query": {"id": asked, "status": "ok"}} for one in content["results"]]
        return Answered(Batch(()), {**content, "results": results})

    return Question(Request("POST", f"{_collection(name)}/search", {"query": query, "k": k}), told)


def upsert_vectors(name: str, table: EmbeddingTable, limits: Limits) -> list[Question[Answered]]:
    """The good rows of a table of mean embeddings; columns that the user added are metadata."""
    good = table.ok()
    _need_mean(good)
    theirs = [column for column in good.colnames if column not in STANDARD]
    objects = []
    for row in good:
        one: dict[str, Any] = {"id": str(row["id"]), "vector": {"b64": _b64(row["embedding"])}}
        place = [float(row[axis].to_value("deg")) for axis in ("ra", "dec")]
        if np.isfinite(place).all():
            one |= {"ra": place[0], "dec": place[1]}
        one["modalities"] = [word for word in str(row["modalities"]).split(",") if word]
        one["metadata"] = {"file": str(row["file"])} | {column: _plain(row[column], column) for column in theirs}
        if row["qa_flags"]:
            one["metadata"]["qa_flags"] = str(row["qa_flags"]).split(",")
        objects.append(one)
    step = min(BATCH_OBJECTS, limits.max_items)
    path = f"{_collection(name)}/objects"
    return [
        Question(
            Request("POST", path, {"objects": objects[start : start + step], "space": good.meta["space"]}),
            lambda content: Answered(Batch(()), content),
        )
        for start in range(0, len(objects), step)
    ]


def _need_mean(table: EmbeddingTable) -> None:
    if table.meta.get("pooling", "mean") != "mean":
        raise BadInput(
            "option_invalid", f"collections hold one vector an object, pooling {table.meta['pooling']!r} makes several",
            field="pooling", fix="embed with pooling mean",
        )  # fmt: skip


def _plain(value: Any, column: str) -> Any:
    """A cell as JSON can carry it; of a quantity the number."""
    value = getattr(value, "value", value)
    value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    return None if value is np.ma.masked or (isinstance(value, float) and not np.isfinite(value)) else value


def _b64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode()


def _collection(name: str) -> str:
    return f"/v1/collections/{quote(name, safe='')}"
