"""Task heads: what a small network, fitted on somebody's labels, makes of the token states of a frozen encoder.

Number, Answer   what a head says of one object
Prior            a distribution of redshift that can take the place of the one a head was fitted on
Card             what a person must know of a head; JSON in the metadata of its file
Head             one safetensors file, opened; torch is loaded when it first predicts
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file
from safetensors.numpy import save as serialised

from albireo.models.applicability import UNLIKE, Coverage, Facts, Typicality
from albireo.models.engine import Embedding, Engine
from albireo.models.redshift import Posterior
from albireo.observations.errors import BadInput, Conflict
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Observation
from albireo.observations.spaces import same_space

if TYPE_CHECKING:
    from albireo.models.head_network import HeadNetwork
    from albireo.models.head_tasks import HeadTask

Task = Literal["regression", "classification", "redshift"]
Pooling = Literal["mean", "mean_per_modality", "attentive"]
Network = Literal["linear", "mlp"]
TASKS: tuple[Task, ...] = ("regression", "classification", "redshift")
POOLINGS: tuple[Pooling, ...] = ("mean", "mean_per_modality", "attentive")
NETWORKS: tuple[Network, ...] = ("linear", "mlp")

LEVELS = (0.68, 0.95)
"""Coverage of the intervals that every number carries."""

METADATA = "albireo.head"
"""Where the card stands in the metadata of a head file."""

OWN_NAMES: Mapping[str, frozenset[str]] = {
    "tok_z": frozenset({"z", "redshift", "zspec", "z_spec", "specz", "spec_z", "tok_z"}),
    "tok_ra": frozenset({"ra", "tok_ra"}),
    "tok_dec": frozenset({"dec", "tok_dec"}),
}
"""Token key of a label -> what columns with the same thing are called, in lower case."""

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Number:
    """One target of a regression, or the redshift: the median of what the head believes, in `unit`.

    intervals  level -> (low, high), each calibrated by conformal prediction
    """

    name: str
    unit: str
    value: float
    intervals: Mapping[float, tuple[float, float]]


@dataclass(frozen=True)
class Answer:
    """Of one head for one object.

    numbers     regression: one a target; redshift: one, named "redshift"; classification: none
    classes     classification: probability by class, most probable first; else empty
    density     redshift: probabilities of the cells of the head's grid; else None
    modalities  public names of what it rests on
    flags       why it may not apply (models/applicability.py)
    typicality  share of held-out training objects that lie farther from the training set than this one:
                0.00-0.01 = unlike anything that the head was fitted on
    """

    numbers: tuple[Number, ...]
    classes: Mapping[str, float]
    density: Posterior | None
    modalities: tuple[str, ...]
    flags: tuple[str, ...]
    typicality: float


@dataclass(frozen=True)
class Card:
    """What a person must know of a head.

    targets        label columns; ("redshift",) for a redshift
    units          of each target, "" = dimensionless
    classes        of a classification, in the order of its outputs
    space          of the token states it was fitted on, `engine.space("tokens")`; `checkpoint` is the engine's name
    plan           every choice that was made for the fit
    data           objects in each part, where they and their labels came from, what was left out
    labels         target -> n, mean, std, min, low (0.1 %), median, high (99.9 %), max; class -> n
    labels_sha256  of the label table
    coverage       of the inputs (see `applicability.Coverage`)
    metrics        part -> target -> metric -> (value, low, high): low and high from a bootstrap, 95 %
    curve          loss of the training and of the validation part after each epoch
    versions       of the software
    """

    name: str
    task: Task
    targets: tuple[str, ...]
    units: tuple[str, ...]
    classes: tuple[str, ...]
    pooling: Pooling
    network: Network
    space: str
    checkpoint: str
    dim: int
    seed: int
    plan: Mapping[str, Any]
    data: Mapping[str, Any]
    labels: Mapping[str, Mapping[str, float]]
    labels_sha256: str
    coverage: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Mapping[str, tuple[float, float, float]]]]
    curve: tuple[tuple[float, float], ...]
    versions: Mapping[str, str]

    @classmethod
    def open(cls, path: Path) -> Card:
        """The card of a head file; its weights are not read."""
        try:
            with safe_open(path, framework="numpy") as file:
                text = (file.metadata() or {})[METADATA]
            return cls.from_json(json.loads(text))
        except FileNotFoundError as error:
            raise BadInput("file_not_found", "there is no such head file", file=str(path)) from error
        except (OSError, SafetensorError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise _no_head(path, error) from error

    @classmethod
    def from_json(cls, card: Mapping[str, Any]) -> Card:
        """From what `as_json` gave; ValueError or TypeError if it is no card."""
        lists = {name: tuple(card[name]) for name in ("targets", "units", "classes")}
        metrics = {
            part: {target: {m: tuple(three) for m, three in by.items()} for target, by in targets.items()}
            for part, targets in card["metrics"].items()
        }
        curve = tuple((float(a), float(b)) for a, b in card["curve"])
        for name, known in (("task", TASKS), ("pooling", POOLINGS), ("network", NETWORKS)):
            if card[name] not in known:
                raise ValueError(f"{name} {card[name]!r}")
        texts = [card[name] for name in ("name", "space", "checkpoint", "labels_sha256")]
        if not all(isinstance(text, str) for text in (*texts, *lists["targets"], *lists["units"], *lists["classes"])):
            raise ValueError("a name that is no text")
        if len(lists["units"]) != len(lists["targets"]) or not isinstance(card["dim"], int) or card["dim"] < 1:
            raise ValueError(f"{len(lists['units'])} units, dim {card['dim']!r}")
        if not isinstance(card["plan"]["queries"], int) or not isinstance(card["coverage"], Mapping):
            raise ValueError("a plan or a coverage of something else")
        return cls(**{**card, **lists, "metrics": metrics, "curve": curve})

    def as_json(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @property
    def own_keys(self) -> frozenset[str]:
        """Token keys that say what the head is asked for; it refuses objects that have them."""
        return own_keys(self.task, self.targets)


@dataclass(frozen=True)
class Prior:
    """A distribution of redshift: edges (V + 1,) increasing, probability (V,) of the cells, sums to 1."""

    edges: Doubles
    probability: Doubles

    def __post_init__(self) -> None:
        edges, probability = self.edges, self.probability
        fits = edges.ndim == 1 and probability.shape == (len(edges) - 1,) and bool((np.diff(edges) > 0).all())
        if not fits or not (probability >= 0).all() or not 0 < probability.sum() < np.inf:
            raise BadInput(
                "option_invalid",
                "not a distribution of redshift",
                field="prior",
                fix="edges that increase, and for each cell between them a probability of at least 0",
            )
        object.__setattr__(self, "probability", probability / probability.sum())

    @classmethod
    def flat(cls, low: float = 0.0, high: float = 5.0) -> Prior:
        """Every redshift from low to high alike."""
        return cls(np.array([low, high]), np.ones(1))

    def on(self, edges: Doubles) -> Doubles:
        """(V,) probabilities of other cells; what lies outside of them is left out. Uniform inside a cell."""
        if np.array_equal(edges, self.edges):
            return self.probability
        below = np.interp(edges, self.edges, np.concatenate([[0.0], np.cumsum(self.probability)]))
        return np.diff(below)


class Head:
    """A fitted head. Safe to call from several threads.

    arrays  numbers by name: network.*, task.*, typicality.*
    """

    def __init__(self, card: Card, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.card = card
        self.arrays = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
        self.coverage = Coverage(**card.coverage)

    @classmethod
    def open(cls, path: Path) -> Head:
        """Read a head file; BadInput("head_invalid") if it is something else."""
        card = Card.open(path)
        try:
            return cls(card, load_file(path))
        except (OSError, SafetensorError, TypeError, ValueError, AttributeError, KeyError) as error:
            raise _no_head(path, error) from error

    def save(self, path: Path) -> None:
        """Write one safetensors file, as a whole or not at all; the same head is always the same bytes."""
        part = path.with_name(path.name + ".part")
        part.write_bytes(self._bytes)
        os.replace(part, path)

    @cached_property
    def _bytes(self) -> bytes:
        out: bytes = serialised(self.arrays, {METADATA: json.dumps(self.card.as_json())})
        return out

    @cached_property
    def sha256(self) -> str:
        """Of the head file."""
        return hashlib.sha256(self._bytes).hexdigest()

    def check(self, engine: Engine) -> None:
        """Conflict unless the head was fitted on token states of the engine's space."""
        space = engine.space("tokens")
        if not same_space(space, self.card.space):
            raise Conflict(
                "space_mismatch",
                f"head {self.card.name!r} was fitted on states of {self.card.space}, {engine.name} gives {space}",
                field=self.card.name,
                fix=f"use {self.card.checkpoint}, or fit the head again on your labels: albireo heads fit",
            )

    @property
    def prior(self) -> Prior | None:
        """n(z) of the training objects of a redshift head; None of other heads."""
        if self.card.task != "redshift":
            return None
        return Prior(self.arrays["task.edges"], self.arrays["task.prior"])

    def predict(
        self, embeddings: Sequence[Embedding], observations: Sequence[Observation], prior: Prior | None = None
    ) -> list[Answer]:
        """What the head says of objects.

        embeddings    of each, pooling "tokens"
        observations  of each, as embedded: what the flags look at
        prior         of redshift, in the place of n(z) of the training objects; intervals are as calibrated with that
        BadInput("label_given") if the answer is among what was given, ("nothing_to_embed") if no modality is left that
        the head knows.
        """
        from albireo.models.head_network import reduce, run

        if not embeddings:
            return []
        if prior is not None and self.card.task != "redshift":
            raise BadInput("option_invalid", f"head {self.card.name!r} predicts no redshift", field="prior")
        known = list(self.coverage.modalities)
        keys = [self._keys(one) for one in embeddings]
        rows = [reduce(one.values, one.modalities, self.card.pooling, known) for one in embeddings]
        outputs, features = run(self._network, rows)
        told = self._task.told(outputs, prior)
        typicality = self._typicality.of(features, [self.coverage.set_name(present) for present in keys])
        out = []
        for said, present, observation, typical in zip(told, keys, observations, typicality, strict=True):
            flags = [*said.flags, *self.coverage.flags(Facts.of(observation), present)]
            flags += ["unlike_training"] if typical < UNLIKE else []
            names = tuple(MODALITIES[key].name for key in present if key in self.coverage.modalities)
            out.append(Answer(said.numbers, said.classes, said.density, names, tuple(flags), float(typical)))
        return out

    def _keys(self, embedding: Embedding) -> tuple[str, ...]:
        """Token keys of an object, each once."""
        keys = tuple(dict.fromkeys(embedding.modalities))
        if given := self.card.own_keys.intersection(keys):
            raise BadInput(
                "label_given",
                f"what head {self.card.name!r} is asked for is among what was given",
                field=", ".join(sorted(given)),
                fix="leave it out",
            )
        if not set(keys) & self.coverage.modalities.keys():
            raise BadInput(
                "nothing_to_embed",
                f"head {self.card.name!r} was fitted with none of the object's modalities",
                field=", ".join(MODALITIES[key].name for key in keys),
                fix=f"it knows {', '.join(MODALITIES[key].name for key in self.coverage.modalities)}",
            )
        return keys

    @cached_property
    def _network(self) -> HeadNetwork:
        import torch

        from albireo.models.head_network import HeadNetwork, n_kinds

        card = self.card
        kinds, queries = n_kinds(card.pooling, list(self.coverage.modalities)), card.plan["queries"]
        sizes = (card.pooling, card.network, card.dim, kinds, queries, self._task.n_outputs)
        arrays = self._under("network")
        with self._restoring():
            with torch.device("meta"):  # a card may state any size: before it is taken, the arrays must have it
                wanted = HeadNetwork(*sizes).state_dict()
            given = {name: torch.from_numpy(x) for name, x in arrays.items()}
            stated, found = (
                {name: (tuple(x.shape) or (1,), x.dtype) for name, x in tensors.items()} for tensors in (wanted, given)
            )
            if stated != found:
                raise ValueError("its network is not of the sizes that its card states")
            network = HeadNetwork(*sizes)
            network.load_state_dict(given)
        return network.eval()

    @cached_property
    def _task(self) -> HeadTask:
        from albireo.models.head_density import Density
        from albireo.models.head_tasks import Classes, Quantiles

        kinds: dict[Task, type[Quantiles] | type[Classes] | type[Density]]
        kinds = {"regression": Quantiles, "classification": Classes, "redshift": Density}
        with self._restoring():
            task: HeadTask = kinds[self.card.task].restore(self.card, self._under("task"))
        return task

    @cached_property
    def _typicality(self) -> Typicality:
        with self._restoring():
            made = Typicality.restore(self._under("typicality"))
            if len(made.mean) != (features := self._network.readout.in_features):
                raise ValueError(f"typicality of {len(made.mean)} features, the network has {features}")
            return made

    @contextmanager
    def _restoring(self) -> Iterator[None]:
        """Around what makes something of the arrays and the card: if they are not what they should be, head_invalid."""
        try:
            yield
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:  # RuntimeError: of torch
            raise _no_head(Path(self.card.name), error) from error

    def _under(self, group: str) -> dict[str, NDArray[Any]]:
        return {name.removeprefix(group + "."): x for name, x in self.arrays.items() if name.startswith(group + ".")}


def own_keys(task: Task, targets: Sequence[str]) -> frozenset[str]:
    """Token keys that are the answer which a head of this task with these targets is asked for."""
    names = {target.lower() for target in targets} | ({"redshift"} if task == "redshift" else set())
    return frozenset(key for key, called in OWN_NAMES.items() if called & names)


def _no_head(path: Path, error: Exception) -> BadInput:
    return BadInput(
        "head_invalid",
        f"the file is no task head: {error}",
        file=str(path),
        fix="name a file that albireo heads fit wrote",
    )
