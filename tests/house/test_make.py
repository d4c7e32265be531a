"""The Makefile with an environment of stubs: what targets say when they pass, and that they fail when they should."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

TARGETS = (
    "test",
    "real",
    "parity",
    "slow",
    "fuzz",
    "lint",
    "types",
    "fix",
    "bench",
    "stars",
    "science",
    "docs",
    "protos",
)


@pytest.fixture
def house(root: Path, tmp_path: Path) -> Path:
    """The Makefile beside a finished environment, in which every tool succeeds and tells how it was called."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(root / name, tmp_path)
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    for tool in ("python", "ruff", "mypy", "albireo"):
        script = tools / tool
        script.write_text('#!/bin/sh\necho "called: $(basename $0) $*"\n[ ! -e fail ]\n')
        script.chmod(0o755)
    (tmp_path / ".venv" / ".installed").touch()
    return tmp_path


def make(house: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ALBIREO_", "MAKE"))}
    return subprocess.run(
        ["make", *arguments], cwd=house, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("target", TARGETS)
def test_the_last_line_says_what_to_do_next(house: Path, target: str) -> None:
    done = make(house, target, f"ALBIREO_TEST_DATA={house}")
    assert done.returncode == 0, done.stderr
    assert "called: " in done.stdout
    assert "Next: " in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("target", [*TARGETS, "demo"])
def test_a_failure_fails(house: Path, target: str) -> None:
    (house / "fail").touch()
    assert make(house, target, f"ALBIREO_TEST_DATA={house}").returncode != 0


def test_demo_passes_files_on(house: Path) -> None:
    done = make(house, "demo", "FILES=a.fits b.csv")
    assert done.stdout.splitlines()[-1] == "called: albireo demo a.fits b.csv"


def test_real_fails_without_data(house: Path) -> None:
    """Beside the checkout by default; absent data is a failure, never a skip."""
    for arguments in ((), ("ALBIREO_TEST_DATA=/nowhere",)):
        done = make(house, "real", *arguments)
        assert done.returncode != 0
        assert re.search(r"There is no /\S+\. Name the folder: make real ALBIREO_TEST_DATA=FOLDER", done.stdout)
        assert "called: " not in done.stdout


def test_an_old_python_is_told(house: Path) -> None:
    (house / ".venv" / ".installed").unlink()
    done = make(house, "demo", f"PYTHON={shutil.which('false')}")
    assert done.returncode != 0
    assert "make demo PYTHON=" in done.stdout


def test_torch_from_an_index_of_its_own(house: Path) -> None:
    (house / ".venv" / ".installed").unlink()
    done = make(house, "lint", "PYTHON=true", "TORCH_INDEX=https://index.invalid/cpu")
    first, second = [line for line in done.stdout.splitlines() if "pip install" in line]
    assert first.endswith("--index-url https://index.invalid/cpu -c constraints.txt torch")
    assert second.endswith("-c constraints.txt -e .[cpu,train,dev]")
    assert "pip install" not in make(house, "lint").stdout


def test_types_sees_every_folder(house: Path, folders: list[str]) -> None:
    done = make(house, "types")
    top = [folder for folder in folders if "/" not in folder]
    named = re.findall(r"-p albireo\.(\S+)", done.stdout)
    # What is named is checked with the folders inside it.
    assert sorted(named) == sorted(top)
    assert {folder.partition("/")[0] for folder in folders} == set(top)
    for folder in top:
        assert os.readlink(house / ".typing/albireo" / folder) == f"../../{folder}"


def test_ci_calls_the_targets(root: Path) -> None:
    text = (root / ".ci/run").read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -e" in text
    assert "\nmake lint types test real demo\n" in text
    assert os.access(root / ".ci/run", os.X_OK)
