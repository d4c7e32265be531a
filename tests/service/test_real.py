"""The command line on the survey files as surveys write them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from albireo.index.collection import Collections
from albireo.service.cli import app
from albireo.service.core import Core


@pytest.mark.real
def test_every_real_file_is_recognised(test_data: Path, engine, tmp_path: Path) -> None:
    def open_core(settings) -> Core:
        return Core(lambda: engine, lambda: Collections(tmp_path / "collections.sqlite"))

    done = CliRunner().invoke(app, ["validate", str(test_data / "raw"), "--json"], obj=open_core)
    assert done.exit_code == 0
    answer = json.loads(done.stdout)
    seen = Counter((file["file"].rpartition(".")[2].lower(), file["companion_of"] is None) for file in answer["files"])
    assert all(file["format"] for file in answer["files"])
    assert seen[("jpeg", True)] == 10
    spectra = [item for item in answer["items"] if item["detected"] and item["usable"]]
    assert sum(item["file"].startswith("spec-") for item in spectra) == 15
    assert sum(file["companion_of"] is not None for file in answer["files"]) == 2
    refused = {error["code"] for item in answer["items"] for error in item["errors"]}
    assert refused <= {"not_photometric", "modality_not_in_checkpoint", "not_a_target", "survey_missing"}
