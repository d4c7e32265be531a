"""Bodies in every form: the same objects are read from each, and what cannot be read says why."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import anyio
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from fastapi import Request
from fastapi.testclient import TestClient

from albireo.service import schemas
from albireo.service.bodies import FILE_TYPES, receive
from albireo.service.problems import Malformed

Make = Callable[..., bytes]

IDS = ["o0", "o1", "o2"]
FLUX = {"FLUX_G": [12.5, 3.25, 7.0], "FLUX_R": [18.0, 4.0, 9.5]}


def table() -> pa.Table:
    columns = {"id": IDS, "ra": [10.0, 11.0, 12.0], "dec": [-5.0, -6.0, -7.0], **FLUX}
    return pa.table(columns).replace_schema_metadata({"survey": "legacysurvey"})


def ipc(file: bool = False) -> bytes:
    out = pa.BufferOutputStream()
    with (pa.ipc.new_file if file else pa.ipc.new_stream)(out, table().schema) as writer:
        writer.write_table(table())
    return bytes(out.getvalue())


def parquet() -> bytes:
    out = io.BytesIO()
    pq.write_table(table(), out)
    return out.getvalue()


def astropy_bytes(format: str) -> bytes:
    made = Table({name: table()[name].to_pylist() for name in table().column_names}, meta={"SURVEY": "legacysurvey"})
    out: Any = io.StringIO() if format in ("ascii.csv", "ascii.ecsv") else io.BytesIO()
    made.write(out, format=format)
    text = out.getvalue()
    return text.encode() if isinstance(text, str) else text


BODIES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "an Arrow stream": ("application/vnd.apache.arrow.stream", ipc),
    "an Arrow file": ("application/vnd.apache.arrow.file", lambda: ipc(file=True)),
    "Parquet": ("application/vnd.apache.parquet", parquet),
    "a FITS table": ("application/fits", lambda: astropy_bytes("fits")),
    "a VOTable": ("application/x-votable+xml", lambda: astropy_bytes("votable")),
    "CSV": ("text/csv; charset=utf-8", lambda: astropy_bytes("ascii.csv")),
    "ECSV as any file": ("application/octet-stream", lambda: astropy_bytes("ascii.ecsv")),
    "Arrow as any file": ("application/octet-stream", ipc),
}


def by_json(client: TestClient) -> list[Any]:
    items = [
        {
            "id": IDS[i],
            "inputs": [
                {
                    "modality": "photometry",
                    "values": {name: values[i] for name, values in FLUX.items()},
                    "read": {"survey": "legacysurvey"},
                }
            ],
        }
        for i in range(3)
    ]
    answer = client.post("/v1/embed", json={"items": items})
    assert answer.status_code == 200, answer.text
    return [item["embedding"] for item in answer.json()["items"]]


@pytest.mark.parametrize("name", BODIES)
def test_a_bare_file_of_every_type_holds_the_same_objects(client: TestClient, name: str) -> None:
    kind, content = BODIES[name]
    answer = client.post("/v1/embed?survey=legacysurvey", content=content(), headers={"Content-Type": kind})
    assert answer.status_code == 200, answer.text
    items = answer.json()["items"]
    assert [item["id"] for item in items] == IDS
    assert [item["ra"] for item in items] == [10.0, 11.0, 12.0]
    assert [item["embedding"] for item in items] == by_json(client)


def test_an_archive_of_images(client: TestClient, image: Make) -> None:
    y, x = np.mgrid[:96, :96] - 48.0
    flux = np.exp(-(x**2 + y**2) / 60.0) * np.ones((2, 4, 1, 1))
    out = io.BytesIO()
    np.savez(out, images=flux.astype(np.float32), bands=np.array(["g", "r", "i", "z"]), id=np.array(["A", "B"]),
             pixel_scale=0.262, survey="legacysurvey", unit="nanomaggy")  # fmt: skip
    answer = client.post("/v1/embed", content=out.getvalue(), headers={"Content-Type": "application/x-npz"})
    assert answer.status_code == 200, answer.text
    assert [item["id"] for item in answer.json()["items"]] == ["A", "B"]


@pytest.mark.parametrize("kind", FILE_TYPES)
def test_the_content_tells_the_format_whatever_the_type_says(client: TestClient, image: Make, kind: str) -> None:
    answer = client.post("/v1/embed?filename=a.fits", content=image("A"), headers={"Content-Type": kind})
    assert answer.status_code == 200, answer.text
    nothing = client.post("/v1/embed", content=b"\0\1nothing", headers={"Content-Type": kind})
    assert (nothing.status_code, nothing.json()["code"]) == (422, "unknown_format")
    empty = client.post("/v1/embed", content=b"", headers={"Content-Type": kind})
    assert (empty.status_code, empty.json()["code"]) == (422, "empty_file")


@pytest.mark.parametrize("kind", ["text/plain", "text/html", "application/x-www-form-urlencoded", ""])
def test_types_that_are_not_read_name_those_that_are(client: TestClient, kind: str) -> None:
    answer = client.post("/v1/embed", content=b"a=1", headers={"Content-Type": kind})
    assert answer.status_code == 415
    problem = schemas.Problem.model_validate(answer.json())
    assert problem.code == "content_type"
    assert all(one in (problem.fix or "") for one in FILE_TYPES)


def test_parts_of_a_form_may_be_arrow_too(client: TestClient) -> None:
    request = {"items": [{"id": "mine", "inputs": [{"ref": "part:t", "object": "o1"}]}]}
    answer = client.post("/v1/embed", data={"request": json.dumps(request)}, files={"t": ("t.arrow", ipc())})
    assert answer.status_code == 200, answer.text
    (item,) = answer.json()["items"]
    assert item["embedding"] == by_json(client)[1]


def test_base64_says_what_it_is_and_is_checked(client: TestClient) -> None:
    inputs = [{"b64": base64.b64encode(ipc()).decode(), "format": "arrow", "object": "o2"}]
    answer = client.post("/v1/embed", json={"items": [{"id": "x", "inputs": inputs}]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["items"][0]["embedding"] == by_json(client)[2]
    inputs[0]["format"] = "parquet"
    answer = client.post("/v1/embed", json={"items": [{"id": "x", "inputs": inputs}]})
    assert (answer.status_code, answer.json()["code"]) == (422, "request_invalid")


def test_receiving_a_body_does_not_parse_it() -> None:
    """JSON may be megabytes: the event loop, which serves everybody, leaves it to a thread."""

    async def body() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{", "more_body": False}

    headers = [(b"content-type", b"application/json")]
    request = Request({"type": "http", "headers": headers, "query_string": b"", "method": "POST"}, body)
    received = anyio.run(receive, request)
    assert received.text == b"{"
    with pytest.raises(Malformed):
        received.body(schemas.EmbedRequest)


def test_a_row_that_is_wrong_fails_alone(client: TestClient) -> None:
    spoilt = table().set_column(0, "id", pa.array(["o0", "", "o2"]))
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, spoilt.schema) as writer:
        writer.write_table(spoilt)
    kind = {"Content-Type": "application/vnd.apache.arrow.stream"}
    answer = client.post("/v1/embed", content=bytes(out.getvalue()), headers=kind)
    assert answer.headers["x-items-failed"] == "1"
    assert [item["status"] for item in answer.json()["items"]] == ["ok", "error", "ok"]
    assert answer.json()["items"][1]["error"]["code"] == "value_missing"
