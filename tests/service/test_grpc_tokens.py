"""Tokenize and Detokenize by a stock client: the same as over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest
from fastapi.testclient import TestClient

from albireo.service.core import Core
from albireo.service.grpc_messages import array, tensor
from albireo.service.protos.albireo.v1 import albireo_pb2 as pb
from albireo.service.settings import Settings
from tests.service.grpc_doors import Served, detail, of_file, of_fluxes, served


@pytest.fixture
def door(core: Core, settings: Settings) -> Iterator[Served]:
    with served(core, settings) as made:
        yield made


def test_tokens_are_those_of_the_http_door(
    door: Served, client: TestClient, image: Callable[..., bytes], spectrum: Callable[..., bytes]
) -> None:
    contents = [image("A"), spectrum(7), b"torn"]
    over_http = client.post("/v1/tokenize", files=[("file", (str(n), one)) for n, one in enumerate(contents)]).json()
    answer = door.embedding.Tokenize(pb.TokenizeRequest(items=[of_file(one) for one in contents]))
    for item, expected in zip(answer.items, over_http["items"], strict=True):
        assert {name: array(one, name).tolist() for name, one in item.tokens.items()} == (expected["tokens"] or {})
        assert (item.status, item.n_tokens) == (expected["status"], expected["n_tokens"])
    assert [one.item for one in answer.items] == [0, 1, 2]
    assert {one.dtype for item in answer.items for one in item.tokens.values()} == {"uint16"}
    assert answer.items[2].error.code == "unknown_format"
    assert answer.envelope.n_failed == 1
    assert answer.envelope.checkpoint == over_http["checkpoint"]
    assert answer.quantisers.keys() == over_http["quantisers"].keys()
    for name, one in answer.quantisers.items():
        expected = over_http["quantisers"][name]
        told = (one.codec, one.n_tokens, one.vocabulary, [one.grid_height, one.grid_width])
        assert told == (expected["codec"], expected["n_tokens"], expected["vocabulary"], expected["grid"])


def test_numbers_are_those_of_the_http_door(
    door: Served, client: TestClient, image: Callable[..., bytes], spectrum: Callable[..., bytes]
) -> None:
    made = door.embedding.Tokenize(
        pb.TokenizeRequest(items=[of_file(image("A")), of_file(spectrum(7)), of_fluxes("f")])
    )
    ids = [{name: array(one, name) for name, one in item.tokens.items()} for item in made.items]
    given = [
        pb.TokensOfOne(id=str(n), tokens={name: tensor(one) for name, one in row.items()}) for n, row in enumerate(ids)
    ]
    given[2].tokens.pop("legacysurvey.flux_g")  # of what is only read there may be no numbers
    given.insert(1, pb.TokensOfOne(id="short", tokens={"image.legacysurvey": tensor(np.arange(3))}))
    given.insert(2, pb.TokensOfOne(id="torn", tokens={"image.legacysurvey": pb.Tensor(dtype="uint16", shape=[4])}))
    codecs = {name: one.codec for name, one in made.quantisers.items()}
    answer = door.embedding.Detokenize(pb.DetokenizeRequest(items=given, codecs=codecs))
    assert [(one.item, one.id, one.status) for one in answer.items] == [
        (0, "0", "ok"), (1, "short", "error"), (2, "torn", "error"), (3, "1", "ok"), (4, "2", "ok"),
    ]  # fmt: skip
    assert [answer.items[n].error.code for n in (1, 2)] == ["shape_mismatch"] * 2
    assert answer.envelope.n_failed == 2

    body = {"items": [{"id": "0", "tokens": {name: one.tolist() for name, one in ids[0].items()}}]}
    over_http = client.post("/v1/detokenize", json=body).json()
    expected = over_http["items"][0]["values"]["image.legacysurvey"]
    values = array(answer.items[0].values["image.legacysurvey"], "values")
    assert values.dtype == np.float32
    assert values.tolist() == expected["values"]
    about, said = answer.modalities["image.legacysurvey"], over_http["modalities"]["image.legacysurvey"]
    assert (about.unit, list(about.axes), list(about.bands)) == (said["unit"], said["axes"], list(said["bands"]))
    assert about.pixel_scale == said["pixel_scale"]
    assert len(array(answer.modalities["spectrum.sdss"].wavelength, "w")) == 20


def test_tokens_of_another_codec_are_refused(door: Served) -> None:
    given = pb.TokensOfOne(tokens={"image.legacysurvey": tensor(np.arange(4))})
    with pytest.raises(grpc.RpcError) as caught:
        door.embedding.Detokenize(pb.DetokenizeRequest(items=[given], codecs={"image.legacysurvey": "other"}))
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION  # type: ignore[attr-defined]
    assert detail(caught.value, "ErrorInfo").reason == "space_mismatch"


def test_nothing(door: Served) -> None:
    for call, request in (
        (door.embedding.Tokenize, pb.TokenizeRequest()),
        (door.embedding.Detokenize, pb.DetokenizeRequest()),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call(request)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
