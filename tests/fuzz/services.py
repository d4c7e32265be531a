"""Readers of the service, each called as its users call it; what they raise or answer is what came of the input."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
from pydantic import ValidationError

from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.modalities import MODALITIES
from albireo.observations.source import Source
from tests.fuzz import bounds
from tests.fuzz.mutation import Parts
from tests.fuzz.readers import of_object, of_report, stated
from tests.fuzz.service_seeds import CHECKPOINT


def parsed(text: bytes, *names: str) -> dict[str, Any]:
    """Of an input's first part, the entries that say how it is to be read; BadInput if they do not."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not set(names) <= value.keys():
        raise BadInput("request_invalid", "this says not how to read it")
    return value


@functools.cache
def scratch() -> Path:
    """A folder of this process, in memory where there is such a file system."""
    shared = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="albireo-fuzz-", dir=shared if shared.is_dir() else None))


def written(name: str, content: bytes) -> Path:
    path = scratch() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# Files of runs, labels, heads, checkpoints, keys


def spans(parts: Parts) -> Iterator[Any]:
    """A table span by span, each read; then as the unit of a bulk run."""
    from albireo.observations.reading import read_files
    from albireo.observations.row_spans import open_spans
    from albireo.service.bulk_reading import units

    options, path = stated(parts[0]), written("table", parts[1])
    found = open_spans(path, 50, 1 << 13)
    yield found is None
    try:
        for n, span in enumerate(found or ()):
            if n == 8:
                break
            for report in read_files([span.read(path.name, "0" * 64)], options):
                yield from of_report(report)
    except AlbireoError as error:
        yield error
    for unit in units([path], options, 100):
        for subject in unit.read()[:50]:
            yield subject.error if subject.observation is None else of_object(subject.observation)


def labels(parts: Parts) -> Iterator[Any]:
    from albireo.models.heads import Task
    from albireo.service.labels import Wanted, read_labels, without_value

    said = parsed(parts[0], "targets", "task")
    texts = [said.get("group", "object"), said.get("weights", ""), said.get("id", ""), *_list(said["targets"])]
    numbers = said.get("missing")
    if said["task"] not in get_args(Task) or not all(isinstance(one, str) for one in texts):
        raise BadInput("option_invalid", "this is no statement of labels")
    missing = None if numbers is None else tuple(one for one in _list(numbers) if isinstance(one, int | float))
    targets, group = tuple(_list(said["targets"])), said.get("group", "object")
    wanted = Wanted(targets, said["task"], said.get("id"), group, said.get("weights"), missing)
    found, units = read_labels(written("labels", parts[1]), wanted)
    yield len(found.columns), sorted(units), without_value(found, wanted.targets) > 0


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def heads(parts: Parts) -> Iterator[Any]:
    """A head file is opened, and asked of two objects."""
    from albireo.models.heads import Head
    from tests.models.toys import toys

    head, some = Head.open(written("head.safetensors", parts[0])), _toys()
    head.check(some.engine)  # type: ignore[arg-type]
    answers = head.predict(some.embeddings[:2], some.observations[:2])
    yield head.card.task, head.prior is None, len(answers), [one.flags for one in answers], toys.__name__


@functools.cache
def _toys() -> Any:
    from tests.models.toys import toys

    return toys(2, seed=1)


def checkpoints(parts: Parts) -> Iterator[Any]:
    """A folder is described, and its codecs are opened and used."""
    import torch

    from albireo.observations.observation import Scalar
    from albireo.service.readiness import KnownAnswer
    from albireo.service.recipe import Recipe
    from albireo.tokenizers.bank import TokenizerBank
    from albireo.tokenizers.checkpoint import Checkpoint, Manifest

    folder = scratch() / "checkpoint"
    for name, part in zip(CHECKPOINT, parts, strict=True):
        if part:
            written(f"checkpoint/{name}", part)
        else:
            (folder / name).unlink(missing_ok=True)
    for kind in (Recipe, KnownAnswer, Manifest):
        try:
            yield kind.read(folder) is None  # type: ignore[attr-defined]
        except AlbireoError as error:
            yield error
    checkpoint = Checkpoint(folder)
    yield sorted(checkpoint.inputs), sorted(checkpoint.outputs), checkpoint.preprocessing
    assert checkpoint.dim >= 0
    assert checkpoint.space("mean")
    assert checkpoint.max_tokens >= 0
    bank = TokenizerBank.open(checkpoint, "cpu", torch.float32)
    for key in bank:
        yield from bank.tokens(key, [Scalar(1.5, MODALITIES[key].unit)])


