"""The Open Inference Protocol through a stock `tritonclient`, over HTTP and over gRPC, to servers that listen."""

from __future__ import annotations

import gzip
import json
import queue
import socket
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import uvicorn
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from albireo.index.collection import Collections
from albireo.models.engine import Embedding, Tokens
from albireo.models.heads import Answer
from albireo.observations.errors import BadInput
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Image, Observation, Scalar, Spectrum
from albireo.service.app import create_app
from albireo.service.core import Core
from albireo.service.oip import schedule
from albireo.service.oip_tensors import Tensor, to_json
from albireo.service.protos.inference import open_inference_pb2 as ours
from albireo.service.readiness import Readiness, probe
from albireo.service.settings import Settings
from albireo.service.shelf import Shelf
from albireo.service.tickets import Ticket
from albireo.tokenizers.checkpoint import MINI
from tests.service.conftest import ToyEngine

Tensors = Mapping[str, np.ndarray]


@dataclass
class Served:
    """A service that listens: its addresses, and what is behind them."""

    rest: str
    grpc: str
    core: Core
    engine: Any


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def serving(core: Core, settings: Settings) -> Iterator[Served]:
    """The app in uvicorn, with its gRPC door, in a thread of its own."""
    settings = settings.model_copy(update={"grpc_port": free_port()})
    readiness = Readiness(core, settings.data_folder, fresh_seconds=0.0, wait_seconds=20.0)
    server = uvicorn.Server(uvicorn.Config(create_app(core, settings, readiness), log_level="critical"))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            while not server.started:
                thread.join(0.01)
                assert thread.is_alive()
            readiness.start().join(60)  # what is computed beside may be summed in another order
            yield Served(
                f"127.0.0.1:{listening.getsockname()[1]}", f"127.0.0.1:{settings.grpc_port}", core, core.engine
            )
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def toy_core(engine: ToyEngine, settings: Settings) -> Core:
    return Core(lambda: engine, lambda: Collections(settings.collections_file), shelf=lambda: Shelf({}))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("oip")
    settings = Settings(data_folder=folder, model=str(folder), max_body_bytes=4 << 20, max_items=50)
    with serving(toy_core(ToyEngine(), settings), settings) as served:
        yield served


@dataclass
class Door:
    """A stock client of one of the doors."""

    api: ModuleType
    client: Any

    def ask(
        self, model: str, tensors: Tensors, *outputs: str, parameters: dict[str, Any] | None = None, **more: Any
    ) -> Any:
        inputs = []
        for name, values in tensors.items():
            inputs.append(self.api.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype)))
            inputs[-1].set_data_from_numpy(values)
        wanted = [self.api.InferRequestedOutput(name) for name in outputs] or None
        return self.client.infer(model, inputs, outputs=wanted, parameters=parameters, **more)

    def refused(self, *args: Any, **more: Any) -> str:
        """What the client says of a request that is refused."""
        with pytest.raises(InferenceServerException) as refusal:
            self.ask(*args, **more)
        return f"{refusal.value.status()} {refusal.value.message()}"

    def said(self, result: Any, output: str | None = None) -> dict[str, Any]:
        """The parameters of an answer, or of one of its tensors."""
        whole = result.get_response() if output is None else result.get_output(output)
        if isinstance(whole, dict):
            return dict(whole.get("parameters", {}))
        return {name: getattr(one, one.WhichOneof("parameter_choice")) for name, one in whole.parameters.items()}


def door_to(served: Served, kind: str) -> Door:
    if kind == "http":
        return Door(triton_http, triton_http.InferenceServerClient(served.rest, network_timeout=30.0))
    return Door(triton_grpc, triton_grpc.InferenceServerClient(served.grpc))


@pytest.fixture(params=["http", "grpc"])
def door(toy: Served, request: pytest.FixtureRequest) -> Iterator[Door]:
    made = door_to(toy, request.param)
    yield made
    made.client.close()


