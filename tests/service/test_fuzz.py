"""Whatever is sent, the answer is a typed document, and the service goes on."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from albireo.service import schemas

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
