"""The OpenAPI document: as it was agreed on, with examples that work, and true of whatever is sent.

`python -m tests.service.test_openapi` writes the document that is agreed on.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from albireo.index.collection import Collections
from albireo.service import examples, generation_schemas, prediction_schemas, reply_formats, schemas, token_schemas
from albireo.service.app import create_app
from albireo.service.bodies import FILE_TYPES
from albireo.service.core import Core
from albireo.service.readiness import Readiness
from albireo.service.settings import Settings
from albireo.service.shelf import Shelf
from tests.service.conftest import ToyEngine

GOLDEN = Path(__file__).parent / "golden" / "openapi.json"
REWRITE = "if the change is meant: .venv/bin/python -m tests.service.test_openapi"

KNOWN = {"c": "c", "head": "tok_z", "id": "toy", "model": "toy", "version": "1"}
"""Parameters of addresses, of what there is."""

CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


def app_in(folder: Path) -> tuple[FastAPI, Core]:
    """The service over a toy engine; what it tells of itself does not depend on the engine."""
    made = Settings(data_folder=folder / "data", model=str(folder), max_items=50, max_body_bytes=4 << 20)
    engine = ToyEngine()
    core = Core(lambda: engine, lambda: Collections(made.collections_file), shelf=lambda: Shelf({}))
    readiness = Readiness(core, made.data_folder, fresh_seconds=0.0, wait_seconds=20.0)
    return create_app(core, made, readiness), core


def text_of(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def golden() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {"paths": {}}
    return found


OPERATIONS = [(method, path) for path, row in golden()["paths"].items() for method in row]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One service for all, with the collection `c` of one object."""
    app, _ = app_in(tmp_path_factory.mktemp("openapi"))
    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.put("/v1/collections/c", json=examples.REQUESTS["CollectionRequest"]).status_code == 200
        assert client.post("/v1/collections/c/objects", json=examples.REQUESTS["ObjectsRequest"]).status_code == 200
        yield client