def keys(parts: Parts) -> Iterator[Any]:
    from albireo.service.keys import read_keys

    found = read_keys(written("keys.json" if parts[0] == b"json" else "keys.toml", parts[1]))
    yield sorted(key.role for key in found.values())


# Workers


def payloads(parts: Parts) -> Iterator[Any]:
    from albireo.service.payload_bytes import pack, unpack
    from albireo.service.remote_tokens import unpacked_result

    if parts[0] == b"result":
        result = unpacked_result(parts[1])
        yield result if isinstance(result, AlbireoError) else result[1]
        return
    payload = unpack(parts[1])
    pack(payload)
    yield type(payload).__name__


# Doors


@functools.cache
def _service() -> tuple[Any, Any, Any]:
    """(core, settings, readiness) of a service with a toy engine and the limits of bounds.py."""
    from albireo.index.collection import Collections
    from albireo.service.core import Core
    from albireo.service.readiness import Readiness
    from albireo.service.settings import Settings
    from albireo.service.shelf import Shelf
    from tests.service.conftest import ToyEngine

    class CheckingEngine(ToyEngine):
        """One that refuses ids that there are none of, as the real one does."""

        def embed(self, tokens: Any, pooling: Any = "mean") -> Any:
            for one in tokens:
                for key, ids in one.ids.items():
                    if not len(ids) or ids.min() < 0 or ids.max() >= self.inputs[key].vocab_size:
                        raise BadInput("value_out_of_range", "no such token", field=key)
            return super().embed(tokens, pooling)

    folder = scratch() / "service"
    settings = Settings(
        data_folder=folder, model=str(folder), max_items=50, max_body_bytes=bounds.FILE,
        max_decompressed_bytes=bounds.ROOM, deadline_seconds=600.0,
    )  # fmt: skip
    engine, shelf = CheckingEngine(), Shelf({"own": folder / "heads", "shipped": folder / "heads"})
    core = Core(lambda: engine, lambda: Collections(settings.collections_file), shelf=lambda: shelf)
    return core, settings, Readiness(core, settings.data_folder, fresh_seconds=1e9, wait_seconds=20.0)


def oip(parts: Parts) -> Iterator[Any]:
    """A request is understood and answered by the models over a toy engine."""
    from google.protobuf.message import DecodeError

    from albireo.service.oip import Models, infer
    from albireo.service.oip_grpc import message_of, request_of
    from albireo.service.oip_rest import _written
    from albireo.service.oip_rest import parsed as rest
    from albireo.service.protos.inference import open_inference_pb2 as messages
    from albireo.service.tickets import Ticket

    said, core = parsed(parts[0], "door"), _service()[0]
    if said["door"] == "rest":
        model, length = str(said.get("model")), said.get("length")
        asked, binary = rest(model, "", parts[1], None if length is None else str(length))
        yield len(_written(infer(Models(core), asked, Ticket(), 50), binary).body) > 0
        return
    try:
        message = messages.ModelInferRequest.FromString(parts[1])
    except DecodeError:
        yield "no message"
        return
    yield len(message_of(infer(Models(core), request_of(message), Ticket(), 50)).outputs)


def grpc(parts: Parts) -> Iterator[Any]:
    """A message is turned into what every door works on."""
    from google.protobuf.message import DecodeError

    from albireo.service import grpc_messages, grpc_tokens
    from albireo.service.protos.albireo.v1 import albireo_pb2 as pb

    kind = getattr(pb, parts[0].decode("latin-1"), None)
    try:
        message = kind.FromString(parts[1])  # type: ignore[union-attr]
    except (DecodeError, AttributeError, TypeError):
        yield "no message"
        return
    if isinstance(message, pb.Vector):
        yield grpc_messages.vector(message, "vector").ndim
    elif isinstance(message, pb.DetokenizeRequest):
        given = [grpc_tokens._given(one, "items") for one in message.items]
        yield from given
        decoded = _service()[0].detokenize([one for one in given if not isinstance(one, AlbireoError)], message.codecs)
        yield from (one.error or sorted(one.values) for one in decoded)
    elif isinstance(message, pb.EmbedRequest | pb.PredictRequest | pb.TokenizeRequest):
        if isinstance(message, pb.PredictRequest):
            yield type(grpc_messages.prior(message.options)).__name__
        _, found = grpc_messages.Given.of_request(message, 50)
        for subject in found.subjects:
            yield subject.error if subject.observation is None else of_object(subject.observation)


