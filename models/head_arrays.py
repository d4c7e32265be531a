"""Arrays of head files, which may come from anybody: of the shape that they should have, or ValueError."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def taken(arrays: Mapping[str, NDArray[Any]], name: str, *shape: int | None) -> NDArray[np.float64]:
    """An array of float64 by its name; None in the shape is any length but 0. KeyError, ValueError if it is another."""
    array = arrays[name]
    fits = array.ndim == len(shape) and all(
        n == wanted if wanted is not None else n > 0 for n, wanted in zip(array.shape, shape, strict=True)
    )
    if not fits or array.dtype != np.float64:
        raise ValueError(f"{name} is {array.dtype} of shape {array.shape}")
    return array
