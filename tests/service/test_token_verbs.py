"""/v1/tokenize, /v1/detokenize, and what the service says of its modalities, formats, limits and models."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.units import Unit
from fastapi.testclient import TestClient

from albireo.models.torch_engine import TorchEngine
from albireo.observations.errors import BadInput, Conflict
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Observation, Scalar
from albireo.observations.reading import FORMATS
from albireo.service import reply_formats as formats
from albireo.service import schemas
from albireo.service.core import Core
from albireo.service.subjects import Subject
from albireo.service.token_schemas import (
    DetokenizeReply,
    FormatsReply,
    LimitsReply,
    ModalitiesReply,
    ModelReply,
    ModelsReply,
    TokenizeReply,
)
from albireo.service.token_verbs import Given, detokenize, quantisers
from albireo.tokenizers.checkpoint import MINI
from tests.service.conftest import ToyEngine

Make = Callable[..., bytes]


@pytest.fixture
def sent(image: Make, spectrum: Make) -> list[Any]:
    """Two objects that are good, an image that the engine refuses, and no file of any format."""
    return [
        ("file", ("a.fits", image("A"))),
        ("file", ("s.fits", spectrum(7))),
        ("file", ("b.fits", image("B", level=1e7))),
        ("file", ("c.bin", b"\0\1nothing")),
    ]


def tokenized(client: TestClient, files: list[Any], accept: str = formats.JSON) -> Any:
    answer = client.post("/v1/tokenize", files=files, headers={"Accept": accept})
    assert answer.status_code == 200, answer.text
    return answer


# Tokens


def test_tokens_by_modality_and_their_quantisers(client: TestClient, engine: ToyEngine, sent: list[Any]) -> None:
    answer = tokenized(client, sent)
    assert answer.headers["x-items-failed"] == "2"
    reply = TokenizeReply.model_validate(answer.json())
    a, s, b, c = reply.items
    assert a.tokens is not None
    assert s.tokens is not None
    assert (list(a.tokens), list(s.tokens)) == (["image.legacysurvey"], ["spectrum.sdss"])
    assert [len(a.tokens["image.legacysurvey"]), len(s.tokens["spectrum.sdss"])] == [4, 3]
    assert (b.tokens, b.error and b.error.code) == (None, "value_out_of_range")
    assert (c.tokens, c.error and c.error.code) == (None, "unknown_format")
    assert "toy" in a.qa_flags
    quantiser = reply.quantisers["image.legacysurvey"]
    assert (quantiser.key, quantiser.codec, quantiser.n_tokens) == ("tok_image", "toy-codec", 4)
    assert (quantiser.vocabulary, quantiser.grid, quantiser.dtype) == (1000, [2, 2], "uint16")
    assert set(reply.quantisers) == {"image.legacysurvey", "spectrum.sdss"}
    assert reply.usage == {"tokens": 7}
    assert reply.checkpoint == "0123456789ab"
    assert set(reply.timings_ms) == {"parse", "tokenize", "queue", "serialize"}


def test_tokens_in_an_archive_and_raw(client: TestClient, sent: list[Any]) -> None:
    items = tokenized(client, sent).json()["items"]
    with np.load(io.BytesIO(tokenized(client, sent, formats.NPZ).content), allow_pickle=False) as found:
        arrays = dict(found)
    pictures = arrays["tokens.image.legacysurvey"]
    assert (pictures.dtype, pictures.tolist()) == (np.uint16, [items[0]["tokens"]["image.legacysurvey"]])
    assert arrays["objects.spectrum.sdss"].tolist() == [1]
    assert arrays["codec.spectrum.sdss"].item() == "toy-codec"
    assert arrays["ids"].tolist() == ["A", items[1]["id"], "B", ""]
    assert arrays["errors"].tolist() == [2, 3]
    assert arrays["error_code"].tolist() == ["value_out_of_range", "unknown_format"]
    content = tokenized(client, sent, formats.RAW).content
    n = int.from_bytes(content[:4], "little")
    header, at = json.loads(content[4 : 4 + n]), 4 + n
    assert [array["modality"] for array in header["arrays"]] == ["image.legacysurvey", "spectrum.sdss"]
    for array in header["arrays"]:
        size = int(np.prod(array["shape"]))
        ids = np.frombuffer(content, array["dtype"], size, at).reshape(array["shape"])
        at += ids.nbytes
        np.testing.assert_array_equal(ids, arrays[f"tokens.{array['modality']}"])
    assert at == len(content)
    assert [item["status"] for item in header["items"]] == ["ok", "ok", "error", "error"]


def test_tokens_are_those_that_the_encoder_reads(client: TestClient, engine: ToyEngine, image: Make) -> None:
    (item,) = tokenized(client, [("file", ("a.fits", image("A")))]).json()["items"]
    wide = np.random.default_rng([item["tokens"]["image.legacysurvey"][0], 0]).normal(size=16)
    path = "/v1/embed?pooling=tokens"
    embedded = client.post(path, files=[("file", ("a.fits", image("A")))]).json()["items"][0]["embedding"]
    np.testing.assert_allclose(embedded[0], wide, rtol=1e-6)


def test_nothing_good(client: TestClient, sent: list[Any]) -> None:
    for accept in formats.TOKENS:
        answer = client.post("/v1/tokenize", files=sent[2:], headers={"Accept": accept})
        assert answer.status_code == 422
        problem = schemas.Problem.model_validate(answer.json())
        assert problem.code == "value_out_of_range"
        assert len(problem.items or ()) == 2
    assert client.post("/v1/tokenize", json={"items": []}).status_code == 422


# What tokens stand for


def decoded(client: TestClient, accept: str = formats.JSON, **body: Any) -> Any:
    answer = client.post("/v1/detokenize", json=body, headers={"Accept": accept})
    assert answer.status_code == 200, answer.text
    return answer


ITEMS = [
    {"id": "A", "tokens": {"image.legacysurvey": [1, 2, 3, 4], "spectrum.sdss": [0, 5, 6]}},
    {"id": "B", "tokens": {"image.legacysurvey": [1, 2, 3]}},
    {"id": "C", "tokens": {"tok_flux_r": [217]}},
    {"id": "D", "tokens": {"image.legacysurvey": [4, 3, 2, 1000]}},
    {"id": "E", "tokens": {"image.hsc": [1]}},
    {"id": "F", "tokens": {"tok_flux_r": [7], "legacysurvey.flux_r": [8]}},
    {"id": "G", "tokens": {}},
    {"id": "H", "tokens": {"nonsense": [1]}},
]


def test_numbers_with_units_bands_and_wavelengths(client: TestClient, engine: ToyEngine) -> None:
    answer = decoded(client, items=ITEMS)
    assert answer.headers["x-items-failed"] == "6"
    reply = DetokenizeReply.model_validate(answer.json())
    assert [item.status for item in reply.items] == ["ok", "error", "ok", *["error"] * 5]
    codes = [item.error.code for item in reply.items if item.error]
    assert codes == [
        "shape_mismatch", "value_out_of_range", "modality_not_in_checkpoint", "request_invalid", "value_missing",
        "modality_unknown",
    ]  # fmt: skip
    picture = reply.items[0].values["image.legacysurvey"]
    assert picture.shape == [4, 96, 96]
    np.testing.assert_array_equal(picture.values, engine.values("tok_image", np.array([[1, 2, 3, 4]]))[0])
    assert reply.items[2].values["legacysurvey.flux_r"].values == [217.0]
    about = reply.modalities["image.legacysurvey"]
    assert (about.unit, about.axes, about.pixel_scale) == ("nanomaggy", ["band", "y", "x"], 0.262)
    assert about.bands == ["DES-G", "DES-R", "DES-I", "DES-Z"]
    spectrum = reply.modalities["spectrum.sdss"]
    assert spectrum.unit == MODALITIES["tok_spectrum_sdss"].unit
    assert spectrum.wavelength is not None
    np.testing.assert_allclose(spectrum.wavelength, np.linspace(4000, 6000, 20))
    assert set(reply.timings_ms) == {"parse", "decode"}


def test_numbers_as_base64(client: TestClient, engine: ToyEngine) -> None:
    (item,) = decoded(client, items=ITEMS[:1], options={"encoding": "base64"}).json()["items"]
    picture = item["values"]["image.legacysurvey"]
    values = np.frombuffer(base64.b64decode(picture["values"]), "<f4").reshape(picture["shape"])
    np.testing.assert_array_equal(values, engine.values("tok_image", np.array([[1, 2, 3, 4]]))[0])


def test_numbers_in_an_archive(client: TestClient) -> None:
    items = decoded(client, items=ITEMS).json()["items"]
    with np.load(io.BytesIO(decoded(client, formats.NPZ, items=ITEMS).content), allow_pickle=False) as found:
        arrays = dict(found)
    np.testing.assert_array_equal(
        arrays["values.image.legacysurvey"][0], items[0]["values"]["image.legacysurvey"]["values"]
    )
    assert arrays["objects.legacysurvey.flux_r"].tolist() == [2]
    assert arrays["unit.image.legacysurvey"].item() == "nanomaggy"
    assert arrays["bands.image.legacysurvey"].tolist() == ["DES-G", "DES-R", "DES-I", "DES-Z"]
    assert arrays["wavelength.spectrum.sdss"].shape == (20,)
    assert arrays["ids"].tolist() == list("ABCDEFGH")
    assert arrays["errors"].tolist() == [1, 3, 4, 5, 6, 7]


@pytest.mark.filterwarnings("ignore::astropy.io.fits.verify.VerifyWarning")
def test_numbers_in_fits(client: TestClient) -> None:
    content = decoded(client, formats.FITS, items=ITEMS).content
    items = decoded(client, items=ITEMS).json()["items"]
    with fits.open(io.BytesIO(content)) as hdus:
        hdus.verify("exception")
        names = [hdu.name for hdu in hdus[1:]]
        assert names == [
            "OBJECTS", "IMAGE.LEGACYSURVEY", "SPECTRUM.SDSS", "SPECTRUM.SDSS.WAVELENGTH", "LEGACYSURVEY.FLUX_R",
        ]  # fmt: skip
        assert hdus["OBJECTS"].data["error_code"].tolist()[1] == "shape_mismatch"
        picture = hdus["IMAGE.LEGACYSURVEY"]
        assert picture.data["values"].shape == (1, 4, 96, 96)
        assert picture.header["BANDS"] == "DES-G,DES-R,DES-I,DES-Z"
        assert picture.header["PIXSCALE"] == 0.262
        assert hdus[0].header["MODEL"] == "toy"
    table = Table.read(io.BytesIO(content), format="fits", hdu="SPECTRUM.SDSS")
    assert table["values"].unit == Unit("1e-17 erg / (s cm2 Angstrom)")
    np.testing.assert_array_equal(table["values"][0], items[0]["values"]["spectrum.sdss"]["values"])
    wavelength = Table.read(io.BytesIO(content), format="fits", hdu="SPECTRUM.SDSS.WAVELENGTH")["wavelength"]
    assert str(wavelength.unit) == "Angstrom"
    assert len(wavelength) == 20


def test_an_archive_of_tokens_comes_back(client: TestClient, sent: list[Any]) -> None:
    """What /v1/tokenize gives is what /v1/detokenize takes."""
    archive = tokenized(client, sent, formats.NPZ).content
    answer = client.post("/v1/detokenize", content=archive, headers={"Content-Type": formats.NPZ})
    assert answer.status_code == 200, answer.text
    items = tokenized(client, sent).json()["items"]
    again = decoded(client, items=[{"id": one["id"], "tokens": one["tokens"]} for one in items[:2]])
    assert answer.json()["items"] == again.json()["items"]
    assert [item["id"] for item in answer.json()["items"]] == ["A", items[1]["id"]]


def archive(**arrays: Any) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


@pytest.mark.parametrize(
    ("arrays", "code"),
    [
        ({"tokens.image.legacysurvey": np.zeros((2, 4))}, "shape_mismatch"),
        ({"tokens.image.legacysurvey": np.zeros((2, 4), int), "objects.image.legacysurvey": np.zeros(3, int)},
         "shape_mismatch"),
        ({"tokens.image.legacysurvey": np.zeros(8, int), "lengths.image.legacysurvey": np.array([4, 5]),
          "objects.image.legacysurvey": np.array([0, 1])}, "shape_mismatch"),
        ({"tokens.image.legacysurvey": np.zeros((1, 4), int), "objects.image.legacysurvey": np.array([-1])},
         "shape_mismatch"),
        ({"tokens.image.legacysurvey": np.zeros((2, 4), int), "ids": np.array(["a"])}, "shape_mismatch"),
        ({"tokens.image.legacysurvey": np.array([[{}]])}, "pickle_refused"),
        ({"tokens.image.legacysurvey": np.full((1, 4), 2000)}, "value_out_of_range"),
        ({"vectors": np.zeros((2, 4))}, "column_missing"),
    ],
)  # fmt: skip
def test_archives_that_cannot_be_meant(client: TestClient, arrays: dict[str, Any], code: str) -> None:
    kind = {"Content-Type": formats.NPZ}
    answer = client.post("/v1/detokenize", content=archive(**arrays), headers=kind)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert client.post("/v1/detokenize?colour=red", content=archive(**arrays), headers=kind).status_code == 400
    assert client.post("/v1/detokenize", content=b"PK\x03\x04", headers=kind).status_code == 422


def test_objects_without_names_count(client: TestClient) -> None:
    content = archive(**{"tokens.legacysurvey.flux_r": np.array([[3], [4]], np.uint16)})
    answer = client.post("/v1/detokenize", content=content, headers={"Content-Type": "application/octet-stream"})
    values = [item["values"]["legacysurvey.flux_r"]["values"] for item in answer.json()["items"]]
    assert values == [[3.0], [4.0]]


def test_tokens_of_another_codec_are_refused(client: TestClient) -> None:
    for codecs, status in (({"image.legacysurvey": "toy-codec"}, 200), ({"tok_image": "another"}, 409)):
        answer = client.post("/v1/detokenize", json={"items": ITEMS[:1], "codecs": codecs})
        assert answer.status_code == status
    assert answer.json()["code"] == "space_mismatch"
    unknown = client.post("/v1/detokenize", json={"items": ITEMS[:1], "codecs": {"nonsense": "x"}})
    assert unknown.json()["code"] == "modality_unknown"


def test_limits_hold_for_tokens_too(client: TestClient) -> None:
    answer = client.post("/v1/detokenize", json={"items": ITEMS[2:3] * 51})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert client.post("/v1/detokenize", json={"items": []}).status_code == 422
    body = {"items": ITEMS[2:3], "model": "another"}
    assert client.post("/v1/detokenize", json=body).json()["code"] == "model_unknown"


# The verbs, on the shipped model


@pytest.fixture(scope="module")
def shipped() -> TorchEngine:
    return TorchEngine.open(MINI)


def test_the_shipped_model_there_and_back(shipped: TorchEngine) -> None:
    """The law of every quantiser: what a token stands for has that token."""
    core = Core(lambda: shipped, lambda: pytest.fail("no collection is needed"))
    known = quantisers(shipped)
    assert quantisers(core.engine) is known
    scalars = {key: Scalar(value, MODALITIES[key].unit) for key, value in
               {"tok_flux_g": 12.5, "tok_flux_r": 18.25, "tok_ebv": 0.03}.items()}  # fmt: skip
    (made,) = core.tokenize([Subject("A", "a", Observation("A", scalars))])
    assert made.answer is not None
    given = Given("A", {MODALITIES[key].name: ids for key, ids in made.answer.ids.items()})
    (one,) = core.detokenize([given], {key: known[key].codec for key in scalars})
    assert one.error is None
    for key, scalar in scalars.items():
        assert one.values[key].shape == (1,)
        assert float(one.values[key][0]) == pytest.approx(scalar.value, rel=0.2)
        again = Scalar(float(one.values[key][0]), scalar.unit)
        (back,) = core.tokenize([Subject("A", "a", Observation("A", {key: again}))])
        assert back.answer is not None
        np.testing.assert_array_equal(back.answer.ids[key], made.answer.ids[key])
    quantiser = known["tok_image"]
    assert quantiser.grid[0] * quantiser.grid[1] == quantiser.n_tokens
    assert len(quantiser.codec) > 64
    assert quantiser.dtype is np.uint16


def test_an_error_of_a_decoder_is_of_its_object_alone(engine: ToyEngine) -> None:
    values = engine.values

    def refusing(key: str, ids: np.ndarray, **target: object) -> np.ndarray:
        if (ids == 13).any():
            raise BadInput("value_out_of_range", "unlucky", field="ids")
        return values(key, ids, **target)

    engine.values = refusing  # type: ignore[method-assign]
    given = [Given(str(n), {"tok_flux_r": [n]}) for n in (12, 13, 14)]
    done = detokenize(engine, given, {})
    assert [one.error and one.error.message for one in done] == [None, "unlucky", None]
    assert [one.values["tok_flux_r"].tolist() for one in done if not one.error] == [[12.0], [14.0]]
    with pytest.raises(Conflict):
        detokenize(engine, given, {"legacysurvey.flux_r": "another"})


# What the service says of itself


def test_modalities(client: TestClient) -> None:
    reply = ModalitiesReply.model_validate(client.get("/v1/modalities").json())
    rows = {row.key: row for row in reply.modalities}
    assert rows.keys() == MODALITIES.keys()
    assert (rows["tok_image"].read, rows["tok_image"].predicted) == (True, True)
    assert (rows["tok_flux_g"].read, rows["tok_flux_g"].predicted) == (True, False)
    assert (rows["tok_z"].read, rows["tok_z"].predicted) == (False, True)
    assert rows["tok_image"].quantiser is not None
    assert rows["tok_image"].quantiser.grid == [2, 2]
    assert rows["lightcurve"].quantiser is None
    assert rows["tok_spectrum_sdss"].unit == MODALITIES["tok_spectrum_sdss"].unit


def test_formats(client: TestClient) -> None:
    reply = FormatsReply.model_validate(client.get("/v1/formats").json())
    assert [row.name for row in reply.formats] == [row.name for row in FORMATS]
    assert reply.answers["embed"] == list(formats.EMBEDDINGS)
    assert {"application/json", "multipart/form-data", "application/vnd.apache.arrow.stream"} <= set(reply.bodies)
    assert "survey" in reply.options


def test_limits(client: TestClient) -> None:
    limits = LimitsReply.model_validate(client.get("/v1/limits").json()).limits
    assert (limits["max_body_bytes"], limits["max_items"]) == (4 << 20, 50)
    assert limits["max_neighbours"] == 10_000


def test_models(client: TestClient) -> None:
    (model,) = ModelsReply.model_validate(client.get("/v1/models").json()).models
    assert (model.id, model.name, model.dim) == ("toy@0123456789ab", "toy", 16)
    assert model.inputs["image.legacysurvey"] == 4
    assert "tok_z" in model.heads
    for name in ("toy", "toy@0123456789ab"):
        assert ModelReply.model_validate(client.get(f"/v1/models/{name}").json()).id == model.id
    answer = client.get("/v1/models/toy@other")
    assert (answer.status_code, answer.json()["code"]) == (404, "model_unknown")
