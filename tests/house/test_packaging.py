"""The wheel holds every folder, and everything in it can be imported."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest

NOT_PACKAGED = {"tests", "docs", "benchmarks", "examples", "deploy"}

IMPORT_ALL = """
import importlib, json, sys
sys.path[:0] = [sys.argv[1]]
sys.path += json.loads(sys.argv[2])
for name in json.loads(sys.argv[3]):
    module = importlib.import_module(name)
    assert module.__file__.startswith(sys.argv[1]), module.__file__
    print(name)
"""


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(out), str(checkout)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (file,) = out.glob("albireo-*.whl")
    return file


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_list_of_packages_is_the_folders(root: Path, pyproject: dict[str, Any]) -> None:
    folders = {
        path.parent.relative_to(root)
        for top in root.iterdir()
        if top.is_dir() and not top.name.startswith(".") and top.name not in NOT_PACKAGED
        for path in top.rglob("*.py")
        if "build" not in path.parts
    }
    listed = pyproject["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(".".join(("albireo", *folder.parts)) for folder in folders)


def test_the_wheel_holds_every_file(checkout: Path, folders: list[str], names: set[str]) -> None:
    for folder in folders:
        for path in [*(checkout / folder).glob("*.py"), checkout / folder / "py.typed"]:
            assert f"albireo/{path.relative_to(checkout).as_posix()}" in names


def test_the_wheel_holds_weights_and_samples(checkout: Path, names: set[str]) -> None:
    for folder in ("models/albireo-mini", "observations/samples"):
        files = [path for path in (checkout / folder).rglob("*") if path.is_file()]
        assert files, folder
        assert {f"albireo/{path.relative_to(checkout).as_posix()}" for path in files} <= names
    assert "albireo/models/albireo-mini/model.safetensors" in names


def test_the_wheel_holds_nothing_else(folders: list[str], names: set[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert all(top == "albireo" or top.endswith(".dist-info") for top in tops), tops
    assert {name.split("/")[1] for name in names if name.startswith("albireo/")} == {f.split("/")[0] for f in folders}


def test_the_weights_are_small(root: Path) -> None:
    assert sum(path.stat().st_size for path in (root / "models/albireo-mini").rglob("*")) <= 60_000_000


def test_everything_in_the_wheel_can_be_imported(wheel: Path, names: set[str], tmp_path: Path) -> None:
    """From the wheel alone: -S keeps the editable installation of this repository out."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    modules = sorted(name.removesuffix(".py").replace("/", ".") for name in names if name.endswith(".py"))
    paths = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    command = [sys.executable, "-S", "-c", IMPORT_ALL, str(tmp_path), json.dumps(paths), json.dumps(modules)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == modules


def test_hugging_faces_tokenizers_are_still_found(root: Path) -> None:
    """Also at the repository root, where a folder of ours has that name."""
    program = "import tokenizers; print(tokenizers.__version__)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=root)
    assert run.returncode == 0, run.stderr


def test_the_command(pyproject: dict[str, Any]) -> None:
    assert pyproject["project"]["scripts"] == {"albireo": "albireo.service.cli:main"}
