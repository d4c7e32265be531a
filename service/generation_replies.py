"""Draws as the HTTP door answers them: JSON, NumPy archives, FITS, Arrow, Parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from astropy.io import fits
from fastapi import Request
from fastapi.responses import Response

from albireo.models.engine import Engine
from albireo.models.generation import Sampling
from albireo.service import reply_formats as formats
from albireo.service.decoded_replies import (
    fits_content,
    modality_data,
    numbers_data,
    numbers_hdus,
    objects_hdus,
    text_column,
)
from albireo.service.draws import Drawn, Wanted
from albireo.service.draws_table import drawn_what, draws_schema, draws_table, known_data
from albireo.service.generation_schemas import GenerateOptions
from albireo.service.predictions import Prediction
from albireo.service.replies import refused, trouble_data
from albireo.service.reply_formats import Form
from albireo.service.table_bytes import archive_bytes
from albireo.service.token_replies import first_of, object_arrays
from albireo.service.token_verbs import Quantiser, quantisers


def target_data(engine: Engine, quantiser: Quantiser, drawn: Drawn) -> dict[str, Any]:
    """What the numbers of draws are, as `generation_schemas.TargetReply`."""
    about = modality_data(engine, quantiser)
    return {**about, "axes": ["draw", *about["axes"]], "modality": quantiser.name, "shape": drawn.values.shape[1:]}


def generate_answer(
    form: Form, engine: Engine, made: Sequence[Prediction[Drawn]], options: GenerateOptions, common: Mapping[str, Any],
    request: Request,
) -> Response:  # fmt: skip
    """The draws in one of the forms `formats.DRAWS`; common is the envelope."""
    errors = [error for one in made if (error := one.outcome.error) is not None]
    first = next((one.answer for one in made if one.answer is not None), None)
    if first is None:
        return refused(first_of(errors), [_item_data(one, options) for one in made], request)
    wanted, sampling = options.wanted, options.sampling
    quantiser = quantisers(engine)[wanted.target]
    target = target_data(engine, quantiser, first)
    if form.media_type == formats.JSON:
        said = {"target": target, "known": known_data(wanted), "sampling": asdict(sampling)}
        content = {**common, **said, "items": [_item_data(one, options) for one in made]}
        return formats.respond(formats.json_bytes(content), formats.JSON, len(errors))
    if form.media_type == formats.FITS:
        return formats.respond(_fits(made, target, {**common, **_asked(wanted, sampling)}), formats.FITS, len(errors))
    if form.media_type == formats.NPZ:
        arrays = _arrays(made, target, quantiser, {**common, **_asked(wanted, sampling)})
        return formats.respond(archive_bytes(arrays), formats.NPZ, len(errors))
    about = formats.about({**common, "sampling": asdict(sampling)}) | drawn_what(engine, wanted, target["shape"])
    return formats.as_table(draws_table(made, draws_schema(wanted.target, about, outcome=True)), form, len(errors))


def _asked(wanted: Wanted, sampling: Sampling) -> dict[str, Any]:
    """What was asked for, as entries of the envelope."""
    known = {name: value for name, value in known_data(wanted).items() if value is not None}
    return {**known, "sampling": asdict(sampling)}


def _item_data(one: Prediction[Drawn], options: GenerateOptions) -> dict[str, Any]:
    outcome, drawn = one.outcome, one.answer
    return {
        "id": outcome.subject.id,
        "file": outcome.subject.file,
        "ra": outcome.subject.ra,
        "dec": outcome.subject.dec,
        "status": outcome.status,
        "tokens": None if drawn is None else drawn.codes.tolist(),
        "values": None if drawn is None else numbers_data(drawn.values, options.encoding),
        "modalities_used": one.modalities,
        "n_tokens": one.n_tokens,
        "qa_flags": outcome.flags,
        "warnings": [trouble_data(warning) for warning in outcome.warnings],
        "error": trouble_data(outcome.error) if outcome.error else None,
    }


def _arrays(
    made: Sequence[Prediction[Drawn]], target: Mapping[str, Any], quantiser: Quantiser, common: Mapping[str, Any]
) -> dict[str, Any]:
    """tokens (K, draws, n) and values (K, draws, ...) of the K objects that have any, whose numbers are in `objects`;
    ids, status and errors of all; the envelope as arrays without axes."""
    at = [i for i, one in enumerate(made) if one.answer is not None]
    drawn = [one.answer for one in made if one.answer is not None]
    arrays: dict[str, Any] = {name: np.array(text) for name, text in formats.about(common).items()}
    arrays |= {
        "target": np.array(quantiser.name),
        "tokens": np.stack([one.codes for one in drawn]).astype(quantiser.dtype),
        "values": np.stack([one.values for one in drawn]),
        "objects": np.array(at),
        "unit": np.array(target["unit"]),
        "codec": np.array(quantiser.codec),
    }
    arrays |= {"bands": np.array(target["bands"])} if target["bands"] else {}
    arrays |= {"wavelength": np.array(target["wavelength"], np.float32)} if target["wavelength"] else {}
    errors = [trouble_data(one.outcome.error) if one.outcome.error else None for one in made]
    whose = zip(made, errors, strict=True)
    return arrays | object_arrays([(one.outcome.subject.id, one.outcome.status, error) for one, error in whose])


def _fits(made: Sequence[Prediction[Drawn]], target: Mapping[str, Any], common: Mapping[str, Any]) -> bytes:
    """OBJECTS, a table of all objects and their errors; a table of the draws, one row each, named as the modality; for
    a spectrum its wavelengths in NAME.WAVELENGTH."""
    hdus = objects_hdus([(one.outcome.subject.id, one.outcome.status, one.outcome.error) for one in made], common)
    good = [(one.outcome.subject.id, one.answer) for one in made if one.answer is not None]
    codes = np.concatenate([drawn.codes for _, drawn in good]).astype(np.int32)
    columns = [
        text_column("id", [name for name, drawn in good for _ in drawn.codes]),
        fits.Column("draw", "J", array=np.concatenate([np.arange(len(drawn.codes)) for _, drawn in good])),
        fits.Column("tokens", f"{codes.shape[1]}J", array=codes),
    ]
    values = np.concatenate([drawn.values for _, drawn in good])
    return fits_content(hdus + numbers_hdus(target, columns, values))
