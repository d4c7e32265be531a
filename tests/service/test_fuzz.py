"""Whatever is sent, the answer is a typed document, and the service goes on."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from albireo.index.collection import Collections, StoredObject
from albireo.observations.errors import AlbireoError, BadCheckpoint, BadInput, NotFound, Unavailable
from albireo.observations.source import Source
from albireo.service import schemas
from albireo.service.client_answers import EmbeddingTable
from albireo.service.client_reading import Reading
from albireo.service.client_tokens import TokenTable
from albireo.service.client_transport import content_of, refusal
from albireo.service.keys import read_keys
from albireo.service.oip_rest import parsed
from albireo.service.payload_bytes import unpack
from albireo.service.readiness import KNOWN_ANSWER, KnownAnswer
from albireo.service.recipe import RECIPE, Recipe
from albireo.service.remote_tokens import unpacked_result
from albireo.service.table_bytes import archive_bytes
from albireo.service.token_replies import given_of
from tests.service.bombs import fits_of_axes, parquet_of_rows_of_a_group

pytestmark = pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyWarning")

ANSWERS = {200, 400, 413, 415, 422}
LIMITED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(client: TestClient, path: str, content: bytes, kind: str) -> None:
    answer = client.post(path, content=content, headers={"Content-Type": kind})
    assert answer.status_code in ANSWERS, (answer.status_code, content[:200])
    if answer.status_code != 200:
        schemas.Problem.model_validate(answer.json())


@LIMITED
@given(
    content=st.binary(max_size=400),
    start=st.sampled_from(
        [
            b"",
            b"SIMPLE  =                    T",
            b"PAR1",
            b"Obj\x01",
            b"PK\x03\x04",
            b"\x1f\x8b",
            b"<?xml ",
            b"# %ECSV ",
        ]
    ),
)
def test_any_bytes_as_a_file(client: TestClient, content: bytes, start: bytes) -> None:
    check(client, "/v1/embed", start + content, "application/octet-stream")


@LIMITED
@given(data=st.data())
def test_a_spoilt_fits_file(client: TestClient, image: Callable[..., bytes], data: st.DataObject) -> None:
    content = bytearray(image("A"))
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, 1200))
        content[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(content))))
    check(client, "/v1/embed", bytes(content[:cut]), "application/fits")


@LIMITED
@given(
    text=st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["items", "inputs", "id", "b64", "values", "table", "meta", "options", "ra"]), inner
            )
        ),
        max_leaves=12,
    )
)
def test_any_json(client: TestClient, text: object) -> None:
    for path in ("/v1/embed", "/v1/validate"):
        check(client, path, json.dumps(text).encode(), "application/json")


@LIMITED
@given(content=st.binary(max_size=300))
def test_any_multipart_body(client: TestClient, content: bytes) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    for body in (content, head + content, head + content + b"\r\n--x--\r\n"):
        check(client, "/v1/embed", body, "multipart/form-data; boundary=x")


# What the fuzzing of readers (tests/fuzz) has found

DEEP = b"[" * 100_000


def test_results_of_workers_that_are_none() -> None:
    """What a worker answers is a result, or an error in its place: a service does not die of it."""

    def headed(header: object, content: bytes = b"") -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<I", len(text)) + text + content

    bad: list[object] = [DEEP, b"\xff", [], {}, {"error": []}, {"error": {}}, {"flags": 5}, {"flags": [{}]}]
    bad += [{"error": {"code": "no such", "message": "x"}}, {"error": {"code": "internal"}}]
    for content in (b"", b"\x01", *map(headed, bad), headed({"flags": []}, b"123")):
        result = unpacked_result(content)
        assert isinstance(result, AlbireoError), content[:60]
        assert result.code == "internal"


def test_payloads_of_sizes_that_no_integer_holds() -> None:
    header = json.dumps({"class": "Coefficients", "values": {"array": "<f4", "shape": [1 << 70]}}).encode()
    for content in (struct.pack("<I", len(header)) + header, struct.pack("<I", len(DEEP)) + DEEP):
        with pytest.raises(BadInput, match="damaged_file"):
            unpack(content)


def test_payloads_of_types_and_shapes_that_are_none() -> None:
    """A text in a shape would be multiplied, and a type is a small language of numpy's."""
    for array in ({"array": ",", "shape": [1]}, {"array": "(2,3)f4", "shape": [1]}, {"array": "O", "shape": [1]},
                  {"array": "<f4", "shape": ["a" * 100, 1 << 40]}, {"array": "<f4", "shape": [-1]}):  # fmt: skip
        header = json.dumps({"class": "Coefficients", "values": array}).encode()
        with pytest.raises(BadInput, match="damaged_file"):
            unpack(struct.pack("<I", len(header)) + header + bytes(64))


