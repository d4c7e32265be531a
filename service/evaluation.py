"""How good is a model on labelled objects: heads on its frozen encoder beside what they must beat, by number of labels.

    collect   labelled objects of files, with the token states of the encoder and of the same encoder untrained
    Trial     trivial model, best rival on the raw inputs, untrained, encoder: with the same labels and test objects

The test part is looked at once, by the metrics. Everything is chosen with the labels that are given.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.models import rivals
from albireo.models.calibration import conformal_quantile
from albireo.models.engine import Embedding, Engine
from albireo.models.head_fitting import Labels, Plan, fit
from albireo.models.head_scores import Scores, scores
from albireo.models.head_splits import groups_of, split
from albireo.models.heads import LEVELS, Answer, Head, Number, Pooling
from albireo.models.token_states import StatesWriter, TokenStates
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.observation import Observation
from albireo.service.core import Core, all_or_each
from albireo.service.fitting import Bar, Matched, Meeting
from albireo.service.predictions import Encoded, encoded, without_labels
from albireo.service.subjects import Subject

TRIVIAL, RIVAL, UNTRAINED, ENCODER = "trivial", "rival", "untrained", "encoder"
CONTENDERS = (TRIVIAL, RIVAL, UNTRAINED, ENCODER)

TEST, VALIDATION = 0.2, 0.15
CALIBRATION = 30
"""Labels that intervals are calibrated on, or 15 % if that is more, or 30 % if that is less; given like the others."""

OUTER, INNER = 1_000_003, 1_000_033
"""Added to the seed of the parts that are dealt around those of a head: another hash, so that they do not overlap."""

BATCH = 64


@dataclass(frozen=True)
class Collected:
    """Labelled objects, each with its token states.

    observations  measurements only
    labels        a row of each object, in the same order
    groups        what may not be in two parts
    states        contender -> token states
    """

    observations: tuple[Observation, ...]
    labels: Labels
    groups: tuple[str, ...]
    states: Mapping[str, TokenStates]
    matched: Matched


@dataclass(frozen=True)
class Run:
    """One contender with so many labels; `failed` says why there are no scores.

    model       what was fitted, target by target
    unanswered  test objects that it says nothing of
    """

    who: str
    labels: int
    model: Mapping[str, str]
    scores: Mapping[str, Scores]
    unanswered: int
    seconds: float
    failed: str | None = None


def collect(
    core: Core,
    batches: Iterable[list[Subject]],
    labels: Labels,
    engines: Mapping[str, Engine],
    folders: Mapping[str, Path],
    group: str,
    bar: Bar,
) -> Collected:
    """Every labelled object of the files, tokenized once; states that are in `folders` already are not computed again.

    engines, folders  contender -> encoder behind the same tokenizers, and where its states are kept
    """
    meeting = Meeting(labels)
    held: dict[str, Observation] = {}
    with ExitStack() as stack:
        writers = {who: stack.enter_context(StatesWriter(folders[who], engine)) for who, engine in engines.items()}
        for subjects in batches:
            fresh = meeting.of(subjects)
            with bar("encoding", len(fresh)) as progress:
                for part in encoded(core.engine, core.inputs, fresh, with_states=False):
                    refused = [_written(writers[who], engine, part) for who, engine in engines.items()]
                    for i, outcome in enumerate(part.outcomes):
                        error = next((one[i] for one in refused if i in one), None)
                        observation = outcome.subject.observation
                        if error is not None:
                            meeting.failed.append(outcome.failed(error.at(file=outcome.subject.file)))
                        elif observation is None:
                            meeting.failed.append(outcome)
                        else:
                            held[observation.id] = without_labels(observation)
                    progress(len(part.outcomes))
    matched = meeting.end()
    row = {name: i for i, name in enumerate(labels.ids)}
    rows = np.array([row[name] for name in held], np.int64)
    columns = {name: values[rows] for name, values in labels.columns.items()}
    states = {who: TokenStates.open(folder) for who, folder in folders.items()}
    facts = {one.facts.id: one.facts for one in states[ENCODER].objects}
    groups = groups_of([facts[name] for name in held], group, columns)
    mine = Labels(tuple(held), columns, labels.sha256, labels.source)
    return Collected(tuple(held.values()), mine, tuple(groups), states, matched)


def _written(writer: StatesWriter, engine: Engine, part: Encoded) -> dict[int, AlbireoError]:
    """Keep the states of a few objects that are not kept already; those that cannot be, by number, and why."""
    new = []
    for i, (outcome, tokens) in enumerate(zip(part.outcomes, part.tokens, strict=True)):
        observation = outcome.subject.observation
        if observation is not None and tokens is not None and observation.id not in writer.written:
            new.append((i, observation, tokens))
    results = all_or_each(lambda some: engine.embed([tokens for _, _, tokens in some], "tokens"), new)
    refused: dict[int, AlbireoError] = {}
    for (i, observation, _), result in zip(new, results, strict=True):
        try:
            if isinstance(result, AlbireoError):
                raise result
            writer.add(observation, result)
        except AlbireoError as error:
            refused[i] = error
    return refused


@dataclass(frozen=True)
class Trial:
    """Objects whose labels are given, in the order in which they are, and those of the test.

    plan      task, targets, units, network, group and seed of every head
    poolings  of the heads that are tried; the one with the least loss on its validation part is taken
    """

    data: Collected
    plan: Plan
    poolings: tuple[Pooling, ...]

    @cached_property
    def test(self) -> NDArray[np.int64]:
        parts = split(self.data.groups, (1 - TEST, 0, 0, TEST), self.plan.seed + OUTER)
        return np.flatnonzero((parts == 3) & self._labelled)

    @cached_property
    def pool(self) -> NDArray[np.int64]:
        """In a random order: fewer labels are always some of more."""
        parts = split(self.data.groups, (1 - TEST, 0, 0, TEST), self.plan.seed + OUTER)
        at = np.flatnonzero((parts == 0) & self._labelled)
        return np.random.default_rng(self.plan.seed).permutation(at)

    @cached_property
    def _labelled(self) -> NDArray[np.bool_]:
        """(n,) objects with a label of any target."""
        return np.asarray(np.any([_there(self.data.labels.columns[target]) for target in self.plan.targets], axis=0))

    @cached_property
    def truth(self) -> dict[str, NDArray[Any]]:
        """Target as a head names it -> labels of the test objects."""
        columns = self.data.labels.columns
        if self.plan.task == "redshift":
            return {"redshift": columns[self.plan.targets[0]][self.test]}
        return {target: columns[target][self.test] for target in self.plan.targets}

    @cached_property
    def features(self) -> NDArray[np.float64]:
        """Raw inputs (n, F) of every object."""
        table, _ = rivals.features(self.data.observations)
        return table

    def sizes(self, asked: Sequence[int | None]) -> list[int]:
        """Numbers of labels, increasing, of which there are so many; None is all of them."""
        return sorted({min(size or len(self.pool), len(self.pool)) for size in asked})

    def run(self, who: str, size: int) -> Run:
        """One contender with the first `size` labels of the pool."""
        began = time.perf_counter()
        model: dict[str, str] = {}
        answers: list[Answer | None] = []
        failed = None
        try:
            model, answers = self._heads(who, size) if who in self.data.states else self._rival(who, size)
        except BadInput as error:
            if error.code == "label_given":
                raise  # Nothing that anybody said of it would mean anything.
            failed = f"{error.code}: {error.message}"
        there = [i for i, one in enumerate(answers) if one is not None]
        said = [one for one in answers if one is not None]
        truth = {target: labels[there] for target, labels in self.truth.items()}
        groups = [self.data.groups[self.test[i]] for i in there]
        found = scores(self.plan.task, said, truth, groups, self.plan.seed) if said else {}
        unanswered = len(self.test) - len(there)
        return Run(who, size, model, found, unanswered, round(time.perf_counter() - began, 1), failed)

    def _heads(self, who: str, size: int) -> tuple[dict[str, str], list[Answer | None]]:
        """The best head on the states of an encoder."""
        data, given = self.data, self.pool[:size]
        columns = {name: values[given] for name, values in data.labels.columns.items()}
        ids = tuple(data.labels.ids[i] for i in given)
        content = json.dumps([ids, {name: values.tolist() for name, values in columns.items()}])
        labels = Labels(ids, columns, hashlib.sha256(content.encode()).hexdigest(), data.labels.source)
        calibration = min(max(0.15, CALIBRATION / size), 0.3)
        plan = replace(self.plan, parts=(1 - VALIDATION - calibration, VALIDATION, calibration, 0.0))
        states = data.states[who]
        heads = [fit(states, labels, replace(plan, pooling=pooling)) for pooling in self.poolings]
        head = min(heads, key=lambda one: float(one.card.plan["validation_loss"]))
        model = dict.fromkeys(self.truth, f"{head.card.pooling}, {head.card.network}")
        return model, list(self._asked(head, states))

    def _asked(self, head: Head, states: TokenStates) -> Iterator[Answer | None]:
        place = {name: i for i, name in enumerate(states.ids)}

        def said(some: list[int]) -> list[Answer]:
            rows = [states.rows(place[self.data.labels.ids[i]]) for i in some]
            embeddings = [Embedding("tokens", values, keys, len(keys)) for values, keys in rows]
            return head.predict(embeddings, [self.data.observations[i] for i in some])

        for start in range(0, len(self.test), BATCH):
            for answer in all_or_each(said, self.test[start : start + BATCH].tolist()):
                yield None if isinstance(answer, AlbireoError) else answer

    def _rival(self, who: str, size: int) -> tuple[dict[str, str], list[Answer | None]]:
        """The trivial model, or the best of the others on raw inputs, target by target."""
        given = self.pool[:size]
        parts = split([self.data.groups[i] for i in given], (1 - VALIDATION, VALIDATION, 0, 0), self.plan.seed + INNER)
        model, by_target = {}, []
        for name, target in zip(self.truth, self.plan.targets, strict=True):
            labels = self.data.labels.columns[target]
            known = _there(labels[given])
            redshift = self.plan.task == "redshift"
            task: rivals.Task = "classification" if self.plan.task == "classification" else "regression"
            if who == TRIVIAL:
                rival = rivals.trivial(task, labels[given[known]], redshift)
            else:
                learn, choose = given[known & (parts == 0)], given[known & (parts == 1)]
                if not len(choose) or len(learn) < 2:
                    raise BadInput("labels_too_few", f"{len(learn)} to learn, {len(choose)} to choose", field=target)
                validation = self.features[choose], labels[choose]
                rival = rivals.best(
                    task, self.features[learn], labels[learn], validation, self.plan.seed, redshift=redshift
                )
            model[name] = rival.name
            said = rival.predict(self.features[self.test] if who == RIVAL else np.empty((len(self.test), 0)))
            by_target.append(_classes(rival, said) if rival.classes else _numbers(name, rival, said, redshift))
        numbers = [Answer(tuple(x for one in row for x in one.numbers), row[0].classes, None, (), (), math.nan)
                   for row in zip(*by_target, strict=True)]  # fmt: skip
        return model, list(numbers)


def _there(labels: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray(labels != "" if labels.dtype.kind in "UO" else np.isfinite(labels.astype(np.float64)))


def _classes(rival: rivals.Rival, said: NDArray[np.float64]) -> list[Answer]:
    out = []
    for row in said:
        order = np.argsort(-row, kind="stable")
        out.append(Answer((), {rival.classes[k]: float(row[k]) for k in order}, None, (), (), math.nan))
    return out


def _numbers(name: str, rival: rivals.Rival, said: NDArray[np.float64], redshift: bool) -> list[Answer]:
    """Values with split-conformal intervals, of one width for all; of redshifts it grows with 1 + z."""
    half = {level: conformal_quantile(rival.off, level) for level in LEVELS}
    out = []
    for value in said.tolist():
        scale = 1 + value if redshift else 1.0
        intervals = {level: (value - width * scale, value + width * scale) for level, width in half.items()}
        out.append(Answer((Number(name, "", value, intervals),), {}, None, (), (), math.nan))
    return out
