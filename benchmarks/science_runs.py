"""Answers to the questions of benchmarks.questions, kept in a folder one record at a time, so that a run goes on.

    CONTENDERS  trivial model, template fit, best rival, the same on what the tokens keep, encoder untrained, encoder
    Records     the folder: one JSON file for each question, contender and number of labels
    answer      everything that is missing of one question

The test part is looked at once, by the metrics. What a head pools and how is chosen on its validation part.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from albireo.models import mini, neighbours, rivals
from albireo.models.engine import Embedding, Tokens
from albireo.models.head_fitting import Labels, Plan, fit
from albireo.models.heads import Answer, Head
from albireo.models.token_states import StatesWriter, TokenStates, folder_of
from albireo.models.torch_engine import TorchEngine
from albireo.models.transformer import Transformer, TransformerConfig
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Coefficients, Observation, Payload, Scalar
from benchmarks.failures import draw
from benchmarks.judging import judged
from benchmarks.labelled import Dataset, held_out, split
from benchmarks.questions import Question
from benchmarks.template_fit import Templates

TRIVIAL, TEMPLATES, RIVAL, QUANTISED = "trivial", "templates", "rival", "rival on tokens"
UNTRAINED, ENCODER = "untrained", "encoder"
CONTENDERS = (TRIVIAL, TEMPLATES, RIVAL, QUANTISED, UNTRAINED, ENCODER)

VALIDATION = 0.15
CALIBRATION = 30
"""Labels that intervals are calibrated on, or 15 % if that is more, or 30 % if that is less; given like the others."""

POOLINGS = (("mean_per_modality", "mlp"), ("attentive", "mlp"))
"""What is tried; the least loss on the validation part is taken."""

SMALL = 200
"""Test objects up to which failures are drawn."""

BATCH = 64


def untrained(engine: TorchEngine, seed: int) -> TorchEngine:
    """The same network before its first step, behind the same tokenizers."""
    config = TransformerConfig.from_json(engine.checkpoint.config)
    if config == TransformerConfig.from_json(mini.TRANSFORMER) and set(engine.inputs) == set(mini.INPUTS):
        return neighbours.untrained(engine, seed)
    model = Transformer(config, engine.inputs, engine.outputs)
    model.initialise({key: engine.bank[key].grid for key in engine.bank}, torch.Generator().manual_seed(seed))
    return TorchEngine(engine.checkpoint, engine.bank, model)


@dataclass(frozen=True)
class Records:
    """A folder of records. `code` names the version of the code, `encoder` the numbers of the checkpoint."""

    folder: Path
    code: str
    encoder: str

    def path(self, question: str, who: str, size: int | None) -> Path:
        mark = "" if who in (TRIVIAL, TEMPLATES, RIVAL) else f"-{self.encoder[:12]}"
        return self.folder / question / f"{who.replace(' ', '_')}-{size or 'all'}{mark}.json"

    def read(self, question: str, who: str, size: int | None) -> dict[str, Any] | None:
        path = self.path(question, who, size)
        return json.loads(path.read_text()) if path.exists() else None

    def notes(self) -> dict[str, str]:
        """Set -> what must be known of it."""
        path = self.folder / "notes.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def note(self, dataset: str, text: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "notes.json").write_text(json.dumps(self.notes() | {dataset: text}))

    def write(self, question: str, who: str, size: int | None, record: Mapping[str, Any]) -> None:
        path = self.path(question, who, size)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps({"question": question, "who": who, "size": size, "code": self.code, **record}))
        part.replace(path)


def code_version(root: Path) -> str:
    """The commit, with "-dirty" if files of the repository are not as committed."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@dataclass(frozen=True)
class Setting:
    """Objects of one question: those whose labels are given, in the order in which they are, and those of the test."""

    question: Question
    pool: Dataset
    test: Dataset

    @classmethod
    def of(cls, question: Question, read: Callable[[str], Dataset], seed: int) -> Setting:
        fitted, tested = (_suited(question, read(name)) for name in (question.fitted, question.tested))
        assert not read(question.fitted).test_only, f"{question.fitted} is for testing only"
        if question.fitted == question.tested:
            testing = held_out(fitted.groups)
            fitted, tested = fitted.subset(~testing), tested.subset(testing)
        assert not {one.id for one in fitted.observations} & {one.id for one in tested.observations}
        order = np.random.default_rng([seed, 1]).permutation(len(fitted))
        return cls(question, fitted.subset(order), tested)

    def given(self, size: int | None) -> Dataset:
        """The first `size` objects of the pool: fewer labels are always some of more."""
        return self.pool.subset(np.arange(min(size or len(self.pool), len(self.pool))))

    def sizes(self) -> list[int | None]:
        return [size for size in self.question.sizes if size is None or size < len(self.pool)]


