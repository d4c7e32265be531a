"""The network of a head: token states of an object -> features -> outputs.

    mean               a learned map of the mean of the states
    mean_per_modality  sum over modalities of (a learned map of the mean of its states + a vector); what is absent adds
                       nothing. Coefficients are not averaged: each is another quantity, and has a map of its own
    attentive          Q learned queries, each a mean of the states under softmax(Q K^T / sqrt D) and a map of its own.
                       A map of the keys would only turn the queries, so there is none; a query has one number for each
                       modality instead, by which it can prefer one

Of states the mean that the training objects had is taken, modality by modality but for "mean". Maps begin as principal
components of unit variance. States of modalities that no training object had are left out before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from albireo.models.heads import Network, Pooling
from albireo.observations.errors import BadInput
from albireo.observations.modalities import MODALITIES

HIDDEN = 256
DROPOUT = 0.1
PER_QUERY = 64
"""Features that a query gives."""
OF_MEAN = 128
"""Features into which a mean is mapped."""
PER_MODALITY = 48
"""Features into which every modality is mapped. A map costs D x 48 numbers; a head file should stay small."""
AT_ONCE = 1 << 23
"""Numbers of token states, padding included, that are computed with at once: 32 MB."""
ENOUGH = 10_000
"""Training objects that are looked at for means and standard deviations, evenly taken."""
SOME = 2_000
"""Training objects that are looked at for principal components."""
LEAST = 1e-6
"""Variance of the last component, over that of the first."""

LARGEST = float(np.finfo(np.float16).max)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Rows:
    """What a head reads of one object: values (N, D), and kinds (N,) the number of each row's modality.

    States of tokens are float16, means of them float32.
    """

    values: NDArray[np.float16] | Floats
    kinds: NDArray[np.int64]


def kinds_of(pooling: Pooling, known: Sequence[str]) -> dict[str, range]:
    """Token key -> numbers of the kinds that its rows are of: one for all of them, or one each of coefficients."""
    out: dict[str, range] = {}
    first = 0
    for key in known:
        row = MODALITIES[key]
        several = pooling == "mean_per_modality" and row.kind == "coefficients"
        out[key] = range(first, first + ((row.shape[0] or 1) if several else 1))
        first = out[key].stop
    return out


def n_kinds(pooling: Pooling, known: Sequence[str]) -> int:
    """Number of kinds of rows."""
    return sum(map(len, kinds_of(pooling, known).values()))


def reduce(values: Floats, keys: Sequence[str], pooling: Pooling, known: Sequence[str]) -> Rows:
    """Rows that a head with this pooling reads of token states (N, D) whose modalities are `keys` (N,).

    known  token keys that the head was fitted with; rows of others are left out. There may be none left.
    States count in half precision, in which they are kept on disk: what a head is asked about is rounded like what it
    was fitted on. Else it could learn from the rounding, and its intervals would be of other states than these.
    """
    numbers = kinds_of(pooling, known)
    first = {key: of.start for key, of in numbers.items()}
    kinds = np.array([first.get(key, -1) for key in keys], np.int64)
    for of in numbers.values():
        if len(of) > 1:
            rows = np.flatnonzero(kinds == of.start)
            kinds[rows] = of[: len(rows)]
    if (kinds < 0).any():
        values, kinds = values[kinds >= 0], kinds[kinds >= 0]
    if len(kinds) and not -LARGEST <= values.min() <= values.max() <= LARGEST:
        raise BadInput("not_finite", "token states do not fit in half precision", field="states")
    # By torch, which has instructions for it.
    half = torch.from_numpy(values if values.flags.writeable else values.copy()).half()
    if not len(kinds) or pooling == "attentive":
        return Rows(half.numpy(), kinds)
    if pooling == "mean":
        return Rows(half.double().mean(dim=0, keepdim=True).float().numpy(), np.zeros(1, np.int64))
    present, place = np.unique(kinds, return_inverse=True)
    shares = np.zeros((len(present), len(kinds)))
    shares[place, np.arange(len(kinds))] = 1 / np.bincount(place)[place]
    # Threads of two libraries beside each other wait for one another: by torch, ten times faster here.
    return Rows((torch.from_numpy(shares) @ half.double()).float().numpy(), present)


def collate(rows: Sequence[Rows]) -> tuple[Tensor, Tensor]:
    """Objects side by side: values (B, N, D), and kinds (B, N) with -1 where an object has no more rows."""
    longest = max(len(one.kinds) for one in rows)
    values = torch.empty(len(rows), longest, rows[0].values.shape[1])
    kinds = torch.full((len(rows), longest), -1)
    for i, one in enumerate(rows):
        n = len(one.kinds)
        values[i, :n] = torch.from_numpy(one.values)
        values[i, n:] = 0.0
        kinds[i, :n] = torch.from_numpy(one.kinds)
    return values, kinds


class HeadNetwork(nn.Module):
    """`forward` gives outputs (B, O) and the features (B, F) under them.

    kinds  number of kinds of rows that it knows (see kinds_of); "mean" makes no difference between them
    The read-out is linear; "mlp" adds to it what a hidden layer makes of the features, which is nothing at first.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, pooling: Pooling, network: Network, dim: int, kinds: int, queries: int, outputs: int) -> None:
        super().__init__()
        self.pooling = pooling
        kinds = 1 if pooling == "mean" else kinds
        self.register_buffer("centre", torch.zeros(kinds, dim))
        self.register_buffer("scale", torch.ones(()))
        if pooling == "attentive":
            features = queries * PER_QUERY
            self.queries = nn.Parameter(torch.randn(queries, dim) / 2)
            self.preference = nn.Parameter(torch.zeros(queries, kinds))
            self.maps = nn.Parameter(torch.randn(queries, dim, PER_QUERY) / math.sqrt(dim))
        else:
            features = OF_MEAN if pooling == "mean" else PER_MODALITY
            self.maps = nn.Parameter(torch.randn(kinds, dim + 1, features) / math.sqrt(dim))
            with torch.no_grad():
                self.maps[:, dim] = 0
        self.readout = nn.Linear(features, outputs)
        self.deep: nn.Module | None = None
        if network == "mlp":
            last = nn.Linear(HIDDEN, outputs)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.deep = nn.Sequential(nn.Linear(features, HIDDEN), nn.GELU(), nn.Dropout(DROPOUT), last)

    @property
    def fan_in(self) -> int:
        """Numbers that a feature is made of."""
        groups, size, _ = self.maps.shape
        return size if self.pooling == "attentive" else groups * size

    def forward(self, values: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
        return self.read(self.scaled(values, kinds), kinds)

    def scaled(self, values: Tensor, kinds: Tensor) -> Tensor:
        """States (B, N, D) less their means, and in units of what they vary by; rows of kind -1 become 0."""
        return (values - self.centre[kinds]).mul_((kinds >= 0)[..., None] / self.scale)

    def read(self, x: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and features of scaled states."""
        features = self.features(x, kinds)
        outputs = self.readout(features)
        return (outputs if self.deep is None else outputs + self.deep(features)), features

    def features(self, x: Tensor, kinds: Tensor) -> Tensor:
        """(B, F) of scaled states (B, N, D); rows of kind -1 have no influence."""
        pooled = self.pooled(x, kinds)
        if self.pooling == "attentive":
            return torch.einsum("bqd,qdf->bqf", pooled, self.maps).flatten(1)
        return torch.einsum("bkd,kdf->bf", pooled, self.maps)

    def pooled(self, x: Tensor, kinds: Tensor) -> Tensor:
        """What the maps are of: (B, K, D + 1) of modalities (or of all: K = 1) and 1 if there, or (B, Q, D)."""
        there = kinds >= 0
        at = kinds.clamp(min=0)
        if self.pooling == "attentive":
            logits = x @ self.queries.T / math.sqrt(x.shape[-1]) + self.preference.T[at]
            attention = logits.masked_fill(~there[..., None], -math.inf).softmax(dim=1)
            return torch.einsum("bnq,bnd->bqd", attention, x)
        # One row a modality: by modality they are dense, and absent ones are zero.
        dense = x.new_zeros(len(x), len(self.maps), x.shape[-1] + 1)
        objects, rows = there.nonzero(as_tuple=True)
        dense[objects, at[objects, rows], :-1] = x[objects, rows]
        dense[objects, at[objects, rows], -1] = 1.0
        return dense

    @torch.no_grad()
    def tell(self, slopes: Tensor) -> Tensor:
        """Let features tell T linear combinations of what is pooled, slopes (T, groups, D); which, (T, F)."""
        told = len(slopes)
        # In the place of the components that vary least.
        self.maps[..., -told:] = slopes.permute(1, 2, 0)
        groups = len(self.maps) if self.pooling == "attentive" else 1
        return torch.eye(self.maps.shape[-1])[-told:].repeat(1, groups)

    @torch.no_grad()
    def begin(self, rows: Sequence[Rows]) -> None:
        """Take from training objects the mean of every kind and one spread; let features be principal components.

        These have unit variance each: a colour is a small part of what varies, and a network would learn it last.
        Numbers of a state keep their sizes: some hardly vary, and each in units of its own spread would be noise.
        """
        kinds, dim = self.centre.shape
        count, total, square = np.zeros((kinds, 1)), np.zeros((kinds, dim)), np.zeros((kinds, dim))
        step = -(-len(rows) // ENOUGH)
        for i in range(0, len(rows), step):
            one = rows[i]
            for kind in np.unique(one.kinds):
                values = one.values[one.kinds == kind].astype(np.float64)
                count[kind] += len(values)
                total[kind] += values.sum(axis=0)
                square[kind] += (values**2).sum(axis=0)
        mean = total / np.maximum(count, 1)
        variance = float((square - count * mean**2).sum() / (count.sum() * dim))
        self.centre.copy_(torch.from_numpy(mean))
        self.scale.fill_(max(variance, 1e-12) ** 0.5)
        pooled = run_pooled(self, [rows[i] for i in range(0, len(rows), -(-len(rows) // SOME))])
        n, groups, size = pooled.shape
        together = 1 if self.pooling == "attentive" else groups
        for g in range(0, groups, together):
            found = components(pooled[:, g : g + together].reshape(n, -1), self.maps.shape[-1])
            slopes = torch.from_numpy(found).reshape(len(found), together, size).permute(1, 2, 0)
            self.maps[g : g + together, :, : len(found)].copy_(slopes)


def components(x: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """Slopes (C, P) of the first principal components of x (n, P), such that each has unit variance.

    C  at most `most`: what varies less than states do by being kept in half precision says nothing
    """
    off = x - x.mean(axis=0)
    few = len(off) < off.shape[1]
    values, vectors = np.linalg.eigh((off @ off.T if few else off.T @ off) / len(off))
    at = np.flatnonzero(values > LEAST * max(values[-1], LEAST))[::-1][:most]
    # Directions among numbers follow from those among objects.
    along = vectors[:, at].T @ off / (len(off) * values[at, None]) ** 0.5 if few else vectors[:, at].T
    slopes: NDArray[np.float64] = along / values[at, None] ** 0.5
    return slopes


@torch.inference_mode()
def run_pooled(network: HeadNetwork, rows: Sequence[Rows]) -> NDArray[np.float64]:
    """What is pooled of objects, (n, groups, D)."""
    batches = (collate(batch) for batch in _batches(rows))
    return torch.cat([network.pooled(network.scaled(values, of), of) for values, of in batches]).double().numpy()


@torch.inference_mode()
def run(network: HeadNetwork, rows: Sequence[Rows]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Outputs (n, O) and features (n, F) of objects, in evaluation mode."""
    network.eval()
    parts = [network(*collate(batch)) for batch in _batches(rows)]
    outputs, features = (torch.cat([part[i] for part in parts]).double().numpy() for i in (0, 1))
    return outputs, features


def _batches(rows: Sequence[Rows]) -> Iterator[list[Rows]]:
    """Objects in order, as many at once as take AT_ONCE numbers side by side."""
    batch: list[Rows] = []
    longest = 0
    for one in (rows[i] for i in range(len(rows))):
        longest = max(longest, len(one.kinds))
        if batch and (len(batch) + 1) * longest * one.values.shape[1] > AT_ONCE:
            yield batch
            batch, longest = [], len(one.kinds)
        batch.append(one)
    if batch:
        yield batch
