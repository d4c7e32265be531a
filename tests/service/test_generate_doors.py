"""Draws through every door: the numbers of `Core.generate`, whatever the form of the body and of the answer."""

from __future__ import annotations

import base64
import inspect
import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anyio
import grpc
import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import QTable, Table
from fastapi.testclient import TestClient

from albireo.models.engine import Tokens
from albireo.models.generation import Sampling, n_encoded
from albireo.observations.errors import AlbireoError, Gone, TooLarge
from albireo.observations.options import ReadOptions
from albireo.service import predict_cli, schemas
from albireo.service import reply_formats as formats
from albireo.service.app import create_app
from albireo.service.client import AsyncClient, Client, DrawsTable, Local
from albireo.service.core import Core
from albireo.service.draws import MAX_ROUNDS, Wanted
from albireo.service.files import expand, read_batches
from albireo.service.generation_schemas import GenerateOptions, GenerateReply
from albireo.service.grpc_messages import array
from albireo.service.predictions import Prediction
from albireo.service.protos.albireo.v1 import albireo_pb2 as pb
from albireo.service.settings import Settings
from albireo.service.subjects import Subject
from albireo.service.tickets import Ticket
from tests.service import grpc_doors, served
from tests.service.conftest import ToyEngine
from tests.service.grpc_doors import detail, of_file, of_fluxes
from tests.service.test_options import three_bands

Make = Callable[..., bytes]

SPECTRUM = "spectrum.sdss"
FLUX = "legacysurvey.flux_r"
OPTIONS: dict[str, Any] = {"target": SPECTRUM, "draws": 3, "rounds": 2, "seed": 5}
SAMPLING = Sampling(rounds=2, draws=3, seed=5)

pytestmark = pytest.mark.filterwarnings("ignore::astropy.io.fits.verify.VerifyWarning")


@pytest.fixture
def contents(image: Make) -> list[bytes]:
    """Two good images, one that the engine refuses between them, and no file of any format."""
    return [image("A"), image("B", level=1e7), image("C", 1), b"\0\1nothing"]


