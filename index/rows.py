"""The parts of a stored row that are no plain column: metadata as text, and the checksum over everything."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from albireo.observations.errors import BadInput


def metadata_text(name: str, metadata: Mapping[str, Any]) -> str:
    """Metadata of the object `name` as JSON, numbers exact; BadInput if a value is none of JSON's."""
    try:
        return json.dumps(dict(metadata), allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise BadInput(
            "request_invalid",
            f"metadata of object {name!r}: {error}",
            field="metadata",
            fix="JSON values only; leave out what is NaN",
        ) from error


def checksum_of(name: str, vector: bytes, ra: float | None, dec: float | None, metadata: str, modalities: str) -> int:
    """crc32 of everything in a row: pages that were torn or bits that flipped are found when it is read."""
    angles = struct.pack("<dd", *(math.nan if angle is None else angle for angle in (ra, dec)))
    value = 0
    for part in (name.encode(), vector, angles, metadata.encode(), modalities.encode()):
        value = zlib.crc32(struct.pack("<Q", len(part)) + part, value)
    return value


def _plain(value: Any) -> Any:
    """Numbers of numpy as those of Python."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON value")
