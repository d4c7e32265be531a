"""What heads say of objects, after one pass of the encoder for all of them.

Prediction  what became of one object
Predicted   what heads say of objects
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from albireo.models.engine import Embedding, Engine, Numerics, Tokens
from albireo.models.heads import Answer, Head, Prior
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Observation
from albireo.service.ahead import portions
from albireo.service.core import Outcome, all_good, all_or_each, tokenized_ahead
from albireo.service.shelf import RedshiftToken, Shelved
from albireo.service.subjects import Subject
from albireo.service.terms import USUAL, Terms
from albireo.service.watch import tally
from albireo.tokenizers.checkpoint import TokenSpec

Result = TypeVar("Result")

STATES = 1 << 26
"""Numbers of token states that are held at a time: 256 MB of float32."""


@dataclass(frozen=True)
class Prediction(Generic[Result]):
    """What became of one object: an answer, or an error in `outcome`. `modalities` are what it rests on, by name."""

    outcome: Outcome
    modalities: tuple[str, ...] = ()
    answer: Result | None = None
    n_tokens: int = 0


AnyPrior = Prior | Literal["flat"] | None
"""Of redshift: a distribution; every redshift of a head's grid alike; or that which each head was fitted on."""

Answers = Mapping[str, Answer | AlbireoError]
"""By head: what it says of one object, or why it says nothing. At least one says something."""


@dataclass(frozen=True)
class Predicted:
    """What heads say of objects, in the order of the subjects; how the states were computed, and how long that took."""

    space: str
    numerics: Numerics
    heads: Mapping[str, Shelved]
    predictions: tuple[Prediction[Answers], ...]
    tokenize_seconds: float = 0.0
    encode_seconds: float = 0.0
    predict_seconds: float = 0.0

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        return tuple(one.outcome for one in self.predictions)

    @property
    def n_tokens(self) -> int:
        return sum(one.n_tokens for one in self.predictions)

    @property
    def n_failed(self) -> int:
        return sum(one.outcome.error is not None for one in self.predictions)


@dataclass(frozen=True)
class Encoded:
    """A few objects after the encoder: outcomes, tokens and states of each, None of those that failed, and seconds."""

    outcomes: list[Outcome]
    tokens: list[Tokens | None]
    states: list[Embedding | None]
    tokenize_seconds: float
    encode_seconds: float


def encoded(
    engine: Engine,
    inputs: Mapping[str, TokenSpec],
    subjects: Sequence[Subject],
    with_states: bool = True,
    terms: Terms = USUAL,
) -> Iterator[Encoded]:
    """The state of every token of each object, from its modalities among `inputs`; so many at a time as memory allows.

    Without `with_states` only tokens are made.
    """
    for outcomes, tokens, seconds in tokenized_ahead(engine, inputs, subjects, terms):
        yield from _encoded(engine, outcomes, tokens, with_states, seconds)


def _encoded(
    engine: Engine,
    outcomes: Sequence[Outcome],
    tokens: Sequence[Tokens | None],
    with_states: bool,
    seconds: float = 0.0,
) -> Iterator[Encoded]:
    """The same of objects that were tokenized already, which took `seconds`."""
    for part in portions([one.n_tokens * engine.dim if one else 0 for one in tokens], STATES):
        began = time.perf_counter()
        done, here = [outcomes[i] for i in part], [tokens[i] for i in part]
        states: list[Embedding | None] = [None] * len(part)
        if with_states:
            done, states = _states(engine, done, here)
        yield Encoded(done, here, states, seconds, time.perf_counter() - began)
        seconds = 0.0


def _states(
    engine: Engine, outcomes: Sequence[Outcome], tokens: Sequence[Tokens | None]
) -> tuple[list[Outcome], list[Embedding | None]]:
    results = iter(engine.embed_each([one for one in tokens if one is not None], "tokens"))
    done, states = list(outcomes), list[Embedding | None]([None] * len(outcomes))
    for i, one in enumerate(tokens):
        result = None if one is None else next(results)
        if isinstance(result, AlbireoError):
            done[i] = done[i].failed(result.at(file=done[i].subject.file))
        else:
            states[i] = result
    return done, states


def predict(
    engine: Engine,
    inputs: Mapping[str, TokenSpec],
    subjects: Sequence[Subject],
    heads: Mapping[str, Shelved],
    prior: AnyPrior,
    progress: Callable[[int], None],
    terms: Terms = USUAL,
) -> Predicted:
    """What each head says of each object; one pass of the encoder serves them all.

    What cannot work for any object is told at once: heads of another space, a prior that no head can take.
    """
    for shelved in heads.values():
        shelved.head.check(engine)
    _check_prior(heads, prior)
    fitted = any(not isinstance(shelved.head, RedshiftToken) for shelved in heads.values())
    out: list[Prediction[Answers]] = []
    tokenizing = encoding = predicting = 0.0
    for part in encoded(engine, inputs, subjects, fitted, terms):
        began = time.perf_counter()
        with tally().timings.stage("predict"):
            told = _told(engine, heads, prior, part)
        all_good([one.outcome for one in told], terms)
        out += told
        predicting += time.perf_counter() - began
        tokenizing += part.tokenize_seconds
        encoding += part.encode_seconds
        progress(len(part.outcomes))
    return Predicted(engine.space("tokens"), engine.numerics, heads, tuple(out), tokenizing, encoding, predicting)


