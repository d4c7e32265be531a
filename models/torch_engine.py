"""A checkpoint, run by torch."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from albireo.models.engine import POOLINGS, Embedding, Pooling, Tokens
from albireo.models.transformer import Transformer, TransformerConfig
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Observation
from albireo.tokenizers.bank import TokenizerBank, fill, read_weights
from albireo.tokenizers.checkpoint import WEIGHTS, Checkpoint, TokenSpec

MAX_BATCH_TOKENS = 16_384
"""Tokens in one pass through the encoder; larger calls are cut into several."""


class TorchEngine:
    """An `Engine` (see models/engine.py). Safe to call from several threads."""

    def __init__(self, checkpoint: Checkpoint, bank: TokenizerBank, transformer: Transformer, device: str) -> None:
        self.checkpoint = checkpoint
        self.bank = bank
        self.transformer = transformer.eval()
        self.device = torch.device(device)
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: str | Path, device: str = "cpu", dtype: str = "float32") -> TorchEngine:
        """Read a checkpoint folder. The transformer computes in `dtype`, the tokenizers always in float32."""
        checkpoint = Checkpoint(folder)
        transformer = open_transformer(checkpoint).to(device=device, dtype=getattr(torch, dtype))
        return cls(checkpoint, TokenizerBank.open(checkpoint, device), transformer, device)

    @property
    def name(self) -> str:
        return self.checkpoint.name

    @property
    def dim(self) -> int:
        return self.checkpoint.dim

    @property
    def inputs(self) -> Mapping[str, TokenSpec]:
        return self.checkpoint.inputs

    def space(self, pooling: Pooling) -> str:
        return self.checkpoint.space(pooling)

    def tokenize(self, observations: Sequence[Observation]) -> list[Tokens | AlbireoError]:
        """Tokens of each object. Modalities that the checkpoint lacks are an error, unless the caller drops them."""
        out: list[Tokens | AlbireoError] = []
        with self._lock:
            for observation in observations:
                try:
                    out.append(self._tokenize(observation))
                except AlbireoError as error:
                    out.append(error)
        return out

    def _tokenize(self, observation: Observation) -> Tokens:
        if not observation.data:
            raise BadInput("nothing_to_embed", f"object {observation.id!r} has no modality", field=observation.id)
        ids: dict[str, np.ndarray] = {}
        flags: list[str] = []
        for key in MODALITIES:
            if key in observation.data:
                payload = observation.data[key]
                flags += self.bank[key].check(payload)
                ids[key] = self.bank[key].encode([payload])[0].cpu().numpy()
        return Tokens(ids, flags=tuple(dict.fromkeys(flags)))

    @torch.inference_mode()
    def embed(self, tokens: Sequence[Tokens], pooling: Pooling = "mean") -> list[Embedding]:
        """Embedding of each object; objects of equal sequence length share a pass, and no pass has padding."""
        if pooling not in POOLINGS:
            raise BadInput("option_invalid", f"pooling {pooling!r}", field="pooling", fix=f"one of {POOLINGS}")
        sequences = [self._sequence(item) for item in tokens]
        out: list[Embedding | None] = [None] * len(tokens)
        with self._lock:
            for batch in self._batches(sequences):
                states = self._encode([sequences[i] for i in batch])
                for i, state in zip(batch, states, strict=True):
                    out[i] = _pool(state, sequences[i], pooling)
        return [embedding for embedding in out if embedding is not None]

    @torch.inference_mode()
    def logits(self, tokens: Sequence[Tokens], targets: Sequence[str]) -> list[dict[str, np.ndarray]]:
        """Logits[key] (n_key, V_key) float32 of every token of the target modalities, for each object."""
        for key in targets:
            if key not in self.checkpoint.outputs:
                raise BadInput("modality_not_in_checkpoint", f"{key} is no output of this checkpoint", field=key)
        sequences = [self._sequence(item) for item in tokens]
        out: list[dict[str, np.ndarray]] = [{} for _ in tokens]
        with self._lock:
            for batch in self._batches(sequences):
                logits = self.transformer.decode(self._encode([sequences[i] for i in batch]), targets)
                for row, i in enumerate(batch):
                    out[i] = {key: value[row].float().cpu().numpy() for key, value in logits.items()}
        return out

    def _sequence(self, tokens: Tokens) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
        """key -> (ids, positions that count or None for all), in the table's order; checks every number."""
        sequence: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
        for key in MODALITIES:
            if key not in tokens.ids:
                continue
            if key not in self.checkpoint.inputs:
                raise BadInput("modality_not_in_checkpoint", f"{key} is no input of this checkpoint", field=key)
            ids, spec = tokens.ids[key], self.checkpoint.inputs[key]
            if ids.shape != (spec.n_tokens,):
                raise BadInput(
                    "too_many_tokens" if ids.size > spec.n_tokens else "shape_mismatch",
                    f"{ids.shape} tokens, the model reads ({spec.n_tokens},)",
                    field=key,
                )
            if ids.min() < 0 or ids.max() >= spec.vocab_size:
                raise BadInput("value_out_of_range", f"a token is not in 0..{spec.vocab_size - 1}", field=key)
            keep = ~tokens.mask[key] if key in tokens.mask else None
            if keep is not None and keep.shape != ids.shape:
                raise BadInput("shape_mismatch", f"the mask has shape {keep.shape}", field=key)
            if keep is None or keep.all():
                sequence[key] = (ids, None)
            elif keep.any():
                sequence[key] = (ids, np.flatnonzero(keep))
        if not sequence:
            raise BadInput("nothing_to_embed", "no token is left", fix="give at least one unmasked modality")
        return sequence

    def _batches(self, sequences: Sequence[dict[str, tuple[np.ndarray, np.ndarray | None]]]) -> list[list[int]]:
        """Indices of objects whose sequences are alike, at most MAX_BATCH_TOKENS tokens at a time."""
        alike: dict[object, list[int]] = defaultdict(list)
        for i, sequence in enumerate(sequences):
            alike[tuple((key, None if at is None else at.tobytes()) for key, (_, at) in sequence.items())].append(i)
        batches = []
        for members in alike.values():
            size = max(1, MAX_BATCH_TOKENS // _length(sequences[members[0]]))
            batches += [members[i : i + size] for i in range(0, len(members), size)]
        return batches

    def _encode(self, sequences: Sequence[dict[str, tuple[np.ndarray, np.ndarray | None]]]) -> Tensor:
        """States (B, N, D) of B alike sequences."""
        first = sequences[0]
        ids = {
            key: torch.as_tensor(np.stack([sequence[key][0] for sequence in sequences]), device=self.device)
            for key in first
        }
        values, places = self.transformer.embed(ids)
        if any(at is not None for _, at in first.values()):
            keep, offset = [], 0
            for key_ids, at in first.values():
                keep.append(offset + (np.arange(len(key_ids)) if at is None else at))
                offset += len(key_ids)
            index = torch.as_tensor(np.concatenate(keep), device=self.device)
            values, places = values[:, index], places[:, index]
        return self.transformer.encode(values, places)


def open_transformer(checkpoint: Checkpoint) -> Transformer:
    """The transformer of a checkpoint, with its weights; tables that nothing here reads are left in the file."""
    transformer = Transformer(TransformerConfig.from_json(checkpoint.config), checkpoint.inputs, checkpoint.outputs)
    path = checkpoint.folder / WEIGHTS
    tensors = read_weights(path)
    for key in MODALITIES:
        encoder, decoder = f"encoder_embeddings.{key}.", f"decoder_embeddings.{key}."
        # An embedding that both sides share is stored once, under either name.
        for here, there in ((encoder, decoder), (decoder, encoder)):
            if there + "mod_emb" in tensors:
                tensors.setdefault(here + "mod_emb", tensors[there + "mod_emb"])
        # Queries carry no value, so the decoder's token table is never read.
        unused = [decoder + "token_emb"]
        unused += [encoder] if key not in checkpoint.inputs else []
        unused += [decoder] if key not in checkpoint.outputs else []
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(tuple(unused))}
    fill(transformer, tensors, path)
    return transformer


def _length(sequence: dict[str, tuple[np.ndarray, np.ndarray | None]]) -> int:
    return sum(len(ids if at is None else at) for ids, at in sequence.values())


def _pool(state: Tensor, sequence: dict[str, tuple[np.ndarray, np.ndarray | None]], pooling: Pooling) -> Embedding:
    """State (N [+ registers], D) of one object -> its embedding; registers stand first and are not pooled."""
    state = state[len(state) - _length(sequence) :].float()
    lengths = [len(ids if at is None else at) for ids, at in sequence.values()]
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
