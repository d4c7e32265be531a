"""The fuzzing tells what is bad, goes on after it, is not misled by a pause, and gives the same inputs for a seed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fuzz import bounds, run
from tests.fuzz.__main__ import main
from tests.fuzz.child import ROOT
from tests.fuzz.run import Limits, Result

BAD = {
    "crash": "SIGSEGV-",
    "abort": "SIGABRT-",
    "hang": "hang-",
    "wait": "stuck-",
    "slow": "slow-",
    "swell": "memory-",
    "ask": "memory-planted.py",
    "untyped": "KeyError-planted.py",
}
"""Planted reader -> what its finding is called at the beginning."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Result]:
    """Of every planted reader, given up after its first death."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "DEATHS", 1)
        patch.setattr(bounds, "SILENT", 4.0)
        names = [f"planted-{name}" for name in (*BAD, "nothing")]
        found = run.run(names, Limits(seconds=20, inputs=60), folder, 2, lambda line: None)
    return {one.reader.removeprefix("planted-"): one for one in found}


@pytest.mark.parametrize("name", BAD)
def test_what_is_bad_is_told(results: dict[str, Result], folder: Path, name: str) -> None:
    result = results[name]
    assert not result.good
    assert [kind for kind in result.findings if not kind.startswith(BAD[name])] == []
    assert result.findings
    assert "FOUND" in result.line()
    found = sorted((folder / f"planted-{name}" / "findings").iterdir())
    assert found
    for one in found:
        assert (one / "part0").read_bytes()[:1] != b"a", "the reader is bad to inputs that begin otherwise"
        assert (one / "why").read_text()


def test_what_is_good_is_not_told(results: dict[str, Result]) -> None:
    """Typed errors are none, and both kinds of answers were met."""
    result = results["nothing"]
    assert result.good, result.line()
    assert (result.inputs, result.errors + result.answers) == (60, 60)
    assert result.errors
    assert result.answers


def test_a_finding_is_found_again(results: dict[str, Result], folder: Path) -> None:
    assert results
    (found, *_) = (folder / "planted-untyped" / "findings").iterdir()
    command = [sys.executable, "-m", "tests.fuzz", "--reader", "planted-untyped", "--repeat", str(found)]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "KeyError" in again.stdout
    good = [*command[:4], "planted-nothing", *command[5:]]
    assert subprocess.run(good, cwd=ROOT, capture_output=True, text=True, check=False).returncode == 0


def test_it_goes_on_after_a_crash(tmp_path: Path) -> None:
    (result,) = run.run(["planted-crash"], Limits(inputs=40), tmp_path, 1, lambda line: None)
    assert result.complete
    assert result.inputs == 40
    assert sum(result.findings.values()) > 1


def test_the_exit_code_and_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--inputs", "40", "--state", str(tmp_path)]
    assert main(["--reader", "planted-nothing", *options]) == 0
    assert "FOUND" not in capsys.readouterr().out
    assert main(["--reader", "planted-nothing", "--reader", "planted-untyped", *options]) == 1
    table = capsys.readouterr().out.partition("\n\n")[2]
    assert "planted-nothing        40 inputs" in table
    assert "FOUND" in table
    assert f"python -m tests.fuzz --reader planted-untyped --repeat {tmp_path}" in table


def test_the_same_seed_gives_the_same_inputs(tmp_path: Path) -> None:
    def kept(seed: int, name: str) -> dict[str, bytes]:
        run.run(["keys"], Limits(inputs=150, seed=seed), tmp_path / name, 1, lambda line: None)
        return {path.name: path.read_bytes() for path in (tmp_path / name / "keys" / "kept").iterdir()}

    one = kept(3, "a")
    assert len(one) > 10
    assert kept(3, "b") == one
    assert kept(4, "c") != one


def test_a_pause_costs_nothing(tmp_path: Path) -> None:
    """Longer than every bound, of the whole group: nothing is found, and the time is used afterwards."""
    command = [sys.executable, "-m", "tests.fuzz", "--reader", "planted-nothing", "--seconds", "1", "--state"]
    program = "from tests.fuzz import bounds; bounds.SILENT = 4.0; from tests.fuzz.__main__ import main; exit(main())"
    command = [sys.executable, "-c", program, *command[3:], str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, text=True)
    board = tmp_path / "planted-nothing" / "board"
    while not board.exists() or not any(board.read_bytes()):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGSTOP)
    time.sleep(6)
    os.killpg(process.pid, signal.SIGCONT)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert " 1 s " in told
