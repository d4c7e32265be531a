"""Draws of a modality for objects: what is asked, what may be known for it, what came of it.

Wanted       what is to be drawn, and what may be known for that
Drawn        the draws of one object
check_draws  how many of them one request may have
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from albireo.models.engine import Engine, Tokens
from albireo.models.generation import Sampling, n_encoded, target_spec
from albireo.models.generation import generate as draw
from albireo.observations.errors import AlbireoError, BadInput, TooLarge
from albireo.observations.modalities import MODALITIES, modality
from albireo.observations.observation import Payload
from albireo.service.core import Outcome, all_good, all_or_each, selected, tokenized
from albireo.service.predictions import Prediction
from albireo.service.subjects import Subject
from albireo.service.terms import USUAL, Terms
from albireo.service.token_verbs import values_of
from albireo.service.watch import tally
from albireo.tokenizers.checkpoint import TokenSpec

Result = TypeVar("Result")

AT_ONCE = 64
"""Draws that are on their way at a time, of one object at least."""

MAX_ROUNDS = 1000
"""Rounds that a request to the service may ask for; no modality has as many tokens."""


@dataclass(frozen=True)
class Drawn:
    """Draws of a modality for one object.

    codes   (draws, n_tokens)
    values  (draws, ...) in the modality's unit, with the axes of its tokenizer's `decode`
    given   the modality as the files have it, if they do; the model saw of it what `Wanted` lets it see
    """

    codes: NDArray[np.int64]
    values: NDArray[np.float32]
    given: Payload | None


@dataclass(frozen=True)
class Wanted:
    """What is to be drawn for an object, and what may be known of it.

    target   token key of what is drawn. What the files say of it is left aside, unless a part is to stay known:
    mask     x0, y0, x1, y1: an image or map stays known but for tokens of this box of pixels
    keep     low, high: a spectrum stays known in tokens that lie within these wavelengths in Angstrom
    sources  token keys of what may be known beside the target; None = all that there is
    """

    target: str
    mask: tuple[int, int, int, int] | None = None
    keep: tuple[float, float] | None = None
    sources: frozenset[str] | None = None

    def __post_init__(self) -> None:
        row = MODALITIES[self.target]
        of_kind = {"mask": row.kind in ("image", "segmentation"), "keep": row.kind == "spectrum"}
        for option, possible in of_kind.items():
            if getattr(self, option) is not None and not possible:
                raise BadInput("option_invalid", f"{option} does not go with {row.name}", field=option)
        if self.keep is not None and not self.keep[0] < self.keep[1]:
            raise BadInput("option_invalid", f"no range of wavelengths: {self.keep}", field="keep", fix="LOW,HIGH")
        if self.sources is not None and self.target in self.sources:
            raise BadInput(
                "option_invalid",
                f"{row.name} is what is drawn",
                field="from",
                fix="name it as the target only; mask and keep say which part of it stays known",
            )

    @classmethod
    def named(
        cls,
        target: str,
        mask: tuple[int, int, int, int] | None = None,
        keep: tuple[float, float] | None = None,
        sources: Sequence[str] | None = None,
    ) -> Wanted:
        """The same by public names of modalities or by token keys; no `sources` are all. BadInput modality_unknown."""
        known = frozenset(modality(name).key for name in sources) if sources else None
        return cls(modality(target).key, mask, keep, known)

    def dropped(self, engine: Engine) -> NDArray[np.bool_] | None:
        """(n_tokens,) True for the tokens of the target that are drawn; None if that is all of them."""
        if self.mask is not None:
            dropped = engine.positions(self.target, self.mask)
            everything = np.ones_like(dropped)
        elif self.keep is not None:
            low, high = self.keep
            below, above = (engine.positions(self.target, r) for r in ((-math.inf, low), (high, math.inf)))
            dropped, everything = below | above, engine.positions(self.target, (-math.inf, math.inf))
        else:
            return None
        option = "keep" if self.mask is None else "mask"
        if (dropped == everything).all():
            raise BadInput("option_invalid", "no token stays known", field=option, fix="leave it out, or keep more")
        if not dropped.any():
            raise BadInput("nothing_to_generate", "every token stays known", field=option, fix="keep less")
        return dropped

    def known(self, subject: Subject) -> Subject:
        """The object with nothing but what may be known of it."""
        observation, name = subject.observation, MODALITIES[self.target].name
        if observation is None or not observation.data:
            return subject
        in_part = self.mask is not None or self.keep is not None
        if in_part and self.target not in observation.data:
            error = BadInput("value_missing", f"the object has no {name} that could stay known in part", field=name)
            return subject.failed(error.at(file=subject.file))
        data = {
            key: payload
            for key, payload in observation.data.items()
            if (in_part if key == self.target else self.sources is None or key in self.sources)
        }
        if not data:
            error = BadInput(
                "nothing_to_embed",
                f"nothing is left to draw {name} from; the object has "
                + ", ".join(MODALITIES[key].name for key in observation.data),
                field=name,
                fix="give another modality of the object, or say which part of this one stays known",
            )
            return subject.failed(error.at(file=subject.file))
        return replace(subject, observation=replace(observation, data=data))


def check_draws(objects: int, sampling: Sampling, limit: int) -> None:
    """TooLarge if a request asks for more draws, of all its objects together, than one may."""
    if objects * sampling.draws > limit:
        raise TooLarge(
            "too_large",
            f"{sampling.draws} draws for each of {objects} objects, the limit is {limit} draws a request",
            field="draws",
            fix="ask for fewer at a time, or raise ALBIREO_MAX_DRAWS",
        )


def generate(
    engine: Engine,
    inputs: Mapping[str, TokenSpec],
    subjects: Sequence[Subject],
    wanted: Wanted,
    sampling: Sampling,
    progress: Callable[[int], None],
    terms: Terms = USUAL,
) -> list[Prediction[Drawn]]:
    """Draws for each object, from what may be known of it and is among `inputs`; bad objects fail alone, or all: see
    `Terms`. Flags count that any file of an object has, of what is not known of it too."""
    target_spec(engine, wanted.target)  # A target that cannot be drawn is told at once, not object by object.
    dropped = wanted.dropped(engine)
    size = max(1, AT_ONCE // sampling.draws)
    out: list[Prediction[Drawn]] = []
    chosen = all_good([selected(wanted.known(subject), inputs, terms) for subject in subjects], terms)
    for start in range(0, len(subjects), size):
        whole = subjects[start : start + size]
        outcomes, tokens = tokenized(engine, chosen[start : start + size], terms)
        all_good(outcomes, terms)
        if dropped is not None:
            tokens = [one and replace(one, mask={**one.mask, wanted.target: dropped}) for one in tokens]
        answers = _drawn(engine, outcomes, tokens, wanted.target, sampling, progress)
        all_good([answer.outcome for answer in answers], terms)
        out += [_decoded(engine, wanted.target, one, subject) for one, subject in zip(answers, whole, strict=True)]
    return out


def _drawn(
    engine: Engine,
    outcomes: Sequence[Outcome],
    tokens: Sequence[Tokens | None],
    target: str,
    sampling: Sampling,
    progress: Callable[[int], None],
) -> list[Prediction[NDArray[np.int64]]]:
    """Tokens (draws, n_tokens) of each object. Rounds that were not needed are told to progress in the end."""
    done = 0

    def tell(rounds: int) -> None:
        nonlocal done
        progress((rounds - done) * len(outcomes))
        done = rounds

    with tally().timings.stage("predict"):
        answers = _answered(outcomes, tokens, lambda batch: draw(engine, batch, target, sampling, tell))
    tell(sampling.rounds)
    spec = target_spec(engine, target)
    return [
        replace(answer, n_tokens=n_encoded(one, target, spec, sampling)) if one and not answer.outcome.error else answer
        for answer, one in zip(answers, tokens, strict=True)
    ]


def _decoded(engine: Engine, target: str, drawn: Prediction[NDArray[np.int64]], subject: Subject) -> Prediction[Drawn]:
    """The numbers that the tokens drawn stand for, beside what the files have."""
    if drawn.answer is None:
        return Prediction(drawn.outcome, drawn.modalities)
    given = subject.observation.data.get(target) if subject.observation else None
    with tally().timings.stage("predict"):
        values = values_of(engine, target, drawn.answer)
    return Prediction(drawn.outcome, drawn.modalities, Drawn(drawn.answer, values, given), drawn.n_tokens)


def _answered(
    outcomes: Sequence[Outcome], tokens: Sequence[Tokens | None], compute: Callable[[list[Tokens]], list[Result]]
) -> list[Prediction[Result]]:
    """What is computed of the objects that have tokens; the others failed before."""
    results = iter(all_or_each(compute, [one for one in tokens if one is not None]))
    out: list[Prediction[Result]] = []
    for outcome, one in zip(outcomes, tokens, strict=True):
        result = None if one is None else next(results)
        if one is None:
            out.append(Prediction(outcome))
        elif isinstance(result, AlbireoError):
            out.append(Prediction(outcome.failed(result.at(file=outcome.subject.file))))
        else:
            out.append(Prediction(outcome, tuple(MODALITIES[key].name for key in one.ids), result))
    return out
