"""A checkpoint, run by torch.

A pass takes objects of any mix of modalities, packed one after another without padding. Only what embedding needs is
in memory until something is predicted; then the decoder's weights are read.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from albireo.models.cores import Cores
from albireo.models.cpu import available_cores, fast_bf16
from albireo.models.engine import POOLINGS, Embedding, Numerics, Pooling, Tokens
from albireo.models.transformer import Packed, Queries, Transformer, TransformerConfig
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Observation
from albireo.tokenizers.bank import TokenizerBank
from albireo.tokenizers.checkpoint import WEIGHTS, Checkpoint, TokenSpec
from albireo.tokenizers.domain import domain_flags
from albireo.tokenizers.weights import load, materialise

PASS_TOKENS = {"cpu": 1_200, "cuda": 32_768}
"""Tokens of one pass. On a CPU what a layer writes should stay in cache; a GPU wants large products."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Positions = NDArray[np.int64]
Sequence_ = dict[str, tuple[NDArray[np.int64], Positions]]
"""Of one object: token key -> (tokens that count, their positions), in the table's order."""


class TorchEngine:
    """An `Engine` (see models/engine.py). Safe to call from several threads.

    A transformer kept in bfloat16 computes in float32 on a CPU that has no bfloat16 products: several times faster.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        bank: TokenizerBank,
        transformer: Transformer,
        numerics: Numerics | None = None,
        cores: Cores | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.bank = bank
        self.transformer = transformer.eval()
        self.numerics = numerics or Numerics()
        self.device = torch.device(self.numerics.device)
        self._cores = cores or Cores()
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        folder: str | Path,
        device: str = "cpu",
        dtype: str = "float32",
        preprocessing: str | None = None,
        tokens: str = "float32",
        cores: Cores | None = None,
    ) -> TorchEngine:
        """Read a checkpoint folder: what embedding needs of it.

        dtype          "float32" (exact) or "bfloat16", of the transformer
        preprocessing  of the tokenizers, by name (tokenizers/preprocessing.py); default: the checkpoint's own
        tokens         "float32" (exact) or "bfloat16", of the networks of the tokenizers
        cores          that threads which call at the same time share; default: each takes what torch gives it
        """
        for name, value in (("dtype", dtype), ("tokens", tokens)):
            if value not in DTYPES:
                raise BadInput("option_invalid", f"{name} {value!r}", field=name, fix=f"one of {', '.join(DTYPES)}")
        numerics = numerics_of(dtype, device, fast_bf16(), tokens)
        checkpoint = Checkpoint(folder, preprocessing)
        config = TransformerConfig.from_json(checkpoint.config)
        with torch.device("meta"):
            transformer = Transformer(config, checkpoint.inputs, checkpoint.outputs)
        bank = TokenizerBank.open(checkpoint, device, DTYPES[numerics.tokens])
        engine = cls(checkpoint, bank, transformer, numerics, cores)
        engine._read(decoder=False)
        transformer.freeze()
        return engine

    @property
    def name(self) -> str:
        return self.checkpoint.name

    @property
    def dim(self) -> int:
        return self.checkpoint.dim

    @property
    def inputs(self) -> Mapping[str, TokenSpec]:
        return self.checkpoint.inputs

    @property
    def outputs(self) -> Mapping[str, TokenSpec]:
        """What the decoder predicts."""
        return self.checkpoint.outputs

    def space(self, pooling: Pooling, normalize: bool = False) -> str:
        return self.checkpoint.space(pooling, normalize)

    def tokenize(
        self, observations: Sequence[Observation], kinds: Collection[str] | None = None
    ) -> list[Tokens | AlbireoError]:
        """Tokens of each object. Modalities that the checkpoint lacks are an error, unless the caller drops them.

        kinds  of modalities that are wanted, None: all. Flags that are of the whole object come with its first kind
        """
        keys = [key for key in MODALITIES if kinds is None or MODALITIES[key].kind in kinds]
        flags: list[list[str]] = [[] for _ in observations]
        ids: list[dict[str, NDArray[np.int64]]] = [{} for _ in observations]
        errors: list[AlbireoError | None] = [None] * len(observations)
        for i, observation in enumerate(observations):
            first = next((key for key in MODALITIES if key in observation.data), None)
            if first is None:
                errors[i] = BadInput(
                    "nothing_to_embed", f"object {observation.id!r} has no modality", field=observation.id
                )
            elif first in keys:
                flags[i] += self.object_flags(observation)
        with self._cores.share():
            for key in keys:
                at = [i for i, one in enumerate(observations) if key in one.data and errors[i] is None]
                if not at:
                    continue
                if key not in self.checkpoint.inputs:
                    for i in at:
                        errors[i] = self.checkpoint.inputs.lack(key)
                    continue
                payloads = [observations[i].data[key] for i in at]
                for i, result in zip(at, self.bank.tokens(key, payloads), strict=True):
                    if isinstance(result, AlbireoError):
                        errors[i] = result
                    else:
                        ids[i][key] = result[0]
                        flags[i] += result[1]
        return [errors[i] or Tokens(ids[i], flags=tuple(dict.fromkeys(flags[i]))) for i in range(len(observations))]

    def object_flags(self, observation: Observation) -> tuple[str, ...]:
        """QA flags of an object as a whole: what lies outside AION-1's training domain, of a checkpoint that has it."""
        return domain_flags(observation) if self.checkpoint.of_aion else ()

    def codec(self, key: str) -> str:
        """What decides the tokens of a modality: its codec, and what its networks compute in and on."""
        return ":".join((self.checkpoint.codec_fingerprint(key), self.numerics.tokens, self.device.type))

    def embed(self, tokens: Sequence[Tokens], pooling: Pooling | Sequence[Pooling] = "mean") -> list[Embedding]:
        """Embedding of each object; `pooling` of all, or of each. Raises the first error if one has none."""
        out = []
        for result in self.embed_each(tokens, pooling):
            if isinstance(result, AlbireoError):
                raise result
            out.append(result)
        return out

    @torch.inference_mode()
    def embed_each(
        self, tokens: Sequence[Tokens], pooling: Pooling | Sequence[Pooling] = "mean"
    ) -> list[Embedding | AlbireoError]:
        """Embedding of each object, or why it has none; `pooling` of all, or of each."""
        poolings = [pooling] * len(tokens) if isinstance(pooling, str) else list(pooling)
        for one in sorted(set(poolings) - set(POOLINGS)):
            raise BadInput("option_invalid", f"pooling {one!r}", field="pooling", fix=f"one of {POOLINGS}")
        out: dict[int, Embedding | AlbireoError] = {}
        sequences: dict[int, Sequence_] = {}
        for i, item in enumerate(tokens):
            try:
                sequence = self._sequence(item)
            except BadInput as error:
                out[i] = error
            else:
                if sequence:
                    sequences[i] = sequence
                else:
                    out[i] = BadInput("nothing_to_embed", "no token is left", fix="give at least one unmasked modality")
        at = list(sequences)
        with self._cores.share():
            for batch, states in self._encoded(list(sequences.values())):
                for j, state in zip(batch, states, strict=True):
                    out[at[j]] = _pool(state, sequences[at[j]], poolings[at[j]])
        return [out[i] for i in range(len(tokens))]

    @torch.inference_mode()
    def logits(
        self,
        tokens: Sequence[Tokens],
        targets: Sequence[str] | Sequence[Mapping[str, Positions]],
        attention: str | None = None,
    ) -> list[dict[str, NDArray[np.float32]]]:
        """Logits of tokens of the target modalities, for each object: key -> (n, V) float32.

        targets    token keys, for every token of them; or for each object token key -> positions (n,)
        attention  among the tokens asked for: "uniform" or "within_modality" (see models/transformer.py); default:
                   the checkpoint's, for AION-1 what the released `AION.forward` computes. One token asked for alone
                   is the same in both.
        An object may have no token at all: then the answer is what the model expects of any object.
        """
        asked = self._asked(targets, len(tokens))
        sequences = [self._sequence(item) for item in tokens]
        out: list[dict[str, NDArray[np.float32]]] = [{} for _ in tokens]
        with self._lock:
            if self.transformer.to_logits.is_meta:
                self._read(decoder=True)
        with self._cores.share():
            for batch, states in self._encoded(sequences, asked):
                queries = self._queries([asked[i] for i in batch])
                lengths = [len(state) for state in states]
                decoded = self.transformer.decode(torch.cat(states), lengths, queries, attention)
                parts = iter(decoded.split(queries.lengths_per_modality))
                for i in batch:
                    for key in asked[i]:
                        out[i][key] = self.transformer.logits(key, next(parts)).float().cpu().numpy()
        return out

    @torch.inference_mode()
    def values(self, key: str, ids: NDArray[np.int64], **target: Any) -> NDArray[np.float32]:
        """The physical numbers that tokens (B, n) of a modality stand for, in its unit.

        target  what the modality's tokenizer asks for: `wavelength` (B, n) Angstrom of a spectrum (default: the
                model's grid), `bands` of an image (default: all of the survey)
        """
        with self._lock:
            decoded = self.bank[key].decode(torch.as_tensor(ids, device=self.device), **target)
        out: NDArray[np.float32] = decoded.float().cpu().numpy()
        return out

    def n_codes(self, key: str) -> int:
        """Number of tokens of a modality that stand for something; the model's vocabulary may be larger."""
        return self.bank[key].vocab_size

    def wavelength(self, key: str) -> NDArray[np.float32]:
        """(L,) Angstrom of the `values` of a spectrum; empty for other modalities."""
        return self.bank[key].wavelength

    def grid(self, key: str) -> tuple[int, int]:
        """(height, width) of the tokens of a modality."""
        return self.bank[key].grid

    def positions(self, key: str, region: Sequence[float]) -> NDArray[np.bool_]:
        """(n_tokens,) True where a token of a modality stands for any part of a region (see `Tokenizer.positions`)."""
        return self.bank[key].positions(region)

    def _read(self, decoder: bool) -> None:
        """Read the weights of the encoder, or of the decoder."""
        model = self.transformer
        materialise(model, lambda name: _of_decoder(name) == decoder, self.device, DTYPES[self.numerics.dtype])

        def one_name(stored: str) -> str | None:
            name = model.one_name(stored)
            return name if name is not None and _of_decoder(name) == decoder else None

        wanted = {name: tensor for name, tensor in model.published().items() if one_name(name) == name}
        load(wanted, self.checkpoint.folder / WEIGHTS, one_name)

    def _sequence(self, tokens: Tokens) -> Sequence_:
        """The tokens that count, in the table's order; checks every number."""
        sequence: Sequence_ = {}
        for key in MODALITIES:
            if key not in tokens.ids:
                continue
            if key not in self.checkpoint.inputs:
                raise BadInput("modality_not_in_checkpoint", f"{key} is no input of this checkpoint", field=key)
            ids, spec = tokens.ids[key], self.checkpoint.inputs[key]
            listed = MODALITIES[key].kind == "catalog"
            if ids.ndim != 1 or not (1 if listed else spec.n_tokens) <= len(ids) <= spec.n_tokens:
                raise BadInput(
                    "too_many_tokens" if ids.size > spec.n_tokens else "shape_mismatch",
                    f"{ids.shape} tokens, the model reads ({spec.n_tokens},)",
                    field=key,
                )
            if ids.min() < 0 or ids.max() >= spec.vocab_size:
                raise BadInput("value_out_of_range", f"a token is not in 0..{spec.vocab_size - 1}", field=key)
            keep = ~tokens.mask[key] if key in tokens.mask else np.ones(len(ids), bool)
            if keep.shape != ids.shape:
                raise BadInput("shape_mismatch", f"the mask has shape {keep.shape}", field=key)
            at = np.flatnonzero(keep)
            if len(at):
                # A list closes ranks when an entry is masked; everything else stays in its place.
                sequence[key] = (ids[at], np.arange(len(at)) if listed else at)
        return sequence

    def _asked(
        self, targets: Sequence[str] | Sequence[Mapping[str, Positions]], count: int
    ) -> list[dict[str, Positions]]:
        """Positions asked for of each object, in the table's order."""
        outputs = self.checkpoint.outputs
        if all(isinstance(target, str) for target in targets):
            keys = [target for target in targets if isinstance(target, str)]
            named: list[Mapping[str, Positions]] = [
                {key: np.arange(outputs[key].n_tokens if key in outputs else 0) for key in keys}
            ] * count
        else:
            named = [target for target in targets if not isinstance(target, str)]
        for key in {key for one in named for key in one}:
            if key not in outputs:
                raise BadInput("modality_not_in_checkpoint", f"{key} is no output of this checkpoint", field=key)
        if len(named) != count:
            raise BadInput("shape_mismatch", f"{len(named)} targets for {count} objects", field="targets")
        return [{key: one[key] for key in MODALITIES if key in one and len(one[key])} for one in named]

    def _encoded(
        self, sequences: Sequence[Sequence_], asked: Sequence[Mapping[str, Positions]] | None = None
    ) -> Iterator[tuple[list[int], list[Tensor]]]:
        """Passes: which objects, and the encoder states (N, D) of each. Alike lengths stand together in a pass."""
        costs = [_length(sequence) for sequence in sequences]
        sizes = [sum(map(len, one.values())) for one in asked] if asked else [0] * len(costs)
        order = sorted(range(len(sequences)), key=lambda i: (costs[i], sizes[i]))
        budget = PASS_TOKENS.get(self.device.type, PASS_TOKENS["cuda"])
        for batch in _filled(order, [cost + size for cost, size in zip(costs, sizes, strict=True)], budget):
            yield batch, self._encode([sequences[i] for i in batch])

    def _encode(self, sequences: Sequence[Sequence_]) -> list[Tensor]:
        """Encoder states (N, D) of each object, register tokens in front."""
        model = self.transformer
        codes = [ids + model.codes.first[key] for sequence in sequences for key, (ids, _) in sequence.items()]
        places = [at + model.places.first[key] for sequence in sequences for key, (_, at) in sequence.items()]
        lengths = tuple(_length(sequence) for sequence in sequences)
        states = model.encode(Packed(self._rows(codes), self._rows(places), lengths), DTYPES[self.numerics.compute])
        registers = model.config.num_register_tokens
        return list(states.split([n + registers for n in lengths]))

    def _queries(self, asked: Sequence[Mapping[str, Positions]]) -> Queries:
        first = self.transformer.target_places.first
        places = [at + first[key] for one in asked for key, at in one.items()]
        return Queries(
            self._rows(places),
            tuple(sum(map(len, one.values())) for one in asked),
            tuple(len(at) for one in asked for at in one.values()),
        )

    def _rows(self, parts: Sequence[NDArray[np.int64]]) -> Tensor:
        flat = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        return torch.from_numpy(flat.astype(np.int64, copy=False)).to(self.device)