@pytest.fixture(scope="module")
def document(served: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = served.get("/openapi.json").json()
    return found


@pytest.fixture(scope="module")
def schema(document: dict[str, Any]) -> Any:
    return schemathesis.openapi.from_dict(document)


def test_the_document_is_the_one_agreed_on(document: dict[str, Any]) -> None:
    now, agreed = text_of(document).splitlines(), GOLDEN.read_text().splitlines()
    first = next((n for n, (a, b) in enumerate(zip(now, agreed, strict=False)) if a != b), min(len(now), len(agreed)))
    assert now == agreed, f"line {first + 1} of {GOLDEN.name}: {now[first : first + 1]}; {REWRITE}"


# Examples


def bodies(document: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    for path, row in document["paths"].items():
        for method, operation in row.items():
            for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                yield method, path, kind, content


def test_every_form_of_a_body_and_of_an_answer_is_shown(document: dict[str, Any]) -> None:
    """By an example if it is text, else by how it lies and how it is read."""
    for _, path, kind, content in bodies(document):
        if not path.startswith("/v2"):
            shown = content.get("examples") or content["schema"].get("description")
            assert shown or path == "/v1/collections/{c}", (path, kind)
    for path, row in document["paths"].items():
        for operation in row.values() if not path.startswith("/v2") else ():
            for status, answer in operation["responses"].items():
                for kind, content in answer.get("content", {}).items():
                    if status == "200" and path != "/v1/usage":
                        assert content.get("examples") or content["schema"].get("description"), (path, kind)
    assert set(examples.BODIES) == set(FILE_TYPES)
    assert set(examples.LAYOUTS) == set(reply_formats.EMBEDDINGS) - {reply_formats.JSON}


def models() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for module in (schemas, prediction_schemas, token_schemas, generation_schemas):
        found |= {name: one for name, one in vars(module).items() if hasattr(one, "model_validate")}
    return found


@pytest.mark.parametrize("name", examples.ANSWERS)
def test_examples_of_answers_are_such_answers(name: str) -> None:
    models()[name].model_validate(examples.ANSWERS[name])


def test_examples_of_requests_are_answered(served: TestClient, document: dict[str, Any], schema: Any) -> None:
    tried = 0
    for method, path, kind, content in list(bodies(document)):
        for example in content.get("examples", {}).values():
            address = path.format(**KNOWN)
            if kind == "application/json":
                answer = served.request(method, address, json=example["value"])
            elif kind == "multipart/form-data":
                form = {"request": json.dumps(example["value"]["request"])}
                answer = served.request(method, address, files={"request": (None, form["request"])})
            else:
                query = "?survey=legacysurvey" + "&heads=tok_z" * (path == "/v1/predict")
                query += "&target=legacysurvey.flux_r" * (path == "/v1/generate")
                answer = served.request(
                    method, address + query, content=example["value"], headers={"Content-Type": kind}
                )
            assert answer.status_code == 200, (method, path, kind, answer.text)
            case = schema[path][method.upper()].Case(path_parameters=KNOWN, media_type=kind)
            case.validate_response(answer, checks=CHECKS)
            tried += 1
    assert tried > 20


# Whatever is sent


def tell(served: TestClient, case: Any, n: int) -> None:
    """Send a case, every other one to what there is, and check the answer against the document."""
    if n % 2:
        case.path_parameters = {name: KNOWN[name] for name in case.path_parameters or {}}
    sent = case.as_transport_kwargs(base_url="http://testserver")
    wanted = {name: sent[name] for name in ("params", "headers", "data", "files", "json", "cookies") if name in sent}
    made = requests.Request(sent["method"], sent["url"], **wanted).prepare()
    body = made.body.encode() if isinstance(made.body, str) else made.body
    content = body.read() if isinstance(body, io.IOBase) else body
    answer = served.request(str(made.method), str(made.url), content=content, headers=dict(made.headers))
    late = answer.status_code == 504 and answer.json()["code"] == "deadline_exceeded"  # it may ask for no time at all
    case.validate_response(answer, checks=CHECKS[late:])


def explore(served: TestClient, operation: Any, mode: GenerationMode, count: int) -> int:
    """Send so many requests as the document describes them, or as it forbids them."""
    done = 0

    @settings(
        max_examples=count, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        nonlocal done
        done += 1
        tell(served, case, done)

    send()
    return done


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_answer_breaks_the_document(served: TestClient, schema: Any, method: str, path: str) -> None:
    assert explore(served, schema[path][method.upper()], GenerationMode.POSITIVE, 4)


WITH_BODY = [(method, path) for method, path in OPERATIONS if method != "get"]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path"), WITH_BODY)
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_answer_to_much_breaks_the_document(
    served: TestClient, schema: Any, method: str, path: str, mode: GenerationMode
) -> None:
    assert explore(served, schema[path][method.upper()], mode, 60)


def test_a_break_would_be_seen(served: TestClient, document: dict[str, Any]) -> None:
    """The checks are at work: a document that promises something else is not met."""
    spoilt = json.loads(json.dumps(document))
    spoilt["components"]["schemas"]["LiveReply"]["properties"]["status"] = {"type": "integer"}
    operation = schemathesis.openapi.from_dict(spoilt)["/livez"]["GET"]
    with pytest.raises(BaseException, match="integer"):
        explore(served, operation, GenerationMode.POSITIVE, 1)


def write(folder: str) -> None:
    GOLDEN.parent.mkdir(exist_ok=True)
    app, core = app_in(Path(folder))
    GOLDEN.write_text(text_of(app.openapi()))
    core.close()


@pytest.mark.parametrize(
    "options",
    [
        schemas.Options,
        token_schemas.TokenizeOptions,
        prediction_schemas.PredictOptions,
        generation_schemas.GenerateOptions,
    ],
)
def test_every_option_can_stand_in_a_query(options: Any) -> None:
    """A body that is a file alone has no other place for it; what files do not say has names of its own."""
    names = {field.alias or name for name, field in options.model_fields.items()} - {"read"}
    assert names <= options.in_query.keys()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        write(place)
