"""Scalar tables: what a column means is stated by a survey, the name or an option, or it is asked for."""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st

from albireo.observations import tables
from albireo.observations.aliases import EPOCH_COLUMNS, MEASUREMENTS
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.modalities import AION_KEYS, MODALITIES
from albireo.observations.observation import Convention, Observation, Scalar
from albireo.observations.options import ReadOptions
from albireo.observations.reading import read_files
from albireo.observations.source import Source

OPTIONS = ReadOptions()
SDSS = ReadOptions(survey="sdss", unit="mag", kind="model", extinction_corrected=True)
Items = list[Observation | AlbireoError]


def read(content: str | bytes, options: ReadOptions = OPTIONS, name: str = "t.csv") -> Items:
    source = Source(name, content.encode() if isinstance(content, str) else content)
    assert tables.is_table(source)
    return tables.read_table(source, options, [])


def one(content: str | bytes, options: ReadOptions = OPTIONS, name: str = "t.csv") -> Observation:
    item = read(content, options, name)[0]
    assert isinstance(item, Observation), item
    return item


def scalar(observation: Observation, key: str) -> Scalar:
    payload = observation.data.get(key) or observation.extras[key]
    assert isinstance(payload, Scalar)
    return payload


def code(content: str | bytes, options: ReadOptions = OPTIONS, name: str = "t.csv") -> str:
    """The code of the error that reading it gives, of the file or of its first object."""
    with contextlib.suppress(AlbireoError):
        item = read(content, options, name)[0]
        assert isinstance(item, AlbireoError), item
        return item.code
    with pytest.raises(AlbireoError) as caught:
        read(content, options, name)
    assert caught.value.field or caught.value.file
    return caught.value.code


def table_bytes(table: Table, format: str) -> bytes:
    if format == "parquet":
        out = io.BytesIO()
        pq.write_table(pa.table({name: table[name].tolist() for name in table.colnames}), out)
        return out.getvalue()
    text = io.StringIO() if format == "ascii.ecsv" else io.BytesIO()
    table.write(text, format=format)
    got = text.getvalue()
    return got.encode() if isinstance(got, str) else got


# Surveys

LEGACY = (
    "release,brickid,objid,ra,dec,type,flux_g,flux_r,flux_i,flux_z,flux_w1,flux_ivar_g,flux_ivar_r,flux_ivar_i,"
    "flux_ivar_z,flux_ivar_w1,ebv,shape_r,shape_e1,shape_e2,extra\n"
    "10000,123456,7,150.5,2.25,REX,1.5,2.5,0,3.5,4.5,4,4,0,4,4,0.03,0.75,0.1,-0.2,9\n"
)


def test_legacy_survey() -> None:
    got = one(LEGACY)
    assert got.id == "10000-123456-7", "objid counts within a brick"
    assert scalar(got, "tok_flux_g") == Scalar(
        1.5, "nanomaggy", 0.5, Convention("legacysurvey", "DES-G", "AB", "model", False)
    )
    assert "tok_flux_i" not in got.data, "inverse variance 0 is no measurement, not a flux of 0"
    assert "missing_flux_i" in got.flags
    assert scalar(got, "tok_ebv") == Scalar(0.03, "mag")
    assert scalar(got, "tok_shape_r") == Scalar(0.75, "arcsec")
    assert scalar(got, "tok_shape_e2").value == -0.2
    assert (got.ra, got.dec) == (150.5, 2.25)
    assert got.metadata["type"] == "REX"
    assert got.metadata["unused_columns"] == ("extra",)
    assert got.provenance["tok_flux_g"].survey == "legacysurvey"
    assert got.provenance["tok_flux_g"].row == 0


def test_hsc_magnitudes_stay_magnitudes() -> None:
    text = "object_id,g_cmodel_mag,g_cmodel_magsigma,a_g,i_sdssshape_shape11\n38553510571974720,21.5,0.01,0.08,6.5\n"
    got = one(text)
    assert got.id == "38553510571974720"
    assert scalar(got, "tok_mag_g") == Scalar(21.5, "mag", 0.01, Convention("hsc", "HSC-G", "AB", "cmodel", False))
    assert scalar(got, "tok_a_g") == Scalar(0.08, "mag")
    assert scalar(got, "tok_shape11") == Scalar(6.5, "arcsec2")


def test_gaia() -> None:
    text = (
        "source_id,ra,dec,parallax,parallax_error,phot_g_mean_flux,phot_g_mean_flux_error,phot_g_mean_mag\n"
        "4295806720,44.9,0.1,3.1,0.02,1500.5,2.5,17.7\n"
    )
    got = one(text)
    assert scalar(got, "tok_parallax") == Scalar(3.1, "mas", 0.02)
    assert scalar(got, "tok_flux_g_gaia").unit == "electron / s"
    assert scalar(got, "tok_flux_g_gaia").error == 2.5
    magnitude = scalar(got, "gaia.phot_g_mean_mag").convention
    assert magnitude is not None
    assert magnitude.system == "Vega"


