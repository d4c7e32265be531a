"""Steps of the transformer that a GPU does in one pass over memory: packed embedding, norms of heads, SwiGLU.

Packed layout: T tokens of all objects of a pass, D = heads * d channels. Each function's body is its torch twin; see
`albireo.tokenizers.kernels.triton_on_gpu` for when a Triton kernel takes its place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from albireo.tokenizers.kernels import triton_on_gpu


@triton_on_gpu("albireo.models.triton_kernels")
def embed_tokens(ids: Tensor, rows_of_place: Tensor, table: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """What every token says and where it stands: table[ids] + places[rows_of_place], and those places; both (T, D).

    ids            (T,) int64, rows of `table` (V, D): the tables of all modalities, one below the other
    rows_of_place  (T,) int64, rows of `places` (P, D): their fixed positions, each with its modality's embedding added
    """
    where = F.embedding(rows_of_place, places)
    return F.embedding(ids, table) + where, where


@triton_on_gpu("albireo.models.triton_kernels")
def qk_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    """LayerNorm of every head by itself: queries or keys (T, D), weight and bias (d,) -> (T, D) contiguous."""
    return F.layer_norm(x.unflatten(1, (-1, len(weight))), weight.shape, weight, bias, eps).flatten(1)


@triton_on_gpu("albireo.models.triton_kernels")
def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, all (T, h).

    Where no gradient is recorded `gate` is consumed: the result is written over it, which saves a pass over memory.
    """
    if torch.is_grad_enabled():
        return F.silu(gate) * up
    return F.silu(gate, inplace=True).mul_(up)
