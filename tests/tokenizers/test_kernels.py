"""Kernels before the codecs: twins beside the reference package, bit by bit, and beside numpy; kernels beside twins."""

from __future__ import annotations

import inspect
from bisect import bisect_left
from math import asinh, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from aion.codecs.modules.spectrum import interp1d
from aion.codecs.modules.subsampler import SubsampledLinear
from aion.codecs.preprocessing.band_to_index import BAND_TO_INDEX
from aion.codecs.preprocessing.image import Clamp, ImagePadder, RescaleToLegacySurvey
from torch import Tensor

from albireo.tokenizers import kernels, triton_kernels
from albireo.tokenizers.image import BANDS, CLAMP, HSC_SCALE

MODULE = "albireo.tokenizers.triton_kernels"
SOFTENING, MULT = 0.01, 10.0

GRIDS = ((2, 5, 1), (3, 0, 2), (4, 700, 2), (17, 1, 3), (255, 257, 1), (256, 256, 2), (1000, 513, 2))
"""(points of the grid, points asked for, curves); a program of the kernel computes 256 points."""

CHANNELS = ((54, 13, 9), (7, 1, 1), (64, 8, 4), (100, 5, 33))
"""(projections, height, width); a program computes 32 pixels and at most 64 projections."""

SURVEYS = [["HSC-G", "HSC-R", "HSC-I", "HSC-Z", "HSC-Y"], ["DES-G", "DES-R", "DES-I", "DES-Z"]]
SUBSETS = [bands[:n] for bands in SURVEYS for n in range(1, len(bands) + 1)] + [["DES-Z", "DES-G"], ["HSC-Y", "HSC-I"]]

Call = tuple[str, tuple[Any, ...]]