def numerics_of(dtype: str, device: str, fast: bool, tokens: str = "float32") -> Numerics:
    """How an engine computes that was asked for these types; `fast` says whether the CPU has bfloat16 products."""
    if device == "cpu" and not fast:
        return Numerics(dtype, "float32", device, "float32")
    return Numerics(dtype, dtype, device, tokens)


def use_threads(n: int | None = None) -> None:
    """Let this process compute on n threads; by default on the cores granted to it. A service calls it once."""
    torch.set_num_threads(n or available_cores())


def _of_decoder(name: str) -> bool:
    """Whether a tensor, by its name here or in the published files, is needed to predict and not to embed."""
    return name.startswith(
        ("decoder.", "decoder_norm.", "decoder_embeddings.", "mask_token", "target_pos_emb", "to_logits")
    )


def _filled(order: Sequence[int], costs: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Objects in their order, as many at a time as the budget holds, at least one."""
    batch: list[int] = []
    for i in order:
        if batch and sum(costs[j] for j in batch) + costs[i] > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _length(sequence: Sequence_) -> int:
    return sum(len(ids) for ids, _ in sequence.values())


def _pool(state: Tensor, sequence: Sequence_, pooling: Pooling) -> Embedding:
    """State (N [+ registers], D) of one object -> its embedding; registers stand first and are not pooled."""
    lengths = [len(ids) for ids, _ in sequence.values()]
    state = state[len(state) - sum(lengths) :].float()
    if pooling == "tokens":
        names = tuple(key for key, n in zip(sequence, lengths, strict=True) for _ in range(n))
        values = state
    elif pooling == "mean_per_modality":
        names = tuple(sequence)
        values = torch.stack([part.mean(dim=0) for part in state.split(lengths)])
    else:
        names = tuple(sequence)
        values = state.mean(dim=0)
    return Embedding(pooling, values.cpu().numpy(), names, len(state))
