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
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.models import metrics, rivals
from albireo.models.applicability import Facts
from albireo.models.calibration import conformal_quantile
from albireo.models.engine import Embedding
from albireo.models.head_fitting import Labels, Plan, fit
from albireo.models.heads import LEVELS, Answer, Head
from albireo.models.token_states import Held, TokenStates
from albireo.observations.errors import BadInput
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Observation, Spectrum
from benchmarks.encoding import BATCH, Encoder
from benchmarks.failures import draw
from benchmarks.judging import judged, main_metrics
from benchmarks.labelled import Dataset, held_out, split
from benchmarks.questions import MOST, RELATIVE, SIZES, TWO, Question
from benchmarks.template_fit import COMPONENTS, TemplateFit

TRIVIAL, TEMPLATES, RIVAL, QUANTISED = "trivial", "templates", "rival", "rival on tokens"
PCA, UNTRAINED, ENCODER = "PCA", "untrained", "encoder"
CONTENDERS = (TRIVIAL, TEMPLATES, RIVAL, QUANTISED, PCA, UNTRAINED, ENCODER)

SIZES_OF: dict[str, tuple[int | None, ...]] = {QUANTISED: (None,), PCA: (*TWO, MOST), UNTRAINED: (*TWO, MOST)}
"""Numbers of labels at which these are asked; all others at all."""

VALIDATION = 0.15
CALIBRATION = 30
"""Labels that intervals are calibrated on, or 15 % if that is more, or 30 % if that is less; given like the others."""

POOLINGS = (("mean", "mlp"), ("mean_per_modality", "mlp"), ("attentive", "mlp"))
"""What is tried; the least loss on the validation part is taken."""

ATTENTIVE = 15
"""Epochs of attentive pooling: it reads every token, and takes as long as all the rest."""

ALONE = (("mean", "mlp"), ("mean", "linear"))
"""Tried where an object has one state."""

SMALL = 200
"""Test objects up to which failures are drawn."""

TRIED = 150
"""Validation spectra that intervals of templates come from."""

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Records:
    """A folder of records. `code` names the version of the code, `encoder` the numbers of the checkpoint."""

    folder: Path
    code: str
    encoder: str

    def path(self, question: str, who: str, size: int | None) -> Path:
        mark = "" if who in (TRIVIAL, TEMPLATES, RIVAL, PCA) else f"-{self.encoder[:12]}"
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
    def of(cls, question: Question, read: Callable[[str], Dataset], seed: int, most: int | None = None) -> Setting:
        """`most` labels are given, None = all there are."""
        fitted, tested = (_suited(question, read(name)) for name in (question.fitted, question.tested))
        assert not read(question.fitted).test_only, f"{question.fitted} is for testing only"
        if question.fitted == question.tested:
            testing = held_out(fitted.groups)
            fitted, tested = fitted.subset(~testing), tested.subset(testing)
        assert not {one.id for one in fitted.observations} & {one.id for one in tested.observations}
        order = np.random.default_rng([seed, 1]).permutation(len(fitted))
        return cls(question, fitted.subset(order[:most]), tested)

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
    if question.window is None:
        return replace(chosen, observations=kept)
    low, high = question.window
    cut = tuple(_within(one, low, high) for one in kept)
    return replace(chosen, observations=cut, name=f"{chosen.name} from {low:.0f} to {high:.0f} A")


def _within(observation: Observation, low: float, high: float) -> Observation:
    """Its spectra between two wavelengths, scaled to a median of RELATIVE."""
    data = dict(observation.data)
    for key, one in observation.data.items():
        if isinstance(one, Spectrum):
            inside = (one.wavelength >= low) & (one.wavelength <= high)
            good = inside & ~one.mask
            middle = float(np.median(np.abs(one.flux[good]))) if good.any() else 0.0
            scale = np.float32(RELATIVE / middle if middle > 0 else 1.0)
            data[key] = replace(
                one, wavelength=one.wavelength[inside], flux=one.flux[inside] * scale,
                ivar=one.ivar[inside] / scale**2, mask=one.mask[inside],
            )  # fmt: skip
    return replace(observation, data=data)


def tell(text: str) -> None:
    """A line at once, also into a file: a run takes long."""
    print(text, flush=True)


