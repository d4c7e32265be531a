"""Messages of albireo.v1 as what the core's verbs take: arrays, options, objects.

array, tensor   a Tensor and the numpy array that it is
reading         ReadOptions as those of the readers
Given           the objects of a request or of a window of a stream, read by the readers of every door
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from numpy.typing import NDArray
from pydantic import ValidationError

from albireo.models.engine import POOLINGS, Pooling
from albireo.models.heads import Prior
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.modalities import MODALITIES
from albireo.observations.options import ReadOptions
from albireo.observations.reading import FileReport
from albireo.observations.source import Source
from albireo.service import schemas
from albireo.service.inputs import KINDS, Gatherer, Part, check_count
from albireo.service.predictions import AnyPrior
from albireo.service.problems import from_validation
from albireo.service.protos.albireo.v1 import albireo_pb2 as pb
from albireo.service.reading_flags import FLAGS
from albireo.service.subjects import Subject, join
from albireo.service.terms import TERMS, Terms
from albireo.service.tickets import PRIORITIES, Priority

DTYPES = tuple(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))
DTYPES += ("bool", "float16", "float32", "float64")

ARRAY_OF = {"image": "image", "segmentation": "segmentation_map"}
"""Kind of modality -> name of the array that an archive keeps it in."""

Array = NDArray[Any]
Floats = NDArray[np.float32]


MAX_AXES, MAX_SIZE = 32, 1 << 40
"""Of a tensor: its axes, and the product of those that are not 0."""


def array(tensor: pb.Tensor, field: str) -> Array:
    """The array of a Tensor, which `field` names; nobody writes to it."""
    if tensor.dtype not in DTYPES:
        raise BadInput(
            "request_invalid", f"no dtype {tensor.dtype!r}", field=f"{field}.dtype", fix=f"one of {', '.join(DTYPES)}"
        )
    dtype = np.dtype(tensor.dtype).newbyteorder("<")
    shape = tuple(tensor.shape)
    # Nothing of a shape without end is an array neither, for numpy.
    too_many = len(shape) > MAX_AXES or math.prod(max(1, n) for n in shape) > MAX_SIZE
    if too_many or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(tensor.data):
        raise BadInput(
            "shape_mismatch", f"{len(tensor.data)} bytes for {tensor.dtype} of shape {list(shape)}", field=field
        )
    return np.frombuffer(tensor.data, dtype).reshape(shape)


def tensor(values: Array) -> pb.Tensor:
    """An array as a Tensor: little-endian, row-major."""
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return pb.Tensor(dtype=values.dtype.name, shape=values.shape, data=little.tobytes())


def vector(stated: pb.Vector, field: str) -> Floats:
    """The numbers (D,) of a Vector, with the space that it must name."""
    values = array(stated.values, f"{field}.values")
    if values.ndim != 1 or values.dtype.kind != "f":
        raise BadInput(
            "shape_mismatch", f"{values.dtype} of shape {values.shape} is no vector", field=field, fix="float32 (D,)"
        )
    if not stated.space:
        raise BadInput(
            "request_invalid",
            "the embedding space of a vector is not stated",
            field=f"{field}.space",
            fix="give the `space` that came with the embedding",
        )
    return values.astype(np.float32)


def plain_struct(struct: Struct, field: str) -> dict[str, Any]:
    """A Struct, which `field` names, as plain data; whole numbers are ints. BadInput for numbers that JSON has not."""
    try:
        return MessageToDict(struct)
    except ValueError as error:
        raise BadInput("request_invalid", str(error), field=field, fix="leave out what is not finite") from error


def reading(stated: pb.ReadOptions) -> ReadOptions:
    """Options of the readers. BadInput option_invalid if one cannot be."""
    values: dict[str, Any] = {}
    for flag in FLAGS:
        if flag.shape in ("list", "words"):
            value: Any = tuple(getattr(stated, flag.field)) or None
        elif flag.shape == "pairs":
            value = dict(getattr(stated, flag.field)) or None
        elif not stated.HasField(cast(Any, flag.field)):
            value = None
        elif flag.shape == "position":
            value = (stated.at.ra, stated.at.dec)
        else:
            value = getattr(stated, flag.field)
        if value is None:
            continue
        if flag.choices and value not in flag.choices:
            raise _invalid(flag.field, value, "one of " + ", ".join(flag.choices))
        if flag.shape == "count" and value < 1:
            raise _invalid(flag.field, value, "a whole number from 1 on")
        values[flag.field] = value
    return ReadOptions(**values)


def pooling(text: str) -> Pooling:
    """The pooling of a request; by default "mean"."""
    known = next((one for one in POOLINGS if one == (text or "mean")), None)
    if known is None:
        raise _invalid("pooling", text, "one of " + ", ".join(POOLINGS))
    return known


def priority(text: str) -> Priority | None:
    """The priority that a request asks for, None if it does not."""
    known = next((one for one in PRIORITIES if one == text), None)
    if text and known is None:
        raise _invalid("priority", text, "one of " + ", ".join(PRIORITIES))
    return known


def terms(options: pb.EmbedOptions | pb.PredictOptions | pb.TokenizeOptions, in_stream: bool = False) -> Terms:
    """The terms of a request; in a stream no object fails the others."""
    stated: dict[str, Any] = {}
    for name, known in TERMS.items():
        if value := getattr(options, name):
            if value not in known:
                raise _invalid(name, value, "one of " + ", ".join(known))
            stated[name] = value
    if in_stream and stated.get("on_error") == "fail":
        raise _invalid("on_error", "fail", "item in a stream, where each result tells what became of its object")
    if isinstance(options, pb.EmbedOptions) and options.HasField("dims"):
        stated["dims"] = options.dims
    return Terms(**stated)


def prior(options: pb.PredictOptions) -> AnyPrior:
    """The prior of redshift that a request asks for, None for that of the training."""
    if options.WhichOneof("prior") == "prior_cells":
        edges, n = (
            array(one, f"options.prior_cells.{name}").astype(np.float64)
            for name, one in (("edges", options.prior_cells.edges), ("n", options.prior_cells.n))
        )
        return Prior(edges, n)
    if options.prior_name not in ("", "training", "flat"):
        raise _invalid("prior_name", options.prior_name, "training or flat")
    return "flat" if options.prior_name == "flat" else None


@dataclass(frozen=True)
class Given:
    """Objects as they were read. `items` has the number of each one's item, None of those of files."""

    subjects: list[Subject]
    items: list[int | None]

    @classmethod
    def of(
        cls,
        items: Sequence[pb.Item],
        options: ReadOptions,
        numbers: Sequence[int] | None = None,
        called: str = "items",
        in_stream: bool = False,
    ) -> Given:
        """The objects of items; one that cannot be read fails alone.

        numbers  of the items in their stream, by default 0, 1, ..
        called   what errors call them
        in_stream  they may state options, which somebody else took
        """
        numbers = range(len(items)) if numbers is None else numbers
        parts: list[Part] = []
        stated = [_item(item, f"{called}.{n}", parts, in_stream) for n, item in zip(numbers, items, strict=True)]
        gatherer = Gatherer(parts, options)
        given = cls([], [])
        for n, item, one in zip(numbers, items, stated, strict=True):
            where = f"{called}.{n}"
            failed = (
                [Subject(item.id or None, None, error=one.at(field=where))] if isinstance(one, AlbireoError) else []
            )
            found = failed or gatherer.item(cast(schemas.Item, one), where)
            given.subjects.extend(found)
            given.items.extend([n] * len(found))
        return given

    @classmethod
    def of_request(
        cls, request: pb.EmbedRequest | pb.PredictRequest | pb.TokenizeRequest | pb.GenerateRequest, max_items: int
    ) -> tuple[list[FileReport], Given]:
        """The objects of a request, `max_items` at most, and reports of its files if it has files."""
        if bool(request.items) == bool(request.files):
            what = "give items or files, not both" if request.items else "nothing was sent"
            raise BadInput("request_invalid", what, field="items", fix="send items or files")
        check_count(len(request.items), max_items)
        read = reading(request.options.read)
        reports, given = cls.of_files(request.files, read) if request.files else ([], cls.of(request.items, read))
        check_count(len(given.subjects), max_items)
        return reports, given.joined() if request.options.join else given

    @classmethod
    def of_files(cls, files: Sequence[pb.File], options: ReadOptions) -> tuple[list[FileReport], Given]:
        """Every object of every file, read together so that companions find each other; and a report a file."""
        parts = [_part(f"files.{n}", file.name or f"files.{n}", file.content) for n, file in enumerate(files)]
        reports, subjects = Gatherer(parts, options).reports_of_all()
        return reports, cls(subjects, [None] * len(subjects))

    def joined(self) -> Given:
        """Objects of the same id as one, which is of no single item."""
        subjects = join(self.subjects)
        return Given(subjects, [None] * len(subjects))


