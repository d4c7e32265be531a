"""albireo.v1, call by call, by a stock client: what goes in, what comes back, and that other doors say the same."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import grpc
import numpy as np
import pytest
from astropy.io import fits
from fastapi.testclient import TestClient

from albireo.observations.options import ReadOptions
from albireo.service.core import Core
from albireo.service.grpc_messages import DTYPES, array, reading, tensor
from albireo.service.protos.albireo.v1 import albireo_pb2 as pb
from albireo.service.settings import Settings
from tests.service.grpc_doors import READ, UNITS, Served, detail, embedded, of_file, of_fluxes, served
from tests.service.make_protos import GENERATED, PROTOS, generate


@pytest.fixture
def door(core: Core, settings: Settings) -> Iterator[Served]:
    with served(core, settings) as made:
        yield made


def values(result: pb.ItemResult) -> np.ndarray:
    return array(result.embedding, "embedding")


# --- the proto ------------------------------------------------------------------------------------------------------


def test_the_generated_code_is_of_the_protos(tmp_path: Path) -> None:
    written = generate(tmp_path)
    assert sorted(PROTOS / path for path in written) == sorted(p for kind in GENERATED for p in PROTOS.rglob(kind))
    for path in written:
        assert (tmp_path / path).read_text() == (PROTOS / path).read_text(), "python -m tests.service.make_protos"


def test_no_list_of_numbers_in_the_proto() -> None:
    """Arrays are bytes: a list of numbers costs an object a number in every language."""
    numbers = {"float", "double", "int32", "uint32", "int64", "uint64"}
    text = (PROTOS / "albireo/v1/albireo.proto").read_text()
    repeated = re.findall(r"repeated (\w+) (\w+) =", text)
    assert [name for kind, name in repeated if kind in numbers] == ["shape"]


def test_every_reading_option_is_there() -> None:
    assert {one.name for one in pb.ReadOptions.DESCRIPTOR.fields} == {one.name for one in fields(ReadOptions)}


def test_reading_options_arrive() -> None:
    stated = pb.ReadOptions(
        at=pb.SkyPos(ra=1.5, dec=-2),
        resample=False,
        bands=["g", "r"],
        columns={"redshift": "z"},
        nearest=3,
        zero_point=0,
    )
    expected = ReadOptions(
        at=(1.5, -2.0), resample=False, bands=("g", "r"), columns={"redshift": "z"}, nearest=3, zero_point=0.0
    )
    assert reading(stated) == expected
    assert reading(pb.ReadOptions()) == ReadOptions()


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_are_little_endian_and_row_major(dtype: str) -> None:
    numbers = np.arange(6).reshape(3, 2).T.astype(np.dtype(dtype).newbyteorder(">"))
    sent = tensor(numbers)
    assert (sent.dtype, list(sent.shape)) == (dtype, [2, 3])
    assert sent.data == np.ascontiguousarray(numbers).astype(np.dtype(dtype).newbyteorder("<")).tobytes()
    np.testing.assert_array_equal(array(sent, "x"), numbers)


# --- embeddings -----------------------------------------------------------------------------------------------------


def test_the_embedding_is_that_of_the_http_door(
    door: Served, client: TestClient, image: Callable[..., bytes], spectrum: Callable[..., bytes]
) -> None:
    for content in (image("a"), spectrum(3)):
        over_http = client.post(
            "/v1/embed", params={"encoding": "base64"}, content=content, headers={"Content-Type": "application/fits"}
        ).json()
        answer = door.embedding.Embed(embedded(of_file(content)))
        (item,), (expected,) = answer.items, over_http["items"]
        assert item.embedding.data == base64.b64decode(expected["embedding"])
        assert list(item.embedding.shape) == expected["shape"]
        assert (item.id, item.status, item.item) == (expected["id"], "ok", 0)
        assert (list(item.modalities_used), list(item.qa_flags)) == (expected["modalities_used"], expected["qa_flags"])
        assert item.space == answer.envelope.space == over_http["space"]
        assert (answer.envelope.model, answer.envelope.dim) == (over_http["model"], over_http["dim"])
        assert answer.envelope.tokens == over_http["usage"]["tokens"] == item.n_tokens
        assert {"parse", "tokenize", "encode"} <= answer.envelope.timings_ms.keys()


def test_poolings(door: Served, image: Callable[..., bytes]) -> None:
    item = of_file(image("a"))
    item.inputs.append(of_fluxes("").inputs[0])
    item.id = "both"
    tokens = door.embedding.Embed(embedded(item, pooling="tokens")).items[0]
    assert values(tokens).shape == (6, 16)
    assert list(tokens.rows) == ["image.legacysurvey"] * 4 + ["legacysurvey.flux_g", "legacysurvey.flux_r"]
    one = door.embedding.Embed(embedded(item, normalize=True)).items[0]
    assert np.linalg.norm(values(one)) == pytest.approx(1, abs=1e-6)
    assert one.space.endswith(":l2")
    with pytest.raises(grpc.RpcError) as caught:
        door.embedding.Embed(embedded(item, pooling="max"))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert detail(caught.value, "ErrorInfo").reason == "option_invalid"


def test_a_tensor_is_read_as_the_file_of_its_numbers(door: Served, image: Callable[..., bytes]) -> None:
    content = image("a")
    (pixels,) = (hdu.data for hdu in fits.HDUList.fromstring(content))
    read = pb.ReadOptions(bands=["g", "r", "i", "z"], pixel_scale=0.262, unit="nanomaggy")
    stated = pb.Input(modality="image.legacysurvey", tensor=tensor(pixels), read=read)
    of_both = door.embedding.Embed(embedded(of_file(content), pb.Item(id="t", inputs=[stated])))
    assert [one.error.code for one in of_both.items] == ["", ""]
    assert of_both.items[0].embedding.data == of_both.items[1].embedding.data

    stated.mask.CopyFrom(tensor(np.eye(96, dtype=bool)))
    masked = door.embedding.Embed(embedded(pb.Item(id="t", inputs=[stated]))).items[0]
    assert "masked_pixels" in masked.qa_flags


def test_named_arrays_are_read_as_an_archive(door: Served) -> None:
    wave = np.linspace(3800, 9200, 500)
    arrays = {"wavelength": wave, "flux": np.sin(wave / 500) + 3, "ivar": np.full(500, 4.0)}
    given = pb.Input(
        arrays=pb.Arrays(by_name={name: tensor(one) for name, one in arrays.items()}),
        units={"flux": "1e-17 erg/(s cm2 Angstrom)"},
        read=pb.ReadOptions(survey="sdss", medium="vacuum", frame="heliocentric"),
    )
    item = door.embedding.Embed(embedded(pb.Item(id="s", inputs=[given]))).items[0]
    assert (item.status, list(item.modalities_used)) == ("ok", ["spectrum.sdss"])
    given.arrays.by_name.pop("ivar")
    item = door.embedding.Embed(embedded(pb.Item(id="s", inputs=[given]))).items[0]
    assert (item.status, item.error.code, item.error.field) == ("error", "column_missing", "ivar")


def test_a_position_and_labels_are_kept(door: Served, image: Callable[..., bytes]) -> None:
    item = of_file(image("a"))
    item.pos.ra, item.pos.dec = 150.2, 2.2
    item.labels.update({"class": "GALAXY", "n": 3})
    validated = door.embedding.Validate(embedded(item)).items[0]
    assert (validated.pos.ra, validated.pos.dec) == (150.2, 2.2)
    assert [one.code for one in validated.warnings] == ["position_differs"]
    assert dict(validated.metadata)["class"] == "GALAXY"
    assert dict(validated.metadata)["n"] == 3


BAD = {
    "nothing": (pb.Input(), "request_invalid", "items.1.inputs.0"),
    "two": (pb.Input(file=b"x", scalars={"a": 1.0}), "request_invalid", "items.1.inputs.0"),
    "empty": (pb.Input(file=b""), "empty_file", "items.1"),
    "unknown": (pb.Input(file=b"what is this"), "unknown_format", None),
    "jpeg": (pb.Input(file=b"\xff\xd8\xff\xe0" + bytes(100)), "not_photometric", None),
    "other format": (pb.Input(file=b"a,b\n1,2\n", format="fits"), "request_invalid", "items.1.inputs.0.format"),
    "no such format": (pb.Input(file=b"a", format="tiff"), "request_invalid", "format"),
    "no survey": (pb.Input(scalars={"flux_g": 1.0}, units={"flux_g": "nanomaggy"}), "survey_missing", None),
    "lost unit": (pb.Input(scalars={"flux_g": 1.0}, units=UNITS, read=READ), "request_invalid", None),
    "unit of a file": (pb.Input(file=b"a", units={"x": "m"}), "request_invalid", "items.1.inputs.0.units"),
    "mask alone": (pb.Input(scalars={"a": 1.0}, mask=tensor(np.eye(2))), "request_invalid", "items.1.inputs.0.mask"),
    "tensor of what": (pb.Input(tensor=tensor(np.eye(2))), "request_invalid", "items.1.inputs.0.modality"),
    "tensor of a spectrum": (
        pb.Input(modality="spectrum.sdss", tensor=tensor(np.eye(2))), "request_invalid", "items.1.inputs.0.modality",
    ),
    "short tensor": (
        pb.Input(modality="image", tensor=pb.Tensor(dtype="float32", shape=[2, 2], data=bytes(15))),
        "shape_mismatch", "items.1.inputs.0.tensor",
    ),
    "negative shape": (
        pb.Input(modality="image", tensor=pb.Tensor(dtype="float32", shape=[-2, -2], data=bytes(16))),
        "shape_mismatch", "items.1.inputs.0.tensor",
    ),
    "nothing of a shape without end": (
        pb.Input(modality="image", tensor=pb.Tensor(dtype="float32", shape=[0, 1 << 60, 1 << 60])),
        "shape_mismatch", "items.1.inputs.0.tensor",
    ),
    "axes without end": (
        pb.Input(modality="image", tensor=pb.Tensor(dtype="float32", shape=[1] * 100, data=bytes(4))),
        "shape_mismatch", "items.1.inputs.0.tensor",
    ),
    "no such dtype": (
        pb.Input(modality="image", tensor=pb.Tensor(dtype=">f4", shape=[1], data=bytes(4))),
        "request_invalid", "items.1.inputs.0.tensor.dtype",
    ),
    "no array": (pb.Input(arrays=pb.Arrays()), "request_invalid", "items.1.inputs.0.arrays"),
    "bad option": (pb.Input(file=b"a", read=pb.ReadOptions(medium="water")), "option_invalid", "medium"),
    "too bright": (of_fluxes("x", g=2e6).inputs[0], "value_out_of_range", "flux"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_item_fails_alone(door: Served, name: str) -> None:
    given, code, field = BAD[name]
    answer = door.embedding.Embed(embedded(of_fluxes("a"), pb.Item(id="bad", inputs=[given]), of_fluxes("b")))
    assert [one.status for one in answer.items] == ["ok", "error", "ok"]
    assert [one.item for one in answer.items] == [0, 1, 2]
    bad = answer.items[1]
    assert (bad.id, answer.envelope.n_failed, bad.embedding.data, bad.space) == ("bad", 1, b"", "")
    assert code == bad.error.code
    assert field in (bad.error.field, None)
    alone = door.embedding.Embed(embedded(of_fluxes("a"))).items[0]
    assert alone.embedding.data == answer.items[0].embedding.data


def test_labels_that_are_not_finite(door: Served) -> None:
    bad = of_fluxes("bad")
    bad.labels.update({"z": float("nan")})
    answer = door.embedding.Embed(embedded(of_fluxes("a"), bad))
    assert [one.status for one in answer.items] == ["ok", "error"]
    assert (answer.items[1].error.code, answer.items[1].error.field) == ("request_invalid", "items.1.labels")


def test_items_that_are_none(door: Served, image: Callable[..., bytes]) -> None:
    long, with_options = of_fluxes("x" * 600), of_fluxes("y", embed=pb.EmbedOptions(pooling="tokens"))
    another = of_file(image("a"), id="z", object="7")
    answer = door.embedding.Embed(embedded(pb.Item(id="e"), long, with_options, another))
    assert [one.error.code for one in answer.items] == ["request_invalid"] * 4
    assert [one.error.field for one in answer.items] == ["inputs", "id", "items.2.embed", "object"]


@pytest.mark.parametrize(
    ("request_", "code", "field"),
    [
        (pb.EmbedRequest(), "request_invalid", "items"),
        (pb.EmbedRequest(items=[of_fluxes("a")], files=[pb.File(name="a", content=b"a")]), "request_invalid", "items"),
        (pb.EmbedRequest(items=[of_fluxes(str(n)) for n in range(51)]), "too_large", "items"),
        (embedded(of_fluxes("a"), priority="now"), "option_invalid", "priority"),
        (embedded(of_fluxes("a"), read=pb.ReadOptions(nearest=0)), "option_invalid", "nearest"),
    ],
)
def test_requests_that_are_none(door: Served, request_: pb.EmbedRequest, code: str, field: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        door.embedding.Embed(request_)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert detail(caught.value, "ErrorInfo").reason == code
    assert detail(caught.value, "BadRequest").field_violations[0].field == field


def test_another_model_is_refused(door: Served) -> None:
    request = embedded(of_fluxes("a"))
    request.model = "toy"
    assert door.embedding.Embed(request).items[0].status == "ok"
    request.model = "aion-base"
    with pytest.raises(grpc.RpcError) as caught:
        door.embedding.Embed(request)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]


def test_files_find_their_companions(door: Served, image: Callable[..., bytes]) -> None:
    files = [pb.File(name="a.fits", content=image("a")), pb.File(name="b.fits", content=b"torn")]
    files.append(pb.File(name="c.fits", content=image("a", seed=1)))
    answer = door.embedding.Embed(pb.EmbedRequest(files=files))
    assert [(one.file, one.status, one.HasField("item")) for one in answer.items] == [
        ("a.fits", "ok", False),
        ("b.fits", "error", False),
        ("c.fits", "ok", False),
    ]
    validated = door.embedding.Validate(pb.EmbedRequest(files=files))
    assert [(one.file, one.format, one.recognised) for one in validated.files] == [
        ("a.fits", "fits_image", True),
        ("b.fits", "", False),
        ("c.fits", "fits_image", True),
    ]
    joined = door.embedding.Embed(pb.EmbedRequest(files=[files[0], files[0]], options=pb.EmbedOptions(join=True)))
    assert len(joined.items) == 1


def test_validate_says_what_was_understood(door: Served, client: TestClient, image: Callable[..., bytes]) -> None:
    content = image("a")
    (over_http,) = client.post(
        "/v1/validate", content=content, headers={"Content-Type": "application/fits"}
    ).json()["items"]  # fmt: skip
    validated = door.embedding.Validate(embedded(of_file(content), of_file(b"torn", id="t")))
    first, second = validated.items
    assert (first.usable, first.status, validated.tokens, validated.model) == (True, "ok", 4, "toy")
    assert dict(first.detected)["n_tokens"] == over_http["detected"]["n_tokens"]
    (modality,) = first.detected["modalities"]
    assert dict(modality)["pixel_scale"] == 0.262
    assert (second.usable, second.status, len(second.errors)) == (False, "error", 1)


# --- heads ----------------------------------------------------------------------------------------------------------


def test_heads(door: Served, client: TestClient, image: Callable[..., bytes]) -> None:
    content = image("a")
    listed = door.heads.ListHeads(pb.ListHeadsRequest())
    assert [(one.name, one.task, one.fits) for one in listed.heads] == [("tok_z", "redshift", True)]
    request = pb.PredictRequest(items=[of_file(content), of_file(b"torn", id="b")])
    request.options.heads.append("tok_z")
    answer = door.heads.Predict(request)
    good, bad = answer.items
    over_http = client.post(
        "/v1/predict/tok_z", content=content, headers={"Content-Type": "application/fits"}
    ).json()  # fmt: skip
    expected = over_http["items"][0]["predictions"]["tok_z"]
    told = good.answers["tok_z"]
    assert told.numbers[0].value == expected["numbers"][0]["value"]
    assert [one.low for one in told.numbers[0].intervals] == [one["low"] for one in expected["numbers"][0]["intervals"]]
    assert array(told.density.probability, "p").tolist() == expected["density"]["probability"]
    assert array(answer.heads["tok_z"].edges, "e").tolist() == over_http["heads"]["tok_z"]["edges"]
    assert not told.HasField("typicality")
    assert (bad.status, bad.error.code, answer.envelope.n_failed) == ("error", "unknown_format", 1)
    request.options.density = False
    short = door.heads.Predict(request)
    assert not short.items[0].answers["tok_z"].density.HasField("probability")
    assert not short.heads["tok_z"].HasField("edges")


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        (pb.PredictOptions(), grpc.StatusCode.INVALID_ARGUMENT, "request_invalid"),
        (pb.PredictOptions(heads=["mass"]), grpc.StatusCode.NOT_FOUND, "head_unknown"),
        (pb.PredictOptions(heads=["tok_z"], prior_name="flat"), grpc.StatusCode.INVALID_ARGUMENT, "option_invalid"),
        (
            pb.PredictOptions(heads=["tok_z"], prior_name="/etc/passwd"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "option_invalid",
        ),
        (
            pb.PredictOptions(
                heads=["tok_z"], prior_cells=pb.PriorCells(edges=tensor(np.ones(1)), n=tensor(np.ones(3)))
            ),
            grpc.StatusCode.INVALID_ARGUMENT,
            None,
        ),
    ],
)
def test_heads_that_cannot_be_asked(
    door: Served, options: pb.PredictOptions, status: grpc.StatusCode, code: str | None
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        door.heads.Predict(pb.PredictRequest(items=[of_fluxes("a")], options=options))
    assert caught.value.code() == status  # type: ignore[attr-defined]
    assert code in (detail(caught.value, "ErrorInfo").reason, None)


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_examples_of_the_page_run(
    door: Served,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    image: Callable[..., bytes],
    spectrum: Callable[..., bytes],
) -> None:
    page = (PROTOS.parent.parent / "docs" / "grpc.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    program = "\n".join(blocks)
    assert program.count("localhost:8001") == 1
    monkeypatch.chdir(tmp_path)
    Path("cutout.fits").write_bytes(image("NGC 1"))
    Path("spec.fits").write_bytes(spectrum(3))
    Path("torn.fits").write_bytes(b"torn")
    exec(compile(program.replace("localhost:8001", f"localhost:{door.door.port}"), "docs/grpc.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "NGC 1 (16,) toy@0123456789ab:mean ['toy']"
    assert "item 2 unknown_format" in "\n".join(printed)
    assert Path("embeddings.f32").stat().st_size == 2 * 16 * 4
    acks = [line for line in printed if re.match(r"\d .*(True|False)", line)]
    assert [line.split()[-1] for line in acks] == ["True", "True", "unknown_format"]
    assert printed[-1].startswith("NOT_FOUND collection_unknown")