@pytest.fixture
def expected(core: Core, contents: list[bytes], tmp_path: Path) -> list[Prediction[Any]]:
    """What the core draws for them."""
    paths = [tmp_path / f"{n}.fits" for n in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return core.generate(subjects_of(*paths), Wanted.named(SPECTRUM), SAMPLING)


def subjects_of(*paths: Path) -> list[Subject]:
    return [subject for batch in read_batches(expand(paths), ReadOptions()) for subject in batch.subjects]


def parts(contents: Sequence[bytes]) -> list[Any]:
    return [("file", (f"{n}.fits", content)) for n, content in enumerate(contents)]


def asked(options: Mapping[str, Any]) -> dict[str, str]:
    return {"request": json.dumps({"options": options})}


def ask(client: TestClient, contents: Sequence[bytes], accept: str = formats.JSON, **options: Any) -> Any:
    answer = client.post(
        "/v1/generate", files=parts(contents), data=asked(OPTIONS | options), headers={"Accept": accept}
    )
    assert answer.status_code == 200, answer.text
    return answer


# HTTP


def test_the_draws_of_the_core(client: TestClient, contents: list[bytes], expected: list[Prediction[Any]]) -> None:
    answer = ask(client, contents)
    assert answer.headers["x-items-failed"] == "2"
    reply = GenerateReply.model_validate(answer.json())
    assert [item.status for item in reply.items] == ["ok", "error", "ok", "error"]
    assert [item.error and item.error.code for item in reply.items] == [
        None, "value_out_of_range", None, "unknown_format",
    ]  # fmt: skip
    for item, one in zip(reply.items, expected, strict=True):
        assert (item.id, item.n_tokens) == (one.outcome.subject.id, one.n_tokens)
        if one.answer is None:
            assert (item.tokens, item.values) == (None, None)
            continue
        assert item.tokens == one.answer.codes.tolist()
        assert item.values is not None
        assert item.values.shape == [3, 20]
        assert item.values.values == one.answer.values.tolist()
        assert item.modalities_used == ["image.legacysurvey"]
    assert reply.items[0].tokens != reply.items[2].tokens
    target = reply.target
    assert (target.modality, target.key, target.codec) == (SPECTRUM, "tok_spectrum_sdss", "toy-codec")
    assert (target.unit, target.shape) == ("1e-17 erg / (s cm2 Angstrom)", [20])
    assert target.axes == ["draw", "wavelength"]
    assert target.wavelength is not None
    np.testing.assert_allclose(target.wavelength, np.linspace(4000, 6000, 20))
    assert reply.sampling.model_dump() == asdict(SAMPLING)
    assert reply.usage == {"tokens": sum(one.n_tokens for one in expected)}
    assert reply.checkpoint == "0123456789ab"
    assert {"parse", "generate"} <= reply.timings_ms.keys()


def test_numbers_as_base64(client: TestClient, contents: list[bytes], expected: list[Prediction[Any]]) -> None:
    values = ask(client, contents, encoding="base64").json()["items"][2]["values"]
    found = np.frombuffer(base64.b64decode(values["values"]), "<f4").reshape(values["shape"])
    np.testing.assert_array_equal(found, expected[2].answer.values)


def test_an_archive(client: TestClient, contents: list[bytes], expected: list[Prediction[Any]]) -> None:
    with np.load(io.BytesIO(ask(client, contents, formats.NPZ).content), allow_pickle=False) as found:
        arrays = dict(found)
    good = [one.answer for one in expected if one.answer]
    np.testing.assert_array_equal(arrays["tokens"], np.stack([one.codes for one in good]))
    np.testing.assert_array_equal(arrays["values"], np.stack([one.values for one in good]))
    assert arrays["tokens"].dtype == np.uint16
    assert arrays["objects"].tolist() == [0, 2]
    assert arrays["ids"].tolist() == ["A", "B", "C", ""]
    assert arrays["error_code"].tolist() == ["value_out_of_range", "unknown_format"]
    assert arrays["wavelength"].shape == (20,)
    assert (arrays["target"].item(), arrays["codec"].item()) == (SPECTRUM, "toy-codec")
    assert json.loads(arrays["sampling"].item()) == asdict(SAMPLING)


@pytest.mark.parametrize(
    ("accept", "read"),
    [
        (formats.ARROW, lambda content: pa.ipc.open_stream(content).read_all()),
        (formats.PARQUET, lambda content: pq.read_table(io.BytesIO(content))),
    ],
)
def test_tables(
    client: TestClient, contents: list[bytes], expected: list[Prediction[Any]], accept: str, read: Callable[..., Any]
) -> None:
    answer = ask(client, contents, accept)
    assert answer.headers["x-items-failed"] == "2"
    table = read(answer.content)
    rows = table.to_pylist()
    drawn = [[("A", n) for n in range(3)], [("B", None)], [("C", n) for n in range(3)], [(None, None)]]
    assert [(row["id"], row["draw"]) for row in rows] == [one for part in drawn for one in part]
    assert [row["status"] for row in rows] == ["ok"] * 3 + ["error"] + ["ok"] * 3 + ["error"]
    assert rows[3]["error_code"] == "value_out_of_range"
    assert (rows[3]["tokens"], rows[3]["values"]) == (None, None)
    for row, codes, values in zip(rows[4:7], expected[2].answer.codes, expected[2].answer.values, strict=True):
        np.testing.assert_array_equal(row["tokens"], codes)
        np.testing.assert_array_equal(np.array(row["values"], np.float32), values)
    about = {name.decode(): text.decode() for name, text in table.schema.metadata.items()}
    assert (about["target"], json.loads(about["shape"]), about["model"]) == (SPECTRUM, [20], "toy")
    assert json.loads(about["sampling"]) == asdict(SAMPLING)
    assert table.schema.field("values").metadata[b"unit"] == b"1e-17 erg / (s cm2 Angstrom)"


def test_a_fits_file(client: TestClient, contents: list[bytes], expected: list[Prediction[Any]]) -> None:
    content = ask(client, contents, formats.FITS).content
    with fits.open(io.BytesIO(content)) as hdus:
        hdus.verify("exception")
        assert [hdu.name for hdu in hdus[1:]] == ["OBJECTS", "SPECTRUM.SDSS", "SPECTRUM.SDSS.WAVELENGTH"]
        assert hdus["OBJECTS"].data["status"].tolist() == ["ok", "error", "ok", "error"]
        assert json.loads(hdus[0].header["SAMPLING"]) == asdict(SAMPLING)
    table = Table.read(io.BytesIO(content), format="fits", hdu="SPECTRUM.SDSS")
    assert table["id"].tolist() == ["A"] * 3 + ["C"] * 3
    assert table["draw"].tolist() == [0, 1, 2] * 2
    np.testing.assert_array_equal(table["tokens"][3:], expected[2].answer.codes)
    np.testing.assert_array_equal(table["values"][3:], expected[2].answer.values)
    assert table["values"].unit == u.Unit("1e-17 erg / (s cm2 Angstrom)")


def test_pictures_keep_their_axes(client: TestClient, engine: ToyEngine, image: Make) -> None:
    """A hole in an image is filled: by options in JSON, and by query parameters."""
    options = {"target": "image.legacysurvey", "mask": [0, 50, 20, 90], "draws": 4}
    answer = ask(client, [image("A")], **options)
    (item,) = answer.json()["items"]
    assert item["values"]["shape"] == [4, 4, 96, 96]
    assert answer.json()["target"]["axes"] == ["draw", "band", "y", "x"]
    assert answer.json()["known"] == {"mask": [0, 50, 20, 90], "keep": None, "from": None}
    assert all(one.mask["tok_image"].tolist() == [False, False, True, False] for one in engine.given)
    with fits.open(io.BytesIO(ask(client, [image("A")], formats.FITS, **options).content)) as hdus:
        assert hdus["IMAGE.LEGACYSURVEY"].data["values"].shape == (4, 4, 96, 96)
        assert hdus["IMAGE.LEGACYSURVEY"].header["BANDS"] == "DES-G,DES-R,DES-I,DES-Z"
        np.testing.assert_array_equal(hdus["IMAGE.LEGACYSURVEY"].data["values"], item["values"]["values"])
    bare = client.post(
        "/v1/generate?target=image.legacysurvey&mask=0,50,20,90&draws=4&rounds=2&seed=5", content=image("A"),
        headers={"Content-Type": "application/fits"},
    )  # fmt: skip
    assert bare.json()["items"][0]["tokens"] == item["tokens"]


def test_what_is_kept_and_what_is_used(client: TestClient, engine: ToyEngine, image: Make, spectrum: Make) -> None:
    (kept,) = ask(client, [spectrum(7)], keep=[3900, 5000]).json()["items"]
    assert all(one.mask["tok_spectrum_sdss"].tolist() == [False, False, True] for one in engine.given)
    query = "/v1/generate?target=spectrum.sdss&keep=3900,5000&draws=3&rounds=2&seed=5"
    bare = client.post(query, content=spectrum(7), headers={"Content-Type": "application/fits"}).json()["items"]
    assert bare[0]["tokens"] == kept["tokens"]
    assert len({tuple(one[:2]) for one in kept["tokens"]}) == 1
    engine.given.clear()
    together = {"id": "X", "inputs": [{"ref": "part:a"}, {"ref": "part:b"}]}
    body = {"items": [together], "options": {"target": FLUX, "from": ["image.legacysurvey"]}}
    files = {"a": ("a.fits", image("A")), "b": ("b.fits", spectrum(7))}
    reply = client.post("/v1/generate", data={"request": json.dumps(body)}, files=files).json()
    assert {tuple(one.ids) for one in engine.given} == {("tok_image",)}
    assert reply["known"]["from"] == ["image.legacysurvey"]
    assert reply["items"][0]["modalities_used"] == ["image.legacysurvey"]
    assert len(reply["items"][0]["tokens"]) == 8, "draws, where nothing is said"


FLUXES = {"id": ["a", "b"], "FLUX_G": [12.5, 3.25]}


def table_of_fluxes() -> pa.Table:
    return pa.table(FLUXES).replace_schema_metadata({"survey": "legacysurvey"})


def arrow_bytes() -> bytes:
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, table_of_fluxes().schema) as writer:
        writer.write_table(table_of_fluxes())
    return bytes(out.getvalue())