def plain(about: Any) -> dict[str, Any]:
    """What a client says of a model, whichever door it came through."""
    if isinstance(about, dict):
        return about
    tensors = {
        which: [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in getattr(about, which)]
        for which in ("inputs", "outputs")
    }
    return {"name": about.name, "versions": list(about.versions), "platform": about.platform, **tensors}


IMAGE = np.arange(8).reshape(2, 4)
FLUX = np.array([[3], [7]])
BOTH = {"tok_image": IMAGE, "tok_flux_r": FLUX}
TOKENS = [Tokens({"tok_image": IMAGE[i], "tok_flux_r": FLUX[i]}) for i in (0, 1)]


def stacked(results: list[Any]) -> np.ndarray:
    assert all(isinstance(one, Embedding) for one in results), results
    return np.stack([one.values for one in results])


def test_the_server_and_its_models(door: Door) -> None:
    client = door.client
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("toy")
    assert client.is_model_ready("toy", "1")
    assert client.is_model_ready("head-tok_z")
    assert not client.is_model_ready("nothing")
    assert not client.is_model_ready("toy", "2")
    about = client.get_server_metadata()
    extensions = about["extensions"] if isinstance(about, dict) else about.extensions
    assert "binary_tensor_data" in extensions
    assert not {"sequence", "classification", "system_shared_memory"} & set(extensions)


def test_what_a_model_takes_and_gives(door: Door) -> None:
    toy = plain(door.client.get_model_metadata("toy"))
    assert toy["versions"] == ["1"]
    assert {"name": "tok_image", "datatype": "INT64", "shape": [-1, 4]} in toy["inputs"]
    assert {"name": "tok_image.mask", "datatype": "BOOL", "shape": [-1, 4]} in toy["inputs"]
    assert {"name": "embedding", "datatype": "FP32", "shape": [-1, 16]} in toy["outputs"]
    tokenizer = plain(door.client.get_model_metadata("toy-tokenizer-image.legacysurvey"))
    assert {"name": "flux", "datatype": "FP32", "shape": [-1, -1, 96, 96]} in tokenizer["inputs"]
    assert {"name": "tok_image", "datatype": "INT64", "shape": [-1, 4]} in tokenizer["outputs"]
    head = plain(door.client.get_model_metadata("head-tok_z", "1"))
    assert {"name": "values", "datatype": "FP64", "shape": [-1, 1]} in head["outputs"]
    with pytest.raises(InferenceServerException, match="no model is called 'tok_image'"):
        door.client.get_model_metadata("tok_image")


def test_metadata_says_what_tensors_cannot(toy: Served) -> None:
    said = httpx.get(f"http://{toy.rest}/v2/models/toy-tokenizer-image.legacysurvey").json()["properties"]
    assert said["bands"] == "DES-G,DES-R,DES-I,DES-Z"
    assert (said["unit"], said["pixel_scale"]) == ("nanomaggy", "0.262")
    said = httpx.get(f"http://{toy.rest}/v2/models/head-tok_z").json()["properties"]
    assert "never set here" in said["flags"]
    client = triton_grpc.InferenceServerClient(toy.grpc)
    raw = client.get_model_metadata("head-tok_z").SerializeToString()
    assert dict(ours.ModelMetadataResponse.FromString(raw).properties) == said
    client.close()


def test_the_configuration_and_the_list_of_models(door: Door) -> None:
    config = door.client.get_model_config("toy")
    config = config if isinstance(config, dict) else door.client.get_model_config("toy", as_json=True)["config"]
    assert config["max_batch_size"] == 50
    (image,) = [one for one in config["input"] if one["name"] == "tok_image"]
    assert (image["data_type"], [int(n) for n in image["dims"]], image["optional"]) == ("TYPE_INT64", [4], True)
    index = door.client.get_model_repository_index()
    index = index if isinstance(index, list) else door.client.get_model_repository_index(as_json=True)["models"]
    assert {row["name"]: row["state"] for row in index} == {
        "toy": "READY",
        "toy-tokenizer-image.legacysurvey": "READY",
        "toy-tokenizer-spectrum.sdss": "READY",
        "toy-tokenizer-legacysurvey.flux_g": "READY",
        "toy-tokenizer-legacysurvey.flux_r": "READY",
        "head-tok_z": "READY",
    }


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint16])
def test_embeddings_are_those_of_the_core(door: Door, toy: Served, kind: type) -> None:
    result = door.ask("toy", {name: ids.astype(kind) for name, ids in BOTH.items()}, request_id="7")
    assert np.array_equal(result.as_numpy("embedding"), stacked(toy.core.embed_tokens(TOKENS)))
    assert door.said(result, "embedding")["space"] == "toy@0123456789ab:mean"
    assert door.said(result)["dtype"] == "float32"
    answer = result.get_response()
    assert (answer["id"] if isinstance(answer, dict) else answer.id) == "7"


