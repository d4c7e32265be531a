"""Fixtures shared by all tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

Interpret = Callable[[str, Mapping[str, tuple[str, tuple[Any, ...]]]], dict[str, Any]]
Compile = Callable[[str, Sequence[tuple[str, Mapping[str, str], Mapping[str, int]]]], list[int]]

INTERPRET = """
import sys
from importlib import import_module
import torch
module, calls, results = sys.argv[1:]
kernels = import_module(module)
with torch.inference_mode():
    torch.save({case: getattr(kernels, name)(*args) for case, (name, args) in torch.load(calls).items()}, results)
"""

COMPILE = """
import json, sys
from importlib import import_module
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
sizes = []
for name, types, constants in json.loads(sys.argv[2]):
    kernel = getattr(import_module(sys.argv[1]), name)
    assert set(kernel.arg_names) == set(types) | set(constants), (name, kernel.arg_names)
    types = {arg: types.get(arg, "constexpr") for arg in kernel.arg_names}
    constants = {(kernel.arg_names.index(arg),): value for arg, value in constants.items()}
    for capability in (75, 90):
        built = triton.compile(ASTSource(kernel, types, constants), target=GPUTarget("cuda", capability, 32))
        sizes.append(len(built.asm["cubin"]))
print(json.dumps(sizes))
"""


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with real survey files; its absence is a failure, never a skip."""
    folder = os.environ.get("ALBIREO_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.fail("set ALBIREO_TEST_DATA to the folder with the real survey files (raw/ and eval/)")
    return Path(folder)


@pytest.fixture(scope="session")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> Interpret:
    """(module, case -> (launcher, arguments)) -> case -> result: Triton's interpreter runs the kernels on a CPU.

    In a process of its own, because Triton decides when it is first imported whether it interprets.
    """

    def run(module: str, calls: Mapping[str, tuple[str, tuple[Any, ...]]]) -> dict[str, Any]:
        import torch

        folder = tmp_path_factory.mktemp("interpreted")
        torch.save(dict(calls), folder / "calls.pt")
        _python(INTERPRET, module, str(folder / "calls.pt"), str(folder / "results.pt"), TRITON_INTERPRET="1")
        results: dict[str, Any] = torch.load(folder / "results.pt")
        return results

    return run


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """(module, (kernel, types of arguments, compile-time constants) ...) -> sizes of the machine code in bytes.

    For compute capabilities 7.5 and 9.0, without a GPU and without what an earlier run has left in a cache.
    """

    def run(module: str, kernels: Sequence[tuple[str, Mapping[str, str], Mapping[str, int]]]) -> list[int]:
        cache = str(tmp_path_factory.mktemp("compiled"))
        printed = _python(COMPILE, module, json.dumps(kernels), TRITON_INTERPRET="0", TRITON_CACHE_DIR=cache)
        sizes: list[int] = json.loads(printed)
        return sizes

    return run


def _python(program: str, *args: str, **environment: str) -> str:
    command = [sys.executable, "-c", program, *args]
    run = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout
