"""What tokens stand for, as the HTTP door answers it: JSON, NumPy archives, FITS.

detokenize_answer             the answer in one of these forms
numbers_data, modality_data   numbers and what they are, as JSON has them
objects_hdus, numbers_hdus    the parts of a FITS file of such numbers
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from astropy.io import fits
from fastapi import Request
from fastapi.responses import Response
from numpy.typing import NDArray

from albireo.models.engine import Engine
from albireo.observations.catalogs import COLUMNS
from albireo.observations.errors import AlbireoError
from albireo.observations.modalities import MODALITIES
from albireo.service import reply_formats as formats
from albireo.service.replies import refused, trouble_data
from albireo.service.reply_formats import Form
from albireo.service.table_bytes import archive_bytes, ascii_text, fits_unit
from albireo.service.token_replies import LENGTHS, OBJECTS, first_of, object_arrays
from albireo.service.token_verbs import Decoded, Quantiser

CARDS = {"checkpoint": "CHECKPT", "request_id": "REQUEST", "timings_ms": "TIMINGS"}
"""Entry of the envelope -> its FITS keyword, where that is not the entry in capitals."""

AXES = {
    "image": ["band", "y", "x"],
    "segmentation": ["y", "x"],
    "spectrum": ["wavelength"],
    "coefficients": ["coefficient"],
    "catalog": ["entry", "column"],
    "scalar": ["number"],
}
"""Kind of modality -> what runs along the axes of the numbers of one object."""


def detokenize_answer(
    form: Form, engine: Engine, decoded: Sequence[Decoded], known: Mapping[str, Quantiser], common: Mapping[str, Any],
    encoding: Literal["float", "base64"], request: Request,
) -> Response:  # fmt: skip
    """The numbers in one of the forms `formats.NUMBERS`; common is the envelope."""
    errors = [one.error for one in decoded if one.error is not None]
    if len(errors) == len(decoded):
        return refused(first_of(errors), [_decoded_data(one, encoding) for one in decoded], request)
    keys = [key for key in known if any(key in one.values for one in decoded)]
    about = {known[key].name: modality_data(engine, known[key]) for key in keys}
    if form.media_type == formats.JSON:
        items = [_decoded_data(one, encoding) for one in decoded]
        content = {**common, "modalities": about, "items": items}
        return formats.respond(formats.json_bytes(content), formats.JSON, len(errors))
    stacks = {key: _stack(decoded, key) for key in keys}
    if form.media_type == formats.FITS:
        return formats.respond(_fits(decoded, stacks, about, common), formats.FITS, len(errors))
    stored: dict[str, Any] = {name: np.array(text) for name, text in formats.about(common).items()}
    for key, (values, objects, lengths) in stacks.items():
        row = MODALITIES[key]
        stored |= {f"values.{row.name}": values, OBJECTS + row.name: objects, f"unit.{row.name}": np.array(row.unit)}
        stored |= {} if lengths is None else {LENGTHS + row.name: lengths}
        stored |= {f"bands.{row.name}": np.array(row.bands)} if row.bands else {}
        wavelength = engine.wavelength(key)
        stored |= {f"wavelength.{row.name}": wavelength} if len(wavelength) else {}
    stored |= object_arrays([(one.id, _status(one), trouble_data(one.error) if one.error else None) for one in decoded])
    return formats.respond(archive_bytes(stored), formats.NPZ, len(errors))


def _status(one: Decoded) -> str:
    return "error" if one.error else "ok"


def _decoded_data(one: Decoded, encoding: Literal["float", "base64"]) -> dict[str, Any]:
    return {
        "id": one.id,
        "status": _status(one),
        "values": {MODALITIES[key].name: numbers_data(values, encoding) for key, values in one.values.items()},
        "error": trouble_data(one.error) if one.error else None,
    }


def numbers_data(values: NDArray[np.float32], encoding: Literal["float", "base64"]) -> dict[str, Any]:
    """Numbers as `token_schemas.ValuesReply`."""
    numbers = base64.b64encode(values.astype("<f4").tobytes()).decode() if encoding == "base64" else values.tolist()
    return {"shape": values.shape, "values": numbers}


def modality_data(engine: Engine, quantiser: Quantiser) -> dict[str, Any]:
    """What the numbers of a modality are, as `token_schemas.DecodedModality`."""
    row = MODALITIES[quantiser.key]
    # Decimals of single precision: 3500.8, not 3500.800048828125.
    wavelength = [float(str(one)) for one in engine.wavelength(row.key)]
    return {
        "key": row.key,
        "unit": row.unit,
        "axes": AXES[row.kind],
        "bands": row.bands or (COLUMNS if row.kind == "catalog" else ()),
        "wavelength": wavelength or None,
        "pixel_scale": row.pixel_scale,
        "codec": quantiser.codec,
    }


Stack = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64] | None]


def _stack(decoded: Sequence[Decoded], key: str) -> Stack:
    """Numbers (K, ...) of the objects that have a modality, and which objects; of catalogs of different lengths one
    after another, with the entries of each."""
    at = [i for i, one in enumerate(decoded) if key in one.values]
    rows = [decoded[i].values[key] for i in at]
    if len({row.shape for row in rows}) == 1:
        return np.stack(rows), np.array(at), None
    return np.concatenate(rows), np.array(at), np.array([len(row) for row in rows])


def _fits(
    decoded: Sequence[Decoded], stacks: Mapping[str, Stack], about: Mapping[str, Mapping[str, Any]],
    common: Mapping[str, Any],
) -> bytes:  # fmt: skip
    """OBJECTS, a table of all objects and their errors; for each modality a table of the ids and numbers of those that
    have it, named as the modality; for a spectrum its wavelengths in NAME.WAVELENGTH."""
    hdus = objects_hdus([(one.id, _status(one), one.error) for one in decoded], common)
    for key, (values, objects, lengths) in stacks.items():
        repeated = objects if lengths is None else np.repeat(objects, lengths)
        hdus += numbers_hdus(
            about[MODALITIES[key].name], [text_column("id", [decoded[i].id for i in repeated])], values
        )
    return fits_content(hdus)


def objects_hdus(rows: Sequence[tuple[str | None, str, AlbireoError | None]], common: Mapping[str, Any]) -> list[Any]:
    """The first HDUs: the envelope in a header, and OBJECTS, the id, status and error of every object."""
    primary = fits.PrimaryHDU()
    for name, text in formats.about(common).items():
        primary.header[CARDS.get(name, name.upper())] = ascii_text(text)
    columns = [
        text_column("id", [name for name, _, _ in rows]),
        text_column("status", [status for _, status, _ in rows]),
    ]
    columns += [
        text_column(f"error_{part}", [getattr(error, part, None) for _, _, error in rows])
        for part in ("code", "message", "field", "fix")
    ]
    return [primary, fits.BinTableHDU.from_columns(columns, name="OBJECTS")]


def numbers_hdus(said: Mapping[str, Any], columns: Sequence[Any], values: NDArray[np.float32]) -> list[Any]:
    """A table of columns and, behind them, numbers (R, ...) of the modality that `modality_data` says; for a spectrum
    a table of its wavelengths."""
    row = MODALITIES[said["key"]]
    size = int(np.prod(values.shape[1:]))
    numbers = fits.Column(
        "values", f"{size}E", unit=fits_unit(row.unit), array=values,
        dim=None if values.ndim < 3 else "(" + ",".join(str(n) for n in values.shape[:0:-1]) + ")",
    )  # fmt: skip
    table = fits.BinTableHDU.from_columns([*columns, numbers], name=row.name.upper())
    for card, value in (("BANDS", ",".join(said["bands"])), ("PIXSCALE", row.pixel_scale), ("CODEC", said["codec"])):
        if value:
            table.header[card] = value
    if not said["wavelength"]:
        return [table]
    column = fits.Column("wavelength", "E", unit="Angstrom", array=np.array(said["wavelength"], np.float32))
    return [table, fits.BinTableHDU.from_columns([column], name=f"{row.name.upper()}.WAVELENGTH")]


def text_column(name: str, cells: Sequence[str | None]) -> Any:
    """A column of a FITS table; what is not there is empty."""
    values = np.array([ascii_text(cell or "") for cell in cells], "S")
    return fits.Column(name, f"{max(values.itemsize, 1)}A", array=values)


def fits_content(hdus: Sequence[Any]) -> bytes:
    """A FITS file."""
    out = io.BytesIO()
    fits.HDUList(list(hdus)).writeto(out)
    return out.getvalue()