def test_every_documented_column_is_read_in_its_unit() -> None:
    """The table's rows against the modalities: right unit, and a value written in that unit comes back unchanged,
    unless it is the magnitude of a flux."""
    for row in MEASUREMENTS:
        if row.name in MODALITIES:
            assert row.unit == MODALITIES[row.name].unit, row
        if row.index is not None:
            continue
        got = one(f"id,{row.column}\na,12.5\n", ReadOptions(survey=row.survey))
        if row.form == "mag" and row.photometry and not row.photometry.corrected and row.photometry.measure == "model":
            assert got.data.keys() == {f"flux_{row.photometry.band[-1]}_sdss"}
        elif row.form == "mag" and row.survey == "2mass":
            assert row.photometry is not None
            assert got.data.keys() == {f"flux_{row.photometry.band[-1].lower()}_2mass"}
        else:
            assert scalar(got, row.name).value == 12.5
            assert scalar(got, row.name).unit == row.unit
            assert (row.name in got.data) == (row.name in MODALITIES)
    scalars = {m.key for m in MODALITIES.values() if m.kind == "scalar" and m.survey != "any"}
    assert scalars == {row.name for row in MEASUREMENTS if row.name in MODALITIES}


def test_units_of_the_file_are_converted_exactly() -> None:
    table = Table({"source_id": [1], "parallax": [0.003], "phot_g_mean_flux": [5.0]})
    table["parallax"].unit = "arcsec"
    table["phot_g_mean_flux"].unit = "electron / s"
    got = one(table_bytes(table, "votable"), name="g.vot")
    assert scalar(got, "tok_parallax").value == pytest.approx(3.0, rel=1e-12)
    table = Table({"id": ["a"], "flux_g": [3.6307805477]})
    table["flux_g"].unit = "uJy"
    got = one(table_bytes(table, "ascii.ecsv"), ReadOptions(survey="legacysurvey"))
    assert scalar(got, "tok_flux_g").value == pytest.approx(1.0, rel=1e-9), "22.5 mag is 3.6308 uJy"
    table["flux_g"].unit = "s"
    assert code(table_bytes(table, "ascii.ecsv"), ReadOptions(survey="legacysurvey")) == "unit_unknown"


def test_a_legacy_survey_magnitude_is_its_flux() -> None:
    options = ReadOptions(survey="legacysurvey", kind="model", extinction_corrected=False)
    got = one("id,mag_g,magerr_g\na,20,0.1\n", options)
    assert scalar(got, "tok_flux_g").value == pytest.approx(10.0)
    assert scalar(got, "tok_flux_g").error == pytest.approx(0.1 * 10 * np.log(10) / 2.5)
    assert "from_magnitude" in got.flags
    corrected = one("id,mag_g\na,20\n", ReadOptions(survey="legacysurvey", kind="model", extinction_corrected=True))
    assert scalar(corrected, "legacysurvey.g").value == 20.0, "a corrected magnitude is another quantity"
    assert not corrected.data


# SDSS and 2MASS


def asinh_magnitude(nanomaggies: float, b: float) -> float:
    """As SDSS defines it, https://www.sdss.org/dr17/algorithms/magnitudes/."""
    return -2.5 / math.log(10) * (math.asinh(nanomaggies * 1e-9 / (2 * b)) + math.log(b))


@pytest.mark.parametrize(
    ("band", "b"), [("u", 1.4e-10), ("g", 0.9e-10), ("r", 1.2e-10), ("i", 1.8e-10), ("z", 7.4e-10)]
)
@pytest.mark.parametrize("flux", [-0.3, 0.0, 0.5, 30.0, 2500.0])
def test_asinh_magnitudes_of_sdss_are_their_fluxes(band: str, b: float, flux: float) -> None:
    magnitude, brighter = asinh_magnitude(flux, b), asinh_magnitude(flux + 1e-5, b)
    got = one(f"id,modelmag_{band},modelmagerr_{band}\na,{magnitude!r},{magnitude - brighter!r}\n",
              ReadOptions(survey="sdss"))  # fmt: skip
    found = scalar(got, f"flux_{band}_sdss")
    assert found.value == pytest.approx(flux, rel=1e-9, abs=1e-9)
    assert found.error == pytest.approx(1e-5, rel=1e-3)
    assert (found.unit, found.convention) == ("nanomaggy", Convention("sdss", f"SDSS-{band}", "AB", "model", False))
    assert "from_magnitude" in got.flags


def test_a_flux_stands_before_its_magnitude() -> None:
    got = one("id,modelflux_g,modelmag_g\na,25.0,19.0\n", ReadOptions(survey="sdss"))
    assert scalar(got, "flux_g_sdss").value == 25.0
    assert scalar(got, "sdss.modelmag_g").value == 19.0
    assert "from_magnitude" not in got.flags


