"""What tokens stand for, as the HTTP door answers it: JSON, NumPy archives, FITS."""

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
    about = {known[key].name: _modality_data(engine, known[key]) for key in keys}
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
    def numbers(values: NDArray[np.float32]) -> Any:
        return base64.b64encode(values.astype("<f4").tobytes()).decode() if encoding == "base64" else values.tolist()

    return {
        "id": one.id,
        "status": _status(one),
        "values": {
            MODALITIES[key].name: {"shape": values.shape, "values": numbers(values)}
            for key, values in one.values.items()
        },
        "error": trouble_data(one.error) if one.error else None,
    }


def _modality_data(engine: Engine, quantiser: Quantiser) -> dict[str, Any]:
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
    primary = fits.PrimaryHDU()
    for name, text in formats.about(common).items():
        primary.header[CARDS.get(name, name.upper())] = ascii_text(text)
    texts: dict[str, Sequence[str | None]] = {
        "id": [one.id for one in decoded],
        "status": [_status(one) for one in decoded],
    }
    texts |= {
        f"error_{part}": [getattr(one.error, part, None) for one in decoded]
        for part in ("code", "message", "field", "fix")
    }
    hdus = [
        primary,
        fits.BinTableHDU.from_columns([_texts(name, cells) for name, cells in texts.items()], name="OBJECTS"),
    ]
    for key, (values, objects, lengths) in stacks.items():
        row = MODALITIES[key]
        repeated = objects if lengths is None else np.repeat(objects, lengths)
        size = int(np.prod(values.shape[1:]))
        numbers = fits.Column(
            "values", f"{size}E", unit=fits_unit(row.unit), array=values,
            dim=None if values.ndim < 3 else "(" + ",".join(str(n) for n in values.shape[:0:-1]) + ")",
        )  # fmt: skip
        table = fits.BinTableHDU.from_columns(
            [_texts("id", [decoded[i].id for i in repeated]), numbers], name=row.name.upper()
        )
        said = about[row.name]
        for card, value in (
            ("BANDS", ",".join(said["bands"])),
            ("PIXSCALE", row.pixel_scale),
            ("CODEC", said["codec"]),
        ):
            if value:
                table.header[card] = value
        hdus.append(table)
        if said["wavelength"]:
            column = fits.Column("wavelength", "E", unit="Angstrom", array=np.array(said["wavelength"], np.float32))
            hdus.append(fits.BinTableHDU.from_columns([column], name=f"{row.name.upper()}.WAVELENGTH"))
    out = io.BytesIO()
    fits.HDUList(hdus).writeto(out)
    return out.getvalue()


def _texts(name: str, cells: Sequence[str | None]) -> Any:
    values = np.array([ascii_text(cell or "") for cell in cells], "S")
    return fits.Column(name, f"{max(values.itemsize, 1)}A", array=values)
