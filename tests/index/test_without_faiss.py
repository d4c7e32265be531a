"""Where FAISS is not installed, everything but search works, and the error says what to install."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from pathlib import Path

import numpy as np

from albireo.index.collection import Collections, StoredObject
from albireo.observations.errors import Unavailable

assert "faiss" not in sys.modules
sys.modules["faiss"] = None  # as if it were not installed
collection = Collections(Path(sys.argv[1])).create("sky", "space", 2)
rows = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
assert collection.upsert([StoredObject(str(i), row) for i, row in enumerate(rows)]) == 100
try:
    collection.search(rows[:1], 1, space="space")
except Unavailable as error:
    print(error)
"""


def test_the_error_names_the_extra(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "c.sqlite")], capture_output=True, text=True, check=True
    )
    assert "dependency_missing" in run.stdout
    assert 'pip install "albireo[cpu]"' in run.stdout
