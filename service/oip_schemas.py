"""What the REST door of the Open Inference Protocol takes and gives as JSON."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from albireo.service.oip_tensors import Value

Parameters = dict[str, Value]


class OipModel(BaseModel):
    """Types as they are written: a number is no text, 1 is not true. What is not described is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class OipError(OipModel):
    """Why a request failed."""

    error: str


class ServerLive(OipModel):
    """The process answers."""

    live: bool


class ServerReady(OipModel):
    """A known observation just got its known embedding."""

    ready: bool


class ServerMetadata(OipModel):
    """Of the server."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(OipModel):
    """Of a tensor; -1 is any length."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(OipModel):
    """Of a model. `properties` say what tensors cannot: units, bands, classes, parameters of a request."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    properties: dict[str, str]


class ModelReady(OipModel):
    """The model can be asked."""

    name: str
    ready: bool


class ConfigTensor(OipModel):
    """Of a tensor, without the axis of rows."""

    name: str
    data_type: str
    dims: list[int]
    optional: bool = False


class ModelConfig(OipModel):
    """A model in the words of Triton's model configuration."""

    name: str
    platform: str
    max_batch_size: int
    input: list[ConfigTensor]
    output: list[ConfigTensor]


class IndexRequest(OipModel):
    """Which models to list: all, or only those that are ready."""

    ready: bool = False


class IndexEntry(OipModel):
    """One model; `state` is READY or UNAVAILABLE."""

    name: str
    version: str
    state: str
    reason: str


class RequestInput(OipModel):
    """A tensor: `data`, flat or nested, or as many bytes behind the JSON as the parameter `binary_data_size` says."""

    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters = Field(default_factory=dict)
    data: list[Any] | None = None


class RequestOutput(OipModel):
    """A tensor that is asked for; the parameter `binary_data` says in which form."""

    name: str
    parameters: Parameters = Field(default_factory=dict)


class InferenceRequest(OipModel):
    """A request. The parameter `binary_data_output` asks for every output in binary form."""

    inputs: list[RequestInput]
    outputs: list[RequestOutput] = Field(default_factory=list)
    parameters: Parameters = Field(default_factory=dict)
    id: str = ""
    model_name: str | None = Field(default=None, description="if given, that of the address")


class ResponseOutput(OipModel):
    """A tensor: `data`, flat, or as many bytes behind the JSON as the parameter `binary_data_size` says."""

    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters
    data: list[Any] | None = None


class InferenceResponse(OipModel):
    """An answer, as JSON or, with outputs in binary form, as JSON and bytes."""

    model_name: str
    model_version: str
    id: str
    parameters: Parameters
    outputs: list[ResponseOutput]
