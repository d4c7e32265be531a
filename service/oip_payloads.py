"""Raw tensors as payloads, kind by kind: what a tokenizer's model of the Open Inference Protocol takes.

A tensor holds numbers and nothing else, so the conventions are the modality's own and stand in the model's metadata. A
parameter may state them again; a statement that differs is an error. Nothing is cropped, resampled or converted here.

Raw   of one modality: its tensors, its conventions, and payloads of a request's rows
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from albireo.observations.catalogs import COLUMNS, catalog_of
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.image_conventions import PIXEL_SCALE_TOLERANCE, ZERO_POINTS
from albireo.observations.modalities import IMAGE_SIZE, Modality
from albireo.observations.observation import Coefficients, Image, Payload, Scalar, SegmentationMap, Spectrum
from albireo.service.oip_tensors import Array, TensorSpec, Value

Read = tuple[Payload, tuple[str, ...]] | AlbireoError
"""The payload of one row and the QA flags of reading it, or why there is none."""

FRAMES = {"sdss": "heliocentric", "lamost": "heliocentric"}
"""Survey -> frame of its wavelengths; of the others barycentric."""


class Raw(ABC):
    """The raw form of one modality."""

    def __init__(self, row: Modality) -> None:
        self.row = row

    @property
    @abstractmethod
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def conventions(self) -> dict[str, str]:
        """What the numbers are; each of them is a parameter that a request may state."""
        return {"unit": self.row.unit}

    @abstractmethod
    def payload(self, arrays: Mapping[str, Array], parameters: Mapping[str, Value]) -> tuple[Payload, tuple[str, ...]]:
        """Of one row: its arrays by name, without the axis of rows. AlbireoError if there is none."""

    def read(self, arrays: Mapping[str, Array], parameters: Mapping[str, Value]) -> list[Read]:
        """The payload of each row, or why it has none. BadInput if a parameter is not the modality's convention."""
        self.check(parameters)
        out: list[Read] = []
        for i in range(len(next(iter(arrays.values())))):
            try:
                out.append(self.payload({name: values[i] for name, values in arrays.items()}, parameters))
            except AlbireoError as error:
                out.append(error)
        return out

    def check(self, parameters: Mapping[str, Value]) -> None:
        """BadInput if a parameter states another convention than the modality's."""
        for name, convention in self.conventions.items():
            if name in parameters and parameters[name] != convention:
                code = "unit_unknown" if name == "unit" else "option_invalid"
                told = f"{name} {parameters[name]!r}, {self.row.name} is read in {convention!r}"
                raise BadInput(code, told, field=name, fix="convert the numbers first")


class RawImage(Raw):
    """flux FP32 [N, C, 96, 96], row 0 = bottom; mask BOOL of the same shape, true = bad pixel, which may be absent."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        shape = (-1, -1, IMAGE_SIZE, IMAGE_SIZE)
        return TensorSpec("flux", "FP32", shape), TensorSpec("mask", "BOOL", shape, optional=True)

    @property
    def conventions(self) -> dict[str, str]:
        bands = ",".join(self.row.bands)
        return {"unit": self.row.unit, "pixel_scale": str(self.row.pixel_scale), "bands": bands}

    def check(self, parameters: Mapping[str, Value]) -> None:
        _check_scale(self.row, parameters)
        super().check({"unit": parameters.get("unit", self.row.unit)})
        unknown = set(self._bands(parameters)) - set(self.row.bands)
        if unknown:
            fix = f"{self.row.name} has {', '.join(self.row.bands)}"
            raise BadInput("band_unknown", f"no band {min(unknown)!r}", field="bands", fix=fix)

    def payload(self, arrays: Mapping[str, Array], parameters: Mapping[str, Value]) -> tuple[Image, tuple[str, ...]]:
        flux, bands = arrays["flux"], self._bands(parameters)
        mask = arrays["mask"] if "mask" in arrays else np.zeros(flux.shape, np.bool_)
        if len(bands) != len(flux) or len(set(bands)) != len(bands):
            raise BadInput(
                "band_count" if "bands" in parameters else "band_missing",
                f"{len(flux)} planes, bands {', '.join(bands)}",
                field="flux",
                fix="name the band of each plane: the parameter bands, with commas between them",
            )
        if mask.shape != flux.shape:
            raise BadInput("shape_mismatch", f"mask {list(mask.shape)}, flux {list(flux.shape)}", field="mask")
        zero_point = ZERO_POINTS[self.row.survey]
        return Image(flux, bands, self.row.pixel_scale or 1.0, self.row.unit, zero_point, mask, ()), ()

    def _bands(self, parameters: Mapping[str, Value]) -> tuple[str, ...]:
        stated = parameters.get("bands")
        return self.row.bands if stated is None else tuple(name.strip() for name in str(stated).split(","))


class RawSpectrum(Raw):
    """flux, ivar FP32, wavelength FP64 or FP32 in Angstrom, and mask BOOL, true = bad pixel, which may be absent; all
    [N, L]."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        shape = (-1, -1)
        return (
            TensorSpec("flux", "FP32", shape),
            TensorSpec("ivar", "FP32", shape),
            TensorSpec("wavelength", "FP64", shape, also=("FP32",)),
            TensorSpec("mask", "BOOL", shape, optional=True),
        )

    @property
    def conventions(self) -> dict[str, str]:
        frame = FRAMES.get(self.row.survey, "barycentric")
        return {"unit": self.row.unit, "wavelength_unit": "Angstrom", "medium": "vacuum", "frame": frame}

    def payload(self, arrays: Mapping[str, Array], parameters: Mapping[str, Value]) -> tuple[Spectrum, tuple[str, ...]]:
        flux, ivar, wavelength = arrays["flux"], arrays["ivar"], arrays["wavelength"]
        mask = arrays["mask"] if "mask" in arrays else np.zeros(flux.shape, np.bool_)
        lengths = {len(values) for values in (flux, ivar, wavelength, mask)}
        if len(lengths) > 1:
            raise BadInput("shape_mismatch", f"{sorted(lengths)} pixels in arrays that belong together", field="flux")
        return Spectrum(wavelength, flux, ivar, mask, self.row.unit, self.conventions["frame"]), ()


