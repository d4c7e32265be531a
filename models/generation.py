"""Generation by random-order autoregression (ROAR, as AION-1 and 4M do it): tokens of one modality, given any others.

In every round some of the unknown positions are drawn, their tokens sampled from the model's logits, and given to the
encoder with the rest. So a spectrum comes from photometry (nothing of the target known), a wider or finer one from
another survey's, an image with a hole is filled (the target given, its hole masked).
Joint draws over many tokens are samples of the model, not calibrated probabilities.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from albireo.models.engine import Engine, Tokens
from albireo.models.transformer import WITHIN
from albireo.observations.errors import BadInput
from albireo.tokenizers.checkpoint import TokenSpec

Codes = NDArray[np.int64]

LOGITS = 1 << 26
"""Logits that are held at a time, of one draw at least: 256 MB of float32."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    rounds       encoder-decoder passes; more rounds make tokens agree better with each other
    schedule     how many tokens a round fills: "cosine" (few, many, few) or "linear"
    temperature  of the softmax; 0 takes the most probable token
    cooling      over the rounds: "constant", "linear" (to 0 as positions are filled) or "power" (faster at first)
    top_k        keep only the k most probable tokens; 0 = all
    top_p        keep the most probable tokens that together have this probability; 0 or 1 = all
    guidance     1 = none; g > 1 pushes away from what the model expects without the other modalities:
                 l_without + g (l_with - l_without)
    draws        independent samples per object
    seed         same seed, same object, same draws, whatever else is in the batch
    """

    rounds: int = 8
    schedule: Literal["cosine", "linear"] = "cosine"
    temperature: float = 1.0
    cooling: Literal["constant", "linear", "power"] = "constant"
    top_k: int = 0
    top_p: float = 0.0
    guidance: float = 1.0
    draws: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {
            "rounds": self.rounds >= 1,
            "schedule": self.schedule in ("cosine", "linear"),
            "temperature": self.temperature >= 0 and math.isfinite(self.temperature),
            "cooling": self.cooling in COOLINGS,
            "top_k": self.top_k >= 0,
            "top_p": 0 <= self.top_p <= 1,
            "guidance": math.isfinite(self.guidance),
            "draws": self.draws >= 1,
            "seed": self.seed >= 0,
        }
        for name, fine in limits.items():
            if not fine:
                raise BadInput("option_invalid", f"{name} = {getattr(self, name)!r}", field=name)


def counts(schedule: str, rounds: int, total: int) -> list[int]:
    """Tokens filled in each round, `total` together; rounds that would fill none are left out."""
    if schedule == "linear":
        edges = np.linspace(0, total, rounds + 1).astype(int)
        filled = sorted(np.diff(edges).tolist(), reverse=True)
    else:
        left = [0.5 * (1 + math.cos(math.pi * i / rounds)) for i in range(rounds)]
        filled = [round(total * (a - b)) for a, b in pairwise(left)]
        filled.append(total - sum(filled))
        if filled[-1] < 0:  # rounding each round by itself, as the released code does, filled more than there is
            filled = np.diff([0, *(round(total * (1 - a)) for a in left[1:]), total]).tolist()
    return [n for n in filled if n > 0]


def _constant(share_before: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.ones_like(share_before)


def _linear(share_before: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1.0 - share_before


def _power(share_before: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / sqrt of a position running from 1 to 100, brought to 1 at the start and 0 at the end."""
    curve = 1.0 / np.sqrt(1.0 + 99.0 * share_before)
    return (1.0 - share_before) * (curve - 0.1) / 0.9


COOLINGS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "constant": _constant,
    "linear": _linear,
    "power": _power,
}
"""Share of positions known before a round -> its temperature, relative to the first."""


def temperatures(cooling: str, start: float, filled: Sequence[int]) -> list[float]:
    """Temperature of each round."""
    before = np.concatenate([[0.0], np.cumsum(filled)[:-1]]) / max(1, sum(filled))
    return [float(start * heat) for heat in COOLINGS[cooling](before)]


