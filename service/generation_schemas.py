"""What goes in and out of the HTTP door of draws; its options are understood so by every door of the service."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, FailFast, Field, FiniteFloat, model_validator

from albireo.models.generation import Sampling
from albireo.service.draws import MAX_ROUNDS, Wanted
from albireo.service.schemas import Item, Model, Reading, TermOptions, Trouble
from albireo.service.tickets import Priority
from albireo.service.token_schemas import DecodedModality, TokenEnvelope, ValuesReply


def _parted(given: Any) -> Any:
    """Of a query parameter the parts between its commas."""
    return given.split(",") if isinstance(given, str) else given


Pixel = Annotated[int, Field(ge=0, le=1 << 16)]
Box = Annotated[tuple[Pixel, Pixel, Pixel, Pixel], BeforeValidator(_parted)]
Range = Annotated[tuple[FiniteFloat, FiniteFloat], BeforeValidator(_parted)]
Names = Annotated[list[str], BeforeValidator(_parted), Field(min_length=1)]


class GenerateOptions(TermOptions):
    """As `albireo generate` takes them."""

    in_query: ClassVar = {
        "target": {"type": "string"},
        "mask": {"type": "string"},
        "keep": {"type": "string"},
        "from": {"type": "string"},
        "draws": {"type": "integer"},
        "rounds": {"type": "integer"},
        "schedule": {"enum": ["cosine", "linear"]},
        "temperature": {"type": "number"},
        "cooling": {"enum": ["constant", "linear", "power"]},
        "top_k": {"type": "integer"},
        "top_p": {"type": "number"},
        "guidance": {"type": "number"},
        "seed": {"type": "integer"},
        "encoding": {"enum": ["float", "base64"]},
        **TermOptions.terms_in_query,
        "join": {"type": "boolean"},
        "deadline_ms": {"type": "number"},
        "priority": {"enum": ["interactive", "bulk"]},
    }

    target: str = Field(description="what is drawn: a modality, by its name or its token key")
    mask: Box | None = Field(
        default=None, description="x0, y0, x1, y1: keep the image but for this box of pixels, and fill that in"
    )
    keep: Range | None = Field(
        default=None, description="low, high: keep these Angstrom of the spectrum, and draw the rest"
    )
    sources: Names | None = Field(
        default=None, alias="from", description="use nothing but these modalities of an object; default: all"
    )
    draws: int = Field(default=8, ge=1, description="independent draws for each object; /v1/limits has `max_draws`")
    rounds: int = Field(default=Sampling.rounds, ge=1, le=MAX_ROUNDS, description="passes that build up a draw")
    schedule: Literal["cosine", "linear"] = Field(
        default=Sampling.schedule, description="how many tokens a round fills: few, many, few; or as many in each"
    )
    temperature: FiniteFloat = Field(
        default=Sampling.temperature, ge=0, description="of the sampling; 0 takes what is most probable"
    )
    cooling: Literal["constant", "linear", "power"] = Field(
        default=Sampling.cooling, description="of the temperature over the rounds"
    )
    top_k: int = Field(
        default=Sampling.top_k, ge=0, le=1 << 31, description="draw from the K most probable tokens; 0: all"
    )
    top_p: float = Field(
        default=Sampling.top_p, ge=0, le=1, description="draw from the most probable tokens of this probability; 0: all"
    )
    guidance: float = Field(
        default=Sampling.guidance, ge=-100, le=100, description="1: none; more: draws fit what is given more closely"
    )
    seed: int = Field(default=Sampling.seed, ge=0, lt=1 << 63, description="same seed, same object: same draws")
    encoding: Literal["float", "base64"] = Field(
        default="float", description="of values; base64: little-endian float32, row-major"
    )
    join: bool = Field(default=False, description="objects of the same id in several files are one object")
    deadline_ms: float | None = Field(
        default=None, gt=0, description="milliseconds after which the answer is of no use: 504, looked at in each round"
    )
    priority: Priority = Field(default="interactive", description="bulk waits for interactive requests")
    read: Reading | None = Field(default=None, description="what the files do not say")

    @property
    def wanted(self) -> Wanted:
        """What is to be drawn. BadInput if that cannot be."""
        return Wanted.named(self.target, self.mask, self.keep, self.sources)

    @property
    def sampling(self) -> Sampling:
        return Sampling(
            self.rounds, self.schedule, self.temperature, self.cooling, self.top_k, self.top_p, self.guidance,
            self.draws, self.seed,
        )  # fmt: skip


class GenerateRequest(Model):
    """Objects as for /v1/embed, and what is to be drawn for them."""

    model: str | None = Field(default=None, description="refused unless it names the model that is loaded")
    items: Annotated[list[Item], FailFast()] = Field(default=[])
    options: GenerateOptions

    @model_validator(mode="before")
    @classmethod
    def _with_options(cls, given: Any) -> Any:
        """Of a request without options the error names the one that it needs."""
        return {"options": {}, **given} if isinstance(given, dict) else given


class TargetReply(DecodedModality):
    modality: str
    shape: list[int] = Field(description="of the numbers of one draw")


class KnownReply(Model):
    """What was said of what may be known."""

    mask: list[int] | None
    keep: list[float] | None
    sources: list[str] | None = Field(alias="from")


class SamplingReply(Model):
    rounds: int
    schedule: str
    temperature: float
    cooling: str
    top_k: int
    top_p: float
    guidance: float
    draws: int
    seed: int


class GeneratedItem(Model):
    id: str | None
    file: str | None
    ra: float | None
    dec: float | None
    status: Literal["ok", "degraded", "error"]
    tokens: list[list[int]] | None = Field(description="of each draw; null if the object failed")
    values: ValuesReply | None = Field(description="what the tokens stand for: numbers (draws, ...) in `target.unit`")
    modalities_used: list[str] = Field(description="what the draws rest on")
    n_tokens: int = Field(description="tokens that the encoder read for it, in all rounds of all draws")
    qa_flags: list[str]
    warnings: list[Trouble]
    error: Trouble | None


class GenerateReply(TokenEnvelope):
    target: TargetReply
    known: KnownReply
    sampling: SamplingReply
    items: list[GeneratedItem]
