"""`albireo models`: what is here, what it is, whether it is sound; and pulling, from a hub on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from albireo.service.cli import app
from albireo.tokenizers.checkpoint import LAYOUT, MINI, Checkpoint
from albireo.tokenizers.hub import SIZES

BASE = "polymathic-ai/aion-base"
Run = Callable[..., Result]
Call = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run() -> Run:
    return lambda *arguments: CliRunner().invoke(app, ["models", *(str(a) for a in arguments)])


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """The files of the shipped checkpoint that belong to one."""
    paths = (path for path in MINI.rglob("*") if path.is_file())
    every = {path.relative_to(MINI).as_posix(): path.read_bytes() for path in paths}
    return {path: content for path, content in every.items() if LAYOUT.fullmatch(path)}


@pytest.fixture
def call(hub: Any, files: dict[str, bytes], tmp_path: Path) -> Call:
    """Runs `albireo` in a process of its own, with that hub and a cache of the test's own."""
    hub.repositories[BASE] = dict(files)
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.endpoint}

    def run(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "albireo.service.cli", *(str(a) for a in arguments)]
        variables = os.environ | environment | more
        return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)

    return run


def test_show_the_shipped_model(run: Run) -> None:
    about = json.loads(run("show", "albireo-mini", "--json").stdout)
    mini = Checkpoint(MINI)
    assert (about["space"], about["fingerprint"]) == (mini.space("mean"), mini.fingerprint)
    assert (about["dim"], about["preprocessing"]) == (mini.dim, "aion-1+albireo-1")
    assert {row["token_key"]: row["n_tokens"] for row in about["inputs"] if row["codec"] == "here"} == {
        key: spec.n_tokens for key, spec in mini.inputs.items()
    }
    assert about["readme"] == str(MINI / "README.md")
    assert about["repository"] is None
    text = run("show", MINI).stdout
    assert all(str(part) in text for part in (mini.fingerprint, "image.legacysurvey", "redshift", "192", "F16, F32"))


def test_ls_names_what_can_be_named(call: Call) -> None:
    rows = {row["name"]: row for row in json.loads(call("models", "ls", "--json").stdout)["models"]}
    assert list(rows) == ["albireo-mini", *SIZES]
    assert rows["albireo-mini"]["state"] == "shipped"
    assert {rows[name]["state"] for name in SIZES} == {"not pulled"}
    assert rows["aion-xlarge"]["parameters"] == 3_100_000_000
    text = call("models", "ls").stdout
    assert "aion-large                   not pulled" in text


def test_pull_then_use_without_a_network(call: Call, hub: Any, tmp_path: Path) -> None:
    done = call("models", "pull", "aion-base", "--modality", "tok_flux_g", "--modality", "tok_flux_r", "--json")
    assert done.returncode == 0, done.stderr
    about = json.loads(done.stdout)
    states = {row["modality"]: row["codec"] for row in about["inputs"]}
    assert {name for name, codec in states.items() if codec == "here"} == {"legacysurvey.flux_g", "legacysurvey.flux_r"}
    assert (about["repository"], about["revision"], about["license"]) == (BASE, hub.commit(BASE), "mit")
    assert about["fingerprint"] == Checkpoint(MINI).fingerprint
    again = call("models", "pull", "aion-base", "--modality", "tok_flux_g")
    assert "aion-base at " in again.stdout
    assert "reads 2 of 41 modalities here" in again.stdout
    hub.close()
    (row,) = [r for r in json.loads(call("models", "ls", "--json").stdout)["models"] if r["name"] == "aion-base"]
    assert (row["state"], row["n_inputs"], row["revision"]) == ("pulled", 2, about["revision"])
    assert 20_000_000 < row["bytes"] < 28_000_000
    text = call("models", "show", "aion-base").stdout
    assert f"codec not pulled: albireo models pull {BASE}@{row['revision']} --modality image.hsc" in text
    table = tmp_path / "table.csv"
    table.write_text("id,flux_g,flux_r\nA,3.0,4.0\n")
    reading = ("--survey", "legacysurvey", "--release", "dr10", "--kind", "model", "--system", "AB")
    reading += ("--no-extinction-corrected", "--unit", "nanomaggy")
    seen = call("validate", table, *reading, "--require-usable", ALBIREO_MODEL="aion-base", HF_HUB_OFFLINE="1")
    assert "usable, 2 tokens" in seen.stdout, seen.stdout + seen.stderr