def test_poolings_are_outputs(door: Door, toy: Served) -> None:
    result = door.ask("toy", BOTH, "tokens", "mean_per_modality", parameters={"normalize": True})
    for name in ("tokens", "mean_per_modality"):
        wanted = stacked(toy.core.embed_tokens(TOKENS, name, normalize=True))
        assert np.array_equal(result.as_numpy(name), wanted)
        assert door.said(result, name)["space"] == f"toy@0123456789ab:{name}:l2"
    assert door.said(result, "tokens")["axis"] == "tok_image:4,tok_flux_r:1"
    assert door.said(result, "mean_per_modality")["axis"] == "tok_image,tok_flux_r"
    by_parameter = door.ask("toy", BOTH, parameters={"pooling": "tokens", "normalize": True})
    assert np.array_equal(by_parameter.as_numpy("tokens"), result.as_numpy("tokens"))
    assert by_parameter.as_numpy("embedding") is None


def test_a_mask_leaves_tokens_out_of_single_rows(door: Door, toy: Served) -> None:
    mask = np.array([[False, True, True, False], [True] * 4])
    result = door.ask("toy", BOTH | {"tok_image.mask": mask})
    tokens = [
        Tokens({"tok_image": IMAGE[0], "tok_flux_r": FLUX[0]}, {"tok_image": mask[0]}),
        Tokens({"tok_flux_r": FLUX[1]}),
    ]
    assert np.array_equal(result.as_numpy("embedding"), stacked(toy.core.embed_tokens(tokens)))
    told = door.refused("toy", BOTH | {"tok_image.mask": mask}, "mean_per_modality")
    assert "row 1 has not the same modalities as row 0" in told


