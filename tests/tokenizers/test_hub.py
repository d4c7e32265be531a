"""Models from a hub that runs on this machine: what is fetched, what is not, and what is said when it cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from aion.fourm import fm

from albireo.models.transformer import Transformer, TransformerConfig
from albireo.observations.errors import AlbireoError, BadCheckpoint, BadInput, NotFound, Unavailable
from albireo.tokenizers.checkpoint import LAYOUT, MANIFEST, MINI, Checkpoint, Manifest
from albireo.tokenizers.hub import CODECS_REPOSITORY, SIZES, pull, pulled, reference, resolve

BASE = "polymathic-ai/aion-base"
PICKLES = {
    "pytorch_model.bin": b"\x80\x04",
    "codecs/image/pytorch_model.bin": b"\x80\x04",
    "notes/../config.json": b"{}",
}
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """The files of the shipped checkpoint: a real one, small."""
    paths = (path for path in MINI.rglob("*") if path.is_file())
    every = {path.relative_to(MINI).as_posix(): path.read_bytes() for path in paths}
    return {path: content for path, content in every.items() if LAYOUT.fullmatch(path)}


@pytest.fixture
def base(hub: Any, files: dict[str, bytes]) -> Any:
    """The hub with one model, pickles among its files."""
    hub.repositories[BASE] = files | PICKLES
    return hub


@pytest.fixture
def get(base: Any, tmp_path: Path) -> Any:
    """`pull` from that hub into a cache of the test's own."""

    def run(model: str = "aion-base", modalities: list[str] | None = None, **more: Any) -> Path:
        return pull(model, modalities, cache=tmp_path / "cache", endpoint=base.endpoint, **more)

    return run