def test_lengths_in_digits_that_are_no_numbers(client: TestClient) -> None:
    """A superscript is a digit to Python, and no number."""
    for length in ("²", "-1", "1" * 5000, "x"):
        with pytest.raises(BadInput, match="request_invalid"):
            parsed("toy", "", b"{}", length)
    for path in ("/v1/embed", "/v2/models/toy/infer"):
        headers = {b"content-length": "²".encode("latin-1"), b"content-type": b"application/json"}
        assert client.post(path, content=b"{}", headers=headers).status_code in ANSWERS


def test_files_that_are_nested_deeply(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_bytes(DEEP)
    with pytest.raises(BadInput, match="option_invalid"):
        read_keys(tmp_path / "keys.json")
    (tmp_path / RECIPE).write_bytes(DEEP)
    with pytest.raises(BadCheckpoint):
        Recipe.read(tmp_path)
    (tmp_path / KNOWN_ANSWER).write_bytes(DEEP)
    with pytest.raises(BadCheckpoint):
        KnownAnswer.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("at", "x"), ("at", [1]), ("at", ["a", "b"]), ("at", 5), ("bands", 5), ("columns", ["a"]), ("positions", 5)],
)
def test_options_of_other_types(name: str, value: object) -> None:
    with pytest.raises(BadInput, match="option_invalid") as caught:
        Reading.of({name: value})
    assert (caught.value.field, bool(caught.value.fix)) == (name, True)


def test_answers_of_something_else() -> None:
    """Whoever listens at the address of a service."""
    header = json.dumps({"items": [{}], "arrays": [{"dtype": "<u2", "shape": [1 << 70]}]}).encode()
    raw = len(header).to_bytes(4, "little") + header
    text = raw.replace(str(1 << 70).encode(), json.dumps("a" * 20).encode())
    assert len(text) == len(raw)
    for kind, content in (
        ("application/vnd.albireo.raw", text),
        ("application/vnd.albireo.raw", raw),
        ("application/json", DEEP),
        ("application/json", b"[]"),
    ):
        request = httpx.Request("POST", "http://localhost/v1/embed")
        answer = httpx.Response(200, headers={"Content-Type": kind}, content=content, request=request)
        with pytest.raises(Unavailable, match="not as Albireo does"):
            content_of(answer)
    refused = refusal(httpx.Response(500, content=DEEP, request=request))
    assert refused is not None
    assert "not as Albireo does" in refused.error.message


