"""Packed attention against the plain one, object by object."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from albireo.models.attention import SHORT, attend, blocked, mean_of, runs

LENGTHS = st.lists(st.sampled_from([0, 1, 2, 3, 7, SHORT, SHORT + 1, 130]), min_size=1, max_size=6)


def plain(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """q (M, D), k and v (N, D) of one object, in float64, head by head."""
    out = []
    for a, b, c in zip(q.double().chunk(heads, 1), k.double().chunk(heads, 1), v.double().chunk(heads, 1), strict=True):
        weights = torch.softmax(a @ b.T / a.shape[1] ** 0.5, dim=1)
        out.append(weights @ c)
    return torch.cat(out, dim=1)


@given(LENGTHS, LENGTHS, st.sampled_from([1, 2, 3]), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_objects_attend_to_themselves_only(lengths: list[int], keys: list[int], heads: int, seed: int) -> None:
    n = min(len(lengths), len(keys))
    lengths, keys = lengths[:n], keys[:n]
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(sum(lengths), heads * 8, generator=g)
    k, v = (torch.randn(sum(keys), heads * 8, generator=g) for _ in range(2))
    expected = [
        plain(a, b, c, heads) if len(b) else torch.zeros_like(a, dtype=torch.float64)
        for a, b, c in zip(q.split(lengths), k.split(keys), v.split(keys), strict=True)
    ]
    with torch.inference_mode():
        found = attend(q, k, v, heads, lengths, keys)
    torch.testing.assert_close(found.double(), torch.cat(expected), rtol=1e-4, atol=1e-5)


def test_neighbours_of_equal_length_are_one_batch() -> None:
    found = [(run.count, run.queries, run.keys) for run in runs([8, 8, 8, 5, 8], [8, 8, 8, 5, 8])]
    assert found == [(3, 8, 8), (1, 5, 5), (1, 8, 8)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("queries", "keys", "heads"), [(70, 70, 6), (3, 200, 5), (65, 1, 12)])
def test_blocked_is_plain(queries: int, keys: int, heads: int, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, heads, 16, generator=g).to(dtype) for n in (queries, keys, keys))
    with torch.inference_mode():
        found = blocked(q, k, v)
    for b in range(2):
        expected = plain(q[b].flatten(1), k[b].flatten(1), v[b].flatten(1), heads)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(found[b].flatten(1).double(), expected, rtol=tolerance, atol=tolerance)


def test_mean_of() -> None:
    v = torch.tensor([[1.0], [3.0], [10.0]])
    assert mean_of(v, [2, 1]).tolist() == [[2.0], [2.0], [10.0]]
