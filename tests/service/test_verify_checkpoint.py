"""`albireo verify-checkpoint`: the shipped checkpoint passes, a changed weight is seen, and every failure is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from albireo.observations.errors import BadInput
from albireo.observations.modalities import AION_KEYS
from albireo.service import verify_checkpoint_figures as figures
from albireo.service.cli import app
from albireo.service.demo import SAMPLES
from albireo.service.recipe import MAKE, RECIPE, Recipe, checks
from albireo.service.shelf import Shelf
from albireo.service.verify_checkpoint import Check, Evidence, Found, Measured, NotPossible, objects_of, verify
from albireo.service.verify_checkpoint_rows import ROWS, spiked
from albireo.tokenizers.checkpoint import MINI

OWN = "its own answers"
Report = dict[str, Any]


def call(*arguments: object) -> Result:
    return CliRunner(env={"ALBIREO_THREADS": "1"}).invoke(app, ["verify-checkpoint", *(str(a) for a in arguments)])


def states(report: Report, group: str | None = None) -> dict[str, str]:
    return {one["name"]: one["state"] for one in report["checks"] if group in (None, one["group"])}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Report]:
    """The command on the shipped checkpoint: what it printed, and its report."""
    out = tmp_path_factory.mktemp("report") / "report.json"
    done = call("albireo-mini", "--out", out)
    return done, json.loads(out.read_text())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MINI, tmp_path / "mini"))


def change(path: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def test_the_shipped_checkpoint_passes(shipped: tuple[Result, Report]) -> None:
    done, report = shipped
    wrong = [one for one in report["checks"] if one["state"] == "failed"]
    assert wrong == [], f"if its weights are new: {MAKE}"
    assert (done.exit_code, report["ok"]) == (0, True)
    own = states(report, OWN)
    assert set(own.values()) == {"passed"}, own
    assert set(own) == {"identity", "known answer", "tokens", "embeddings", "neighbours", "heads"}
    files = states(report, "files")
    assert {name for name, state in files.items() if state == "not possible"} == {
        "bytes", "modalities", "vocabularies", "size",
    }  # fmt: skip
    assert set(states(report, "the released package").values()) == {"not possible"}
    assert "passed" in set(states(report, "meaning").values())


def test_what_is_printed_names_every_check(shipped: tuple[Result, Report]) -> None:
    done, report = shipped
    for one in report["checks"]:
        assert one["name"] in done.stdout
        assert one["expected"]
        assert one["measured"]
    summary = report["summary"]
    assert summary in done.stdout
    assert f"{report['counts']['passed']} passed, 0 failed" in summary
    assert report["checkpoint"]["fingerprint"] in summary
    assert report["software"]["torch"] in summary


def test_the_recipe_is_of_every_head_that_is_shipped() -> None:
    recipe = Recipe.read(MINI)
    assert recipe is not None, MAKE
    assert {*Shelf({"shipped": MINI / "heads"}).names()} == set(recipe.heads), MAKE
    assert len(recipe.embeddings) == 16
    assert {"probe-1", *recipe.embeddings} == set(recipe.tokens)


def own_answers(folder: Path) -> dict[str, Found]:
    return {one.name: one for one in verify(checks(Recipe.read(folder)), Evidence(folder, threads=1))}


def test_one_weight_of_the_encoder(folder: Path) -> None:
    change(folder / "model.safetensors", lambda t: t["encoder_norm.weight"][3:4].add_(4.0))
    found = own_answers(folder)
    assert {name for name, one in found.items() if one.state == "failed"} >= {"identity", "known answer", "embeddings"}
    assert found["tokens"].state == "passed"


def test_a_weight_that_changes_nothing_to_speak_of(folder: Path) -> None:
    """Only the identity tells, and heads, which are of another checkpoint then."""
    change(folder / "model.safetensors", lambda t: t["encoder.2.mlp.fc1.weight"].view(-1)[7:8].add_(0.01))
    found = own_answers(folder)
    assert [name for name, one in found.items() if one.state == "failed"] == ["identity", "heads"]
    assert "space_mismatch" in found["heads"].measured


def test_one_weight_of_a_codec(folder: Path) -> None:
    """A bias of the last layer before the quantizer moves one digit of every code."""
    change(folder / "codecs/image/model.safetensors", lambda t: t["pre_quant_proj.bias"][:1].add_(2.0))
    found = own_answers(folder)
    assert (found["identity"].state, found["tokens"].state) == ("failed", "failed")
    assert "tok_image" in found["tokens"].measured
    assert "tok_flux" not in found["tokens"].measured


def test_a_codebook_in_the_place_of_another(folder: Path) -> None:
    """Of other units or upside down it is seen without any recipe."""
    (folder / RECIPE).unlink()
    shutil.copyfile(folder / "codecs/i_sdssshape_shape12/model.safetensors", folder / "codecs/EBV/model.safetensors")
    change(folder / "codecs/a_g/model.safetensors", _turned_round)
    rows = [one for one in ROWS if one.name in ("modalities", "codebooks")]
    rows += [*figures.checks(None)[:2], *checks(None)]
    found = {(one.group, one.name): one for one in verify(rows, Evidence(folder, threads=1))}
    wrong = found["codecs", "codebooks"]
    assert wrong.state == "failed"
    assert "tok_ebv goes from" in wrong.measured
    assert "tok_a_g does not increase" in wrong.measured
    assert found[OWN, "recipe"].state == "not possible"
    meaning = [one for (group, _), one in found.items() if group == "meaning"]
    assert {one.state for one in meaning} == {"not possible"}
    assert all("not judged" in one.measured for one in meaning if one.value is not None)


def _turned_round(tensors: dict[str, torch.Tensor]) -> None:
    (name,) = [name for name in tensors if name.endswith("_index_to_val")]
    tensors[name] = tensors[name].flip(0).contiguous()


def test_a_folder_that_does_not_open(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    done = call(folder, "--json")
    report = json.loads(done.stdout)
    assert done.exit_code == 1
    assert "FAILED files, layout: expected config.json, " in report["summary"]
    by_state = {state: [n for n, s in states(report).items() if s == state] for state in ("passed", "failed")}
    assert by_state == {"passed": [], "failed": ["layout"]}
    assert report["checkpoint"]["fingerprint"] is None


def test_a_network_that_does_not_open(folder: Path) -> None:
    """Said once, by the check that opens it; what is known without it is still told."""
    change(folder / "model.safetensors", lambda t: t.pop("encoder.0.attn.qkv.weight"))
    report = json.loads(call(folder, "--json").stdout)
    assert [name for name, state in states(report).items() if state == "failed"] == ["tensors", "network"]
    assert states(report, "files")["layout"] == "passed"
    assert {one["measured"] for one in report["checks"] if one["group"] == OWN} == {"the checkpoint does not open"}


def test_a_damaged_recipe(folder: Path) -> None:
    (folder / RECIPE).write_text("{}")
    found = list(verify(checks(Recipe.found(folder)), Evidence(folder)))
    assert [(one.name, one.state) for one in found] == [("recipe", "failed")]


def test_the_figures_of_other_files() -> None:
    """They are of these files alone; the checkpoint is opened once."""
    evidence = Evidence(MINI, threads=1)
    paths = sorted(SAMPLES.glob("spec-*.fits.gz"))
    rows = {one.name: one for one in figures.checks_of_files(objects_of(paths))}
    wanted = ("spectra come back", "spectrum codes in use", "redshift of a spectrum", "images come back")
    found = {one.name: one for one in verify([rows[name] for name in wanted], evidence)}
    assert len(paths) == 6
    assert f"{6 * (evidence.checkpoint.inputs['tok_spectrum_sdss'].n_tokens - 1)} tokens" in (
        found["spectrum codes in use"].measured
    )
    assert "median R2 of 6 spectra" in found["spectra come back"].measured
    assert {one.state for one in found.values()} == {"not possible"}
    assert found["images come back"].measured == "no object has any"
    assert evidence.of_objects(objects_of(paths)).engine is evidence.engine
    assert len(evidence.samples) == 16


def test_other_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    done = call("albireo-mini", "--also", tmp_path / "missing.fits")
    assert done.exit_code != 0
    assert "missing.fits" in done.output
    assert "spectra come back" not in done.output, "it was told before anything was computed"


def test_a_recipe_is_written_as_it_is_read(tmp_path: Path) -> None:
    recipe = Recipe.read(MINI)
    assert recipe is not None
    recipe.write(tmp_path)
    assert (tmp_path / RECIPE).read_bytes() == (MINI / RECIPE).read_bytes()
    assert (MINI / RECIPE).stat().st_size < 200_000


def test_a_check_that_fails_takes_no_other_down() -> None:
    def refused(evidence: Evidence) -> Measured:
        raise BadInput("not_finite", "no number")

    def cut(evidence: Evidence) -> Measured:
        raise NotPossible("not here")

    def broken(evidence: Evidence) -> Measured:
        return Measured(bool(1 / 0), "")

    def good(evidence: Evidence) -> Measured:
        return Measured(True, "as expected", 1.0, "1 within 0.1")

    rows = [Check("g", str(i), "e", "s", measure) for i, measure in enumerate((refused, cut, broken, good))]
    rows.append(Check("g", "of AION-1", "e", "s", good, of_aion=True))
    found = list(verify(rows, Evidence(MINI)))
    assert [one.state for one in found] == ["failed", "not possible", "failed", "passed", "not possible"]
    assert [one.measured for one in found[:3]] == [
        "not_finite: no number", "not here", "ZeroDivisionError: division by zero",
    ]  # fmt: skip
    assert (found[3].expected, found[3].value) == ("1 within 0.1", 1.0)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    from albireo.models.aion_package import installed

    assert installed() == metadata.version("polymathic-aion")

    def gone(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", gone)
    assert installed() is None


def test_the_spiked_spectrum() -> None:
    """As it was given to the released code: a masked spike and a mask around it."""
    grid, flux, mask = spiked()
    assert (grid[0], len(grid), flux[150], int(mask.sum())) == (3600, 7781, 1e4, 100)
    assert np.flatnonzero(mask)[0] == 100
    assert len(AION_KEYS) == 40
