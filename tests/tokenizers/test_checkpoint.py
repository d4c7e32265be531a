"""A checkpoint folder described without torch, and the identity of its embedding space."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from albireo.observations.errors import BadCheckpoint, BadInput
from albireo.observations.modalities import MODALITIES
from albireo.observations.spaces import same_space
from albireo.tokenizers.checkpoint import LAYOUT, MANIFEST, MINI, Checkpoint, FileFacts, Manifest, sha256_of
from albireo.tokenizers.preprocessing import AION_1, ALBIREO_1, PREPROCESSINGS

Copy = Callable[[str], Path]


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """Makes a folder with links to the files of the shipped checkpoint."""

    def make(name: str) -> Path:
        folder = tmp_path / name
        for path in MINI.rglob("*"):
            if LAYOUT.fullmatch(path.relative_to(MINI).as_posix()):
                target = folder / path.relative_to(MINI)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(path)
        return folder

    return make


def replace(path: Path, content: bytes) -> None:
    """Give one file of a copy other content."""
    path.unlink()
    path.write_bytes(content)


def manifest_of(folder: Path, **changes: FileFacts) -> Manifest:
    paths = [path for path in folder.rglob("*") if LAYOUT.fullmatch(path.relative_to(folder).as_posix())]
    facts = {p.relative_to(folder).as_posix(): FileFacts(p.stat().st_size, sha256_of(p)) for p in paths}
    return Manifest("some/model", "c0ffee", ("some/model", "c0ffee"), "mit", facts | changes)


def write_manifest(folder: Path, **changes: FileFacts) -> None:
    (folder / "albireo-manifest.json").write_text(manifest_of(folder, **changes).text())


def test_the_space_says_everything_that_vectors_depend_on() -> None:
    mini = Checkpoint(MINI)
    name, _, identity = mini.space("mean").partition("@")
    assert (name, identity) == ("albireo-mini", f"{mini.fingerprint[:12]}:aion-1+albireo-1:mean")
    assert mini.space("mean", normalize=True) == mini.space("mean") + ":l2"
    spaces = {
        Checkpoint(MINI, preprocessing).space(pooling, normalize)
        for preprocessing in (None, *PREPROCESSINGS)
        for pooling in ("mean", "tokens")
        for normalize in (False, True)
    }
    assert len(spaces) == 12
    assert not any(same_space(one, other) for one in spaces for other in spaces if one != other)


def test_a_name_is_no_identity(copy: Copy) -> None:
    other = Checkpoint(copy("another-name"))
    assert other.name == "another-name"
    assert other.space("mean") != Checkpoint(MINI).space("mean")
    assert same_space(other.space("mean"), Checkpoint(MINI).space("mean"))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a@1:aion-1:mean", "b@1:aion-1:mean", True),
        ("a@1:aion-1:mean", "a@1:aion-1:mean:l2", False),
        ("a@1:aion-1:mean", "a@1:albireo-1:mean", False),
        ("a@1:aion-1:mean", "a@2:aion-1:mean", False),
        ("mine", "mine", True),
        ("mine", "yours", False),
        ("mine", "x@mine", True),
        ("", "x@y", False),
    ],
)
def test_spaces_that_can_be_compared(one: str, other: str, same: bool) -> None:
    assert same_space(one, other) is same_space(other, one) is same


@pytest.mark.parametrize("path", ["config.json", "codecs/EBV/config.json", "codecs/EBV/model.safetensors"])
def test_any_byte_of_any_file_counts(copy: Copy, path: str) -> None:
    folder = copy("mini")
    assert Checkpoint(folder).fingerprint == Checkpoint(MINI).fingerprint
    content = (folder / path).read_bytes()
    replace(folder / path, content + b" " if path.endswith(".json") else content[:-1] + bytes([content[-1] ^ 1]))
    assert Checkpoint(folder).fingerprint != Checkpoint(MINI).fingerprint


def test_preprocessing_overrides_the_codecs_own() -> None:
    own = {key: Checkpoint(MINI).codec_config(key).get("preprocessing") for key in Checkpoint(MINI).inputs}
    assert own["tok_spectrum_desi"] == ALBIREO_1
    assert own["tok_image"] is None
    for name in PREPROCESSINGS:
        checkpoint = Checkpoint(MINI, name)
        assert checkpoint.preprocessing == name
        assert {checkpoint.codec_config(key)["preprocessing"] for key in checkpoint.inputs} == {name}
        assert checkpoint.fingerprint == Checkpoint(MINI).fingerprint
    with pytest.raises(BadInput, match="option_invalid") as caught:
        Checkpoint(MINI, "aion-2")
    assert caught.value.fix == "aion-1 or albireo-1"


def test_codecs_that_name_no_preprocessing_are_aions(copy: Copy) -> None:
    folder = copy("mini")
    config = json.loads((folder / "codecs/spectrum/config.json").read_text())
    del config["preprocessing"]
    replace(folder / "codecs/spectrum/config.json", json.dumps(config).encode())
    assert Checkpoint(folder).preprocessing == AION_1
    assert Checkpoint(folder).space("mean") == Checkpoint(folder, AION_1).space("mean")


def test_a_manifest_stands_for_what_was_not_pulled(copy: Copy) -> None:
    folder = copy("c0ffee")
    write_manifest(folder)
    (folder / "codecs/image/model.safetensors").unlink()
    checkpoint = Checkpoint(folder)
    assert checkpoint.name == "model"
    assert checkpoint.fingerprint == Checkpoint(MINI).fingerprint
    assert checkpoint.inputs.elsewhere == {
        key: f"albireo models pull some/model@c0ffee --modality {MODALITIES[key].name}"
        for key in ("tok_image", "tok_image_hsc")
    }
    assert "tok_image" not in checkpoint.inputs
    assert "tok_image" in checkpoint.readable
    assert checkpoint.preprocessing == "aion-1+albireo-1"


def test_a_codec_nobody_has_is_not_read(copy: Copy) -> None:
    folder = copy("mini")
    for path in (folder / "codecs/EBV").iterdir():
        path.unlink()
    (folder / "codecs/EBV").rmdir()
    checkpoint = Checkpoint(folder)
    assert "tok_ebv" in checkpoint.readable
    assert "tok_ebv" not in checkpoint.inputs
    assert checkpoint.inputs.elsewhere == {}


def test_a_file_of_another_size_than_the_manifest_says(copy: Copy) -> None:
    folder = copy("mini")
    write_manifest(folder)
    path = folder / "codecs/EBV/model.safetensors"
    replace(path, path.read_bytes() + b"x")
    with pytest.raises(BadCheckpoint, match="the manifest says") as caught:
        Checkpoint(folder).space("mean")
    assert (caught.value.file, caught.value.fix) == (str(path), "albireo models pull some/model@c0ffee")


def test_weights_that_are_gone_are_named_with_the_command(copy: Copy) -> None:
    folder = copy("mini")
    write_manifest(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors") as caught:
        Checkpoint(folder)
    assert caught.value.fix == "albireo models pull some/model@c0ffee"


def test_checking_every_byte(copy: Copy) -> None:
    folder = copy("mini")
    manifest = manifest_of(folder)
    assert {wrong for _, wrong in manifest.check(folder)} == {None}
    assert len(list(manifest.check(folder))) == len(manifest.files)
    weights = (folder / "codecs/EBV/model.safetensors").read_bytes()
    replace(folder / "codecs/EBV/model.safetensors", weights[:-1] + bytes([weights[-1] ^ 1]))
    replace(folder / "codecs/a_g/model.safetensors", weights + b"x")
    (folder / "codecs/a_r/model.safetensors").unlink()
    (folder / "codecs/a_i/config.json").unlink()
    found = dict(manifest.check(folder))
    assert "codecs/a_r/model.safetensors" not in found
    assert {path: wrong for path, wrong in found.items() if wrong} == {
        "codecs/EBV/model.safetensors": "has another sha256 than was published",
        "codecs/a_g/model.safetensors": f"has {len(weights) + 1} bytes instead of {len(weights)}",
        "codecs/a_i/config.json": "is not there",
    }
    (folder / "codecs/a_r/model.safetensors").symlink_to(folder / "gone")
    assert dict(manifest.check(folder))["codecs/a_r/model.safetensors"] == "is not there"


def test_a_manifest_is_written_and_read_the_same(copy: Copy) -> None:
    folder = copy("mini")
    write_manifest(folder)
    assert Manifest.read(folder) == manifest_of(folder)
    assert Manifest.read(MINI) is None


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("config.json", True),
        ("codecs/image/model.safetensors", True),
        ("codecs/i_sdssshape_shape11/config.json", True),
        ("pytorch_model.bin", False),
        ("codecs/image/pytorch_model.bin", False),
        ("codecs/../config.json", False),
        ("codecs/a/b/config.json", False),
        ("/config.json", False),
        ("model.safetensors.index.json", False),
        ("config.json\n", False),
    ],
)
def test_no_other_file_is_ever_fetched(path: str, wanted: bool) -> None:
    assert bool(LAYOUT.fullmatch(path)) is wanted


def spoilt(copy: Copy, name: str, path: str, **changes: object) -> Path:
    """A copy whose JSON file has other entries."""
    folder = copy(name)
    content = json.loads((folder / path).read_text()) | changes
    replace(folder / path, json.dumps(content).encode())
    return folder


def test_configurations_of_other_types(copy: Copy) -> None:
    for number, changes in enumerate(({"domains_in": [["tok_image"]]}, {"domains_in": [5]}, {"domains_out": "tok_z"})):
        with pytest.raises(BadCheckpoint):
            Checkpoint(spoilt(copy, f"a{number}", "config.json", **changes))
    for number, dim in enumerate((None, "wide", 0, True, [4])):
        checkpoint = Checkpoint(spoilt(copy, f"b{number}", "config.json", dim=dim))
        with pytest.raises(BadCheckpoint, match="dim"):
            _ = checkpoint.dim
    deep = copy("deep")
    replace(deep / "config.json", b"[" * 100_000)
    with pytest.raises(BadCheckpoint):
        Checkpoint(deep)


def test_headers_of_other_types(copy: Copy) -> None:
    for number, shape in enumerate((["x", 2], [-1, 2], [{}, 2], "ab")):
        header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
        folder = copy(f"h{number}")
        replace(folder / "model.safetensors", len(header).to_bytes(8, "little") + header)
        with pytest.raises(BadCheckpoint):
            Checkpoint(folder)


def test_a_manifest_of_other_types(copy: Copy) -> None:
    folder = copy("m")
    write_manifest(folder)
    for changes in ({"repository": {}}, {"revision": 5}, {"codecs_from": [{}, "x"]}, {"license": []}):
        content = json.loads((folder / MANIFEST).read_text()) | changes
        with pytest.raises(BadCheckpoint):
            Manifest.read(spoilt_manifest(folder, content))
        write_manifest(folder)
    content = json.loads((folder / MANIFEST).read_text())
    for sha256 in ("\ud800" * 64, "a" * 63, ""):
        name = next(iter(content["files"]))
        facts = {**content["files"], name: {**content["files"][name], "sha256": sha256}}
        with pytest.raises(BadCheckpoint, match="no sha256"):
            Manifest.read(spoilt_manifest(folder, content | {"files": facts}))


def spoilt_manifest(folder: Path, content: object) -> Path:
    (folder / MANIFEST).write_text(json.dumps(content))
    return folder
