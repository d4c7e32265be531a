"""What torch finds on this machine: instructions of the processor, and GPUs."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Gpu:
    """One GPU, and bytes of its memory."""

    name: str
    free: int
    total: int


def simd() -> str:
    """The widest instructions that torch's kernels use here, e.g. AVX2 or AVX512."""
    return str(torch.backends.cpu.get_cpu_capability())


def gpus() -> list[Gpu]:
    """The GPUs that torch sees, in the order of their numbers."""
    numbers = range(torch.cuda.device_count())
    return [Gpu(torch.cuda.get_device_name(n), *torch.cuda.mem_get_info(n)) for n in numbers]