def _item(item: pb.Item, where: str, parts: list[Part], in_stream: bool) -> schemas.Item | AlbireoError:
    """An item as every door knows it, its files among `parts`; or why it is none."""
    stated = item.WhichOneof("stream_options")
    try:
        if stated is not None and not in_stream:
            raise BadInput(
                "request_invalid",
                "an item states options of a stream",
                field=f"{where}.{stated}",
                fix="state them in the request",
            )
        inputs = [_input(given, f"{where}.inputs.{m}", parts) for m, given in enumerate(item.inputs)]
        pos = {"ra": item.pos.ra, "dec": item.pos.dec} if item.HasField("pos") else {}
        labels = plain_struct(item.labels, f"{where}.labels") if item.HasField("labels") else {}
        return schemas.Item(id=item.id or None, inputs=inputs, meta=schemas.Meta(labels=labels, **pos))
    except ValidationError as error:
        return from_validation(error.errors())
    except AlbireoError as error:
        return error


def _input(given: pb.Input, at: str, parts: list[Part]) -> schemas.Input:
    body = given.WhichOneof("body")
    if (body is None) == (not given.scalars):
        raise BadInput("request_invalid", "give exactly one of file, tensor, arrays and scalars", field=at)
    if given.HasField("mask") and body != "tensor":
        raise BadInput("request_invalid", "a mask belongs to a tensor", field=f"{at}.mask")
    about: dict[str, Any] = {
        "modality": given.modality or None,
        "format": given.format or None,
        "filename": given.filename or None,
        "object": given.object or None,
        "read": schemas.Reading(**asdict(reading(given.read))) if given.HasField("read") else None,
    }
    if body is None:
        return schemas.Input(values=dict(given.scalars), units=dict(given.units), **about)
    if body == "file":
        if given.units:
            raise BadInput("request_invalid", "a file states its units itself", field=f"{at}.units", fix="see `read`")
        part = _part(at, given.filename or f"{at}.file", given.file)
    else:
        arrays = _named(given, at) if body == "tensor" else _arrays(given.arrays, at)
        part = _part(at, given.filename or f"{at}.npz", _archive(arrays, given.units, at))
    parts.append(part)
    return schemas.Input(ref=f"part:{at}", **about)


