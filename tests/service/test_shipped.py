"""The checkpoint in the package answers as it did where it was made."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from albireo.models.torch_engine import TorchEngine
from albireo.service.core import Core
from albireo.service.readiness import KnownAnswer, Readiness, answer
from albireo.tokenizers.checkpoint import MINI

MAKE = "make it with: python -m albireo.service.readiness models/albireo-mini"


def test_the_known_answer_of_the_shipped_checkpoint(core: Core, tmp_path: Path) -> None:
    known = KnownAnswer.read(MINI)
    assert known is not None, MAKE
    engine = TorchEngine.open(MINI)
    assert known.space == engine.space("mean"), MAKE
    now = answer(engine)
    assert np.linalg.norm(now.values - known.values) <= known.tolerance * np.linalg.norm(known.values)
    live = Core(lambda: engine, lambda: core.collections)
    assert Readiness(live, tmp_path, lambda: known, wait_seconds=60.0).report().ready
