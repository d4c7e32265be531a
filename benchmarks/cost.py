"""What the encoder must compute and move, by its shapes: FLOP, bytes, and the GEMM rate of the block's own shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil

import torch

from albireo.models.engine import Tokens
from albireo.models.torch_engine import DTYPES, TorchEngine
from albireo.models.transformer import TransformerConfig
from benchmarks.measuring import seconds

LEAST_SECONDS = 0.02
"""A rate is measured over at least this time, or the clock would be what is measured."""

Passes = list[tuple[int, ...]]
"""Of each pass of the encoder: tokens of each object in it."""


def hidden(config: TransformerConfig) -> int:
    """Width of the feed-forward layer."""
    width = int(config.dim * config.mlp_ratio)
    return int(2 * width / 3) if config.gated_mlp else width


def block_shapes(config: TransformerConfig) -> list[tuple[int, int]]:
    """(K, N) of every product of one block: queries, keys, values, projection, feed-forward."""
    dim, width = config.dim, hidden(config)
    return [(dim, dim)] * 4 + [(dim, width)] * (1 + config.gated_mlp) + [(width, dim)]


def passes_of(engine: TorchEngine, tokens: Sequence[Tokens]) -> Passes:
    """The passes in which the engine embeds these objects, seen at its first block."""
    seen: Passes = []
    with engine.transformer.encoder[0].register_forward_pre_hook(lambda _, given: seen.append(tuple(given[1]))):
        engine.embed(tokens)
    return seen


def flop(config: TransformerConfig, passes: Passes) -> float:
    """Linear layers (2 FLOP per weight and token, the context projection included) and attention (4 N^2 D per object
    and layer)."""
    lengths = [n for one in passes for n in one]
    weights = config.encoder_depth * sum(k * n for k, n in block_shapes(config)) + config.dim**2
    return 2.0 * weights * sum(lengths) + 4.0 * config.encoder_depth * config.dim * sum(n * n for n in lengths)


def traffic(config: TransformerConfig, passes: Passes, weight_bytes: int, value_bytes: int) -> float:
    """Bytes that move if caches keep nothing between operations and everything within one.

    Every weight once per pass; of every product its input and output once; queries, keys, values and the output of
    attention once. Scores are taken to stay in cache.
    """
    shapes = block_shapes(config)
    weights = config.encoder_depth * sum(k * n for k, n in shapes) + config.dim**2
    values = config.encoder_depth * (sum(k + n for k, n in shapes) + 4 * config.dim) + 2 * config.dim
    tokens = sum(sum(one) for one in passes)
    return float(len(passes) * weights * weight_bytes + tokens * values * value_bytes)


class BlockGemm:
    """The products of one block, alone: what the library makes of the very shapes of a case.

    Passes of different sizes count by how often they occur; the rate is all FLOP over all time.
    """

    def __init__(self, engine: TorchEngine, passes: Passes) -> None:
        config, self.dtype = engine.transformer.config, DTYPES[engine.numerics.compute]
        self.counts = Counter(sum(one) for one in passes)
        self.weights = [torch.randn(n, k).to(self.dtype) for k, n in block_shapes(config)]
        widths = {k for k, _ in block_shapes(config)}
        self.inputs = {rows: {k: torch.randn(rows, k).to(self.dtype) for k in widths} for rows in self.counts}
        self.rates: list[float] = []
        self.repeats: dict[int, int] = {}
        for rows in self.counts:
            self._run(rows)
            self.repeats[rows] = max(1, ceil(LEAST_SECONDS / seconds(lambda rows=rows: self._run(rows))))  # type: ignore[misc]

    def measure(self) -> None:
        """Add one measurement of the rate in GFLOP/s to `rates`."""
        work = time = 0.0
        for rows, count in self.counts.items():
            repeats = self.repeats[rows]
            time += count * seconds(lambda rows=rows, n=repeats: self._run(rows, n)) / repeats  # type: ignore[misc]
            work += count * sum(2.0 * rows * weight.numel() for weight in self.weights)
        self.rates.append(work / time / 1e9)

    def _run(self, rows: int, repeats: int = 1) -> None:
        for _ in range(repeats):
            for weight in self.weights:
                torch.mm(self.inputs[rows][weight.shape[1]], weight.t())
