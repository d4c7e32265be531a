"""Documents are tested: commands run, generated pages equal their tables, links lead somewhere."""

from __future__ import annotations

import ast
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from albireo.observations.errors import CODES
from albireo.observations.modalities import MODALITIES
from albireo.service.settings import PREFIX, Settings

PAGES = ("errors.md", "modalities.md", "formats.md", "settings.md")


@pytest.fixture(scope="module")
def generate(root: Path) -> dict[str, Any]:
    """What docs/generate.py defines."""
    return runpy.run_path(str(root / "docs/generate.py"))


def commands(root: Path) -> list[str]:
    """Every line of the README's blocks marked sh."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (root / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def run(line: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-ec", line], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=1800
    )


def test_the_two_commands_come_first(root: Path) -> None:
    assert commands(root)[:2] == ["make demo", "make test"]


def test_the_commands_of_the_readme_run(root: Path, checkout: Path, tmp_path: Path) -> None:
    """In their order, in a clean copy, in this environment; all but `make`, which the next test runs."""
    lines = [line for line in commands(root) if not line.startswith("make ")]
    (checkout / ".venv").symlink_to(sys.prefix)
    home = {"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    home |= {key: value for key, value in os.environ.items() if key.startswith(("OMP_", "OPENBLAS_"))}
    try:
        for line in lines:
            done = run(line, checkout, home)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    finally:
        (checkout / ".venv").unlink()


@pytest.mark.slow
def test_make_demo_from_a_clean_copy(root: Path, checkout: Path) -> None:
    """`make` commands of the README but `make test`, which would call this test: a new environment, then the demo."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
    for line in [line for line in commands(root) if line.startswith("make ") and line != "make test"]:
        done = run(line, checkout, environment)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert (checkout / "demo.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_every_target_of_make_named_anywhere_exists(root: Path) -> None:
    makefile = (root / "Makefile").read_text()
    pages = [root / "README.md", *root.glob("docs/*.md"), *root.glob("deploy/*.md")]
    spoken = [words for page in pages for words in re.findall(r"`make ((?:[a-z]+ ?)+)", page.read_text())]
    scripted = re.findall(r"^make ((?:[a-z]+ ?)+)", (root / ".ci/run").read_text(), re.MULTILINE)
    wanted = {word for words in spoken + scripted for word in words.split()} | {"fix", "bench", "docs"}
    assert {"demo", "test", "real", "lint", "types"} <= wanted
    assert [target for target in sorted(wanted) if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


@pytest.mark.parametrize("name", PAGES)
def test_generated_pages(root: Path, generate: dict[str, Any], name: str) -> None:
    assert (root / "docs" / name).read_text() == generate["page"](name), "call make docs"


def test_every_generated_page_is_tested(generate: dict[str, Any]) -> None:
    assert set(generate["PAGES"]) == set(PAGES)


def test_the_tree_in_the_readme(root: Path, generate: dict[str, Any]) -> None:
    text = (root / "README.md").read_text()
    assert text == generate["readme"](text), "call make docs"


def test_every_file_in_the_tree_says_what_it_is(generate: dict[str, Any]) -> None:
    lines = [line.split(maxsplit=1) for line in generate["tree"]().splitlines()]
    assert [line[0] for line in lines if len(line) == 1] == []


def test_pages_name_everything(root: Path) -> None:
    """Independent of how the pages are written."""
    errors, modalities, settings = (
        (root / "docs" / f"{n}.md").read_text() for n in ("errors", "modalities", "settings")
    )
    assert [code for code in CODES if f"`{code}`" not in errors] == []
    assert [key for key, row in MODALITIES.items() if f"`{key}`" not in modalities or row.name not in modalities] == []
    assert [name for name in Settings.model_fields if f"`{PREFIX}{name.upper()}`" not in settings] == []


def test_links_lead_somewhere(root: Path) -> None:
    broken = []
    for page in [root / "README.md", root / "CHANGELOG.md", *root.glob("docs/*.md"), *root.glob("deploy/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("https:") and not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert broken == []


def words_of(node: ast.AST) -> set[str]:
    """Words in an expression, but for arguments, keys, what is compared with, and parts of formatted words."""
    if isinstance(node, ast.Call | ast.Compare | ast.Subscript | ast.JoinedStr):
        return set()
    if isinstance(node, ast.Constant):
        return {node.value} if isinstance(node.value, str) and re.fullmatch(r"[a-z][a-z_0-9]+", node.value) else set()
    return {word for child in ast.iter_child_nodes(node) for word in words_of(child)}


def flags_set(tree: ast.AST) -> set[str]:
    """Words that end up in something called `flags`: assigned, added, appended, passed, or returned by `..._flags`;
    and those of the idiom `("word",) if ... else ()`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any("flags" in ast.unparse(target) for target in targets):
                found |= words_of(node.value)
        elif isinstance(node, ast.Call):
            found |= {word for keyword in node.keywords if keyword.arg == "flags" for word in words_of(keyword.value)}
            if re.fullmatch(r"\w*flags\.(append|extend|add)", ast.unparse(node.func)):
                found |= {word for argument in node.args for word in words_of(argument)}
        elif isinstance(node, ast.IfExp) and all(isinstance(part, ast.Tuple) for part in (node.body, node.orelse)):
            found |= words_of(node.body) | words_of(node.orelse)
        elif isinstance(node, ast.FunctionDef) and "flags" in node.name:
            returned = [part.value for part in ast.walk(node) if isinstance(part, ast.Return) and part.value]
            found |= {word for value in returned for word in words_of(value)}
    return found


def test_every_flag_is_explained(root: Path, folders: list[str]) -> None:
    """Flags that the code sets stand in docs/conventions.md, those of heads in docs/heads.md, and no others."""
    page = (root / "docs/conventions.md").read_text().partition("## QA flags")[2]
    page += (root / "docs/heads.md").read_text().partition("## Flags")[2].partition("## Answers")[0]
    named = set(re.findall(r"^\| `([a-z_0-9]+)` \|", page, re.MULTILINE))
    files = [path for folder in folders if folder != "service" for path in (root / folder).glob("*.py")]
    found = {flag for path in files for flag in flags_set(ast.parse(path.read_text()))}
    assert sorted(found - named) == []
    everything = "".join(path.read_text() for path in files)
    assert [flag for flag in sorted(named) if f'"{flag}"' not in everything] == []
