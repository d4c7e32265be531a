"""Imports only go up the list of folders, are absolute, and heavy libraries stay in the rooms they belong to."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

MAY_IMPORT = {
    "observations": {"observations"},
    "tokenizers": {"tokenizers", "observations"},
    "models": {"models", "tokenizers", "observations"},
    "index": {"index", "observations"},
    "service": {"service", "index", "models", "tokenizers", "observations"},
}

ONLY_IN = {
    "torch": {"tokenizers", "models"},
    "safetensors": {"tokenizers", "models"},
    "triton": {"tokenizers", "models"},
    "faiss": {"index"},
    "sqlite3": {"index"},
    "astropy": {"observations", "service"},
    "fastavro": {"observations"},
    "fastapi": {"service"},
    "starlette": {"service"},
    "pydantic": {"service"},
    "pydantic_settings": {"service"},
    "typer": {"service"},
    "uvicorn": {"service"},
    "redis": {"service"},
    "matplotlib": {"service", "models"},  # models: to shield its settings from a package
}
"""Library -> the folders that may import it."""


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(dotted module, relative level) of every import, also inside functions and TYPE_CHECKING blocks."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module or ''}.{alias.name}", node.level) for alias in node.names)


def python_files(root: Path, folder: str) -> list[Path]:
    return sorted((root / folder).rglob("*.py"))


def violations(folder: str, source: str) -> list[str]:
    """What one source text of `folder` imports and may not."""
    wrong = []
    for module, level in imported(ast.parse(source)):
        first, _, rest = module.partition(".")
        if level:
            wrong.append(f"relative import of {module}")
        elif first == "albireo" and rest.split(".")[0] not in MAY_IMPORT[folder]:
            wrong.append(f"imports {module}")
        elif first in MAY_IMPORT:
            wrong.append(f"imports {module} without albireo.")
        elif folder not in ONLY_IN.get(first, {folder}):
            wrong.append(f"imports {first}")
    return wrong


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_import_order(root: Path, folder: str) -> None:
    files = python_files(root, folder)
    assert files
    wrong = [f"{path.relative_to(root)}: {what}" for path in files for what in violations(folder, path.read_text())]
    assert wrong == []


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("observations", "from albireo.tokenizers.checkpoint import Checkpoint"),
        ("observations", "def f():\n    import torch.nn"),
        ("index", "import albireo.models.engine"),
        ("index", "from albireo import models"),
        ("models", "from albireo.service import cli"),
        ("models", "from .engine import Engine"),
        ("tokenizers", "from observations.errors import BadInput"),
        ("service", "import faiss"),
    ],
)
def test_a_wrong_import_is_seen(folder: str, source: str) -> None:
    assert violations(folder, source)


def test_every_folder_has_its_row(folders: list[str]) -> None:
    assert {folder.split("/")[0] for folder in folders} == MAY_IMPORT.keys()


def test_no_init_files(root: Path, folders: list[str]) -> None:
    """With one, a bare `import tokenizers` at the repository root would no longer find Hugging Face's package."""
    assert [str(path) for folder in folders for path in (root / folder).rglob("__init__.py")] == []
