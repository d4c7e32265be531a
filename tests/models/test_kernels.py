"""Kernels of the transformer: twins beside slow numpy, interpreted kernels beside twins, and the choice by device."""

from __future__ import annotations

import inspect
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from albireo.models import kernels, triton_kernels
from albireo.tokenizers.kernels import triton_on_gpu

MODULE = "albireo.models.triton_kernels"
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2}

Call = tuple[str, tuple[Any, ...]]


def embedding(tokens: int, width: int, dtype: torch.dtype) -> Call:
    random = torch.Generator().manual_seed(tokens + width)
    ids, rows = (torch.randint(0, n, (tokens,), generator=random) for n in (50, 9))
    table, places = (torch.randn(n, width, generator=random).to(dtype) for n in (50, 9))
    return "embed_tokens", (ids, rows, table, places)


def heads(tokens: int, n_heads: int, width: int, dtype: torch.dtype) -> Call:
    """The keys among queries, keys and values: a slice of a wider tensor, far from 0 so that the mean matters."""
    random = torch.Generator().manual_seed(tokens + width)
    x = (3.0 * torch.randn(tokens, 3 * n_heads * width, generator=random) + 5.0).to(dtype)
    weight, bias = (torch.randn(width, generator=random).to(dtype) for _ in range(2))
    return "qk_norm", (x.chunk(3, dim=1)[1], weight, bias, 1e-6)


def gates(tokens: int, width: int, dtype: torch.dtype) -> Call:
    """Two halves of one tensor, with gates so far from 0 that their exponentials overflow."""
    random = torch.Generator().manual_seed(tokens + width)
    both = (4.0 * torch.randn(tokens, 2 * width, generator=random)).to(dtype)
    if tokens:
        both[0, :2] = torch.tensor([-200.0, 200.0])
    return "swiglu", tuple(both.chunk(2, dim=1))


CASES: dict[str, tuple[Call, torch.dtype]] = {
    f"{call[0]} {shape} {dtype}": (call, dtype)
    for dtype in TOLERANCE
    for call, shape in (
        *((embedding(t, w, dtype), (t, w)) for t, w in ((0, 96), (1, 7), (7, 96), (5, 768), (3, 2052))),
        *((heads(*shape, dtype), shape) for shape in ((0, 2, 32), (1, 1, 32), (13, 5, 48), (7, 12, 64), (3, 3, 128))),
        *((gates(t, w, dtype), (t, w)) for t, w in ((0, 5), (1, 3), (5, 100), (3, 1365))),
    )
}  # fmt: skip


STRAY: Call = (
    "embed_tokens",
    (torch.tensor([0, 50, 2, -1, 4]), torch.tensor([0, 1, 9, 3, 4]), torch.ones(50, 32), torch.ones(9, 32)),
)
"""The second and the fourth token are not in the table, the place of the third does not exist."""


def copied(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in args)


def twin(call: Call) -> Any:
    """The twin's result without gradients, as in the engine; arguments are left alone."""
    name, args = call
    with torch.inference_mode():
        return getattr(kernels, name)(*copied(args))


def slow(call: Call) -> tuple[np.ndarray[Any, Any], ...]:
    """The same in float64, one token and one head at a time."""
    name, args = call
    a = [arg.double().numpy() if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args]
    if name == "embed_tokens":
        wheres = [a[3][row] for row in a[1].tolist()]
        values = [a[2][entry] + where for entry, where in zip(a[0].tolist(), wheres, strict=True)]
        return np.array(values).reshape(-1, a[2].shape[1]), np.array(wheres).reshape(-1, a[3].shape[1])
    if name == "qk_norm":
        x, weight, bias, eps = a
        out = np.empty_like(x)
        for token in range(len(x)):
            for start in range(0, x.shape[1], len(weight)):
                head = x[token, start : start + len(weight)]
                normed = (head - head.mean()) / np.sqrt(head.var() + eps)
                out[token, start : start + len(weight)] = normed * weight + bias
        return (out,)
    gate, up = a
    return (gate / (1.0 + np.exp(-gate)) * up,)


