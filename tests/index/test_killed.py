"""A writer killed at any moment: everything it acknowledged is there, and nothing is there in part."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from albireo.index.collection import Collections

WRITER = """
import sys
from pathlib import Path

import numpy as np

from albireo.index.collection import Collections, StoredObject

collection = Collections(Path(sys.argv[1])).create("sky", "space", 16)
for batch in range(100_000):
    vectors = np.random.default_rng(batch).normal(size=(7, 16)).astype(np.float32)
    collection.upsert([StoredObject(f"{batch}-{i}", vector) for i, vector in enumerate(vectors)])
    print(batch, flush=True)
"""


@pytest.mark.parametrize("acknowledged", [1, 17, 60])
def test_kill_a_writer(tmp_path: Path, acknowledged: int) -> None:
    file = tmp_path / "c.sqlite"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(file)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    for _ in range(acknowledged):
        writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    last = [acknowledged - 1, *(int(line) for line in writer.stdout)][-1]
    assert writer.wait() == -signal.SIGKILL
    collection = Collections(file).get("sky")
    n_batches, rest = divmod(collection.count, 7)
    assert rest == 0
    assert n_batches in (last + 1, last + 2)  # the one being written may be whole, unacknowledged
    for batch in range(last + 1):
        vectors = np.random.default_rng(batch).normal(size=(7, 16)).astype(np.float32)
        found = collection.fetch([f"{batch}-{i}" for i in range(7)])
        assert np.stack([stored.vector for stored in found]).tobytes() == vectors.tobytes()
    assert collection.upsert(found) == 7
