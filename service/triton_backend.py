"""For NVIDIA Triton's Python backend: a model of the Open Inference Protocol, in a process of Triton's.

TritonPythonModel  what the server loads from the `model.py` of its model repository (deploy/triton)

The rows of the requests that Triton's batcher gathers are computed together; a bad one fails its request alone.
"""

from __future__ import annotations

import importlib
import json
from typing import Any

from albireo.observations.errors import AlbireoError
from albireo.service.core import Core
from albireo.service.oip import InferAnswer, Models, infer_all
from albireo.service.oip_models import InferRequest
from albireo.service.oip_tensors import DATATYPES, Tensor
from albireo.service.problems import grpc_status_of
from albireo.service.settings import read_settings

CODES = {
    "INVALID_ARGUMENT": "INVALID_ARG",
    "FAILED_PRECONDITION": "INVALID_ARG",
    "NOT_FOUND": "NOT_FOUND",
    "UNAVAILABLE": "UNAVAILABLE",
    "RESOURCE_EXHAUSTED": "UNAVAILABLE",
    "CANCELLED": "CANCELLED",
}
"""Name of a gRPC status -> that of the code of a TritonError; all others are INTERNAL."""


class TritonPythonModel:
    """One model. Which one its name says; the checkpoint is the parameter `model` of its configuration."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the engine. `args` are Triton's, all text.

        Settings are those of a service (docs/settings.md), but for the checkpoint and the device, which Triton knows.
        """
        self.pb_utils: Any = importlib.import_module("triton_python_backend_utils")  # there is one only inside Triton
        config = json.loads(args["model_config"])
        stated = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        on_gpu = args["model_instance_kind"] == "GPU"
        device = f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu"
        settings = read_settings()
        settings = settings.model_copy(update={"model": stated.get("model", settings.model), "device": device})
        self.max_rows = settings.max_items
        self.core = Core.local(settings)
        self.model = Models(self.core).get(args["model_name"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response to each request, in order."""
        responses: list[Any] = [None] * len(requests)
        read: dict[int, InferRequest] = {}
        for n, request in enumerate(requests):
            if request.is_cancelled():
                responses[n] = self._failed("the request was taken back", "CANCELLED")
            else:
                read[n] = self._read(request)
        for n, answer in zip(read, infer_all(self.core, self.model, list(read.values()), self.max_rows), strict=True):
            if isinstance(answer, AlbireoError):
                responses[n] = self._failed(str(answer), CODES.get(grpc_status_of(answer), "INTERNAL"))
            else:
                responses[n] = self._written(answer)
        return responses

    def finalize(self) -> None:
        """Triton unloads the model."""
        self.core.close()

    def _read(self, request: Any) -> InferRequest:
        inputs = []
        for one in request.inputs():
            values = one.as_numpy()
            datatype = next((name for name, kind in DATATYPES.items() if kind == values.dtype), "BYTES")
            inputs.append(Tensor(one.name(), datatype, values))
        parameters = json.loads(request.parameters() or "{}")
        outputs = tuple(request.requested_output_names())
        return InferRequest(self.model.name, inputs, parameters, outputs, id=request.request_id())

    def _written(self, answer: InferAnswer) -> Any:
        """A response; what an answer says of one tensor becomes a parameter of the response."""
        tensors = [self.pb_utils.Tensor(one.name, one.values) for one in answer.outputs]
        of_tensors = {f"{one.name}.{name}": value for one in answer.outputs for name, value in one.parameters.items()}
        said = {**answer.parameters, **of_tensors}
        kept = {name: value for name, value in said.items() if not isinstance(value, float)}
        return self.pb_utils.InferenceResponse(output_tensors=tensors, parameters=kept)

    def _failed(self, message: str, code: str) -> Any:
        error = self.pb_utils.TritonError(message, getattr(self.pb_utils.TritonError, code))
        return self.pb_utils.InferenceResponse(output_tensors=[], error=error)
