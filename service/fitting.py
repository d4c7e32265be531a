"""Objects and their labels brought together: token states to fit a head on, answers to judge one by.

gather   token states of the labelled objects of files, on disk
judge    what a head says of the labelled objects of files, beside their labels
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.models.applicability import Facts
from albireo.models.head_fitting import Labels
from albireo.models.head_scores import Scores, scores
from albireo.models.head_splits import PARTS, groups_of, split
from albireo.models.heads import Answer, Card, Task
from albireo.models.token_states import StatesWriter, TokenStates, folder_of
from albireo.observations.errors import BadInput
from albireo.observations.options import ReadOptions
from albireo.service.core import Core, Outcome, selected
from albireo.service.predictions import encoded
from albireo.service.shelf import Shelved
from albireo.service.subjects import Subject
from albireo.tokenizers.checkpoint import sha256_of

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Opens a progress bar of a name and a length."""


@dataclass(frozen=True)
class Matched:
    """What became of objects and labels on their way to each other.

    failed          objects that could not be read or encoded
    without_label   ids of objects that the table has no row for
    without_object  ids of rows that no object has
    """

    failed: tuple[Outcome, ...]
    without_label: tuple[str, ...]
    without_object: tuple[str, ...]

    def as_data(self) -> dict[str, Any]:
        """For an answer: counts, and the ids."""
        return {
            "objects_without_label": list(self.without_label),
            "labels_without_object": list(self.without_object),
            "n_failed": len(self.failed),
        }


class Meeting:
    """Objects that have a label, batch by batch; each object once, and none is lost."""

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.labelled = frozenset(labels.ids)
        self.files: dict[str, str | None] = {}
        self.failed: list[Outcome] = []
        self.without_label: list[str] = []

    def of(self, subjects: Sequence[Subject]) -> list[Subject]:
        """The labelled among the subjects. BadInput id_duplicate if an id was there before."""
        good = []
        for subject in subjects:
            if subject.error is not None or subject.id is None:
                self.failed.append(Outcome(subject))
                continue
            if subject.id in self.files:
                raise BadInput(
                    "id_duplicate",
                    f"object {subject.id!r} is in {self.files[subject.id]} and in {subject.file}",
                    file=subject.file,
                    field="id",
                    fix="give each object once, or with --join: objects of the same id are one",
                )
            self.files[subject.id] = subject.file
            if subject.id in self.labelled:
                good.append(subject)
            else:
                self.without_label.append(subject.id)
        return good

    def end(self) -> Matched:
        """What was missed. BadInput value_missing if no label has an object at all; if none was read, why not."""
        lost = tuple(name for name in self.labels.ids if name not in self.files)
        if len(lost) == len(self.labels.ids):
            if not self.files and self.failed and (error := self.failed[0].error) is not None:
                raise error
            raise BadInput(
                "value_missing",
                f"no label has an object: labels are of {_some(self.labels.ids)}, objects are {_some(self.files)}",
                file=self.labels.source,
                field="id",
                fix="name the column of ids with --id; `albireo validate` shows the ids of objects",
            )
        return Matched(tuple(self.failed), tuple(self.without_label), lost)


def gather(
    core: Core, batches: Iterable[list[Subject]], labels: Labels, folder: Path, bar: Bar
) -> tuple[TokenStates, Matched]:
    """Token states of every labelled object, kept in `folder`; those that are there already are not encoded again."""
    meeting = Meeting(labels)
    with StatesWriter(folder, core.engine) as writer:
        before = set(writer.written)
        for subjects in batches:
            fresh = [one for one in meeting.of(subjects) if one.id not in before]
            with bar("encoding", len(fresh)) as progress:
                for part in encoded(core.engine, core.inputs, fresh):
                    for outcome, state in zip(part.outcomes, part.states, strict=True):
                        observation = outcome.subject.observation
                        if observation is None or state is None:
                            meeting.failed.append(outcome)
                            continue
                        try:
                            writer.add(observation, state)
                        except BadInput as error:
                            meeting.failed.append(outcome.failed(error.at(file=outcome.subject.file)))
                    progress(len(part.outcomes))
    matched = meeting.end()
    return TokenStates.open(folder), matched


