"""SDSS, BOSS and LAMOST spectra: right values or typed errors, on files made here and on real ones."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from specutils import Spectrum as SpecutilsSpectrum

from albireo.observations import lamost, sdss, spectra
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.modalities import FLUX_DENSITY
from albireo.observations.observation import Observation, Spectrum
from albireo.observations.options import ReadOptions
from albireo.observations.source import Source
from albireo.observations.wavelengths import air_to_vacuum

BUNIT = "1E-17 erg/cm^2/s/Ang"
LENGTH = 400


def source(*hdus: Any, name: str = "spec.fits") -> Source:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fits.HDUList(list(hdus)).writeto(stream)
    return Source(name, stream.getvalue())


def formats_of(file: Source) -> list[str]:
    return [name for name, _, sniff, *_ in spectra.FORMATS if sniff(file)]


def read(file: Source, **options: Any) -> list[Observation | AlbireoError]:
    (reader,) = [row[3] for row in spectra.FORMATS if row[2](file)][:1]
    items: list[Observation | AlbireoError] = reader(file, ReadOptions(**options), ())
    return items


def one(file: Source, key: str = sdss.KEY, **options: Any) -> tuple[Observation, Spectrum]:
    (item,) = read(file, **options)
    assert isinstance(item, Observation), item
    payload = item.data[key]
    assert isinstance(payload, Spectrum)
    return item, payload


def code_of(file: Source, **options: Any) -> str:
    with pytest.raises(BadInput) as caught:
        read(file, **options)
    assert caught.value.fix
    return caught.value.code


# SDSS spec-*.fits


def spec(
    *,
    case: Callable[[str], str] = str.lower,
    header: dict[str, Any] | None = None,
    row: dict[str, Any] | None = None,
    drop: Sequence[str] = (),
    **columns: Any,
) -> Source:
    primary = fits.PrimaryHDU()
    cards = {"TELESCOP": "SDSS 2.5-M", "PLATEID": 266, "MJD": 51630, "FIBERID": 48, "BUNIT": BUNIT, "VACUUM": True}
    for card, value in (cards | (header or {})).items():
        if value is not None:
            primary.header[card] = value
    rng = np.random.default_rng(1)
    arrays: dict[str, Any] = {
        "flux": rng.normal(10, 1, LENGTH),
        "loglam": 3.58 + 1e-4 * np.arange(LENGTH),
        "ivar": np.full(LENGTH, 2.0),
        "and_mask": np.zeros(LENGTH),
        "or_mask": np.ones(LENGTH),
    } | columns
    formats = {"and_mask": "J", "or_mask": "J"}
    coadd = fits.BinTableHDU.from_columns(
        [
            fits.Column(case(name), formats.get(name, "E"), array=values)
            for name, values in arrays.items()
            if name not in drop
        ],
        name="COADD",
    )
    hdus: list[Any] = [primary, coadd]
    if row is not None:
        kinds = {str: "22A", float: "D", int: "K"}
        hdus.append(
            fits.BinTableHDU.from_columns(
                [fits.Column(name, kinds[type(value)], array=[value]) for name, value in row.items()], name="SPECOBJ"
            )
        )
    return source(*hdus)


@pytest.mark.parametrize("case", [str.lower, str.upper])
def test_sdss_layouts(case: Callable[[str], str]) -> None:
    row = {"PLATE": 266, "MJD": 51630, "FIBERID": 48, "PLUG_RA": 146.1, "PLUG_DEC": 0.6, "CLASS": "GALAXY"}
    row |= {"SUBCLASS": "STARFORMING", "Z": 0.25, "Z_ERR": 0.001, "ZWARNING": 0, "SPECOBJID": "299622993229801472"}
    file = spec(case=case, row=row)
    assert formats_of(file) == ["sdss_spec", "plain_spectrum"]  # the survey's own format is tried first
    observation, spectrum = one(file)
    assert observation.id == "sdss-0266-51630-0048"
    assert (observation.ra, observation.dec) == (146.1, 0.6)
    assert observation.metadata["redshift"] == 0.25
    assert observation.metadata["class"] == "GALAXY"
    assert observation.metadata["specobjid"] == "299622993229801472"
    assert "tok_z" not in observation.data
    assert observation.flags == ()
    assert (spectrum.unit, spectrum.frame, spectrum.medium) == (FLUX_DENSITY, "heliocentric", "vacuum")
    # loglam is the logarithm to base 10 of a vacuum wavelength, stored as float32.
    assert np.allclose(spectrum.wavelength, 10 ** (3.58 + 1e-4 * np.arange(LENGTH)), rtol=1e-6)
    assert not np.allclose(spectrum.wavelength, np.exp(3.58 + 1e-4 * np.arange(LENGTH)), rtol=1e-3)
    assert np.array_equal(spectrum.flux, np.random.default_rng(1).normal(10, 1, LENGTH).astype(np.float32))
    assert (spectrum.ivar == 2).all()
    assert not spectrum.mask.any()
    for array, kind in ((spectrum.wavelength, "f8"), (spectrum.flux, "f4"), (spectrum.ivar, "f4")):
        assert array.dtype == np.dtype(kind)
        assert array.dtype.isnative


def test_sdss_bad_pixels() -> None:
    flux, ivar, mask = np.ones(LENGTH), np.full(LENGTH, 2.0), np.zeros(LENGTH)
    mask[3], ivar[4], ivar[5], ivar[6], ivar[7], flux[8] = 1 << 23, 0, 1e-6, -1, np.nan, np.nan
    ivar[9] = 2e-6
    _, spectrum = one(spec(flux=flux, ivar=ivar, and_mask=mask))
    assert np.flatnonzero(spectrum.mask).tolist() == [3, 4, 5, 6, 7, 8]
    assert (spectrum.ivar[spectrum.mask] == 0).all()
    assert spectrum.ivar[9] == pytest.approx(2e-6)
    assert np.isfinite(spectrum.flux).all()
    assert np.isfinite(spectrum.ivar).all()
    item, _ = one(spec(flux=flux, ivar=ivar, and_mask=mask))
    assert set(item.flags) == {"nan_pixels", "masked_pixels"}


def test_sdss_flags() -> None:
    half = np.where(np.arange(LENGTH) < 0.6 * LENGTH, 0.0, 1.0)
    assert "low_coverage" in one(spec(ivar=half))[0].flags
    item, _ = one(spec(row={"ZWARNING": 4, "Z": 1.5}))
    assert item.flags == ("zwarning",)
    assert item.metadata["zwarning"] == 4
    lost, _ = one(spec(row={"PLUG_RA": -9999.0, "PLUG_DEC": -9999.0}))
    assert (lost.ra, lost.dec) == (None, None)
    assert lost.flags == ("position_invalid",)


def test_sdss_identity() -> None:
    assert one(spec())[0].id == "sdss-0266-51630-0048"
    bare = {"PLATEID": None, "MJD": None, "FIBERID": None}
    assert one(spec(header=bare, row={"SPECOBJID": "39627600000000001"}))[0].id == "39627600000000001"
    later = {"FIELD": 15000, "MJD": 59146, "CATALOGID": 27021597775782932, "RACAT": 10.0, "DECCAT": -5.0}
    item, _ = one(spec(header=bare, row=later))
    assert item.id == "sdss-015000-59146-27021597775782932"
    assert item.metadata["catalogid"] == "27021597775782932"
    assert (item.ra, item.dec) == (10.0, -5.0)
    # FIELD beside a PLATE is a frame of the imaging survey.
    both, _ = one(spec(row={"PLATE": 9367, "MJD": 57758, "FIBERID": 446, "FIELD": 17, "CATALOGID": 5}))
    assert both.id == "sdss-9367-57758-0446"
    assert one(spec(header=bare))[0].id == "spec"
    assert one(spec(header=bare))[0].metadata["id_from"] == "file name"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"ivar": np.zeros(LENGTH)}, "no_coverage"),
        ({"and_mask": np.ones(LENGTH)}, "no_coverage"),
        ({"loglam": np.full(LENGTH, 3.6)}, "wavelength_not_monotonic"),
        ({"loglam": 3.6 - 1e-4 * np.arange(LENGTH)}, "wavelength_not_monotonic"),
        ({"drop": ("ivar",)}, "column_missing"),
        ({"drop": ("and_mask",)}, "column_missing"),
        ({"header": {"BUNIT": "Jy"}}, "unit_unknown"),
        ({"header": {"BUNIT": "counts per whatever"}}, "unit_unknown"),
    ],
)
def test_sdss_files_that_cannot_be_used(changes: dict[str, Any], code: str) -> None:
    assert code_of(spec(**changes)) == code


@pytest.mark.parametrize(
    "options",
    [{"survey": "desi"}, {"medium": "air"}, {"frame": "rest"}, {"unit": "erg / (s cm2 Angstrom)"}],
)
def test_options_that_contradict_the_file(options: dict[str, Any]) -> None:
    assert code_of(spec(), **options) == "statement_conflict"


def test_options_that_say_the_same() -> None:
    same = {"survey": "BOSS", "medium": "vacuum", "frame": "heliocentric", "unit": "1e-17 erg/s/cm2/AA"}
    assert np.array_equal(one(spec(), **same)[1].flux, one(spec())[1].flux)


def test_another_unit_is_converted() -> None:
    _, spectrum = one(spec(header={"BUNIT": "1E-16 erg/cm^2/s/Ang"}))
    assert np.allclose(spectrum.flux, 10 * one(spec())[1].flux)
    assert np.allclose(spectrum.ivar, 0.02)
    assert spectrum.unit == FLUX_DENSITY


def test_air_is_converted_to_vacuum() -> None:
    _, spectrum = one(spec(header={"VACUUM": False}))
    assert spectrum.medium == "air"
    assert np.allclose(spectrum.wavelength, air_to_vacuum(one(spec())[1].wavelength), rtol=0, atol=1e-9)
    assert code_of(spec(header={"VACUUM": False}), medium="vacuum") == "statement_conflict"


@pytest.mark.filterwarnings("ignore:File may have been truncated")
def test_a_truncated_file_is_damaged() -> None:
    whole = spec().content
    for cut in (len(whole) // 2, len(whole) - 2880):
        file = Source("cut.fits", whole[:cut])
        with pytest.raises(BadInput) as caught:
            read(file)
        assert caught.value.code == "damaged_file"
        assert caught.value.file == "cut.fits"


# spSpec and spPlate


def spspec(**header: Any) -> Source:
    rows = np.stack([np.linspace(5, 6, LENGTH), np.zeros(LENGTH), np.full(LENGTH, 0.5), np.zeros(LENGTH)])
    rows[3, 10] = 1 << 30  # an emission line was found: a good pixel
    rows[3, 11] = 1 << 24
    rows[2, 12] = 0
    hdu = fits.PrimaryHDU(rows.astype(np.float32))
    cards = {"TELESCOP": "SDSS 2.5-M", "COEFF0": 3.58, "COEFF1": 1e-4, "PLATEID": 266, "MJD": 51630, "FIBERID": 9}
    cards |= {"BUNIT": "1.0E-17 erg/cm/s/Ang", "VACUUM": 1, "RAOBJ": 150.0, "DECOBJ": 2.0, "Z": 0.1, "SPEC_CLN": 2}
    for card, value in (cards | header).items():
        if value is not None:
            hdu.header[card] = value
    return source(hdu)


def test_spspec() -> None:
    file = spspec()
    assert formats_of(file) == ["sdss_spspec"]
    item, spectrum = one(file)
    assert item.id == "sdss-0266-51630-0009"
    assert (item.ra, item.dec, item.metadata["redshift"], item.metadata["class"]) == (150.0, 2.0, 0.1, "GALAXY")
    assert np.allclose(spectrum.wavelength, 10 ** (3.58 + 1e-4 * np.arange(LENGTH)), rtol=1e-12)
    assert np.flatnonzero(spectrum.mask).tolist() == [11, 12]
    assert spectrum.ivar[0] == 4
    assert spectrum.flux[0] == 5
    assert code_of(spspec(SPEC_CLN=5)) == "not_a_target"


def test_wavelength_solutions() -> None:
    no = {"COEFF0": None, "COEFF1": None}
    _, logarithmic = one(spspec(**no, **{"CRVAL1": 3.58, "CD1_1": 1e-4, "CRPIX1": 1, "DC-FLAG": 1}))
    assert np.allclose(logarithmic.wavelength, one(spspec())[1].wavelength)
    _, linear = one(spspec(**no, **{"CRVAL1": 4000.0, "CDELT1": 2.0, "CRPIX1": 11, "DC-FLAG": 0}))
    assert linear.wavelength[:2].tolist() == [3980.0, 3982.0]
    assert code_of(spspec(**no, CRVAL1=3.58, CD1_1=1e-4)) == "wavelength_unit"
    assert code_of(spspec(**no, CRVAL1=3.58)) == "column_missing"
    assert code_of(spspec(**{"CRVAL1": 3.59, "CD1_1": 1e-4, "DC-FLAG": 1})) == "statement_conflict"


def test_spplate() -> None:
    flux = np.ones((4, LENGTH)) * np.arange(4)[:, None]
    ivar, mask = np.ones((4, LENGTH)), np.zeros((4, LENGTH), np.int32)
    ivar[3] = 0
    mask[0, 5] = 1
    primary = fits.PrimaryHDU(flux.astype(np.float32))
    cards = {"TELESCOP": "SDSS 2.5-M", "COEFF0": 3.58, "COEFF1": 1e-4, "PLATEID": 266, "MJD": 51630, "BUNIT": BUNIT}
    for card, value in cards.items():
        primary.header[card] = value
    plugs = fits.BinTableHDU.from_columns(
        [
            fits.Column("OBJTYPE", "16A", array=["GALAXY", "SKY", "QSO", "GALAXY"]),
            fits.Column("FIBERID", "J", array=[1, 2, 3, 4]),
            fits.Column("RA", "D", array=[150.0, 151.0, 152.0, 153.0]),
            fits.Column("DEC", "D", array=[1.0, 2.0, 3.0, 4.0]),
        ]
    )
    hdus = [primary, fits.ImageHDU(ivar), fits.ImageHDU(mask), fits.ImageHDU(mask)]
    file = source(*hdus, plugs)
    assert formats_of(file) == ["sdss_spplate"]
    items = read(file)
    assert [item.code if isinstance(item, AlbireoError) else item.id for item in items] == [
        "sdss-0266-51630-0001",
        "not_a_target",
        "sdss-0266-51630-0003",
        "no_coverage",
    ]
    first, third = items[0], items[2]
    assert isinstance(first, Observation)
    assert isinstance(third, Observation)
    spectrum, other = first.data[sdss.KEY], third.data[sdss.KEY]
    assert isinstance(spectrum, Spectrum)
    assert isinstance(other, Spectrum)
    assert np.flatnonzero(spectrum.mask).tolist() == [5]
    assert (other.flux == 2).all()
    assert (third.ra, third.dec) == (152.0, 3.0)
    assert third.provenance[sdss.KEY].row == 2
    assert code_of(source(*hdus)) == "column_missing"
    pairs = fits.BinTableHDU.from_columns(
        [
            fits.Column("OBJTYPE", "16A", array=["GALAXY"] * 4),
            fits.Column("FIBERID", "2J", array=np.ones((4, 2))),
            *(fits.Column(name, "D", array=np.ones(4)) for name in ("RA", "DEC")),
        ]
    )
    assert code_of(source(*hdus, pairs)) == "shape_mismatch"


# LAMOST


def lamost_image(rows: str | None = "Flux Inverse Wavelength Andmask Ormask", **header: Any) -> Source:
    pixels = np.zeros((5, LENGTH), np.float32)
    pixels[0], pixels[1], pixels[2] = np.linspace(1, 2, LENGTH), 4.0, np.linspace(1000, 2000, LENGTH)
    pixels[3, 7] = 1
    pixels[1, 8] = 0
    hdu = fits.PrimaryHDU(pixels)
    cards = {"TELESCOP": "LAMOST", "COEFF0": 3.5682, "COEFF1": 1e-4, "VACUUM": True, "HELIO": True, "LMJD": 55862}
    cards |= {"PLANID": "B6212", "SPID": 6, "FIBERID": 5, "Z": -0.001, "CLASS": "STAR", "SUBCLASS": "M0"}
    cards |= {"RA": 99.5, "DEC": 27.1, "FIBERTYP": "Obj", "OBJTYPE": "star", "EXTEN0": rows, "SNRG": -9999.0}
    for card, value in (cards | header).items():
        if value is not None:
            hdu.header[card] = value
    return source(hdu)


def test_lamost_image() -> None:
    file = lamost_image()
    assert formats_of(file) == ["lamost"]
    item, spectrum = one(file, lamost.KEY)
    assert item.id == "lamost-55862-B6212_sp06-005"
    assert (item.ra, item.dec) == (99.5, 27.1)
    assert item.metadata["redshift"] == -0.001
    assert "sn_g" not in item.metadata
    assert item.flags == ("relative_flux", "masked_pixels")
    assert spectrum.unit == "relative flux"
    # Row 2 is not the wavelength, whatever the header calls it.
    assert np.allclose(spectrum.wavelength, 10 ** (3.5682 + 1e-4 * np.arange(LENGTH)), rtol=1e-12)
    assert np.flatnonzero(spectrum.mask).tolist() == [7, 8]
    assert spectrum.ivar[0] == 4


def test_lamost_rows_are_found_by_name() -> None:
    turned = lamost_image("Inverse Flux Subcontinuum Andmask Ormask")
    assert (one(turned, lamost.KEY)[1].flux == np.float32(4)).sum() == LENGTH - 1
    assert np.array_equal(one(lamost_image(None), lamost.KEY)[1].flux, one(lamost_image(), lamost.KEY)[1].flux)
    assert code_of(lamost_image("Flux Inverse")) == "shape_mismatch"


def test_lamost_conventions_must_be_stated() -> None:
    assert code_of(lamost_image(VACUUM=None)) == "medium_missing"
    assert code_of(lamost_image(HELIO=None)) == "frame_missing"
    assert one(lamost_image(VACUUM=None, HELIO=None), lamost.KEY, medium="vacuum", frame="heliocentric")[1].frame == (
        "heliocentric"
    )
    assert one(lamost_image(HELIO=False), lamost.KEY)[1].frame == "observed"
    assert code_of(lamost_image(), medium="air") == "statement_conflict"
    assert code_of(lamost_image(), unit=FLUX_DENSITY) == "unit_unknown"
    air = one(lamost_image(VACUUM=False), lamost.KEY)[1]
    assert np.allclose(air.wavelength, air_to_vacuum(one(lamost_image(), lamost.KEY)[1].wavelength), atol=1e-9)
    assert code_of(lamost_image(FIBERTYP="Sky")) == "not_a_target"


def test_lamost_table() -> None:
    grid = 10 ** (3.5682 + 1e-4 * np.arange(LENGTH))

    def table(wavelength: Any = grid, name: str = "WAVELENGTH") -> Source:
        primary = fits.PrimaryHDU()
        cards = {"TELESCOP": "LAMOST", "VACUUM": True, "HELIO": True, "OBSID": 101001, "COEFF0": 3.5682, "COEFF1": 1e-4}
        for card, value in cards.items():
            primary.header[card] = value
        columns = {"FLUX": np.ones(LENGTH), "IVAR": np.full(LENGTH, 4.0), name: wavelength, "ANDMASK": np.zeros(LENGTH)}
        return source(
            primary,
            fits.BinTableHDU.from_columns(
                [fits.Column(key, f"{LENGTH}E", array=[cells]) for key, cells in columns.items()], name="COADD"
            ),
        )

    assert formats_of(table())[0] == "lamost"
    item, spectrum = one(table(), lamost.KEY)
    assert item.id == "lamost-101001"
    assert np.allclose(spectrum.wavelength, grid, rtol=1e-12)
    assert code_of(table(grid + 5)) == "statement_conflict"
    assert code_of(table(name="LOGLAM")) == "modality_unknown"


# Recognition


def test_foreign_content_is_not_claimed() -> None:
    for content in (b"id,ra,dec\n1,2,3\n", b"\x89PNG\r\n", b"{}", b"SNID,MJD,wave,flux\n1,2,3,4\n"):
        assert formats_of(Source("x", content)) == []
    image = fits.PrimaryHDU(np.zeros((3, 96, 96), np.float32))
    image.header["TELESCOP"] = "SDSS 2.5-M"
    assert formats_of(source(image)) == []
    assert formats_of(source(fits.PrimaryHDU(np.zeros((5, 99), np.float32)))) == []


# Real files


@pytest.mark.real
def test_real_sdss_files(test_data: Path) -> None:
    with (test_data / "eval/sdss_boss_spectra.csv").open() as lines:
        labels = {row["file"]: row for row in csv.DictReader(lines)}
    paths = sorted((test_data / "raw/sdss").glob("*.fits"))
    assert len(paths) == 15
    compared = 0
    for path in paths:
        item, spectrum = one(Source.from_path(path))
        plate, mjd, fibre = (int(part) for part in path.stem.split("-")[1:])
        assert item.id == f"sdss-{plate:04d}-{mjd}-{fibre:04d}"
        assert item.ra is not None
        with fits.open(path) as hdus:
            table = hdus[1].data
            bad = (table["and_mask"] != 0) | (table["ivar"] <= 1e-6)
            assert np.array_equal(spectrum.mask, bad)
            assert np.array_equal(spectrum.flux, table["flux"].astype(np.float32))
            assert np.array_equal(spectrum.ivar, np.where(bad, 0, table["ivar"]).astype(np.float32))
        if path.name in labels:
            row = labels[path.name]
            assert item.metadata["redshift"] == pytest.approx(float(row["z"]), abs=1e-7)
            assert (item.metadata["class"], item.metadata.get("subclass", "")) == (row["cls"], row["subclass"])
            assert item.metadata["zwarning"] == int(row["zwarn"])
            compared += 1
    assert compared == 12


@pytest.mark.real
@pytest.mark.parametrize("name", ["spec-0266-51630-0486.fits", "spec-9367-57758-0446.fits"])
def test_specutils_reads_the_same(test_data: Path, name: str) -> None:
    path = test_data / "raw/sdss" / name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = SpecutilsSpectrum.read(path, format="SDSS-III/IV spec")
    _, spectrum = one(Source.from_path(path))
    assert np.allclose(spectrum.wavelength, other.spectral_axis.to_value("Angstrom"), rtol=0, atol=1e-3)
    assert np.array_equal(spectrum.flux, other.flux.to_value(FLUX_DENSITY).astype(np.float32))
    assert np.array_equal(spectrum.mask, np.asarray(other.mask) | (other.uncertainty.array <= 1e-6))


@pytest.mark.real
def test_real_lamost_files(test_data: Path) -> None:
    with (test_data / "eval/lamost_spectra.csv").open() as lines:
        labels = {row["file"]: row for row in csv.DictReader(lines)}
    paths = sorted((test_data / "raw/lamost").glob("*.fits"))
    assert len(paths) == 4
    for path in paths:
        item, spectrum = one(Source.from_path(path), lamost.KEY)
        assert item.id == "lamost-" + path.stem.removeprefix("spec-")
        with fits.open(path) as hdus:
            header, pixels = hdus[0].header, hdus[0].data
            grid = 10 ** (header["COEFF0"] + header["COEFF1"] * np.arange(header["NAXIS1"]))
            assert np.allclose(spectrum.wavelength, grid, rtol=0, atol=1e-9)
            assert np.abs(spectrum.wavelength - pixels[2]).max() > 1000  # row 2 is not it
            assert np.array_equal(spectrum.flux, pixels[0].astype(np.float32))
            assert np.array_equal(spectrum.mask, (pixels[3] != 0) | (pixels[1] <= 0))
            assert (item.ra, item.dec) == (header["RA"], header["DEC"])
        assert "relative_flux" in item.flags
        assert item.metadata["class"] == "STAR"
        if path.name in labels:
            assert item.metadata["redshift"] == pytest.approx(float(labels[path.name]["z"]), abs=1e-9)
            assert item.metadata["subclass"] == labels[path.name]["subclass"]


def test_cards_and_columns_of_other_types() -> None:
    """What is no number where one belongs takes nothing else with it: the position is flagged, the id is another."""
    item, _ = one(spec(row={"PLUG_RA": "here", "PLUG_DEC": 0.6, "PLATE": "x", "SPECOBJID": "12"}))
    assert (item.ra, item.dec, item.id) == (None, None, "12")
    assert "position_invalid" in item.flags
    item, _ = one(spspec(RAOBJ="here", FIBERID="none"))
    assert (item.ra, item.id) == (None, "spec")
    item, _ = one(lamost_image(LMJD="x", OBSID=7), lamost.KEY)
    assert item.id == "lamost-7"
    file = spec().content
    for name, form in (("flux", "4A"), ("loglam", "4A"), ("and_mask", "4A")):
        at = file.index(b"'%-8s'" % name.encode()) + 70  # the next card: TFORM
        spoilt = file[:at] + f"{file[at : at + 8].decode()}= '{form:8}'".ljust(80).encode() + file[at + 80 :]
        assert code_of(Source("a.fits", spoilt)) == "damaged_file"


def test_large_integers_that_are_shifted() -> None:
    """astropy fails in a way of its own at a TZERO that does not stand for unsigned numbers."""
    content = spec(row={"SPECOBJID": 12}).content
    end = content.rindex(b"END".ljust(80))
    card = b"TZERO1  =                    7".ljust(80)
    assert code_of(Source("a.fits", content[:end] + card + b"END".ljust(80) + content[end + 160 :])) == "damaged_file"


def test_columns_without_numbers() -> None:
    content = spec().content
    at = content.index(b"'ivar    '") + 70
    empty = f"{content[at : at + 8].decode()}= '0E      '".ljust(80).encode()
    assert code_of(Source("a.fits", content[:at] + empty + content[at + 80 :])) in ("shape_mismatch", "damaged_file")


def test_a_keyword_is_no_pattern() -> None:
    """astropy takes a keyword with * for a pattern, and makes a regular expression of it."""
    for file, key in ((spspec(OBSERVER="x"), sdss.KEY), (lamost_image(OBSERVER="x"), lamost.KEY)):
        spoilt = Source("a.fits", file.content.replace(b"OBSERVER=", b"(*A)    ="))
        assert one(spoilt, key)[0].data
