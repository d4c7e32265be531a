"""Every reader for a second: what it is given is read, and changes of it give typed errors or answers."""

from __future__ import annotations

import ast
from contextlib import suppress
from pathlib import Path

import pytest

from albireo.observations.errors import AlbireoError
from albireo.observations.reading import FORMATS, detect
from albireo.observations.source import Source
from tests.fuzz.child import ROOT
from tests.fuzz.readers import READERS
from tests.fuzz.run import Limits, Result, run

NAMES = [reader.name for reader in READERS]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """Without real files, so that it is the same everywhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ALBIREO_TEST_DATA", raising=False)
        found = run(NAMES, Limits(seconds=1.0, inputs=200), tmp_path_factory.mktemp("fuzz"), 2, lambda line: None)
    return {one.reader: one for one in found}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_typed_errors(results: dict[str, Result], name: str) -> None:
    result = results[name]
    assert result.good, result.line()
    assert result.inputs >= 10
    assert result.errors, "no input was changed so that it could not be read"
    assert result.answers or name == "bombs", "no input was read"
    assert result.ways > 4


def test_every_format_is_read_by_a_reader() -> None:
    """By the seeds: a format that is added needs some."""
    met = set()
    for reader in READERS:
        if reader.read.__name__ == "files":
            for parts in reader.seeds():
                for content in parts[1:]:
                    with suppress(AlbireoError):  # bombs
                        met.add(detect(Source("a", content)).name)
    assert {row.name for row in FORMATS} - met - {"png"} == set()


def test_the_makefile_calls_it() -> None:
    text = (ROOT / "Makefile").read_text()
    assert "$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)" in text


def test_it_is_no_part_of_the_package() -> None:
    """Nothing that is installed imports the fuzzing."""
    for folder in ("observations", "tokenizers", "models", "index", "service"):
        for path in sorted(Path(ROOT / folder).rglob("*.py")):
            imported = [
                node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)
            ]
            assert not any(module and module.startswith("tests") for module in imported), path