def states_folder(root: Path, space: str, paths: Sequence[Path], options: ReadOptions, *said: object) -> Path:
    """Where under `root` the states of these files, read so by this version, are kept.

    said  whatever else decides what is made of the files
    """
    digest = hashlib.sha256(f"{version('albireo')} {options!r} {said!r}".encode())
    with_positions = [*paths, *([Path(options.positions)] if options.positions else [])]
    for path in sorted(path for path in with_positions if path.is_file()):
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return folder_of(root, space, digest.hexdigest())


@dataclass(frozen=True)
class Judged:
    """Answers of a head beside the truth, for the objects that count.

    ids      of the objects
    answers  without their densities
    truth    target as the head names it -> labels (n,)
    pit      (n,) probability of a density below the true redshift; empty of other heads
    groups   (n,) what is drawn as a whole for intervals
    seen     objects that taught the head or chose or calibrated it, which are left out
    """

    task: Task
    ids: tuple[str, ...]
    answers: tuple[Answer, ...]
    truth: Mapping[str, NDArray[Any]]
    pit: NDArray[np.float64]
    groups: tuple[str, ...]
    seen: int
    matched: Matched

    @cached_property
    def scores(self) -> dict[str, Scores]:
        """Target -> metric -> (value, low, high)."""
        return scores(self.task, self.answers, self.truth, self.groups)


def judge(
    core: Core, batches: Iterable[list[Subject]], labels: Labels, shelved: Shelved, columns: Sequence[str], bar: Bar
) -> Judged:
    """What a head says of every labelled object.

    columns  of the labels, in the order of the head's targets
    Where the labels are those that the head was fitted on, only the objects of its test part count.
    """
    meeting = Meeting(labels)
    ids: list[str] = []
    groups: list[str] = []
    answers: list[Answer] = []
    seen = 0
    for subjects in batches:
        known = meeting.of(subjects)
        counting, theirs = _counting(core, shelved.card, labels, known)
        seen += len(known) - len(counting)
        with bar("predicting", len(counting)) as progress:
            predicted = core.predict(counting, {shelved.name: shelved}, progress)
        for one, group in zip(predicted.predictions, theirs, strict=True):
            answer = (one.answer or {}).get(shelved.name)
            if isinstance(answer, Answer):
                ids.append(str(one.outcome.subject.id))
                groups.append(group)
                answers.append(answer)
            else:
                meeting.failed.append(one.outcome)
    matched = meeting.end()
    row = {name: i for i, name in enumerate(labels.ids)}
    rows = np.array([row[name] for name in ids], np.int64)
    truth = {target: labels.columns[column][rows] for target, column in zip(shelved.targets, columns, strict=True)}
    return Judged(
        shelved.task,
        tuple(ids),
        tuple(replace(answer, density=None) for answer in answers),
        truth,
        _pit(answers, next(iter(truth.values()))),
        tuple(groups),
        seen,
        matched,
    )


def _counting(
    core: Core, card: Card | None, labels: Labels, subjects: Sequence[Subject]
) -> tuple[list[Subject], list[str]]:
    """The objects that had no part in the fit of a head, and the group of each.

    Those of a fit are known by its labels: with others, every object counts, and is a group of its own.
    """
    if card is None or labels.sha256 != card.labels_sha256:
        return list(subjects), [str(one.id) for one in subjects]
    row = {name: i for i, name in enumerate(labels.ids)}
    usable = [one for one in subjects if one.observation is not None]
    # As in the fit: only what the model reads of an object says which surveys saw it.
    seen = [selected(one, core.inputs).subject.observation or one.observation for one in usable]
    rows = [row[str(one.id)] for one in usable]
    columns = {name: values[rows] for name, values in labels.columns.items()}
    groups = groups_of([Facts.of(one) for one in seen if one is not None], card.plan["group"], columns)
    parts = split(groups, card.plan["parts"], card.seed)
    there = [i for i, part in enumerate(parts) if PARTS[part] == "test"]
    return [usable[i] for i in there], [groups[i] for i in there]


def _pit(answers: Sequence[Answer], truth: NDArray[Any]) -> NDArray[np.float64]:
    """(n,) probability below the truth, of objects with a density and a truth."""
    there = [
        answer.density.below(z)
        for answer, z in zip(answers, truth.tolist(), strict=True)
        if answer.density is not None and np.isfinite(z)
    ]
    return np.array(there)


def _some(ids: Iterable[str], most: int = 3) -> str:
    """ "'a', 'b', 'c', ..."."""
    listed = list(ids)
    return ", ".join(map(repr, listed[:most])) + (", ..." if len(listed) > most else "") if listed else "none"