def test_which_kind_of_magnitude_must_be_said() -> None:
    """A plain "mag" of SDSS may be asinh or logarithmic: at 22 mag in z that is 0.12 mag."""
    text = "id,g,r\na,20,19\n"
    raw = ReadOptions(survey="sdss", kind="model", extinction_corrected=False)
    plain = one(text, replace(raw, unit="mag"))
    assert not plain.data
    assert scalar(plain, "sdss.g") == Scalar(20.0, "mag", None, Convention("sdss", "SDSS-g", "AB", "model", False))
    assert scalar(one(text, replace(raw, unit="log mag")), "flux_g_sdss").value == pytest.approx(10.0, rel=1e-12)
    told = scalar(one(text, replace(raw, unit="asinh mag")), "flux_g_sdss").value
    assert asinh_magnitude(told, 0.9e-10) == pytest.approx(20.0, abs=1e-9)
    assert told == pytest.approx(10.0, rel=1e-3)
    for other in (replace(raw, kind="psf"), replace(raw, extinction_corrected=True)):
        assert not one(text, replace(other, unit="asinh mag")).data, "another quantity"


def test_vega_magnitudes_of_2mass_are_fluxes() -> None:
    """Independent: 0 mag is 1594, 1024, 666.7 Jy, and an AB magnitude is -2.5 log10(f / 3630.78 Jy)."""
    got = one("id,j_m,j_msigcom,h_m,k_m\na,12.0,0.02,11.5,11.4\n")
    for band, magnitude, zero in (("j", 12.0, 1594.0), ("h", 11.5, 1024.0), ("k", 11.4, 666.7)):
        flux = scalar(got, f"flux_{band}_2mass")
        ab = magnitude - 2.5 * math.log10(zero / 3630.7805)
        assert 22.5 - 2.5 * math.log10(flux.value) == pytest.approx(ab, abs=1e-6)
        assert flux.convention == Convention("2mass", f"2MASS-{band.upper()}", "AB", "psf", False)
    flux = scalar(got, "flux_j_2mass")
    assert flux.error == pytest.approx(flux.value * 0.02 * math.log(10) / 2.5)
    assert scalar(got, "flux_h_2mass").error is None


def test_two_magnitudes_of_one_flux() -> None:
    text = "id,j_m,j_cmsig,j_m_ext\na,14.0,0.02,13.5\n"
    assert code(text) == "alias_ambiguous"
    got = one(text, ReadOptions(columns={"j_m_ext": "j_m_ext"}))
    flux = scalar(got, "flux_j_2mass")
    assert flux.convention is not None
    assert flux.convention.kind == "aperture"
    assert scalar(got, "2mass.j_m").value == 14.0
    assert scalar(one(text, ReadOptions(columns={"j_m": "j_m"})), "2mass.j_m_ext").value == 13.5


def test_our_own_names_are_read() -> None:
    got = one("id,flux_u_sdss,flux_u_sdss_ivar,flux_k_2mass\na,3.0,4.0,50.0\n")
    assert scalar(got, "flux_u_sdss") == Scalar(
        3.0, "nanomaggy", 0.5, Convention("sdss", "SDSS-u", "AB", "model", False)
    )
    assert scalar(got, "flux_k_2mass").value == 50.0
    jansky = one("id,Jflux\na,1594.0\n", ReadOptions(survey="2mass", unit="Jy", kind="psf", extinction_corrected=False,
                                                     columns={"j": "Jflux"}))  # fmt: skip
    vega = one("id,j_m,j_msigcom\na,0.001,0.1\n")
    assert scalar(jansky, "flux_j_2mass").value == pytest.approx(scalar(vega, "flux_j_2mass").value, rel=1e-3)


def test_rows_of_aion_are_untouched() -> None:
    """40 rows in their order, before every other but those that were there; no codec of one is another's."""
    assert len(AION_KEYS) == 40
    assert list(MODALITIES)[:40] == list(AION_KEYS)
    added = [f"flux_{b}_sdss" for b in "ugriz"] + [f"flux_{b}_2mass" for b in "jhk"]
    assert list(MODALITIES)[40:] == ["spectrum_lamost", "lightcurve", *added]
    codecs = [MODALITIES[key].codec.lower() for key in added]
    others = {row.codec.lower() for key, row in MODALITIES.items() if key not in added}
    assert len(set(codecs)) == len(codecs)
    assert not others & set(codecs), "equal but for case is one folder on some disks"


