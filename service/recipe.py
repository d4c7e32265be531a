"""What a checkpoint answers to the bundled samples, kept beside its weights in recipe.json, and whether it still does.

    python -m albireo.service.recipe FOLDER     writes recipe.json and known_answer.json of a checkpoint

The file has the tokens of every sample and of the probe of readiness.py, the mean embedding of every sample, what the
shipped heads say of it, and the figures of verify_checkpoint_figures.py. The embedding of the probe is in
known_answer.json, which readiness reads.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.models.engine import Tokens
from albireo.models.heads import Answer
from albireo.observations.errors import BadCheckpoint
from albireo.observations.spaces import same_space
from albireo.service import predictions, readiness
from albireo.service.shelf import BUILT_IN, Shelf, Shelved
from albireo.service.subjects import Subject
from albireo.service.verify_checkpoint import Check, Evidence, Measured, NotPossible
from albireo.service.verify_checkpoint_figures import FIGURES

RECIPE = "recipe.json"
GROUP, SOURCE = "its own answers", f"its {RECIPE}"
MAKE = "python -m albireo.service.recipe FOLDER"

FORGIVEN = 1e-3
"""Share of tokens that another processor may round the other way."""

NEAR = 0.05
"""How far a number of a head may be from the recorded one, as a share of its 68 % interval; a probability as it is."""

SHOWN = 3

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Recipe:
    """What was recorded.

    space       of the mean embeddings
    tokens      id -> token key -> tokens
    embeddings  id -> base64 of little-endian float32 (D,)
    heads       name -> {"version": ..., "answers": id -> what it said, see `told`, or None}
    figures     name -> number
    """

    space: str
    tokens: Mapping[str, Mapping[str, list[int]]]
    embeddings: Mapping[str, str]
    heads: Mapping[str, Mapping[str, Any]]
    figures: Mapping[str, float]

    @classmethod
    def read(cls, folder: Path) -> Recipe | None:
        """The recipe kept in a checkpoint folder; None if there is none. BadCheckpoint if it is damaged."""
        path = folder / RECIPE
        if not path.is_file():
            return None
        try:
            recipe = cls(**json.loads(path.read_text()))
            _ = recipe.vectors
            return recipe
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise BadCheckpoint("checkpoint_invalid", f"recipe: {error}", file=str(path), fix=MAKE) from error

    @classmethod
    def found(cls, folder: Path) -> Recipe | BadCheckpoint | None:
        """The recipe, or why it cannot be read."""
        try:
            return cls.read(folder)
        except BadCheckpoint as error:
            return error

    def write(self, folder: Path) -> None:
        """Keep it in a checkpoint folder; a list of numbers is one line."""
        text = json.dumps(asdict(self), indent=1)
        (folder / RECIPE).write_text(_short_lists(text) + "\n")

    @cached_property
    def vectors(self) -> dict[str, Floats]:
        """Id -> mean embedding (D,)."""
        return {name: np.frombuffer(base64.b64decode(text), "<f4") for name, text in self.embeddings.items()}


def record(evidence: Evidence) -> Recipe:
    """What the checkpoint answers now. Raises what keeps it from answering; figures that cannot be had are left out."""
    figures: dict[str, float] = {}
    for figure in FIGURES:
        try:
            figures[figure.name] = round(figure.compute(evidence)[0], 4)
        except NotPossible:
            continue
    vectors = evidence.sample_means
    return Recipe(
        evidence.engine.space("mean"),
        {name: {key: ids.tolist() for key, ids in one.ids.items()} for name, one in _tokens(evidence).items()},
        {name: base64.b64encode(values.astype("<f4").tobytes()).decode() for name, values in vectors.items()},
        _heads(evidence),
        figures,
    )


def checks(recipe: Recipe | BadCheckpoint | None) -> tuple[Check, ...]:
    """Whether a checkpoint still answers as recorded; of one without a recipe, that it has none."""
    if not isinstance(recipe, Recipe):
        reason = recipe or NotPossible("it ships none")
        return (Check(GROUP, "recipe", f"a {RECIPE} beside its weights", "optional", lambda evidence: _raise(reason)),)

    def of(measure: Callable[[Recipe, Evidence], Measured]) -> Callable[[Evidence], Measured]:
        return lambda evidence: measure(recipe, evidence)

    n = sum(len(ids) for one in recipe.tokens.values() for ids in one.values())
    return (
        Check(GROUP, "identity", f"space {recipe.space}", SOURCE, of(identity)),
        Check(GROUP, "known answer", "the embedding of the probe", "its known_answer.json", known_answer),
        Check(GROUP, "tokens", f"{n} of {len(recipe.tokens)} objects, 1 in 1,000 forgiven", SOURCE, of(tokens)),
        Check(GROUP, "embeddings", f"within {readiness.TOLERANCE:g} of {len(recipe.embeddings)}", SOURCE,
              of(embeddings)),
        Check(GROUP, "neighbours", "the nearest of each sample", SOURCE, of(neighbours)),
        Check(GROUP, "heads", f"what {', '.join(recipe.heads) or 'no head'} said of each sample", SOURCE, of(heads)),
    )  # fmt: skip


def _raise(reason: Exception) -> Measured:
    raise reason


def identity(recipe: Recipe, evidence: Evidence) -> Measured:
    space = evidence.engine.space("mean")
    return Measured(same_space(recipe.space, space), f"space {space}")


def known_answer(evidence: Evidence) -> Measured:
    known = readiness.KnownAnswer.read(evidence.folder)
    if known is None:
        raise NotPossible(f"there is no {readiness.KNOWN_ANSWER}")
    now = readiness.answer(evidence.engine).values
    off = _distance(now, known.values)
    return Measured(
        off <= known.tolerance, f"off by {off:.2g}", off, f"the embedding of the probe within {known.tolerance:g}"
    )


def tokens(recipe: Recipe, evidence: Evidence) -> Measured:
    now = _tokens(evidence)
    differing: dict[str, int] = {}
    total = 0
    for name, by_key in recipe.tokens.items():
        for key, wanted in by_key.items():
            found = now[name].ids.get(key, np.zeros(0, np.int64)) if name in now else np.zeros(0, np.int64)
            wrong = len(wanted) if len(found) != len(wanted) else int((found != np.array(wanted)).sum())
            total += len(wanted)
            if wrong:
                differing[key] = differing.get(key, 0) + wrong
    wrong = sum(differing.values())
    which = ", ".join(f"{key} {count}" for key, count in list(differing.items())[:SHOWN])
    return Measured(wrong <= FORGIVEN * total, f"{wrong} differ" + f": {which}" * bool(which), float(wrong))


def embeddings(recipe: Recipe, evidence: Evidence) -> Measured:
    now, known = evidence.sample_means, recipe.vectors
    missing = [name for name in known if name not in now]
    off = {name: _distance(now[name], values) for name, values in known.items() if name in now}
    if missing or not off:
        return Measured(False, f"{len(missing)} samples have none")
    worst = max(off, key=lambda name: off[name])
    return Measured(off[worst] <= readiness.TOLERANCE, f"off by {off[worst]:.2g} at most ({worst})", off[worst])


def neighbours(recipe: Recipe, evidence: Evidence) -> Measured:
    now, known = evidence.sample_means, recipe.vectors
    names = [name for name in known if name in now]
    if len(names) < len(known):
        return Measured(False, f"{len(known) - len(names)} samples have no embedding")
    before, after = (_scores(np.stack([one[name] for name in names])) for one in (known, now))
    # Of two neighbours that were equally near, within what embeddings may be off, either may be the nearest now.
    wanted = before.max(axis=1) - before[np.arange(len(names)), after.argmax(axis=1)]
    wrong = [name for name, lost in zip(names, wanted, strict=True) if lost > readiness.TOLERANCE]
    good = len(names) - len(wrong)
    return Measured(not wrong, f"{good} of {len(names)}" + f"; not of {', '.join(wrong[:SHOWN])}" * bool(wrong))


def heads(recipe: Recipe, evidence: Evidence) -> Measured:
    if not recipe.heads:
        raise NotPossible("it ships no head and predicts no redshift")
    now = _heads(evidence)
    wrong = []
    n = 0
    for name, known in recipe.heads.items():
        if name not in now:
            wrong.append(f"{name}: there is no such head")
            continue
        if known["version"] != now[name]["version"]:
            wrong.append(f"{name}: another file")
        for who, said in known["answers"].items():
            n += 1
            if not _agree(said, now[name]["answers"].get(who)):
                wrong.append(f"{name} of {who}")
    wrong += [f"{name}: not recorded" for name in now if name not in recipe.heads]
    return Measured(not wrong, f"{n} answers" + f"; not {', '.join(wrong[:SHOWN])}" * bool(wrong), float(len(wrong)))


def told(answer: Answer) -> dict[str, Any]:
    """What is recorded of an answer: class and its probability, and of numbers the value and the ends of 68 %."""
    best = next(iter(answer.classes), None)
    numbers = {
        one.name: [round(float(value), 6) for value in (one.value, *next(iter(one.intervals.values())))]
        for one in answer.numbers
    }
    return {"class": best, "probability": round(answer.classes[best], 6) if best else None, "numbers": numbers}


def _agree(known: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> bool:
    if known is None or now is None:
        return known is now
    if known["numbers"].keys() != now["numbers"].keys():
        return False
    for name, (value, low, high) in known["numbers"].items():
        if abs(now["numbers"][name][0] - value) > NEAR * (high - low) + 1e-6:
            return False
    if known["class"] is None or now["class"] is None:
        return bool(known["class"] is now["class"])
    # Of two classes that were equally probable, either may be the first now.
    even = known["probability"] < 0.5 + NEAR
    return bool(known["class"] == now["class"] or even) and abs(known["probability"] - now["probability"]) <= NEAR


def _tokens(evidence: Evidence) -> dict[str, Tokens]:
    """Of the probe and of every sample that has any."""
    (probe,) = evidence.engine.tokenize([readiness.probe(evidence.engine.inputs)])
    if not isinstance(probe, Tokens):
        raise probe
    samples = {name: one for name, one in evidence.sample_outcomes.items() if isinstance(one, Tokens)}
    return {readiness.PROBE: probe, **samples}


def _heads(evidence: Evidence) -> dict[str, dict[str, Any]]:
    """What the heads in the checkpoint's own folder, and its token of redshift, say of the samples."""
    shelf = Shelf({"shipped": evidence.folder / "heads"})
    names = [name for name in shelf.names() if name != BUILT_IN or BUILT_IN in evidence.engine.outputs]
    shelved: dict[str, Shelved] = {name: shelf.open(name) for name in names}
    if not shelved:
        return {}
    engine = evidence.engine
    subjects = [Subject(one.id, None, one) for one in evidence.samples]
    said = predictions.predict(engine, engine.inputs, subjects, shelved, None, lambda done: None)
    out: dict[str, dict[str, Any]] = {name: {"version": one.version, "answers": {}} for name, one in shelved.items()}
    for one in said.predictions:
        for name in names:
            answer = (one.answer or {}).get(name)
            out[name]["answers"][str(one.outcome.subject.id)] = told(answer) if isinstance(answer, Answer) else None
    return out


def _distance(now: Floats, known: Floats) -> float:
    """|now - known| / |known|; infinite where the shapes differ."""
    if now.shape != known.shape:
        return float("inf")
    return float(np.linalg.norm(now.astype(np.float64) - known) / np.linalg.norm(known))


def _scores(vectors: Floats) -> NDArray[np.float64]:
    """Cosines (n, n); an object is not its own neighbour."""
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors, axis=1, keepdims=True)
    score = unit @ unit.T
    np.fill_diagonal(score, -np.inf)
    out: NDArray[np.float64] = score
    return out


def _short_lists(text: str) -> str:
    """Indented JSON with every list of numbers on one line."""
    import re

    return re.sub(r"\[\s+([^\[\]{}\"]*?)\s+\]", lambda found: "[" + re.sub(r",\s+", ", ", found[1]) + "]", text)


def main(folder: str) -> None:
    """Record what the checkpoint in `folder` answers now, in the folder."""
    evidence = Evidence(Path(folder), package=False)
    readiness.answer(evidence.engine).write(evidence.folder)
    record(evidence).write(evidence.folder)


if __name__ == "__main__":
    main(sys.argv[1])
