"""Answers in every format that `Accept` can ask for, read back by other people's libraries."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.io.votable import parse
from astropy.io.votable.ucd import check_ucd
from astropy.table import Table
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from albireo.service import reply_formats as formats
from albireo.service import schemas
from albireo.service.embedding_table import OUTCOME, WHENCE, WHO
from albireo.service.neighbour_table import NEIGHBOUR

Make = Callable[..., bytes]

pytestmark = pytest.mark.filterwarnings("ignore::astropy.io.fits.verify.VerifyWarning")


def photometry(n: int = 4, bad: int | None = 2, name: str = "o{}") -> dict[str, Any]:
    """A request for n objects, of which one is refused by the engine."""
    read = {"survey": "legacysurvey"}
    items = []
    for i in range(n):
        values = {"FLUX_G": 1e7 if i == bad else 1.0 + i, "FLUX_G_unit": "nanomaggy"}
        meta = {"ra": 10.0 + i, "dec": -5.0}
        items.append({"id": name.format(i), "inputs": [{"values": values, "read": read}], "meta": meta})
    return {"items": items}


def ask(client: TestClient, accept: str, body: dict[str, Any] | None = None, path: str = "/v1/embed") -> Any:
    answer = client.post(path, json=body or photometry(), headers={"Accept": accept})
    assert answer.status_code == 200, answer.text
    assert answer.headers["vary"] == "Accept"
    return answer


def vectors(client: TestClient, body: dict[str, Any] | None = None) -> list[Any]:
    """What the JSON answer has, None for objects that failed."""
    return [item["embedding"] for item in ask(client, formats.JSON, body).json()["items"]]


# Which format


@pytest.mark.parametrize(
    ("accept", "first"),
    [
        ("", formats.JSON),
        ("*/*", formats.JSON),
        ("application/*", formats.JSON),
        ("text/*", formats.CSV),
        ("text/csv", formats.CSV),
        ("application/fits, application/json;q=0.9", formats.FITS),
        ("application/fits;q=0.5, application/json;q=0.9", formats.JSON),
        ("application/fits;q=0.5, */*;q=0.1", formats.FITS),
        ("*/*, application/fits", formats.FITS),
        ("application/json;q=0, */*", formats.RAW),
        ("application/x-npz, text/csv", formats.NPZ),
        ("text/html, application/xhtml+xml, */*;q=0.8", formats.JSON),
        ("APPLICATION/FITS", formats.FITS),
        ("application/json; charset=utf-8", formats.JSON),
        ("nonsense, text/csv;q=x, application/x-npy", formats.NPY),
    ],
)
def test_the_most_welcome_format_is_given(accept: str, first: str) -> None:
    assert formats.preferred(accept, formats.EMBEDDINGS)[0].media_type == first


@given(accept=st.text(st.sampled_from("*/;,q=0.15 applictontexcsvjg+-"), max_size=60))
def test_any_header_gives_an_order_of_what_there_is(accept: str) -> None:
    found = [form.media_type for form in formats.preferred(accept, formats.EMBEDDINGS)]
    assert len(set(found)) == len(found)
    assert set(found) <= set(formats.EMBEDDINGS)


def test_what_cannot_be_given_is_refused_before_the_work(client: TestClient, engine: Any) -> None:
    engine.crash = True
    for path in ("/v1/embed", "/v1/tokenize", "/v1/detokenize", "/v1/predict/tok_z", "/v1/collections/c/search"):
        answer = client.post(path, json=photometry(), headers={"Accept": "image/png, text/html"})
        assert answer.status_code == 406
        problem = schemas.Problem.model_validate(answer.json())
        assert problem.code == "not_acceptable"
        assert formats.JSON in (problem.fix or "")
        assert "image/png" in problem.detail


# Embeddings


def check_table(rows: list[dict[str, Any]], wanted: list[Any]) -> None:
    """Rows of a table by name of the column: in order, with numbers, and with the error of the one that failed."""
    assert [row["id"] for row in rows] == ["o0", "o1", "o2", "o3"]
    assert [row["status"] for row in rows] == ["ok", "ok", "error", "ok"]
    assert [row["error_code"] or "" for row in rows] == ["", "", "value_out_of_range", ""]
    assert rows[2]["error_message"] == "brighter than 1e6"
    for row, vector in zip(rows, wanted, strict=True):
        if vector is None:
            assert row["embedding"] is None or np.isnan(row["embedding"]).all()
        else:
            np.testing.assert_array_equal(np.asarray(row["embedding"], np.float32), np.array(vector, np.float32))
    assert [row["ra"] for row in rows if row["status"] == "ok"] == [10.0, 11.0, 13.0]
    assert [row["n_tokens"] for row in rows] == [1, 1, 0, 1]


def plain(table: Any) -> list[dict[str, Any]]:
    """An astropy table as rows; a masked cell is NaN or empty."""
    filled = {name: np.ma.filled(table[name], np.nan if table[name].dtype.kind == "f" else "") for name in (
        name for name in table.colnames if table[name].dtype.kind in "fUSO")}  # fmt: skip
    return [{name: filled[name][i] if name in filled else table[name][i] for name in table.colnames}
            for i in range(len(table))]  # fmt: skip


def test_arrow(client: TestClient) -> None:
    answer = ask(client, formats.ARROW)
    assert answer.headers["x-items-failed"] == "1"
    table = pa.ipc.open_stream(answer.content).read_all()
    check_table(table.to_pylist(), vectors(client))
    assert table.schema.metadata[b"space"] == b"toy@0123456789ab:mean"
    assert json.loads(table.schema.metadata[b"usage"]) == {"tokens": 3}
    assert table.schema.metadata[b"request_id"].decode() == answer.headers["x-request-id"]
    assert table.schema.field("ra").metadata[b"unit"] == b"deg"
    assert table["modalities"].to_pylist()[0] == ["legacysurvey.flux_g"]
    assert "toy" in table["qa_flags"].to_pylist()[0]


def test_parquet(client: TestClient) -> None:
    answer = ask(client, formats.PARQUET)
    table = pq.read_table(io.BytesIO(answer.content))
    check_table(table.to_pylist(), vectors(client))
    assert table.schema.metadata[b"model"] == b"toy"


def test_fits(client: TestClient) -> None:
    answer = ask(client, formats.FITS)
    table = Table.read(io.BytesIO(answer.content), format="fits")
    rows = [row | {name: row[name].decode() if isinstance(row[name], bytes) else row[name] for name in row}
            for row in plain(table)]  # fmt: skip
    check_table(rows, vectors(client))
    assert str(table["ra"].unit) == "deg"
    assert table.meta["SPACE"] == "toy@0123456789ab:mean"
    assert json.loads(table.meta["TIMINGS"])["parse"] >= 0
    assert table.meta["REQUEST"] == answer.headers["x-request-id"]
    with fits.open(io.BytesIO(answer.content)) as hdus:
        hdus.verify("exception")
        assert hdus[1].columns["embedding"].format == "16E"


@pytest.mark.parametrize("serialization", ["", ";serialization=tabledata", ";serialization=binary2"])
def test_votable(client: TestClient, serialization: str) -> None:
    answer = ask(client, formats.VOTABLE + serialization)
    said = serialization or ";serialization=binary2"
    assert answer.headers["content-type"] == formats.VOTABLE + said
    check_table(plain(Table.read(io.BytesIO(answer.content), format="votable")), vectors(client))
    votable = parse(io.BytesIO(answer.content), verify="exception")
    fields = {field.name: field for field in votable.get_first_table().fields}
    assert (fields["ra"].unit.to_string(), fields["ra"].ucd) == ("deg", "pos.eq.ra;meta.main")
    assert fields["ra"].ref == "icrs"
    assert votable.resources[0].coordinate_systems[0].system == "ICRS"
    infos = {info.name: info.value for info in votable.resources[0].infos}
    assert infos["QUERY_STATUS"] == "OK"
    assert infos["space"] == "toy@0123456789ab:mean"


def test_csv(client: TestClient) -> None:
    answer = ask(client, formats.CSV)
    rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(answer.text)))
    for row in rows:
        cells = [row[f"embedding_{k}"] for k in range(16)]
        row["embedding"] = None if cells == [""] * 16 else [float(cell) for cell in cells]
        row["ra"] = float(row["ra"]) if row["ra"] else None
        row["n_tokens"] = int(row["n_tokens"])
        assert (row["space"], row["model"]) == ("toy@0123456789ab:mean", "toy")
    check_table(rows, vectors(client))


def test_npz_needs_no_pickle(client: TestClient) -> None:
    answer = ask(client, formats.NPZ)
    with np.load(io.BytesIO(answer.content), allow_pickle=False) as found:
        arrays = dict(found)
    assert arrays["ids"].tolist() == ["o0", "o1", "o2", "o3"]
    assert arrays["status"].tolist() == ["ok", "ok", "error", "ok"]
    assert arrays["errors"].tolist() == [2]
    assert arrays["error_code"].tolist() == ["value_out_of_range"]
    assert arrays["space"].item() == "toy@0123456789ab:mean"
    wanted = vectors(client)
    for i in (0, 1, 3):
        np.testing.assert_array_equal(arrays["vectors"][i], np.array(wanted[i], np.float32))
    assert np.isnan(arrays["vectors"][2]).all()
    assert arrays["vectors"].dtype == np.float32
    assert zipfile.ZipFile(io.BytesIO(answer.content)).testzip() is None


def raw(content: bytes) -> tuple[dict[str, Any], np.ndarray]:
    """Header and numbers, as the documentation says they lie."""
    n = int.from_bytes(content[:4], "little")
    header = json.loads(content[4 : 4 + n])
    numbers = np.frombuffer(content, header["numbers"]["dtype"], offset=4 + n).reshape(header["numbers"]["shape"])
    assert (4 + n) % 8 == 0
    return header, numbers


def test_raw_is_the_json_answer_with_the_numbers_behind(client: TestClient) -> None:
    answer = ask(client, formats.RAW)
    header, numbers = raw(answer.content)
    plain_answer = ask(client, formats.JSON).json()
    assert numbers.shape == (3, 16)
    rows = iter(numbers)
    for item, other in zip(header["items"], plain_answer["items"], strict=True):
        if item["status"] == "error":
            assert item["shape"] is None
        else:
            np.testing.assert_array_equal(next(rows), np.array(other["embedding"], np.float32))
        assert item | {"embedding": None} == other | {"embedding": None}
    assert header["request_id"] == answer.headers["x-request-id"]
    schemas.EmbedReply.model_validate({name: value for name, value in header.items() if name != "numbers"})


def test_npy_holds_what_is_whole(client: TestClient) -> None:
    array = np.load(io.BytesIO(ask(client, formats.NPY, photometry(bad=None)).content), allow_pickle=False)
    assert (array.dtype, array.shape) == (np.float32, (4, 16))
    np.testing.assert_array_equal(array, np.array(vectors(client, photometry(bad=None)), np.float32))


def test_npy_of_an_object_that_failed_is_refused_with_every_error(client: TestClient) -> None:
    answer = client.post("/v1/embed", json=photometry(), headers={"Accept": formats.NPY})
    assert answer.status_code == 406
    problem = schemas.Problem.model_validate(answer.json())
    assert problem.code == "not_acceptable"
    assert "brighter than 1e6" in problem.detail
    assert formats.NPZ in (problem.fix or "")
    assert [item["status"] for item in problem.items or ()] == ["ok", "ok", "error", "ok"]
    otherwise = ask(client, f"{formats.NPY}, {formats.ARROW};q=0.5")
    assert otherwise.headers["content-type"] == formats.ARROW


def several(image: Make, spectrum: Make) -> list[Any]:
    return [("file", ("a.fits", image("A"))), ("file", ("s.fits", spectrum(7)))]


@pytest.mark.parametrize("pooling", ["mean_per_modality", "tokens"])
def test_rows_of_other_poolings(client: TestClient, image: Make, spectrum: Make, pooling: str) -> None:
    path, files = f"/v1/embed?pooling={pooling}", several(image, spectrum)
    items = client.post(path, files=files).json()["items"]
    counts = [len(item["embedding"]) for item in items]
    assert counts == ([1, 1] if pooling == "mean_per_modality" else [4, 3])
    wanted = np.concatenate([np.array(item["embedding"], np.float32) for item in items])
    names = [name for item in items for name in item["rows"]]

    def of(accept: str) -> bytes:
        answer = client.post(path, files=files, headers={"Accept": accept})
        assert answer.status_code == 200, answer.text
        return bytes(answer.content)

    table = pa.ipc.open_stream(of(formats.ARROW)).read_all()
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), np.float32), wanted)
    assert table["row"].to_pylist() == names
    assert table["id"].to_pylist() == [item["id"] for item, n in zip(items, counts, strict=True) for _ in range(n)]
    assert table.schema.metadata[b"pooling"].decode() == pooling
    header, numbers = raw(of(formats.RAW))
    np.testing.assert_array_equal(numbers, wanted)
    assert [item["shape"] for item in header["items"]] == [[n, 16] for n in counts]
    assert len(Table.read(io.BytesIO(of(formats.FITS)), format="fits")) == sum(counts)
    refused = client.post(path, files=files, headers={"Accept": formats.NPY})
    assert (refused.status_code, refused.json()["code"]) == (406, "not_acceptable")
    alike = client.post(path, files=files[:1], headers={"Accept": formats.NPY})
    assert np.load(io.BytesIO(alike.content)).shape == (1, counts[0], 16)


@pytest.mark.parametrize("accept", [form for form in formats.EMBEDDINGS if form != formats.JSON])
def test_without_one_good_object_every_format_is_the_problem(client: TestClient, accept: str) -> None:
    answer = client.post("/v1/embed", json=photometry(1, bad=0), headers={"Accept": accept})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["items"][0]["error"]["code"] == "value_out_of_range"


def test_ids_that_some_formats_cannot_write(client: TestClient) -> None:
    """Control characters, other alphabets and what CSV and XML have a meaning for; FITS has ASCII alone."""
    strange = 'é\x01"<&>, 星{}\n'
    body = photometry(1, bad=None, name=strange)
    wanted = strange.format(0)
    table = pa.ipc.open_stream(ask(client, formats.ARROW, body).content).read_all()
    assert table["id"].to_pylist() == [wanted]
    assert json.loads(json.dumps(ask(client, formats.JSON, body).json()))["items"][0]["id"] == wanted
    rows = list(csv.DictReader(io.StringIO(ask(client, formats.CSV, body).content.decode(), newline="")))
    assert rows[0]["id"] == wanted
    for form, format_name in ((formats.FITS, "fits"), (formats.VOTABLE, "votable")):
        (found,) = Table.read(io.BytesIO(ask(client, form, body).content), format=format_name)["id"]
        text = found.decode() if isinstance(found, bytes) else str(found)
        escaped = r'\xe9\x01"<&>, \u661f0\x0a' if form == formats.FITS else 'é\\x01"<&>, 星0\n'
        assert text == escaped


# Predictions and neighbours


def test_predictions_as_tables(client: TestClient, image: Make) -> None:
    body = photometry() | {"heads": ["tok_z"]}
    items = ask(client, formats.JSON, body, "/v1/predict").json()["items"]
    answer = ask(client, formats.ARROW, body, "/v1/predict")
    assert answer.headers["x-items-failed"] == "1"
    table = pa.ipc.open_stream(answer.content).read_all()
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == [item["id"] for item in items]
    assert [row["status"] for row in rows] == ["ok", "ok", "error", "ok"]
    assert rows[2]["tok_z"] is None
    for row, item in zip(rows, items, strict=True):
        if row["status"] == "ok":
            (number,) = item["predictions"]["tok_z"]["numbers"]
            assert row["tok_z"] == number["value"]
            assert [row["tok_z_low68"], row["tok_z_high68"]] == [
                number["intervals"][0][side] for side in ("low", "high")
            ]
            cells = item["predictions"]["tok_z"]["density"]["probability"]
            np.testing.assert_allclose(row["tok_z_pdf"], cells, rtol=1e-6)
    heads = json.loads(table.schema.metadata[b"heads"])
    assert len(heads["tok_z"]["edges"]) == len(cells) + 1
    for form, name in ((formats.FITS, "fits"), (formats.VOTABLE, "votable")):
        read = Table.read(io.BytesIO(ask(client, form, body, "/v1/predict").content), format=name)
        np.testing.assert_allclose(
            np.ma.filled(read["tok_z"], np.nan).astype(float), [row["tok_z"] or np.nan for row in rows]
        )
        assert read["tok_z_pdf"].shape == (4, len(cells))
    text = ask(client, formats.CSV, photometry(), "/v1/predict/tok_z").text
    assert f"tok_z_pdf_{len(cells) - 1}" in text.splitlines()[0]
    with_pq = pq.read_table(io.BytesIO(ask(client, formats.PARQUET, body, "/v1/predict").content))
    assert with_pq.to_pylist() == rows
    without = ask(client, formats.ARROW, body | {"options": {"density": False}}, "/v1/predict")
    assert "tok_z_pdf" not in pa.ipc.open_stream(without.content).read_all().column_names


@pytest.fixture
def collection(client: TestClient) -> str:
    assert client.put("/v1/collections/c", json={}).status_code == 200
    kept = client.post("/v1/collections/c/objects", json=photometry(4, bad=None))
    assert kept.json()["indexed"] == 4
    return "/v1/collections/c/search"


def test_neighbours_as_tables(client: TestClient, collection: str) -> None:
    body = {"query": {"id": "o1"}, "k": 2}
    (result,) = ask(client, formats.JSON, body, collection).json()["results"]
    table = pa.ipc.open_stream(ask(client, formats.ARROW, body, collection).content).read_all()
    rows = table.to_pylist()
    assert [(row["query"], row["query_id"], row["rank"]) for row in rows] == [(0, "o1", 1), (0, "o1", 2)]
    assert [row["id"] for row in rows] == [hit["id"] for hit in result["hits"]]
    assert [row["score"] for row in rows] == [hit["score"] for hit in result["hits"]]
    assert [row["ra"] for row in rows] == [hit["ra"] for hit in result["hits"]]
    assert [json.loads(row["metadata"]) for row in rows] == [hit["metadata"] for hit in result["hits"]]
    assert table.schema.metadata[b"metric"] == b"cosine"
    votable = parse(io.BytesIO(ask(client, formats.VOTABLE, body, collection).content), verify="exception")
    found = votable.get_first_table()
    assert {field.name: field.ucd for field in found.fields}["rank"] == "stat.rank"
    assert found.to_table()["id"].tolist() == [hit["id"] for hit in result["hits"]]
    read = Table.read(io.BytesIO(ask(client, formats.FITS, body, collection).content), format="fits")
    np.testing.assert_array_equal(read["score"], [hit["score"] for hit in result["hits"]])
    assert read.meta["COLLECT"] == "c"
    rows = list(csv.DictReader(io.StringIO(ask(client, formats.CSV, body, collection).text)))
    assert [float(row["score"]) for row in rows] == [hit["score"] for hit in result["hits"]]


def test_queries_that_fail_have_a_row(client: TestClient, collection: str, image: Make, jpeg: bytes) -> None:
    files = [("file", ("a.fits", image("A"))), ("file", ("b.jpg", jpeg))]
    answer = client.post(f"{collection}?k=3", files=files, headers={"Accept": formats.ARROW})
    assert answer.headers["x-items-failed"] == "1"
    rows = pa.ipc.open_stream(answer.content).read_all().to_pylist()
    assert [(row["query"], row["rank"], row["status"]) for row in rows] == [
        (0, 1, "ok"), (0, 2, "ok"), (0, 3, "ok"), (1, 0, "error"),
    ]  # fmt: skip
    assert rows[3]["error_code"] == "not_photometric"
    assert rows[3]["id"] is None
    assert rows[0]["query_id"] == "A"
    answer = client.post(f"{collection}?k=3", files=files, headers={"Accept": formats.FITS})
    table = Table.read(io.BytesIO(answer.content), format="fits")
    assert np.isnan(np.ma.filled(table["score"], np.nan)[3])


def test_quantities_are_called_as_the_virtual_observatory_calls_them() -> None:
    for field in (*WHO, *WHENCE, *OUTCOME, *NEIGHBOUR):
        assert check_ucd(field.metadata[b"ucd"].decode(), check_controlled_vocabulary=True), field.name