# What is not stated


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("id,flux_g,flux_r\na,1,2\n", OPTIONS, "survey_missing"),
        ("id,u,g,r,i\na,1,2,3,4\n", OPTIONS, "survey_missing"),
        ("id,g\na,1\n", OPTIONS, "survey_missing"),
        ("id,g,r\na,1,2\n", ReadOptions(survey="sdss"), "unit_missing"),
        ("id,g,r\na,1,2\n", ReadOptions(survey="sdss", unit="mag"), "convention_missing"),
        ("id,g,r\na,1,2\n", ReadOptions(survey="sdss", unit="mag", kind="psf"), "convention_missing"),
        ("id,g,r\na,1,2\n", ReadOptions(survey="sdss", unit="counts"), "unit_unknown"),
        ("id,g,w1\na,1,2\n", SDSS, "band_unknown"),
        ("id,z\na,1\n", OPTIONS, "alias_ambiguous"),
        ("id,g,r,i,z\na,1,2,3,4\n", SDSS, "alias_ambiguous"),
        ("id,z,zspec\na,1,2\n", OPTIONS, "alias_ambiguous"),
        ("id,Z,modelflux_g\na,1,2\n", SDSS, "alias_ambiguous"),
        ("id,g,G\na,1,2\n", SDSS, "alias_ambiguous"),
        ("id,mag_g,g\na,20,20\n", SDSS, "alias_ambiguous"),
        ("id,flux_g,flux_ivar_w1\na,1,1\n", ReadOptions(survey="sdss"), "statement_conflict"),
        ("id,flux_g\na,1\n", ReadOptions(survey="legacysurvey", extinction_corrected=True), "statement_conflict"),
        ("id,flux_g\na,1\n", ReadOptions(survey="legacysurvey", unit="uJy"), "statement_conflict"),
        ("id,mag_auto_g\na,1\n", SDSS, "statement_conflict"),
        ("id,g,r\na,1,2\n", ReadOptions(columns={"id": "nope"}), "column_unknown"),
        ("id,g,r\na,1,2\n", ReadOptions(survey="sdss", columns={"nope": "g"}), "option_invalid"),
        ("x,y\n1,2\n", OPTIONS, "column_missing"),
        ("id,ra,dec\na,400,0\n", OPTIONS, "value_out_of_range"),
        ("id,ra,dec\n,10,0\n", OPTIONS, "value_missing"),
        ("id,redshift\na,high\n", OPTIONS, "value_out_of_range"),
    ],
)
def test_what_is_not_said_or_said_twice(text: str, options: ReadOptions, expected: str) -> None:
    assert code(text, options) == expected


def test_z_is_the_band_or_the_redshift() -> None:
    both = "id,u,g,r,i,z,zspec\na,19,18,17,16,15,0.25\n"
    got = one(both, SDSS)
    assert scalar(got, "sdss.z").value == 15.0
    assert got.metadata["redshift"] == 0.25
    spectroscopic = one("id,z,zerr,zwarn,spectype\na,0.5,0.01,0,GALAXY\n")
    assert spectroscopic.metadata["redshift"] == 0.5
    assert spectroscopic.metadata["class"] == "GALAXY"
    told = one("id,z\na,0.5\n", ReadOptions(columns={"redshift": "z"}))
    assert told.metadata["redshift"] == 0.5
    band = one(
        "id,z\na,19.5\n",
        ReadOptions(survey="sdss", unit="mag", kind="psf", extinction_corrected=False, columns={"z": "z"}),
    )
    assert scalar(band, "sdss.z") == Scalar(19.5, "mag", None, Convention("sdss", "SDSS-z", "AB", "psf", False))
    assert "redshift" not in band.metadata


def test_labels_never_become_data() -> None:
    got = one("id,ra,dec,redshift,class,subclass\na,10,-5,0.5,QSO,BROADLINE\n")
    assert not got.data
    assert not got.extras
    assert (got.ra, got.dec) == (10.0, -5.0)
    assert got.metadata == {"redshift": 0.5, "class": "QSO", "subclass": "BROADLINE"}


def test_columns_of_an_unknown_camera() -> None:
    options = ReadOptions(
        survey="candels",
        unit="uJy",
        system="AB",
        kind="aperture",
        extinction_corrected=False,
        columns={"ACS-F606W": "ACS_F606W", "redshift": "Z"},
    )
    got = one("id,ACS_F606W,ACS_F606W_ERR,Z\na,2.5,0.1,1.5\n", options)
    assert scalar(got, "candels.ACS-F606W") == Scalar(
        2.5, "uJy", 0.1, Convention("candels", "ACS-F606W", "AB", "aperture", False)
    )


# Values that are none


def test_sentinels_infinity_and_nan() -> None:
    cells = {
        "nan": "missing",
        "": "missing",
        "-99": "missing",
        "-99.9": "missing",
        "-9999": "missing",
        "99999": "missing",
        "99": "non_detection",
        "inf": "non_detection",
    }
    for cell, flag in cells.items():
        got = one(f"id,g,r\na,{cell},18\n", SDSS)
        assert "sdss.g" not in got.extras
        assert f"{flag}_sdss_g" in got.flags, cell
        assert scalar(got, "sdss.r").value == 18.0


