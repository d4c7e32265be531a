"""A tiny checkpoint of the released package, for what the benchmarks do and not for how long it takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.cases import Options
from benchmarks.checkpoints import QUICK, make


@pytest.fixture(scope="session")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    work: Path = tmp_path_factory.mktemp("benchmarks")
    return Options(make(work, QUICK), batch=2, stream=6, files=14, work=work)


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """What is tiny is done sooner by one thread than by several that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
