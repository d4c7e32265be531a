"""What an encoder makes of sets of objects, each object once.

Codes      tokens of every measurement
Encoder    token states, on disk
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from albireo.models.engine import Tokens
from albireo.models.token_states import StatesWriter, TokenStates, folder_of
from albireo.models.torch_engine import TorchEngine
from albireo.observations.errors import AlbireoError
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Coefficients, Observation, Payload, Scalar
from benchmarks.labelled import Dataset
from benchmarks.questions import Question

BATCH = 64


class Codes:
    """Tokens of every measurement of every object, once, for encoders that stand behind the same tokenizers."""

    def __init__(self, engine: TorchEngine) -> None:
        self.engine = engine
        self._known: dict[tuple[str, str, str], NDArray[np.int64]] = {}

    def of(self, dataset: str, observation: Observation) -> Tokens | AlbireoError:
        """Of one object of a set, in which an id and a modality always are the same measurement."""
        places = {key: (dataset, observation.id, key) for key in observation.data}
        new = {key: payload for key, payload in observation.data.items() if places[key] not in self._known}
        if new:
            (tokens,) = self.engine.tokenize([replace(observation, data=new)])
            if isinstance(tokens, AlbireoError):
                return tokens
            self._known |= {places[key]: ids for key, ids in tokens.ids.items()}
        return Tokens({key: self._known[place] for key, place in places.items()})


class Encoder:
    """An engine, the tokens it reads, and the token states of what it has embedded, on disk under `root`."""

    def __init__(self, name: str, engine: TorchEngine, root: Path, codes: Codes | None = None) -> None:
        self.name, self.engine, self.root, self.codes = name, engine, root / name, codes or Codes(engine)

    def reads(self, question: Question) -> bool:
        """Whether it has codecs for one modality at least of each group that the question needs and gives."""
        given = [set(group) & set(question.keys) for group in question.needed]
        return all(group & self.engine.inputs.keys() for group in given if group)

    def states(self, dataset: Dataset, keys: Iterable[str] | None = None) -> TokenStates:
        """Of every object that can be embedded, of these modalities, and of others of the set embedded before.

        keys  None: all that it reads. An object is embedded once for all questions that give the same modalities
        """
        wanted = sorted(self.engine.inputs.keys() if keys is None else self.engine.inputs.keys() & set(keys))
        inputs = hashlib.sha256(json.dumps([dataset.name, dataset.note, wanted]).encode()).hexdigest()
        with StatesWriter(folder_of(self.root, self.engine.space("tokens"), inputs), self.engine) as writer:
            todo = [self._readable(one, wanted) for one in dataset.observations if one.id not in writer.written]
            for start in range(0, len(todo), BATCH):
                read = [(one, self.codes.of(dataset.name, one)) for one in todo[start : start + BATCH] if one.data]
                good = [(one, tokens) for one, tokens in read if isinstance(tokens, Tokens)]
                embeddings = self.engine.embed([tokens for _, tokens in good], "tokens")
                for (one, _), embedding in zip(good, embeddings, strict=True):
                    writer.add(one, embedding)
            return writer.close()

    def _readable(self, observation: Observation, keys: Iterable[str]) -> Observation:
        wanted = self.engine.inputs.keys() & set(keys)
        return replace(observation, data={key: one for key, one in observation.data.items() if key in wanted})

    def quantised(self, dataset: Dataset) -> Dataset:
        """The objects with the numbers that the tokens of their scalars and coefficients stand for."""
        read = [self.codes.of(dataset.name, self._readable(one, one.data)) for one in dataset.observations]
        numbers: list[dict[str, Payload]] = [dict(one.data) for one in dataset.observations]
        for key in self.engine.inputs:
            kind = MODALITIES[key].kind
            rows = [k for k, tokens in enumerate(read) if isinstance(tokens, Tokens) and key in tokens.ids]
            if kind not in ("scalar", "coefficients") or not rows:
                continue
            values = self.engine.values(key, np.stack([read[k].ids[key] for k in rows]))  # type: ignore[union-attr]
            for k, row in zip(rows, values, strict=True):
                unit = MODALITIES[key].unit
                numbers[k][key] = Scalar(float(row[0]), unit) if kind == "scalar" else Coefficients(row, unit)
        pairs = zip(dataset.observations, numbers, strict=True)
        return replace(dataset, observations=tuple(replace(one, data=data) for one, data in pairs))
