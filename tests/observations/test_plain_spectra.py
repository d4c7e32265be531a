"""Tables that are spectra: units, medium, frame and survey are stated, or a typed error; wavelengths increase."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from astropy.table import Table

from albireo.observations import plain_spectra, spectra
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.modalities import FLUX_DENSITY
from albireo.observations.observation import Observation, Spectrum
from albireo.observations.options import ReadOptions
from albireo.observations.source import Source
from albireo.observations.wavelengths import air_to_vacuum

GRID = np.linspace(4000.0, 9000.0, 501)
STATED = {"survey": "desi", "unit": FLUX_DENSITY, "medium": "vacuum", "frame": "barycentric"}


def table(**changes: Any) -> Table:
    columns = {"wavelength": GRID, "flux": np.linspace(1, 2, len(GRID)), "ivar": np.full(len(GRID), 4.0)} | changes
    return Table({name: values for name, values in columns.items() if values is not None})


def save(values: Table, kind: str = "csv", name: str = "star.txt") -> Source:
    if kind == "fits":
        stream = io.BytesIO()
        values.write(stream, format="fits")
        return Source(name, stream.getvalue())
    text = io.StringIO()
    values.write(text, format=f"ascii.{kind}")
    return Source(name, text.getvalue().encode())


def read(file: Source, **options: Any) -> list[Observation | AlbireoError]:
    assert [name for name, _, sniff, *_ in spectra.FORMATS if sniff(file)] == ["plain_spectrum"]
    return plain_spectra.read_plain(file, ReadOptions(**options), ())


def one(file: Source, **options: Any) -> Spectrum:
    (item,) = read(file, **{**STATED, **options})
    assert isinstance(item, Observation), item
    (payload,) = item.data.values()
    assert isinstance(payload, Spectrum)
    return payload


def code_of(file: Source, **options: Any) -> str:
    """The code of the file's error, or of its only object's."""
    try:
        (item,) = read(file, **{**STATED, **options})
    except BadInput as error:
        item = error
    assert isinstance(item, AlbireoError), item
    assert item.fix
    return item.code


@pytest.mark.parametrize("kind", ["csv", "ecsv", "fits"])
def test_a_stated_spectrum(kind: str) -> None:
    spectrum = one(save(table(), kind))
    assert np.allclose(spectrum.wavelength, GRID)
    assert np.allclose(spectrum.flux, np.linspace(1, 2, len(GRID)))
    assert (spectrum.ivar == 4).all()
    assert (spectrum.unit, spectrum.frame, spectrum.medium) == (FLUX_DENSITY, "barycentric", "vacuum")


@pytest.mark.parametrize(
    ("missing", "code"),
    [
        ("survey", "survey_missing"),
        ("unit", "unit_missing"),
        ("medium", "medium_missing"),
        ("frame", "frame_missing"),
    ],
)
def test_what_is_not_stated_is_not_guessed(missing: str, code: str) -> None:
    assert code_of(save(table()), **{missing: None}) == code


def test_the_table_may_state_everything() -> None:
    values = table()
    values["wavelength"].unit = "nm"
    values["wavelength"] /= 10
    values["flux"].unit = "erg / (s cm2 Angstrom)"
    values["flux"] *= 1e-17
    values["ivar"] *= 1e34
    values.meta |= {"survey": "SDSS", "AIRORVAC": "air", "SPECSYS": "HELIOCEN"}
    (item,) = read(save(values, "ecsv"))
    assert isinstance(item, Observation)
    spectrum = item.data["tok_spectrum_sdss"]
    assert isinstance(spectrum, Spectrum)
    assert item.id == "star"
    assert np.allclose(spectrum.wavelength, air_to_vacuum(GRID), rtol=0, atol=1e-6)
    assert np.allclose(spectrum.flux, np.linspace(1, 2, len(GRID)))
    assert np.allclose(spectrum.ivar, 4)
    assert (spectrum.unit, spectrum.medium, spectrum.frame) == (FLUX_DENSITY, "air", "heliocentric")
    with pytest.raises(BadInput) as caught:
        read(save(values, "ecsv"), medium="vacuum")
    assert caught.value.code == "statement_conflict"
    with pytest.raises(BadInput) as caught:
        read(save(values, "ecsv"), unit=FLUX_DENSITY)
    assert caught.value.code == "statement_conflict"


def test_air_moves_h_alpha_by_two_desi_pixels() -> None:
    flux = np.ones(len(GRID))
    flux[np.argmin(np.abs(GRID - 6560))] = 9
    line = [
        spectrum.wavelength[np.argmax(spectrum.flux)]
        for spectrum in (one(save(table(flux=flux)), medium=medium) for medium in ("air", "vacuum"))
    ]
    assert line[0] - line[1] == pytest.approx(1.81, abs=0.01)


@pytest.mark.parametrize(
    ("name", "value", "unit", "ivar"),
    [
        ("error", 0.5, "1e-15 erg / (s cm2 Angstrom)", 4e-4),
        ("variance", 0.25, "1e-32 erg2 / (s2 cm4 Angstrom2)", 0.04),
        ("ivar", 4.0, "1e36 s2 cm4 Angstrom2 / erg2", 400.0),
    ],
)
def test_noise_of_every_kind(name: str, value: float, unit: str, ivar: float) -> None:
    values = table(ivar=None)
    values[name] = np.full(501, value)
    assert np.allclose(one(save(values)).ivar, 4)
    values["flux"].unit = "1e-17 erg / (s cm2 Angstrom)"
    values[name].unit = unit  # a hundred times the flux's
    assert np.allclose(one(save(values, "ecsv")).ivar, ivar)
    values[name].unit = "m"
    assert code_of(save(values, "ecsv")) == "unit_unknown"


@pytest.mark.parametrize("unit", ["Angstrom", "AA", "nm", "um", "micron"])
def test_wavelength_units(unit: str) -> None:
    factor = {"nm": 10, "um": 1e4, "micron": 1e4}.get(unit, 1)
    values = table(wavelength=GRID / factor)
    values["wavelength"].unit = unit
    assert np.allclose(one(save(values, "ecsv")).wavelength, GRID)


@pytest.mark.parametrize(
    ("wavelength", "code"),
    [
        (GRID / 1e4, "wavelength_unit"),  # micron
        (GRID / 10, "wavelength_unit"),  # nm
        (GRID[::-1], "wavelength_not_monotonic"),
        (np.where(GRID > 8000, GRID - 500, GRID), "wavelength_not_monotonic"),  # cameras one after the other
        (np.where(GRID > 8000, -1, GRID), "wavelength_not_monotonic"),
        (np.where(GRID > 8000, np.nan, GRID), "wavelength_not_monotonic"),
        (np.full(501, 5000.0), "wavelength_not_monotonic"),
    ],
)
def test_grids_that_cannot_be_used(wavelength: Any, code: str) -> None:
    assert code_of(save(table(wavelength=wavelength))) == code


def test_padding_is_named() -> None:
    with pytest.raises(BadInput) as caught:
        raise read(save(table(wavelength=np.where(GRID > 8000, -1, GRID))), **STATED)[0]  # type: ignore[misc]
    assert "padding" in caught.value.message
    assert "100 wavelengths" in caught.value.message


def test_logarithmic_wavelengths() -> None:
    spectrum = one(save(table(wavelength=None, loglam=np.log10(GRID))))
    assert np.allclose(spectrum.wavelength, GRID)
    assert code_of(save(table(loglam=np.log10(GRID)))) == "alias_ambiguous"


def test_columns() -> None:
    assert code_of(save(table(ivar=None))) == "column_missing"
    assert code_of(save(table(error=np.ones(501)))) == "alias_ambiguous"
    assert np.allclose(one(save(table(ivar=None, s=np.full(501, 0.5))), columns={"error": "s"}).ivar, 4)
    assert code_of(save(table()), columns={"flux": "nothing"}) == "column_unknown"
    assert code_of(save(table()), survey="hsc") == "modality_unknown"
    assert code_of(save(table()), unit="nanomaggy") == "unit_unknown"
    mask = np.arange(501) < 3
    assert np.array_equal(one(save(table(mask=mask.astype(int)))).mask, mask)
    assert code_of(save(table(ivar=np.zeros(501)))) == "no_coverage"


def test_one_object_per_row() -> None:
    names = [39627866878511337, 39627866878511338, 39627866878511339]
    waves = [GRID, GRID, np.where(GRID > 8000, -1, GRID)]
    file = pa.table(
        {
            "object_id": pa.array(names),
            "lambda": pa.array([wave.tolist() for wave in waves]),
            "flux": pa.array([[float(i)] * 501 for i in range(3)]),
            "ivar": pa.array([[1.0] * 501] * 3),
            "ra": pa.array([10.0, 20.0, 30.0]),
            "dec": pa.array([-1.0, -2.0, -3.0]),
            "Z": pa.array([0.1, 0.2, 0.3]),
        }
    )
    stream = io.BytesIO()
    pyarrow.parquet.write_table(file, stream)
    first, second, third = read(Source("many.parquet", stream.getvalue()), **STATED)
    assert isinstance(first, Observation)
    assert isinstance(second, Observation)
    assert (first.id, second.id) == ("39627866878511337", "39627866878511338")
    assert (second.ra, second.dec, second.metadata["z"]) == (20.0, -2.0, 0.2)
    payload = second.data["tok_spectrum_desi"]
    assert isinstance(payload, Spectrum)
    assert (payload.flux == 1).all()
    assert isinstance(third, AlbireoError)
    assert third.code == "wavelength_not_monotonic"
    assert "row 2" in str(third)


def test_light_curves_and_catalogues_are_not_claimed(tmp_path: Path) -> None:
    for header in ("mjd,wave,flux,error", "time,band,flux,fluxerr", "id,ra,dec,flux_g", "wavelength,transmission"):
        assert not plain_spectra.sniff_plain(Source("x", f"{header}\n1,2,3,4\n".encode()))