def answer(
    setting: Setting,
    encoders: Mapping[str, Encoder],
    records: Records,
    seed: int,
    say: Callable[[str], None] = tell,
    poolings: Sequence[tuple[str, str]] | None = None,
) -> None:
    """Every record of a question that is not there yet; `poolings` are the heads of which the best is taken."""
    question = setting.question
    for who in CONTENDERS:
        wanted = [size for size in setting.sizes() if size in SIZES_OF.get(who, SIZES)]
        missing = [size for size in wanted if records.read(question.name, who, size) is None]
        encoder = encoders[UNTRAINED if who == UNTRAINED else ENCODER]
        if not missing or not _concerned(who, question, encoder):
            continue
        began = time.monotonic()
        contend: _HeadContender | _RivalContender
        if who == PCA:
            contend = _HeadContender(setting, *_principal(setting, encoder.engine.dim, seed), seed, ALONE)
        elif who in (UNTRAINED, ENCODER):
            states = (encoder.states(one, question.keys) for one in (setting.pool, setting.test))
            contend = _HeadContender(setting, *states, seed, poolings)
        else:
            contend = _RivalContender(setting, who, encoder, seed)
        say(f"{question.name}: {who}, inputs, {time.monotonic() - began:.0f} s")
        for size in missing:
            began = time.monotonic()
            try:
                told, detail = contend.on(size)
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
    """Whether a contender can answer: encoders read the inputs, tokens all stand for numbers, templates are spectra."""
    kinds = _kinds(question)
    if who == TEMPLATES:
        return question.task == "redshift" and kinds == {"spectrum"}
    if who == QUANTISED and not kinds <= {"scalar", "coefficients"}:
        return False
    return who in (TRIVIAL, RIVAL, PCA) or encoder.reads(question)


Told = Mapping[str, Any]
"""What a contender says of the test objects: see judging.judged."""


class _RivalContender:
    """Trivial models, templates, and rivals on raw inputs or on what the tokens keep of them.

    pool, new  features of the pool and of the test objects, with the same columns; no columns where none are read
    """

    def __init__(self, setting: Setting, who: str, encoder: Encoder, seed: int) -> None:
        self.setting, self.who, self.seed = setting, who, seed
        pool, test = setting.pool, setting.test
        table = np.empty((len(pool) + len(test), 0))
        if who in (RIVAL, QUANTISED):
            both = [encoder.quantised(one) if who == QUANTISED else one for one in (pool, test)]
            table, _ = rivals.features([one for dataset in both for one in dataset.observations])
        self.pool, self.new = table[: len(pool)], table[len(pool) :]

    def on(self, size: int | None) -> tuple[Told, dict[str, Any]]:
        question, given = self.setting.question, self.setting.given(size)
        told: dict[str, Any] = {}
        names = {}
        parts = split(given.groups, {"training": 0.85, "validation": 0.15}, self.seed)
        for target in question.targets:
            labels = given.labels[target]
            there = labels != "" if labels.dtype.kind == "U" else np.isfinite(labels)
            learn, choose = there & (parts == "training"), there & (parts == "validation")
            if self.who == TEMPLATES:
                names[target], value, off = self._by_templates(given.subset(learn), given.subset(choose), target)
                told[target] = {"value": value, "intervals": self._intervals(value, off)}
                continue
            rival = self._rival(labels, learn, choose)
            names[target] = rival.name
            said = rival.predict(self.new)
            told[target] = (
                {"classes": rival.classes, "probability": said}
                if rival.classes
                else {"value": said, "intervals": self._intervals(said, rival.off)}
            )
        return told, {"labels": len(given), "model": names}

    def _rival(self, labels: NDArray[Any], learn: NDArray[np.bool_], choose: NDArray[np.bool_]) -> rivals.Rival:
        question = self.setting.question
        task: rivals.Task = "classification" if question.task == "classification" else "regression"
        if self.who == TRIVIAL:
            return rivals.trivial(task, labels[learn | choose], question.task == "redshift")
        pool = self.pool[: len(labels)]
        return rivals.best(
            task, pool[learn], labels[learn], (pool[choose], labels[choose]), self.seed,
            redshift=question.task == "redshift",
        )  # fmt: skip

    def _by_templates(self, learn: Dataset, choose: Dataset, target: str) -> tuple[str, Doubles, Doubles]:
        """What is told of the test objects, and how far off validation objects were, of 1 + z."""
        classes = learn.labels.get("class", np.full(len(learn), ""))
        fitted = TemplateFit.fit(learn.observations, learn.labels[target], classes.tolist(), self.seed)
        found, value = (
            np.array([fitted.redshift(one) for one in some.observations])
            for some in (choose.subset(np.arange(min(len(choose), TRIED))), self.setting.test)
        )
        off = np.abs(metrics.redshift_error(choose.labels[target][: len(found)], found))
        return f"{len(fitted.templates)} x {COMPONENTS} components", value, off

    def _intervals(self, value: Doubles, off: Doubles) -> dict[float, Doubles]:
        """level -> (N, 2), all of one width, or of one share of 1 + z: split conformal on the validation part."""
        scale = np.abs(1.0 + value) if self.setting.question.task == "redshift" else np.ones(len(value))
        widths = {level: conformal_quantile(off, level) for level in LEVELS}
        return {
            level: np.stack([value - width * scale, value + width * scale], axis=1)
            for level, width in widths.items()
            if np.isfinite(width)
        }


