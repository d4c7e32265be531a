"""What must start fast imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

NETWORK = ("torch", "faiss", "safetensors")
SERVER = ("fastapi", "uvicorn", "pydantic", "typer")
SCIENCE = ("scipy", "astropy", "pyarrow", "fastavro", "matplotlib", "sklearn", "sncosmo", "specutils")
UNASKED = ("starlette", "grpc", "fastavro", "matplotlib", "sklearn", "pandas", "specutils", "sncosmo", "qp")


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("albireo.observations.errors", (*NETWORK, *SERVER, *SCIENCE)),
        ("albireo.observations.reading", (*NETWORK, *SERVER, "matplotlib", "sklearn", "sncosmo", "specutils")),
        ("albireo.index.collection", (*NETWORK, *SERVER, *SCIENCE)),
        ("albireo.tokenizers.checkpoint", (*NETWORK, *SERVER, *SCIENCE)),
        ("albireo.tokenizers.hub", (*NETWORK, *SERVER, *SCIENCE, "huggingface_hub")),
        ("albireo.service.settings", (*NETWORK, *SCIENCE)),
        ("albireo.service.client", (*NETWORK, *SERVER, *UNASKED)),
        ("albireo.service.cli", (*NETWORK, *SCIENCE, "fastapi", "uvicorn")),
    ],
)
def test_importing(module: str, absent: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert sorted(set(run.stdout.split()) & set(absent)) == []


def test_help_within_half_a_second() -> None:
    command = [str(Path(sys.executable).parent / "albireo"), "--help"]
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - began)
    assert "validate" in run.stdout
    assert min(seconds) < 0.5, seconds