def payloads() -> tuple[dict[str, Tensors], dict[str, list[Any]]]:
    """Raw tensors by modality, and the same as payloads."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 3, 96, 96)).astype(np.float32)
    spectrum = rng.normal(size=(2, 30)).astype(np.float32)
    wavelength = np.tile(np.linspace(4000, 5000, 30), (2, 1))
    bad = rng.random((2, 30)) < 0.1
    tensors: dict[str, Tensors] = {
        "tok_image": {"flux": image, "mask": np.zeros(image.shape, bool)},
        "tok_spectrum_sdss": {"flux": spectrum, "ivar": abs(spectrum), "wavelength": wavelength, "mask": bad},
        "tok_flux_r": {"value": np.array([[1.5], [2.5]], np.float32)},
    }
    bands, unit = ("DES-G", "DES-R", "DES-Z"), MODALITIES["tok_spectrum_sdss"].unit
    mask = np.zeros(image.shape[1:], bool)
    rows: dict[str, list[Any]] = {
        "tok_image": [Image(one, bands, 0.262, "nanomaggy", 22.5, mask, ()) for one in image],
        "tok_spectrum_sdss": [
            Spectrum(wavelength[i], spectrum[i], abs(spectrum[i]), bad[i], unit, "heliocentric") for i in (0, 1)
        ],
        "tok_flux_r": [Scalar(1.5, "nanomaggy"), Scalar(2.5, "nanomaggy")],
    }
    return tensors, rows


@pytest.mark.parametrize("key", ["tok_image", "tok_spectrum_sdss", "tok_flux_r"])
def test_raw_tensors_become_tokens_that_the_encoder_takes(door: Door, toy: Served, key: str) -> None:
    tensors, rows = payloads()
    parameters = {"bands": "DES-G,DES-R,DES-Z", "pixel_scale": 0.262} if key == "tok_image" else None
    model = f"toy-tokenizer-{MODALITIES[key].name}"
    result = door.ask(model, tensors[key], parameters=parameters)
    wanted = toy.core.engine.tokenize([Observation(str(i), {key: row}) for i, row in enumerate(rows[key])])
    assert np.array_equal(result.as_numpy(key), np.stack([one.ids[key] for one in wanted]))
    assert result.as_numpy("flags").tolist() == [[b"toy"], [b"toy"]]
    embedded = door.ask("toy", {key: result.as_numpy(key)})
    assert np.array_equal(embedded.as_numpy("embedding"), stacked(toy.core.embed_tokens(wanted)))


def test_a_head(door: Door, toy: Served) -> None:
    result = door.ask("head-tok_z", BOTH)
    wanted = toy.core.predict_tokens(TOKENS, toy.core.shelf.open("tok_z"))
    check_numbers(result, wanted)
    assert result.as_numpy("edges").shape == (2, 17)
    assert door.said(result, "intervals")["levels"] == "0.68,0.95"
    assert door.said(result, "values")["space"] == "toy@0123456789ab:tokens"
    only = door.ask("head-tok_z", BOTH, "flags")
    assert only.as_numpy("values") is None


def check_numbers(result: Any, wanted: list[Any]) -> None:
    """An answer of a head of numbers is what the core says."""
    assert all(isinstance(one, Answer) for one in wanted), wanted
    for i, one in enumerate(wanted):
        numbers = one.numbers
        assert result.as_numpy("values")[i].tolist() == [number.value for number in numbers]
        assert result.as_numpy("intervals")[i].tolist() == [
            [list(limits) for limits in number.intervals.values()] for number in numbers
        ]
        assert result.as_numpy("flags")[i, 0].decode() == ",".join(one.flags)
        if one.density is not None:
            assert np.array_equal(result.as_numpy("density")[i], one.density.probability)
            assert np.array_equal(result.as_numpy("edges")[i], one.density.edges)


SCALAR = {"value": np.array([[1.0], [3e6], [2e6]], np.float32)}
LONG = np.zeros((51, 1), np.int64)
OF_FLUX, OF_IMAGE = "toy-tokenizer-legacysurvey.flux_r", "toy-tokenizer-image.legacysurvey"


@pytest.mark.parametrize(
    ("model", "tensors", "outputs", "parameters", "status", "told"),
    [
        ("toy", {"tok_image": IMAGE.astype(np.int16)}, (), None, "400", "tok_image: datatype INT16"),
        ("toy", {"tok_image": IMAGE.astype(np.float32)}, (), None, "400", "tok_image: datatype FP32"),
        ("toy", {"tok_image": np.zeros((2, 5), int)}, (), None, "400", "tok_image: shape [2, 5]"),
        ("toy", {"tok_image": np.zeros(4, int)}, (), None, "400", "tok_image: shape [4]"),
        ("toy", {"tok_z": FLUX}, (), None, "400", "no input 'tok_z'"),
        ("toy", {"tok_flux_r": FLUX, "tok_image": IMAGE[:1]}, (), None, "400", "tensors of [1, 2] rows"),
        ("toy", {"tok_flux_r": LONG[:0]}, (), None, "400", "no row was sent"),
        ("toy", {"tok_flux_r": LONG}, (), None, "413", "51 rows, the limit is 50"),
        ("toy", {"tok_image.mask": IMAGE > 3}, (), None, "400", "a mask without its tokens"),
        ("toy", BOTH, ("nothing",), None, "400", "no output 'nothing'"),
        ("toy", BOTH, ("tokens", "tokens"), None, "400", "asked for twice"),
        ("toy", BOTH, ("tokens",), {"pooling": "mean"}, "400", "pooling 'mean', but tokens is asked for"),
        ("toy", BOTH, (), {"pooling": "max"}, "400", "pooling 'max'"),
        ("toy", BOTH, (), {"normalize": "yes"}, "400", "normalize 'yes'"),
        ("toy", BOTH, (), {"temperature": 1}, "400", "temperature: no such parameter"),
        (OF_FLUX, SCALAR, (), None, "400", "row 1: brighter than 1e6 (and 1 more of 3 rows)"),
        (OF_FLUX, {"value": FLUX / 1.0}, (), {"unit": "mag"}, "400", "unit 'mag'"),
        (OF_FLUX, {"value": FLUX}, (), None, "400", "value: datatype INT64"),
        (OF_IMAGE, {"flux": np.zeros((1, 4, 64, 64), np.float32)}, (), None, "400", "flux: shape [1, 4, 64, 64]"),
        (OF_IMAGE, {"flux": np.zeros((1, 3, 96, 96), np.float32)}, (), None, "400", "row 0: 3 planes"),
        (OF_IMAGE, {"mask": np.zeros((1, 4, 96, 96), bool)}, (), None, "400", "an input is missing"),
        ("head-tok_z", BOTH, (), {"prior": "flat"}, "400", "prior: no such parameter"),
        ("head-nothing", BOTH, (), None, "404", "no model is called 'head-nothing'"),
    ],
)  # fmt: skip
def test_what_cannot_be_computed_is_refused(
    door: Door, model: str, tensors: Tensors, outputs: tuple[str, ...], parameters: Any, status: str, told: str
) -> None:
    statuses = {"400": "INVALID_ARGUMENT", "404": "NOT_FOUND", "413": "INVALID_ARGUMENT"}
    wanted = status if door.api is triton_http else f"StatusCode.{statuses[status]}"
    answer = door.refused(model, tensors, *outputs, parameters=parameters)
    assert answer.startswith(wanted)
    assert told in answer


def test_conventions_that_differ_are_refused(door: Door) -> None:
    flux = {"flux": np.zeros((1, 4, 96, 96), np.float32)}
    for parameters, told in (
        ({"pixel_scale": 0.168}, "0.168 arcsec per pixel, image.legacysurvey has 0.262"),
        ({"bands": "g,r,i,z"}, "no band 'g'"),
        ({"bands": "DES-G,DES-G,DES-R,DES-I"}, "4 planes, bands DES-G, DES-G"),
        ({"unit": "Jy"}, "unit 'Jy', image.legacysurvey is read in 'nanomaggy'"),
    ):
        assert told in door.refused("toy-tokenizer-image.legacysurvey", flux, parameters=parameters)
    spectrum = {name: np.ones((1, 9), np.float32) for name in ("flux", "ivar", "wavelength")}
    told = door.refused("toy-tokenizer-spectrum.sdss", spectrum, parameters={"medium": "air"})
    assert "medium 'air', spectrum.sdss is read in 'vacuum'" in told


def test_extensions_that_are_not_served_are_named(door: Door) -> None:
    assert "the extension for sequences is not served" in door.refused("toy", BOTH, sequence_id=3)
    given = door.api.InferInput("tok_image", [2, 4], "INT64")
    given.set_shared_memory("region", 64)
    with pytest.raises(InferenceServerException, match="the extension for shared memory is not served"):
        door.client.infer("toy", [given])
    given.set_data_from_numpy(IMAGE)
    wanted = door.api.InferRequestedOutput("embedding", class_count=2)
    with pytest.raises(InferenceServerException, match="the extension for classification is not served"):
        door.client.infer("toy", [given], outputs=[wanted])
    wanted = door.api.InferRequestedOutput("embedding")
    wanted.set_shared_memory("region", 64)
    with pytest.raises(InferenceServerException, match="the extension for shared memory is not served"):
        door.client.infer("toy", [given], outputs=[wanted])
    refused = "statistics is not served" if door.api is triton_http else "Method not found|UNIMPLEMENTED"
    with pytest.raises(InferenceServerException, match=refused):
        door.client.get_inference_statistics()


def test_a_request_that_takes_too_long_is_late(door: Door, toy: Served) -> None:
    toy.engine.gate.clear()
    try:
        told = door.refused("toy", BOTH, timeout=100_000)
    finally:
        toy.engine.gate.set()
    assert "the deadline passed" in told
    assert told.startswith(("504", "StatusCode.DEADLINE_EXCEEDED"))
    assert door.ask("toy", BOTH, timeout=60_000_000, priority=2).as_numpy("embedding").shape == (2, 16)


def test_parameters_of_scheduling_narrow_a_ticket() -> None:
    ticket = Ticket.within(1000.0)
    schedule(ticket, {"priority": 1})
    assert ticket.priority == "interactive"
    schedule(ticket, {"priority": 2, "timeout": 5_000_000})
    assert ticket.priority == "bulk"
    assert 4.0 < (ticket.remaining() or 0.0) <= 5.0
    for wrong in ({"timeout": -1}, {"priority": "high"}, {"priority": True}):
        with pytest.raises(BadInput, match=r"timeout|priority"):
            schedule(ticket, wrong)


def test_nothing_is_ready_when_the_answers_are_wrong(door: Door, toy: Served) -> None:
    assert door.client.is_server_ready()
    toy.engine.shift = 1.0
    try:
        assert not door.client.is_server_ready()
        assert not door.client.is_model_ready("toy")
        assert door.client.is_server_live()
    finally:
        toy.engine.shift = 0.0


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_bodies(toy: Served, door: Door, algorithm: str) -> None:
    name = "request_compression_algorithm" if door.api is triton_http else "compression_algorithm"
    result = door.ask("toy", BOTH, **{name: algorithm})
    assert np.array_equal(result.as_numpy("embedding"), stacked(toy.core.embed_tokens(TOKENS)))


def test_plain_json(toy: Served) -> None:
    sent = {
        "id": "a",
        "inputs": [
            {"name": "tok_image", "shape": [2, 4], "datatype": "INT32", "data": IMAGE.tolist()},
            {"name": "tok_image.mask", "shape": [2, 4], "datatype": "BOOL", "data": [False] * 8},
        ],
    }
    answer = httpx.post(f"http://{toy.rest}/v2/models/toy/versions/1/infer", json=sent)
    assert answer.status_code == 200
    (output,) = answer.json()["outputs"]
    wanted = stacked(toy.core.embed_tokens([Tokens({"tok_image": row}) for row in IMAGE]))
    assert np.array_equal(np.array(output["data"], np.float32).reshape(output["shape"]), wanted)


def test_bodies_that_are_not_what_they_say(toy: Served) -> None:
    client = httpx.Client(base_url=f"http://{toy.rest}")
    tensor = {"name": "tok_flux_r", "shape": [1, 1], "datatype": "INT64"}
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": 8}}]}).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    for content, headers, status, told in (
        (b"{", {}, 400, "not JSON"),
        (b'{"inputs": [], "more": 1}', {}, 400, "Extra inputs"),
        (b'{"inputs": []}', {}, 400, "an input is missing"),
        (head + bytes(7), length, 400, "binary_data_size 8, 7 bytes are left"),
        (head + bytes(9), length, 400, "1 bytes after the last tensor"),
        (head + bytes(8), {"Inference-Header-Content-Length": "9999"}, 400, "'9999' for a body of"),
        (json.dumps({"inputs": [tensor | {"data": [1.5]}]}).encode(), {}, 400, "an entry that is no INT64"),
        (json.dumps({"inputs": [tensor | {"data": [1, 2]}]}).encode(), {}, 400, "2 entries for shape [1, 1]"),
        (json.dumps({"inputs": [tensor | {"shape": [-1, 1], "data": [1]}]}).encode(), {}, 400, "shape [-1, 1]"),
        (json.dumps({"inputs": [tensor | {"datatype": "BYTES", "data": ["a"]}]}).encode(), {}, 400, "'BYTES'"),
        (json.dumps({"inputs": [tensor | {"data": [1]}] * 2}).encode(), {}, 400, "given twice"),
        (gzip.compress(bytes(5 << 20)), {"Content-Encoding": "gzip"}, 413, "unfolds to more"),
        (gzip.compress(head)[:-9], {"Content-Encoding": "gzip"}, 400, "breaks off"),
        (zlib.compress(bytes(5 << 20)), {"Content-Encoding": "deflate"}, 413, "unfolds to more"),
        (head, {"Content-Encoding": "br"}, 415, "encoding 'br'"),
        (bytes(5 << 20), {}, 413, "the body is over"),
    ):
        answer = client.post("/v2/models/toy/infer", content=content, headers=headers)
        assert answer.status_code == status, told
        assert set(answer.json()) == {"error"}
        assert told in answer.json()["error"]
    client.close()


def test_addresses_that_are_not_there(toy: Served) -> None:
    client = httpx.Client(base_url=f"http://{toy.rest}")
    for method, path, told in (
        ("GET", "/v2/nothing", "there is no such address"),
        ("POST", "/v2/repository/models/toy/load", "loading and unloading models"),
        ("GET", "/v2/systemsharedmemory/status", "shared memory"),
        ("GET", "/v2/models/toy/trace/setting", "traces"),
    ):
        answer = client.request(method, path)
        assert answer.status_code == 404
        assert told in answer.json()["error"]
    client.close()


def test_numbers_without_a_form_in_json() -> None:
    with pytest.raises(Exception, match="ask for binary data"):
        to_json(Tensor("typicality", "FP64", np.array([np.nan])))


@limits(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["inputs", "outputs", "name", "shape", "data", "parameters"]), inner)
        ),
        max_leaves=12,
    )
)
def test_any_json(client: TestClient, content: Any) -> None:
    for body in (
        content,
        {"inputs": [content]},
        {"inputs": [{"name": "tok_flux_r", "datatype": "INT64"} | {"a": content}]},
    ):
        answer = client.post("/v2/models/toy/infer", content=json.dumps(body))
        assert answer.status_code == 400
        assert set(answer.json()) == {"error"}


def test_typed_contents(toy: Served) -> None:
    """Numbers that are not raw, as other clients than Triton's send them."""
    message = service_pb2.ModelInferRequest(model_name="toy", id="3")
    one = message.inputs.add(name="tok_image", datatype="UINT16", shape=[2, 4])
    one.contents.uint_contents.extend(range(8))
    client = triton_grpc.InferenceServerClient(toy.grpc)
    answer = client._client_stub.ModelInfer(message)
    assert np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(2, 16) == pytest.approx(
        stacked(toy.core.embed_tokens([Tokens({"tok_image": row}) for row in IMAGE]))
    )
    one.datatype = "INT64"
    with pytest.raises(grpc.RpcError, match="INT64 in uint_contents"):
        client._client_stub.ModelInfer(message)
    message.raw_input_contents.append(bytes(64))
    with pytest.raises(grpc.RpcError, match="1 raw contents for 1 inputs"):
        client._client_stub.ModelInfer(message)
    client.close()


