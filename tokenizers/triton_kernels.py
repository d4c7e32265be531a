"""Triton kernels before the codecs' networks. Imported on a GPU only, by `albireo.tokenizers.kernels`.

The launchers have the names, arguments and results of the torch twins there. Relative to the largest value they agree
with the twins within 1e-6 in float32, and with bfloat16 weights within 1e-2.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from albireo.tokenizers.kernels import band_scale, check_grid

POINTS = 256
"""Points that one program interpolates."""

PIXELS, OUTPUTS = 32, 64
"""Pixels, and at most how many of their projections, one program computes."""


@triton.jit
def _resample(x, y, at, out, n, m, curves, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = point < m
    target = tl.load(at + point, mask=inside, other=0.0)
    low = tl.zeros([BLOCK], tl.int32)
    high = low + n
    for _ in range(STEPS):
        middle = (low + high) // 2
        open_ = low < high
        below = open_ & (tl.load(x + middle, mask=open_, other=0.0) < target)
        low = tl.where(below, middle + 1, low)
        high = tl.where(open_ & (below == 0), middle, high)
    left = tl.minimum(tl.maximum(low - 1, 0), n - 2)
    x0, x1 = tl.load(x + left), tl.load(x + left + 1)
    outside = (target < tl.load(x)) | (target > tl.load(x + n - 1))
    for curve in range(curves):
        y0, y1 = tl.load(y + curve * n + left), tl.load(y + curve * n + left + 1)
        value = y0 + (target - x0) * tl.div_rn(y0 - y1, x0 - x1)
        tl.store(out + curve * m + point, tl.where(outside, 0.0, value), mask=inside)


def resample(x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    """Linear interpolation of y (C, n) at increasing x (n,) to `at` (m,): (C, m); 0 outside of x. Float32."""
    check_grid(x)
    n, m, curves = len(x), len(at), len(y)
    out = y.new_empty(curves, m)
    _resample[(triton.cdiv(m, POINTS),)](
        x.contiguous(), y.contiguous(), at.contiguous(), out, n, m, curves, STEPS=n.bit_length(), BLOCK=POINTS
    )
    return out


@triton.jit
def _arcsinh(x):
    # The hardware's logarithm is good to an absolute 2e-7, so where the result is small a polynomial keeps the relative
    # precision: arcsinh(x) / x in x^2, interpolated at the Chebyshev nodes of [0, 1/4] (relative error 1e-9).
    size, z = tl.abs(x), x * x
    near = z * -0.0130744152 + 0.0280601972
    near = near * z - 0.0443583206
    near = near * z + 0.0749838089
    near = near * z - 0.166666325
    near = near * z + 0.999999999
    far = tl.log(size + tl.sqrt(z + 1.0))
    return tl.where(size < 0.5, x * near, tl.where(x < 0.0, -far, far))


@triton.jit
def _compress_and_project(
    flux, limits, slots, weight, bias, out, pixels, outputs, n_slots, bands, scale, softening, mult, factor,
    PIXEL_BLOCK: tl.constexpr, OUTPUT_BLOCK: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0).to(tl.int64) * PIXEL_BLOCK + tl.arange(0, PIXEL_BLOCK)
    output = tl.program_id(1) * OUTPUT_BLOCK + tl.arange(0, OUTPUT_BLOCK)
    in_image, in_output = pixel < pixels, output < outputs
    total = tl.zeros([PIXEL_BLOCK, OUTPUT_BLOCK], tl.float32)
    for band in range(bands):
        limit = tl.load(limits + band)
        value = tl.load(flux + band * pixels + pixel, mask=in_image, other=0.0)
        value = tl.clamp(value, -limit, limit, propagate_nan=tl.PropagateNan.ALL)
        value = _arcsinh(value / scale / softening) * softening * mult
        column = tl.load(weight + output * n_slots + tl.load(slots + band), mask=in_output, other=0.0).to(tl.float32)
        total += value[:, None] * column[None, :]
    total = (total + tl.load(bias + output, mask=in_output, other=0.0).to(tl.float32)[None, :]) * factor
    place = pixel[:, None] * outputs + output[None, :]
    tl.store(out + place, total, mask=in_image[:, None] & in_output[None, :])


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
    """Bands (C, H, W) clamped to +-limits (C,), range-compressed, projected from their slots: (O, H, W)."""
    bands, height, width = flux.shape
    outputs, n_slots = weight.shape
    out = weight.new_empty(height, width, outputs)
    block = min(triton.next_power_of_2(outputs), OUTPUTS)
    _compress_and_project[(triton.cdiv(height * width, PIXELS), triton.cdiv(outputs, block))](
        flux.contiguous(), limits.contiguous(), slots.contiguous(), weight.contiguous(), bias.contiguous(), out,
        height * width, outputs, n_slots, bands, scale, softening, mult, band_scale(n_slots, bands),
        PIXEL_BLOCK=PIXELS, OUTPUT_BLOCK=block,
    )  # fmt: skip
    return out.movedim(-1, 0)