def parquet_bytes() -> bytes:
    out = io.BytesIO()
    pq.write_table(table_of_fluxes(), out)
    return out.getvalue()


def fits_table() -> bytes:
    out = io.BytesIO()
    Table(FLUXES, meta={"SURVEY": "legacysurvey"}).write(out, format="fits")
    return out.getvalue()


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("application/vnd.apache.arrow.stream", arrow_bytes),
        ("application/vnd.apache.parquet", parquet_bytes),
        ("application/fits", fits_table),
        ("text/csv", lambda: b"id,FLUX_G\na,12.5\nb,3.25\n"),
    ],
)
def test_every_body_holds_the_same_objects(client: TestClient, kind: str, content: Callable[[], bytes]) -> None:
    items = [
        {"id": name, "inputs": [{"modality": "photometry", "values": {"FLUX_G": flux},
                                 "read": {"survey": "legacysurvey"}}]}
        for name, flux in zip(*FLUXES.values(), strict=True)
    ]  # fmt: skip
    options = {"target": FLUX, "draws": 5, "seed": 3, "temperature": 0.7, "top_k": 50}
    in_json = client.post("/v1/generate", json={"items": items, "options": options})
    assert in_json.status_code == 200, in_json.text
    query = f"survey=legacysurvey&target={FLUX}&draws=5&seed=3&temperature=0.7&top_k=50"
    answer = client.post(f"/v1/generate?{query}", content=content(), headers={"Content-Type": kind})
    assert answer.status_code == 200, answer.text
    assert [item["id"] for item in answer.json()["items"]] == ["a", "b"]
    for one, other in zip(answer.json()["items"], in_json.json()["items"], strict=True):
        assert (one["tokens"], one["values"]) == (other["tokens"], other["values"])
    assert answer.json()["sampling"] == in_json.json()["sampling"]


