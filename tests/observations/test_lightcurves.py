"""PLAsTiCC and plain tables of epochs; and what is said of no column is asked for."""

from __future__ import annotations

import contextlib
import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import Table

from albireo.observations import lightcurves, plasticc, tables
from albireo.observations.bands import band_name
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.observation import LightCurve, Observation
from albireo.observations.options import ReadOptions
from albireo.observations.source import Source

OPTIONS = ReadOptions()
STATED = ReadOptions(survey="PS1", system="AB", zero_point=25.0, extinction_corrected=False)
Items = list[Observation | AlbireoError]


def curve(item: Observation | AlbireoError) -> LightCurve:
    assert isinstance(item, Observation), item
    payload = item.data["lightcurve"]
    assert isinstance(payload, LightCurve)
    return payload


def error_of(item: Observation | AlbireoError) -> AlbireoError:
    assert isinstance(item, AlbireoError), item
    return item


def read(text: str | bytes, options: ReadOptions = OPTIONS, name: str = "t.csv", companions: Any = ()) -> Items:
    source = Source(name, text.encode() if isinstance(text, str) else text)
    row = next(row for row in (*lightcurves.FORMATS, *tables.FORMATS) if row[2](source))
    assert row[0] in ("table_lightcurve", "plasticc", "plasticc_metadata"), row[0]
    items: Items = row[3](source, options, companions)
    return items


# PLAsTiCC

PLASTICC = """\
object_id,mjd,passband,flux,flux_err,detected
9007199254740993,59752.4,2,-544.8,3.6,1
9007199254740993,59750.4,1,-816.4,5.5,0
615,59760.1,5,10.0,2.0,1
615,59761.1,0,11.0,2.0,1
"""
METADATA = """\
object_id,ra,decl,ddf,hostgal_specz,hostgal_photoz,target,true_z
9007199254740993,349.046051,-61.943836,1,0.25,-9,92,0.31
"""


def test_plasticc() -> None:
    metadata = Source("meta.csv", METADATA.encode())
    source = Source("lc.csv.gz", gzip.compress(PLASTICC.encode()))
    assert plasticc.is_plasticc(source)
    assert plasticc.plasticc_completes(source, metadata, OPTIONS)
    assert not plasticc.plasticc_completes(source, source, OPTIONS)
    first, second = plasticc.read_plasticc(source, OPTIONS, [metadata])
    got = curve(first)
    assert isinstance(first, Observation)
    assert isinstance(second, Observation)
    assert first.id == "9007199254740993", "2^53 + 1"
    assert got.time.tolist() == [59750.4, 59752.4]
    assert got.band.tolist() == ["LSST-g", "LSST-r"]
    assert got.detected.tolist() == [False, True]
    assert got.flux.tolist() == [-816.4, -544.8], "a non-detection keeps its measured flux"
    assert set(got.zero_point.tolist()) == {27.5}
    assert got.extinction_corrected
    assert (first.ra, first.dec) == (349.046051, -61.943836)
    assert first.metadata["redshift"] == 0.25
    assert first.metadata["target"] == 92
    assert "hostgal_photoz" not in first.metadata, "-9 is no value"
    assert set(first.data) == {"lightcurve"}
    assert curve(second).band.tolist() == ["LSST-y", "LSST-u"]
    assert "metadata_missing" in second.flags


def test_plasticc_alone_and_its_metadata_alone() -> None:
    assert len(read(PLASTICC)) == 2
    with pytest.raises(BadInput) as caught:
        read(METADATA)
    assert caught.value.code == "companion_missing"


def test_plasticc_with_a_wrong_passband_fails_for_that_object_only() -> None:
    first, second = read(PLASTICC.replace("59760.1,5", "59760.1,6"))
    assert isinstance(first, Observation)
    assert error_of(second).code == "band_unknown"
    assert "615" in error_of(second).message


def test_plasticc_cannot_be_said_to_be_uncorrected() -> None:
    with pytest.raises(BadInput) as caught:
        read(PLASTICC, ReadOptions(extinction_corrected=False))
    assert caught.value.code == "statement_conflict"