def test_a_stream(toy: Served) -> None:
    """One answer to each request, in order; one that is bad ends nothing."""
    client = triton_grpc.InferenceServerClient(toy.grpc)
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    given = triton_grpc.InferInput("tok_image", [2, 4], "INT64")
    given.set_data_from_numpy(IMAGE)
    for n, name in enumerate(["toy", "nothing", "toy"]):
        client.async_stream_infer(name, [given], request_id=str(n), enable_empty_final_response=n == 2)
    first, second, third = (answers.get(timeout=10) for _ in range(3))
    client.stop_stream()
    client.close()
    assert first[0].get_response().id == "0"
    assert "no model is called 'nothing'" in str(second[1])
    assert np.array_equal(first[0].as_numpy("embedding"), third[0].as_numpy("embedding"))
    assert third[0].get_response().parameters["triton_final_response"].bool_param


def test_the_messages_are_those_of_the_stock_client() -> None:
    """Every field of ours has in the client's messages the same number and type, but for one that it does not know."""
    theirs = {**service_pb2.DESCRIPTOR.message_types_by_name, **model_config_pb2.DESCRIPTOR.message_types_by_name}

    def compare(mine: Any, other: Any) -> None:
        known = {field.name: field for field in other.fields}
        for field in mine.fields:
            if (mine.name, field.name) == ("ModelMetadataResponse", "properties"):
                assert field.number not in {one.number for one in other.fields}
                continue
            twin = known[field.name]
            assert (field.number, field.type, field.is_repeated) == (twin.number, twin.type, twin.is_repeated)
        for nested in mine.nested_types:
            if nested.name != "PropertiesEntry":
                compare(nested, other.nested_types_by_name[nested.name])

    for name, mine in ours.DESCRIPTOR.message_types_by_name.items():
        compare(mine, theirs[name])
    values = model_config_pb2.DataType.DESCRIPTOR.values_by_name
    assert dict(ours.DataType.items()) == {name: one.number for name, one in values.items()}
    service = ours.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    known = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    for method in service.methods:
        assert method.input_type.full_name == known[method.name].input_type.full_name
        assert method.output_type.full_name == known[method.name].output_type.full_name


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The shipped checkpoint and its heads."""
    settings = Settings(model=str(MINI), data_folder=tmp_path_factory.mktemp("mini"))
    with serving(Core.local(settings), settings) as served:
        yield served


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_the_shipped_checkpoint(mini: Served, kind: str) -> None:
    door, core = door_to(mini, kind), mini.core
    photometry = [key for key in core.inputs if MODALITIES[key].survey == "legacysurvey"][1:6]
    seen = probe(["tok_spectrum_sdss", *photometry])
    (tokens,) = core.engine.tokenize([seen])
    assert isinstance(tokens, Tokens)
    spectrum = seen.data["tok_spectrum_sdss"]
    assert isinstance(spectrum, Spectrum)
    raw = {name: getattr(spectrum, name)[None] for name in ("flux", "ivar", "wavelength", "mask")}
    result = door.ask("albireo-mini-tokenizer-spectrum.sdss", raw)
    assert np.array_equal(result.as_numpy("tok_spectrum_sdss")[0], tokens.ids["tok_spectrum_sdss"])
    ids = {key: one[None].astype(np.uint16) for key, one in tokens.ids.items()}
    result = door.ask("albireo-mini", ids)
    assert np.array_equal(result.as_numpy("embedding"), stacked(core.embed_tokens([tokens])))
    assert door.said(result, "embedding")["space"] == core.engine.space("mean")
    told = door.refused("albireo-mini", ids | {photometry[0]: np.array([[65_000]], np.uint16)})
    assert "row 0: a token is not in" in told
    del ids["tok_spectrum_sdss"]
    objects = [Tokens({key: one[0].astype(np.int64) for key, one in ids.items()})]
    check_numbers(door.ask("head-redshift", ids), core.predict_tokens(objects, core.shelf.open("redshift")))
    flat = core.predict_tokens(objects, core.shelf.open("redshift"), "flat")
    check_numbers(door.ask("head-redshift", ids, parameters={"prior": "flat"}), flat)
    result = door.ask("head-galaxy", ids)
    (wanted,) = core.predict_tokens(objects, core.shelf.open("galaxy"))
    check_numbers(result, [wanted])
    assert result.as_numpy("typicality")[0, 0] == wanted.typicality
    result = door.ask("head-class", ids)
    (wanted,) = core.predict_tokens(objects, core.shelf.open("class"))
    names = door.said(result, "probabilities")["classes"].split(",")
    assert dict(zip(names, result.as_numpy("probabilities")[0].tolist(), strict=True)) == dict(wanted.classes)
    assert result.as_numpy("class")[0, 0].decode() == next(iter(wanted.classes))
    door.client.close()
