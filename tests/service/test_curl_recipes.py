"""The curl commands of README.md, docs/ and deploy/ run as they stand, with curl, against the shipped model."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from albireo.service.core import Core
from albireo.service.settings import Settings
from tests.service.served import Served, running

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("deploy/*.md"))]

ADDRESS = "http://127.0.0.1:8000"
"""Where the pages say that the service is."""

CURLRC = r"""
silent
show-error
noproxy = "*"
write-out = "\n%{http_code}"
"""
"""What curl reads first: it prints no bar, and the status as the last line."""


def recipes(text: str) -> list[str]:
    """The curl commands of a page: lines of blocks, fenced or indented, with those they go on in."""
    return re.findall(r"^(?: {4})?(curl (?:.*\\\n)*.*)$", text, re.MULTILINE)


RECIPES = [
    pytest.param(recipe, id=f"{page.relative_to(ROOT)}-{n}")
    for page in PAGES
    for n, recipe in enumerate(recipes(page.read_text()))
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service that is ready."""
    settings = Settings(data_folder=tmp_path_factory.mktemp("data"))
    with running(Served(Core.local(settings), settings)) as made:
        until = time.monotonic() + 60
        while httpx.get(f"{made.url}/readyz", trust_env=False).status_code != 200:
            assert time.monotonic() < until
            time.sleep(0.1)
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As a checkout, with the samples that commands name."""
    (tmp_path / "observations").mkdir()
    (tmp_path / "observations/samples").symlink_to(ROOT / "observations/samples")
    (tmp_path / ".curlrc").write_text(CURLRC)
    return tmp_path


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_command_runs(recipe: str, service: Served, folder: Path) -> None:
    assert shutil.which("curl"), "curl is not installed: apt-get install curl"
    assert recipe.count(ADDRESS) == 1
    done = subprocess.run(
        ["bash", "-ec", recipe.replace(ADDRESS, service.url)],
        cwd=folder, env={"PATH": os.environ["PATH"], "CURL_HOME": str(folder)},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, f"{recipe}\n{done.stdout}\n{done.stderr}"
    body, _, status = done.stdout.rpartition("\n")
    assert status == "200", f"{recipe}\n{done.stdout}"
    answer = json.loads(body)
    assert answer
    assert [item["error"] for item in answer.get("items", []) if item["error"]] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_command_is_overlooked(page: Path) -> None:
    text = page.read_text()
    assert len(re.findall(r"\bcurl ['\"]?(?:-|http)", text)) == len(recipes(text))


def test_pages_have_commands() -> None:
    assert {str(one.id).rpartition("-")[0] for one in RECIPES} >= {"README.md", "docs/heads.md", "deploy/README.md"}


def test_commands_over_several_lines_are_found_whole() -> None:
    text = "Say `curl x`.\n\n```\ncurl -F a=b \\\n  http://x\ncurl y\n```\n\n    curl z\n\ngrpcurl w\n"
    assert recipes(text) == ["curl -F a=b \\\n  http://x", "curl y", "curl z"]