def predict_tokens(
    engine: Engine, tokens: Sequence[Tokens], shelved: Shelved, prior: AnyPrior
) -> list[Answer | AlbireoError]:
    """What one head says of objects of which there are only tokens. Flags that look at measurements are not set."""
    shelved.head.check(engine)
    _check_prior({shelved.name: shelved}, prior)
    unseen = [Observation(str(n), {}) for n in range(len(tokens))]
    outcomes = [Outcome(Subject(one.id, None, one)) for one in unseen]
    out: list[Answer | AlbireoError] = []
    for part in _encoded(engine, outcomes, tokens, not isinstance(shelved.head, RedshiftToken)):
        with tally().timings.stage("predict"):
            told = _told(engine, {shelved.name: shelved}, prior, part)
        for one in told:
            error = one.outcome.error
            out.append(error if error is not None else (one.answer or {})[shelved.name])
    return out


def as_data(answer: Answer, with_density: bool) -> dict[str, Any]:
    """What one head says of one object, as plain data; the edges of a density's cells stand elsewhere, once for all."""
    density = answer.density
    return {
        "numbers": [
            {
                "name": number.name,
                "unit": number.unit,
                "value": number.value,
                "intervals": [
                    {"level": level, "low": low, "high": high} for level, (low, high) in number.intervals.items()
                ],
            }
            for number in answer.numbers
        ],
        "class": next(iter(answer.classes), None),
        "classes": dict(answer.classes),
        "density": None
        if density is None
        else {"mean": density.mean, "std": density.std, "mode": density.mode}
        | ({"probability": density.probability.tolist()} if with_density else {}),
        "flags": list(answer.flags),
        "typicality": answer.typicality if math.isfinite(answer.typicality) else None,
    }


def with_refused(predictions: Sequence[Prediction[Answers]]) -> list[Outcome]:
    """The outcomes, and one more for every head that refused an object of which others said something."""
    outcomes = [one.outcome for one in predictions]
    for one in predictions:
        for name, answer in (one.answer or {}).items():
            if isinstance(answer, AlbireoError):
                outcomes.append(one.outcome.failed(answer.at(file=one.outcome.subject.file, field=name)))
    return outcomes


def status_of(one: Prediction[Answers]) -> Literal["ok", "degraded", "error"]:
    """ "degraded" also when a head refused an object of which others said something."""
    refused = any(isinstance(answer, AlbireoError) for answer in (one.answer or {}).values())
    return "degraded" if refused else one.outcome.status


def without_labels(observation: Observation) -> Observation:
    """What a head may see of an object: its measurements. No position, no metadata, no flag that speaks of them."""
    return Observation(observation.id, observation.data)


def _check_prior(heads: Mapping[str, Shelved], prior: AnyPrior) -> None:
    """BadInput if a prior of redshift was given that some head cannot take, or none."""
    if prior is None:
        return
    if not any(shelved.task == "redshift" for shelved in heads.values()):
        names = ", ".join(heads)
        raise BadInput("option_invalid", f"a prior of redshift for {names}", field="prior", fix="leave it out")
    for name, shelved in heads.items():
        if isinstance(shelved.head, RedshiftToken):
            raise BadInput(
                "option_invalid",
                f"what {name} was trained on is not known: its prior cannot be taken out",
                field="prior",
                fix="leave the prior out, or use a head that was fitted for redshifts",
            )


def _told(engine: Engine, heads: Mapping[str, Shelved], prior: AnyPrior, part: Encoded) -> list[Prediction[Answers]]:
    """What the heads say of a few objects; those without tokens failed before."""
    at = [i for i, outcome in enumerate(part.outcomes) if outcome.error is None]
    by_head = {name: _of_head(engine, shelved, prior, at, part) for name, shelved in heads.items()}
    out: list[Prediction[Answers]] = [Prediction(outcome) for outcome in part.outcomes]
    for n, i in enumerate(at):
        outcome, tokens = part.outcomes[i], part.tokens[i]
        assert tokens is not None
        answers: Answers = {name: results[n] for name, results in by_head.items()}
        errors = [answer for answer in answers.values() if isinstance(answer, AlbireoError)]
        if len(errors) == len(answers):
            out[i] = Prediction(outcome.failed(errors[0].at(file=outcome.subject.file)))
        else:
            out[i] = Prediction(outcome, tuple(MODALITIES[key].name for key in tokens.ids), answers, tokens.n_tokens)
    return out


def _of_head(
    engine: Engine, shelved: Shelved, prior: AnyPrior, at: Sequence[int], part: Encoded
) -> list[Answer | AlbireoError]:
    """What one head says of the objects numbered `at`; one that it refuses is refused alone."""
    head = shelved.head

    def compute(some: list[int]) -> list[Answer]:
        if isinstance(head, RedshiftToken):
            return head.predict(engine, [tokens for i in some if (tokens := part.tokens[i]) is not None])
        states = [state for i in some if (state := part.states[i]) is not None]
        seen = [without_labels(one) for i in some if (one := part.outcomes[i].subject.observation) is not None]
        return head.predict(states, seen, _prior_of(head, prior))

    return all_or_each(compute, at)


def _prior_of(head: Head, prior: AnyPrior) -> Prior | None:
    if head.prior is None:
        return None
    return Prior.flat(float(head.prior.edges[0]), float(head.prior.edges[-1])) if prior == "flat" else prior