def in_process(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_only_what_a_modality_needs(base: Any, get: Any, files: dict[str, bytes]) -> None:
    folder = get(modalities=["spectrum.desi", "tok_flux_g"])
    fetched = base.fetched()
    weights = {path for path in fetched if not path.endswith(".json")}
    assert weights == {WEIGHTS, f"codecs/spectrum/{WEIGHTS}", f"codecs/FLUX_G/{WEIGHTS}"}
    assert {path for path in fetched if path.endswith(".json")} == {path for path in files if path.endswith(".json")}
    assert len(fetched) == len(set(fetched))
    checkpoint = Checkpoint(folder)
    assert list(checkpoint.inputs) == ["tok_spectrum_desi", "tok_spectrum_sdss", "tok_flux_g"]
    assert checkpoint.name == "aion-base"
    command = f"albireo models pull {BASE}@{base.commit(BASE)} --modality image.hsc"
    assert checkpoint.inputs.elsewhere["tok_image_hsc"] == command
    assert set(checkpoint.inputs.elsewhere) | set(checkpoint.inputs) == set(Checkpoint(MINI).inputs)
    for path in folder.rglob("*.safetensors"):
        assert path.read_bytes() == files[path.relative_to(folder).as_posix()]


def test_a_second_pull_fetches_nothing_and_more_modalities_only_theirs(base: Any, get: Any) -> None:
    first = get(modalities=["spectrum.desi"])
    base.fetched()
    assert get(modalities=["spectrum.desi"]) == first
    assert base.fetched() == []
    assert get(modalities=["image.legacysurvey"]) == first
    assert base.fetched() == [f"codecs/image/{WEIGHTS}"]
    get()
    assert Checkpoint(first).inputs.elsewhere == {}
    assert not any(path.endswith(".bin") for path in base.fetched())


def test_one_identity_however_much_was_pulled(get: Any) -> None:
    part = Checkpoint(get(modalities=["spectrum.desi"]))
    space = part.space("mean")
    whole = Checkpoint(get())
    assert len(part.inputs) < len(whole.inputs)
    assert part.fingerprint == whole.fingerprint == Checkpoint(MINI).fingerprint
    assert space == whole.space("mean")


def test_a_whole_model_is_not_written_to(base: Any, get: Any, tmp_path: Path) -> None:
    folder = get(modalities=["tok_ebv"])
    before = {path: path.lstat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    assert get(modalities=["tok_ebv"]) == folder
    assert {path: path.lstat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")} == before


@pytest.mark.parametrize("path", ["config.json", "codecs/a_g/config.json", f"codecs/EBV/{WEIGHTS}", WEIGHTS])
@pytest.mark.parametrize("cut", [False, True])
def test_a_file_that_was_lost_or_cut_is_fetched_again(base: Any, get: Any, path: str, cut: bool) -> None:
    file = get(modalities=["tok_ebv"]) / path
    content = file.read_bytes()
    file.resolve().unlink()
    if cut:
        file.resolve().write_bytes(content[:-1])
    base.fetched()
    get(modalities=["tok_ebv"])
    assert file.read_bytes() == content
    assert base.fetched() == [path]


def test_progress_ends_at_the_whole(get: Any) -> None:
    told: list[tuple[str, int, int]] = []
    folder = get(modalities=["image.hsc"], progress=lambda *about: told.append(about))
    assert told[-1][1] == told[-1][2] > (folder / WEIGHTS).stat().st_size
    assert {WEIGHTS, f"codecs/image/{WEIGHTS}"} <= {file for file, _, _ in told}


def test_a_connection_that_breaks_goes_on(base: Any, get: Any, files: dict[str, bytes]) -> None:
    base.cut[WEIGHTS] = 11_000_000
    folder = get(modalities=["tok_flux_g"])
    ranges = [line for line in base.requests if WEIGHTS in line and "bytes=" in line]
    assert len(ranges) == 1
    assert int(ranges[0].partition("bytes=")[2].rstrip("-")) > 0
    assert (folder / WEIGHTS).read_bytes() == files[WEIGHTS]


def test_a_killed_pull_goes_on(base: Any, get: Any, files: dict[str, bytes], tmp_path: Path) -> None:
    base.hold[WEIGHTS] = 12_000_000
    program = (
        "import sys\nfrom pathlib import Path\nfrom albireo.tokenizers.hub import pull\n"
        "pull('aion-base', ['tok_flux_g'], cache=Path(sys.argv[1]), endpoint=sys.argv[2])"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "cache"), base.endpoint]) as process:
        assert base.holding.wait(60)
        (partial,) = (tmp_path / "cache/blobs").glob("*.partial")
        until = time.monotonic() + 60
        while partial.stat().st_size < 1_000_000 and time.monotonic() < until:
            time.sleep(0.02)
        process.kill()
    base.hold.clear()
    base.released.set()
    begun = partial.stat().st_size
    assert begun > 1_000_000
    with pytest.raises(NotFound, match="model_not_pulled"):
        resolve("aion-base", tmp_path / "cache")
    base.requests.clear()
    folder = get(modalities=["tok_flux_g"])
    assert [line for line in base.requests if f"/{WEIGHTS} " in line and "FLUX" not in line] == [
        f"GET /{BASE}/resolve/{base.commit(BASE)}/{WEIGHTS} bytes={begun}-"
    ]
    assert (folder / WEIGHTS).read_bytes() == files[WEIGHTS]


def test_what_came_otherwise_than_stated_is_refused(base: Any, get: Any, tmp_path: Path) -> None:
    commit = base.commit(BASE)
    partial = get(modalities=["tok_ebv"]).parent.parent / "blobs"
    good = dict(base.repositories[BASE])
    damaged = bytearray(good[f"codecs/image/{WEIGHTS}"])
    damaged[-1] ^= 1
    facts = base.about(BASE, commit)
    base.about = lambda repository, commit: facts
    base.commit = lambda repository: commit
    base.repositories[BASE] = good | {f"codecs/image/{WEIGHTS}": bytes(damaged)}
    with pytest.raises(BadCheckpoint, match="another sha256") as caught:
        get(modalities=["image.hsc"])
    assert caught.value.file == f"{BASE}/codecs/image/{WEIGHTS}"
    assert list(partial.glob("*.partial")) == []
    assert "tok_image" not in Checkpoint(resolve("aion-base", tmp_path / "cache")).inputs
    base.repositories[BASE] = good
    assert "tok_image" in Checkpoint(get(modalities=["image.hsc"])).inputs


@pytest.mark.parametrize("refusal", [(401, "GatedRepo"), (403, "GatedRepo"), (403, "")])
def test_a_gated_model(base: Any, get: Any, refusal: tuple[int, str]) -> None:
    base.denied[BASE] = refusal
    with pytest.raises(Unavailable, match="model_gated") as caught:
        get()
    assert "HF_TOKEN" in str(caught.value.fix)


def test_the_token_of_the_environment_is_sent(base: Any, tmp_path: Path) -> None:
    seen: list[str | None] = []
    answer = base.answer

    def watched(request: Any) -> None:
        seen.extend([request.headers.get("Authorization")] * (BASE in request.path))
        answer(request)

    base.answer = watched
    program = "from albireo.tokenizers.hub import pull\npull('aion-base', ['tok_ebv'])"
    done = in_process(program, HF_HOME=str(tmp_path), HF_ENDPOINT=base.endpoint, HF_TOKEN="hf_of_a_test")
    assert done.returncode == 0, done.stderr
    assert set(seen) == {"Bearer hf_of_a_test"}
    assert (tmp_path / "assets/albireo/polymathic-ai--aion-base/refs/main").read_text() == base.commit(BASE)


def test_what_the_hub_does_not_have(hub: Any, get: Any) -> None:
    for arguments, field in [(("nobody/nothing",), "model"), (("aion-base@v9",), "revision")]:
        with pytest.raises(NotFound, match="model_unknown") as caught:
            get(*arguments)
        assert caught.value.field == field
    hub.repositories["some/pickles"] = {"config.json": b"{}", "pytorch_model.bin": b"\x80\x04"}
    hub.fetched()
    with pytest.raises(BadCheckpoint, match="pickles are never read"):
        get("some/pickles")
    assert hub.fetched() == []


def test_modalities_that_cannot_be_pulled(get: Any) -> None:
    with pytest.raises(BadInput, match="modality_not_in_checkpoint") as caught:
        get(modalities=["legacysurvey.flux_w3"])
    assert "spectrum.desi" in str(caught.value.fix)
    with pytest.raises(BadInput, match="modality_unknown"):
        get(modalities=["image.hubble"])


def test_no_room(base: Any, get: Any) -> None:
    base.sizes[WEIGHTS] = 10**18
    with pytest.raises(Unavailable, match="storage_unavailable") as caught:
        get()
    assert "1000000000" in caught.value.message
    assert WEIGHTS not in base.fetched()


def test_a_cache_that_cannot_be_written(base: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="storage_unavailable"):
        pull("aion-base", cache=tmp_path / "file", endpoint=base.endpoint)


def test_a_pulled_model_opens_without_a_network(base: Any, get: Any, tmp_path: Path) -> None:
    folder = get(modalities=["spectrum.desi"])
    base.close()
    cache = tmp_path / "cache"
    assert resolve("aion-base", cache) == resolve(BASE, cache) == resolve(f"{BASE}@main", cache) == folder
    assert resolve(f"{BASE}@{folder.name}", cache) == folder
    assert get(modalities=["spectrum.desi"]) == folder
    for more in (["image.hsc"], None):
        with pytest.raises(Unavailable, match="hub_unreachable"):
            get(modalities=more)
    with pytest.raises(Unavailable, match="hub_unreachable"):
        get("aion-large")
    program = (
        "from albireo.tokenizers.hub import pull, resolve\n"
        f"from pathlib import Path\ncache = Path({str(cache)!r})\n"
        "print(pull('aion-base', ['spectrum.desi'], cache=cache) == resolve('aion-base', cache))\n"
        "pull('aion-large', cache=cache)"
    )
    done = in_process(program, HF_HUB_OFFLINE="1")
    assert done.stdout == "True\n"
    assert "HF_HUB_OFFLINE is set [hub_unreachable]" in done.stderr


def test_opening_never_fetches(base: Any, tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        resolve("aion-large", tmp_path)
    assert (caught.value.code, caught.value.fix) == ("model_not_pulled", "albireo models pull aion-large")
    assert base.requests == []
    assert list(tmp_path.iterdir()) == []


def test_codecs_come_from_the_base_model(base: Any, get: Any, files: dict[str, bytes]) -> None:
    large = SIZES["aion-large"].repository
    base.repositories[large] = {path: files[path] for path in ("config.json", WEIGHTS)}
    folder = get("aion-large", ["spectrum.desi"])
    checkpoint = Checkpoint(folder)
    assert checkpoint.manifest is not None
    assert checkpoint.manifest.codecs_from == (CODECS_REPOSITORY, base.commit(CODECS_REPOSITORY))
    assert checkpoint.fingerprint == Checkpoint(MINI).fingerprint
    assert (checkpoint.name, list(checkpoint.inputs)) == ("aion-large", ["tok_spectrum_desi", "tok_spectrum_sdss"])
    get(modalities=["spectrum.desi"])
    stored = [path for path in (folder.parent.parent / "blobs").iterdir() if path.stat().st_size > 1_000_000]
    assert len(stored) == 2, "the two models share what is equal"
    base.repositories[BASE] = {**files, f"codecs/FLUX_G/{WEIGHTS}": files[f"codecs/FLUX_R/{WEIGHTS}"]}
    assert get("aion-large") == folder
    assert Checkpoint(folder).fingerprint == checkpoint.fingerprint, "codecs stay those that it was pulled with"


def test_a_branch_that_moves(base: Any, get: Any, files: dict[str, bytes], tmp_path: Path) -> None:
    old = get(modalities=["tok_ebv"])
    base.repositories[BASE] = files | {f"codecs/EBV/{WEIGHTS}": files[f"codecs/a_g/{WEIGHTS}"]}
    base.fetched()
    new = get(modalities=["tok_ebv"])
    assert new != old
    assert [path for path in base.fetched() if path.endswith(WEIGHTS)] == [f"codecs/EBV/{WEIGHTS}"]
    assert Checkpoint(new).fingerprint != Checkpoint(old).fingerprint
    cache = tmp_path / "cache"
    assert resolve("aion-base", cache) == new
    assert resolve(f"aion-base@{old.name}", cache) == old
    assert {(model.revision, model.names) for model in pulled(cache)} == {(old.name, ()), (new.name, ("main",))}


def test_the_hubs_own_cache_is_used(base: Any, files: dict[str, bytes], tmp_path: Path) -> None:
    program = (
        "import huggingface_hub, sys\nfrom albireo.tokenizers.hub import pull\n"
        f"huggingface_hub.hf_hub_download({BASE!r}, {WEIGHTS!r})\nprint('there', file=sys.stderr)\n"
        "print(pull('aion-base', ['tok_ebv']))"
    )
    done = in_process(program, HF_HOME=str(tmp_path), HF_ENDPOINT=base.endpoint, HF_HUB_DISABLE_XET="1")
    assert done.returncode == 0, done.stderr
    gets = [line for line in base.requests if line.startswith("GET") and line.endswith(f"/{WEIGHTS}")]
    assert len([line for line in gets if "codecs" not in line]) == 1
    assert (Path(done.stdout.strip()) / WEIGHTS).read_bytes() == files[WEIGHTS]


def test_names() -> None:
    assert reference("aion-xlarge") == ("polymathic-ai/aion-xlarge", "main")
    assert reference("a/b@refs/pr/3") == ("a/b", "refs/pr/3")
    assert reference("a/b@x", "y") == ("a/b", "y")
    for wrong in ("a", "a/b/c", "../a", "a/..", "a/b@../../x", "a/b@", "/a/b", "a/b@x y", ""):
        if wrong == "a/b@":
            assert reference(wrong) == ("a/b", "main")
            continue
        with pytest.raises(NotFound, match="model_unknown"):
            reference(wrong)


def test_folders_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine/model").mkdir(parents=True)
    (tmp_path / "aion-base").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("albireo-mini") == MINI
    assert resolve(tmp_path / "mine") == tmp_path / "mine"
    assert resolve("mine/model") == Path("mine/model")
    assert resolve("./aion-base") == Path("aion-base")
    with pytest.raises(NotFound, match="model_not_pulled"):
        resolve("aion-base", tmp_path / "cache")


@pytest.mark.parametrize("name", ["base_12e_12d", "large_24e_24d", "xlarge_24e_24d"])
def test_sizes_are_those_of_the_released_code(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fm, "FourM", lambda **arguments: arguments)
    theirs = getattr(fm, f"fm_{name}_swiglu_qknorm_nobias")({}, {})
    size = SIZES[f"aion-{name.partition('_')[0]}"]
    norm = {"norm_bias": theirs["norm_layer"].keywords["bias"], "act_layer": theirs["act_layer"].__name__}
    assert size.config == {key: theirs[key] for key in size.config if key in theirs} | norm
    with torch.device("meta"):
        blocks = Transformer(TransformerConfig(**size.config), {}, {})
    share = sum(parameter.numel() for parameter in blocks.parameters()) / size.parameters
    assert 0.6 < share < 1, "the rest are the tables of the modalities"


def test_the_sizes_are_told() -> None:
    page = (Path(__file__).parents[2] / "docs/checkpoints.md").read_text()
    for name, size in SIZES.items():
        shape = f"{size.dim} | {size.depth} + {size.depth} | {size.heads}"
        assert f"| {name} | {size.repository} | {shape} | " in page


def test_a_manifest_that_names_other_files_is_refused(get: Any) -> None:
    folder = get(modalities=["tok_ebv"])
    manifest = Manifest.read(folder)
    assert manifest is not None
    text = (folder / MANIFEST).read_text()
    for wrong in (
        text.replace("codecs/EBV/config.json", "../../config.json"),
        text[:100],
        "[]",
        text.replace("size", "s"),
    ):
        (folder / MANIFEST).write_text(wrong)
        with pytest.raises(AlbireoError, match="checkpoint_invalid"):
            Checkpoint(folder)
