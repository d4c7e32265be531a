"""What goes in and out of the HTTP doors: the models behind the OpenAPI document. Unknown fields are refused."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, FailFast, Field
from pydantic.dataclasses import dataclass as pydantic_dataclass

from albireo.models.engine import Pooling
from albireo.observations.errors import BadInput
from albireo.observations.options import ReadOptions
from albireo.service.terms import TERMS, CacheUse, Missing, OnError, Qa, Terms
from albireo.service.tickets import Priority

if TYPE_CHECKING:
    Reading = ReadOptions
else:
    # The same fields, checked; one list of options for files, flags and requests.
    Reading = pydantic_dataclass(ReadOptions, config=ConfigDict(extra="forbid"), frozen=True)

Number = float | int | bool | str


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


# --- requests -------------------------------------------------------------------------------------------------------


class Input(Model):
    """One measurement of an object: exactly one of `ref`, `b64`, `values` and `table`.

    Values and tables go through the same readers as files, with the same errors for missing conventions.
    """

    modality: str | None = Field(
        default=None,
        description="states what it is and whose: `image.legacysurvey`, or a kind: `spectrum`, `photometry`",
    )
    ref: str | None = Field(default=None, description="a file part of this multipart body: `part:NAME`")
    b64: str | None = Field(default=None, description="a file, base64; its format is told by its content")
    format: Literal["fits", "arrow", "parquet", "avro", "npz", "votable", "csv", "ecsv", "text"] | None = Field(
        default=None, description="what `b64` or `ref` is; checked against the content"
    )
    filename: str | None = Field(default=None, description="name of the `b64` file in messages and provenance")
    values: dict[str, Number] | None = Field(
        default=None, description="named numbers, each with its unit as `NAME_unit`", examples=[{"flux_g": 12.3}]
    )
    table: dict[str, list[Number | None]] | None = Field(
        default=None, description="columns of equal length, e.g. a light curve"
    )
    units: dict[str, str] = Field(default={}, description="units of the entries of `values` or `table`")
    object: str | None = Field(default=None, description="id of the object meant, if the file holds several")
    read: Reading | None = Field(default=None, description="overrides `options.read` for this input")


class Meta(Model):
    ra: Annotated[float, Field(ge=0, lt=360)] | None = Field(default=None, description="degrees ICRS")
    dec: Annotated[float, Field(ge=-90, le=90)] | None = Field(default=None, description="degrees ICRS")
    labels: dict[str, Any] = Field(default={}, description="metadata kept with the object; never tokens")


class Item(Model):
    """One object. Without `id` and with one input, every object of the file is an item of the reply."""

    id: str | None = Field(default=None, min_length=1, max_length=512)
    inputs: Annotated[list[Input], FailFast()] = Field(min_length=1)
    meta: Meta = Meta()


class TermOptions(Model):
    """The terms of a request (`service/terms.py`)."""

    terms_in_query: ClassVar = {name: {"enum": list(known)} for name, known in TERMS.items()}

    on_error: OnError = Field(
        default="item", description="item: a bad object fails alone; fail: the first that is found fails the request"
    )
    missing: Missing = Field(
        default="mask",
        description="mask: what an object lacks is left out; error: one that lacks a modality, band or value fails",
    )
    qa: Qa = Field(
        default="lenient", description="strict: an object fails whose QA flags say that a measurement may be bad"
    )
    cache: CacheUse = Field(
        default="use", description="bypass: tokens and embeddings are computed anew, and not remembered"
    )

    @property
    def terms(self) -> Terms:
        return Terms(self.on_error, self.missing, self.qa, self.cache, getattr(self, "dims", None))


class Options(TermOptions):
    in_query: ClassVar = {
        "pooling": {"enum": ["mean", "mean_per_modality", "tokens"]},
        "normalize": {"type": "boolean"},
        "encoding": {"enum": ["float", "base64"]},
        "dims": {"type": "integer"},
        **TermOptions.terms_in_query,
        "join": {"type": "boolean"},
        "deadline_ms": {"type": "number"},
        "priority": {"enum": ["interactive", "bulk"]},
    }
    """Options that query parameters give where there is no JSON part, and the schema of each."""

    pooling: Pooling = Field(default="mean", description="mean of valid tokens, one mean per modality, or every token")
    normalize: bool = Field(default=False, description="divide every vector by its length; a space of its own")
    dims: int | None = Field(
        default=None, ge=1, description="numbers of an embedding: refused unless it is all that the model gives"
    )
    encoding: Literal["float", "base64"] = Field(
        default="float", description="base64: little-endian float32, row-major"
    )
    join: bool = Field(default=False, description="objects of the same id in several files are one object")
    deadline_ms: float | None = Field(
        default=None, gt=0, description="milliseconds after which the answer is of no use: 504, and nothing is computed"
    )
    priority: Priority = Field(default="interactive", description="bulk waits for interactive requests")
    read: Reading | None = Field(default=None, description="what the files do not say")


class EmbedRequest(Model):
    model: str | None = Field(default=None, description="refused unless it names the model that is loaded")
    items: Annotated[list[Item], FailFast()] = []
    options: Options = Options()


class Vector(Model):
    """An embedding: `values`, or `b64` of little-endian float32; with the space it is of."""

    values: list[float] | None = None
    b64: str | None = None
    dtype: Literal["f32"] = "f32"
    space: str | None = None


class Stored(Model):
    id: str = Field(min_length=1, max_length=512)
    vector: Vector | list[float]
    ra: Annotated[float, Field(ge=0, lt=360)] | None = None
    dec: Annotated[float, Field(ge=-90, le=90)] | None = None
    metadata: dict[str, Any] = {}
    modalities: list[str] = []


class ObjectsRequest(EmbedRequest):
    """Raw inputs in `items` (as for /v1/embed), or ready vectors in `objects` with the `space` they are of."""

    objects: Annotated[list[Stored], FailFast()] = []
    space: str | None = None


class CollectionRequest(Model):
    """By default of the loaded model's mean embeddings."""

    space: str | None = None
    dim: int | None = Field(default=None, ge=1)
    metric: Literal["cosine", "l2"] = "cosine"


