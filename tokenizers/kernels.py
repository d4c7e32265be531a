"""Steps before the codecs' networks that a GPU does in one pass over memory: resampling, and images into channel slots.

Each function's body is its torch twin: the reference, and what runs on a CPU and under autograd. On a GPU, where no
gradient is recorded, a Triton kernel of the same name takes its place (`albireo.tokenizers.triton_kernels`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Concatenate, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
OfTensors = Callable[Concatenate[Tensor, P], R]


def triton_on_gpu(module: str) -> Callable[[OfTensors[P, R]], OfTensors[P, R]]:
    """A torch twin becomes a function that takes, for tensors on a GPU, the function of the same name in `module`.

    The device of the first argument decides; it is positional. Kernels have no backward pass, so while autograd
    records the twin runs everywhere. `module` is imported at the first call that needs it: without a GPU Triton need
    not be installed. The twin itself stays at hand as `inspect.unwrap(function)`.
    """

    def decorate(twin: OfTensors[P, R]) -> OfTensors[P, R]:
        @wraps(twin)
        def chosen(first: Tensor, /, *args: P.args, **kwargs: P.kwargs) -> R:
            if first.is_cuda and not torch.is_grad_enabled():
                kernel: OfTensors[P, R] = getattr(import_module(module), twin.__name__)
                with torch.cuda.device_of(first):
                    return kernel(first, *args, **kwargs)
            return twin(first, *args, **kwargs)

        return chosen

    return decorate


def check_grid(x: Tensor) -> None:
    """Raises ValueError where there is no interval to interpolate in."""
    if x.ndim != 1 or len(x) < 2:
        raise ValueError(f"a grid of shape {tuple(x.shape)} has no interval to interpolate in")


def band_scale(slots: int, filled: int) -> float:
    """sqrt(slots / filled), rounded in float32 step by step as AION-1 does: what makes up for empty channel slots."""
    return float((slots / torch.tensor(filled)) ** 0.5)


@triton_on_gpu("albireo.tokenizers.triton_kernels")
def resample(x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    """Linear interpolation of curves y (C, n) on one increasing grid x (n,) to `at` (m,): (C, m); 0 outside of x.

    A NaN in `at` gives NaN. Raises ValueError for a grid of fewer than two points.
    """
    check_grid(x)
    x, at = x.contiguous(), at.contiguous()
    left = torch.clamp(torch.searchsorted(x, at) - 1, 0, len(x) - 2)
    slope = (y[:, :-1] - y[:, 1:]) / (x[:-1] - x[1:])
    out = y[:, left] + (at - x[left]) * slope[:, left]
    return out.masked_fill((at < x[0]) | (at > x[-1]), 0.0)


@triton_on_gpu("albireo.tokenizers.triton_kernels")
def compress_and_project(
    flux: Tensor,
    limits: Tensor,
    scale: float,
    softening: float,
    mult: float,
    slots: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> Tensor:
    """The image of C bands, range-compressed and projected from its channel slots: (O, H, W), channels innermost.

    flux (C, H, W) float32 in the survey's unit, clamped to +-limits (C,); `scale` is the survey's unit per nanomaggy.
    v = softening mult arcsinh(flux / scale / softening) goes to the distinct slots (C,) int64 of the S that
    weight (O, S) reads; the others are 0. Result: sqrt(S / C) (weight v + bias), in the dtype of the weight.
    """
    limits = limits[:, None, None]
    value = torch.clamp(flux, -limits, limits).div_(scale).div_(softening).arcsinh_().mul_(softening).mul_(mult)
    filled = value.new_zeros(weight.shape[1], *value.shape[1:])
    filled[slots] = value
    # One product over all slots, empty ones too: another sum would round differently, and codes follow the last digit.
    projected = F.linear(filled.movedim(0, -1).to(weight.dtype), weight, bias)
    return projected.mul_(band_scale(weight.shape[1], len(flux))).movedim(-1, 0)
