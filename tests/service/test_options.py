"""The terms of a request, by every door: on_error, missing, qa, cache and dims."""

from __future__ import annotations

import inspect
import io
import json
import re
import socket
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import grpc
import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import QTable
from fastapi.testclient import TestClient

from albireo.index.collection import Collections
from albireo.models.engine import Embedding, Pooling, Tokens
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.observation import Image, Observation
from albireo.service import reply_formats as formats
from albireo.service.app import create_app
from albireo.service.client import AsyncClient, Client, Local
from albireo.service.core import Core
from albireo.service.embedding_cache import EmbeddingCache
from albireo.service.oip import Models
from albireo.service.oip_rest import OipDoors
from albireo.service.protos.albireo.v1 import albireo_pb2 as pb
from albireo.service.protos.albireo.v1 import albireo_pb2_grpc as pb_grpc
from albireo.service.readiness import Readiness
from albireo.service.settings import Settings
from albireo.service.shelf import Shelf
from albireo.service.subjects import Subject
from albireo.service.terms import DOUBTFUL, DOUBTFUL_ENDS, NOT_MISSED, TERMS, Refused, Terms, doubtful
from albireo.service.token_cache import CachedTokens, TokenCache
from tests.service import grpc_doors
from tests.service.conftest import DIM, ToyEngine
from tests.service.grpc_doors import detail, embedded, of_file, of_fluxes
from tests.service.served import Served, running

Make = Callable[..., bytes]
ROOT = Path(__file__).parents[2]


