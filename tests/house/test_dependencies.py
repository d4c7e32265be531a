"""Every dependency has its reason, every import its dependency, and every version its pin."""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

OPTIONAL = {
    "index/flat.py": "cpu",
    "models": "train",
    "models/aion_package.py": "aion",
    "observations/simulation": "train",
    "observations/sky_cells.py": "train",
    "models/triton_kernels.py": "gpu",
    "service/qp_file.py": "qp",
    "service/tracing.py": "otel",
    "tokenizers/triton_kernels.py": "gpu",
}
"""Where the packages of an extra may be imported."""


def declared(pyproject: dict[str, Any], *extras: str) -> dict[str, Requirement]:
    """Canonical name -> requirement, of the dependencies and the extras named."""
    project = pyproject["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


def third_party(path: Path) -> set[str]:
    """Top-level names of other people's modules that a file imports."""
    tree = ast.parse(path.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"albireo"}


@functools.cache
def providers() -> Mapping[str, list[str]]:
    """Top-level module -> the distributions that install it; reads all that is installed."""
    return metadata.packages_distributions()


def undeclared(files: list[Path], allowed: set[str]) -> list[str]:
    """Imports whose distribution is not among `allowed`."""
    return [
        f"{path.name}: {module}"
        for path in files
        for module in sorted(third_party(path))
        if not {canonicalize_name(name) for name in providers().get(module, [module])} & allowed
    ]


def pins(root: Path) -> dict[str, str]:
    lines = (root / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_every_dependency_has_a_reason(root: Path) -> None:
    text = (root / "pyproject.toml").read_text().split("[project.scripts]")[0]
    lines = [line.strip() for line in text.splitlines() if re.match(r' +"[\w-]+[<>=]', line)]
    assert len(lines) > 20
    assert [line for line in lines if not re.search(r'",\s+# \w.{5,}', line)] == []


@pytest.mark.parametrize("folder", ["observations", "tokenizers", "models", "index", "service"])
def test_every_import_is_declared(root: Path, pyproject: dict[str, Any], folder: str) -> None:
    """Of the package: a plain installation can import everything but training and the FAISS search."""
    files = sorted((root / folder).rglob("*.py"))
    extras = [extra for place, extra in OPTIONAL.items() if place.startswith(folder)]
    assert undeclared(files, set(declared(pyproject, *extras))) == []


def test_every_import_of_the_tests_is_declared(root: Path, pyproject: dict[str, Any]) -> None:
    files = [path for folder in ("tests", "benchmarks", "docs", "examples") for path in (root / folder).rglob("*.py")]
    ours = {"benchmarks", "tests"}
    torn = undeclared(files, set(declared(pyproject, "cpu", "train", "dev")) | ours)
    assert torn == []


def test_an_undeclared_import_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text(
        "def f():\n    from pandas.io import sql\nimport numpy.linalg\nimport albireo.index.flat\nimport os\n"
    )
    assert undeclared([file], {"numpy"}) == ["a.py: pandas"]


def test_every_dependency_is_pinned(root: Path, pyproject: dict[str, Any]) -> None:
    pinned = pins(root)
    for name, requirement in declared(pyproject, "cpu", "gpu", "train", "dev").items():
        assert name in pinned
        assert requirement.specifier.contains(pinned[name]), name
    assert pinned["torch"] == "2.13.0"


def test_everything_they_need_is_pinned(root: Path) -> None:
    pinned, seen = pins(root), set()
    wanted: list[tuple[str, frozenset[str]]] = [("albireo", frozenset({"cpu", "train", "dev"}))]
    while wanted:
        name, extras = wanted.pop()
        for line in metadata.requires(name) or []:
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                need = (canonicalize_name(requirement.name), frozenset(requirement.extras))
                if need not in seen and not need[0].startswith(("nvidia-", "cuda-")):
                    seen.add(need)
                    wanted.append(need)
    assert sorted({name for name, _ in seen} - pinned.keys()) == []


def test_the_two_faiss_never_together(pyproject: dict[str, Any]) -> None:
    extras = pyproject["project"]["optional-dependencies"]
    with_faiss = {extra for extra, lines in extras.items() if any("faiss" in line for line in lines)}
    assert with_faiss == {"cpu", "gpu"}
    assert not any("faiss" in line for line in pyproject["project"]["dependencies"])
