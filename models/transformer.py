"""The encoder-decoder transformer of AION-1 (arXiv 2510.17960, after 4M, arXiv 2312.06647), driven by configuration.

Sequences are packed: the tokens of all objects of a pass stand one after another in (T, D), and `lengths` says how
many each has. There is no padding; what is absent or masked is not in a sequence, so it can have no influence.
File order is data order: embed, attend, encode, decode, predict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from albireo.models.attention import attend, mean_of
from albireo.models.kernels import embed_tokens, qk_norm, swiglu
from albireo.observations.modalities import MODALITIES
from albireo.tokenizers.checkpoint import TokenSpec

UNIFORM, WITHIN = "uniform", "within_modality"
"""Attention among the decoder's queries: what `AION.forward` of the released code computes, and what AION-1 was
trained with (and what the released sampler computes)."""

EPS = 1e-6

FEW_ROWS = 128
"""Up to this many tokens a CPU's library is faster with the weights as the left factor: it is them that it reads."""


@dataclass(frozen=True)
class TransformerConfig:
    """The part of `config.json` that shapes the network; absent keys have the released code's defaults.

    decoder_attention  ours: "uniform" repeats the released `AION.forward`, whose query mask excludes every pair, so
                       that the softmax is uniform over all queries; "within_modality" attends inside a modality
    """

    dim: int
    encoder_depth: int = 12
    decoder_depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    proj_bias: bool = True
    mlp_bias: bool = True
    norm_bias: bool = True
    act_layer: str = "GELU"
    gated_mlp: bool = False
    qk_norm: bool = False
    num_register_tokens: int = 0
    share_modality_embeddings: bool = True
    decoder_attention: str = UNIFORM

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> TransformerConfig:
        """Keys of `config.json` that matter only in training are left out."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in config.items() if key in known})


class Linear(nn.Linear):
    """A linear layer whose weights may be kept in a shorter type than it computes in (see models/cpu.py)."""

    bias: nn.Parameter | None  # type: ignore[assignment]

    def forward(self, input: Tensor) -> Tensor:
        return self.parts(input, 1)[0]

    def onto(self, residual: Tensor, input: Tensor) -> Tensor:
        """residual + the outputs. Where no gradient is recorded the product is added in place: residual is consumed."""
        if torch.is_grad_enabled() or self.bias is not None or _few(input):
            return torch.add(residual, self(input))
        return torch.addmm(residual, input, self.weight.to(input.dtype).t(), out=residual)

    def parts(self, input: Tensor, n: int) -> list[Tensor]:
        """The outputs in n equal parts, each a contiguous tensor of its own."""
        weights = self.weight.to(input.dtype).chunk(n)
        biases = [None] * n if self.bias is None else self.bias.to(input.dtype).chunk(n)
        return [_product(input, weight, bias) for weight, bias in zip(weights, biases, strict=True)]


def _few(rows: Tensor) -> bool:
    return len(rows) <= FEW_ROWS and not rows.is_cuda


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """rows (T, K) times weight (N, K) transposed, plus bias (N,) -> (T, N)."""
    if not _few(rows):
        return F.linear(rows, weight, bias)
    out = torch.mm(weight, rows.t()).t().contiguous()
    return out if bias is None else out + bias


class Norm(nn.Module):
    """LayerNorm with a bias that may be fixed at zero (the published files hold it either way)."""

    bias: Tensor

    def __init__(self, dim: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        if bias:
            self.bias = nn.Parameter(torch.zeros(dim))
        else:
            self.register_buffer("bias", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight.to(x.dtype), self.bias.to(x.dtype), eps=EPS)

    def per_head(self, x: Tensor) -> Tensor:
        """x (T, heads * d) normalised over the d channels of each head."""
        return qk_norm(x, self.weight.to(x.dtype), self.bias.to(x.dtype), EPS)


class SelfAttention(nn.Module):
    """Multi-head self-attention, queries and keys normalised per head if configured; `proj` is left to the caller."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.qkv = Linear(config.dim, 3 * config.dim, bias=config.qkv_bias)
        self.proj = Linear(config.dim, config.dim, bias=config.proj_bias)
        _add_qk_norm(self, config)

    def forward(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """x (T, D) -> (T, D), attending inside each sequence."""
        q, k, v = self.qkv.parts(x, 3)
        return attend(*_normed(self, q, k), v, self.heads, lengths, lengths)

    def uniform(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """Every position gets the mean value over its sequence: softmax over scores that are all excluded."""
        _, _, v = self.qkv.parts(x, 3)
        return mean_of(v, lengths)


class CrossAttention(nn.Module):
    """The same over another sequence; `proj` is left to the caller."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.q = Linear(config.dim, config.dim, bias=config.qkv_bias)
        self.kv = Linear(config.dim, 2 * config.dim, bias=config.qkv_bias)
        self.proj = Linear(config.dim, config.dim, bias=config.proj_bias)
        _add_qk_norm(self, config)

    def forward(self, x: Tensor, context: Tensor, lengths: Sequence[int], context_lengths: Sequence[int]) -> Tensor:
        """x (T, D), context (S, D) -> (T, D): each sequence of x attends to the sequence of context of its object."""
        q = self.q(x)
        k, v = self.kv.parts(context, 2)
        return attend(*_normed(self, q, k), v, self.heads, lengths, context_lengths)


def _add_qk_norm(module: nn.Module, config: TransformerConfig) -> None:
    if config.qk_norm:
        module.q_norm = Norm(config.dim // config.num_heads, config.norm_bias)
        module.k_norm = Norm(config.dim // config.num_heads, config.norm_bias)


def _normed(module: nn.Module, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    if hasattr(module, "q_norm"):
        return module.q_norm.per_head(q), module.k_norm.per_head(k)  # type: ignore[union-attr,operator]
    return q, k


class Mlp(nn.Module):
    """Feed-forward layer: plain, or gated at two thirds of the hidden width (SwiGLU if the activation is SiLU).

    Gives the hidden layer; `fc2` is left to the caller.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        hidden = int(config.dim * config.mlp_ratio)
        self.gated = config.gated_mlp
        if self.gated:
            hidden = int(2 * hidden / 3)
            self.fc3 = Linear(config.dim, hidden, bias=config.mlp_bias)
        self.fc1 = Linear(config.dim, hidden, bias=config.mlp_bias)
        self.fc2 = Linear(hidden, config.dim, bias=config.mlp_bias)
        self.act = getattr(nn, config.act_layer)()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        if not self.gated:
            hidden = self.act(hidden)
        elif isinstance(self.act, nn.SiLU):
            hidden = swiglu(hidden, self.fc3(x))
        else:
            hidden = self.act(hidden) * self.fc3(x)
        out: Tensor = hidden
        return out


class EncoderBlock(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1 = Norm(config.dim, config.norm_bias)
        self.attn = SelfAttention(config)
        self.norm2 = Norm(config.dim, config.norm_bias)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """x (T, D) -> (T, D); x is consumed where no gradient is recorded."""
        x = self.attn.proj.onto(x, self.attn(self.norm1(x), lengths))
        return self.mlp.fc2.onto(x, self.mlp(self.norm2(x)))


class DecoderBlock(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1 = Norm(config.dim, config.norm_bias)
        self.self_attn = SelfAttention(config)
        self.query_norm = Norm(config.dim, config.norm_bias)
        self.context_norm = Norm(config.dim, config.norm_bias)
        self.cross_attn = CrossAttention(config)
        self.norm2 = Norm(config.dim, config.norm_bias)
        self.mlp = Mlp(config)

    def forward(
        self, x: Tensor, context: Tensor, queries: Queries, context_lengths: Sequence[int], uniform: bool
    ) -> Tensor:
        """x (Q, D) -> (Q, D); x is consumed where no gradient is recorded, the context is not."""
        normed = self.norm1(x)
        heard = (
            self.self_attn.uniform(normed, queries.lengths)
            if uniform
            else self.self_attn(normed, queries.lengths_per_modality)
        )
        x = self.self_attn.proj.onto(x, heard)
        seen = self.cross_attn(self.query_norm(x), self.context_norm(context), queries.lengths, context_lengths)
        x = self.cross_attn.proj.onto(x, seen)
        return self.mlp.fc2.onto(x, self.mlp(self.norm2(x)))


@dataclass(frozen=True)
class Packed:
    """Tokens of several objects, one after another.

    codes    (T,) rows of the token table: the code of a token plus the first row of its modality
    places   (T,) rows of the place table: the position of a token plus the first row of its modality
    lengths  tokens of each object
    """

    codes: Tensor
    places: Tensor
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Queries:
    """What the decoder is asked of several objects, one after another; the queries of a modality stand together.

    places                (Q,) rows of the decoder's place table
    lengths               queries of each object
    lengths_per_modality  queries of each modality of each object
    """

    places: Tensor
    lengths: tuple[int, ...]
    lengths_per_modality: tuple[int, ...]


class Rows:
    """Where the rows of each modality begin in a table that holds those of all, one after another."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        ends = list(accumulate(sizes.values()))
        self.first = dict(zip(sizes, [0, *ends], strict=False))
        self.sizes = dict(sizes)
        self.total = ends[-1] if ends else 0

    def __getitem__(self, key: str) -> slice:
        return slice(self.first[key], self.first[key] + self.sizes[key])


class Transformer(nn.Module):
    """Tokens of any modalities in, states and logits of any modalities out.

    inputs, outputs  token key -> TokenSpec of the input and target modalities
    The tables of all modalities are one: a packed pass looks up any mix of them at once. `published` gives every
    tensor under its name in the published files.
    """

    pos_emb: Tensor
    target_pos_emb: Tensor

    def __init__(
        self, config: TransformerConfig, inputs: Mapping[str, TokenSpec], outputs: Mapping[str, TokenSpec]
    ) -> None:
        super().__init__()
        self.config = config
        self.codes = Rows({key: spec.vocab_size for key, spec in inputs.items()})
        self.places = Rows({key: spec.places or spec.n_tokens for key, spec in inputs.items()})
        self.target_codes = Rows({key: spec.vocab_size for key, spec in outputs.items()})
        self.target_places = Rows({key: spec.n_tokens for key, spec in outputs.items()})
        both = set(inputs) & set(outputs) if config.share_modality_embeddings else set()
        own = [key for key in outputs if key not in both]
        self._modality = {key: row for row, key in enumerate(inputs)}
        self._target_modality = {
            key: self._modality[key] if key in both else len(inputs) + own.index(key) for key in outputs
        }
        dim, registers = config.dim, config.num_register_tokens
        # Register tokens are the last rows of the token table; their place is the last row, fixed at zero.
        self.token_emb = nn.Parameter(torch.zeros(self.codes.total + registers, dim))
        self.mod_emb = nn.Parameter(torch.zeros(len(inputs) + len(own), dim))
        self.register_buffer("pos_emb", torch.zeros(self.places.total, dim))
        self.encoder = nn.ModuleList(EncoderBlock(config) for _ in range(config.encoder_depth))
        self.encoder_norm = Norm(dim, config.norm_bias)
        self.decoder_proj_context = Linear(dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.register_buffer("target_pos_emb", torch.zeros(self.target_places.total, dim))
        self.decoder = nn.ModuleList(DecoderBlock(config) for _ in range(config.decoder_depth))
        self.decoder_norm = Norm(dim, config.norm_bias)
        self.to_logits = nn.Parameter(torch.zeros(self.target_codes.total, dim))
        self._frozen_places: Tensor | None = None

    # ------------------------------------------------------------------ encode

    def encode(self, packed: Packed, dtype: torch.dtype | None = None) -> Tensor:
        """Encoder states (T, D), as AION-1's `encode` returns them: projected for the decoder, with the places added
        again. With register tokens each object has that many rows more, in front. Computes in `dtype` (default: the
        type of the weights)."""
        codes, rows, lengths = self._with_registers(packed)
        dtype = dtype or self.token_emb.dtype
        x, places = embed_tokens(codes, rows, self.token_emb, self._places())
        x, places = x.to(dtype), places.to(dtype)
        for block in self.encoder:
            x = block(x, lengths)
        out: Tensor = self.decoder_proj_context(self.encoder_norm(x)) + places
        return out

    def freeze(self) -> None:
        """The weights will not change any more: what depends on them alone is computed once."""
        self._frozen_places = self._sum_places()

    def _places(self) -> Tensor:
        return self._sum_places() if self._frozen_places is None else self._frozen_places

    def _sum_places(self) -> Tensor:
        """Position plus modality embedding of every place (P, D), and a zero row if there are registers."""
        rows = [self._modality[key] for key, n in self.places.sizes.items() for _ in range(n)]
        places = self.pos_emb + self.mod_emb[torch.tensor(rows, dtype=torch.long, device=self.mod_emb.device)]
        return F.pad(places, (0, 0, 0, 1)) if self.config.num_register_tokens else places

    def _with_registers(self, packed: Packed) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        registers = self.config.num_register_tokens
        if not registers:
            return packed.codes, packed.places, packed.lengths
        first = torch.arange(self.codes.total, self.codes.total + registers, device=packed.codes.device)
        nowhere = torch.full_like(first, self.places.total)
        codes, rows = [], []
        for own, at in zip(packed.codes.split(packed.lengths), packed.places.split(packed.lengths), strict=True):
            codes += [first, own]
            rows += [nowhere, at]
        return torch.cat(codes), torch.cat(rows), tuple(n + registers for n in packed.lengths)

    # ------------------------------------------------------------------ decode

    def decode(
        self, context: Tensor, context_lengths: Sequence[int], queries: Queries, attention: str | None = None
    ) -> Tensor:
        """Decoder states (Q, D) of the queries, given encoder states (S, D) of the same objects.

        attention  UNIFORM or WITHIN, among the queries of an object; default: what the configuration says
        """
        rows = [self._target_modality[key] for key, n in self.target_places.sizes.items() for _ in range(n)]
        modality = self.mod_emb[torch.tensor(rows, device=queries.places.device)[queries.places]]
        x = (self.mask_token + self.target_pos_emb[queries.places] + modality).to(context.dtype)
        uniform = (attention or self.config.decoder_attention) == UNIFORM
        for block in self.decoder:
            x = block(x, context, queries, context_lengths, uniform)
        out: Tensor = self.decoder_norm(x)
        return out

    def logits(self, key: str, states: Tensor) -> Tensor:
        """Decoder states (n, D) of queries of one modality -> logits (n, V)."""
        return F.linear(states, self.to_logits[self.target_codes[key]].to(states.dtype))

    # ------------------------------------------------------------------ files

    def published(self) -> dict[str, Tensor]:
        """Every tensor by its name in the published files, as views of what the module holds.

        A modality embedding that both sides share has two names; files may hold either.
        """
        out = {name: tensor for name, tensor in self.state_dict().items() if "." in name}
        out["mask_token"] = self.mask_token.data[None, None]
        for key in self.codes.sizes:
            name = f"encoder_embeddings.{key}."
            out[name + "token_emb.weight"] = self.token_emb.data[self.codes[key]]
            out[name + "pos_emb"] = self.pos_emb[self.places[key]][None]
            out[name + "mod_emb"] = self.mod_emb.data[self._modality[key]][None, None]
        for key, row in self._target_modality.items():
            name = f"decoder_embeddings.{key}."
            out[name + "to_logits.weight"] = self.to_logits.data[self.target_codes[key]]
            out[name + "pos_emb"] = self.target_pos_emb[self.target_places[key]][None]
            out[name + "mod_emb"] = self.mod_emb.data[row][None, None]
        if self.config.num_register_tokens:
            out["register_tokens"] = self.token_emb.data[self.codes.total :][None]
        return out

    def one_name(self, name: str) -> str | None:
        """The name in `published` under which a tensor of a file is kept; None if nothing here ever reads it."""
        part, _, rest = name.partition(".")
        key, _, tensor = rest.partition(".")
        if part == "encoder_embeddings" and key not in self.codes.sizes and key in MODALITIES:
            return None
        if part == "decoder_embeddings" and key in MODALITIES:
            if tensor == "mod_emb" and key in self.codes.sizes and self.config.share_modality_embeddings:
                return f"encoder_embeddings.{key}.mod_emb"
            # Queries carry no value, so the decoder's token table is never read.
            if tensor == "token_emb.weight" or key not in self.target_codes.sizes:
                return None
        return name

    # ------------------------------------------------------------------ training

    @torch.no_grad()
    def initialise(self, grids: Mapping[str, tuple[int, int]], generator: torch.Generator) -> None:
        """Random weights for training: uniform Xavier, 0.02 for tables; positions from the token grids."""
        for name, parameter in self.named_parameters():
            if "_emb" in name or name == "mask_token":
                parameter.normal_(std=0.02, generator=generator)
            elif name == "to_logits":
                for key in self.target_codes.sizes:
                    _xavier(parameter[self.target_codes[key]], 1, generator)
            elif parameter.ndim == 2:
                _xavier(parameter, 3 if ".qkv." in name else 2 if ".kv." in name else 1, generator)
            elif name.endswith("bias"):
                parameter.zero_()
        for buffer, rows in ((self.pos_emb, self.places), (self.target_pos_emb, self.target_places)):
            for key in rows.sizes:
                buffer[rows[key]] = sincos_positions(*grids[key], self.config.dim)


def _xavier(weight: Tensor, parts: int, generator: torch.Generator) -> None:
    fan_out, fan_in = weight.shape
    limit = (6.0 / (fan_out // parts + fan_in)) ** 0.5
    weight.uniform_(-limit, limit, generator=generator)


def sincos_positions(height: int, width: int, dim: int) -> Tensor:
    """Fixed 2-D sine-cosine positions (height * width, D), as MoCo-v3 and AION-1 have them."""
    first, second = torch.meshgrid(
        torch.arange(width, dtype=torch.float32), torch.arange(height, dtype=torch.float32), indexing="ij"
    )
    omega = 1.0 / 10000.0 ** (torch.arange(dim // 4, dtype=torch.float32) / (dim // 4))
    a, b = first.reshape(-1, 1) * omega, second.reshape(-1, 1) * omega
    return torch.cat([a.sin(), a.cos(), b.sin(), b.cos()], dim=1)