# Plain tables

TABLE = """\
time,band,flux,fluxerr,zp,zpsys
55002.0,ps1::r,20.0,2.0,25.0,ab
55001.0,ps1::g,10.0,1.0,27.5,ab
"""
CORRECTED = ReadOptions(extinction_corrected=True)


def test_sncosmo_names() -> None:
    (item,) = read(TABLE, CORRECTED, name="sn2011fe.csv")
    got = curve(item)
    assert isinstance(item, Observation)
    assert item.id == "sn2011fe"
    assert got.time.tolist() == [55001.0, 55002.0]
    assert got.band.tolist() == ["PS1-g", "PS1-r"]
    assert got.zero_point.tolist() == [27.5, 25.0], "each row keeps its own"
    assert got.system.tolist() == ["AB", "AB"]
    assert got.extinction_corrected


def drop(*columns: str) -> str:
    rows = [line.split(",") for line in TABLE.splitlines()]
    keep = [k for k, name in enumerate(rows[0]) if name not in columns]
    return "\n".join(",".join(row[k] for k in keep) for row in rows) + "\n"


@pytest.mark.parametrize(
    ("text", "options", "code"),
    [
        (TABLE, OPTIONS, "convention_missing"),  # extinction
        (drop("zpsys"), CORRECTED, "convention_missing"),
        (drop("zp"), CORRECTED, "zero_point_missing"),
        (TABLE.replace("ps1::g", "g"), CORRECTED, "survey_missing"),
        (TABLE.replace("ps1::g", "qq"), CORRECTED, "band_unknown"),
        (TABLE.replace("ps1::g", ""), CORRECTED, "band_missing"),
        (TABLE.replace("55001.0", "2455001.5"), CORRECTED, "time_unit"),
        (TABLE.replace("55001.0", "-12.5"), CORRECTED, "time_unit"),
        (TABLE.replace("time,", "jd,"), CORRECTED, "time_unit"),
        (TABLE.replace("zp,zpsys", "zp,x").replace("ab", "vega"), CORRECTED, "convention_missing"),
        (TABLE.replace(",ab", ",bd17"), CORRECTED, "convention_missing"),
        (TABLE, ReadOptions(extinction_corrected=True, zero_point=25.0), "statement_conflict"),
        (TABLE, ReadOptions(extinction_corrected=True, system="Vega"), "statement_conflict"),
        (TABLE.replace("1.0,27.5", "-1.0,27.5"), CORRECTED, "value_out_of_range"),
        (TABLE.replace("20.0", "nan").replace("10.0", ""), CORRECTED, "no_epoch"),
    ],
)
def test_what_is_not_said_is_asked_for(text: str, options: ReadOptions, code: str) -> None:
    with contextlib.suppress(AlbireoError):
        item = read(text, options)[0]
        assert error_of(item).code == code
        assert error_of(item).file == "t.csv"
        assert error_of(item).field
        return
    with pytest.raises(AlbireoError) as caught:
        read(text, options)
    assert caught.value.code == code


def test_julian_dates_only_in_a_column_called_jd() -> None:
    text = TABLE.replace("time,", "jd,").replace("55002.0", "2455002.5").replace("55001.0", "2455001.75")
    assert curve(read(text, CORRECTED)[0]).time.tolist() == [55001.25, 55002.0]


def test_a_unit_is_a_zero_point() -> None:
    table = Table({"mjd": [55000.0], "band": ["LSST-g"], "flux": [3.0], "flux_err": [1.0]})
    for unit, zero_point in (("nJy", 31.4), ("uJy", 23.9), ("Jy", 8.9)):
        table["flux"].unit = unit
        out = io.StringIO()
        table.meta = {"extinction_corrected": False, "system": "AB", "name": "x1", "ra": 10.0, "dec": -5.0, "z": 0.5}
        table.write(out, format="ascii.ecsv", overwrite=True)
        (item,) = read(out.getvalue(), name="lc.ecsv")
        assert isinstance(item, Observation)
        assert curve(item).zero_point.tolist() == [zero_point]
        assert (item.id, item.ra, item.dec, item.metadata["redshift"]) == ("x1", 10.0, -5.0, 0.5)
        with pytest.raises(BadInput) as caught:
            read(out.getvalue(), ReadOptions(zero_point=1.0))
        assert caught.value.code == "statement_conflict"