def test_a_modality_that_was_not_pulled_says_how_to_get_it(
    call: Call, hub: Any, tmp_path: Path, image: Callable[..., bytes]
) -> None:
    call("models", "pull", "aion-base", "--modality", "tok_flux_g")
    (tmp_path / "a.fits").write_bytes(image("A"))
    done = call("validate", tmp_path / "a.fits", "--model", "aion-base", "--json")
    (error,) = json.loads(done.stdout)["items"][0]["errors"]
    command = f"albireo models pull {BASE}@{hub.commit(BASE)} --modality image.legacysurvey"
    assert (error["code"], error["fix"]) == ("modality_not_in_checkpoint", command)
    done = call(*command.split()[1:])
    assert done.returncode == 0, done.stderr
    done = call("validate", tmp_path / "a.fits", "--model", "aion-base", "--json")
    assert json.loads(done.stdout)["items"][0]["usable"] is True


def test_verify_a_pulled_model(call: Call) -> None:
    folder = Path(json.loads(call("models", "pull", "aion-base", "--modality", "tok_ebv", "--json").stdout)["folder"])
    good = call("models", "verify", "aion-base")
    assert (good.returncode, good.stdout.endswith("nothing wrong\n")) == (0, True)
    weights = (folder / "codecs/EBV/model.safetensors").resolve()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    bad = call("models", "verify", "aion-base")
    assert bad.returncode == 1
    assert f"{weights}: has another sha256" in bad.stdout
    answer = json.loads(call("models", "verify", "aion-base", "--json").stdout)
    assert (answer["ok"], answer["against"]) == (False, "the manifest")
    assert [file["file"] for file in answer["files"] if not file["ok"]] == ["codecs/EBV/model.safetensors"]
    weights.unlink()
    call("models", "pull", "aion-base", "--modality", "tok_ebv")
    assert call("models", "verify", "aion-base").returncode == 0


def test_verify_a_folder(run: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(MINI, tmp_path / "mine"))
    path = folder / "codecs/a_g/model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    done = run("verify", folder, "--json")
    answer = json.loads(done.stdout)
    assert (done.exit_code, answer["against"]) == (1, "the configuration")
    assert [file["file"] for file in answer["files"] if not file["ok"]] == ["codecs/a_g/model.safetensors"]
    (folder / "config.json").write_text("{")
    damaged = run("verify", folder)
    assert damaged.exit_code == 1
    assert f"checkpoint_invalid: {folder / 'config.json'}" in damaged.output


def test_errors_are_typed(call: Call) -> None:
    codes = {
        ("pull", "nobody/nothing"): "model_unknown",
        ("pull", "aion-base", "--modality", "image.hubble"): "modality_unknown",
        ("pull", "aion-base", "--revision", "v9"): "model_unknown",
        ("show", "aion-large"): "model_not_pulled",
        ("verify", "no such folder"): "model_unknown",
    }
    with ThreadPoolExecutor(len(codes)) as at_once:
        done = list(at_once.map(lambda arguments: call("models", *arguments, "--json"), codes))
    found = [(one.returncode, json.loads(one.stdout)["error"]["code"]) for one in done]
    assert found == [(1, code) for code in codes.values()]


def test_a_gated_model_says_what_to_do(call: Call, hub: Any) -> None:
    hub.denied[BASE] = (401, "GatedRepo")
    done = call("models", "pull", "aion-base")
    assert done.returncode == 1
    assert "model_gated" in done.stderr
    assert "HF_TOKEN" in done.stderr
    assert "Traceback" not in done.stderr
