"""The encoder-decoder transformer of AION-1 (arXiv 2510.17960, after 4M, arXiv 2312.06647), driven by configuration.

Module names follow the published files. File order is data order: embed, attend, encode, decode, predict.
Sequences carry no padding: what is absent or masked is not in them, so it can have no influence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from albireo.tokenizers.checkpoint import TokenSpec

UNIFORM, WITHIN = "uniform", "within_modality"
"""Attention among the decoder's queries: what AION-1's released code computes, and what its paper describes."""


@dataclass(frozen=True)
class TransformerConfig:
    """The part of `config.json` that shapes the network; absent keys have the released code's defaults.

    decoder_attention  ours: "uniform" repeats the released inference code, whose query mask excludes every pair,
                       so that the softmax is uniform over all queries; "within_modality" attends inside a modality
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
    decoder_attention: str = UNIFORM

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> TransformerConfig:
        """Keys of `config.json` that matter only in training are left out."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in config.items() if key in known})


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
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, eps=1e-6)


class TokenEmbedding(nn.Module):
    """Token table, modality embedding and fixed positions of one input modality."""

    pos_emb: Tensor

    def __init__(self, spec: TokenSpec, dim: int) -> None:
        super().__init__()
        self.token_emb = nn.Embedding(spec.vocab_size, dim)
        self.mod_emb = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("pos_emb", torch.zeros(1, spec.n_tokens, dim))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids (B, n) -> values (B, n, D), places (1, n, D)."""
        return self.token_emb(ids), self.pos_emb + self.mod_emb


class TargetEmbedding(nn.Module):
    """Modality embedding, fixed positions and output layer of one target modality; queries carry no value."""

    pos_emb: Tensor

    def __init__(self, spec: TokenSpec, dim: int) -> None:
        super().__init__()
        self.mod_emb = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("pos_emb", torch.zeros(1, spec.n_tokens, dim))
        self.to_logits = nn.Linear(dim, spec.vocab_size, bias=False)