class Query(Model):
    """Exactly one of `id`, `vector` and `inputs`."""

    id: str | None = Field(default=None, description="an object of the collection")
    vector: Vector | None = None
    inputs: list[Input] | None = Field(default=None, min_length=1, description="one object, as in /v1/embed")


class SearchRequest(Model):
    model: str | None = None
    query: Query | None = Field(default=None, description="absent when the file parts are the query")
    k: int = Field(default=10, ge=1, le=10_000, description="neighbours wanted")
    options: Options = Options()


# --- replies --------------------------------------------------------------------------------------------------------


class Trouble(Model):
    code: str
    message: str
    file: str | None = None
    field: str | None = None
    fix: str | None = None


class Problem(Model):
    """RFC 9457. `items` is there when every object of a request failed."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    file: str | None = None
    field: str | None = None
    fix: str | None = None
    request_id: str
    items: list[Any] | None = None
    capabilities: dict[str, Any] | None = None


class ItemReply(Model):
    id: str | None
    file: str | None
    ra: float | None = Field(default=None, description="degrees ICRS, as the file or the item states it")
    dec: float | None = None
    status: Literal["ok", "degraded", "error"]
    embedding: list[float] | list[list[float]] | str | None = None
    shape: list[int] | None = None
    rows: list[str] | None = Field(default=None, description="modality of every row, unless pooling is `mean`")
    modalities_used: list[str]
    n_tokens: int
    cache: Literal["hit", "miss"] | None = Field(
        default=None, description="hit: the embedding was remembered; miss: it was computed; null: there is none"
    )
    qa_flags: list[str]
    warnings: list[Trouble]
    error: Trouble | None


class Envelope(Model):
    space: str
    model: str
    dtype: str = Field(description="what the model's weights are kept in; embeddings are float32 always")
    compute: str = Field(description="what the model's products are computed in")
    device: str
    tokens: str = Field(description="what the networks of the tokenizers computed in")
    dim: int
    timings_ms: dict[str, float]
    usage: dict[str, int]
    request_id: str


class EmbedReply(Envelope):
    items: list[ItemReply]


class ObjectsReply(Model):
    collection: str
    space: str
    model: str
    indexed: int = Field(description="objects of this request that are on disk now")
    count: int = Field(description="objects in the collection")
    items: list[ItemReply]
    timings_ms: dict[str, float]
    request_id: str


class HitReply(Model):
    id: str
    score: float
    ra: float | None
    dec: float | None
    modalities: list[str]
    metadata: dict[str, Any]


class QueryReply(Model):
    query: ItemReply | None = Field(description="how the query was read; null for an id or a vector")
    k_returned: int
    short_reason: str | None
    hits: list[HitReply]


class SearchReply(Model):
    collection: str
    space: str
    model: str
    metric: str
    exact: bool
    k: int
    results: list[QueryReply]
    timings_ms: dict[str, float]
    request_id: str


class CollectionReply(Model):
    name: str
    space: str
    dim: int
    metric: str
    count: int


class CollectionsReply(Model):
    collections: list[CollectionReply]
    request_id: str


class FileReply(Model):
    file: str
    format: str | None
    recognised: bool
    n_objects: int
    n_failed: int
    companion_of: str | None
    error: Trouble | None


class ValidatedItem(Model):
    id: str | None
    file: str | None
    status: Literal["ok", "degraded", "error"]
    usable: bool
    ra: float | None
    dec: float | None
    detected: dict[str, Any] | None
    metadata: dict[str, Any]
    qa_flags: list[str]
    warnings: list[Trouble]
    errors: list[Trouble]


class ValidateReply(Model):
    model: str
    files: list[FileReply]
    items: list[ValidatedItem]
    timings_ms: dict[str, float]
    usage: dict[str, int]
    request_id: str


class InfoReply(Model):
    name: str
    version: str
    model: str
    dim: int
    spaces: dict[str, str]
    modalities: list[dict[str, Any]]
    formats: list[dict[str, str]]
    limits: dict[str, int]
    request_id: str


class LiveReply(Model):
    status: Literal["alive"]


class StartedReply(Model):
    status: Literal["started"]


class ReadyReply(Model):
    status: Literal["ready"]
    capabilities: dict[str, Any]
    request_id: str


def vector_of(vector: Vector | list[float], field: str) -> NDArray[np.float32]:
    """The numbers (D,) of a vector as sent."""
    if isinstance(vector, list):
        return np.asarray(vector, np.float32)
    if (vector.values is None) == (vector.b64 is None):
        raise BadInput("request_invalid", "give one of values and b64", field=field)
    if vector.values is not None:
        return np.asarray(vector.values, np.float32)
    content = decoded(vector.b64 or "", field)
    if len(content) % 4:
        raise BadInput("request_invalid", f"{len(content)} bytes are no float32 numbers", field=field)
    return np.frombuffer(content, "<f4").astype(np.float32)


def decoded(text: str, field: str) -> bytes:
    """The bytes of base64 text."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadInput("request_invalid", f"no base64: {error}", field=field) from error
