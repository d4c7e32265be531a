"""VOTables from strangers: nothing outside the document is ever opened for them.

The VOTable standard lets a STREAM name its data by href, and astropy would fetch that address or local file. XML lets a
document declare entities, which can name files too and grow without bound. Both are refused before parsing. A table
may state any number of rows, and a field any number of elements, for which astropy takes memory before it reads them.
"""

from __future__ import annotations

import math
import re
from xml.parsers import expat

from albireo.observations.errors import BadInput
from albireo.observations.source import Source

_ELEMENT = 16
"""Bytes of the largest element, a double complex number; a character takes 4."""

_ROWS = 512
"""Rows that astropy takes memory for at least, and half as many again as there are."""


def refuse_references(source: Source) -> None:
    """Raise entities_refused, reference_refused for a STREAM with href, damaged_file if it is no XML.

    TooLarge if its tables take more memory than the source may.
    """
    parser = expat.ParserCreate()
    size = width = stated = rows = 0

    def element(name: str, attributes: dict[str, str]) -> None:
        nonlocal width, stated, rows
        local = name.rsplit(":", 1)[-1].upper()
        if local == "TABLE":
            width, stated, rows = 0, _number(attributes.get("nrows", "0")), 0
        elif local == "FIELD":
            elements = _elements(attributes.get("arraysize", "1"))
            if not elements:
                # astropy reads rows without bytes for ever.
                told = f"arraysize {attributes['arraysize']!r}"
                raise BadInput("damaged_file", told, file=source.name, field=attributes.get("name"))
            width += _ELEMENT * elements
        elif local == "TR":
            rows += 1
        if local == "STREAM" and any(key.rsplit(":", 1)[-1].lower() == "href" for key in attributes):
            raise BadInput(
                "reference_refused",
                f"a STREAM names its data by href: {attributes}",
                file=source.name,
                field="STREAM",
                fix="put the data inside the document (base64)",
            )

    def end(name: str) -> None:
        nonlocal size
        if name.rsplit(":", 1)[-1].upper() == "TABLE":
            size += max(stated, rows * 3 // 2, _ROWS) * width
            source.unfold(size, "tables")

    def declaration(*_: object) -> None:
        raise BadInput(
            "entities_refused",
            "the XML declares a document type or entities",
            file=source.name,
            fix="write the VOTable without them",
        )

    parser.StartElementHandler = element
    parser.EndElementHandler = end
    parser.StartDoctypeDeclHandler = declaration
    parser.EntityDeclHandler = declaration
    try:
        parser.Parse(source.content, True)
    except (expat.ExpatError, LookupError) as error:  # LookupError: of an encoding
        raise BadInput("damaged_file", f"VOTable: {error}", file=source.name, fix="fetch the file again") from error


def _elements(arraysize: str) -> int:
    """Elements of a cell; those of an array of varying length stand elsewhere."""
    stated = arraysize.strip()
    return 1 if "*" in stated or not stated else math.prod(_number(part) for part in stated.split("x"))


def _number(text: str) -> int:
    digits = re.match(r"\s*(\d{1,18})", text)
    return int(digits[1]) if digits else 0