def _suited(question: Question, dataset: Dataset) -> Dataset:
    """Objects that count, with the question's modalities only."""
    labels = [dataset.labels[target] for target in question.targets]
    there = np.all([column != "" if column.dtype.kind == "U" else np.isfinite(column) for column in labels[:1]], axis=0)
    has = np.array([all(set(group) & one.data.keys() for group in question.needed) for one in dataset.observations])
    chosen = dataset.subset(there & has & question.keep(dataset))
    kept = tuple(
        replace(one, data={key: one.data[key] for key in one.data if key in question.keys}, extras={}, metadata={})
        for one in chosen.observations
    )
    return replace(chosen, observations=kept)


class Encoder:
    """An engine, and the token states of what it has embedded, on disk under `root`."""

    def __init__(self, name: str, engine: TorchEngine, root: Path) -> None:
        self.name, self.engine, self.root = name, engine, root / name

    def reads(self, question: Question) -> bool:
        """Whether it has codecs for one modality at least of each group that the question needs and gives."""
        given = [set(group) & set(question.keys) for group in question.needed]
        return all(group & self.engine.inputs.keys() for group in given if group)

    def states(self, dataset: Dataset) -> TokenStates:
        """Of every object that can be embedded; what was embedded before is read."""
        observations = [self._readable(one) for one in dataset.observations]
        content = json.dumps([[one.id, sorted(one.data)] for one in observations])
        inputs = hashlib.sha256(f"{dataset.name} {content}".encode()).hexdigest()
        with StatesWriter(folder_of(self.root, self.engine.space("tokens"), inputs), self.engine) as writer:
            todo = [one for one in observations if one.id not in writer.written]
            for start in range(0, len(todo), BATCH):
                batch = todo[start : start + BATCH]
                read = list(zip(batch, self.engine.tokenize(batch), strict=True))
                good = [(one, tokens) for one, tokens in read if isinstance(tokens, Tokens)]
                for (one, _), embedding in zip(
                    good, self.engine.embed([tokens for _, tokens in good], "tokens"), strict=True
                ):
                    writer.add(one, embedding)
            return writer.close()

    def _readable(self, observation: Observation) -> Observation:
        inputs = self.engine.inputs
        return replace(observation, data={key: one for key, one in observation.data.items() if key in inputs})

    def quantised(self, dataset: Dataset) -> Dataset:
        """The objects with the numbers that the tokens of their scalars and coefficients stand for."""
        return replace(dataset, observations=tuple(self._decoded(one) for one in dataset.observations))

    def _decoded(self, observation: Observation) -> Observation:
        numbers: dict[str, Payload] = {}
        readable = self._readable(observation)
        (tokens,) = self.engine.tokenize([readable])
        if isinstance(tokens, AlbireoError):
            return observation
        for key, payload in readable.data.items():
            if isinstance(payload, Scalar | Coefficients):
                values = self.engine.values(key, tokens.ids[key][None])[0]
                numbers[key] = (
                    Scalar(float(values[0]), payload.unit)
                    if isinstance(payload, Scalar)
                    else Coefficients(values.astype(np.float32), payload.unit)
                )
        return replace(observation, data={**observation.data, **numbers})


def answer(
    setting: Setting,
    encoders: Mapping[str, Encoder],
    records: Records,
    seed: int,
    say: Callable[[str], None] = print,
    poolings: Sequence[tuple[str, str]] = POOLINGS,
) -> None:
    """Every record of a question that is not there yet; `poolings` are the heads of which the best is taken."""
    question = setting.question
    for who in CONTENDERS:
        missing = [size for size in setting.sizes() if records.read(question.name, who, size) is None]
        encoder = encoders[UNTRAINED if who == UNTRAINED else ENCODER]
        if not missing or not _concerned(who, question, encoder):
            continue
        contend = _HeadContender(setting, encoder, seed, poolings) if who in (UNTRAINED, ENCODER) else None
        table = None if contend else _RivalContender(setting, who, encoder, seed)
        for size in missing:
            began = time.monotonic()
            try:
                told, detail = (contend or table).on(size)  # type: ignore[union-attr]
            except BadInput as error:
                record: dict[str, Any] = {"failed": str(error)}
            else:
                record = {"targets": judged(question, setting.test, told, seed), "detail": detail}
                _draw_failures(setting, who, size, record, records)
            records.write(question.name, who, size, record)
            say(f"{question.name}: {who}, {size or 'all'} labels, {time.monotonic() - began:.0f} s")


def _draw_failures(setting: Setting, who: str, size: int | None, record: Mapping[str, Any], records: Records) -> None:
    """What the encoder with all labels was wrong about, of sets of spectra that are small enough to be looked at."""
    question = setting.question
    failed = [one for judged_one in record["targets"].values() for one in judged_one["failed"]]
    if who == ENCODER and size is None and failed and len(setting.test) <= SMALL and _kinds(question) == {"spectrum"}:
        draw(setting.test, failed, records.path(question.name, who, size).with_suffix(".png"))


def _kinds(question: Question) -> set[str]:
    return {str(MODALITIES[key].kind) for key in question.keys}


