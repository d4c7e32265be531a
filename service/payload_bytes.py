"""A payload as bytes and back, to the bit: how measurements travel to workers in other processes.

[u32 little-endian length of the header][JSON header][the arrays one after the other, little-endian, row-major]. Nothing
in it is code: what is read back can only be one of the payload classes.
"""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import fields
from typing import Any

import numpy as np

from albireo.observations.errors import BadInput
from albireo.observations.observation import (
    Catalog,
    Coefficients,
    Convention,
    Image,
    LightCurve,
    Payload,
    Scalar,
    SegmentationMap,
    Spectrum,
)

CLASSES: dict[str, Any] = {
    one.__name__: one
    for one in (Image, Spectrum, Coefficients, Scalar, LightCurve, SegmentationMap, Catalog, Convention)
}


_PLAIN = re.compile(r"[<>|]([biuf][1248]|U\d{1,6})")
"""Types of arrays: numbers, and texts of one length."""


def pack(payload: Payload) -> bytes:
    """The bytes of a payload."""
    arrays: list[bytes] = []
    header = json.dumps(_told(payload, arrays)).encode()
    return b"".join([struct.pack("<I", len(header)), header, *arrays])


def unpack(content: bytes) -> Payload:
    """The payload of its bytes. BadInput damaged_file if they are none."""
    try:
        (length,) = struct.unpack_from("<I", content)
        header = json.loads(content[4 : 4 + length])
        payload, end = _read(header, content, 4 + length)
        if end != len(content) or not isinstance(payload, Payload):
            raise ValueError(f"{len(content) - end} bytes are left")
    except (struct.error, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise BadInput("damaged_file", f"no payload: {error}") from error
    return payload


def _told(value: Any, arrays: list[bytes]) -> Any:
    """A value as JSON; arrays go into a list of their own."""
    if isinstance(value, np.ndarray):
        plain = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
        arrays.append(plain.tobytes())
        return {"array": plain.dtype.str, "shape": value.shape}
    if isinstance(value, tuple):
        return {"tuple": [_told(one, arrays) for one in value]}
    if type(value).__name__ in CLASSES:
        return {"class": type(value).__name__} | {
            one.name: _told(getattr(value, one.name), arrays) for one in fields(value)
        }
    return value.item() if isinstance(value, np.generic) else value


def _read(told: Any, content: bytes, at: int) -> tuple[Any, int]:
    """What was told, and where the next array begins."""
    if not isinstance(told, dict):
        return told, at
    if "array" in told:
        if not _PLAIN.fullmatch(told["array"]):
            raise ValueError(f"an array of {told['array']!r}")
        kind, shape = np.dtype(told["array"]), told["shape"]
        if not all(isinstance(n, int) and n >= 0 for n in shape):
            raise ValueError(f"an array of shape {shape!r}")
        count = math.prod(shape)
        array = np.frombuffer(content, kind, count, at).reshape(shape).astype(kind.newbyteorder("="))
        return array, at + count * kind.itemsize
    if "tuple" in told:
        out = []
        for one in told["tuple"]:
            value, at = _read(one, content, at)
            out.append(value)
        return tuple(out), at
    made = CLASSES[told["class"]]
    values: dict[str, Any] = {}
    for name, one in told.items():
        if name != "class":
            values[name], at = _read(one, content, at)
    return made(**values), at