def probabilities(
    logits: NDArray[np.floating], temperature: float, top_k: int = 0, top_p: float = 0.0
) -> NDArray[np.float64]:
    """Logits (n, V) -> probabilities (n, V). What is kept is decided at temperature 1, as in the released sampler."""
    x = logits.astype(np.float64)
    if temperature < 1e-9:
        return np.where(np.arange(x.shape[1]) == x.argmax(axis=1, keepdims=True), 1.0, 0.0)
    if 0 < top_k < x.shape[1]:
        x = np.where(x < np.partition(x, -top_k, axis=1)[:, -top_k, None], -np.inf, x)
    if 0 < top_p < 1:
        order = np.argsort(-x, axis=1, kind="stable")
        ranked = _softmax(np.take_along_axis(x, order, axis=1))
        dropped = np.cumsum(ranked, axis=1) - ranked > top_p
        np.put_along_axis(x, order, np.where(dropped, -np.inf, np.take_along_axis(x, order, axis=1)), axis=1)
    return _softmax(x / temperature)


def generate(
    engine: Engine,
    tokens: Sequence[Tokens],
    target: str,
    sampling: Sampling | None = None,
    progress: Callable[[int], None] = lambda rounds: None,
) -> list[Codes]:
    """Tokens (draws, n) of modality `target` for each object: those given and not masked stay, the others are drawn.

    tokens    what is known of each object. If `target` is among it, its masked positions are filled in; if nothing
              of it is masked there is nothing to do, which is an error.
    progress  is told how many rounds are done, of `len(rounds)` at most
    """
    sampling = sampling or Sampling()
    spec = target_spec(engine, target)
    codes = engine.n_codes(target)  # a row of the vocabulary beyond the codes stands for nothing
    states = [_Draw(one, target, spec, sampling, draw) for one in tokens for draw in range(sampling.draws)]
    for turn in range(max((len(state.filled) for state in states), default=0)):
        for part in _portions([state for state in states if turn < len(state.filled)], turn, spec.vocab_size):
            for state, row in zip(part, _logits(engine, part, turn, codes), strict=True):
                state.fill(turn, row)
        progress(turn + 1)
    n = sampling.draws
    return [np.stack([state.codes for state in states[i : i + n]]) for i in range(0, len(states), n)]


def n_encoded(tokens: Tokens, target: str, spec: TokenSpec, sampling: Sampling) -> int:
    """Tokens that the encoder reads to draw for one object: what is known by then, in every round of every draw."""
    given = int((~tokens.mask[target]).sum()) if target in tokens.mask else len(tokens.ids.get(target, ()))
    filled = counts(sampling.schedule, sampling.rounds, spec.n_tokens - given)
    before = np.cumsum([0, *filled[:-1]])
    alone = given + before if sampling.guidance != 1.0 else 0 * before
    return sampling.draws * int((tokens.n_tokens + before + alone).sum())


