"""What was understood of a file, as plain data: what `validate` answers on every door. Needs no torch.

describe   one object: its modalities with bands, units, conventions, pixels, token cost, and whether it is usable
plain      any value as JSON can carry it
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import singledispatch
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from albireo.observations.catalogs import COLUMNS
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import (
    Catalog,
    Coefficients,
    Convention,
    Image,
    LightCurve,
    Observation,
    Payload,
    Scalar,
    SegmentationMap,
    Spectrum,
)
from albireo.service.subjects import Subject
from albireo.service.terms import USUAL, Terms
from albireo.tokenizers.checkpoint import Inputs

if TYPE_CHECKING:
    from albireo.observations.reading import FileReport
    from albireo.tokenizers.checkpoint import TokenSpec

MAX_EXACT_INTEGER = 2**53


def validation(
    reports: Sequence[FileReport], subjects: Sequence[Subject], inputs: Mapping[str, TokenSpec], terms: Terms = USUAL
) -> dict[str, Any]:
    """The whole answer: one row per file, one per object."""
    items = [describe(subject, inputs, terms) for subject in subjects]
    return {
        "files": [_file(report) for report in reports],
        "items": items,
        "usage": {"tokens": sum(item["detected"]["n_tokens"] for item in items if item["detected"])},
    }


def recognised(report: FileReport) -> bool:
    """True if the format of a file was told and the file is whole; what is in it may still be unusable."""
    return report.format is not None and (report.error is None or report.error.code != "damaged_file")


def _file(report: FileReport) -> dict[str, Any]:
    return {
        "file": report.file,
        "format": report.format,
        "recognised": recognised(report),
        "n_objects": len(report.items),
        "n_failed": sum(isinstance(item, AlbireoError) for item in report.items),
        "companion_of": report.companion_of,
        "error": report.error.as_dict() if report.error else None,
    }


def describe(subject: Subject, inputs: Mapping[str, TokenSpec], terms: Terms = USUAL) -> dict[str, Any]:
    """One object; `usable` is false with the reason in `errors` when nothing of it can be embedded under these terms.

    Flags that only tokenizing finds are not known here.
    """
    item: dict[str, Any] = {
        "id": subject.id,
        "file": subject.file,
        "status": "error",
        "usable": False,
        "ra": None,
        "dec": None,
        "detected": None,
        "metadata": {},
        "qa_flags": [],
        "warnings": [warning.as_dict() for warning in subject.warnings],
        "errors": [subject.error.as_dict()] if subject.error else [],
    }
    observation = subject.observation
    if observation is None:
        return item
    readable, warnings = select(observation, inputs)
    left_out = tuple(key for key in observation.data if key not in readable)
    blocking = unusable(observation, readable, inputs) or terms.objection(observation, observation.flags, left_out)
    formats = dict.fromkeys(origin.format for origin in observation.provenance.values())
    return item | {
        "status": "error" if blocking else ("degraded" if left_out else "ok"),
        "usable": blocking is None,
        "ra": observation.ra,
        "dec": observation.dec,
        "detected": {
            "format": " + ".join(formats) or None,
            "modalities": [_modality(key, observation, inputs) for key in observation.data],
            "extras": {name: plain(_scalar(extra)) for name, extra in observation.extras.items()},
            "n_tokens": sum(cost(payload, inputs[key]) for key, payload in readable.items()),
        },
        "metadata": plain(observation.metadata),
        "qa_flags": list(observation.flags),
        "warnings": item["warnings"] + [warning.as_dict() for warning in warnings],
        "errors": [blocking.as_dict()] if blocking else [],
    }


def select(
    observation: Observation, inputs: Mapping[str, TokenSpec]
) -> tuple[dict[str, Payload], tuple[AlbireoError, ...]]:
    """The payloads that a checkpoint with these `inputs` reads, and a warning for every measurement left out."""
    readable = {key: payload for key, payload in observation.data.items() if key in inputs}
    left_out: tuple[AlbireoError, ...] = tuple(_lacks(inputs, key) for key in observation.data if key not in inputs)
    if observation.extras:
        names = ", ".join(observation.extras)
        left_out += (BadInput("modality_unknown", f"no modality describes {names}: not used", field=names),)
    return readable, left_out


def cost(payload: Payload, spec: TokenSpec) -> int:
    """Tokens of one payload; only catalogs differ in length."""
    return len(COLUMNS) * payload.n_objects if isinstance(payload, Catalog) else spec.n_tokens


def unusable(
    observation: Observation, readable: Mapping[str, Payload], inputs: Mapping[str, TokenSpec] | None = None
) -> AlbireoError | None:
    """Why nothing of an object can be embedded by a checkpoint with these `inputs`, or None if something can."""
    for key, payload in readable.items():
        if inputs and cost(payload, inputs[key]) > inputs[key].n_tokens:
            return BadInput(
                "too_many_tokens",
                f"{cost(payload, inputs[key])} tokens, the model reads {inputs[key].n_tokens}",
                field=MODALITIES[key].name,
                fix=f"give the option nearest={inputs[key].n_tokens // len(COLUMNS)}",
            )
    if readable:
        return None
    if not observation.data:
        return BadInput(
            "nothing_to_embed",
            f"object {observation.id!r} has no measurement that a modality describes",
            field="inputs",
            fix="give an image, a spectrum, photometry or Gaia XP coefficients",
        )
    return _lacks(inputs or {}, *observation.data)


def _lacks(inputs: Mapping[str, TokenSpec], *keys: str) -> BadInput:
    return (inputs if isinstance(inputs, Inputs) else Inputs(inputs)).lack(*keys)


def _modality(key: str, observation: Observation, inputs: Mapping[str, TokenSpec]) -> dict[str, Any]:
    row, payload = MODALITIES[key], observation.data[key]
    origin = observation.provenance.get(key)
    return {
        "modality": row.name,
        "key": key,
        "kind": row.kind,
        "in_checkpoint": key in inputs,
        "n_tokens": cost(payload, inputs[key]) if key in inputs else None,
        **plain(details(payload)),
        "provenance": plain(asdict(origin)) if origin else None,
    }


@singledispatch
def details(payload: Payload) -> dict[str, Any]:
    """What can be said about the numbers of one payload, by its class."""
    raise AssertionError(type(payload))


@details.register
def _image(image: Image) -> dict[str, Any]:
    good = ~image.mask & np.isfinite(image.flux)
    return {
        "unit": image.unit,
        "zero_point": image.zero_point,
        "bands": list(image.bands),
        "shape": list(image.flux.shape),
        "pixel_scale": image.pixel_scale,
        "kept_fraction": image.kept_fraction,
        "conventions": [_convention(c) for c in image.conventions],
        "pixels_used": int(good.sum()),
        "pixels_masked": int((~good).sum()),
        "median_flux": _median(image.flux, good),
        "median_flux_by_band": {
            band: _median(plane, ok) for band, plane, ok in zip(image.bands, image.flux, good, strict=True)
        },
    }


@details.register
def _spectrum(spectrum: Spectrum) -> dict[str, Any]:
    good = ~spectrum.mask & (spectrum.ivar > 0) & np.isfinite(spectrum.flux)
    return {
        "unit": spectrum.unit,
        "frame": spectrum.frame,
        "medium": spectrum.medium,
        "wavelength_unit": "Angstrom, vacuum",
        "wavelength_range": [spectrum.wavelength[0], spectrum.wavelength[-1]],
        "pixels_used": int(good.sum()),
        "pixels_masked": int((~good).sum()),
        "median_flux": _median(spectrum.flux, good),
    }


@details.register
def _coefficients(coefficients: Coefficients) -> dict[str, Any]:
    return {
        "unit": coefficients.unit,
        "n_coefficients": len(coefficients.values),
        "first": coefficients.values[0],
        "errors_given": coefficients.errors is not None,
    }


@details.register
def _scalar(scalar: Scalar) -> dict[str, Any]:
    return {
        "unit": scalar.unit,
        "value": scalar.value,
        "error": scalar.error,
        "convention": _convention(scalar.convention) if scalar.convention else None,
    }


@details.register
def _lightcurve(curve: LightCurve) -> dict[str, Any]:
    return {
        "unit": "flux at its zero point",
        "bands": list(dict.fromkeys(str(band) for band in curve.band)),
        "zero_points": sorted({float(zp) for zp in curve.zero_point if np.isfinite(zp)}),
        "systems": list(dict.fromkeys(str(system) for system in curve.system)),
        "convention": {"kind": curve.kind, "extinction_corrected": curve.extinction_corrected},
        "epochs": len(curve.time),
        "detections": int(curve.detected.sum()),
        "time_range": [curve.time[0], curve.time[-1]],
        "time_unit": "MJD",
        "median_flux": _median(curve.flux, curve.detected & np.isfinite(curve.flux)),
    }


@details.register
def _segmentation_map(given: SegmentationMap) -> dict[str, Any]:
    values, counts = np.unique(given.field, return_counts=True)
    return {
        "unit": "",
        "shape": list(given.field.shape),
        "pixel_scale": given.pixel_scale,
        "kept_fraction": given.kept_fraction,
        "covered_fraction": float((given.field > 0).mean()),
        "most_common_values": [float(value) for value in values[np.argsort(-counts, kind="stable")][:6]],
    }


@details.register
def _catalog(catalog: Catalog) -> dict[str, Any]:
    return {
        "unit": "X, Y in pixels of the cutout, SHAPE_R in arcsec",
        "n_objects": catalog.n_objects,
        "columns": list(COLUMNS),
        "nearest": [catalog.x[0], catalog.y[0], catalog.e1[0], catalog.e2[0], catalog.r[0]],
    }


def _convention(convention: Convention) -> dict[str, Any]:
    return {key: value for key, value in asdict(convention).items() if value is not None}


def _median(values: NDArray[Any], good: NDArray[np.bool_]) -> float | None:
    return float(np.median(values[good].astype(np.float64))) if good.any() else None


def plain(value: Any) -> Any:
    """A value as JSON can carry it: numpy becomes Python, NaN and infinity become None, bytes become text.

    Whole numbers beyond 2^53 become text: most JSON readers would round them.
    """
    if isinstance(value, np.ma.core.MaskedConstant):
        return None
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int) and abs(value) > MAX_EXACT_INTEGER:
        return str(value)
    return value if value is None or isinstance(value, bool | int | str) else str(value)
