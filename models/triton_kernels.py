"""Triton kernels of the transformer: one pass over memory each. Imported on a GPU only, by `albireo.models.kernels`.

The launchers have the names, arguments and results of the torch twins there. Sums are in float32 whatever the dtype
of the tensors; against the twins, relative to the largest value, float32 agrees within 1e-6 and bfloat16 within 1e-2.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

CHANNELS = 1024
"""Most channels that one program of the kernels over whole rows works on."""

HEADS = 16
"""Heads that one program normalises."""


@triton.jit
def _embed(
    ids, rows_of_place, table, places, values, wheres, width, vocabulary, n_places, table_row, places_row,
    BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    entry = tl.load(ids + token).to(tl.int64)
    place = tl.load(rows_of_place + token).to(tl.int64)
    # A row that does not exist is NaN, never whatever lies there in memory.
    in_table = inside & (entry >= 0) & (entry < vocabulary)
    in_places = inside & (place >= 0) & (place < n_places)
    what = tl.load(table + entry * table_row + column, mask=in_table, other=float("nan")).to(tl.float32)
    where = tl.load(places + place * places_row + column, mask=in_places, other=float("nan")).to(tl.float32)
    tl.store(values + token * width + column, what + where, mask=inside)
    tl.store(wheres + token * width + column, where, mask=inside)


def embed_tokens(ids: Tensor, rows_of_place: Tensor, table: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """(table[ids] + places[rows_of_place], places[rows_of_place]), both (T, D); rows that do not exist are NaN."""
    table, places = _channels_adjacent(table), _channels_adjacent(places)
    tokens, width = len(ids), table.shape[1]
    values, wheres = table.new_empty(tokens, width), places.new_empty(tokens, width)
    block = min(triton.next_power_of_2(width), CHANNELS)
    _embed[(tokens, triton.cdiv(width, block))](
        ids.contiguous(), rows_of_place.contiguous(), table, places, values, wheres,
        width, len(table), len(places), table.stride(0), places.stride(0), BLOCK=block,
    )  # fmt: skip
    return values, wheres


@triton.jit
def _qk_norm(x, weight, bias, out, rows, heads, width, x_row, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (channel < width)[None, :]
    start = (row // heads) * x_row + (row % heads) * width
    value = tl.load(x + start[:, None] + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, axis=1) / width
    centred = tl.where(inside, value - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / width
    normed = centred / tl.sqrt(variance + eps)[:, None]
    w = tl.load(weight + channel, mask=channel < width, other=0.0).to(tl.float32)
    b = tl.load(bias + channel, mask=channel < width, other=0.0).to(tl.float32)
    tl.store(out + row[:, None] * width + channel[None, :], normed * w[None, :] + b[None, :], mask=inside)


def qk_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    """LayerNorm of every head by itself: (T, D), weight and bias (d,) -> (T, D) contiguous."""
    x = _channels_adjacent(x)
    tokens, width = len(x), len(weight)
    heads = x.shape[1] // width
    out = x.new_empty(x.shape)
    _qk_norm[(triton.cdiv(tokens * heads, HEADS),)](
        x, weight.contiguous(), bias.contiguous(), out, tokens * heads, heads, width, x.stride(0), eps,
        ROWS=HEADS, BLOCK=triton.next_power_of_2(width),
    )  # fmt: skip
    return out


@triton.jit
def _swiglu(gate, up, width, gate_row, up_row, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    g = tl.load(gate + token * gate_row + column, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + token * up_row + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(gate + token * gate_row + column, g * tl.sigmoid(g) * u, mask=inside)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, all (T, h); `gate` is consumed."""
    gate, up = _channels_adjacent(gate), _channels_adjacent(up)
    tokens, width = gate.shape
    block = min(triton.next_power_of_2(width), CHANNELS)
    _swiglu[(tokens, triton.cdiv(width, block))](gate, up, width, gate.stride(0), up.stride(0), BLOCK=block)
    return gate


def _channels_adjacent(x: Tensor) -> Tensor:
    """Rows may lie apart, as slices of a wider tensor do; the channels of a row may not."""
    return x if x.stride(1) == 1 else x.contiguous()