def _concerned(who: str, question: Question, encoder: Encoder) -> bool:
    """Whether a contender can answer a question: encoders read it, tokens stand for numbers, templates are spectra."""
    kinds = _kinds(question)
    if who == TEMPLATES:
        return question.task == "redshift" and kinds == {"spectrum"}
    if who == QUANTISED and not kinds & {"scalar", "coefficients"}:
        return False
    return who in (TRIVIAL, RIVAL) or encoder.reads(question)


Told = Mapping[str, Any]
"""What a contender says of the test objects: see judging.judged."""


class _RivalContender:
    """Trivial models, templates, and rivals on raw inputs or on what the tokens keep of them."""

    def __init__(self, setting: Setting, who: str, encoder: Encoder, seed: int) -> None:
        self.setting, self.who, self.encoder, self.seed = setting, who, encoder, seed

    @cached_property
    def _inputs(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Features of the pool and of the test, with the same columns."""
        both = (self.setting.pool, self.setting.test)
        if self.who == QUANTISED:
            both = (self.encoder.quantised(both[0]), self.encoder.quantised(both[1]))
        table, _ = rivals.features([*both[0].observations, *both[1].observations])
        return table[: len(both[0])], table[len(both[0]) :]

    def on(self, size: int | None) -> tuple[Told, dict[str, Any]]:
        question, given, test = self.setting.question, self.setting.given(size), self.setting.test
        task: rivals.Task = "classification" if question.task == "classification" else "regression"
        told: dict[str, Any] = {}
        names = {}
        for target in question.targets:
            labels = given.labels[target]
            there = labels != "" if labels.dtype.kind == "U" else np.isfinite(labels)
            if self.who == TEMPLATES:
                known = given.subset(there)
                fitted = Templates.fit(known.observations, known.labels[target], self.seed)
                told[target] = {"value": np.array([fitted.redshift(one) for one in test.observations])}
                names[target] = f"{len(fitted.components)} components"
                continue
            if self.who == TRIVIAL:
                rival = rivals.trivial(task, labels[there])
                said = rival.predict(np.empty((len(test), 0)))
            else:
                pool, new = self._inputs
                pool = pool[: len(given)]
                parts = split(given.groups, {"training": 0.85, "validation": 0.15}, self.seed)
                learn, choose = there & (parts == "training"), there & (parts == "validation")
                rival = rivals.best(
                    task, pool[learn], labels[learn], (pool[choose], labels[choose]), self.seed,
                    robust=question.task == "redshift",
                )  # fmt: skip
                said = rival.predict(new)
            names[target] = rival.name
            told[target] = {"classes": rival.classes, "probability": said} if rival.classes else {"value": said}
        return told, {"labels": len(given), "model": names}


class _HeadContender:
    """Heads on the states of an encoder."""

    def __init__(self, setting: Setting, encoder: Encoder, seed: int, poolings: Sequence[tuple[str, str]]) -> None:
        self.setting, self.encoder, self.seed, self.poolings = setting, encoder, seed, poolings
        self.pool, self.test = encoder.states(setting.pool), encoder.states(setting.test)

    def on(self, size: int | None) -> tuple[Told, dict[str, Any]]:
        question, given = self.setting.question, self.setting.given(size)
        ids = tuple(one.id for one in given.observations)
        columns = {target: given.labels[target] for target in question.targets}
        content = json.dumps([ids, {name: column.tolist() for name, column in columns.items()}])
        labels = Labels(ids, columns, hashlib.sha256(content.encode()).hexdigest(), given.name)
        heads = [fit(self.pool, labels, self._plan(pooling, network, len(ids))) for pooling, network in self.poolings]
        head = min(heads, key=lambda one: float(one.card.plan["validation_loss"]))
        answers = dict(self._answers(head))
        missing = [one.id for one in self.setting.test.observations if one.id not in answers]
        detail = {
            "labels": len(given),
            "model": dict.fromkeys(question.targets, f"{head.card.pooling}, {head.card.network}"),
            "not read": missing,
        }
        return {"answers": [answers.get(one.id) for one in self.setting.test.observations]}, detail

    def _plan(self, pooling: Any, network: Any, n: int) -> Plan:
        question = self.setting.question
        calibration = min(max(0.15, CALIBRATION / n), 0.3)
        parts = (1.0 - VALIDATION - calibration, VALIDATION, calibration, 0.0)
        return Plan(question.task, tuple(question.targets), units=dict(question.targets), pooling=pooling,
                    network=network, parts=parts, seed=self.seed)  # fmt: skip

    def _answers(self, head: Head) -> Iterator[tuple[str, Answer]]:
        by_id = {one.id: one for one in self.setting.test.observations}
        for start in range(0, len(self.test), BATCH):
            places = range(start, min(start + BATCH, len(self.test)))
            rows = [self.test.rows(i) for i in places]
            embeddings = [Embedding("tokens", values, keys, len(keys)) for values, keys in rows]
            ids = [self.test.ids[i] for i in places]
            yield from zip(ids, head.predict(embeddings, [by_id[name] for name in ids]), strict=True)


def means(states: TokenStates) -> NDArray[np.float32]:
    """Mean embedding (N, D) of every object."""
    return np.stack([states.rows(i)[0].mean(axis=0) for i in range(len(states))])