def sincos_positions(height: int, width: int, dim: int) -> Tensor:
    """Fixed 2-D sine-cosine positions (1, height * width, D), as MoCo-v3 and AION-1 have them."""
    first, second = torch.meshgrid(
        torch.arange(width, dtype=torch.float32), torch.arange(height, dtype=torch.float32), indexing="ij"
    )
    omega = 1.0 / 10000.0 ** (torch.arange(dim // 4, dtype=torch.float32) / (dim // 4))
    a, b = first.reshape(-1, 1) * omega, second.reshape(-1, 1) * omega
    return torch.cat([a.sin(), a.cos(), b.sin(), b.cos()], dim=1)[None]


class SelfAttention(nn.Module):
    """Multi-head self-attention, queries and keys normalised per head if configured."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=config.qkv_bias)
        self.proj = nn.Linear(config.dim, config.dim, bias=config.proj_bias)
        _add_qk_norm(self, config)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, N, D); mask (B, 1, N, N) or None, True = attend."""
        q, k, v = _split(self.qkv(x), 3, self.heads)
        out: Tensor = self.proj(_join(F.scaled_dot_product_attention(*_normed(self, q, k), v, attn_mask=mask)))
        return out

    def uniform(self, x: Tensor) -> Tensor:
        """Every position gets the mean value over all positions: softmax over scores that are all excluded."""
        _, _, v = _split(self.qkv(x), 3, self.heads)
        out: Tensor = self.proj(_join(v.mean(dim=2, keepdim=True).expand_as(v)))
        return out


class CrossAttention(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.q = nn.Linear(config.dim, config.dim, bias=config.qkv_bias)
        self.kv = nn.Linear(config.dim, 2 * config.dim, bias=config.qkv_bias)
        self.proj = nn.Linear(config.dim, config.dim, bias=config.proj_bias)
        _add_qk_norm(self, config)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, M, D), context (B, N, D); mask (B, 1, M, N) or None, True = attend."""
        (q,) = _split(self.q(x), 1, self.heads)
        k, v = _split(self.kv(context), 2, self.heads)
        out: Tensor = self.proj(_join(F.scaled_dot_product_attention(*_normed(self, q, k), v, attn_mask=mask)))
        return out


def _add_qk_norm(module: nn.Module, config: TransformerConfig) -> None:
    if config.qk_norm:
        module.q_norm = Norm(config.dim // config.num_heads, config.norm_bias)
        module.k_norm = Norm(config.dim // config.num_heads, config.norm_bias)


def _normed(module: nn.Module, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    if hasattr(module, "q_norm"):
        return module.q_norm(q), module.k_norm(k)  # type: ignore[operator]
    return q, k


def _split(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """(B, N, parts * D) -> parts x (B, heads, N, D / heads)."""
    out: tuple[Tensor, ...] = x.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return out


def _join(x: Tensor) -> Tensor:
    """(B, heads, N, d) -> (B, N, heads * d)."""
    return x.transpose(1, 2).flatten(2)


class Mlp(nn.Module):
    """Feed-forward layer: plain, or gated (SwiGLU with SiLU) at two thirds of the hidden width."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        hidden = int(config.dim * config.mlp_ratio)
        self.gated = config.gated_mlp
        if self.gated:
            hidden = int(2 * hidden / 3)
            self.fc3 = nn.Linear(config.dim, hidden, bias=config.mlp_bias)
        self.fc1 = nn.Linear(config.dim, hidden, bias=config.mlp_bias)
        self.fc2 = nn.Linear(hidden, config.dim, bias=config.mlp_bias)
        self.act = getattr(nn, config.act_layer)()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.fc1(x))
        out: Tensor = self.fc2(hidden * self.fc3(x) if self.gated else hidden)
        return out


class EncoderBlock(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1 = Norm(config.dim, config.norm_bias)
        self.attn = SelfAttention(config)
        self.norm2 = Norm(config.dim, config.norm_bias)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), mask)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


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
        self, x: Tensor, context: Tensor, *, uniform: bool, mask: Tensor | None = None, xmask: Tensor | None = None
    ) -> Tensor:
        normed = self.norm1(x)
        x = x + (self.self_attn.uniform(normed) if uniform else self.self_attn(normed, mask))
        x = x + self.cross_attn(self.query_norm(x), self.context_norm(context), xmask)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Transformer(nn.Module):
    """Tokens of any modalities in, states and logits of any modalities out.

    inputs, outputs  token key -> TokenSpec of the input and target modalities
    """

    def __init__(
        self, config: TransformerConfig, inputs: Mapping[str, TokenSpec], outputs: Mapping[str, TokenSpec]
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder_embeddings = nn.ModuleDict({k: TokenEmbedding(s, config.dim) for k, s in inputs.items()})
        self.decoder_embeddings = nn.ModuleDict({k: TargetEmbedding(s, config.dim) for k, s in outputs.items()})
        self.encoder = nn.ModuleList(EncoderBlock(config) for _ in range(config.encoder_depth))
        self.encoder_norm = Norm(config.dim, config.norm_bias)
        self.decoder_proj_context = nn.Linear(config.dim, config.dim)
        self.decoder = nn.ModuleList(DecoderBlock(config) for _ in range(config.decoder_depth))
        self.decoder_norm = Norm(config.dim, config.norm_bias)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        if config.num_register_tokens:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.num_register_tokens, config.dim))
        # One modality embedding serves both sides.
        for key in inputs.keys() & outputs.keys():
            self.target(key).mod_emb = self.input(key).mod_emb

    def embed(self, ids: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """ids[key] (B, n_key) -> values and places (B, N, D), concatenated in the order of `ids`."""
        parts = [self.input(key)(tensor) for key, tensor in ids.items()]
        values = torch.cat([value for value, _ in parts], dim=1)
        places = torch.cat([place for _, place in parts], dim=1)
        return values, places.expand(len(values), -1, -1)

    def encode(self, values: Tensor, places: Tensor, mask: Tensor | None = None) -> Tensor:
        """Values and places (B, N, D) -> encoder states (B, N, D), as AION-1's `encode` returns them:
        projected for the decoder, with the places added again. mask (B, 1, 1, N) True = attend, for padded batches.
        """
        x = values + places
        registers = self.config.num_register_tokens
        if registers:
            x = torch.cat([self.register_tokens.expand(len(x), -1, -1), x], dim=1)
            places = F.pad(places, (0, 0, registers, 0))
            mask = None if mask is None else F.pad(mask, (registers, 0), value=True)
        for block in self.encoder:
            x = block(x, mask)
        out: Tensor = self.decoder_proj_context(self.encoder_norm(x)) + places
        return out

    def decode(self, context: Tensor, targets: Sequence[str]) -> dict[str, Tensor]:
        """Context (B, N, D) -> logits[key] (B, n_key, V_key) for every token of the target modalities."""
        queries = {key: self.queries(key).expand(len(context), -1, -1) for key in targets}
        if self.config.decoder_attention == UNIFORM:
            sizes = [query.shape[1] for query in queries.values()]
            states = self.decode_states(torch.cat(list(queries.values()), dim=1), context, uniform=True)
            split = dict(zip(queries, states.split(sizes, dim=1), strict=True))
        else:
            split = {key: self.decode_states(query, context, uniform=False) for key, query in queries.items()}
        return {key: self.target(key).to_logits(state) for key, state in split.items()}

    def queries(self, key: str) -> Tensor:
        """(1, n_key, D): what the decoder is asked, without a value."""
        return self.mask_token + self.target(key).pos_emb + self.target(key).mod_emb

    def input(self, key: str) -> TokenEmbedding:
        """The embedding of an input modality."""
        embedding = self.encoder_embeddings[key]
        assert isinstance(embedding, TokenEmbedding)
        return embedding

    def target(self, key: str) -> TargetEmbedding:
        """The embedding and output layer of a target modality."""
        embedding = self.decoder_embeddings[key]
        assert isinstance(embedding, TargetEmbedding)
        return embedding

    def decode_states(
        self, x: Tensor, context: Tensor, *, uniform: bool, mask: Tensor | None = None, xmask: Tensor | None = None
    ) -> Tensor:
        """Queries (B, M, D) -> decoder states (B, M, D); masks (B, 1, M, M), (B, 1, 1, N) True = attend."""
        for block in self.decoder:
            x = block(x, context, uniform=uniform, mask=mask, xmask=xmask)
        out: Tensor = self.decoder_norm(x)
        return out

    @torch.no_grad()
    def initialise(self, grids: Mapping[str, tuple[int, int]], generator: torch.Generator) -> None:
        """Random weights for training: uniform Xavier, 0.02 for tables; positions from the token grids."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2 and "token_emb" not in name:
                fan_out, fan_in = parameter.shape
                parts = 3 if ".qkv." in name else 2 if ".kv." in name else 1
                limit = (6.0 / (fan_out // parts + fan_in)) ** 0.5
                parameter.uniform_(-limit, limit, generator=generator)
            elif "_emb" in name or name in ("mask_token", "register_tokens"):
                parameter.normal_(std=0.02, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()
        for key in self.encoder_embeddings:
            self.input(key).pos_emb.copy_(sincos_positions(*grids[key], self.config.dim))
        for key in self.decoder_embeddings:
            self.target(key).pos_emb.copy_(sincos_positions(*grids[key], self.config.dim))