def _named(given: pb.Input, at: str) -> dict[str, Array]:
    """A tensor under the name by which archives keep what its modality is."""
    row = next((row for row in MODALITIES.values() if given.modality in (row.key, row.name)), None)
    kind = row.kind if row else KINDS.get(given.modality)
    if kind not in ARRAY_OF:
        raise BadInput(
            "request_invalid",
            f"a tensor of modality {given.modality!r}" if given.modality else "a tensor of no modality",
            field=f"{at}.modality",
            fix="a tensor is an image or a segmentation map; give `arrays` of a spectrum, `scalars` of photometry",
        )
    named = {ARRAY_OF[kind]: array(given.tensor, f"{at}.tensor")}
    return named | ({"mask": array(given.mask, f"{at}.mask")} if given.HasField("mask") else {})


def _arrays(stated: pb.Arrays, at: str) -> dict[str, Array]:
    return {name: array(one, f"{at}.arrays.{name}") for name, one in stated.by_name.items()}


def _archive(arrays: Mapping[str, Array], units: Mapping[str, str], at: str) -> bytes:
    """Arrays as the NumPy archive that states them, so that they are read as one."""
    unknown = sorted(set(units) - {"flux"})
    if unknown:
        raise BadInput(
            "request_invalid",
            f"a unit for {unknown[0]!r}",
            field=f"{at}.units",
            fix="of arrays only that of flux is stated; wavelengths are in Angstrom",
        )
    if not arrays or ("unit" in arrays and units):
        what = "no array is given" if not arrays else "the unit is given twice"
        raise BadInput("request_invalid", what, field=f"{at}.arrays")
    stream = io.BytesIO()
    members = dict(arrays) | ({"unit": np.array(units["flux"])} if units else {})
    with zipfile.ZipFile(stream, "w") as archive:
        for name in sorted(members):  # in one order and of no date: the same arrays are the same bytes
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                np.lib.format.write_array(member, members[name], allow_pickle=False)
    return stream.getvalue()


def _part(name: str, filename: str, content: bytes) -> Part:
    try:
        return Part(name, filename, Source(filename, content))
    except AlbireoError as error:
        return Part(name, filename, error)


def _invalid(field: str, value: object, wanted: str) -> BadInput:
    return BadInput("option_invalid", f"{value!r} is not {wanted}", field=field, fix=f"give {wanted}")
