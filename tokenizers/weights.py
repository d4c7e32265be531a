"""Weights in safetensors files: read one tensor at a time into where they stay, and written.

A module is built without storage (`torch.device("meta")`); `materialise` gives storage to the parts in use, in the
type they are kept in, and `load` copies the file's tensors there one by one. So what is held at any time is the
weights kept and one tensor of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from albireo.observations.errors import BadCheckpoint


def materialise(module: nn.Module, wanted: Callable[[str], bool], device: torch.device, dtype: torch.dtype) -> None:
    """Storage for every parameter and buffer without any whose name is wanted; floating-point ones in `dtype`."""
    for prefix, owner in module.named_modules():
        for registry in (owner._parameters, owner._buffers):
            for name, tensor in registry.items():
                if tensor is None or not tensor.is_meta or not wanted(f"{prefix}.{name}" if prefix else name):
                    continue
                kept = torch.empty_like(tensor, device=device, dtype=dtype if tensor.is_floating_point() else None)
                registry[name] = nn.Parameter(kept, requires_grad=False) if registry is owner._parameters else kept


def check_shapes(
    wanted: Mapping[str, Tensor], path: Path, rename: Callable[[str], str | None] = lambda name: name
) -> None:
    """BadCheckpoint unless a file has every tensor of `wanted`, in the right shape, and no other; nothing is read.

    A configuration may state any size: before there is storage for it, the file must have as many numbers.
    """
    left, wrong = set(wanted), set()
    with _opened(path) as file:
        for stored in file.keys():  # noqa: SIM118 - not a mapping
            name = rename(stored)
            if name is None:
                continue
            if name not in wanted or tuple(file.get_slice(stored).get_shape()) != tuple(wanted[name].shape):
                wrong.add(stored)
            else:
                left.discard(name)
    if wrong or left:
        named = sorted(wrong | left)
        raise BadCheckpoint(
            "checkpoint_invalid",
            f"{len(named)} tensors are missing, unknown or of another shape: {', '.join(named[:5])}",
            file=str(path),
            fix="config.json and model.safetensors must belong together",
        )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise BadCheckpoint("checkpoint_invalid", str(error), file=str(path)) from error


@torch.no_grad()
def load(wanted: Mapping[str, Tensor], path: Path, rename: Callable[[str], str | None] = lambda name: name) -> None:
    """Copy the tensors of a file into `wanted`: every one of them, in the right shape, and no other.

    rename  name in the file -> name in `wanted`, or None for a tensor that is not read
    Raises BadCheckpoint if the file is damaged or does not fit.
    """
    check_shapes(wanted, path, rename)
    with _opened(path) as file:
        for stored in file.keys():  # noqa: SIM118 - not a mapping
            name = rename(stored)
            if name is not None:
                wanted[name].copy_(file.get_tensor(stored))


def save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, each once."""
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, path)