def test_single_precision_sentinels() -> None:
    table = Table({"id": ["a"], "g": np.array([-99.9], "f4"), "r": np.array([18.0], "f4")})
    assert "missing_sdss_g" in one(table_bytes(table, "fits"), SDSS).flags


def test_flux_of_99_is_a_flux() -> None:
    got = one("id,flux_g,flux_ivar_w1\na,99,1\n", ReadOptions(survey="legacysurvey"))
    assert scalar(got, "tok_flux_g").value == 99.0


def test_redshift_sentinels() -> None:
    got = [item.metadata.get("redshift") for item in read("id,redshift\na,-9\nb,nan\nc,0.0\nd,-0.0005\n")
           if isinstance(item, Observation)]  # fmt: skip
    assert got == [None, None, 0.0, -0.0005]


# Ids


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8, unique=True))
@settings(max_examples=25, deadline=None)
def test_integer_ids_are_exact_in_every_container(ids: list[int]) -> None:
    table = Table({"objid": np.array(ids, np.int64), "redshift": np.full(len(ids), 0.5)})
    for container in ("fits", "parquet", "votable", "ascii.ecsv"):
        got = read(table_bytes(table, container), name=container)
        assert [item.id for item in got if isinstance(item, Observation)] == [str(i) for i in ids], container
    csv = "objid,redshift\n" + "".join(f"{i},0.5\n" for i in ids)
    assert [getattr(item, "id", None) for item in read(csv)] == [str(i) for i in ids]


def test_ids_with_missing_rows_stay_exact() -> None:
    out = io.BytesIO()
    pq.write_table(pa.table({"objid": pa.array([2**60 + 1, None], pa.int64()), "redshift": [0.1, 0.2]}), out)
    first, second = read(out.getvalue(), name="t.parquet")
    assert isinstance(first, Observation)
    assert first.id == str(2**60 + 1)
    assert isinstance(second, AlbireoError)
    assert second.code == "value_missing"


def test_rounded_ids_are_refused() -> None:
    assert code(table_bytes(Table({"objid": [1.2e18], "redshift": [0.1]}), "fits")) == "id_inexact"
    assert code("objid,redshift\n1.2376e+18,0.1\n") == "id_inexact"
    assert one("objid,redshift\n000123,0.1\n").id == "000123"
    assert one("name,redshift\n1998E2,0.1\n").id == "1998E2"


def test_twins_fail_the_others_are_read() -> None:
    items = read("id,redshift\na,0.1\nb,0.2\na,0.3\n")
    assert [getattr(item, "code", None) for item in items] == ["id_duplicate", None, "id_duplicate"]


def test_rows_without_ids_are_numbered() -> None:
    items = read("redshift,ra,dec\n0.1,1,2\n0.2,3,4\n", name="cat.csv.gz")
    assert [getattr(item, "id", None) for item in items] == ["cat-0", "cat-1"]
    assert all("row_id" in item.flags for item in items if isinstance(item, Observation))


# Containers


@pytest.mark.parametrize("format", ["fits", "votable", "parquet", "ascii.ecsv", "csv", "csv.gz"])
def test_every_container_gives_the_same_object(format: str) -> None:
    table = Table(
        {
            "objid": [2**53 + 1, 2],
            "ra": [10.0, 20.0],
            "dec": [-5.0, 5.0],
            "g": np.array([18.5, -99.0], ">f4"),
            "r": np.array([17.5, 17.0], ">f8"),
            "class": ["GALAXY", "STAR"],
        }
    )
    if format.startswith("csv"):
        rows = [",".join(table.colnames), *(",".join(str(cell) for cell in row) for row in table)]
        content = "\n".join(rows).encode()
        content = gzip.compress(content) if format == "csv.gz" else content
    else:
        content = table_bytes(table, format)
    first, second = read(content, SDSS, name="t")
    assert isinstance(first, Observation)
    assert isinstance(second, Observation)
    assert first.id == "9007199254740993"
    assert scalar(first, "sdss.g").value == 18.5
    assert first.metadata["class"] == "GALAXY"
    assert (second.ra, second.dec) == (20.0, 5.0)
    assert "missing_sdss_g" in second.flags


def test_masked_cells_and_null_integers() -> None:
    column = fits.Column("OBJID", "K", array=np.array([5, -1]), null=-1)
    flux = fits.Column("REDSHIFT", "E", array=np.array([0.5, np.nan]))
    out = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns([column, flux])]).writeto(out)
    first, second = read(out.getvalue(), name="t.fits")
    assert isinstance(first, Observation)
    assert isinstance(second, AlbireoError)
    assert second.code == "value_missing"


def test_further_tables_of_a_file_are_named() -> None:
    hdus = [fits.PrimaryHDU(), fits.BinTableHDU(Table({"redshift": [0.5]}), name="CAT"),
            fits.BinTableHDU(Table({"x": [1]}), name="MORE")]  # fmt: skip
    out = io.BytesIO()
    fits.HDUList(hdus).writeto(out)
    assert one(out.getvalue()).metadata["unused_hdus"] == ("MORE",)
    assert one(out.getvalue()).metadata["redshift"] == 0.5


