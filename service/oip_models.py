"""What is served by the Open Inference Protocol: the encoder, a tokenizer for each modality, and the heads.

    Encoder    token ids -> embedding
    Tokenizer  raw tensors of one modality -> token ids
    HeadModel  token ids -> what a head says

A model reads a request into rows, one object each; computes rows, those of several requests at once where their options
are the same; and writes the results of a request as tensors. The first axis of every tensor is the row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from albireo.models.engine import POOLINGS, Embedding, Pooling, Tokens
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Observation
from albireo.service.oip_payloads import KINDS
from albireo.service.oip_tensors import INTEGERS, Array, Tensor, TensorSpec, Value, text_tensor
from albireo.service.priors import FLAT, TRAINING
from albireo.service.shelf import BUILT_IN

if TYPE_CHECKING:
    from albireo.models.heads import Answer
    from albireo.service.core import Core
    from albireo.service.shelf import Shelved

MASK = ".mask"
"""After a token key: the name of the mask of its tokens."""

OUTPUT_OF: Mapping[Pooling, str] = {"mean": "embedding", "mean_per_modality": "mean_per_modality", "tokens": "tokens"}
_POOLING_OF = {name: pooling for pooling, name in OUTPUT_OF.items()}

BLIND = (
    "fainter_than_training, brighter_than_training, z_token_saturated and those of the bands of an image look at the "
    "measurements, which tokens do not carry: they are never set here. /v1/predict sets them"
)
"""What is said of the flags of a head that is given tokens."""


@dataclass(frozen=True)
class InferRequest:
    """One request, of either door. `outputs` are the names asked for, () = what the model gives by default."""

    model: str
    inputs: Sequence[Tensor]
    parameters: Mapping[str, Value]
    outputs: tuple[str, ...] = ()
    version: str = ""
    id: str = ""


@dataclass(frozen=True)
class Job:
    """A request as a model understood it: its rows, the options they are computed with, and the outputs to give."""

    rows: Sequence[Any]
    options: Hashable
    outputs: tuple[str, ...]


class Model(ABC):
    """One model. `options` parameter -> what it does; `properties` what cannot be said of tensors alone."""

    name: str
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    options: Mapping[str, str]
    properties: Mapping[str, str]

    @abstractmethod
    def read(self, request: InferRequest, arrays: Mapping[str, Array]) -> Job:
        """A request whose tensors passed the checks of `inputs`. BadInput if it cannot be computed."""

    @abstractmethod
    def compute(self, core: Core, rows: Sequence[Any], options: Hashable) -> list[Any]:
        """What comes of each row, or why it has nothing."""

    @abstractmethod
    def write(self, job: Job, results: Sequence[Any]) -> list[Tensor]:
        """The outputs of a job. BadInput if what the rows got makes no tensor."""

    def check(self, core: Core) -> None:  # noqa: B027
        """AlbireoError if it cannot be asked with the engine that is loaded; only heads may be of another."""


class Encoder(Model):
    """Token ids to embeddings."""

    platform = "albireo_encoder"
    options: Mapping[str, str] = {
        "pooling": f"the output that is given when none is asked for: {', '.join(POOLINGS)}; default mean",
        "normalize": "true: every vector divided by its length",
    }

    def __init__(self, core: Core) -> None:
        engine = core.engine
        self.name = engine.name
        self.engine = engine
        self.inputs = token_specs(core)
        self.outputs = (
            TensorSpec("embedding", "FP32", (-1, engine.dim)),
            TensorSpec("mean_per_modality", "FP32", (-1, -1, engine.dim)),
            TensorSpec("tokens", "FP32", (-1, -1, engine.dim)),
        )
        self.properties = {
            "space": engine.space("mean"),
            "inputs": f"each modality is optional, at least one is needed; one that is absent is absent in every row; "
            f"<key>{MASK}, true = left out, may leave it out of single rows",
            "outputs": "mean_per_modality and tokens only where every row has the same modalities, or as many tokens",
            **{f"modality.{key}": MODALITIES[key].name for key in core.inputs},
        }

    def read(self, request: InferRequest, arrays: Mapping[str, Array]) -> Job:
        normalize = request.parameters.get("normalize", False)
        if not isinstance(normalize, bool):
            raise BadInput("option_invalid", f"normalize {normalize!r}", field="normalize", fix="true or false")
        poolings = self._poolings(request)
        rows = token_rows(arrays)
        for pooling in poolings:
            _check_regular(rows, pooling)
        return Job(rows, (poolings, normalize), tuple(OUTPUT_OF[pooling] for pooling in poolings))

    def _poolings(self, request: InferRequest) -> tuple[Pooling, ...]:
        stated = request.parameters.get("pooling")
        if stated is not None and stated not in POOLINGS:
            fix = f"one of {', '.join(POOLINGS)}"
            raise BadInput("option_invalid", f"pooling {stated!r}", field="pooling", fix=fix)
        asked = tuple(_POOLING_OF[name] for name in request.outputs)
        by_parameter = tuple(pooling for pooling in POOLINGS if pooling == stated)
        if asked and by_parameter and asked != by_parameter:
            told = f"pooling {stated!r}, but {', '.join(request.outputs)} is asked for"
            raise BadInput("option_invalid", told, field="pooling", fix="leave the parameter or the outputs out")
        return asked or by_parameter or ("mean",)

    def compute(self, core: Core, rows: Sequence[Tokens], options: Any) -> list[Any]:
        poolings, normalize = options
        by_pooling = [core.embed_tokens(rows, pooling, normalize) for pooling in poolings]
        return [_first_error(one) or one for one in zip(*by_pooling, strict=True)]

    def write(self, job: Job, results: Sequence[Sequence[Embedding]]) -> list[Tensor]:
        options: Any = job.options
        poolings, normalize = options
        out = []
        for n, pooling in enumerate(poolings):
            parameters: dict[str, Value] = {"space": self.engine.space(pooling, normalize)}
            if pooling != "mean":
                lengths = _lengths(job.rows[0])
                per_token = pooling == "tokens"
                parameters["axis"] = ",".join(f"{key}:{m}" if per_token else key for key, m in lengths.items())
            out.append(Tensor(OUTPUT_OF[pooling], "FP32", np.stack([one[n].values for one in results]), parameters))
        return out


class Tokenizer(Model):
    """Raw tensors of one modality to token ids, under the name by which the encoder takes them."""

    platform = "albireo_tokenizer"

    def __init__(self, core: Core, key: str) -> None:
        self.key = key
        self.row, self.raw = MODALITIES[key], KINDS[MODALITIES[key].kind](MODALITIES[key])
        self.name = tokenizer_name(core, key)
        self.inputs = self.raw.inputs
        length = -1 if self.row.kind == "catalog" else core.inputs[key].n_tokens
        self.outputs = (TensorSpec(key, INTEGERS[0], (-1, length)), TensorSpec("flags", "BYTES", (-1, 1)))
        conventions = self.raw.conventions
        self.options = {name: f"{value!r}, which may be left out" for name, value in conventions.items()}
        self.properties = {
            "modality": self.row.name,
            "space": core.described.space("mean"),
            "inputs": " ".join((type(self.raw).__doc__ or "").split()),
            "flags": "QA flags of each row, with commas between them",
            **conventions,
        }

    def read(self, request: InferRequest, arrays: Mapping[str, Array]) -> Job:
        rows: list[Observation | AlbireoError] = []
        for i, read in enumerate(self.raw.read(arrays, request.parameters)):
            if isinstance(read, AlbireoError):
                rows.append(read)
            else:
                rows.append(Observation(f"row {i}", {self.key: read[0]}, flags=read[1]))
        return Job(rows, (), request.outputs or tuple(spec.name for spec in self.outputs))

    def compute(self, core: Core, rows: Sequence[Observation], options: Hashable) -> list[Tokens | AlbireoError]:
        return core.engine.tokenize(rows)

    def write(self, job: Job, results: Sequence[Tokens]) -> list[Tensor]:
        ids = [one.ids[self.key] for one in results]
        if len({len(one) for one in ids}) > 1:
            told = f"rows of {', '.join(str(n) for n in sorted({len(one) for one in ids}))} tokens make no tensor"
            raise BadInput("shape_mismatch", told, field=self.key, fix="send catalogs of one length at a time")
        flags = [",".join(dict.fromkeys(row.flags + one.flags)) for row, one in zip(job.rows, results, strict=True)]
        return [Tensor(self.key, INTEGERS[0], np.stack(ids)), text_tensor("flags", flags)]


class HeadModel(Model):
    """Token ids to what one head says; one pass of the encoder in between."""

    platform = "albireo_head"

    def __init__(self, core: Core, shelved: Shelved) -> None:
        self.shelved = shelved
        self.name = head_name(shelved.name)
        self.inputs = token_specs(core)
        self.edges = shelved.edges(core.engine)
        n = len(shelved.targets)
        outputs = []
        if shelved.task == "classification":
            outputs += [
                TensorSpec("probabilities", "FP64", (-1, len(shelved.classes))),
                TensorSpec("class", "BYTES", (-1, 1)),
            ]
        else:
            outputs += [TensorSpec("values", "FP64", (-1, n)), TensorSpec("intervals", "FP64", (-1, n, -1, 2))]
        if self.edges is not None:
            cells = len(self.edges) - 1
            outputs += [TensorSpec("density", "FP64", (-1, cells)), TensorSpec("edges", "FP64", (-1, cells + 1))]
        if shelved.name != BUILT_IN:
            outputs.append(TensorSpec("typicality", "FP64", (-1, 1)))
        self.outputs = (*outputs, TensorSpec("flags", "BYTES", (-1, 1)))
        takes_prior = shelved.task == "redshift" and shelved.name != BUILT_IN
        self.options = {"prior": f"of redshift: {TRAINING} or {FLAT}; default {TRAINING}"} if takes_prior else {}
        about = shelved.identity(core.described.space("tokens"))
        self.properties = {
            **{name: value if isinstance(value, str) else ",".join(value) for name, value in about.items()},
            "intervals": "axes: row, target, level (see the parameter levels of an answer), low and high",
            "flags": f"of each row, with commas between them. {BLIND}",
        }

    def check(self, core: Core) -> None:
        self.shelved.head.check(core.engine)

    def read(self, request: InferRequest, arrays: Mapping[str, Array]) -> Job:
        prior = request.parameters.get("prior", TRAINING)
        if prior not in (TRAINING, FLAT):
            raise BadInput("option_invalid", f"prior {prior!r}", field="prior", fix=f"{TRAINING} or {FLAT}")
        return Job(token_rows(arrays), prior, request.outputs or tuple(spec.name for spec in self.outputs))

    def compute(self, core: Core, rows: Sequence[Tokens], options: Hashable) -> list[Answer | AlbireoError]:
        return core.predict_tokens(rows, self.shelved, FLAT if options == FLAT else None)

    def write(self, job: Job, results: Sequence[Answer]) -> list[Tensor]:
        space, shelved = self.properties["space"], self.shelved
        said: dict[str, Value] = {"space": space, **({"version": shelved.version} if shelved.version else {})}
        out = [text_tensor("flags", [",".join(one.flags) for one in results])]
        if shelved.task == "classification":
            probabilities = [[one.classes[name] for name in shelved.classes] for one in results]
            names = {"classes": ",".join(shelved.classes)}
            out.append(Tensor("probabilities", "FP64", np.array(probabilities), said | names))
            out.append(text_tensor("class", [next(iter(one.classes)) for one in results]))
        else:
            levels = list(results[0].numbers[0].intervals)
            intervals = [[[number.intervals[level] for level in levels] for number in one.numbers] for one in results]
            about = said | {"targets": ",".join(shelved.targets), "units": ",".join(shelved.units)}
            values = np.array([[number.value for number in one.numbers] for one in results], np.float64)
            out.append(Tensor("values", "FP64", values, about))
            levelled = about | {"levels": ",".join(str(level) for level in levels)}
            out.append(Tensor("intervals", "FP64", np.array(intervals, np.float64), levelled))
        if self.edges is not None:
            densities = [one.density.probability for one in results if one.density is not None]
            out.append(Tensor("density", "FP64", np.stack(densities), said))
            out.append(Tensor("edges", "FP64", np.tile(self.edges, (len(results), 1))))
        if shelved.name != BUILT_IN:
            out.append(Tensor("typicality", "FP64", np.array([[one.typicality] for one in results], np.float64)))
        return [tensor for tensor in out if tensor.name in job.outputs]


def tokenizer_name(core: Core, key: str) -> str:
    """Name of the model that tokenizes a modality."""
    return f"{core.described.name}-tokenizer-{MODALITIES[key].name}"


def head_name(name: str) -> str:
    """Name of the model of a head."""
    return f"head-{name}"


def token_specs(core: Core) -> tuple[TensorSpec, ...]:
    """Token ids and masks of everything that the checkpoint reads."""
    specs: list[TensorSpec] = []
    for key, spec in core.inputs.items():
        shape = (-1, -1 if MODALITIES[key].kind == "catalog" else spec.n_tokens)
        specs.append(TensorSpec(key, INTEGERS[0], shape, INTEGERS[1:], optional=True))
        specs.append(TensorSpec(key + MASK, "BOOL", shape, optional=True))
    return tuple(specs)


def token_rows(arrays: Mapping[str, Array]) -> list[Tokens]:
    """The tokens of each row. A modality whose tokens are all masked is none of the row's.

    BadInput if a mask has no tokens or another shape than they, or if a row has no token left.
    """
    keys = [key for key in MODALITIES if key in arrays]
    masks = {key: arrays[key + MASK] for key in keys if key + MASK in arrays}
    alone = {name.removesuffix(MASK) for name in arrays} - set(keys)
    if alone:
        name = min(alone)
        raise BadInput("request_invalid", "a mask without its tokens", field=name + MASK, fix=f"send {name} too")
    for key, mask in masks.items():
        if mask.shape != arrays[key].shape:
            told = f"shape {list(mask.shape)}, the tokens have {list(arrays[key].shape)}"
            raise BadInput("shape_mismatch", told, field=key + MASK)
    rows: list[Tokens] = []
    for i in range(len(arrays[keys[0]])):
        there = [key for key in keys if key not in masks or not masks[key][i].all()]
        if not there:
            raise BadInput("nothing_to_embed", f"row {i}: every token is masked", fix="leave the row out")
        masked = {key: masks[key][i] for key in there if key in masks and masks[key][i].any()}
        rows.append(Tokens({key: arrays[key][i] for key in there}, masked))
    return rows


def _lengths(tokens: Tokens) -> dict[str, int]:
    """Token key -> tokens that count, in the table's order."""
    return {key: len(ids) - int(tokens.mask[key].sum() if key in tokens.mask else 0) for key, ids in tokens.ids.items()}


def _check_regular(rows: Sequence[Tokens], pooling: Pooling) -> None:
    """BadInput if what a pooling gives the rows makes no tensor."""
    if pooling == "mean":
        return
    shapes = [_lengths(row) if pooling == "tokens" else list(row.ids) for row in rows]
    other = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
    if other is not None:
        what = "as many tokens of each modality" if pooling == "tokens" else "the same modalities"
        fix = "send rows that are alike together, or ask for `embedding`"
        raise BadInput("shape_mismatch", f"row {other} has not {what} as row 0", field=OUTPUT_OF[pooling], fix=fix)


def _first_error(results: Sequence[Any]) -> AlbireoError | None:
    return next((one for one in results if isinstance(one, AlbireoError)), None)
