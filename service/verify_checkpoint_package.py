"""The same tokens, states and logits as the released package computes on the same files, where it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from albireo.models.engine import Tokens
from albireo.observations.modalities import AION_KEYS, MODALITIES
from albireo.observations.observation import Observation, Payload
from albireo.service.readiness import probe
from albireo.service.verify_checkpoint import Check, Evidence, Measured, NotPossible
from albireo.tokenizers.preprocessing import AION_1

if TYPE_CHECKING:
    from albireo.models.aion_package import AionPackage

GROUP = "the released package"
SOURCE = "polymathic-aion, on the same files and inputs"
INSTALL = "polymathic-aion is not installed: left out (python -m pip install polymathic-aion==0.0.2)"

SEEN = 4
"""Bundled samples that both sides tokenize and embed, beside the probe and the first object with HSC data."""

EXACT = 1e-4
"""Largest rms difference in float32, over the rms distance of objects from their mean."""

FORGIVEN = 1e-4
"""Share of tokens that may differ, by the rounding of a value at the edge of a cell."""

SHOWN = 3


def tokens(evidence: Evidence) -> Measured:
    package, engine = _package(evidence), evidence.engine
    differing: dict[str, int] = {}
    total = 0
    for key, payload in _payloads(evidence):
        ours = engine.tokenize([Observation("1", {key: payload})])[0]
        if not isinstance(ours, Tokens):
            raise ours
        theirs = package.tokens(key, payload)
        wrong = len(theirs) if len(theirs) != len(ours.ids[key]) else int((theirs != ours.ids[key]).sum())
        total += len(theirs)
        if wrong:
            differing[key] = differing.get(key, 0) + wrong
    wrong = sum(differing.values())
    which = ", ".join(f"{key} {count}" for key, count in list(differing.items())[:SHOWN])
    text = f"{wrong} of {total} differ, of {len(engine.inputs)} modalities" + f": {which}" * bool(which)
    return Measured(wrong <= max(1, FORGIVEN * total), text, float(wrong))


def states(evidence: Evidence) -> Measured:
    package = _package(evidence)
    given = _objects(evidence)
    pairs = [
        (one.values.mean(axis=0), package.states(tokens).mean(axis=0))
        for tokens, one in zip(given, evidence.engine.embed(given, "tokens"), strict=True)
    ]
    return _compared(*zip(*pairs, strict=True))


def logits(evidence: Evidence) -> Measured:
    package, engine = _package(evidence), evidence.engine
    target = "tok_z" if "tok_z" in engine.outputs else next(iter(engine.outputs))
    given = [Tokens({key: ids for key, ids in one.ids.items() if key != target}) for one in _objects(evidence)]
    ours = engine.logits(given, [target])
    pairs = [(mine[target].ravel(), package.logits(one, [target])[target].ravel())
             for one, mine in zip(given, ours, strict=True)]  # fmt: skip
    return _compared(*zip(*pairs, strict=True))


def _compared(ours: tuple[NDArray[np.float32], ...], theirs: tuple[NDArray[np.float32], ...]) -> Measured:
    """(rms difference over the rms distance of objects from their mean)."""
    a, b = np.stack(ours).astype(np.float64), np.stack(theirs).astype(np.float64)
    spread = float(np.sqrt(((b - b.mean(axis=0)) ** 2).mean()))
    if not spread > 1e-3 * float(np.sqrt((b**2).mean())):
        return Measured(None, "all objects look alike to it: agreement would prove nothing")
    error = float(np.sqrt(((a - b) ** 2).mean())) / spread
    return Measured(error <= EXACT, f"{error:.1e} of {len(b)} objects", error)


def _package(evidence: Evidence) -> AionPackage:
    from albireo.models.aion_package import AionPackage, installed  # torch takes seconds to load

    if not evidence.package:
        raise NotPossible("left out, as asked")
    if installed() is None:
        raise NotPossible(INSTALL)
    checkpoint = evidence.checkpoint
    if checkpoint.preprocessing != AION_1:
        raise NotPossible(f"the package knows no preprocessing {checkpoint.preprocessing}")
    if missing := [key for key in checkpoint.readable if key not in checkpoint.inputs]:
        raise NotPossible(f"{len(missing)} codecs were not pulled: the package has to have all")
    if beyond := [key for key in checkpoint.inputs if key not in AION_KEYS]:
        raise NotPossible(f"the package does not know {MODALITIES[beyond[0]].name}")
    if evidence.oracle is None:
        evidence.oracle = AionPackage(evidence.folder)
    return cast("AionPackage", evidence.oracle)


def _payloads(evidence: Evidence) -> Iterator[tuple[str, Payload]]:
    """Measurements of a few objects, and one of every modality."""
    hsc = [one for one in evidence.objects if "tok_image_hsc" in one.data]
    for one in (*evidence.samples[:SEEN], *hsc[:1], probe(evidence.engine.inputs)):
        yield from one.data.items()


def _objects(evidence: Evidence) -> list[Tokens]:
    """Tokens of a few objects."""
    found = [one for one in evidence.sample_outcomes.values() if isinstance(one, Tokens)][:SEEN]
    if len(found) < 2:
        raise NotPossible("fewer than two samples have tokens")
    return found


ROWS = (
    Check(GROUP, "tokens", f"the same; {FORGIVEN:g} of them forgiven, at edges of cells", SOURCE, tokens, of_aion=True),
    Check(GROUP, "states", f"the same within {EXACT:g} of what sets objects apart", SOURCE, states, of_aion=True),
    Check(GROUP, "logits", f"of a redshift the same within {EXACT:g}", SOURCE, logits, of_aion=True),
)
