"""The Python client against a service on a free port: what it asks, what it tries again, what it makes of answers."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import QTable, Table

from albireo.observations.errors import (
    AlbireoError,
    BadInput,
    Busy,
    Conflict,
    Denied,
    Late,
    NoKey,
    NotFound,
    Unavailable,
)
from albireo.service.client import AsyncClient, Client, Local, TokenTable
from albireo.service.client_answers import Answered, AnswerTable, EmbeddingTable, NeighborTable
from albireo.service.client_inputs import Piece
from albireo.service.client_predictions import RedshiftResult, prediction_table
from albireo.service.client_requests import Batch, Request
from albireo.service.client_transport import Access, Patience, rebuilt, refusal
from albireo.service.keys import ROLES, Key, Quota, entry, new_key, sha256_of
from tests.service.conftest import ToyEngine
from tests.service.served import Served, new_core, served

Make = Callable[..., bytes]
BUSY = Busy("overloaded", "too much to do")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(ToyEngine(), tmp_path_factory.mktemp("served"), max_body_bytes=1 << 20, max_items=50) as made:
        yield made


@pytest.fixture
def client(service: Served) -> Iterator[Client]:
    service.door.seen.clear()
    service.door.most_inside = 0
    with Client(service.url) as made:
        yield made
    service.door.refusals.clear()


def photometry(n: int, first: int = 0, **meta: Any) -> QTable:
    table = QTable({"id": [f"p{first + i}" for i in range(n)]}, meta={"survey": "legacysurvey"} | meta)
    table["ra"], table["dec"] = np.linspace(10, 20, n) * u.deg, np.linspace(-5, 5, n) * u.deg
    table["flux_g"] = (1 + first + np.arange(n)) * u.nmgy
    table["flux_r"] = (1 + first + np.arange(n)) / 3 * u.nmgy
    return table


def bits(column: Any) -> Any:
    values = np.asarray(column)
    objects = values.dtype.kind == "O"
    return values.dtype, json.dumps(values.tolist(), default=np.ndarray.tolist) if objects else values.tobytes()


def equal(one: Table, other: Table) -> bool:
    """Cell for cell, to the bit."""
    return one.colnames == other.colnames and all(bits(one[name]) == bits(other[name]) for name in one.colnames)


# Embeddings


def test_an_embedding_table(client: Client, service: Served, image: Make, jpeg: bytes) -> None:
    answer = client.embed([image("A"), jpeg, image("B", level=1e7), image("C", 1)])
    assert isinstance(answer, EmbeddingTable)
    assert answer["id"].tolist() == ["A", "", "B", "C"]
    assert answer["status"].tolist() == ["ok", "error", "error", "ok"]
    assert answer["error_code"].tolist() == ["", "not_photometric", "value_out_of_range", ""]
    assert answer["ra"].unit == u.deg
    assert answer["ra"][0] == 150.1 * u.deg
    assert answer["embedding"].dtype == np.float32
    assert answer["embedding"].shape == (4, 16)
    assert np.isnan(answer["embedding"][1]).all()
    assert answer["modalities"].tolist() == ["image.legacysurvey", "", "", "image.legacysurvey"]
    assert answer["n_tokens"].tolist() == [4, 0, 0, 4]
    assert "toy" in answer["qa_flags"][0].split(",")
    assert isinstance(answer.ok(), EmbeddingTable)
    assert (len(answer.ok()), len(answer.failed())) == (2, 2)
    assert [error.code for error in answer.errors()] == ["not_photometric", "value_out_of_range"]
    meta = answer.meta
    assert (meta["space"], meta["model"], meta["dim"], meta["pooling"]) == ("toy@0123456789ab:mean", "toy", 16, "mean")
    assert meta["usage"] == {"tokens": 8}
    assert {"parse", "tokenize", "encode"} <= meta["timings_ms"].keys()
    assert meta["request_ids"] == [service.door.seen[-1].headers["x-request-id"]]


def test_the_kinds_of_pooling(client: Client, image: Make) -> None:
    one = {"id": "A", "image": image("A"), "photometry": {"flux_g": 3 * u.nmgy}, "read": {"survey": "legacysurvey"}}
    mean = client.embed(one)
    parts = client.embed(one, pooling="mean_per_modality")
    tokens = client.embed([one, photometry(1)], pooling="tokens")
    assert parts["id"].tolist() == ["A", "A"]
    assert parts["row"].tolist() == ["image.legacysurvey", "legacysurvey.flux_g"]
    assert tokens["id"].tolist() == ["A"] * 5 + ["p0"] * 2
    assert np.allclose(tokens["embedding"][:5].mean(axis=0), mean["embedding"][0], rtol=1e-6)
    assert np.allclose(np.linalg.norm(client.embed(one, normalize=True)["embedding"], axis=1), 1)


@pytest.mark.parametrize("suffix", ["parquet", "fits", "ecsv"])
def test_tables_are_read_as_they_were_written(client: Client, image: Make, tmp_path: Path, suffix: str) -> None:
    bad = photometry(2)
    bad["id"] = ["\u03b1 Cen", "x"]
    bad["flux_g"][1] = 1e7 * u.nmgy
    answer = client.embed([image("A"), bad, "/no/such/file"])
    assert answer["error_code"].tolist() == ["", "", "value_out_of_range", "file_not_found"]
    path = tmp_path / f"t.{suffix}"
    answer.write(path)
    read = EmbeddingTable.read(path)
    assert type(read) is EmbeddingTable
    assert equal(read, answer)
    assert read.meta == answer.meta
    assert read["ra"].unit == u.deg
    with pytest.raises(OSError, match="exist"):
        answer.write(path)
    answer[:1].write(path, overwrite=True)
    assert len(QTable.read(path)) == 1


def test_base64_where_raw_is_not_spoken(service: Served, image: Make) -> None:
    """An older service, or a proxy that changes `Accept`, answers in JSON: the same numbers."""

    class Plain(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            request.headers["Accept"] = "application/json"
            return super().handle_request(request)

    one = [image("A"), photometry(2)]
    with Client(service.url) as raw, Client(service.url, transport=Plain()) as plain:
        for pooling in ("mean", "mean_per_modality", "tokens"):
            assert equal(raw.embed(one, pooling=pooling), plain.embed(one, pooling=pooling))


# Many objects


def test_many_objects_go_in_several_requests_and_come_back_in_order(client: Client, service: Served) -> None:
    table = photometry(120)
    answer = client.embed(table)
    assert len(service.door.seen) == 3
    assert answer["id"].tolist() == [f"p{i}" for i in range(120)]
    assert equal(answer, client.embed([table[:40], table[40:80], table[80:]])) is False, "the files have other names"
    parts = [client.embed(table[i : i + 40]) for i in (0, 40, 80)]
    assert np.array_equal(answer["embedding"], np.concatenate([part["embedding"] for part in parts]))
    assert answer.meta["usage"] == {"tokens": 240}
    assert len(answer.meta["request_ids"]) == 3


@pytest.mark.parametrize(("rows", "asked", "seen"), [(120, True, True), (120, False, False), (3, True, False)])
def test_a_bar_where_objects_need_several_requests(
    service: Served, monkeypatch: pytest.MonkeyPatch, rows: int, asked: bool, seen: bool
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Client(service.url, progress=asked) as client:
        client.embed(photometry(rows))
    assert (f"{rows}/{rows}" in terminal.getvalue()) is seen
    assert ("embedding" in terminal.getvalue()) is seen


def test_large_files_go_one_by_one(client: Client, service: Served, image: Make, tmp_path: Path) -> None:
    for n in range(9):
        (tmp_path / f"{n}.fits").write_bytes(image(f"A{n}", n))
    answer = client.embed(tmp_path)
    assert answer["id"].tolist() == [f"A{n}" for n in range(9)]
    assert len(service.door.seen) == 2, "9 files of 150 kB, three quarters of 1 MiB in each request"


def test_too_many_objects_in_two_files_are_parted(client: Client, service: Served, tmp_path: Path) -> None:
    """How many objects a file holds is only known to the service."""
    for n in range(2):
        photometry(30, 30 * n).write(tmp_path / f"{n}.ecsv")
    photometry(60, 60).write(tmp_path / "2.ecsv")
    answer = client.embed([tmp_path / f"{n}.ecsv" for n in range(3)])
    assert answer["id"].tolist() == [*(f"p{i}" for i in range(60)), ""]
    assert answer["error_code"].tolist()[-1] == "too_large"
    assert answer["file"].tolist()[-1] == "2.ecsv"
    assert len(service.door.seen) == 5, "all, the first half, the second half"


def test_a_file_over_the_limit_is_not_sent(client: Client, service: Served) -> None:
    with pytest.raises(AlbireoError) as caught:
        client.embed(bytes(2 << 20))
    assert caught.value.code == "too_large"
    assert service.door.seen == []


def test_an_item_that_is_no_item_fails_alone(client: Client) -> None:
    good = [{"id": f"o{n}", "photometry": {"flux_g": 1.0 + n, "flux_g_unit": "nmgy"}} for n in range(4)]
    items: list[Any] = [
        *good[:2],
        {"id": "bad", "photometry": {"flux_g": 1.0}, "meta": {"ra": 400, "dec": 0}},
        *good[2:],
    ]
    answer = client.embed(items, survey="legacysurvey")
    assert answer["id"].tolist() == ["o0", "o1", "bad", "o2", "o3"]
    assert answer["status"].tolist() == ["ok", "ok", "error", "ok", "ok"]
    assert answer["error_field"][2] == "meta.ra"


def test_join_needs_everything_in_one_request(client: Client, service: Served) -> None:
    table = photometry(20)
    one, two = table["id", "flux_g"], table["id", "flux_r"]
    one.meta = two.meta = table.meta
    answer = client.embed([one, two], join=True)
    assert len(service.door.seen) == 1
    assert answer["n_tokens"].tolist() == [2] * 20
    assert np.array_equal(answer["embedding"], client.embed(table)["embedding"])


def test_what_would_be_sent(client: Client, service: Served, image: Make) -> None:
    content = image("A")
    (request,) = client.embed(content, pooling="tokens", survey="legacysurvey", get_query_payload=True)
    assert isinstance(request, Request)
    assert (request.method, request.path) == ("POST", "/v1/embed")
    assert request.json is not None
    assert request.json["options"]["pooling"] == "tokens"
    assert request.json["options"]["read"] == {"survey": "legacysurvey"}
    assert request.files == (("file", "bytes0", content),)
    assert len(client.predict(photometry(2500), "tok_z", get_query_payload=True)) == 3
    (searched,) = client.collection("c").search({"image": content}, k=3, get_query_payload=True)
    assert searched.json["query"] == {"inputs": [{"modality": "image", "ref": "part:input#0"}]}
    assert service.door.seen == []
    assert client.limits is None, "not even the limits were asked for"


def test_priority_and_deadline_of_a_client(service: Served) -> None:
    with Client(service.url, priority="bulk", deadline=30) as client:
        (request,) = client.embed(photometry(1), get_query_payload=True)
        assert request.json is not None
        assert request.json["options"] | {"priority": "bulk", "deadline_ms": 30_000} == request.json["options"]
        assert client.embed(photometry(1))["status"].tolist() == ["ok"]
        assert client.predict(photometry(1), "tok_z")["status"].tolist() == ["ok"]


# Refusals


def test_busy_twice_then_an_answer(client: Client, service: Served) -> None:
    service.door.refusals = [(BUSY, "0"), (Unavailable("not_ready", "starting"), "0.1")]
    began = time.perf_counter()
    assert len(client.embed(photometry(2))) == 2
    assert len(service.door.seen) == 3
    assert time.perf_counter() - began > 0.1
    ids = {request.headers["x-request-id"] for request in service.door.seen}
    assert len(ids) == 1, "one request, however often it was sent"


def test_busy_for_too_long(service: Served) -> None:
    service.door.seen.clear()
    service.door.refusals = [(BUSY, "60")] * 9
    with Client(service.url, total=5) as client, pytest.raises(Busy) as caught:
        client.embed(photometry(1))
    assert len(service.door.seen) == 1, "to wait for a minute is to wait in vain"
    assert caught.value.retry_after == 60
    service.door.refusals = [(BUSY, "0")] * 99
    with Client(service.url, total=0.6) as client, pytest.raises(Busy) as caught:
        client.embed(photometry(1))
    assert len(service.door.seen) > 2
    assert "attempts" in "".join(caught.value.__notes__)
    service.door.refusals = []


@pytest.mark.parametrize(
    "error", [NotFound("model_unknown", "no", field="model", fix="x"), BadInput("option_invalid", "no", file="f"),
              Conflict("space_mismatch", "no"), Late("deadline_exceeded", "no"), AlbireoError("internal", "no")]
)  # fmt: skip
def test_other_refusals_are_raised_at_once(client: Client, service: Served, error: AlbireoError) -> None:
    service.door.refusals = [(error, "0")]
    with pytest.raises(AlbireoError) as caught:
        client.embed(photometry(1))
    assert len(service.door.seen) == 1
    assert type(caught.value) is type(error)
    assert caught.value.as_dict() == error.as_dict()
    assert caught.value.__notes__ == ["request refused-at-the-door"]


def test_a_deadline_that_passes_parts_the_request(client: Client, service: Served, image: Make) -> None:
    service.door.refusals = [(Late("deadline_exceeded", "too slow"), None)]
    assert client.embed([image("A"), image("B", 1)])["id"].tolist() == ["A", "B"]
    assert len(service.door.seen) == 3
    service.door.refusals = [(Late("deadline_exceeded", "too slow"), None)] * 2
    assert client.embed(photometry(10))["id"].tolist() == [f"p{i}" for i in range(10)]
    assert len(service.door.seen) == 8, "ten rows, five, three, two, five"
    service.door.refusals = [(Late("deadline_exceeded", "too slow"), None)] * 9
    with pytest.raises(Late):
        client.embed(image("A"))


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {role: new_key() for role in ROLES}
    rows = [Key(role, sha256_of(keys[role]), role, Quota(requests_per_day=3)) for role in ROLES]
    (tmp_path / "keys.toml").write_text("\n".join(map(entry, rows)))
    with served(ToyEngine(), tmp_path, keys_file=tmp_path / "keys.toml") as service:
        for wrong, code in ((None, "key_missing"), ("wrong", "key_unknown")):
            with Client(service.url, wrong) as client, pytest.raises(NoKey) as caught:
                client.embed(photometry(1))
            assert caught.value.code == code
        monkeypatch.setenv("ALBIREO_URL", service.url + "/")
        monkeypatch.setenv("ALBIREO_TOKEN", keys["read"])
        with Client(total=1) as client:
            assert len(client.embed(photometry(1))) == 1, "which asks for the limits, too"
            assert keys["read"] not in repr(client.access)
            with pytest.raises(Denied) as denied:
                client.create_collection("c")
            assert (type(denied.value), denied.value.code) == (Denied, "role_missing")
            client.heads()
            with pytest.raises(Busy) as busy:
                client.heads()
            assert busy.value.code == "quota_exceeded"
        local = service.settings.model_copy(update={"data_folder": tmp_path / "local"})
        with Local(core=new_core(ToyEngine(), local), settings=local) as twin:
            assert len(twin.embed(photometry(1))) == 1, "who runs it in his own process needs no key"


def test_nobody_there() -> None:
    began = time.perf_counter()
    with Client("http://127.0.0.1:1", total=0.5) as client:
        with pytest.raises(Unavailable) as caught:
            client.embed(photometry(1))
        with pytest.raises(Unavailable):
            client.ready()
    assert (caught.value.code, caught.value.field) == ("not_ready", "url")
    assert "albireo serve" in (caught.value.fix or "")
    assert time.perf_counter() - began < 5
    with pytest.raises(BadInput, match="is no address"):
        Client("localhost:8000")


def test_a_service_that_goes_away_in_the_middle(service: Served) -> None:
    """What was answered is kept; the rest has the reason, and is not tried one by one."""
    service.door.seen.clear()
    service.door.refusals = [None, *[(Unavailable("not_ready", "ending"), "99")] * 9]
    with Client(service.url, total=1) as client:
        answer = client.embed(photometry(200))
    service.door.refusals = []
    assert len(service.door.seen) == 2
    assert answer["id"].tolist()[:50] == [f"p{i}" for i in range(50)]
    assert answer["status"].tolist() == ["ok"] * 50 + ["error"] * 3
    assert answer["error_code"].tolist()[50:] == ["not_ready"] * 3


def test_a_service_that_does_not_answer_in_time(service: Served) -> None:
    def slow(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("slow", request=request)

    with Client(service.url, transport=httpx.MockTransport(slow)) as client, pytest.raises(Late):
        client.info()


@pytest.mark.parametrize(
    ("response", "kind", "text"),
    [
        (httpx.Response(200, text="<html>"), Unavailable, "not as Albireo"),
        (httpx.Response(200, json=[1]), Unavailable, "not as Albireo"),
        (httpx.Response(404, text="<html>"), NotFound, "not as Albireo"),
        (httpx.Response(502, text="<html>"), Unavailable, "not as Albireo"),
        (httpx.Response(500, text="boom"), AlbireoError, "not as Albireo"),
        (httpx.Response(422, json={"code": "of_the_future", "detail": "new"}), BadInput, "of_the_future: new"),
        (httpx.Response(200, content=b"\x99\0\0\0{}", headers={"Content-Type": "application/vnd.albireo.raw"}),
         Unavailable, "not as Albireo"),
    ],
)  # fmt: skip
def test_strangers_at_the_address(response: httpx.Response, kind: type[AlbireoError], text: str) -> None:
    transport = httpx.MockTransport(lambda request: response)
    with Client("http://x", total=0, transport=transport) as client, pytest.raises(AlbireoError, match=text) as caught:
        client.info()
    assert type(caught.value) is kind


def test_patience() -> None:
    now = 0.0
    patience = Patience(60, clock=lambda: now, seed=1)
    pauses = [patience.pause(BUSY, None) for _ in range(5)]
    assert all(0.125 * 2**n <= pause <= 0.25 * 2**n for n, pause in enumerate(pauses))
    assert Patience(60, clock=lambda: now, seed=1).pause(BUSY, None) == pauses[0]
    assert len({Patience(60, seed=seed).pause(BUSY, None) for seed in range(9)}) == 9
    assert patience.pause(BUSY, 30.0) == 30.0, "as long as the service asks for"
    now = 59.5
    with pytest.raises(Busy):
        patience.pause(Busy("overloaded", "x"), 1.0)
    with pytest.raises(Late):
        Patience(60).pause(Late("deadline_exceeded", "x"), 0.0)


@pytest.mark.parametrize(("stated", "seconds"), [("7", 7), ("0.5", 0.5), ("soon", None)])
def test_retry_after(stated: str, seconds: float | None) -> None:
    request = httpx.Request("GET", "http://x")
    response = httpx.Response(429, json={"code": "overloaded"}, headers={"Retry-After": stated}, request=request)
    refused = refusal(response)
    assert refused is not None
    assert refused.asked == seconds
    date = httpx.Response(503, headers={"Retry-After": "Fri, 31 Dec 2199 23:59:59 GMT"}, request=request)
    assert (later := refusal(date)) is not None
    assert (later.asked or 0) > 1e6


@pytest.mark.parametrize(
    ("code", "kind"),
    [("unknown_format", "UnknownFormat"), ("too_large", "TooLarge"), ("space_mismatch", "Conflict"),
     ("band_unknown", "BadInput"), ("file_not_found", "NotFound"), ("internal", "AlbireoError")],
)  # fmt: skip
def test_errors_of_items_have_the_classes_they_were_raised_with(code: str, kind: str) -> None:
    told = {"code": code, "message": "m", "file": "f", "field": "x", "fix": "y"}
    error = rebuilt(told)
    assert type(error).__name__ == kind
    assert error.as_dict() == told


# Tokens


@pytest.mark.parametrize("suffix", ["parquet", "fits", "ecsv"])
def test_tokens(client: Client, image: Make, tmp_path: Path, suffix: str) -> None:
    answer = client.tokenize([image("A"), b"nothing", photometry(2)])
    assert answer["id"].tolist() == ["A", "", "p0", "p1"]
    assert answer["modalities"][0] == "image.legacysurvey"
    ids = answer["tokens"][0]["image.legacysurvey"]
    assert (ids.dtype, ids.shape) == (np.uint16, (4,))
    assert answer["tokens"][1] == {}
    assert set(answer["tokens"][3]) == {"legacysurvey.flux_g", "legacysurvey.flux_r"}
    assert answer.meta["quantisers"]["image.legacysurvey"]["n_tokens"] == 4
    assert [error.code for error in answer.errors()] == ["unknown_format"]
    answer.write(tmp_path / f"t.{suffix}")
    read = TokenTable.read(tmp_path / f"t.{suffix}")
    assert all(
        one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)
        for one, other in zip(read["tokens"], answer["tokens"], strict=True)
    )
    assert read["tokens"][0]["image.legacysurvey"].dtype == np.uint16
    assert read.meta == answer.meta


def test_what_tokens_stand_for(client: Client, service: Served, image: Make) -> None:
    tokens = client.tokenize([image("A"), photometry(70)])
    decoded = client.detokenize(tokens)
    assert decoded["id"].tolist() == tokens["id"].tolist()
    pixels = decoded["image.legacysurvey"]
    assert pixels.shape == (71, 4, 96, 96)
    assert pixels.unit == u.Unit("nanomaggy")
    assert np.array_equal(pixels[0].value, service.core.engine.values("tok_image", ids_of(tokens))[0])
    assert np.isnan(pixels[1:]).all()
    assert decoded["legacysurvey.flux_r"][1].value == tokens["tokens"][1]["legacysurvey.flux_r"][0]
    assert decoded.meta["modalities"]["image.legacysurvey"]["axes"] == ["band", "y", "x"]
    bare = client.detokenize({"legacysurvey.flux_r": [7]})
    assert bare["legacysurvey.flux_r"].value.ravel().tolist() == [7]
    tokens.meta["quantisers"]["image.legacysurvey"]["codec"] = "another"
    with pytest.raises(Conflict):
        client.detokenize(tokens)


def ids_of(tokens: TokenTable) -> Any:
    return tokens["tokens"][0]["image.legacysurvey"][np.newaxis].astype(np.int64)


# Predictions


def test_redshifts(client: Client, image: Make) -> None:
    answer = client.predict_redshift([image("A"), b"nothing", photometry(2)], head="tok_z")
    assert isinstance(answer, RedshiftResult)
    assert answer.z.shape == (4,)
    assert np.isnan(answer.z[1])
    good = answer.ok()
    assert (good.low <= good.z).all()
    assert (good.z <= good.high).all()
    low, high = good.interval(0.95)
    assert (low <= good.low).all()
    assert (high >= good.high).all()
    assert good.density.shape == (3, len(good.edges) - 1)
    assert np.allclose(good.density.sum(axis=1), 1)
    assert [error.code for error in answer.errors()] == ["unknown_format"]
    with pytest.raises(BadInput, match=r"0\.68 or 0\.95"):
        answer.interval(0.5)
    ensemble = answer.to_qp()
    assert ensemble.npdf == 3
    assert ensemble.ancil["id"].tolist() == ["A", "p0", "p1"]
    assert np.allclose(ensemble.cdf(good.z[0])[0], 0.5, atol=0.02)


def test_a_table_of_heads() -> None:
    """Numbers have their units, classes their probabilities, and what failed is NaN with the reason beside it."""
    numbers = [{"name": "mass", "unit": "dex(solMass)", "value": 10.5,
                "intervals": [{"level": 0.68, "low": 10, "high": 11}, {"level": 0.95, "low": 9, "high": 12}]},
               {"name": "teff", "unit": "K", "value": 5800.0, "intervals": []}]  # fmt: skip
    told = {"numbers": numbers, "class": None, "classes": {}, "density": None, "flags": ["a", "b"], "typicality": 0.5}
    kind = {"numbers": [], "class": "STAR", "classes": {"STAR": 0.75, "QSO": 0.25}, "density": None, "flags": [],
            "typicality": None}  # fmt: skip
    refused = {"numbers": [], "class": None, "classes": {}, "density": None, "flags": [], "typicality": None,
               "error": {"code": "value_missing", "message": "no z"}}  # fmt: skip
    common = {"file": "f", "modalities_used": [], "n_tokens": 1, "qa_flags": [], "warnings": [], "error": None}
    content = {
        "heads": {"g": {"task": "regression", "targets": ["mass", "teff"], "units": ["dex(solMass)", "K"],
                        "classes": []},
                  "c": {"task": "classification", "targets": ["c"], "units": [], "classes": ["QSO", "STAR"]}},
        "items": [{"id": "1", "status": "ok", "predictions": {"g": told, "c": kind}} | common,
                  {"id": "2", "status": "degraded", "predictions": {"g": refused, "c": kind}} | common,
                  {"id": "3", "status": "error", "predictions": {}} | common
                  | {"error": {"code": "not_finite", "message": "NaN"}}],
        "request_id": "r", "space": "s@1:tokens", "timings_ms": {}, "usage": {"tokens": 2},
    }  # fmt: skip
    answer = prediction_table([Answered(Batch(((Piece(),),)), content)])
    assert answer["g_mass"].unit == u.Unit("dex(solMass)")
    assert answer["g_mass"].value.tolist()[0] == 10.5
    assert answer["g_mass"].physical[0].to_value("solMass") == pytest.approx(10**10.5)
    assert answer["g_teff"].unit == u.K
    assert np.isnan(answer["g_teff"][1:]).all()
    assert (answer["g_mass_low68"].value[0], answer["g_mass_high95"].value[0]) == (10, 12)
    assert answer["g_flags"].tolist() == ["a,b", "", ""]
    assert answer["g_error"].tolist() == ["", "value_missing: no z", ""]
    assert answer["c"].tolist() == ["STAR", "STAR", ""]
    assert answer["c_p_QSO"].tolist()[:2] == [0.25, 0.25]
    assert answer["error_code"].tolist() == ["", "", "not_finite"]


def test_predictions_are_read_as_they_were_written(client: Client, tmp_path: Path) -> None:
    answer = client.predict(photometry(3), ["tok_z"])
    assert answer["tok_z_pdf"].shape == (3, 16)
    for suffix in ("parquet", "fits", "ecsv"):
        answer.write(tmp_path / f"t.{suffix}")
        read = type(answer).read(tmp_path / f"t.{suffix}")
        assert equal(read, answer)
        assert read.meta == answer.meta
    assert "tok_z_pdf" not in client.predict(photometry(1), "tok_z", density=False).colnames
    with pytest.raises(NotFound) as caught:
        client.classify(photometry(1))
    assert caught.value.code == "head_unknown"


def test_priors(client: Client) -> None:
    table = Table({"z_low": [0.0, 0.5], "z_high": [0.5, 1.0], "n": [1, 3]})
    asked = [client.predict(photometry(1), "redshift", prior=prior, get_query_payload=True)[0].json["options"]["prior"]
             for prior in ("flat", table, ([0, 0.5, 1], [1, 3]))]  # fmt: skip
    assert asked == ["flat", *[{"edges": [0, 0.5, 1], "n": [1, 3]}] * 2]
    table["z_low"][1] = 0.6
    with pytest.raises(BadInput, match="do not touch"):
        client.predict(photometry(1), "redshift", prior=table)


# About the service


def test_about_the_service(client: Client) -> None:
    about = client.info()
    assert (about["model"], about["limits"]["max_items"]) == ("toy", 50)
    told = client.ready()
    assert told["ready"] is True
    assert told["capabilities"]["embed"]["ok"] is True
    assert [head["name"] for head in client.heads()] == ["tok_z"]


def test_not_ready_is_an_answer(tmp_path: Path) -> None:
    engine = ToyEngine()
    engine.crash = True
    with Local(core=new_core(engine, settings_of(tmp_path)), settings=settings_of(tmp_path)) as local:
        told = local.ready()
    assert told["ready"] is False
    assert "embed" in told["reason"]
    assert told["capabilities"]["embed"]["ok"] is False


def test_validation(client: Client, image: Make) -> None:
    answer = client.validate([image("A"), b"nothing", photometry(1)])
    assert answer["usable"].tolist() == [True, False, True]
    assert answer["modalities"].tolist() == ["image.legacysurvey", "", "legacysurvey.flux_g,legacysurvey.flux_r"]
    assert answer["error_code"].tolist() == ["", "unknown_format", ""]
    assert [file["recognised"] for file in answer.meta["files"]] == [True, False, True]
    assert len(client.validate(b"nothing")) == 1, "what is of no use is an answer, too"


# Collections


def test_a_collection(client: Client, image: Make, tmp_path: Path) -> None:
    name = f"c{time.monotonic_ns()}"
    made = client.create_collection(name)
    kept = made.upsert(photometry(60))
    assert kept.meta["indexed"] == 60
    assert kept["status"].tolist() == ["ok"] * 60
    vectors = client.embed([image("A"), b"nothing"])
    vectors["z"] = [0.5, 0.1]
    assert made.upsert(vectors)["id"].tolist() == ["A"]
    assert made.about()["count"] == 61
    assert name in client.collections()["name"].tolist()
    by_id = made.search(id="p3", k=4)
    assert isinstance(by_id, NeighborTable)
    assert by_id["query"].tolist() == ["p3"] * 4
    assert by_id["rank"].tolist() == [1, 2, 3, 4]
    assert (np.diff(by_id["score"]) <= 0).all()
    twin = photometry(1, 3)
    twin["id"] = ["t"]
    like = client.collection(name).search([image("B"), b"nothing", twin], k=1)
    assert like["query"].tolist() == ["B", "", "t"]
    assert like["id"].tolist() == ["A", "", "p3"]
    assert like["rank"].tolist() == [1, 0, 1]
    assert like["error_code"].tolist() == ["", "unknown_format", ""]
    assert like["metadata"][0]["z"] == 0.5
    by_vector = made.search(vectors, k=1)
    assert (by_vector["query"].tolist(), by_vector["id"].tolist()) == (["A"], ["A"])
    bare = made.search(vector=vectors["embedding"][0], space=vectors.meta["space"], k=1)
    assert bare["id"].tolist() == ["A"]
    item = made.search({"id": "mine", "image": image("B")}, k=1)
    assert (item["query"].tolist(), item["id"].tolist()) == (["mine"], ["A"])
    like.write(tmp_path / "n.parquet")
    assert equal(NeighborTable.read(tmp_path / "n.parquet"), like)


def test_wrong_questions_to_a_collection(client: Client) -> None:
    made = client.create_collection("other", space="another@ffffffffffff:mean", dim=16)
    for wrong, code in (
        (lambda: made.search(id="x", vector=[1]), "request_invalid"),
        (lambda: made.search(vector=np.zeros(16)), "request_invalid"),
        (lambda: made.search(client.embed(photometry(1)), survey="sdss"), "option_invalid"),
        (lambda: made.upsert(photometry(1)), "space_mismatch"),
        (lambda: made.upsert(client.embed(photometry(1))), "space_mismatch"),
        (lambda: made.upsert(client.embed(photometry(1), pooling="tokens")), "option_invalid"),
        (lambda: client.collection("nowhere").about(), "collection_unknown"),
    ):
        with pytest.raises(AlbireoError) as caught:
            wrong()
        assert caught.value.code == code


def test_answers_of_two_models_are_not_one_table(service: Served) -> None:
    class Changing(httpx.HTTPTransport):
        count = 0

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            response = super().handle_request(request)
            if request.url.path == "/v1/embed":
                self.count += 1
                content = response.read().replace(b"toy@0123456789ab", b"toy@%012d" % self.count)
                return httpx.Response(200, content=content, headers={"Content-Type": response.headers["Content-Type"]})
            return response

    with Client(service.url, transport=Changing()) as client, pytest.raises(Conflict, match="space_mismatch"):
        client.embed(photometry(60))


# The twins


def settings_of(folder: Path) -> Any:
    from albireo.service.settings import Settings

    return Settings(data_folder=folder / "data", model=str(folder), max_body_bytes=1 << 20, max_items=50)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    settings = settings_of(tmp_path)
    with Local(core=new_core(ToyEngine(), settings), settings=settings) as made:
        yield made


def test_without_a_server_the_answers_are_the_same(client: Client, local: Local, image: Make, jpeg: bytes) -> None:
    mixed = [image("A"), jpeg, photometry(70), {"id": "B", "image": image("b", 2)}, "/no/file"]
    for ask in (
        lambda one: one.embed(mixed),
        lambda one: one.embed(mixed, pooling="tokens"),
        lambda one: one.predict(mixed, "tok_z"),
        lambda one: one.tokenize(mixed),
        lambda one: one.validate(mixed),
        lambda one: one.create_collection("twin").upsert(mixed),
        lambda one: one.collection("twin").search(mixed, k=3),
        lambda one: one.collection("twin").search(id="p1", k=3),
    ):
        there, here = ask(client), ask(local)
        assert type(there) is type(here)
        assert equal(there, here)
        assert there.meta.keys() == here.meta.keys()
    for ask in (lambda one: one.embed(jpeg), lambda one: one.predict(mixed, "nothing")):
        errors = []
        for one in (client, local):
            with pytest.raises(AlbireoError) as caught:
                ask(one)
            errors.append((type(caught.value), caught.value.as_dict()))
        assert errors[0] == errors[1]
    assert client.info() | {"request_id": ""} == local.info() | {"request_id": ""}


def test_the_asynchronous_client(client: Client, service: Served, image: Make, jpeg: bytes) -> None:
    mixed = [photometry(180), image("A"), jpeg, {"id": "B", "image": image("b", 2)}]
    expected = client.embed(mixed), client.predict(photometry(60), "tok_z"), client.validate(mixed)
    service.door.most_inside = 0
    service.door.refusals = [(BUSY, "0"), None, (Late("deadline_exceeded", "x"), None)]
    name = f"c{time.monotonic_ns()}"

    async def ask() -> list[AnswerTable]:
        async with AsyncClient(service.url, at_a_time=3) as one:
            assert (await one.ready())["ready"]
            made = await one.create_collection(name)
            await made.upsert(photometry(60))
            assert len(await one.detokenize(await one.tokenize(image("A")))) == 1
            found = [await one.embed(mixed), await one.predict(photometry(60), "tok_z"), await one.validate(mixed)]
            assert (await made.search(id="p1", k=2))["rank"].tolist() == [1, 2]
            assert (await made.search(found[0].ok()[:2], k=1))["id"].tolist() == ["p0", "p1"]
            assert len((await one.predict_redshift(image("A"), head="tok_z")).z) == 1
            assert len(await one.embed(mixed, get_query_payload=True)) > 1
            assert name in (await one.collections())["name"].tolist()
            assert (await made.about())["count"] == 60
            return found

    found = anyio.run(ask)
    for one, other in zip(found, expected, strict=True):
        assert equal(one, other), [name for name in one.colnames if bits(one[name]) != bits(other[name])]
    assert 1 < service.door.most_inside <= 3


def test_the_first_error_of_many_requests_is_raised(service: Served) -> None:
    service.door.refusals = [None, (NotFound("model_unknown", "no"), None)]

    async def ask() -> None:
        async with AsyncClient(service.url, at_a_time=1) as one:
            await one.embed(photometry(200))

    with pytest.raises(NotFound):
        anyio.run(ask)
    service.door.refusals = []


def test_a_client_that_is_called_off(service: Served) -> None:
    """What runs in a cancelled scope ends, and the client can be used again."""

    async def ask() -> int:
        async with AsyncClient(service.url) as one:
            with anyio.move_on_after(0):
                await one.embed(photometry(200))
            return len(await one.embed(photometry(60)))

    assert anyio.run(ask) == 60


def test_access(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALBIREO_URL", raising=False)
    assert Access.of(None, None).url == "http://127.0.0.1:8000"
    timeout = Access.of("https://x/", "t", connect=1.0, read=2.0).options()["timeout"]
    assert (timeout.connect, timeout.read, timeout.pool) == (1.0, 2.0, None)


def test_an_image_opened_lazily_is_sent_whole(client: Client, image: Make, tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    path.write_bytes(image("A"))
    with fits.open(path, memmap=True) as hdus:
        assert np.array_equal(client.embed(hdus)["embedding"], client.embed(path)["embedding"])
    assert io.BytesIO(path.read_bytes()).getvalue() == image("A")