def tensors(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def error(got: Tensor, wanted: Any) -> float:
    """Largest difference, relative to the largest value."""
    wanted = torch.as_tensor(wanted).double()
    assert got.shape == wanted.shape
    if not got.numel():
        return 0.0
    assert torch.isfinite(got).all()
    return float((got.double() - wanted).abs().max() / wanted.abs().max())


@pytest.fixture(scope="module")
def results(interpreted: Any) -> dict[str, Any]:
    found: dict[str, Any] = interpreted(MODULE, {case: call for case, (call, _) in CASES.items()} | {"stray": STRAY})
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_twin_is_what_it_says(case: str) -> None:
    call, dtype = CASES[case]
    for got, wanted in zip(tensors(twin(call)), slow(call), strict=True):
        assert got.dtype == dtype
        assert error(got, wanted) <= TOLERANCE[dtype]


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_is_its_twin(case: str, results: dict[str, Any]) -> None:
    call, dtype = CASES[case]
    for got, wanted in zip(tensors(results[case]), tensors(twin(call)), strict=True):
        assert (got.dtype, got.stride()) == (wanted.dtype, wanted.stride()) or not got.numel() or call[0] == "swiglu"
        assert error(got, wanted) <= TOLERANCE[dtype]


def test_a_row_that_does_not_exist_is_nan(results: dict[str, Any]) -> None:
    """Never what lies beside the table in memory; the twin on a CPU raises."""
    with pytest.raises(IndexError):
        twin(STRAY)
    values, wheres = results["stray"]
    assert values.isnan().all(dim=1).tolist() == [False, True, True, True, False]
    assert wheres.isnan().all(dim=1).tolist() == [False, False, True, False, False]


def test_only_a_gate_without_gradient_is_consumed() -> None:
    for name, args in (call for call, dtype in CASES.values() if dtype == torch.float32):
        with torch.inference_mode():
            given = copied(args)
            out = getattr(kernels, name)(*given)
        changed = [not torch.equal(a, b) for a, b in zip(given, args, strict=True) if isinstance(a, Tensor)]
        assert changed == [name == "swiglu" and args[0].numel() > 0] + [False] * (len(changed) - 1)
        if name == "swiglu":
            assert out.data_ptr() == given[0].data_ptr()


@pytest.mark.parametrize("case", [case for case in CASES if "float32" in case and "(0," not in case])
def test_gradients_flow(case: str) -> None:
    (name, args), _ = CASES[case]
    args = copied(args)
    leaves = [arg.requires_grad_() for arg in args if isinstance(arg, Tensor) and arg.is_floating_point()]
    kept = copied(args)
    sum(tensor.square().sum() for tensor in tensors(getattr(kernels, name)(*args))).backward()
    assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves)
    assert all(torch.equal(a, b) for a, b in zip(args, kept, strict=True) if isinstance(a, Tensor))


def test_the_device_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """No flag: a GPU's tensor takes the kernel, unless autograd records."""

    @triton_on_gpu("albireo.somewhere")
    def double(x: Any) -> str:
        return "twin"

    monkeypatch.setitem(sys.modules, "albireo.somewhere", SimpleNamespace(double=lambda x: "kernel"))
    on_cpu, on_gpu = (SimpleNamespace(is_cuda=there, get_device=lambda: -1) for there in (False, True))
    with torch.no_grad():
        assert (double(on_cpu), double(on_gpu)) == ("twin", "kernel")
    assert (double(on_cpu), double(on_gpu)) == ("twin", "twin")
    assert inspect.unwrap(double)(on_gpu) == "twin"


def test_launchers_have_the_names_and_signatures_of_the_twins() -> None:
    twins = {name for name, value in vars(kernels).items() if hasattr(value, "__wrapped__")}
    assert twins == {"embed_tokens", "qk_norm", "swiglu"}
    for name in twins:
        assert inspect.signature(getattr(triton_kernels, name)) == inspect.signature(getattr(kernels, name))


def test_the_kernels_compile_for_a_gpu(compiled: Any) -> None:
    """Their types, masks and shapes are right for the compiler too, which is stricter than the interpreter."""
    whole, indices = (
        dict.fromkeys(("width", "table_row", "places_row"), "i32"),
        {"ids": "*i64", "rows_of_place": "*i64"},
    )
    jobs: list[Any] = []
    for dtype in ("*fp32", "*bf16"):
        tables = dict.fromkeys(("table", "places", "values", "wheres"), dtype)
        x = dict.fromkeys(("x", "weight", "bias", "out"), dtype)
        jobs += [
            ("_embed", indices | tables | whole | {"vocabulary": "i32", "n_places": "i32"}, {"BLOCK": 1024}),
            ("_qk_norm", x | dict.fromkeys(("rows", "heads", "width", "x_row"), "i32") | {"eps": "fp32"},
             {"ROWS": 16, "BLOCK": 64}),
            ("_swiglu", {"gate": dtype, "up": dtype} | dict.fromkeys(("width", "gate_row", "up_row"), "i32"),
             {"BLOCK": 1024}),
        ]  # fmt: skip
    built = compiled(MODULE, jobs)
    assert len(built) == 2 * len(jobs)
    assert min(built) > 1000
