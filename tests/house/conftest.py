"""What the tests of the house look at: the repository, its pyproject, and a clean copy of it."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", ".typing", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info", "build", "dist", "demo",
    ".bench", ".mini", ".science",
)  # fmt: skip


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def pyproject(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())


@pytest.fixture(scope="session")
def folders(pyproject: dict[str, Any]) -> list[str]:
    """Our folders of Python, as pyproject lists them: "observations", ..."""
    return [
        package.removeprefix("albireo.").replace(".", "/") for package in pyproject["tool"]["setuptools"]["packages"]
    ]


@pytest.fixture(scope="session")
def checkout(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository without what git ignores; tests may write there."""
    return Path(shutil.copytree(root, tmp_path_factory.mktemp("clone") / "albireo", ignore=NOT_COPIED))
