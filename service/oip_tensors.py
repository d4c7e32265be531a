"""Tensors of the Open Inference Protocol: datatypes, shapes, and the two ways in which their numbers travel.

TensorSpec  what a model takes or gives under one name
Tensor      one array under its name
from_bytes, to_bytes   little-endian, row-major; texts as their length (uint32) and their bytes, one after another
from_json, to_json     numbers, true and false, texts
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.observations.errors import BadInput

Array = NDArray[Any]
Value = bool | int | float | str
"""What a parameter may be."""

DATATYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    **{f"UINT{8 * n}": np.dtype(f"<u{n}") for n in (1, 2, 4, 8)},
    **{f"INT{8 * n}": np.dtype(f"<i{n}") for n in (1, 2, 4, 8)},
    **{f"FP{8 * n}": np.dtype(f"<f{n}") for n in (2, 4, 8)},
}
"""Datatypes of numbers -> how numpy holds them. BYTES, which is text, is only given; BF16 neither taken nor given."""

INTEGERS = ("INT64", "INT32", "UINT16")
"""What token ids may come as; they are given as the first."""

MAX_AXES, MAX_ENTRIES = 8, 1 << 48


@dataclass(frozen=True)
class TensorSpec:
    """What a model takes or gives under one name; -1 in `shape` is any length. The first axis is the row: one object.

    also      further datatypes that are taken, and turned into `datatype` without loss
    optional  a request may leave it out
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    also: tuple[str, ...] = ()
    optional: bool = False

    def check(self, tensor: Tensor) -> Array:
        """The array of a tensor, in `datatype`; BadInput if its datatype or shape is another."""
        if tensor.datatype not in (self.datatype, *self.also):
            taken = " or ".join((self.datatype, *self.also))
            raise BadInput("request_invalid", f"datatype {tensor.datatype}", field=self.name, fix=f"send {taken}")
        shape = tensor.values.shape
        if len(shape) != len(self.shape) or any(s not in (n, -1) for n, s in zip(shape, self.shape, strict=True)):
            wanted = f"{list(self.shape)}, where -1 is any length"
            raise BadInput("shape_mismatch", f"shape {list(shape)}", field=self.name, fix=wanted)
        return tensor.values.astype(DATATYPES[self.datatype], copy=False)


@dataclass(frozen=True)
class Tensor:
    """One array of a request or an answer, in a datatype of the protocol; `parameters` say more of it."""

    name: str
    datatype: str
    values: Array
    parameters: Mapping[str, Value] = field(default_factory=dict)


def text_tensor(name: str, texts: Sequence[str]) -> Tensor:
    """BYTES (n, 1) of texts, in UTF-8."""
    values = np.empty((len(texts), 1), object)
    values[:, 0] = [text.encode() for text in texts]
    return Tensor(name, "BYTES", values)


def from_bytes(name: str, datatype: str, shape: Sequence[int], raw: bytes | memoryview) -> Tensor:
    """A tensor of its binary form. BadInput if the bytes are not as many as datatype and shape say."""
    count, kind = _checked(name, datatype, shape)
    if len(raw) != count * kind.itemsize:
        raise BadInput("shape_mismatch", f"{len(raw)} bytes for {count} numbers of {datatype}", field=name)
    values: Array = np.frombuffer(raw, np.uint8 if datatype == "BOOL" else kind)
    if datatype == "BOOL":
        if count and values.max() > 1:
            raise BadInput("value_out_of_range", "a BOOL that is neither 0 nor 1", field=name)
        values = values.view(np.bool_)
    return Tensor(name, datatype, values.reshape(shape))


def to_bytes(tensor: Tensor) -> bytes:
    """The binary form of a tensor."""
    if tensor.datatype == "BYTES":
        return b"".join(struct.pack("<I", len(text)) + text for text in tensor.values.ravel())
    return tensor.values.astype(DATATYPES[tensor.datatype], copy=False).tobytes()


def from_json(name: str, datatype: str, shape: Sequence[int], data: Any) -> Tensor:
    """A tensor of its JSON form: a list, flat or nested. BadInput if what is in it is not of the datatype."""
    count, kind = _checked(name, datatype, shape)
    if datatype == "FP16":
        raise BadInput("request_invalid", "FP16 has no form in JSON", field=name, fix="send it as binary data, or FP32")
    if not isinstance(data, list):
        raise BadInput("request_invalid", "no list of numbers", field=name, fix="give `data`, or binary data")
    values = _numbers(name, datatype, kind, data)
    if values.size != count:
        raise BadInput("shape_mismatch", f"{values.size} entries for shape {list(shape)}", field=name)
    return Tensor(name, datatype, values.reshape(shape))


def to_json(tensor: Tensor) -> list[Any]:
    """The JSON form of a tensor: a flat list. BadInput if a number has none."""
    if tensor.datatype == "BYTES":
        return [text.decode() for text in tensor.values.ravel()]
    if tensor.values.dtype.kind == "f" and not np.isfinite(tensor.values).all():
        fix = "ask for binary data"
        raise BadInput("not_finite", "NaN and infinity have no form in JSON", field=tensor.name, fix=fix)
    out: list[Any] = tensor.values.ravel().tolist()
    return out


def _checked(name: str, datatype: str, shape: Sequence[int]) -> tuple[int, np.dtype[Any]]:
    """How many entries a shape has, and what they are in numpy."""
    if datatype not in DATATYPES:
        fix = f"datatypes that are taken: {', '.join(DATATYPES)}"
        raise BadInput("request_invalid", f"datatype {datatype!r}", field=name, fix=fix)
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape)
    if not whole or len(shape) > MAX_AXES or math.prod(n or 1 for n in shape) > MAX_ENTRIES:
        raise BadInput("shape_mismatch", f"shape {list(shape)[: MAX_AXES + 1]}", field=name, fix="name every length")
    return math.prod(shape), DATATYPES[datatype]


def _numbers(name: str, datatype: str, kind: np.dtype[Any], data: list[Any]) -> Array:
    try:
        given: Array = np.array(data)
    except ValueError as error:
        raise BadInput("shape_mismatch", "lists of different lengths", field=name) from error
    if not given.size:
        return np.zeros(0, kind)
    if given.dtype.kind not in {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}[kind.kind]:
        raise BadInput("request_invalid", f"an entry that is no {datatype}", field=name)
    if kind.kind in "iu" and not np.iinfo(kind).min <= given.min() <= given.max() <= np.iinfo(kind).max:
        raise BadInput("value_out_of_range", f"a number that is no {datatype}", field=name)
    with np.errstate(over="ignore"):
        values = given.astype(kind).ravel()
    if kind.kind == "f" and not np.isfinite(values).all():
        raise BadInput("value_out_of_range", f"a number that is no finite {datatype}", field=name)
    return values
