"""POST /v1/embed and /v1/validate: every body, and objects that fail alone."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from albireo.service import schemas

Make = Callable[..., bytes]


def files(*pairs: tuple[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("file", pair) for pair in pairs]


def items(answer: Any) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [item.model_dump() for item in schemas.EmbedReply.model_validate(answer.json()).items]


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def flux(**more: Any) -> dict[str, Any]:
    """A g flux with everything that has to be said of it."""
    read = {"survey": "legacysurvey", "release": "dr10", "system": "AB", "kind": "model", "extinction_corrected": False}
    return {"modality": "photometry", "values": {"flux_g": 12.5, "flux_g_unit": "nanomaggy"}, "read": read} | more


def test_the_three_bodies_give_the_same_embedding(client: TestClient, image: Make) -> None:
    content = image("A")
    form = items(client.post("/v1/embed", files=files(("a.fits", content))))
    bare = items(
        client.post("/v1/embed?filename=a.fits", content=content, headers={"Content-Type": "application/fits"})
    )
    stream = items(client.post("/v1/embed", content=content, headers={"Content-Type": "application/octet-stream"}))
    inputs = [{"modality": "image.legacysurvey", "b64": b64(content), "format": "fits"}]
    posted = items(client.post("/v1/embed", json={"items": [{"id": "A", "inputs": inputs}]}))
    part = {"request": json.dumps({"items": [{"id": "A", "inputs": [{"ref": "part:img0"}]}]})}
    referred = items(client.post("/v1/embed", data=part, files={"img0": ("a.fits", content)}))
    assert form == bare
    vectors = [answer[0]["embedding"] for answer in (form, bare, stream, posted, referred)]
    assert all(vector == vectors[0] for vector in vectors)
    assert len(vectors[0]) == 16
    assert form[0]["id"] == "A"
    assert form[0]["status"] == "ok"
    assert form[0]["modalities_used"] == ["image.legacysurvey"]
    assert form[0]["n_tokens"] == 4
    assert "toy" in form[0]["qa_flags"]


def test_the_envelope(client: TestClient, image: Make) -> None:
    answer = client.post("/v1/embed", files=files(("a.fits", image("A"))), headers={"X-Request-Id": "mine-1"})
    body = answer.json()
    assert (body["model"], body["space"], body["dim"], body["dtype"]) == ("toy", "toy@0123456789ab:mean", 16, "float32")
    assert body["usage"] == {"tokens": 4}
    assert set(body["timings_ms"]) == {"parse", "tokenize", "queue", "encode", "serialize"}
    assert body["request_id"] == answer.headers["x-request-id"] == "mine-1"


def test_a_request_id_that_could_break_a_log_is_replaced(client: TestClient) -> None:
    answer = client.get("/livez", headers={"X-Request-Id": "a b;c"})
    assert answer.headers["x-request-id"].isalnum()


def test_one_bad_file_of_several_fails_alone(client: TestClient, image: Make, jpeg: bytes) -> None:
    sent = files(
        ("a.fits", image("A")), ("b.jpg", jpeg), ("c.fits", image("C", 2)), ("d.bin", b"\0\1nothing"), ("e.fits", b"")
    )
    answer = client.post("/v1/embed", files=sent)
    assert answer.headers["x-items-failed"] == "3"
    a, b, c, d, e = items(answer)
    assert [a["status"], c["status"]] == ["ok", "ok"]
    assert [row["error"]["code"] for row in (b, d, e)] == ["not_photometric", "unknown_format", "empty_file"]
    assert [row["error"]["file"] for row in (b, d, e)] == ["b.jpg", "d.bin", "e.fits"]
    assert b["error"]["fix"]
    alone = items(client.post("/v1/embed", files=files(("c.fits", image("C", 2)))))
    assert alone[0]["embedding"] == c["embedding"]


def test_an_object_that_the_engine_refuses_fails_alone(client: TestClient, image: Make) -> None:
    good, bad = items(client.post("/v1/embed", files=files(("a.fits", image("A")), ("b.fits", image("B", level=1e7)))))
    assert good["status"] == "ok"
    assert bad["error"]["code"] == "value_out_of_range"
    assert bad["error"]["file"] == "b.fits"
    assert bad["embedding"] is None


def test_422_when_every_object_failed(client: TestClient, jpeg: bytes) -> None:
    answer = client.post("/v1/embed", files=files(("a.jpg", jpeg), ("b.bin", b"\0\1nothing")))
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["code"] == "not_photometric"
    assert problem["status"] == 422
    assert [item["error"]["code"] for item in problem["items"]] == ["not_photometric", "unknown_format"]


@pytest.mark.parametrize(("pooling", "shape"), [("mean", [16]), ("mean_per_modality", [2, 16]), ("tokens", [7, 16])])
def test_base64_holds_the_same_numbers(
    client: TestClient, image: Make, spectrum: Make, pooling: str, shape: list[int]
) -> None:
    inputs = [{"b64": b64(image("A"))}, {"b64": b64(spectrum(7))}]
    body = {"items": [{"id": "both", "inputs": inputs}], "options": {"pooling": pooling}}
    (plain,) = items(client.post("/v1/embed", json=body))
    body["options"]["encoding"] = "base64"
    (packed,) = items(client.post("/v1/embed", json=body))
    values = np.frombuffer(base64.b64decode(packed["embedding"]), "<f4").reshape(packed["shape"])
    assert packed["shape"] == plain["shape"] == shape
    np.testing.assert_array_equal(values, np.array(plain["embedding"], np.float32))
    assert packed["modalities_used"] == ["image.legacysurvey", "spectrum.sdss"]
    if pooling != "mean":
        assert len(packed["rows"]) == shape[0]


def test_several_inputs_are_one_object(client: TestClient, image: Make, spectrum: Make) -> None:
    form = {"img": ("a.fits", image("A")), "spec": ("b.fits", spectrum(7))}
    inputs = [{"modality": "image", "ref": "part:img"}, {"modality": "spectrum.sdss", "ref": "part:spec"}, flux()]
    request = {"items": [{"id": "NGC 1", "inputs": inputs, "meta": {"ra": 150.1, "dec": 2.2}}]}
    (item,) = items(client.post("/v1/embed", data={"request": json.dumps(request)}, files=form))
    assert item["id"] == "NGC 1"
    assert item["modalities_used"] == ["image.legacysurvey", "spectrum.sdss", "legacysurvey.flux_g"]
    assert item["n_tokens"] == 8
    assert "masked_pixels" in item["qa_flags"]


def test_values_need_their_unit_and_convention(client: TestClient) -> None:
    (good,) = items(client.post("/v1/embed", json={"items": [{"id": "A", "inputs": [flux()]}]}))
    assert good["modalities_used"] == ["legacysurvey.flux_g"]
    said = {"survey": "sdss", "system": "AB", "kind": "psf", "extinction_corrected": False}
    for wrong, code in (
        (flux(read={}), "survey_missing"),
        (flux(read={"survey": "sdss"}), "convention_missing"),
        (flux(read=said, values={"flux_g": 12.5}), "unit_missing"),
    ):
        answer = client.post("/v1/embed", json={"items": [{"id": "A", "inputs": [wrong]}]})
        assert answer.status_code == 422
        assert answer.json()["code"] == code


def test_the_modality_stated_must_be_the_one_read(client: TestClient, image: Make) -> None:
    inputs = [{"modality": "spectrum.sdss", "b64": b64(image("A", SURVEY=None))}]
    answer = client.post("/v1/embed", json={"items": [{"inputs": inputs}]})
    assert answer.status_code == 422
    inputs = [{"modality": "spectrum", "b64": b64(image("A"))}]
    answer = client.post("/v1/embed", json={"items": [{"inputs": inputs}]})
    assert answer.json()["field"] == "modality"


def test_the_format_stated_must_be_that_of_the_content(client: TestClient, jpeg: bytes) -> None:
    answer = client.post("/v1/embed", json={"items": [{"inputs": [{"b64": b64(jpeg), "format": "fits"}]}]})
    assert answer.status_code == 422
    assert answer.json()["field"].endswith("format")


def test_a_modality_that_the_checkpoint_lacks_is_a_warning_beside_others(
    client: TestClient, image: Make, spectrum: Make
) -> None:
    hsc = image("A", SURVEY="hsc", BANDS="HSC-G,HSC-R,HSC-I,HSC-Z", BUNIT=None, MAGZERO=27.0, PIXSCALE=0.168)
    both = {"items": [{"id": "A", "inputs": [{"b64": b64(hsc)}, {"b64": b64(spectrum(3))}]}]}
    (item,) = items(client.post("/v1/embed", json=both))
    assert item["status"] == "degraded"
    assert [(w["code"], w["field"]) for w in item["warnings"]] == [("modality_not_in_checkpoint", "image.hsc")]
    assert item["modalities_used"] == ["spectrum.sdss"]
    alone = client.post("/v1/embed", files=files(("hsc.fits", hsc)))
    assert alone.status_code == 422
    assert alone.json()["code"] == "modality_not_in_checkpoint"


def test_a_position_that_differs_is_told(client: TestClient, image: Make) -> None:
    inputs = [{"b64": b64(image("A", RA=10.0, DEC=20.0))}]
    near = {"items": [{"inputs": inputs, "meta": {"ra": 10.0002, "dec": 20.0}}]}
    far = {"items": [{"inputs": inputs, "meta": {"ra": 10.1, "dec": 20.0}}]}
    assert items(client.post("/v1/embed", json=near))[0]["warnings"] == []
    assert items(client.post("/v1/embed", json=far))[0]["warnings"][0]["code"] == "position_differs"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"items": [{"inputs": []}]}, "items.0.inputs"),
        ({"items": [{"id": 12, "inputs": [{"ref": "part:x"}]}]}, "items.0.id"),
        ({"items": [{"inputs": [{"ref": "part:x", "b64": "AA=="}]}]}, "items.0.inputs.0"),
        ({"items": [{"inputs": [{"ref": "part:x"}]}]}, "items.0.inputs.0.ref"),
        ({"items": [{"inputs": [{"b64": "not base64!"}]}]}, "items.0.inputs.0.b64"),
        ({"itms": []}, "itms"),
        ({"items": [], "options": {"pooling": "max"}}, "options.pooling"),
        ({"items": [], "options": {"read": {"medium": "water"}}}, "options.read.medium"),
        ({"items": [], "options": {"read": {"colour": "red"}}}, "options.read.colour"),
        ({"items": []}, "items"),
    ],
)
def test_a_request_that_cannot_be_meant(client: TestClient, body: dict[str, Any], field: str) -> None:
    answer = client.post("/v1/embed", json=body)
    assert answer.status_code == 422
    problem = schemas.Problem.model_validate(answer.json())
    assert problem.field == field
    assert problem.code == "request_invalid"
    assert problem.type == "/docs/errors#request_invalid"


def test_files_that_no_item_names_are_refused(client: TestClient, image: Make) -> None:
    part = {"request": json.dumps({"items": [{"inputs": [{"ref": "part:one"}]}]})}
    form = {"one": ("a.fits", image("A")), "two": ("b.fits", image("B"))}
    answer = client.post("/v1/embed", data=part, files=form)
    assert answer.status_code == 422
    assert answer.json()["field"] == "two"


def test_malformed_and_foreign_bodies(client: TestClient) -> None:
    json_type = {"Content-Type": "application/json"}
    assert client.post("/v1/embed", content=b"{", headers=json_type).status_code == 400
    assert client.post("/v1/embed", content=b"a=1", headers={"Content-Type": "text/plain"}).status_code == 415
    broken = {"Content-Type": "multipart/form-data; boundary=x"}
    assert client.post("/v1/embed", content=b"--x\r\nnonsense", headers=broken).status_code == 400
    assert client.post("/v1/embed?colour=red", files=files(("a", b"abc"))).status_code == 400
    assert client.post("/v1/embed?medium=water", files=files(("a", b"abc"))).json()["field"] == "medium"


def test_bodies_over_the_limit(client: TestClient) -> None:
    kind = {"Content-Type": "application/octet-stream"}
    stated = client.post("/v1/embed", content=bytes(5 << 20), headers=kind)
    unstated = client.post("/v1/embed", content=(bytes(1 << 20) for _ in range(6)), headers=kind)
    for answer in (stated, unstated):
        assert answer.status_code == 413
        assert answer.json()["code"] == "too_large"
        assert str(4 << 20) in answer.json()["detail"]
        assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_more_objects_than_the_limit(client: TestClient) -> None:
    body = {"items": [{"id": str(n), "inputs": [flux()]} for n in range(51)]}
    answer = client.post("/v1/embed", json=body)
    assert answer.status_code == 413
    assert "50" in answer.json()["detail"]


def test_options_of_the_query_reach_the_reader(client: TestClient, image: Make) -> None:
    content = image("A", BANDS=None, SURVEY=None)
    assert client.post("/v1/embed", files=files(("a.fits", content))).status_code == 422
    stated = client.post(
        "/v1/embed?survey=legacysurvey&bands=g,r,i,z&encoding=base64", files=files(("a.fits", content))
    )
    assert isinstance(items(stated)[0]["embedding"], str)


def test_another_model_is_not_found(client: TestClient, image: Make) -> None:
    body = {"model": "aion-base", "items": [{"inputs": [{"b64": b64(image("A"))}]}]}
    answer = client.post("/v1/embed", json=body)
    assert (answer.status_code, answer.json()["code"]) == (404, "model_unknown")
    for name in ("toy", "toy@0123456789ab"):
        assert items(client.post("/v1/embed", json=body | {"model": name}))


def test_validate_says_what_was_understood(client: TestClient, image: Make, spectrum: Make, jpeg: bytes) -> None:
    sent = files(("a.fits", image("A", size=120)), ("s.fits", spectrum(7, masked=9)), ("b.jpg", jpeg))
    answer = client.post("/v1/validate", files=sent)
    assert answer.status_code == 200
    body = schemas.ValidateReply.model_validate(answer.json()).model_dump()
    assert [file["recognised"] for file in body["files"]] == [True, True, True]
    picture, spec, refused = body["items"]
    (row,) = picture["detected"]["modalities"]
    assert (row["modality"], row["unit"], row["n_tokens"]) == ("image.legacysurvey", "nanomaggy", 4)
    assert row["bands"] == ["DES-G", "DES-R", "DES-I", "DES-Z"]
    assert "cropped" in picture["qa_flags"]
    (row,) = spec["detected"]["modalities"]
    assert (row["pixels_used"], row["pixels_masked"]) == (991, 9)
    assert row["wavelength_range"] == pytest.approx([10**3.58, 10**3.6799], rel=1e-5)
    assert row["median_flux"] == pytest.approx(3.0, abs=0.1)
    assert row["medium"] == "vacuum"
    assert spec["metadata"]["redshift"] == pytest.approx(0.1)
    assert (refused["usable"], refused["errors"][0]["code"]) == (False, "not_photometric")
    assert body["usage"] == {"tokens": 7}


def test_a_table_is_read_like_a_file(client: TestClient) -> None:
    columns = {
        "mjd": [59000.0, 59001.0, 59003.5],
        "band": ["ZTF-g", "ZTF-g", "ZTF-r"],
        "flux": [10.0, 12.0, None],
        "fluxerr": [1.0, 1.0, 2.0],
        "zp": [25.0, 25.0, 25.0],
        "zpsys": ["ab", "ab", "ab"],
    }
    read = {"extinction_corrected": False}
    item = {"id": "SN 1", "inputs": [{"modality": "lightcurve", "table": columns, "read": read}]}
    answer = client.post("/v1/validate", json={"items": [item]}).json()
    (row,) = answer["items"][0]["detected"]["modalities"]
    assert (row["kind"], row["epochs"], row["zero_points"]) == ("lightcurve", 2, [25.0])
    assert answer["items"][0]["errors"][0]["code"] == "modality_not_in_checkpoint"
    del item["inputs"][0]["read"]
    answer = client.post("/v1/validate", json={"items": [item]}).json()
    assert answer["items"][0]["errors"][0]["code"] == "convention_missing"
    columns["mjd"].pop()
    answer = client.post("/v1/validate", json={"items": [item]}).json()
    assert answer["items"][0]["errors"][0]["code"] == "shape_mismatch"
