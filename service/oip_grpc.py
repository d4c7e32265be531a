"""The gRPC door of the Open Inference Protocol, version 2: `inference.GRPCInferenceService`.

Inference  the handlers, over the models
add        puts them into a gRPC server
POOL       where reflection finds the descriptors of the service: they are not in the pool that all libraries share
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, TypeVar

import grpc.aio

from albireo.observations.errors import AlbireoError, BadInput, NotFound, Unavailable
from albireo.service.grpc_calls import Call, Context, current
from albireo.service.oip import InferAnswer, Models, infer, model_config, model_metadata, refuse, server_metadata
from albireo.service.oip_models import InferRequest
from albireo.service.oip_tensors import Value, from_bytes, from_json, to_bytes
from albireo.service.protos.inference import open_inference_pb2 as messages
from albireo.service.protos.inference import open_inference_pb2_grpc as services
from albireo.service.readiness import Readiness
from albireo.service.settings import Settings
from albireo.service.tickets import Ticket
from albireo.service.watch import tally

Result = TypeVar("Result")

SERVICE = "inference.GRPCInferenceService"
POOL = messages.DESCRIPTOR.pool

CONTENTS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
"""Datatype -> the list of `InferTensorContents` that holds it. FP16 has none."""

FINAL = "triton_enable_empty_final_response"
"""Parameter of a request in a stream: its answer says that it is the last one to it, as every answer here is."""


class Inference(services.GRPCInferenceServiceServicer):
    """The handlers, inside what `grpc_calls.Calls` does around every call."""

    def __init__(self, models: Models, settings: Settings, readiness: Readiness) -> None:
        self.models = models
        self.settings = settings
        self.readiness = readiness

    async def ServerLive(self, request: messages.ServerLiveRequest, context: Context) -> messages.ServerLiveResponse:
        return messages.ServerLiveResponse(live=True)

    async def ServerReady(self, request: messages.ServerReadyRequest, context: Context) -> messages.ServerReadyResponse:
        return messages.ServerReadyResponse(ready=await self._ready())

    async def ModelReady(self, request: messages.ModelReadyRequest, context: Context) -> messages.ModelReadyResponse:
        try:
            error = await current().work(self.models.unready, request.name, request.version)
        except NotFound as unknown:
            error = unknown
        return messages.ModelReadyResponse(ready=error is None and await self._ready())

    async def ServerMetadata(
        self, request: messages.ServerMetadataRequest, context: Context
    ) -> messages.ServerMetadataResponse:
        return messages.ServerMetadataResponse(**server_metadata())

    async def ModelMetadata(
        self, request: messages.ModelMetadataRequest, context: Context
    ) -> messages.ModelMetadataResponse:
        model = await _told(current(), self.models.get, request.name, request.version)
        return messages.ModelMetadataResponse(**model_metadata(model))

    async def ModelConfig(self, request: messages.ModelConfigRequest, context: Context) -> messages.ModelConfigResponse:
        model = await _told(current(), self.models.get, request.name, request.version)
        about = model_config(model, self.settings.max_items)
        return messages.ModelConfigResponse(config=messages.ModelConfig(**about))

    async def RepositoryIndex(
        self, request: messages.RepositoryIndexRequest, context: Context
    ) -> messages.RepositoryIndexResponse:
        rows = await _told(current(), lambda: list(self.models.index()))
        wanted = [row for row in rows if row["state"] == "READY" or not request.ready]
        listed = [messages.RepositoryIndexResponse.ModelIndex(**row) for row in wanted]
        return messages.RepositoryIndexResponse(models=listed)

    async def ModelInfer(self, request: messages.ModelInferRequest, context: Context) -> messages.ModelInferResponse:
        return await _told(current(), self._infer, request, current().ticket)

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[messages.ModelInferRequest], context: Context
    ) -> AsyncIterator[messages.ModelStreamInferResponse]:
        stream = current()
        async for request in request_iterator:
            final = request.parameters.pop(FINAL).bool_param if FINAL in request.parameters else False
            try:
                async with stream.window(request.ByteSize()) as call:
                    answer = await _told(call, self._infer, request, call.ticket)
            except AlbireoError as error:
                about = messages.ModelInferResponse(model_name=request.model_name, id=request.id)
                yield messages.ModelStreamInferResponse(error_message=error.message, infer_response=about)
                continue
            if final:
                answer.parameters["triton_final_response"].bool_param = True
            yield messages.ModelStreamInferResponse(infer_response=answer)

    def _infer(self, message: messages.ModelInferRequest, ticket: Ticket) -> messages.ModelInferResponse:
        with tally().timings.stage("parse"):
            request = request_of(message)
        answer = infer(self.models, request, ticket, self.settings.max_items)
        with tally().timings.stage("serialize"):
            return message_of(answer)

    async def _ready(self) -> bool:
        return (await current().work(self.readiness.report)).ready


async def _told(call: Call, function: Callable[..., Result], *args: Any) -> Result:
    """What a function computes. Clients of the protocol show the message of an error and nothing else: it says all."""
    try:
        return await call.work(function, *args)
    except Unavailable:
        raise
    except AlbireoError as error:
        about = {"file": error.file, "field": error.field, "fix": error.fix}
        raise type(error)(error.code, str(error), **about) from error


def add(server: grpc.aio.Server, models: Models, settings: Settings, readiness: Readiness) -> str:
    """Serve the protocol at a server; the name of the service."""
    services.add_GRPCInferenceServiceServicer_to_server(Inference(models, settings, readiness), server)
    return SERVICE


def request_of(message: messages.ModelInferRequest) -> InferRequest:
    """A message as a request. BadInput if its tensors are not what it says they are."""
    raw = message.raw_input_contents
    if raw and (len(raw) != len(message.inputs) or any(one.HasField("contents") for one in message.inputs)):
        told = f"{len(raw)} raw contents for {len(message.inputs)} inputs"
        raise BadInput("request_invalid", told, field="raw_input_contents", fix="one for each input, or none at all")
    inputs = []
    for n, one in enumerate(message.inputs):
        refuse(_values(one.parameters), one.name)
        if raw:
            inputs.append(from_bytes(one.name, one.datatype, one.shape, raw[n]))
        else:
            inputs.append(from_json(one.name, one.datatype, one.shape, _listed(one)))
    for output in message.outputs:
        refuse(_values(output.parameters), output.name)
    return InferRequest(
        message.model_name,
        inputs,
        _values(message.parameters),
        tuple(output.name for output in message.outputs),
        message.model_version,
        message.id,
    )


def message_of(answer: InferAnswer) -> messages.ModelInferResponse:
    """An answer as a message, its tensors raw."""
    message = messages.ModelInferResponse(
        model_name=answer.model, model_version=answer.version, id=answer.id, parameters=_parameters(answer.parameters)
    )
    for tensor in answer.outputs:
        message.outputs.add(
            name=tensor.name,
            datatype=tensor.datatype,
            shape=tensor.values.shape,
            parameters=_parameters(tensor.parameters),
        )
        message.raw_output_contents.append(to_bytes(tensor))
    return message


def _listed(one: messages.ModelInferRequest.InferInputTensor) -> list[Any]:
    """The numbers of a tensor that is not raw."""
    given = [field.name for field, _ in one.contents.ListFields()]
    wanted = CONTENTS.get(one.datatype)
    if wanted is not None and given not in ([], [wanted]):
        raise BadInput("request_invalid", f"{one.datatype} in {', '.join(given)}", field=one.name, fix=f"use {wanted}")
    return [] if wanted is None else list(getattr(one.contents, wanted))


def _values(parameters: Mapping[str, messages.InferParameter]) -> dict[str, Value]:
    out: dict[str, Value] = {}
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise BadInput("request_invalid", "a parameter without a value", field=name)
        out[name] = getattr(parameter, kind)
    return out


def _parameters(values: Mapping[str, Value]) -> dict[str, messages.InferParameter]:
    return {name: _parameter(value) for name, value in values.items()}


def _parameter(value: Value) -> messages.InferParameter:
    if isinstance(value, bool):
        return messages.InferParameter(bool_param=value)
    if isinstance(value, int):
        return messages.InferParameter(int64_param=value)
    if isinstance(value, float):
        return messages.InferParameter(double_param=value)
    return messages.InferParameter(string_param=value)
