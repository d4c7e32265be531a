"""What long training stages share: resumable state on disk, and a line of progress that is also a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

Optimisers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]


def save_state(path: Path, module: nn.Module, optimisers: Optimisers, step: int) -> None:
    """Module, moments of the optimisers and step in one safetensors file, replaced as a whole."""
    tensors = {
        f"module.{name}": value.detach().clone(memory_format=torch.contiguous_format)
        for name, value in module.state_dict().items()
    }
    for first, optimiser in _numbered(optimisers):
        for i, moments in optimiser.state_dict()["state"].items():
            tensors |= {
                f"optimiser.{first + i}.{name}": torch.as_tensor(value).clone(memory_format=torch.contiguous_format)
                for name, value in moments.items()
            }
    tensors["step"] = torch.tensor(step)
    part = path.with_suffix(".part")
    save_file(tensors, part)
    os.replace(part, path)


def load_state(path: Path, module: nn.Module, optimisers: Optimisers) -> int:
    """Put back what `save_state` wrote; returns the step, 0 if there is no state."""
    if not path.exists():
        return 0
    tensors = load_file(path)
    module.load_state_dict({name[7:]: value for name, value in tensors.items() if name.startswith("module.")})
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = value
    for first, optimiser in _numbered(optimisers):
        groups = optimiser.state_dict()["param_groups"]
        own = {i: moments[first + i] for group in groups for i in group["params"] if first + i in moments}
        optimiser.load_state_dict({"state": own, "param_groups": groups})
    return int(tensors["step"])


def _numbered(optimisers: Optimisers) -> Iterator[tuple[int, torch.optim.Optimizer]]:
    """Each optimiser, and the number of its first parameter among those of all."""
    first = 0
    for optimiser in [optimisers] if isinstance(optimisers, torch.optim.Optimizer) else optimisers:
        yield first, optimiser
        first += sum(len(group["params"]) for group in optimiser.param_groups)


class Progress:
    """One line that stays in place on a terminal (a line every 30 s elsewhere), and a CSV of every 20th step."""

    def __init__(self, name: str, total: int, start: int, log: Path) -> None:
        self.name, self.total, self.start = name, total, start
        self.log = log
        self.began = time.monotonic()
        self.printed = 0.0

    def update(self, step: int, **values: float) -> None:
        """Report a step; values named `validation` are always logged."""
        now = time.monotonic()
        if step % 20 == 0 or "validation" in values or step == self.total:
            with self.log.open("a") as stream:
                stream.write(f"{step}," + ",".join(f"{key}={value:.6g}" for key, value in values.items()) + "\n")
        terminal = sys.stderr.isatty()
        if now - self.printed < (0.5 if terminal else 30.0) and step != self.total and "validation" not in values:
            return
        self.printed = now
        rate = (step - self.start) / max(now - self.began, 1e-9)
        left = (self.total - step) / rate if rate else float("nan")
        text = f"{self.name}: {step}/{self.total}  {rate:.2f}/s  {left / 60:.1f} min left  " + "  ".join(
            f"{key} {value:.4f}" for key, value in values.items()
        )
        ending = "\n" if not terminal or step == self.total else ""
        print(("\r\x1b[K" if terminal else "") + text, end=ending, file=sys.stderr, flush=True)