class CountingEngine(ToyEngine):
    """Counts objects that are tokenized and encoded; objects of more than 100 nanomaggies have a doubtful flag."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenized = self.encoded = 0

    def tokenize(
        self, observations: Sequence[Observation], kinds: Collection[str] | None = None
    ) -> list[Tokens | AlbireoError]:
        self.tokenized += len(observations)
        out = super().tokenize(observations, kinds)
        for i, (one, made) in enumerate(zip(observations, out, strict=True)):
            brightest = max((float(np.max(p.flux)) for p in one.data.values() if isinstance(p, Image)), default=0.0)
            if isinstance(made, Tokens) and brightest > 100:
                out[i] = Tokens(made.ids, flags=("flux_clipped",))
        return out

    def embed(self, tokens: Sequence[Tokens], pooling: Pooling | Sequence[Pooling] = "mean") -> list[Embedding]:
        self.encoded += len(tokens)
        return super().embed(tokens, pooling)


@pytest.fixture
def engine() -> CountingEngine:
    return CountingEngine()


@pytest.fixture
def core(engine: CountingEngine, settings: Settings, tmp_path: Path) -> Iterator[Core]:
    """With caches of tokens and of embeddings."""
    cached = CachedTokens(engine, TokenCache(tmp_path / "tokens", 1 << 20))
    shelf = Shelf({"own": settings.data_folder / "heads"})
    made = Core(lambda: cached, lambda: Collections(settings.collections_file), shelf=lambda: shelf)
    made._results = EmbeddingCache(1 << 20)
    yield made
    made.close()
    cached.cache.close()


@pytest.fixture
def idle(client: TestClient, engine: CountingEngine) -> CountingEngine:
    """The engine when the service has probed itself."""
    assert client.get("/readyz").status_code == 200
    engine.tokenized = engine.encoded = 0
    return engine


def asked(
    client: TestClient, path: str, *contents: bytes, headers: dict[str, str] | None = None, **options: Any
) -> Any:
    """The files in one request with these options."""
    parts: list[Any] = [("file", (f"{n}.fits", content)) for n, content in enumerate(contents)]
    body = {"options": options} | ({"heads": ["tok_z"]} if path == "/v1/predict" else {})
    return client.post(path, files=[*parts, ("request", (None, json.dumps(body)))], headers=headers or {})


def three_bands(content: bytes) -> bytes:
    """An image without its i band."""
    with fits.open(io.BytesIO(content)) as hdus:
        hdu = fits.PrimaryHDU(hdus[0].data[[0, 1, 3]], hdus[0].header)
    hdu.header["BANDS"] = "grz"
    out = io.BytesIO()
    hdu.writeto(out)
    return out.getvalue()


def fluxes(**values: float) -> dict[str, Any]:
    """An item with fluxes of the Legacy Survey in nanomaggies."""
    read = {"survey": "legacysurvey", "release": "dr10", "system": "AB", "kind": "model", "extinction_corrected": False}
    units = dict.fromkeys(values, "nanomaggy")
    return {"id": "p", "inputs": [{"modality": "photometry", "values": values, "units": units, "read": read}]}


def codes(answer: Any) -> list[str | None]:
    assert answer.status_code in (200, 422), answer.text
    return [(item["error"] or {}).get("code") for item in answer.json()["items"]]


# One bad object fails all


@pytest.mark.parametrize("path", ["/v1/embed", "/v1/predict", "/v1/tokenize"])
def test_a_bad_object_fails_alone_or_all(client: TestClient, idle: CountingEngine, image: Make, path: str) -> None:
    given = (image("A"), image("B", level=1e7), image("C", 1))
    assert codes(asked(client, path, *given)) == [None, "value_out_of_range", None]
    assert idle.tokenized == 3
    encoded = idle.encoded
    refused = asked(client, path, *given, on_error="fail")
    assert refused.status_code == 422
    problem = refused.json()
    assert (problem["code"], problem["file"], problem["field"]) == ("value_out_of_range", "1.fits", "flux")
    assert [(item["id"], item["error"]["code"]) for item in problem["items"]] == [("B", "value_out_of_range")]
    assert idle.encoded == encoded, "the encoder ran"
    assert asked(client, path, given[0], given[2], on_error="fail").status_code == 200


@pytest.mark.parametrize("path", ["/v1/embed", "/v1/predict", "/v1/tokenize"])
def test_what_cannot_be_read_fails_all_before_anything_is_tokenized(
    client: TestClient, idle: CountingEngine, image: Make, jpeg: bytes, path: str
) -> None:
    refused = asked(client, path, image("A"), jpeg, on_error="fail")
    assert (refused.status_code, refused.json()["code"]) == (422, "not_photometric")
    assert (idle.tokenized, idle.encoded) == (0, 0)
    assert codes(asked(client, path, image("A"), jpeg)) == [None, "not_photometric"]


def test_nothing_of_many_portions_is_encoded(engine: CountingEngine, core: Core, settings: Settings) -> None:
    """The bad object is among the last of several portions."""
    subjects = [Subject(f"{n}", None, _star(n)) for n in range(600)]
    with pytest.raises(Refused) as caught:
        core.under(Terms("fail")).embed([*subjects, Subject("bad", None, _star(10**7))])
    assert (caught.value.code, [one.subject.id for one in caught.value.outcomes]) == ("value_out_of_range", ["bad"])
    assert engine.encoded == 0
    assert core.embed([*subjects, Subject("bad", None, _star(10**7))]).n_failed == 1


def test_an_object_that_the_encoder_refuses_fails_all(core: Core, engine: CountingEngine) -> None:
    class Refusing(CountingEngine):
        def embed_each(self, tokens: Any, pooling: Any = "mean") -> Any:
            out: list[Any] = list(self.embed(tokens, pooling))
            return [*out[:-1], BadInput("too_many_tokens", "too long")]

    engine = Refusing()
    core = Core(lambda: engine, lambda: core.collections)
    subjects = [Subject(str(n), None, _star(n)) for n in range(3)]
    assert [one.status for one in core.embed(subjects).outcomes] == ["ok", "ok", "error"]
    with pytest.raises(Refused, match="too long"):
        core.under(Terms("fail")).embed(subjects)


def test_a_defect_is_no_bad_input(settings: Settings) -> None:
    class Broken(CountingEngine):
        def tokenize(self, observations: Any, kinds: Any = None) -> Any:
            return [AlbireoError("internal", "the service failed on this object") for _ in observations]

    made = Core(Broken, lambda: Collections(settings.collections_file))
    with pytest.raises(AlbireoError) as caught:
        made.under(Terms("fail")).embed([Subject("a", None, _star(1))])
    assert (type(caught.value), caught.value.code) == (AlbireoError, "internal")
    made.close()


def test_collections_keep_nothing_of_a_request_that_fails(client: TestClient, image: Make, jpeg: bytes) -> None:
    client.put("/v1/collections/c", json={})
    objects = "/v1/collections/c/objects"
    assert asked(client, objects, image("A"), jpeg, on_error="fail").json()["code"] == "not_photometric"
    twice = asked(client, objects, image("A"), image("A", 1), on_error="fail")
    assert (twice.status_code, twice.json()["field"]) == (422, "id")
    vectors = [{"id": "v", "vector": [0.5] * DIM}, {"id": "w", "vector": [0.5] * (DIM - 1)}]
    body = {"objects": vectors, "space": "toy@0123456789ab:mean", "options": {"on_error": "fail"}}
    assert client.post(objects, json=body).json()["code"] == "dimension_mismatch"
    assert client.get("/v1/collections/c").json()["count"] == 0
    assert client.post(objects, json=body | {"options": {}}).json()["indexed"] == 1


def test_search_under_terms(client: TestClient, image: Make, jpeg: bytes) -> None:
    client.put("/v1/collections/c", json={})
    assert asked(client, "/v1/collections/c/objects", image("A")).json()["indexed"] == 1
    assert asked(client, "/v1/collections/c/search", image("B", 1), jpeg).status_code == 200
    assert asked(client, "/v1/collections/c/search", image("B", 1), jpeg, on_error="fail").status_code == 422
    strict = asked(client, "/v1/collections/c/search", image("B", 1, level=500.0), qa="strict")
    assert strict.json()["code"] == "measurement_doubtful"


@pytest.mark.parametrize("path", ["/v1/embed", "/v1/predict/tok_z", "/v1/tokenize"])
def test_in_the_query_string(client: TestClient, image: Make, path: str) -> None:
    content, headers = image("A", level=500.0), {"Content-Type": "application/fits"}
    assert client.post(path, content=content, headers=headers).status_code == 200
    answer = client.post(f"{path}?qa=strict&cache=bypass&missing=error&on_error=fail", content=content, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "measurement_doubtful")
    unknown = client.post(f"{path}?qa=loose", content=content, headers=headers)
    assert (unknown.status_code, unknown.json()["field"]) == (422, "options.qa")


# What is missing


def test_a_modality_that_is_not_read(client: TestClient) -> None:
    body: dict[str, Any] = {"items": [fluxes(flux_g=12.5, flux_z=3.0)]}
    (item,) = client.post("/v1/embed", json=body).json()["items"]
    assert (item["status"], item["warnings"][0]["code"]) == ("degraded", "modality_not_in_checkpoint")
    refused = client.post("/v1/embed", json=body | {"options": {"missing": "error"}})
    assert codes(refused) == ["measurement_missing"]
    assert "legacysurvey.flux_z" in refused.json()["detail"]
    assert client.post("/v1/embed", json={"items": [fluxes(flux_g=12.5)], "options": {"missing": "error"}}).is_success


def test_a_band_that_is_not_there(client: TestClient, idle: CountingEngine, image: Make) -> None:
    given = (three_bands(image("A")), image("B", 1))
    assert codes(asked(client, "/v1/embed", *given)) == [None, None]
    answer = asked(client, "/v1/embed", *given, missing="error")
    assert codes(answer) == ["measurement_missing", None]
    assert "no DES-I in image.legacysurvey" in answer.json()["items"][0]["error"]["message"]
    assert asked(client, "/v1/validate", *given).json()["items"][0]["usable"]
    (lacking, whole) = asked(client, "/v1/validate", *given, missing="error").json()["items"]
    assert (lacking["usable"], lacking["errors"][0]["code"], whole["usable"]) == (False, "measurement_missing", True)


def test_a_band_in_which_no_pixel_is_good(image: Make) -> None:
    (seen,) = _read(image("A"))
    picture = seen.data["tok_image"]
    assert isinstance(picture, Image)
    assert Terms(missing="error").objection(seen, seen.flags) is None
    mask = picture.mask.copy()
    mask[2] = True
    mask[1, :50] = True  # some pixels are no band
    blank = Observation("A", {"tok_image": Image(**{**vars(picture), "mask": mask})})
    error = Terms(missing="error").objection(blank, ())
    assert error is not None
    assert error.message == "object 'A': no DES-I in image.legacysurvey"


def test_a_value_that_a_row_lacks(client: TestClient) -> None:
    table = b"id,FLUX_G,FLUX_R\na,12.5,3\nb,12.5,\n"
    headers = {"Content-Type": "text/csv"}
    assert codes(client.post("/v1/embed?survey=legacysurvey", content=table, headers=headers)) == [None, None]
    answer = client.post("/v1/embed?survey=legacysurvey&missing=error", content=table, headers=headers)
    assert codes(answer) == [None, "measurement_missing"]
    assert "missing_flux_r" in answer.json()["items"][1]["error"]["message"]


@pytest.mark.parametrize("flag", ["non_detection_flux_r", "missing_bp", "missing_cameras"])
def test_flags_that_name_what_is_missing(flag: str) -> None:
    error = Terms(missing="error").objection(_star(1), ("cropped", flag))
    assert error is not None
    assert flag in error.message
    assert Terms(qa="strict").objection(_star(1), (flag,)) is None


@pytest.mark.parametrize("flag", sorted(NOT_MISSED | {"masked_pixels", "cropped", "toy"}))
def test_flags_that_name_nothing_that_is_missing(flag: str) -> None:
    assert Terms("fail", "error", "strict").objection(_star(1), (flag,)) is None


# What may be bad


@pytest.mark.parametrize("path", ["/v1/embed", "/v1/predict", "/v1/tokenize"])
def test_doubtful_measurements(client: TestClient, idle: CountingEngine, image: Make, path: str) -> None:
    given = (image("A"), image("B", level=500.0))
    assert codes(asked(client, path, *given)) == [None, None]
    answer = asked(client, path, *given, qa="strict")
    assert codes(answer) == [None, "measurement_doubtful"]
    item = answer.json()["items"][1]
    assert (item["error"]["field"], item["qa_flags"]) == ("qa", ["flux_clipped"])
    assert "flux_clipped" in item["error"]["message"]


def test_doubtful_measurements_are_not_drawn_from(client: TestClient, image: Make) -> None:
    given, target = (image("A"), image("B", level=500.0)), {"target": "spectrum.sdss", "draws": 1, "rounds": 1}
    assert codes(asked(client, "/v1/generate", *given, **target)) == [None, None]
    assert codes(asked(client, "/v1/generate", *given, **target, qa="strict")) == [None, "measurement_doubtful"]
    problem = asked(client, "/v1/generate", *given, **target, qa="strict", on_error="fail").json()
    assert (problem["code"], [item["id"] for item in problem["items"]]) == ("measurement_doubtful", ["B"])


def test_the_flags_that_count_are_those_of_the_docs() -> None:
    page = (ROOT / "docs/conventions.md").read_text().partition("## QA flags")[2]
    about, table = page.split("| flag |")
    counted = about.partition("**`qa=strict`**")[2].partition("The others do not count")[0]
    assert set(re.findall(r"`([a-z_0-9.]+)`", counted)) - {"measurement_doubtful"} == DOUBTFUL | {
        f"...{end}" for end in DOUBTFUL_ENDS
    }
    known = set(re.findall(r"^\| `([a-z_0-9.]+)` \|", table, re.MULTILINE))
    assert known >= DOUBTFUL
    assert known >= {f"...{end}" for end in DOUBTFUL_ENDS}
    assert doubtful("flux_g_token_saturated")
    assert not doubtful("masked_pixels")


# Numbers of an embedding


def test_dims(client: TestClient, image: Make) -> None:
    whole = asked(client, "/v1/embed", image("A"))
    same = asked(client, "/v1/embed", image("A"), dims=DIM)
    assert same.json()["items"][0]["embedding"] == whole.json()["items"][0]["embedding"]
    for dims in (8, DIM + 1):
        refused = asked(client, "/v1/embed", image("A"), dims=dims)
        assert (refused.status_code, refused.json()["code"], refused.json()["field"]) == (422, "option_invalid", "dims")
        assert "Matryoshka" in refused.json()["detail"]
    assert asked(client, "/v1/embed", image("A"), dims=0).status_code == 422
    assert asked(client, "/v1/tokenize", image("A"), dims=DIM).status_code == 422, "tokens have none"


# Caches


def test_what_was_remembered(client: TestClient, idle: CountingEngine, image: Make, jpeg: bytes) -> None:
    def caches(*contents: bytes, **options: Any) -> list[str | None]:
        return [item["cache"] for item in asked(client, "/v1/embed", *contents, **options).json()["items"]]

    a, b = image("A"), image("B", 1)
    assert caches(a, jpeg) == ["miss", None]
    assert caches(a, b) == ["hit", "miss"]
    assert caches(a, b) == ["hit", "hit"]
    assert (idle.tokenized, idle.encoded) == (2, 2)
    assert caches(a, b, cache="bypass") == ["miss", "miss"]
    assert (idle.tokenized, idle.encoded) == (4, 4), "both caches are passed by"
    c = image("C", 2)
    assert caches(c, cache="bypass") == caches(c) == ["miss"], "nothing is kept"
    assert idle.tokenized == 6
    assert caches(a, pooling="tokens") == caches(a, pooling="tokens") == ["miss"]


def test_tokens_anew(client: TestClient, idle: CountingEngine, image: Make) -> None:
    for path in ("/v1/tokenize", "/v1/predict"):
        asked(client, path, image("A"))
    assert idle.tokenized == 1
    for path in ("/v1/tokenize", "/v1/predict"):
        asked(client, path, image("A"), cache="bypass")
    assert idle.tokenized == 3


@pytest.mark.parametrize("accept", [formats.PARQUET, formats.ARROW, formats.CSV, formats.FITS, formats.VOTABLE])
def test_tables_say_it(client: TestClient, image: Make, jpeg: bytes, accept: str) -> None:
    from astropy.table import Table

    asked(client, "/v1/embed", image("A"))
    content = asked(client, "/v1/embed", image("A"), image("B", 1), jpeg, headers={"Accept": accept}).content
    if accept == formats.PARQUET:
        told = pq.read_table(io.BytesIO(content)).column("cache").to_pylist()
    elif accept == formats.ARROW:
        import pyarrow as pa

        told = pa.ipc.open_stream(content).read_all().column("cache").to_pylist()
    else:
        form = {formats.CSV: "ascii.csv", formats.FITS: "fits", formats.VOTABLE: "votable"}[accept]
        told = [str(one) for one in Table.read(io.BytesIO(content), format=form)["cache"].filled("")]
    assert [one or None for one in told] == ["hit", "miss", None]


def test_without_a_cache_everything_is_a_miss(settings: Settings, image: Make) -> None:
    made = Core(ToyEngine, lambda: Collections(settings.collections_file))
    with TestClient(create_app(made, settings, Readiness(made, settings.data_folder))) as client:
        for _ in range(2):
            assert asked(client, "/v1/embed", image("A")).json()["items"][0]["cache"] == "miss"


# Where the time went


@pytest.mark.parametrize("accept", [formats.JSON, formats.RAW, formats.PARQUET])
def test_timings(client: TestClient, engine: CountingEngine, image: Make, accept: str) -> None:
    answer = asked(client, "/v1/embed", image("A"), image("B", 1), headers={"Accept": accept})
    if accept == formats.JSON:
        told = answer.json()["timings_ms"]
    elif accept == formats.RAW:
        length = int.from_bytes(answer.content[:4], "little")
        told = json.loads(answer.content[4 : 4 + length])["timings_ms"]
    else:
        told = json.loads(pq.read_schema(io.BytesIO(answer.content)).metadata[b"timings_ms"])
    assert list(told) == ["parse", "tokenize", "queue", "encode", "serialize"]
    assert all(ms > 0 for ms in told.values()), told
    total = float(re.findall(r"total;dur=([\d.]+)", answer.headers["server-timing"])[0])
    assert sum(told.values()) <= total


def test_the_wait_in_the_queue_is_told(
    client: TestClient, core: Core, engine: CountingEngine, settings: Settings, image: Make
) -> None:
    """A request that comes while all encoders compute waits for them."""
    assert asked(client, "/v1/embed", image("A")).is_success
    assert core.pipeline is not None
    encoding, n = core.pipeline.encoding, settings.staffing.encoders
    engine.gate.clear()
    with ThreadPoolExecutor(n + 1) as threads:
        first = []
        for seed in range(n):
            first.append(threads.submit(asked, client, "/v1/embed", image("Q", 7 + seed)))
            until(lambda seed=seed: encoding.computing == seed + 1)
        last = threads.submit(asked, client, "/v1/embed", image("L", 5))
        until(lambda: encoding.waiting > 0)
        time.sleep(0.2)
        engine.gate.set()
        told = last.result().json()["timings_ms"]
        assert told["queue"] > 190
        assert all(one.result().json()["timings_ms"]["encode"] > 190 for one in first)


# gRPC


@pytest.fixture
def door(core: Core, settings: Settings) -> Iterator[grpc_doors.Served]:
    with grpc_doors.served(core, settings) as made:
        yield made


def test_grpc_answers_each_object_or_refuses_all(door: grpc_doors.Served, engine: CountingEngine) -> None:
    good, bad = of_fluxes("a"), of_fluxes("b", g=1e7)
    assert [one.status for one in door.embedding.Embed(embedded(bad, bad)).items] == ["error", "error"]
    encoded = engine.encoded
    for call in (
        lambda: door.embedding.Embed(embedded(good, bad, on_error="fail")),
        lambda: door.embedding.Tokenize(
            pb.TokenizeRequest(items=[good, bad], options=pb.TokenizeOptions(on_error="fail"))
        ),
        lambda: door.heads.Predict(
            pb.PredictRequest(items=[good, bad], options=pb.PredictOptions(heads=["tok_z"], on_error="fail"))
        ),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert detail(caught.value, "ErrorInfo").reason == "value_out_of_range"
        assert detail(caught.value, "BadRequest").field_violations[0].field == "flux"
    assert engine.encoded == encoded


def test_grpc_terms(door: grpc_doors.Served, image: Make) -> None:
    lacking, doubtful_one = of_file(three_bands(image("A"))), of_file(image("B", level=500.0))
    answer = door.embedding.Embed(embedded(lacking, doubtful_one, missing="error", qa="strict"))
    assert [one.error.code for one in answer.items] == ["measurement_missing", "measurement_doubtful"]
    assert [one.status for one in door.embedding.Embed(embedded(lacking, doubtful_one)).items] == ["ok", "ok"]
    (told,) = door.embedding.Validate(embedded(lacking, missing="error")).items
    assert (told.usable, told.errors[0].code) == (False, "measurement_missing")
    for wrong in ({"missing": "never"}, {"dims": 8}, {"dims": 0}):
        with pytest.raises(grpc.RpcError) as caught:
            door.embedding.Embed(embedded(lacking, **wrong))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert detail(caught.value, "BadRequest").field_violations[0].field == next(iter(wrong))
    assert door.embedding.Embed(embedded(lacking, dims=DIM)).items[0].status == "ok"


def test_grpc_tells_of_the_cache(door: grpc_doors.Served, image: Make) -> None:
    sent = [of_file(image("A")), of_file(b"no format")]
    told = [[one.cache for one in door.embedding.Embed(embedded(*sent)).items] for _ in range(2)]
    assert told == [["miss", ""], ["hit", ""]]
    assert [one.cache for one in door.embedding.Embed(embedded(*sent, cache="bypass")).items] == ["miss", ""]


def test_streams_under_terms(door: grpc_doors.Served, image: Make) -> None:
    bright = of_file(image("B", level=500.0))
    bright.embed.qa = "strict"
    assert [one.error.code for one in door.embedding.EmbedStream(iter([bright]))] == ["measurement_doubtful"]
    bright.embed.on_error = "fail"
    with pytest.raises(grpc.RpcError) as caught:
        list(door.embedding.EmbedStream(iter([bright])))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert detail(caught.value, "ErrorInfo").reason == "option_invalid"


def test_grpc_timings(door: grpc_doors.Served) -> None:
    told = door.embedding.Embed(embedded(of_fluxes("a"))).envelope.timings_ms
    assert set(told) == {"parse", "tokenize", "queue", "encode", "serialize"}


# The Python client


@pytest.fixture
def service(core: Core, settings: Settings) -> Iterator[Served]:
    with running(Served(core, settings)) as made:
        yield made


def table(n: int, bad: Sequence[int] = ()) -> QTable:
    flux = np.where(np.isin(np.arange(n), bad), 1e7, 1 + np.arange(n))
    columns = {"id": [f"p{i}" for i in range(n)], "flux_g": flux * u.nmgy, "flux_r": (1 + np.arange(n)) * u.nmgy}
    return QTable(columns, meta={"survey": "legacysurvey"})


def test_the_client_raises_the_first_error(service: Served, image: Make) -> None:
    """Also if only one of several requests has a bad object; max_items parts the table."""
    with Client(service.url, progress=False) as client:
        assert client.embed(table(120, bad=[70]))["status"].tolist().count("error") == 1
        service.door.seen.clear()
        for ask in (client.embed, client.tokenize, lambda given, **more: client.predict(given, "tok_z", **more)):
            with pytest.raises(BadInput) as caught:
                ask(table(120, bad=[70]), on_error="fail")
            assert (caught.value.code, caught.value.field) == ("value_out_of_range", "flux")
        assert len([one for one in service.door.seen if one.url.path == "/v1/embed"]) == 2, "the third was sent"
        service.door.seen.clear()
        with pytest.raises(AlbireoError) as lost:
            client.embed([image("A"), "/no/such/file"], on_error="fail")
        assert lost.value.code == "file_not_found"
        assert service.door.seen == [], "something was sent"
        assert len(client.embed(table(120), on_error="fail")) == 120


def test_the_asynchronous_client_does_too(service: Served) -> None:
    async def ask() -> None:
        async with AsyncClient(service.url, progress=False) as client:
            assert len(await client.embed(table(60, bad=[10]))) == 60
            with pytest.raises(BadInput, match="brighter"):
                await client.embed(table(60, bad=[10]), on_error="fail")

    anyio.run(ask)


def test_terms_of_the_client(service: Served, image: Make) -> None:
    with Client(service.url) as client:
        given = [three_bands(image("A")), image("B", level=500.0), image("C", 1)]
        answer = client.embed(given, missing="error", qa="strict")
        assert answer["error_code"].tolist() == ["measurement_missing", "measurement_doubtful", ""]
        assert client.embed(given)["cache"].tolist() == ["miss", "miss", "hit"]
        assert client.embed(given, cache="bypass", dims=DIM)["cache"].tolist() == ["miss"] * 3
        with pytest.raises(BadInput) as caught:
            client.embed(given, dims=2)
        assert caught.value.field == "dims"
        for wrong in ({"qa": "loose"}, {"cache": None}):
            with pytest.raises(BadInput) as caught:
                client.embed(given, **wrong)
            assert caught.value.field == next(iter(wrong))
        made = client.create_collection("mine")
        with pytest.raises(BadInput):
            made.upsert([image("A"), image("A", 1)], on_error="fail")
        assert made.about()["count"] == 0
        nested = {"id": "x", "inputs": [{"file": image("A"), "read": {"qa": "strict"}}]}
        with pytest.raises(BadInput):
            client.embed(nested)


def test_in_process(core: Core, settings: Settings, image: Make) -> None:
    with Local(core=core, settings=settings) as local, pytest.raises(BadInput) as caught:
        local.embed(image("B", level=500.0), qa="strict")
    assert caught.value.code == "measurement_doubtful"


def test_what_is_not_said_is_not_sent(service: Served, image: Make) -> None:
    with Client(service.url) as client:
        (request,) = client.embed(image("A"), get_query_payload=True)
        assert request.json is not None
        assert not request.json["options"].keys() & {*TERMS, "dims"}
        (request,) = client.validate(image("A"), qa="strict", get_query_payload=True)
        assert request.json == {"options": {"qa": "strict"}}


# Beside


def test_the_document_says_where_a_key_goes(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    schemes = document["components"]["securitySchemes"]
    assert schemes["bearer"]["scheme"] == "bearer"
    assert (schemes["api_key"]["in"], schemes["api_key"]["name"]) == ("header", "X-API-Key")
    asks = {path for path, row in document["paths"].items() if any("security" in one for one in row.values())}
    assert {"/v1/embed", "/v1/collections/{c}/objects", "/v2/models/{model}/infer"} <= asks
    assert not asks & {"/livez", "/readyz", "/v2/health/live"}
    assert document["paths"]["/v1/embed"]["post"]["security"] == [{"bearer": []}, {"api_key": []}, {}]


def test_calls_get_as_long_to_end_as_requests(settings: Settings, core: Core, engine: CountingEngine) -> None:
    """A call that hangs is ended after ALBIREO_DRAIN_SECONDS, not after what the door would give it by itself."""
    stated = settings.model_copy(update={"grpc_port": free_port(), "drain_seconds": 1.0})
    ended: list[float] = []

    def call() -> None:
        with grpc.insecure_channel(f"127.0.0.1:{stated.grpc_port}") as channel:
            with pytest.raises(grpc.RpcError):
                pb_grpc.EmbeddingStub(channel).Embed(embedded(of_fluxes("a")), timeout=20)
            ended.append(time.monotonic())
            engine.gate.set()

    with ThreadPoolExecutor(1) as threads:
        readiness = Readiness(core, stated.data_folder)
        with TestClient(create_app(core, stated, readiness)) as client:
            assert client.get("/readyz").status_code == 200
            engine.gate.clear()
            hanging = threads.submit(call)
            until(lambda: core.pipeline is not None and core.pipeline.encoding.computing > 0)
            began = time.monotonic()
        hanging.result()
    assert 0.9 < ended[0] - began < 6


def test_the_inference_protocol_has_spare_threads(core: Core, settings: Settings) -> None:
    doors = OipDoors(Models(core), settings, Readiness(core, settings.data_folder))
    assert doors._working.total_tokens > settings.max_requests


def test_help_of_serve_names_no_part_of_the_operations() -> None:
    from albireo.service.cli import serve

    text = inspect.getdoc(serve) or ""
    assert "/docs" in text
    assert "/v1/" not in text


def until(true: Callable[[], bool]) -> None:
    for _ in range(2000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("nothing came")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _star(flux: float) -> Observation:
    from albireo.observations.observation import Scalar

    return Observation(str(flux), {"tok_flux_g": Scalar(float(flux), "nanomaggy")})


def _read(content: bytes) -> list[Observation]:
    from albireo.observations.options import ReadOptions
    from albireo.observations.reading import read_files
    from albireo.observations.source import Source

    (report,) = read_files([Source("a.fits", content)], ReadOptions())
    return [item for item in report.items if isinstance(item, Observation)]