def test_an_archive_of_images(client: TestClient) -> None:
    out = io.BytesIO()
    pixels = np.random.default_rng(0).normal(size=(2, 4, 96, 96)).astype(np.float32)
    np.savez(out, images=pixels, bands=np.array(["g", "r", "i", "z"]), id=np.array(["A", "B"]), pixel_scale=0.262,
             survey="legacysurvey", unit="nanomaggy")  # fmt: skip
    answer = client.post(
        f"/v1/generate?target={FLUX}&from=image.legacysurvey,spectrum.sdss&draws=2", content=out.getvalue(),
        headers={"Content-Type": "application/x-npz"},
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    assert [len(item["tokens"]) for item in answer.json()["items"]] == [2, 2]
    assert answer.json()["known"]["from"] == ["image.legacysurvey", "spectrum.sdss"]


@pytest.mark.parametrize(
    ("options", "status", "code", "field"),
    [
        ({}, 422, "request_invalid", "options.target"),
        ({"target": "spectrum.gone"}, 422, "modality_unknown", "spectrum.gone"),
        ({"target": "legacysurvey.flux_g"}, 422, "modality_not_in_checkpoint", "tok_flux_g"),
        ({"target": FLUX, "mask": [0, 0, 4, 4]}, 422, "option_invalid", "mask"),
        ({"target": FLUX, "keep": [4000, 5000]}, 422, "option_invalid", "keep"),
        ({"target": SPECTRUM, "keep": [5000, 4000]}, 422, "option_invalid", "keep"),
        ({"target": SPECTRUM, "keep": [4000]}, 422, "request_invalid", "options.keep.1"),
        ({"target": SPECTRUM, "keep": "blue"}, 422, "request_invalid", "options.keep.0"),
        ({"target": SPECTRUM, "from": [SPECTRUM]}, 422, "option_invalid", "from"),
        ({"target": SPECTRUM, "from": ["spectrum.gone"]}, 422, "modality_unknown", "spectrum.gone"),
        ({"target": SPECTRUM, "from": []}, 422, "request_invalid", "options.from"),
        ({"target": SPECTRUM, "draws": 0}, 422, "request_invalid", "options.draws"),
        ({"target": SPECTRUM, "rounds": MAX_ROUNDS + 1}, 422, "request_invalid", "options.rounds"),
        ({"target": SPECTRUM, "temperature": -1}, 422, "request_invalid", "options.temperature"),
        ({"target": SPECTRUM, "top_p": 1.5}, 422, "request_invalid", "options.top_p"),
        ({"target": SPECTRUM, "guidance": 1e9}, 422, "request_invalid", "options.guidance"),
        ({"target": SPECTRUM, "schedule": "sudden"}, 422, "request_invalid", "options.schedule"),
        ({"target": SPECTRUM, "cooling": "sudden"}, 422, "request_invalid", "options.cooling"),
        ({"target": SPECTRUM, "seed": -1}, 422, "request_invalid", "options.seed"),
        ({"target": SPECTRUM, "colour": "red"}, 422, "request_invalid", "options.colour"),
    ],
)
def test_what_cannot_be_asked(
    client: TestClient, engine: ToyEngine, image: Make, options: dict[str, Any], status: int, code: str, field: str
) -> None:
    answer = client.post("/v1/generate", files=parts([image("A")]), data=asked(options))
    problem = schemas.Problem.model_validate(answer.json())
    assert (answer.status_code, problem.code, problem.field) == (status, code, field)
    assert engine.given == []


def test_options_that_are_no_words_of_a_query(client: TestClient, image: Make) -> None:
    kind = {"Content-Type": "application/fits"}
    for query, status in (("colour=red", 400), ("mask=1,2,3", 422), ("mask=a,b,c,d", 422), ("draws=many", 422)):
        answer = client.post(f"/v1/generate?target={SPECTRUM}&{query}", content=image("A"), headers=kind)
        assert (answer.status_code, answer.json()["code"]) == (status, "request_invalid"), query
    missing = client.post("/v1/generate", content=image("A"), headers=kind)
    assert (missing.status_code, missing.json()["field"]) == (422, "options.target")


def test_nothing_good(client: TestClient, contents: list[bytes], spectrum: Make) -> None:
    for accept in formats.DRAWS:
        answer = client.post(
            "/v1/generate", files=parts([contents[1], contents[3], spectrum(7)]), data=asked(OPTIONS),
            headers={"Accept": accept},
        )  # fmt: skip
        assert answer.status_code == 422
        problem = schemas.Problem.model_validate(answer.json())
        assert problem.code == "value_out_of_range"
        codes = [item["error"]["code"] for item in problem.items or ()]
        assert codes == ["value_out_of_range", "unknown_format", "nothing_to_embed"], "the spectrum is what is drawn"
    refused = client.post("/v1/generate", json={"options": OPTIONS}, headers={"Accept": "text/csv"})
    assert refused.status_code == 406
    nothing = client.post("/v1/generate", json={"options": OPTIONS})
    assert (nothing.status_code, nothing.json()["code"]) == (422, "request_invalid")


def test_terms(client: TestClient, engine: ToyEngine, contents: list[bytes], image: Make) -> None:
    def refused(given: Sequence[bytes], **options: Any) -> Any:
        answer = client.post("/v1/generate", files=parts(given), data=asked(OPTIONS | options))
        assert answer.status_code == 422
        return answer.json()

    problem = refused(contents, on_error="fail")
    assert (problem["code"], [item["file"] for item in problem["items"]]) == ("unknown_format", ["3.fits"])
    assert engine.given == [], "something was tokenized before what cannot be read was told"
    problem = refused(contents[:3], on_error="fail")
    assert (problem["code"], [item["id"] for item in problem["items"]]) == ("value_out_of_range", ["B"])
    lacking = three_bands(image("A"))
    items = ask(client, [lacking, image("B")], missing="error").json()["items"]
    assert [item["error"] and item["error"]["code"] for item in items] == ["measurement_missing", None]
    assert [item["status"] for item in ask(client, [lacking, image("B")]).json()["items"]] == ["ok", "ok"]
    content = {"content": lacking, "headers": {"Content-Type": "application/fits"}}
    assert client.post(f"/v1/generate?target={SPECTRUM}&missing=error", **content).status_code == 422
    assert client.post(f"/v1/generate?target={SPECTRUM}&missing=mask", **content).status_code == 200


def test_draws_are_limited(core: Core, settings: Settings, engine: ToyEngine, contents: list[bytes]) -> None:
    tight = settings.model_copy(update={"max_draws": 11})
    with TestClient(create_app(core, tight)) as client:
        answer = client.post("/v1/generate", files=parts(contents), data=asked(OPTIONS))
        assert answer.status_code == 413
        assert answer.json()["code"] == "too_large"
        assert "11" in answer.json()["detail"]
        assert "ALBIREO_MAX_DRAWS" in answer.json()["fix"]
        assert engine.given == []
        assert client.post("/v1/generate", files=parts(contents[:3]), data=asked(OPTIONS)).status_code == 200
        limits = client.get("/v1/limits").json()["limits"]
        assert (limits["max_draws"], limits["max_rounds"]) == (11, MAX_ROUNDS)
        assert client.get("/v1/formats").json()["answers"]["generate"] == list(formats.DRAWS)


def test_every_door_has_the_defaults_of_the_command_line() -> None:
    stated = inspect.signature(predict_cli.generate).parameters
    for name, field in GenerateOptions.model_fields.items():
        if name in asdict(Sampling()):
            assert field.default == stated[name].default, name
    assert inspect.signature(Client.generate).parameters["draws"].default == stated["draws"].default
    both = (inspect.signature(one.generate).parameters for one in (Client, AsyncClient))
    assert len({tuple((name, one.default) for name, one in parameters.items()) for parameters in both}) == 1


# Time


class Slow(ToyEngine):
    """Each pass takes a while; `passes` counts them, `begun` tells of the first."""

    def __init__(self, seconds: float = 0.05) -> None:
        super().__init__()
        self.seconds, self.passes, self.begun = seconds, 0, threading.Event()

    def logits(self, *args: Any) -> list[dict[str, np.ndarray]]:
        self.passes += 1
        self.begun.set()
        time.sleep(self.seconds)
        return super().logits(*args)


LONG = {"target": SPECTRUM, "draws": 64, "rounds": 3}
"""For ten objects 30 passes: 64 draws are on their way at a time."""


def fluxes(n: int) -> list[dict[str, Any]]:
    return [
        {"id": f"o{i}", "inputs": [{"modality": "photometry", "values": {"FLUX_G": 1.0 + i},
                                    "read": {"survey": "legacysurvey"}}]}
        for i in range(n)
    ]  # fmt: skip


@pytest.fixture
def slow(settings: Settings) -> Iterator[tuple[Slow, Core]]:
    engine = Slow()
    core = served.new_core(engine, settings)
    yield engine, core
    core.close()


def test_a_deadline_is_looked_at_between_rounds(slow: tuple[Slow, Core], settings: Settings) -> None:
    engine, core = slow
    with TestClient(create_app(core, settings)) as client:
        whole = client.post("/v1/generate", json={"items": fluxes(2), "options": LONG})
        assert (whole.status_code, engine.passes) == (200, 6)
        engine.passes = 0
        late = client.post("/v1/generate", json={"items": fluxes(10), "options": LONG | {"deadline_ms": 220}})
        assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
        assert 1 <= engine.passes < 8


def test_a_ticket_that_is_cancelled_ends_the_rounds(slow: tuple[Slow, Core], settings: Settings) -> None:
    engine, core = slow
    with TestClient(create_app(core, settings)):
        ticket = Ticket()
        subjects = core_subjects(core, settings)
        with pytest.raises(Gone):
            core.on(ticket).generate(subjects, Wanted.named(SPECTRUM), Sampling(rounds=3), lambda n: ticket.cancel())
        assert engine.passes == 1


def core_subjects(core: Core, settings: Settings) -> list[Subject]:
    path = settings.data_folder.parent / "f.csv"
    path.write_text("id,FLUX_G\na,12.5\n")
    (batch,) = read_batches(expand([path]), ReadOptions(survey="legacysurvey"))
    return list(batch.subjects)


def test_a_client_that_goes_away(tmp_path: Path) -> None:
    engine = Slow(0.1)
    with served.served(engine, tmp_path) as service:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{service.url}/v1/generate", json={"items": fluxes(10), "options": LONG}, timeout=0.5)
        assert engine.begun.is_set()
        time.sleep(0.5)
        seen = engine.passes
        time.sleep(0.5)
        assert engine.passes == seen < 20


# gRPC


@pytest.fixture
def door(core: Core, settings: Settings) -> Iterator[grpc_doors.Served]:
    with grpc_doors.served(core, settings) as made:
        yield made


PB_OPTIONS: dict[str, Any] = {"target": SPECTRUM, "draws": 3, "rounds": 2, "seed": 5}


def generated(*items: pb.Item, **options: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(items=items, options=pb.GenerateOptions(**(PB_OPTIONS | options)))


def test_grpc_gives_the_draws_of_the_core(
    door: grpc_doors.Served, contents: list[bytes], expected: list[Prediction[Any]]
) -> None:
    answer = door.embedding.Generate(generated(*(of_file(one) for one in contents)))
    assert [one.item for one in answer.items] == [0, 1, 2, 3]
    assert [one.status for one in answer.items] == ["ok", "error", "ok", "error"]
    assert [one.error.code for one in answer.items] == ["", "value_out_of_range", "", "unknown_format"]
    for item, one in zip(answer.items, expected, strict=True):
        assert (item.id, item.n_tokens) == (one.outcome.subject.id or "", one.n_tokens)
        assert item.HasField("values") == (one.answer is not None)
        if one.answer is not None:
            np.testing.assert_array_equal(array(item.tokens, "tokens"), one.answer.codes)
            np.testing.assert_array_equal(array(item.values, "values"), one.answer.values)
            assert list(item.modalities_used) == ["image.legacysurvey"]
    assert {item.tokens.dtype for item in answer.items if item.HasField("tokens")} == {"uint16"}
    assert (answer.target, list(answer.drawn.axes)) == (SPECTRUM, ["draw", "wavelength"])
    assert (answer.drawn.unit, answer.drawn.codec) == ("1e-17 erg / (s cm2 Angstrom)", "toy-codec")
    assert len(array(answer.drawn.wavelength, "wavelength")) == 20
    assert (answer.envelope.n_failed, answer.envelope.checkpoint) == (2, "0123456789ab")
    assert answer.envelope.tokens == sum(one.n_tokens for one in expected)
    assert {"parse", "tokenize", "predict"} <= answer.envelope.timings_ms.keys()


def test_grpc_takes_every_option(door: grpc_doors.Served, client: TestClient, image: Make, spectrum: Make) -> None:
    more = {"schedule": "linear", "temperature": 0.0, "cooling": "power", "top_k": 7, "top_p": 0.5, "guidance": 2.0}
    holed = door.embedding.Generate(
        generated(of_file(image("A")), target="image.legacysurvey", mask=pb.Box(x0=0, y0=50, x1=20, y1=90), **more)
    )
    over_http = ask(client, [image("A")], target="image.legacysurvey", mask=[0, 50, 20, 90], **more).json()["items"]
    assert array(holed.items[0].tokens, "tokens").tolist() == over_http[0]["tokens"]
    kept = door.embedding.Generate(generated(of_file(spectrum(7)), keep=pb.Range(low=3900, high=5000)))
    over_http = ask(client, [spectrum(7)], keep=[3900, 5000]).json()["items"]
    assert array(kept.items[0].tokens, "tokens").tolist() == over_http[0]["tokens"]
    files = [pb.File(name="a.fits", content=image("A")), pb.File(name="s.fits", content=spectrum(7))]
    options = pb.GenerateOptions(target=FLUX, sources=["image.legacysurvey"], draws=2)
    used = door.embedding.Generate(pb.GenerateRequest(files=files, options=options))
    assert [list(one.modalities_used) for one in used.items] == [["image.legacysurvey"], []]
    assert used.items[1].error.code == "nothing_to_embed"
    plain = door.embedding.Generate(pb.GenerateRequest(files=files[:1], options=pb.GenerateOptions(target=FLUX)))
    assert array(plain.items[0].tokens, "tokens").shape == (8, 1), "draws, where nothing is said"
    terms = {"missing": "error", "qa": "strict", "cache": "bypass"}
    lacking = of_file(three_bands(image("B")))
    strict = door.embedding.Generate(generated(of_file(image("A")), lacking, **terms))
    assert [one.error.code for one in strict.items] == ["", "measurement_missing"]
    with pytest.raises(grpc.RpcError) as caught:
        door.embedding.Generate(generated(of_file(image("A")), lacking, on_error="fail", **terms))
    assert detail(caught.value, "ErrorInfo").reason == "measurement_missing"


@pytest.mark.parametrize(
    ("options", "code", "field"),
    [
        ({"target": ""}, "request_invalid", "options.target"),
        ({"target": "spectrum.gone"}, "modality_unknown", "spectrum.gone"),
        ({"target": "legacysurvey.flux_g"}, "modality_not_in_checkpoint", "tok_flux_g"),
        ({"keep": pb.Range(low=2, high=1)}, "option_invalid", "keep"),
        ({"mask": pb.Box(x1=4, y1=4)}, "option_invalid", "mask"),
        ({"sources": [SPECTRUM]}, "option_invalid", "from"),
        ({"draws": 0}, "request_invalid", "options.draws"),
        ({"rounds": MAX_ROUNDS + 1}, "request_invalid", "options.rounds"),
        ({"schedule": "sudden"}, "request_invalid", "options.schedule"),
        ({"temperature": float("nan")}, "request_invalid", "options.temperature"),
        ({"priority": "soon"}, "option_invalid", "priority"),
        ({"qa": "loose"}, "request_invalid", "options.qa"),
        ({"draws": 1001}, "too_large", "draws"),
    ],
)
def test_grpc_refuses_what_cannot_be_asked(
    door: grpc_doors.Served, options: dict[str, Any], code: str, field: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        door.embedding.Generate(generated(of_fluxes("f"), **options))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    told = detail(caught.value, "ErrorInfo")
    assert (told.reason, told.metadata["field"]) == (code, field)


def test_grpc_calls_that_are_late_or_called_off(slow: tuple[Slow, Core], settings: Settings) -> None:
    engine, core = slow
    request = generated(*(of_fluxes(f"f{n}", g=1.0 + n) for n in range(10)), draws=64, rounds=3)
    with grpc_doors.served(core, settings) as door:
        with pytest.raises(grpc.RpcError) as caught:
            door.embedding.Generate(request, timeout=0.3)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]
        time.sleep(0.2)
        assert 1 <= engine.passes < 15
        engine.begun.clear()
        engine.passes = 0
        call = door.embedding.Generate.future(request)
        assert engine.begun.wait(10)
        call.cancel()
        time.sleep(0.3)
        seen = engine.passes
        time.sleep(0.3)
        assert engine.passes == seen < 15


# The Python client


@pytest.fixture
def service(engine: ToyEngine, tmp_path: Path) -> Iterator[served.Served]:
    with served.served(engine, tmp_path / "served", max_draws=100) as made:
        yield made


def photometry(n: int) -> QTable:
    table = QTable({"id": [f"p{i}" for i in range(n)]}, meta={"survey": "legacysurvey"})
    table["flux_g"] = (1 + np.arange(n)) * u.nmgy
    return table


def equal(one: DrawsTable, other: DrawsTable) -> bool:
    return one.colnames == other.colnames and all(
        np.array_equal(np.asarray(one[name]), np.asarray(other[name]), equal_nan=one[name].dtype.kind == "f")
        for name in one.colnames
    )


def test_clients_give_the_draws_of_the_core(
    service: served.Served, core: Core, settings: Settings, contents: list[bytes], expected: list[Prediction[Any]]
) -> None:
    def check(table: Any) -> None:
        assert isinstance(table, DrawsTable)
        assert table["id"].tolist() == ["A", "B", "C", ""]
        assert table["error_code"].tolist() == ["", "value_out_of_range", "", "unknown_format"]
        assert table[SPECTRUM].shape == (4, 3, 20)
        assert table[SPECTRUM].unit == u.Unit("1e-17 erg / (s cm2 Angstrom)")
        for n in (0, 2):
            np.testing.assert_array_equal(table["tokens"][n], expected[n].answer.codes)
            np.testing.assert_array_equal(table[SPECTRUM][n].value, expected[n].answer.values)
        for n in (1, 3):
            assert np.isnan(table[SPECTRUM][n].value).all()
            assert (np.asarray(table["tokens"][n]) == -1).all()
        assert table.meta["sampling"] == asdict(SAMPLING)
        assert table.meta["target"]["axes"] == ["draw", "wavelength"]
        assert table.meta["usage"] == {"tokens": sum(one.n_tokens for one in expected)}
        assert len(table.ok()) == 2

    async def asynchronous() -> Any:
        async with AsyncClient(service.url) as one:
            return await one.generate(contents, SPECTRUM, draws=3, rounds=2, seed=5)

    with Client(service.url) as client:
        check(client.generate(contents, SPECTRUM, draws=3, rounds=2, seed=5))
    check(anyio.run(asynchronous))
    with Local(core=core, settings=settings) as local:
        check(local.generate(contents, SPECTRUM, draws=3, rounds=2, seed=5))


def test_many_objects_go_in_several_requests(service: served.Served) -> None:
    with Client(service.url) as client:
        many = client.generate(photometry(20), FLUX, draws=16)
        assert len(many.meta["request_ids"]) == 5
        assert many["id"].tolist() == [f"p{i}" for i in range(20)]
        assert many[FLUX].shape == (20, 16, 1)
        alone = client.generate(photometry(20)[7:8], FLUX, draws=16)
        np.testing.assert_array_equal(alone["tokens"][0], many["tokens"][7])
        with pytest.raises(TooLarge, match="100 draws"):
            client.generate(photometry(2), FLUX, draws=101)
        with pytest.raises(AlbireoError, match="less than or equal to 1000"):
            client.generate(photometry(2), FLUX, rounds=1001)


def test_what_a_client_asks(service: served.Served, engine: ToyEngine, image: Make, spectrum: Make) -> None:
    with Client(service.url, priority="bulk") as client:
        (request,) = client.generate(
            photometry(3), FLUX, sources="legacysurvey.flux_g", temperature=0.5, unit=u.nmgy, get_query_payload=True
        )
        assert request.path == "/v1/generate"
        assert request.json is not None
        assert request.json["options"] == {
            "target": FLUX, "from": ["legacysurvey.flux_g"], "draws": 8, "seed": 0, "temperature": 0.5,
            "encoding": "base64", "join": False, "read": {"unit": "nmgy"}, "priority": "bulk",
        }  # fmt: skip
        filled = client.generate(image("A"), "image.legacysurvey", mask=(0, 50, 20, 90), draws=2)
        assert filled["image.legacysurvey"].shape == (1, 2, 4, 96, 96)
        kept = client.generate(spectrum(7), SPECTRUM, keep=[390, 506] * u.nm, draws=2)
        assert kept.meta["known"]["keep"] == pytest.approx([3900, 5060])
        with pytest.raises(AlbireoError) as caught:
            client.generate(spectrum(7), SPECTRUM)
        assert caught.value.code == "nothing_to_embed"
        given = [image("A"), three_bands(image("B"))]
        answer = client.generate(given, SPECTRUM, draws=2, missing="error", cache="bypass")
        assert answer["error_code"].tolist() == ["", "measurement_missing"]
        with pytest.raises(AlbireoError) as caught:
            client.generate(given, SPECTRUM, missing="error", on_error="fail")
        assert caught.value.code == "measurement_missing"


def test_a_table_of_draws_is_read_as_it_was_written(service: served.Served, image: Make, tmp_path: Path) -> None:
    with Client(service.url) as client:
        table = client.generate([image("A"), image("B", 1)], SPECTRUM, draws=2)
    for suffix in ("fits", "ecsv"):
        table.write(tmp_path / f"t.{suffix}")
        read = DrawsTable.read(tmp_path / f"t.{suffix}")
        assert equal(read, table)
        assert read.meta == table.meta


# What it costs


def test_tokens_are_those_that_the_encoder_reads(core: Core, engine: ToyEngine, spectrum: Make, tmp_path: Path) -> None:
    """What quotas count, against what the engine was given."""
    (tmp_path / "s.fits").write_bytes(spectrum(7))
    for wanted, guidance in (
        (Wanted.named(FLUX), 1.0),
        (Wanted.named("image.legacysurvey"), 1.0),
        (Wanted.named("image.legacysurvey"), 3.0),
        (Wanted.named(SPECTRUM, keep=(3900, 5000)), 3.0),
    ):
        engine.given.clear()
        (one,) = core.generate(subjects_of(tmp_path / "s.fits"), wanted, Sampling(rounds=3, draws=2, guidance=guidance))
        assert one.n_tokens == sum(given.n_tokens for given in engine.given) > 0
    assert n_encoded(Tokens({}), "tok_flux_r", engine.outputs["tok_flux_r"], Sampling()) == 0
