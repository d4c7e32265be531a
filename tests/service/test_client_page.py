"""docs/client.md: its examples run, in their order, against the shipped model and the sample files."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from albireo.service.core import Core
from albireo.service.settings import Settings
from tests.service.served import Served, running

ROOT = Path(__file__).parents[2]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Served]:
    settings = Settings(data_folder=tmp_path / "data")
    with running(Served(Core.local(settings), settings)) as made:
        yield made


def test_the_examples_run(service: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs/client.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 8
    shutil.copytree(ROOT / "observations/samples", tmp_path / "samples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALBIREO_URL", service.url)
    monkeypatch.setenv("ALBIREO_DATA_FOLDER", str(tmp_path / "local"))
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, block.splitlines()[0], "exec"), names)