@pytest.mark.parametrize("declaration", ['<!DOCTYPE VOTABLE SYSTEM "x.dtd">', '<!DOCTYPE a [<!ENTITY b "c">]>'])
def test_entities_are_refused(declaration: str) -> None:
    plain = table_bytes(Table({"id": ["a"], "redshift": [0.5]}), "votable").decode()
    assert one(plain).metadata["redshift"] == 0.5
    head, rest = plain.split("?>", 1)
    assert code(f"{head}?>\n{declaration}{rest}") == "entities_refused"


def test_a_votable_opens_nothing_outside_itself(tmp_path: Path) -> None:
    """A STREAM may name its data by href, and astropy would open that file for whoever sent the table."""
    secret = tmp_path / "secret.xml"
    secret.write_bytes(table_bytes(Table({"id": ["a"], "redshift": [0.5]}), "votable"))
    plain = table_bytes(Table({"id": ["a"], "redshift": [0.5]}), "votable").decode()
    start, end = plain.index("<TABLEDATA>"), plain.index("</TABLEDATA>") + len("</TABLEDATA>")
    stream = f'<BINARY><STREAM href="file://{secret}"/></BINARY>'
    assert code(plain[:start] + stream + plain[end:]) == "reference_refused"


@pytest.mark.parametrize("format", ["fits", "votable", "parquet"])
def test_damage_is_a_typed_error(format: str) -> None:
    content = table_bytes(Table({"id": ["a"] * 3000, "redshift": np.arange(3000.0)}), format)
    source = Source("cut", content[: len(content) * 2 // 3])
    with pytest.raises(AlbireoError) as caught:
        tables.read_table(source, OPTIONS, [])
    assert caught.value.code in ("damaged_file", "unknown_format")
    assert caught.value.file == "cut"


def test_ragged_csv_is_damaged() -> None:
    assert code("id,redshift\na,0.1\nb,0.2,0.3\n") == "damaged_file"


def test_late_floats_do_not_stop_a_csv() -> None:
    rows = "".join(f"a{i},{i % 3}\n" for i in range(125_000))  # more than the first MiB
    items = read("id,redshift\n" + rows + "last,0.25\n")
    assert isinstance(items[-1], Observation)
    assert items[-1].metadata["redshift"] == 0.25


@pytest.mark.parametrize(
    "content",
    [b"\x89PNG\r\n\x1a\n" + b"\x00" * 64, b"hello world\n", b"<html>a,b</html>", b'{"a": 1, "b": 2}\n',
     b"# Title\n\nProse, with a comma.\nMore.\n", b"1.0,2.0\n3.0,4.0\n"],
)  # fmt: skip
def test_other_content_is_no_table(content: bytes) -> None:
    assert not tables.is_table(Source("x", content))


def test_sexagesimal_positions() -> None:
    got = one("id,ra,dec,redshift\na,12:40:10.8,+62:52:59,0.1\n")
    assert got.ra == pytest.approx(190.045)
    assert got.dec == pytest.approx(62 + 52 / 60 + 59 / 3600)
    assert code("id,ra,dec\na,east,up\n") == "value_out_of_range"


def test_sources_and_options_are_not_changed() -> None:
    source = Source("t.csv", LEGACY.encode())
    before = source.sha256
    first = tables.read_table(source, OPTIONS, [])
    second = tables.read_table(source, OPTIONS, [])
    assert Source("t.csv", source.content).sha256 == before
    assert [getattr(a, "data", None) for a in first] == [getattr(b, "data", None) for b in second]


def test_aliases_are_lower_case_and_unique() -> None:
    for row in MEASUREMENTS:
        assert row.column == row.column.lower()
    keys = [(row.column, row.index, row.survey) for row in MEASUREMENTS]
    assert len(keys) == len(set(keys))
    for key, names in EPOCH_COLUMNS.items():
        assert len(set(names)) == len(names), key


# Real tables


def real(test_data: Path, name: str, options: ReadOptions) -> Items:
    source = Source.from_path(test_data / "eval" / name)
    begin = time.process_time()
    items = tables.read_table(source, options, [])
    assert time.process_time() - begin < 3.0, "10,000 rows cost less than 3 s of one core"
    return items


@pytest.mark.real
def test_photoz_sdss_mgs(test_data: Path) -> None:
    with pytest.raises(BadInput) as caught:
        real(test_data, "photoz_sdss_mgs.parquet", OPTIONS)
    assert caught.value.code == "survey_missing"
    items = real(test_data, "photoz_sdss_mgs.parquet", SDSS)
    table = pq.read_table(test_data / "eval" / "photoz_sdss_mgs.parquet").to_pydict()
    assert len(items) == 5000
    for k, item in enumerate(items):
        assert isinstance(item, Observation)
        assert item.metadata["redshift"] == table["zspec"][k]
        assert {b: item.extras[f"sdss.{b}"].value for b in "ugriz"} == {b: table[b][k] for b in "ugriz"}
        assert item.extras["sdss.z"].error == table["ez"][k]
        assert not item.data


@pytest.mark.real
def test_photoz_kcorrect(test_data: Path) -> None:
    name = "photoz_kcorrect_gst.fits"
    with pytest.raises(BadInput) as caught:
        real(test_data, name, ReadOptions(survey="sdss"))
    assert caught.value.code == "alias_ambiguous"
    assert caught.value.field == "Z"
    items = real(test_data, name, ReadOptions(survey="sdss", columns={"redshift": "Z"}))
    rows = fits.getdata(test_data / "eval" / name, 1)
    assert len(items) == len(rows) == 10000
    for k in range(0, 10000, 97):
        item = items[k]
        assert isinstance(item, Observation)
        assert item.metadata["redshift"] == float(rows["Z"][k])
        assert (item.ra, item.dec) == (float(rows["RA"][k]), float(rows["DEC"][k]))
        for j, b in enumerate("ugriz"):
            got = scalar(item, f"flux_{b}_sdss")
            assert got.value == float(rows["MODELFLUX"][k, j])
            assert got.error == pytest.approx(float(rows["MODELFLUX_IVAR"][k, j]) ** -0.5, rel=1e-6)
            assert got.convention == Convention("sdss", f"SDSS-{b}", "AB", "model", False)
            assert item.extras[f"sdss.extinction_{b}"].value == float(rows["EXTINCTION"][k, j])
    flagged = sum("missing_flux_j_2mass" in item.flags for item in items if isinstance(item, Observation))
    assert flagged == int((rows["J_M_EXT"] == 0).sum()) == 1, "magnitude 0 is no galaxy"
    first = items[0]
    assert isinstance(first, Observation)
    assert "NUV_FLUX_AUTO" in first.metadata["unused_columns"], "a flux whose unit nobody states"


@pytest.mark.real
def test_photoz_vvds(test_data: Path) -> None:
    name = "photoz_vvds_deep.parquet"
    options = ReadOptions(
        survey="cfhtls",
        system="AB",
        extinction_corrected=False,
        columns={
            "id": "ds_spectra.NUM", "ra": "ds_spectra.ALPHA", "dec": "ds_spectra.DELTA", "redshift": "ds_spectra.Z"
        },
    )  # fmt: skip
    items = real(test_data, name, options)
    table = pq.read_table(test_data / "eval" / name).to_pydict()
    assert [getattr(item, "id", None) for item in items] == [str(i) for i in table["ds_spectra.NUM"]]
    assert len(items) == 3665
    missing = sum("missing_cfhtls_u" in item.flags for item in items if isinstance(item, Observation))
    assert missing == sum(v == -99.9 for v in table["MAG_AUTO_U"]) == 463


@pytest.mark.real
def test_photoz_zcosmos(test_data: Path) -> None:
    name = "photoz_zcosmos_bright.parquet"
    options = ReadOptions(
        survey="cosmos",
        unit="mag",
        system="AB",
        kind="aperture",
        extinction_corrected=False,
        columns={"id": "id_zcosmos", **{band: f"{band}_photzi25" for band in "ugrizjk"}},
    )
    items = real(test_data, name, options)
    table = pq.read_table(test_data / "eval" / name).to_pydict()
    assert len(items) == 10427
    first = items[0]
    assert isinstance(first, Observation)
    assert first.id == str(table["id_zcosmos"][0])
    assert first.metadata["redshift"] == table["zpec"][0]
    assert (first.extras["cosmos.u"].value, first.extras["cosmos.u"].error) == (23.925, 0.039)
    gone = sum(v is None or v != v or v == -99.9 for v in table["i_photzi25"])
    assert sum("missing_cosmos_i" in item.flags for item in items if isinstance(item, Observation)) == gone == 544


@pytest.mark.real
def test_photoz_candels(test_data: Path) -> None:
    name = "photoz_candels_goodss.parquet"
    with pytest.raises(BadInput) as caught:
        real(test_data, name, OPTIONS)
    assert caught.value.code == "alias_ambiguous"
    table = pq.read_table(test_data / "eval" / name).to_pydict()
    bands = [column for column in table if column != "Z" and not column.endswith("_ERR")]
    options = ReadOptions(
        survey="candels",
        unit="uJy",
        system="AB",
        kind="aperture",
        extinction_corrected=False,
        columns={"redshift": "Z", **{band.replace("_", "-"): band for band in bands}},
    )
    items = real(test_data, name, options)
    assert len(items) == 1143
    assert len(bands) == 17
    for k, item in enumerate(items):
        assert isinstance(item, Observation)
        there = {band for band in bands if table[band][k] != -99.0}
        assert {key.removeprefix("candels.").replace("-", "_") for key in item.extras} == there


@pytest.mark.real
def test_desi_spectra_list(test_data: Path) -> None:
    items = real(test_data, "desi_spectra.csv", ReadOptions(survey="legacysurvey"))
    assert len(items) == 24
    first = items[0]
    assert isinstance(first, Observation)
    assert first.id == "39633345008634465"
    assert first.data["tok_flux_g"] == Scalar(
        3.237032651901245, "nanomaggy", None, Convention("legacysurvey", "DES-G", "AB", "model", False)
    )
    assert first.metadata["redshift"] == 0.36874355163716493
    assert first.metadata["class"] == "GALAXY"


@pytest.mark.real
def test_sdss_list_has_lost_the_digits_of_its_ids(test_data: Path) -> None:
    with pytest.raises(BadInput) as caught:
        real(test_data, "sdss_boss_spectra.csv", OPTIONS)
    assert caught.value.code == "id_inexact"
    items = real(test_data, "sdss_boss_spectra.csv", ReadOptions(columns={"id": "file"}))
    assert len(items) == 85
    assert all(isinstance(item, Observation) for item in items)


def test_columns_that_astropy_cannot_name() -> None:
    """It fails an assertion over a name, and an own variable over a form."""
    content = table_bytes(Table({"id": ["a"], "flux_g": [1.0]}), "fits")
    name = b"TTYPE2  = 'flux_g  '"
    for spoilt in (b"TTYPE2  = 5", b"TTYPE2  = '" + b"''" * 34 + b"'"):
        at = content.index(name)
        read_it = content[:at] + spoilt.ljust(80) + content[at + 80 :]
        (report,) = read_files([Source("a.fits", read_it)], ReadOptions(survey="legacysurvey"))
        assert report.error is not None
        assert report.error.code in ("damaged_file", "column_missing", "unknown_format")


def test_a_votable_in_no_encoding() -> None:
    content = table_bytes(Table({"id": ["a"], "flux_g": [1.0]}), "votable").replace(
        b'encoding="utf-8"', b'encoding="wtf-8"'
    )
    (report,) = read_files([Source("a.xml", content)])
    assert report.error is not None
    assert report.error.code == "damaged_file"


def test_a_field_longer_than_csv_takes() -> None:
    (report,) = read_files([Source("a.csv", b'id,"' + b"x" * 200_000 + b'"\na,1\n')])
    assert report.error is not None


@pytest.mark.parametrize("name", ["ra", "dec", "redshift"])
def test_several_values_a_row_where_one_is_needed(name: str) -> None:
    columns = {"id": ["a", "b"], "flux_g": [1.0, 2.0], "ra": [1.0, 2.0], "dec": [3.0, 4.0], "redshift": [0.1, 0.2]}
    table = Table(columns | {name: [[1.0, 2.0], [3.0, 4.0]]})
    (report,) = read_files([Source("a.fits", table_bytes(table, "fits"))], ReadOptions(survey="legacysurvey"))
    assert report.error is not None
    assert (report.error.code, report.error.field) == ("shape_mismatch", name)


def test_a_header_without_end(tmp_path: Path) -> None:
    """A YAML parser takes seven seconds for each MB."""
    lines = [f"# - {{name: c{n}, datatype: float64}}" for n in range(6000)]
    text = "\n".join(["# %ECSV 1.0", "# ---", "# datatype:", *lines, "a b", "1 2"])
    (report,) = read_files([Source("t.ecsv", text.encode())])
    assert report.error is not None
    assert report.error.code == "too_large"
    table = Table({"FLUX_G": [1.0]}, meta={"note": "x" * 200_000})
    table.write(tmp_path / "t.parquet")
    (report,) = read_files([Source.from_path(tmp_path / "t.parquet")])
    assert report.error is not None
    assert report.error.code == "too_large"


def test_a_unit_that_is_a_number() -> None:
    hdu = fits.BinTableHDU.from_columns([fits.Column(name, "D", array=[1.0]) for name in ("RA", "DEC", "FLUX_G")])
    hdu.header["TUNIT1"] = 5
    out = io.BytesIO()
    hdu.writeto(out)
    with pytest.raises(BadInput) as caught:
        read(out.getvalue(), replace(OPTIONS, survey="legacysurvey"), "t.fits")
    assert caught.value.code == "unit_unknown"


def test_dates_that_python_cannot_hold() -> None:
    table = pa.table({"FLUX_G": [1.0], "date": pa.array([-1_525_572_672], pa.int32()).cast(pa.date32())})
    out = io.BytesIO()
    pq.write_table(table, out)
    (report,) = read_files([Source("t.parquet", out.getvalue())])
    assert report.error is not None
    assert report.error.code == "damaged_file"