def _principal(setting: Setting, dim: int, seed: int) -> tuple[TokenStates, TokenStates]:
    """Principal components of the inputs of the pool and of the test objects, for heads to read like the state of one
    token. Finding them takes no labels."""
    both = (setting.pool, setting.test)
    table = rivals.principal([one for dataset in both for one in dataset.observations], dim, seed)
    out = []
    for dataset, rows in zip(both, np.split(table, [len(setting.pool)]), strict=True):
        states = TokenStates("principal components", table.shape[1], PCA, None)
        states.extend([Held(Facts.of(one), ((setting.question.keys[0], 1),)) for one in dataset.observations], rows)
        out.append(states)
    return out[0], out[1]


class _HeadContender:
    """Heads on token states."""

    def __init__(
        self,
        setting: Setting,
        pool: TokenStates,
        test: TokenStates,
        seed: int,
        poolings: Sequence[tuple[str, str]] | None,
    ) -> None:
        self.setting, self.pool, self.test, self.seed = setting, pool, test, seed
        several = _kinds(setting.question) != {"scalar"}
        # One token a modality leaves attention nothing to choose.
        self.poolings = poolings or (POOLINGS if several else POOLINGS[:2])

    def on(self, size: int | None) -> tuple[Told, dict[str, Any]]:
        question, given = self.setting.question, self.setting.given(size)
        ids = tuple(one.id for one in given.observations)
        columns = {target: given.labels[target] for target in question.targets}
        content = json.dumps([ids, {name: column.tolist() for name, column in columns.items()}])
        labels = Labels(ids, columns, hashlib.sha256(content.encode()).hexdigest(), given.name)
        heads = [fit(self.pool, labels, self._plan(pooling, network, len(ids))) for pooling, network in self.poolings]
        head = min(heads, key=lambda one: float(one.card.plan["validation_loss"]))
        told = self._told(head)
        detail = {
            "labels": len(given),
            "model": dict.fromkeys(question.targets, f"{head.card.pooling}, {head.card.network}"),
            "not read": [
                one.id for one, said in zip(self.setting.test.observations, told, strict=True) if said is None
            ],
        }
        if size is None and len({one.card.pooling for one in heads}) > 1:
            tried = {one.card.pooling: self._told(one) if one is not head else told for one in heads}
            detail["tried"] = {
                pooling: main_metrics(question, self.setting.test, said, self.seed) for pooling, said in tried.items()
            }
        return {"answers": told}, detail

    def _told(self, head: Head) -> list[Answer | None]:
        """Of every test object, None if it could not be read."""
        answers = dict(self._answers(head))
        return [answers.get(one.id) for one in self.setting.test.observations]

    def _plan(self, pooling: Any, network: Any, n: int) -> Plan:
        question = self.setting.question
        calibration = min(max(0.15, CALIBRATION / n), 0.3)
        parts = (1.0 - VALIDATION - calibration, VALIDATION, calibration, 0.0)
        return Plan(question.task, tuple(question.targets), units=dict(question.targets), pooling=pooling,
                    network=network, parts=parts, seed=self.seed,
                    epochs=ATTENTIVE if pooling == "attentive" else None)  # fmt: skip

    def _answers(self, head: Head) -> Iterator[tuple[str, Answer]]:
        by_id = {one.id: one for one in self.setting.test.observations}
        asked = [i for i, name in enumerate(self.test.ids) if name in by_id]
        for start in range(0, len(asked), BATCH):
            places = asked[start : start + BATCH]
            rows = [self.test.rows(i) for i in places]
            embeddings = [Embedding("tokens", values, keys, len(keys)) for values, keys in rows]
            ids = [self.test.objects[i].facts.id for i in places]
            yield from zip(ids, head.predict(embeddings, [by_id[name] for name in ids]), strict=True)
