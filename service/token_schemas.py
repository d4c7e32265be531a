"""What goes in and out of the HTTP doors of tokens and of what the service says of itself."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from albireo.service.schemas import Item, Model, Reading, TermOptions, Trouble
from albireo.service.tickets import Priority


class TokenizeOptions(TermOptions):
    in_query: ClassVar = {
        **TermOptions.terms_in_query,
        "join": {"type": "boolean"},
        "deadline_ms": {"type": "number"},
        "priority": {"enum": ["interactive", "bulk"]},
    }

    join: bool = Field(default=False, description="objects of the same id in several files are one object")
    deadline_ms: float | None = Field(
        default=None, gt=0, description="milliseconds after which the answer is of no use: 504, and nothing is computed"
    )
    priority: Priority = Field(default="interactive", description="bulk waits for interactive requests")
    read: Reading | None = Field(default=None, description="what the files do not say")


class TokenizeRequest(Model):
    """Objects as for /v1/embed."""

    model: str | None = Field(default=None, description="refused unless it names the model that is loaded")
    items: list[Item] = Field(default=[])
    options: TokenizeOptions = TokenizeOptions()


class TokenItem(Model):
    """Tokens of one object, as /v1/tokenize gives them."""

    id: str | None = Field(default=None, min_length=1, max_length=512)
    tokens: dict[str, list[int]] = Field(description="modality, by its name or its token key -> ids")


class DetokenizeOptions(Model):
    encoding: Literal["float", "base64"] = Field(
        default="float", description="base64: little-endian float32, row-major"
    )
    deadline_ms: float | None = Field(default=None, gt=0, description="milliseconds after which it is of no use: 504")
    priority: Priority = Field(default="interactive", description="bulk waits for interactive requests")


class DetokenizeRequest(Model):
    model: str | None = Field(default=None, description="refused unless it names the model that is loaded")
    codecs: dict[str, str] = Field(
        default={}, description="codec of each modality as /v1/tokenize states it; 409 if it is not the one here"
    )
    items: list[TokenItem] = Field(min_length=1)
    options: DetokenizeOptions = DetokenizeOptions()


class QuantiserReply(Model):
    key: str
    codec: str = Field(description="fingerprint of what decides the tokens")
    n_tokens: int = Field(description="tokens of one object; of a catalog, which may have fewer, the most")
    vocabulary: int = Field(description="number of different tokens, which count from 0")
    grid: list[int] = Field(description="(height, width) of the tokens of an object; row 0 is the bottom of a picture")
    dtype: Literal["uint16", "uint32"] = Field(description="of the ids in npz and raw answers")


class TokenizedItem(Model):
    id: str | None
    file: str | None
    ra: float | None
    dec: float | None
    status: Literal["ok", "degraded", "error"]
    tokens: dict[str, list[int]] | None = Field(description="by name of the modality; null if the object failed")
    n_tokens: int
    qa_flags: list[str]
    warnings: list[Trouble]
    error: Trouble | None


class TokenEnvelope(Model):
    model: str
    checkpoint: str = Field(description="the identity of the model, as in the name of an embedding space")
    dtype: str
    compute: str
    device: str
    tokens: str = Field(description="what the networks of the tokenizers computed in")
    timings_ms: dict[str, float]
    usage: dict[str, int]
    request_id: str


class TokenizeReply(TokenEnvelope):
    quantisers: dict[str, QuantiserReply] = Field(description="by name of the modality, of those in the answer")
    items: list[TokenizedItem]


class ValuesReply(Model):
    shape: list[int]
    values: list[Any] | str = Field(description="nested lists, null where a token stands for no number; or base64")


class DecodedModality(Model):
    key: str
    unit: str
    axes: list[str]
    bands: list[str]
    wavelength: list[float] | None = Field(description="Angstrom, vacuum; of spectra")
    pixel_scale: float | None = Field(description="arcsec")
    codec: str


class DecodedItem(Model):
    id: str | None
    status: Literal["ok", "error"]
    values: dict[str, ValuesReply] = Field(description="by name of the modality")
    error: Trouble | None


class DetokenizeReply(TokenEnvelope):
    modalities: dict[str, DecodedModality] = Field(description="by name, of those in the answer")
    items: list[DecodedItem]


class ModalityReply(Model):
    modality: str
    key: str
    kind: str
    survey: str
    unit: str
    bands: list[str]
    shape: list[int | None] = Field(description="of one object; [] = one number, null = any length")
    pixel_scale: float | None
    aion: bool = Field(description="whether it is one of AION-1")
    read: bool = Field(description="whether the model that is loaded reads it")
    predicted: bool = Field(description="whether the model that is loaded predicts it")
    quantiser: QuantiserReply | None = Field(description="null if the model has no codec of it")


class ModalitiesReply(Model):
    model: str
    modalities: list[ModalityReply]
    request_id: str


class FormatReply(Model):
    name: str
    description: str


class FormatsReply(Model):
    formats: list[FormatReply] = Field(description="files that are read, in the order in which they are told apart")
    bodies: list[str] = Field(description="content types of a body")
    answers: dict[str, list[str]] = Field(description="operation -> media types that `Accept` may ask for")
    options: dict[str, str] = Field(description="reading option -> what it says that files may not say")
    request_id: str


class LimitsReply(Model):
    limits: dict[str, int | float]
    request_id: str


class ModelReply(Model):
    id: str = Field(description="name@fingerprint")
    name: str
    state: Literal["loaded"]
    fingerprint: str
    spaces: dict[str, str] = Field(description="by pooling")
    dim: int
    dtype: str
    compute: str
    device: str
    tokens: str
    inputs: dict[str, int] = Field(description="modality -> tokens of one object")
    outputs: dict[str, int]
    heads: list[str]
    seconds_to_drain: float = Field(description="seconds of work that wait for it")


class ModelsReply(Model):
    models: list[ModelReply]
    request_id: str