def test_magnitudes_limits_and_what_was_not_observed() -> None:
    text = (
        "mjd,band,mag,magerr,limit\n55001,g,21.4,0.1,\n55002,g,nan,nan,22.0\n55003,g,nan,nan,\n"
        "55004,g,inf,,\n55005,g,99,99,21.0\n"
    )
    (item,) = read(text, STATED)
    got = curve(item)
    assert isinstance(item, Observation)
    assert got.time.tolist() == [55001.0, 55002.0, 55004.0, 55005.0], "NaN without a limit is no observation"
    assert got.detected.tolist() == [True, False, False, False]
    np.testing.assert_allclose(got.flux[0], 10 ** (0.4 * 2.5))
    np.testing.assert_allclose(got.flux_err[0] / got.flux[0], 0.1 * np.log(10) / 2.5)
    np.testing.assert_array_equal(got.limit, [np.nan, 22.0, np.nan, 21.0])
    assert set(item.flags) == {"not_observed_epochs", "non_detections", "from_magnitude"}


def test_marked_upper_limits_are_limits() -> None:
    text = "mjd,band,mag,magerr,upperlimit\n55001,g,21.4,0.1,F\n55002,g,20.0,,T\n"
    text = text.replace(",F", ",false").replace(",T", ",true")
    got = curve(read(text, STATED)[0])
    assert got.detected.tolist() == [True, False]
    assert np.isnan(got.flux[1])
    assert got.limit[1] == 20.0


def test_many_objects_fail_alone_and_keep_their_order_and_names() -> None:
    text = (
        "name,mjd,band,flux,flux_err,z\n007,55002,g,1,1,0.1\nb,2455002.5,g,1,1,\n007,55001,r,2,1,0.1\n"
        "c,55001,g,1,1,0.1\nc,55002,g,1,1,0.2\n"
    )
    items = read(text, STATED)
    first = items[0]
    assert isinstance(first, Observation)
    assert first.id == "007"
    assert curve(first).flux.tolist() == [2.0, 1.0]
    assert first.metadata["redshift"] == 0.1
    assert error_of(items[1]).code == "time_unit"
    assert error_of(items[2]).code == "statement_conflict", "two redshifts of one object"


def test_float_ids_are_refused() -> None:
    table = pa.table({"object_id": [1.5e18, 1.5e18], "mjd": [55000.0, 55001.0], "band": ["g", "g"], "flux": [1.0, 2.0]})
    out = io.BytesIO()
    pq.write_table(table, out)
    with pytest.raises(BadInput) as caught:
        read(out.getvalue(), STATED, "t.parquet")
    assert caught.value.code == "id_inexact"


@pytest.mark.parametrize("format", ["fits", "votable", "parquet", "ascii.ecsv"])
def test_every_container_gives_the_same_light_curve(format: str) -> None:
    table = Table(
        {
            "objid": np.array([2**53 + 1] * 3),
            "mjd": [55003.0, 55001.0, 55002.0],
            "filter": ["g", "r", "g"],
            "flux": np.array([3.0, 1.0, 2.0], ">f4"),
            "fluxerr": [1.0, 1.0, 1.0],
        }
    )
    out = io.BytesIO() if format != "ascii.ecsv" else io.StringIO()
    if format == "parquet":
        pq.write_table(pa.table({name: table[name].tolist() for name in table.colnames}), out)
    else:
        table.write(out, format=format)
    (item,) = read(out.getvalue(), STATED, "t")
    got = curve(item)
    assert isinstance(item, Observation)
    assert item.id == "9007199254740993"
    assert got.time.tolist() == [55001.0, 55002.0, 55003.0]
    assert got.flux.tolist() == [1.0, 2.0, 3.0]
    assert got.band.tolist() == ["PS1-r", "PS1-g", "PS1-g"]
    assert got.flux.dtype == np.dtype("=f8")


