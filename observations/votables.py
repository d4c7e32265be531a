"""VOTables from strangers: nothing outside the document is ever opened for them.

The VOTable standard lets a STREAM name its data by href, and astropy would fetch that address or local file. XML lets a
document declare entities, which can name files too and grow without bound. Both are refused before parsing.
"""

from __future__ import annotations

from xml.parsers import expat

from albireo.observations.errors import BadInput
from albireo.observations.source import Source


def refuse_references(source: Source) -> None:
    """Raise entities_refused, reference_refused for a STREAM with href, damaged_file if it is no XML."""
    parser = expat.ParserCreate()

    def element(name: str, attributes: dict[str, str]) -> None:
        local = name.rsplit(":", 1)[-1].upper()
        if local == "STREAM" and any(key.rsplit(":", 1)[-1].lower() == "href" for key in attributes):
            raise BadInput(
                "reference_refused",
                f"a STREAM names its data by href: {attributes}",
                file=source.name,
                field="STREAM",
                fix="put the data inside the document (base64)",
            )

    def declaration(*_: object) -> None:
        raise BadInput(
            "entities_refused",
            "the XML declares a document type or entities",
            file=source.name,
            fix="write the VOTable without them",
        )

    parser.StartElementHandler = element
    parser.StartDoctypeDeclHandler = declaration
    parser.EntityDeclHandler = declaration
    try:
        parser.Parse(source.content, True)
    except expat.ExpatError as error:
        raise BadInput("damaged_file", f"VOTable: {error}", file=source.name, fix="fetch the file again") from error