def test_tables_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="file_not_found"):
        TokenTable.read(tmp_path / "absent.parquet")
    table = TokenTable({"id": ["a"], "status": ["ok"]}, meta={})
    for kind in ("parquet", "fits", "ecsv"):
        path = tmp_path / f"t.{kind}"
        table.write(path)
        assert len(EmbeddingTable.read(path)) == 1
        with pytest.raises(BadInput, match="damaged_file"):
            TokenTable.read(path)
        whole = path.read_bytes()
        for content in (b"", whole[: len(whole) // 3], b"x" * 3000, whole[:30] + b"\xff" * 60 + whole[90:]):
            path.write_bytes(content)
            with pytest.raises(BadInput, match="damaged_file"):
                EmbeddingTable.read(path)
    for kind, content in (("fits", fits_of_axes()), ("parquet", parquet_of_rows_of_a_group())):
        (tmp_path / f"bomb.{kind}").write_bytes(content)
        with pytest.raises(BadInput, match="damaged_file"):
            EmbeddingTable.read(tmp_path / f"bomb.{kind}")
    table.write(tmp_path / "long.fits")
    content = (tmp_path / "long.fits").read_bytes()
    rows = content.replace(b"NAXIS2  =                    1", b"NAXIS2  =        1000000000000")
    (tmp_path / "long.fits").write_bytes(rows)
    with pytest.raises(BadInput, match="damaged_file"):
        EmbeddingTable.read(tmp_path / "long.fits")
    for quantiser in ({}, None, {"codec": 5, "dtype": "uint16"}, {"codec": "c", "dtype": "O"}):
        odd = TokenTable({"id": ["a"], "status": ["ok"], "tokens": ["{}"]}, meta={"quantisers": {"x": quantiser}})
        odd.meta["json_columns"] = ["tokens"]
        odd.write(tmp_path / "odd.ecsv", overwrite=True)
        with pytest.raises(BadInput, match="damaged_file"):
            TokenTable.read(tmp_path / "odd.ecsv")


def test_archives_of_tokens_of_other_shapes() -> None:
    name = "image.legacysurvey"
    one = np.zeros((1, 4), np.uint16)
    for arrays in ({f"tokens.{name}": np.array(5)}, {f"tokens.{name}": one, f"codec.{name}": np.array([1.5])},
                   {f"tokens.{name}": one, f"codec.{name}": np.array(["a", "b"])}):  # fmt: skip
        with pytest.raises(BadInput, match="shape_mismatch"):
            given_of(Source("t.npz", archive_bytes(arrays)))


def test_damaged_files_of_collections(tmp_path: Path) -> None:
    """Cells of other types, and a schema whose damage SQLite tells of in bytes that are no text."""
    path = tmp_path / "c.sqlite"
    collections = Collections(path)
    one = collections.create("c", "space", 2)
    one.upsert([StoredObject("a", np.ones(2, np.float32))])
    collections.close()
    with sqlite3.connect(path) as file:
        file.execute("UPDATE objects SET metadata = x'00ff'")
    file.close()
    again = Collections(path)
    with pytest.raises(Unavailable, match="collection_damaged"):
        again.get("c").search(np.ones((1, 2), np.float32), 1, space="space")
    again.close()
    content = path.read_bytes()
    path.write_bytes(content.replace(b"CREATE TABLE objects", b"CREATE \xff\xfeBLE objects"))
    with pytest.raises(Unavailable, match="collection_damaged"):
        Collections(path)


def test_objects_that_are_not_found_by_their_ids(tmp_path: Path) -> None:
    """Of which a file says that nothing has changed."""
    path = tmp_path / "c.sqlite"
    collections = Collections(path)
    one = collections.create("c", "space", 2)
    one.upsert([StoredObject(f"name-{n}", np.ones(2, np.float32)) for n in range(40)])
    query = np.ones((1, 2), np.float32)
    assert len(one.search(query, 40, space="space")[0]) == 40
    with sqlite3.connect(path) as file:
        file.execute("DELETE FROM objects WHERE id = 'name-7'")
    file.close()
    with pytest.raises(Unavailable, match="collection_damaged"):
        one.search(query, 40, space="space")
    collections.close()


def test_rows_that_a_table_has_not(tmp_path: Path) -> None:
    """By NAXIS of 1 the table is one row; astropy takes memory for as many as NAXIS2 says."""
    path = tmp_path / "t.fits"
    TokenTable({"id": ["a"], "status": ["ok"]}, meta={}).write(path)
    content = path.read_bytes()
    for card, value in ((b"NAXIS", 1), (b"NAXIS2", 4294967295)):
        at = content.index(card.ljust(8) + b"=", 2880)
        content = content[: at + 10] + f"{value:20d}".encode() + content[at + 30 :]
    path.write_bytes(content)
    with pytest.raises(BadInput, match="damaged_file"):
        TokenTable.read(path)
