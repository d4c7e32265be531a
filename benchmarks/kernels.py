"""Triton kernels beside their torch twins on this machine's GPU, at aion-base's shapes; without a GPU the twins alone.

    python -m benchmarks.kernels [--rounds 15] [--json]

The transformer's steps see eight objects with everything (8 x 857 tokens), in float32 and bfloat16; the codecs' steps
one DESI spectrum and one HSC image in float32, as they run. `error` is the largest difference between kernel and twin
on the GPU, relative to the largest value.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor

from albireo.models.kernels import embed_tokens, qk_norm, swiglu
from albireo.tokenizers.kernels import compress_and_project, resample
from benchmarks.measuring import ROUNDS, VOID_EXIT, alternate, gemm_rate, machine, ratio, steady

TOKENS, WIDTH, HEADS, HIDDEN, CODES, PLACES = 8 * 857, 768, 12, 2048, 60_000, 3000
"""A pass of eight objects through aion-base, and about as many rows as its tables of codes and places have."""

REPEAT = 20
"""Calls per timing."""

Step = tuple[str, Callable[..., Any], tuple[Any, ...]]


def steps(device: torch.device) -> Iterator[Step]:
    """(name, function, arguments on the device) of every kernel."""
    random = torch.Generator().manual_seed(1)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=random).to(device, dtype)

    def whole(limit: int, n: int) -> Tensor:
        return torch.randint(0, limit, (n,), generator=random).to(device)

    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        tables = normal(CODES, WIDTH, dtype=dtype), normal(PLACES, WIDTH, dtype=dtype)
        yield f"embed_tokens {name}", embed_tokens, (whole(CODES, TOKENS), whole(PLACES, TOKENS), *tables)
        queries = normal(TOKENS, 3 * WIDTH, dtype=dtype).chunk(3, dim=1)[0]
        channels = normal(WIDTH // HEADS, dtype=dtype), normal(WIDTH // HEADS, dtype=dtype)
        yield f"qk_norm {name}", qk_norm, (queries, *channels)
        # Each call writes over its gate; with this `up` it writes what was there, so that no call is unlike the first.
        gate = normal(TOKENS, HIDDEN, dtype=dtype)
        yield f"swiglu {name}", swiglu, (gate, 1.0 + torch.exp(-gate))
    observed = torch.linspace(3600.0, 9824.0, 7781, device=device)
    grid = 3500.0 + 0.8 * torch.arange(8704, device=device)
    yield "resample float32", resample, (observed, normal(2, len(observed)), grid)
    limits, slots = torch.tensor([80.0, 110.0, 200.0, 330.0, 500.0], device=device), torch.arange(5, device=device)
    projection = normal(54, 9), normal(54)
    yield (
        "compress_and_project float32",
        compress_and_project,
        (normal(5, 96, 96), limits, 10.0 ** ((27.0 - 22.5) / 2.5), 0.01, 10.0, slots, *projection),
    )


def repeated(function: Callable[..., Any], args: tuple[Any, ...], device: torch.device) -> Callable[[int], None]:
    """REPEAT calls, and the wait until the GPU is done with them."""

    def call(_: int) -> None:
        for _ in range(REPEAT):
            function(*args)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return call


def difference(function: Callable[..., Any], args: tuple[Any, ...]) -> float:
    """Between kernel and twin, relative to the largest value."""
    results = []
    for side in (function, inspect.unwrap(function)):
        result = side(*(arg.clone() if isinstance(arg, Tensor) else arg for arg in args))
        results.append((result[0] if isinstance(result, tuple) else result).double())
    return float((results[0] - results[1]).abs().max() / results[1].abs().max())


@torch.inference_mode()
def measure(device: torch.device, rounds: int) -> dict[str, dict[str, Any]]:
    """Milliseconds of one call by step; beside a GPU's kernel the ratio twin / kernel and their difference."""
    rows: dict[str, dict[str, Any]] = {}
    for name, function, args in steps(device):
        sides = {"twin": repeated(inspect.unwrap(function), args, device)}
        if device.type == "cuda":
            sides["kernel"] = repeated(function, args, device)
        taken = alternate(sides, rounds)
        rows[name] = {f"{side}_ms": 1e3 * median(times) / REPEAT for side, times in taken.items()}
        if device.type == "cuda":
            rows[name] |= {"ratio": ratio(taken["twin"], taken["kernel"]), "error": difference(function, args)}
    return rows


def main() -> None:
    """Command line: see the module's first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = gemm_rate()
    rows = measure(device, args.rounds)
    unsteady = not steady(before, gemm_rate())
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    if args.json:
        print(json.dumps({"machine": machine(), "gpu": gpu, "unsteady": unsteady, "steps": rows}, indent=2))
        return
    print(gpu or "no GPU: kernels not timed; twins timed")
    print(f"{'':30}{'twin ms':>9}" + (f"{'kernel ms':>11}{'twin / kernel':>24}{'error':>10}" if gpu else ""))
    for name, row in rows.items():
        line = f"{name:30}{row['twin_ms']:9.3f}"
        if gpu:
            gain = "{value:.2f} ({low:.2f} to {high:.2f})".format(**row["ratio"])
            line += f"{row['kernel_ms']:11.3f}{gain:>24}{row['error']:10.1e}"
        print(line)
    if unsteady:
        print("The machine's speed changed while this ran: the figures are VOID.")
        sys.exit(VOID_EXIT)


if __name__ == "__main__":
    main()
