"""Tokens of objects, and the numbers that tokens stand for: what was made, and by which quantisers.

Quantiser      what decides the tokens of a modality
Decoded        what the tokens of one object stand for
tokenize       objects to tokens
detokenize     tokens to numbers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from albireo.models.engine import CodecEngine, Engine, Tokens
from albireo.observations.catalogs import COLUMNS
from albireo.observations.errors import AlbireoError, BadInput, Conflict
from albireo.observations.modalities import MODALITIES, modality
from albireo.service.core import CHUNK, Outcome, all_good, all_or_each, selected, tokenized
from albireo.service.predictions import Prediction
from albireo.service.subjects import Subject
from albireo.service.terms import USUAL, Terms
from albireo.tokenizers.checkpoint import TokenSpec

AT_ONCE = 16
"""Objects that a decoder works on at a time: pictures take megabytes in its layers."""


@dataclass(frozen=True)
class Quantiser:
    """What decides the tokens of a modality, and what they decode to.

    codec       fingerprint of its configuration and weights, and what its networks compute in
    n_tokens    of one object; of a catalog the most that there may be
    vocabulary  number of codes that stand for something: 0 to vocabulary - 1
    grid        (height, width) of the tokens of an object
    """

    key: str
    codec: str
    n_tokens: int
    vocabulary: int
    grid: tuple[int, int]

    @property
    def name(self) -> str:
        return MODALITIES[self.key].name

    @property
    def dtype(self) -> type[np.uint16] | type[np.uint32]:
        """The smallest type that holds every code."""
        return np.uint16 if self.vocabulary <= 1 << 16 else np.uint32


@dataclass(frozen=True)
class Given:
    """Tokens of one object as they were sent: modality, by either name -> ids."""

    id: str | None
    tokens: Mapping[str, Sequence[int] | NDArray[Any]]


@dataclass(frozen=True)
class Decoded:
    """Of one object: token key -> numbers in the modality's unit, with the axes of its tokenizer's `decode` after the
    first; or why the object has none."""

    id: str | None
    values: Mapping[str, NDArray[np.float32]]
    error: AlbireoError | None = None


_KNOWN: WeakKeyDictionary[Engine, dict[str, Quantiser]] = WeakKeyDictionary()


def quantisers(engine: Engine) -> Mapping[str, Quantiser]:
    """Token key -> quantiser, of what the engine makes tokens of or decodes, in the table's order."""
    while (inside := getattr(engine, "engine", None)) is not None:  # what stands around an engine has it so
        engine = inside
    if engine not in _KNOWN:
        coded = cast(CodecEngine, engine)
        specs = {**engine.outputs, **engine.inputs}
        _KNOWN[engine] = {
            key: Quantiser(key, coded.codec(key), specs[key].n_tokens, engine.n_codes(key), coded.grid(key))
            for key in MODALITIES
            if key in specs and _has_codec(engine, key)
        }
    return _KNOWN[engine]


def _has_codec(engine: Engine, key: str) -> bool:
    """False of what a checkpoint predicts and has no codec of."""
    try:
        engine.n_codes(key)
    except BadInput:
        return False
    return True


def tokenize(
    engine: Engine, inputs: Mapping[str, TokenSpec], subjects: Sequence[Subject], terms: Terms = USUAL
) -> list[Prediction[Tokens]]:
    """The tokens of each object, of its modalities among `inputs`; bad objects fail alone, or all: see `Terms`."""
    out: list[Prediction[Tokens]] = []
    chosen = all_good([selected(subject, inputs, terms) for subject in subjects], terms)
    for start in range(0, len(chosen), CHUNK):
        outcomes, tokens = tokenized(engine, chosen[start : start + CHUNK], terms)
        out += [_made(outcome, one) for outcome, one in zip(all_good(outcomes, terms), tokens, strict=True)]
    return out


def _made(outcome: Outcome, tokens: Tokens | None) -> Prediction[Tokens]:
    if tokens is None:
        return Prediction(outcome)
    names = tuple(MODALITIES[key].name for key in MODALITIES if key in tokens.ids)
    return Prediction(outcome, names, tokens, tokens.n_tokens)


