"""Attention inside packed sequences: rows of all objects one after another, no padding, no mask.

attend   softmax attention of each sequence of queries over the sequence of keys of the same object
mean_of  the mean row of each sequence, in every row of it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

SHORT = 64
"""Up to this many keys, one product over all heads beats the library's fused kernel, which is made for long rows."""

BLOCKED_HEADS = 4
"""Heads whose scores are computed together in bfloat16 on a CPU, so that they stay in cache."""


@dataclass(frozen=True)
class Run:
    """`count` neighbouring objects with the same number of queries and of keys, computed as one batch."""

    count: int
    queries: int
    keys: int


def runs(lengths: Sequence[int], key_lengths: Sequence[int]) -> list[Run]:
    """The runs of a packed batch, in order."""
    pairs = groupby(zip(lengths, key_lengths, strict=True))
    return [Run(len(list(group)), m, n) for (m, n), group in pairs]


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, lengths: Sequence[int], key_lengths: Sequence[int]) -> Tensor:
    """q (T, D), k and v (S, D), one length per object on either side -> (T, D); zeros for objects without a key."""
    of = runs(lengths, key_lengths)
    # Split as a whole: the gradient of a slice is as large as what it was cut from, that of all parts is one copy.
    queries = q.split([run.count * run.queries for run in of])
    keys = [run.count * run.keys for run in of]
    out = []
    for run, rows, one, other in zip(of, queries, k.split(keys), v.split(keys), strict=True):
        if run.queries == 0:
            continue
        if run.keys == 0:
            out.append(torch.zeros_like(rows))
            continue
        here, there = (run.count, run.queries, heads, -1), (run.count, run.keys, heads, -1)
        out.append(_batch(rows.view(here), one.view(there), other.view(there)).reshape(rows.shape))
    return out[0] if len(out) == 1 else torch.cat(out) if out else q


def _batch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q (B, M, heads, d), k and v (B, N, heads, d) -> (B, M, heads, d), in the fastest way for the device and shape."""
    if q.dtype == torch.bfloat16 and not q.is_cuda and k.shape[1] > SHORT and not torch.is_grad_enabled():
        return blocked(q, k, v)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if k.shape[2] > SHORT or q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    scores: Tensor = (q @ k.transpose(2, 3)) * q.shape[3] ** -0.5
    return torch.matmul(scores.softmax(dim=-1), v).transpose(1, 2)


def blocked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same by products over a few heads of one object at a time, whose scores stay in cache.

    Where bfloat16 products run in hardware this takes half the time of the library's fused kernel.
    """
    out = torch.empty_like(q)
    scale = q.shape[3] ** -0.5
    for b in range(q.shape[0]):
        for first in range(0, q.shape[2], BLOCKED_HEADS):
            part = slice(first, first + BLOCKED_HEADS)
            keys = k[b, :, part].permute(1, 2, 0)
            scores = torch.bmm(q[b, :, part].transpose(0, 1) * scale, keys)
            out[b, :, part] = torch.bmm(scores.softmax(dim=-1), v[b, :, part].transpose(0, 1)).transpose(0, 1)
    return out


def mean_of(v: Tensor, lengths: Sequence[int]) -> Tensor:
    """v (T, D) -> (T, D): in every row the mean over the rows of its sequence."""
    return torch.cat([part.mean(dim=0, keepdim=True).expand_as(part) for part in v.split(list(lengths))])
