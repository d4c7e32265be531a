"""The model repository for NVIDIA Triton, as far as it can be checked without that server."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from google.protobuf.json_format import MessageToJson
from tritonclient.grpc import model_config_pb2

from albireo.models.engine import Embedding, Tokens
from albireo.models.heads import Answer
from albireo.observations.observation import Spectrum
from albireo.service.core import Core
from albireo.service.oip import Models
from albireo.service.oip_models import Encoder
from albireo.service.readiness import probe
from albireo.service.settings import Settings
from albireo.service.triton_repository import CODE, write
from albireo.tokenizers.checkpoint import MINI

MODELS = Path(__file__).parent.parent.parent / "deploy" / "triton" / "models"
NAMES = sorted(path.name for path in MODELS.iterdir())


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Core:
    return Core.local(Settings(data_folder=tmp_path_factory.mktemp("triton")))


def configuration(name: str) -> Any:
    """The config.pbtxt of a model, by the protocol's own parser."""
    text = (MODELS / name / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


@pytest.mark.parametrize("name", NAMES)
def test_configurations_are_those_of_the_models(core: Core, name: str) -> None:
    config, model = configuration(name), Models(core).get(name)
    assert (config.name, config.backend, config.max_batch_size) == (name, "python", 64)
    assert not config.platform
    assert config.parameters["model"].string_value == MINI.name
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU

    def kind(data_type: int) -> str:
        named = model_config_pb2.DataType.Name(data_type).removeprefix("TYPE_")
        return "BYTES" if named == "STRING" else named

    inputs = [(one.name, kind(one.data_type), (-1, *one.dims), one.optional) for one in config.input]
    assert inputs == [(spec.name, spec.datatype, spec.shape, spec.optional) for spec in model.inputs]
    outputs = [(one.name, kind(one.data_type), (-1, *one.dims)) for one in config.output]
    known = [(spec.name, spec.datatype, spec.shape) for spec in model.outputs]
    assert outputs == (known[:1] if isinstance(model, Encoder) else known)
    assert all(one.dims for one in (*config.input, *config.output))


def test_the_repository_is_what_the_command_writes(core: Core, tmp_path: Path) -> None:
    names = write(tmp_path / "out", core, MINI.name)
    assert sorted(names) == NAMES
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert path.read_text() == (MODELS / path.relative_to(tmp_path / "out")).read_text(), path
    assert all((MODELS / name / "1" / "model.py").read_text() == CODE for name in NAMES)
    key = "albireo-mini-tokenizer-legacysurvey.flux_r"
    assert write(tmp_path / "gpu", core, MINI.name, [key], gpu=True) == [key]
    assert "KIND_GPU" in (tmp_path / "gpu" / key / "config.pbtxt").read_text()


class TritonTensor:
    """As `pb_utils.Tensor`."""

    def __init__(self, name: str, values: np.ndarray) -> None:
        assert values.dtype.type is not np.str_
        self._name, self._values = name, values

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._values


class TritonError:
    """As `pb_utils.TritonError`."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = 1) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class InferenceResponse:
    """As `pb_utils.InferenceResponse`: parameters are a flat dictionary of texts, numbers and truth values."""

    def __init__(
        self,
        output_tensors: list[TritonTensor],
        error: TritonError | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> None:
        assert all(isinstance(value, str | bool | int) for value in (parameters or {}).values())
        self._tensors, self._error, self._parameters = output_tensors, error, parameters or {}

    def output_tensors(self) -> list[TritonTensor]:
        return self._tensors

    def error(self) -> TritonError | None:
        return self._error

    def parameters(self) -> str:
        return json.dumps(self._parameters)


class InferenceRequest:
    """As `pb_utils.InferenceRequest`."""

    def __init__(
        self, tensors: dict[str, np.ndarray], outputs: list[str], parameters: str = "", cancelled: bool = False
    ) -> None:
        self._inputs = [TritonTensor(name, values) for name, values in tensors.items()]
        self._outputs, self._parameters, self._cancelled = outputs, parameters, cancelled

    def inputs(self) -> list[TritonTensor]:
        return self._inputs

    def requested_output_names(self) -> list[str]:
        return self._outputs

    def parameters(self) -> str:
        return self._parameters

    def request_id(self) -> str:
        return ""

    def is_cancelled(self) -> bool:
        return self._cancelled


def loaded(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[str]]:
    """The TritonPythonModel of a model as the server makes it, and the outputs of its configuration."""
    stand_in = ModuleType("triton_python_backend_utils")
    vars(stand_in).update(
        Tensor=TritonTensor,
        TritonError=TritonError,
        InferenceResponse=InferenceResponse,
        InferenceRequest=InferenceRequest,
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stand_in)
    spec = importlib.util.spec_from_file_location("model", MODELS / name / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model, config = module.TritonPythonModel(), configuration(name)
    model.initialize(
        {
            "model_config": MessageToJson(config, preserving_proto_field_name=True),
            "model_instance_kind": "CPU",
            "model_instance_device_id": "0",
            "model_repository": str(MODELS / name),
            "model_version": "1",
            "model_name": name,
        }
    )
    return model, [one.name for one in config.output]


def seen(core: Core) -> tuple[Spectrum, Tokens]:
    """A spectrum, and the tokens of it and of a flux."""
    observation = probe(["tok_spectrum_sdss", "tok_flux_r"])
    (tokens,) = core.engine.tokenize([observation])
    spectrum = observation.data["tok_spectrum_sdss"]
    assert isinstance(tokens, Tokens)
    assert isinstance(spectrum, Spectrum)
    return spectrum, tokens


def given(response: Any) -> dict[str, np.ndarray]:
    assert response.error() is None, response.error().message()
    return {one.name(): one.as_numpy() for one in response.output_tensors()}


def test_the_encoder(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    model, outputs = loaded("albireo-mini", monkeypatch)
    assert outputs == ["embedding"]
    _, tokens = seen(core)
    ids = {key: one[None] for key, one in tokens.ids.items()}
    flux = {"tok_flux_r": np.array([[5], [9]])}
    responses = model.execute(
        [
            InferenceRequest(ids, outputs),
            InferenceRequest({"tok_flux_r": np.array([[-1]])}, outputs),
            InferenceRequest(flux, outputs, json.dumps({"normalize": True})),
            InferenceRequest(flux, outputs, cancelled=True),
            InferenceRequest(flux, outputs),
        ]
    )
    (whole,) = core.embed_tokens([tokens])
    rows = [Tokens({"tok_flux_r": row}) for row in flux["tok_flux_r"]]
    assert isinstance(whole, Embedding)
    # A pass of other objects beside it rounds elsewhere; the numbers are the same within that.
    assert given(responses[0])["embedding"][0] == pytest.approx(whole.values, rel=1e-5, abs=1e-6)
    for response, normalize in ((responses[2], True), (responses[4], False)):
        wanted = [one.values for one in core.embed_tokens(rows, normalize=normalize) if isinstance(one, Embedding)]
        assert given(response)["embedding"] == pytest.approx(np.stack(wanted), rel=1e-5, abs=1e-6)
    said = json.loads(responses[0].parameters())
    assert said["embedding.space"] == core.engine.space("mean")
    for response, code, told in ((responses[1], "INVALID_ARG", "row 0"), (responses[3], "CANCELLED", "taken back")):
        assert response.error().code() == getattr(TritonError, code)
        assert told in response.error().message()
    model.finalize()


def test_a_tokenizer(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    model, outputs = loaded("albireo-mini-tokenizer-spectrum.sdss", monkeypatch)
    spectrum, tokens = seen(core)
    raw = {name: getattr(spectrum, name)[None] for name in ("flux", "ivar", "wavelength")}
    (response,) = model.execute([InferenceRequest(raw, outputs)])
    assert np.array_equal(given(response)["tok_spectrum_sdss"][0], tokens.ids["tok_spectrum_sdss"])
    assert given(response)["flags"].shape == (1, 1)
    model.finalize()


def test_a_head(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    model, outputs = loaded("head-redshift", monkeypatch)
    tokens = Tokens({"tok_flux_g": np.array([300]), "tok_flux_r": np.array([400])})
    (wanted,) = core.predict_tokens([tokens], core.shelf.open("redshift"))
    assert isinstance(wanted, Answer)
    assert wanted.density is not None
    (response,) = model.execute([InferenceRequest({key: one[None] for key, one in tokens.ids.items()}, outputs)])
    answer = given(response)
    assert sorted(answer) == sorted(outputs)
    assert answer["values"].tolist() == [[number.value for number in wanted.numbers]]
    assert np.array_equal(answer["density"][0], wanted.density.probability)
    assert answer["flags"].tolist() == [[",".join(wanted.flags).encode()]]
    model.finalize()