@functools.cache
def _client() -> Any:
    from fastapi.testclient import TestClient

    from albireo.service.app import create_app

    client = TestClient(create_app(*_service()))
    client.__enter__()
    client.put("/v1/collections/c", json={})
    return client


def http(parts: Parts) -> Iterator[Any]:
    """A request is answered: a defect is raised as what it is, whatever else is a document of a known form."""
    import httpx

    from albireo.service import schemas

    said = parsed(parts[0], "path", "headers")
    path, headers = said["path"], said["headers"]
    sendable = isinstance(path, str) and path[:4] == "/v1/" and path.isprintable() and isinstance(headers, dict)
    if not sendable or not all(isinstance(one, str) and one.isascii() for pair in headers.items() for one in pair):
        raise BadInput("request_invalid", "this is no request")
    try:
        answer = _client().post(path, content=parts[1], headers=headers)
    except (httpx.InvalidURL, httpx.LocalProtocolError) as error:
        raise BadInput("request_invalid", "this cannot be sent") from error
    assert answer.status_code < 500 or answer.status_code in (503, 504), answer.text
    if answer.status_code == 200:
        kind = answer.headers["Content-Type"]
        yield kind, [one.get("status") for one in answer.json().get("items", [])] if "json" in kind else ()
        return
    problem = schemas.Problem.model_validate(answer.json())
    yield answer.status_code, problem.code, problem.field


def tokens(parts: Parts) -> Iterator[Any]:
    from albireo.service.client_tokens import TokenTable, requests_of
    from albireo.service.problems import from_validation
    from albireo.service.token_replies import given_of
    from albireo.service.token_schemas import DetokenizeRequest
    from albireo.service.token_verbs import Given

    core, kind = _service()[0], parts[0].decode("latin-1")
    if kind in ("ecsv", "parquet", "fits"):
        from albireo.service.client_requests import Limits

        table = TokenTable.read(written(f"t.{kind}", parts[1]))
        yield len(requests_of(table, Limits(50, bounds.FILE)))
        return
    if kind == "npz":
        given, codecs = given_of(Source("tokens", parts[1], bounds.FILE))
    else:
        try:
            request = DetokenizeRequest.model_validate_json(parts[1])
        except ValidationError as error:
            raise from_validation(error.errors()) from error
        given, codecs = [Given(one.id, one.tokens) for one in request.items], request.codecs
    yield from (one.error or sorted(one.values) for one in core.detokenize(given[:50], codecs))


def client(parts: Parts) -> Iterator[Any]:
    """Options as keyword arguments; answers of whoever listens there."""
    import httpx

    from albireo.service.client_reading import Reading
    from albireo.service.client_transport import content_of, refusal

    if parts[0] == b"options":
        yield sorted(Reading.of(parsed(parts[1])).data)
        return
    status, _, kind = parts[0].decode("latin-1").partition(" ")
    if status not in ("200", "422", "503") or not kind.isascii() or not kind.isprintable():
        raise BadInput("request_invalid", "this is no answer")
    request = httpx.Request("POST", "http://localhost/v1/embed")
    response = httpx.Response(int(status), headers={"Content-Type": kind}, content=parts[1], request=request)
    refused = refusal(response)
    yield sorted(content_of(response)) if refused is None else refused.error


def storage(parts: Parts) -> Iterator[Any]:
    """A file of collections is opened and asked, or a cache."""
    import shutil

    from albireo.index.byte_cache import SMALLEST, ByteCache
    from albireo.index.collection import Collections

    folder = scratch() / "storage"
    shutil.rmtree(folder, ignore_errors=True)
    path = written("storage/x.sqlite", parts[1])
    if parts[0] == b"cache":
        cache = ByteCache(path, SMALLEST)
        try:
            yield len(cache.get([bytes([k]) * 32 for k in range(20)])), cache.counts.errors > 0
            cache.put({b"k" * 32: b"v"})
        finally:
            cache.close()
        return
    collections = Collections(path)
    try:
        for name in collections.names():
            one = collections.get(name)
            yield one.count
            yield len(one.search(np.ones((1, one.dim), np.float32), 3, space=one.space)[0])
            yield len(one.fetch(["o1"]))
    finally:
        collections.close()