class _Draw:
    """One draw for one object, on its way: which positions are known, and what comes next."""

    def __init__(self, tokens: Tokens, target: str, spec: TokenSpec, sampling: Sampling, draw: int) -> None:
        self.tokens, self.target, self.sampling = tokens, target, sampling
        self.codes = np.array(tokens.ids.get(target, np.zeros(spec.n_tokens)), dtype=np.int64)
        absent = np.full(spec.n_tokens, target not in tokens.ids)
        self.unknown = np.array(tokens.mask.get(target, absent), dtype=bool)
        if len(self.codes) != spec.n_tokens or len(self.unknown) != spec.n_tokens:
            raise BadInput("shape_mismatch", f"{len(self.codes)} tokens, not {spec.n_tokens}", field=target)
        if not self.unknown.any():
            raise BadInput(
                "nothing_to_generate",
                f"every token of {target} is given",
                field=target,
                fix="leave the modality out, or mask what is to be drawn",
            )
        self.codes[self.unknown] = 0
        self.random = np.random.default_rng([sampling.seed, draw, _digest(tokens)])
        self.order = self.random.permutation(np.flatnonzero(self.unknown))
        self.filled = counts(sampling.schedule, sampling.rounds, len(self.order))
        self.heat = temperatures(sampling.cooling, sampling.temperature, self.filled)

    def positions(self, turn: int) -> Codes:
        """Positions drawn in a round."""
        start = sum(self.filled[:turn])
        return np.sort(self.order[start : start + self.filled[turn]])

    def given(self) -> Tokens:
        """Everything known so far."""
        known = self.alone()
        ids = {key: value for key, value in self.tokens.ids.items() if key != self.target}
        return replace(known, ids={**ids, **known.ids}, mask={**_others(self.tokens, self.target), **known.mask})

    def alone(self) -> Tokens:
        """What is known of the target, without the other modalities."""
        if self.unknown.all():
            return Tokens({})
        return Tokens({self.target: self.codes.copy()}, {self.target: self.unknown.copy()})

    def fill(self, turn: int, logits: NDArray[np.float32]) -> None:
        """Sample the tokens of a round from logits (n, V)."""
        chance = probabilities(logits, self.heat[turn], self.sampling.top_k, self.sampling.top_p)
        height = self.random.random((len(chance), 1))
        cumulative = np.cumsum(chance, axis=1)
        at = self.positions(turn)
        self.codes[at] = (cumulative <= height * cumulative[:, -1:]).sum(axis=1).clip(max=chance.shape[1] - 1)
        self.unknown[at] = False


def _portions(states: Sequence[_Draw], turn: int, vocabulary: int) -> Iterator[list[_Draw]]:
    """The states, as many at a time as their logits of a round may be held."""
    part: list[_Draw] = []
    size = 0
    for state in states:
        more = state.filled[turn] * vocabulary
        if part and size + more > LOGITS:
            yield part
            part, size = [], 0
        part.append(state)
        size += more
    if part:
        yield part


def _logits(engine: Engine, states: Sequence[_Draw], turn: int, codes: int) -> list[NDArray[np.float32]]:
    """Logits (n, codes) of the positions that each state fills in a round."""
    target, guidance = states[0].target, states[0].sampling.guidance
    asked = [{target: state.positions(turn)} for state in states]
    logits = [row[target][:, :codes] for row in engine.logits([s.given() for s in states], asked, WITHIN)]
    if guidance == 1.0:
        return logits
    without = [row[target][:, :codes] for row in engine.logits([s.alone() for s in states], asked, WITHIN)]
    return [base + guidance * (row - base) for row, base in zip(logits, without, strict=True)]


def _others(tokens: Tokens, target: str) -> dict[str, NDArray[np.bool_]]:
    return {key: mask for key, mask in tokens.mask.items() if key != target}


def target_spec(engine: Engine, target: str) -> TokenSpec:
    """Tokens of a modality that can be drawn; BadInput if it cannot."""
    spec = engine.outputs.get(target)
    if spec is None:
        raise BadInput(
            "modality_not_in_checkpoint",
            f"{target} is no output of this checkpoint",
            field=target,
            fix=f"one of {', '.join(engine.outputs)}",
        )
    if spec.n_tokens > 1 and engine.inputs.get(target) is None:
        raise BadInput(
            "modality_not_in_checkpoint", f"{target} is no input of this checkpoint: it cannot be built up in rounds",
            field=target,
        )  # fmt: skip
    return spec


def _digest(tokens: Tokens) -> int:
    """A number that stands for what is known of an object."""
    digest = hashlib.sha256()
    for key in sorted(tokens.ids):
        digest.update(key.encode() + np.ascontiguousarray(tokens.ids[key], np.int64).tobytes())
        if key in tokens.mask:
            digest.update(np.ascontiguousarray(tokens.mask[key], bool).tobytes())
    return int.from_bytes(digest.digest()[:8], "big")


def _softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    out: NDArray[np.float64] = e / e.sum(axis=1, keepdims=True)
    return out