class RawCoefficients(Raw):
    """values FP32 [N, K]."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("values", "FP32", (-1, self.row.shape[0] or -1)),)

    def payload(
        self, arrays: Mapping[str, Array], parameters: Mapping[str, Value]
    ) -> tuple[Coefficients, tuple[str, ...]]:
        return Coefficients(arrays["values"], self.row.unit), ()


class RawScalar(Raw):
    """value FP64 or FP32 [N, 1]."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("value", "FP64", (-1, 1), also=("FP32",)),)

    def payload(self, arrays: Mapping[str, Array], parameters: Mapping[str, Value]) -> tuple[Scalar, tuple[str, ...]]:
        return Scalar(float(arrays["value"][0]), self.row.unit), ()


class RawSegmentation(Raw):
    """field FP32 [N, 96, 96], 0 to 1, row 0 = bottom."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("field", "FP32", (-1, IMAGE_SIZE, IMAGE_SIZE)),)

    @property
    def conventions(self) -> dict[str, str]:
        return {"pixel_scale": str(self.row.pixel_scale)}

    def check(self, parameters: Mapping[str, Value]) -> None:
        _check_scale(self.row, parameters)

    def payload(
        self, arrays: Mapping[str, Array], parameters: Mapping[str, Value]
    ) -> tuple[SegmentationMap, tuple[str, ...]]:
        return SegmentationMap(arrays["field"], self.row.pixel_scale or 1.0), ()


class RawCatalog(Raw):
    """objects FP32 or FP64 [N, n, 5]: the columns of `catalogs.COLUMNS`, X and Y in pixels, SHAPE_R in arcsec."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("objects", "FP64", (-1, -1, len(COLUMNS)), also=("FP32",)),)

    @property
    def conventions(self) -> dict[str, str]:
        return {"columns": ",".join(COLUMNS)}

    def payload(self, arrays: Mapping[str, Array], parameters: Mapping[str, Value]) -> tuple[Payload, tuple[str, ...]]:
        return catalog_of(list(arrays["objects"].T))


KINDS: Mapping[str, type[Raw]] = {
    "image": RawImage,
    "spectrum": RawSpectrum,
    "coefficients": RawCoefficients,
    "scalar": RawScalar,
    "segmentation": RawSegmentation,
    "catalog": RawCatalog,
}
"""Kind of a modality -> its raw form. A light curve has none: no tokenizer reads it."""


def _check_scale(row: Modality, parameters: Mapping[str, Value]) -> None:
    """BadInput if a pixel scale is stated (arcsec, as a number or as text) that is not the modality's."""
    stated = parameters.get("pixel_scale")
    if stated is None or row.pixel_scale is None:
        return
    try:
        off = abs(float(stated) / row.pixel_scale - 1)
    except ValueError as error:
        raise BadInput("option_invalid", f"pixel_scale {stated!r}", field="pixel_scale", fix="arcsec") from error
    if not off <= PIXEL_SCALE_TOLERANCE:
        told = f"{stated} arcsec per pixel, {row.name} has {row.pixel_scale}"
        raise BadInput("pixel_scale", told, field="pixel_scale", fix="resample first, or send the file to /v1/embed")