def curves(n: int, m: int, c: int) -> Call:
    """An uneven grid; points on its nodes and ends, between them, and outside."""
    random = torch.Generator().manual_seed(n * m + c)
    x = 3500.0 + (torch.rand(n, generator=random) + 0.01).cumsum(0)
    at = x[0] - 1.0 + torch.rand(m, generator=random) * (x[-1] - x[0] + 2.0)
    some = torch.cat([x[:1], x[-1:], x[1:-1]])[: m // 2]
    at[: len(some)] = some
    return "resample", (x, torch.randn(c, n, generator=random) * 100.0, at)


def image(bands: list[str], outputs: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> Call:
    """Fluxes over ten decades, of which the brightest are clamped."""
    random = torch.Generator().manual_seed(len(bands) + outputs)
    decades = 10.0 ** (10.0 * torch.rand(len(bands), height, width, generator=random) - 7.0)
    flux = torch.randn(len(bands), height, width, generator=random) * decades
    flux[0, 0, 0] = 0.0
    limits = torch.tensor([CLAMP[band] for band in bands])
    slots = torch.tensor([BANDS.index(band) for band in bands])
    weight, bias = torch.randn(outputs, 9, generator=random), torch.randn(outputs, generator=random)
    scale = HSC_SCALE if bands[0].startswith("HSC") else 1.0
    return "compress_and_project", (flux, limits, scale, SOFTENING, MULT, slots, weight.to(dtype), bias.to(dtype))


CASES: dict[str, tuple[Call, float]] = {
    **{f"resample {shape}": (curves(*shape), 1e-6) for shape in GRIDS},
    **{f"image {'+'.join(bands)}": (image(bands, 54, 6, 7), 1e-6) for bands in SUBSETS},
    **{f"image {shape}": (image(SURVEYS[0], *shape), 1e-6) for shape in CHANNELS},
    **{f"image {shape} bfloat16": (image(SURVEYS[1], *shape, torch.bfloat16), 1e-2) for shape in CHANNELS},
}
"""Case -> call, and how far results may lie apart, relative to the largest value."""


SIZES = torch.cat([torch.logspace(-12, 6, 401), torch.linspace(0.49, 0.51, 101)])
SIGNED = torch.cat([-SIZES, SIZES])
ONE, ZERO = torch.ones(1), torch.zeros(1)


def with_nan(call: Call, argument: int, place: tuple[int, ...]) -> Call:
    call[1][argument][place] = torch.nan
    return call


SPECIAL: dict[str, Call] = {
    "nan pixel": with_nan(image(SURVEYS[1], 5, 3, 4), 0, (2, 1, 1)),
    "nan wavelength": with_nan(curves(10, 6, 2), 2, (4,)),
    "arcsinh": (
        "compress_and_project",
        (SIGNED[None, None], ONE * 1e9, 1.0, 1.0, 1.0, ZERO.long(), torch.ones(1, 9), ZERO),
    ),
}


def twin(call: Call) -> Tensor:
    name, args = call
    with torch.inference_mode():
        result: Tensor = getattr(kernels, name)(*args)
    return result


def slow_resample(x: Tensor, y: Tensor, at: Tensor) -> np.ndarray[Any, Any]:
    """Point by point in double precision."""
    out, grid = np.zeros((len(y), len(at))), x.tolist()
    for i, target in enumerate(at.tolist()):
        if grid[0] <= target <= grid[-1]:
            right = max(bisect_left(grid, target), 1)
            share = (target - grid[right - 1]) / (grid[right] - grid[right - 1])
            for c, curve in enumerate(y.tolist()):
                out[c, i] = curve[right - 1] * (1.0 - share) + curve[right] * share
    return out


def slow_image(
    flux: Tensor, limits: Tensor, scale: float, softening: float, mult: float, slots: Tensor, *layer: Tensor
) -> np.ndarray[Any, Any]:
    """Pixel by pixel in double precision."""
    weight, bias = (tensor.double().numpy() for tensor in layer)
    out = np.empty((len(weight), *flux.shape[1:]))
    for row in range(flux.shape[1]):
        for column in range(flux.shape[2]):
            total = bias.copy()
            for value, limit, slot in zip(flux[:, row, column].tolist(), limits.tolist(), slots.tolist(), strict=True):
                compressed = asinh(min(max(value, -limit), limit) / scale / softening) * softening * mult
                total += compressed * weight[:, slot]
            out[:, row, column] = total * sqrt(9 / len(flux))
    return out


SLOW = {"resample": slow_resample, "compress_and_project": slow_image}


def error(got: Tensor, wanted: Any) -> float:
    """Largest difference, relative to the largest value."""
    wanted = torch.as_tensor(wanted).double()
    assert got.shape == wanted.shape
    if not got.numel():
        return 0.0
    assert torch.isfinite(got).all()
    return float((got.double() - wanted).abs().max() / max(float(wanted.abs().max()), 1e-30))


@pytest.fixture(scope="module")
def results(interpreted: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = interpreted(MODULE, {case: call for case, (call, _) in CASES.items()} | SPECIAL)
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_twin_is_what_it_says(case: str) -> None:
    (name, args), tolerance = CASES[case]
    assert error(twin((name, args)), SLOW[name](*args)) <= tolerance


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_is_its_twin(case: str, results: dict[str, Tensor]) -> None:
    call, tolerance = CASES[case]
    got, wanted = results[case], twin(call)
    assert got.dtype == wanted.dtype
    assert got.stride() == wanted.stride() or not got.numel()
    assert error(got, wanted) <= tolerance


@pytest.mark.parametrize("shape", [*GRIDS, (4000, 8704, 2)])
def test_resampling_is_the_reference_bit_by_bit(shape: tuple[int, int, int]) -> None:
    x, y, at = curves(*shape)[1]
    wanted = interp1d(x.expand(len(y), -1).contiguous(), y, at.expand(len(y), -1).contiguous())
    assert torch.equal(twin(("resample", (x, y, at))), wanted)


@pytest.mark.parametrize("bands", SUBSETS, ids="+".join)
@pytest.mark.parametrize("shape", [(54, 96, 96), (24, 96, 96), (7, 5, 3)])
def test_images_are_the_reference_bit_by_bit(bands: list[str], shape: tuple[int, int, int]) -> None:
    name, args = image(bands, *shape)
    flux, weight, bias = args[0], args[-2], args[-1]
    x = RescaleToLegacySurvey().forward(Clamp()(flux[None].clone(), bands), bands[0].split("-")[0])
    x = torch.arcsinh(x / SOFTENING) * SOFTENING * MULT
    layer = SubsampledLinear(len(BAND_TO_INDEX), shape[0])
    layer.weight.data, layer.bias.data = weight, bias
    with torch.inference_mode():
        wanted = layer(*ImagePadder().forward(x, bands))[0]
    assert torch.equal(twin((name, args)), wanted)


@pytest.mark.parametrize("n", [0, 1])
def test_a_grid_without_interval(n: int) -> None:
    args = (torch.ones(n), torch.ones(1, n), torch.ones(3))
    for function in (kernels.resample, triton_kernels.resample):
        with pytest.raises(ValueError, match="no interval"):
            function(*args)


@pytest.mark.parametrize(("case", "where"), [("nan pixel", (..., 1, 1)), ("nan wavelength", (..., 4))])
def test_nan_stays_nan(case: str, where: tuple[Any, ...], results: dict[str, Tensor]) -> None:
    """Of a pixel and of a wavelength; nothing else is touched."""
    for result in (results[case], twin(SPECIAL[case])):
        wanted = torch.zeros(result.shape, dtype=torch.bool)
        wanted[where] = True
        assert torch.equal(result.isnan(), wanted)


def test_range_compression_keeps_its_digits(results: dict[str, Tensor]) -> None:
    """Of the kernel's arcsinh: relative 1e-6 over 18 decades, and where its two formulas meet."""
    got = results["arcsinh"].flatten().double().numpy() / 3.0
    assert np.abs(got / np.arcsinh(SIGNED.double().numpy()) - 1.0).max() < 1e-6


@pytest.mark.parametrize("case", [f"resample {GRIDS[4]}", f"image {CHANNELS[0]}"])
def test_inputs_are_unchanged_and_gradients_flow(case: str) -> None:
    (name, args), _ = CASES[case]
    kept = [arg.clone() if isinstance(arg, Tensor) else arg for arg in args]
    twin((name, args))
    leaves = [args[1]] if name == "resample" else list(args[-2:])
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    given = (args[0], leaves[0], args[2]) if name == "resample" else (*args[:-2], *leaves)
    getattr(kernels, name)(*given).square().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves)
    assert all(torch.equal(a, b) for a, b in zip(args, kept, strict=True) if isinstance(a, Tensor))


def test_launchers_have_the_names_and_signatures_of_the_twins() -> None:
    twins = {name for name, value in vars(kernels).items() if hasattr(value, "__wrapped__")}
    assert twins == {"resample", "compress_and_project"}
    for name in twins:
        assert inspect.signature(getattr(triton_kernels, name)) == inspect.signature(getattr(kernels, name))


def test_the_kernels_compile_for_a_gpu(compiled: Any) -> None:
    points = dict.fromkeys(("x", "y", "at", "out"), "*fp32") | dict.fromkeys(("n", "m", "curves"), "i32")
    numbers = dict.fromkeys(("pixels", "outputs", "n_slots", "bands"), "i32") | dict.fromkeys(
        ("scale", "softening", "mult", "factor"), "fp32"
    )
    jobs: list[Any] = [("_resample", points, {"STEPS": 13, "BLOCK": 256})]
    for dtype in ("*fp32", "*bf16"):
        arrays = {"flux": "*fp32", "limits": "*fp32", "slots": "*i64"} | dict.fromkeys(("weight", "bias", "out"), dtype)
        jobs.append(("_compress_and_project", arrays | numbers, {"PIXEL_BLOCK": 32, "OUTPUT_BLOCK": 64}))
    built = compiled(MODULE, jobs)
    assert len(built) == 2 * len(jobs)
    assert min(built) > 1000
