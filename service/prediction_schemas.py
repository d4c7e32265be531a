"""What goes in and out of the HTTP doors of heads: the models behind the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import FailFast, Field

from albireo.service.schemas import Envelope, Item, Model, Reading, TermOptions, Trouble
from albireo.service.tickets import Priority


class PriorCells(Model):
    """A distribution of redshift: `n` of the cells between `edges`, which increase; its sum does not matter."""

    edges: list[float] = Field(min_length=2)
    n: list[float] = Field(min_length=1)


class PredictOptions(TermOptions):
    in_query: ClassVar = {
        "density": {"type": "boolean"},
        "prior": {"enum": ["training", "flat"]},
        **TermOptions.terms_in_query,
        "join": {"type": "boolean"},
        "deadline_ms": {"type": "number"},
        "priority": {"enum": ["interactive", "bulk"]},
    }

    density: bool = Field(default=True, description="give the probability of every cell of a head's grid of redshifts")
    prior: Literal["training", "flat"] | PriorCells = Field(
        default="training", description="n(z) that redshifts are expected to have; training: as the head was fitted"
    )
    join: bool = Field(default=False, description="objects of the same id in several files are one object")
    deadline_ms: float | None = Field(
        default=None, gt=0, description="milliseconds after which the answer is of no use: 504, and nothing is computed"
    )
    priority: Priority = Field(default="interactive", description="bulk waits for interactive requests")
    read: Reading | None = Field(default=None, description="what the files do not say")


class PredictOne(Model):
    """Objects as for /v1/embed, for the head in the address."""

    model: str | None = Field(default=None, description="refused unless it names the model that is loaded")
    items: Annotated[list[Item], FailFast()] = Field(default=[])
    options: PredictOptions = PredictOptions()


class PredictRequest(PredictOne):
    """Objects as for /v1/embed, for several heads in one pass of the encoder."""

    heads: list[str] = Field(min_length=1, description="names that /v1/heads lists")


class Interval(Model):
    level: float = Field(description="share of objects whose truth lies inside")
    low: float
    high: float


class NumberReply(Model):
    name: str
    unit: str
    value: float = Field(description="median of what the head believes")
    intervals: list[Interval]


class DensityReply(Model):
    """Of a redshift; the edges of the cells stand under `heads`."""

    mean: float
    std: float
    mode: float
    probability: list[float] | None = None


class AnswerReply(Model):
    """What one head says of one object, or why it says nothing."""

    numbers: list[NumberReply] = Field(default=[])
    class_: str | None = Field(default=None, alias="class", description="the most probable class")
    classes: dict[str, float] = Field(default={})
    density: DensityReply | None = None
    flags: list[str] = Field(default=[], description="why the head may not apply (docs/heads.md)")
    typicality: float | None = Field(
        default=None,
        description="share of held-out training objects that are less like the training set than this object; "
        "below 0.01 it is unlike anything the head was fitted on; null: not known",
    )
    error: Trouble | None = None


class PredictedItem(Model):
    id: str | None
    file: str | None
    ra: float | None = Field(default=None, description="degrees ICRS, as the file or the item states it")
    dec: float | None = None
    status: Literal["ok", "degraded", "error"]
    predictions: dict[str, AnswerReply] = Field(description="by head")
    modalities_used: list[str]
    n_tokens: int
    qa_flags: list[str]
    warnings: list[Trouble]
    error: Trouble | None


class HeadReply(Model):
    name: str
    origin: str = Field(description="own, shipped (with the checkpoint) or built in")
    version: str = Field(description="first digits of the sha256 of its file; empty of the built-in head")
    task: Literal["regression", "classification", "redshift"]
    targets: list[str]
    units: list[str]
    classes: list[str]
    space: str = Field(description="of the token states it was fitted on")
    edges: list[float] | None = Field(default=None, description="of the cells of its densities, if these are given")


class PredictReply(Envelope):
    heads: dict[str, HeadReply]
    items: list[PredictedItem]


class HeadCard(HeadReply):
    fits: bool = Field(description="whether the model that is loaded can serve it")
    card: dict[str, Any] | None = Field(description="data, labels, metrics and the rest; null of the built-in head")


class HeadsReply(Model):
    heads: list[HeadCard]
    errors: list[Trouble] = Field(description="files that are no heads")
    model: str
    request_id: str
