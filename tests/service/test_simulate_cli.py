"""`albireo simulate`: shards, a page to look at, and files that the other commands read."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.image
import pytest
from typer.testing import CliRunner

from albireo.observations.errors import Unavailable
from albireo.observations.simulation.templates import package
from albireo.service.cli import app

runner = CliRunner()


def test_shards_a_page_and_what_validate_says_of_them(tmp_path: Path) -> None:
    out = tmp_path / "sky"
    arguments = ["simulate", str(out), "-n", "9", "--kind", "mix", "--seed", "4", "--shard-size", "5", "--json"]
    made = runner.invoke(app, arguments)
    assert made.exit_code == 0, made.output
    answer = json.loads(made.stdout)
    assert (answer["objects"], answer["shards"]) == (9, 2)
    for picture in answer["pictures"]:
        assert matplotlib.image.imread(picture).std() > 0.05
    read = runner.invoke(app, ["validate", str(out / "mix-00000.parquet"), "--require-usable", "--json"])
    assert read.exit_code == 0, read.output
    told = json.loads(read.stdout)
    assert told["files"][0]["format"] == "albireo"
    assert [item["id"] for item in told["items"]] == [f"sim-4-{k:07d}" for k in range(5)]
    again = runner.invoke(app, [*arguments[:3], "8", *arguments[4:]])
    assert again.exit_code == 1
    assert "statement_conflict" in again.output


def test_photometry_alone(tmp_path: Path) -> None:
    made = runner.invoke(app, ["simulate", str(tmp_path), "-n", "20", "--photometry", "--json"])
    assert made.exit_code == 0, made.output
    assert all(matplotlib.image.imread(picture).std() > 0.02 for picture in json.loads(made.stdout)["pictures"])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert "tok_image" not in manifest["modalities"]
    assert manifest["order"]["photometry"]


def test_wrong_usage() -> None:
    assert runner.invoke(app, ["simulate", "sky", "--kind", "planets"]).exit_code == 2
    assert runner.invoke(app, ["simulate", "sky", "--objects", "0"]).exit_code == 2


def test_a_package_that_is_missing_is_named() -> None:
    with pytest.raises(Unavailable, match="no_such_package"):
        package("no_such_package")