def detokenize(engine: Engine, given: Sequence[Given], codecs: Mapping[str, str]) -> list[Decoded]:
    """What the tokens of each object stand for; bad objects fail alone.

    codecs  fingerprints that came with the tokens, by modality. Conflict space_mismatch if one is not the engine's:
            its codes would stand for something else
    """
    known = quantisers(engine)
    for name, codec in codecs.items():
        one = known.get(modality(name).key)
        if one is not None and one.codec != codec:
            raise Conflict(
                "space_mismatch",
                f"the tokens of {one.name} are of the codec {codec[:12]}, this one is {one.codec[:12]}",
                field=f"codecs.{name}",
                fix="decode them with the model that made them",
            )
    checked = [_checked(one, known) for one in given]
    values: list[dict[str, NDArray[np.float32]]] = [{} for _ in given]
    errors = [one if isinstance(one, AlbireoError) else None for one in checked]
    for key, n in dict.fromkeys(
        (key, len(ids)) for one in checked if isinstance(one, dict) for key, ids in one.items()
    ):
        at = [i for i, one in enumerate(checked) if isinstance(one, dict) and key in one and len(one[key]) == n]
        rows = [cast(dict[str, NDArray[np.int64]], checked[i])[key] for i in at]
        for i, result in zip(at, _values(engine, key, rows), strict=True):
            if isinstance(result, AlbireoError):
                errors[i] = errors[i] or result.at(field=MODALITIES[key].name)
            else:
                values[i][key] = result
    return [
        Decoded(one.id, {} if error else {key: row[key] for key in MODALITIES if key in row}, error)
        for one, row, error in zip(given, values, errors, strict=True)
    ]


def values_of(engine: Engine, key: str, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """The numbers (N, ...) of many rows (N, n) of ids; AT_ONCE of them are decoded at a time."""
    return np.concatenate([engine.values(key, ids[i : i + AT_ONCE]) for i in range(0, len(ids), AT_ONCE)])


def _values(engine: Engine, key: str, rows: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32] | AlbireoError]:
    """The numbers of each row of ids, which are equally long."""
    out: list[NDArray[np.float32] | AlbireoError] = []
    for start in range(0, len(rows), AT_ONCE):
        out += all_or_each(lambda some: list(engine.values(key, np.stack(some))), rows[start : start + AT_ONCE])
    return out


def _checked(given: Given, known: Mapping[str, Quantiser]) -> dict[str, NDArray[np.int64]] | AlbireoError:
    """Ids (n,) by token key, or what is wrong with them."""
    try:
        if not given.tokens:
            raise BadInput("value_missing", "no tokens", field="tokens", fix="give the ids of at least one modality")
        out: dict[str, NDArray[np.int64]] = {}
        for name, ids in given.tokens.items():
            row = modality(name)
            if row.key not in known:
                raise BadInput(
                    "modality_not_in_checkpoint", f"the checkpoint has no codec of {row.name}", field=row.name,
                    fix="it has those of " + ", ".join(one.name for one in known.values()),
                )  # fmt: skip
            if row.key in out:
                raise BadInput("request_invalid", f"{row.name} is given twice", field=row.name, fix="give it once")
            out[row.key] = _ids(known[row.key], np.asarray(ids))
        return out
    except AlbireoError as error:
        return error


def _ids(quantiser: Quantiser, ids: NDArray[Any]) -> NDArray[np.int64]:
    """BadInput unless they are as many codes as an object has."""
    whole = MODALITIES[quantiser.key].kind != "catalog"
    right = ids.shape == (quantiser.n_tokens,) if whole else ids.ndim == 1 and 0 < len(ids) <= quantiser.n_tokens
    if not right or (not whole and len(ids) % len(COLUMNS)):
        wanted = str(quantiser.n_tokens) if whole else f"{len(COLUMNS)} an entry, {quantiser.n_tokens} at most"
        raise BadInput(
            "shape_mismatch", f"{ids.shape} ids of {quantiser.name}", field=quantiser.name, fix=f"give {wanted}"
        )
    if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= quantiser.vocabulary:
        raise BadInput(
            "value_out_of_range", f"no ids of {quantiser.name}", field=quantiser.name,
            fix=f"whole numbers from 0 to {quantiser.vocabulary - 1}",
        )  # fmt: skip
    return ids.astype(np.int64)
