"""Muon: momentum steps of weight matrices made orthogonal (K. Jordan 2024; its scale as in arXiv 2502.16982).

Adam scales each number by itself; a step of Muon changes all directions of a matrix alike. On the masked modelling of
photometry it got in 200 steps where AdamW got in 400 (docs/log.md). The library's own computes in bfloat16, which many
CPUs only emulate, and knows of no matrices that are several one above the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the polynomial whose repetition draws all singular values to about 1."""

REPEATS = 5


def orthogonal(matrix: Tensor) -> Tensor:
    """(M, N) -> the same singular vectors, with singular values between about 0.7 and 1.2."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(REPEATS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    out: Tensor = x.T if tall else x
    return out


class Muon(torch.optim.Optimizer):
    """For weight matrices; everything else is left to another optimiser.

    parts   parameter -> of how many matrices, one above the other, it consists; 1 if it is not named
    lr      so scaled that a step is about as long as one of AdamW at the same rate
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        parts: Mapping[Tensor, int] | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._parts = dict(parts or {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step along the gradients that are there."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                mean = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(mean, group["momentum"])
                pieces = ahead.chunk(self._parts.get(parameter, 1))
                step = torch.cat([orthogonal(piece) * 0.2 * max(piece.shape) ** 0.5 for piece in pieces])
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(step, alpha=group["lr"])