def test_named_columns_and_reading_leaves_the_source_alone() -> None:
    text = "t,b,f,e\n55001,g,1,1\n55000,g,2,1\n"
    source = Source("odd.csv", text.encode())
    options = ReadOptions(
        survey="PS1",
        system="AB",
        zero_point=25.0,
        extinction_corrected=False,
        columns={"mjd": "t", "band": "b", "flux": "f", "flux_err": "e"},
    )
    (item,) = tables.read_table(source, options, [])
    assert curve(item).flux.tolist() == [2.0, 1.0]
    assert source.content == text.encode()
    with pytest.raises(BadInput) as caught:
        tables.read_table(source, ReadOptions(columns={"mjd": "t", "band": "b", "flux": "nothing"}), [])
    assert caught.value.code == "column_unknown"


@pytest.mark.parametrize(
    ("text", "survey", "expected"),
    [
        ("g", "PS1", "PS1-g"),
        ("g", "Pan-STARRS1", "PS1-g"),
        ("ztfg", None, "ZTF-g"),
        ("bessellb", None, "Bessell-B"),
        ("lsst_y", None, "LSST-y"),
        ("SDSS u", None, "SDSS-u"),
        ("des-Y", None, "DES-Y"),
        ("orange", "ATLAS", "ATLAS-o"),
        ("Ks", "2MASS", "2MASS-K"),
    ],
)
def test_band_names(text: str, survey: str | None, expected: str) -> None:
    assert band_name(text, survey) == expected
    assert band_name(expected) == expected


def test_band_names_tell_upper_from_lower_case() -> None:
    """R of Cousins is not r of Sloan."""
    with pytest.raises(BadInput):
        band_name("R", "SDSS")
    with pytest.raises(BadInput):
        band_name("g", "Bessell")


# Real tables


@pytest.mark.real
def test_pantheon_plus(test_data: Path) -> None:
    """Bands of mixed surveys: the DES ones are read when the survey is stated, with the zero point in the name."""
    path = test_data / "eval" / "pantheonplus_ia_lightcurves.parquet"
    options = ReadOptions(survey="DES", system="AB", extinction_corrected=False)
    source = Source.from_path(path)
    assert lightcurves.is_table_lightcurve(source)
    items = lightcurves.read_table_lightcurve(source, options, [])
    table = pq.read_table(path).to_pydict()
    by_name = {item.id: item for item in items if isinstance(item, Observation)}
    assert len(items) == len(set(table["name"])) == 946
    name = "DES3YR_1289600"
    rows = [k for k, n in enumerate(table["name"]) if n == name]
    rows.sort(key=lambda k: table["mjd"][k])
    got = curve(by_name[name])
    assert got.time.tolist() == [table["mjd"][k] for k in rows]
    assert got.flux.tolist() == [table["fluxcal_zp27p5"][k] for k in rows]
    assert got.flux_err.tolist() == [table["fluxcal_err"][k] for k in rows]
    assert set(got.zero_point.tolist()) == {27.5}


@pytest.mark.real
def test_superluminous_supernovae_keep_each_row_s_system(test_data: Path) -> None:
    path = test_data / "eval" / "slsne_lightcurves.parquet"
    items = lightcurves.read_table_lightcurve(
        Source.from_path(path), ReadOptions(survey="SDSS", extinction_corrected=False), []
    )
    assert len(items) == 265
    read_ = [item for item in items if isinstance(item, Observation)]
    assert len(read_) >= 150
    assert {error_of(item).code for item in items if isinstance(item, AlbireoError)} <= {"band_unknown", "no_epoch"}
    table = pq.read_table(path).to_pydict()
    for item in read_:
        systems = {table["system"][k] for k, n in enumerate(table["name"]) if n == item.id}
        assert set(curve(item).system.tolist()) <= systems
