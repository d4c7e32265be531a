"""Gaia XP coefficients: four formats say the same, BP and RP are told by name, ids keep every digit."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from astropy.table import Table

from albireo.observations import gaia
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.observation import Coefficients, Observation, Scalar
from albireo.observations.options import ReadOptions
from albireo.observations.source import Source

BIG = 5853498713190525696
"""A source_id; float64 cannot tell it from its neighbour BIG + 1."""
FORMATS = {"fits": "fits", "ecsv": "ascii.ecsv", "vot": "votable", "parquet": "parquet"}


def cells(value: Any, style: str = "()") -> str:
    return style[0] + ", ".join(repr(float(v)) for v in value) + style[1]


def csv_of(rows: list[dict[str, Any]]) -> Source:
    names = list(rows[0])
    lines = [",".join(names)]
    lines += [",".join(f'"{row[name]}"' if " " in str(row[name]) else str(row[name]) for name in names) for row in rows]
    return Source("xp.csv", "\n".join(lines).encode())


def row(**changes: Any) -> dict[str, Any]:
    base = {
        "source_id": BIG + 1,
        "bp_coefficients": cells(np.arange(55) + 0.5),
        "rp_coefficients": cells(-np.arange(55) - 0.25),
    }
    return {key: value for key, value in (base | changes).items() if value is not None}


def read(file: Source, **options: Any) -> list[Observation | AlbireoError]:
    return gaia.read_xp(file, ReadOptions(**options), ())


def one(file: Source, **options: Any) -> Observation:
    (item,) = read(file, **options)
    assert isinstance(item, Observation), item
    return item


def code_of(file: Source, **options: Any) -> str:
    with pytest.raises(BadInput) as caught:
        read(file, **options)
    assert caught.value.fix
    return caught.value.code


def coefficients(item: Observation, key: str) -> Coefficients:
    payload = item.data[key]
    assert isinstance(payload, Coefficients)
    return payload


def table() -> Table:
    rng = np.random.default_rng(2)
    values = Table()
    values["source_id"] = np.array([BIG, BIG + 1], np.int64)
    values["rp_coefficients"] = rng.normal(0, 100, (2, 55))  # before BP: order says nothing
    values["rp_coefficient_errors"] = rng.uniform(1, 2, (2, 55)).astype(np.float32)
    values["bp_coefficients"] = rng.normal(0, 100, (2, 55))
    values["bp_coefficient_errors"] = rng.uniform(1, 2, (2, 55)).astype(np.float32)
    values["bp_n_relevant_bases"] = np.array([53, 12], np.int16)
    values["ra"] = np.array([150.0, 151.0])
    values["dec"] = np.array([2.0, -3.0])
    values["ra"].unit = values["dec"].unit = "deg"
    values["phot_g_mean_flux"] = np.array([100.0, np.nan])
    values["phot_g_mean_flux"].unit = "electron / s"
    values["phot_g_mean_flux_error"] = np.array([1.0, 1.0])
    values["phot_bp_mean_mag"] = np.array([18.0, 19.0])
    values["parallax"] = np.array([-0.5, 1.5])
    values["parallax"].unit = "mas"
    return values


def save(values: Table, kind: str) -> Source:
    stream = io.BytesIO()
    if kind == "ecsv":
        text = io.StringIO()
        values.write(text, format="ascii.ecsv", delimiter=",")
        return Source("xp.ecsv", text.getvalue().encode())
    if kind == "parquet":
        arrays = {name: pa.array(values[name].tolist()) for name in values.colnames}
        pyarrow.parquet.write_table(pa.table(arrays), stream)
        return Source("xp.parquet", stream.getvalue())
    values.write(stream, format=FORMATS[kind])
    return Source(f"xp.{kind}", stream.getvalue())


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_says_the_same(kind: str) -> None:
    values = table()
    file = save(values, kind)
    assert gaia.sniff_xp(file)
    items = read(file, release="dr3")
    assert len(items) == 2
    for i, item in enumerate(items):
        assert isinstance(item, Observation)
        assert item.id == str(BIG + i)
        for xp, key in (("bp", "tok_xp_bp"), ("rp", "tok_xp_rp")):
            payload = coefficients(item, key)
            assert np.array_equal(payload.values, values[f"{xp}_coefficients"][i].astype(np.float32))
            assert payload.errors is not None
            assert np.array_equal(payload.errors, values[f"{xp}_coefficient_errors"][i])
            assert payload.unit == "electron / s"
            assert payload.values.dtype.isnative
        assert (item.ra, item.dec) == (values["ra"][i], values["dec"][i])
        assert item.metadata["bp_n_relevant_bases"] == (53, 12)[i]
        parallax, magnitude = item.data["tok_parallax"], item.extras["phot_bp_mean_mag"]
        assert isinstance(parallax, Scalar)
        assert (parallax.value, parallax.unit) == ((-0.5, 1.5)[i], "mas")
        assert magnitude.convention is not None
        assert (magnitude.convention.system, magnitude.convention.band) == ("Vega", "BP")
        assert item.provenance["tok_xp_bp"].row == i
    first, second = items
    assert isinstance(first, Observation)
    assert isinstance(second, Observation)
    flux = first.data["tok_flux_g_gaia"]
    assert isinstance(flux, Scalar)
    assert (flux.value, flux.error, flux.unit) == (100.0, 1.0, "electron / s")
    assert flux.convention is not None
    assert (flux.convention.kind, flux.convention.extinction_corrected, flux.convention.release) == (
        "mean", False, "dr3",
    )  # fmt: skip
    assert "tok_flux_g_gaia" not in second.data  # NaN is missing, not zero


@pytest.mark.parametrize("style", ["()", "[]", "{}"])
def test_arrays_as_text(style: str) -> None:
    item = one(csv_of([row(bp_coefficients=cells(np.arange(55), style))]))
    assert coefficients(item, "tok_xp_bp").values.tolist() == list(range(55))
    assert coefficients(item, "tok_xp_rp").values[1] == -1.25
    assert coefficients(item, "tok_xp_bp").errors is None
    assert item.id == str(BIG + 1)


def test_photometers_are_told_by_name() -> None:
    values = row()
    turned = {name: values[name] for name in ("rp_coefficients", "source_id", "bp_coefficients")}
    for key in ("tok_xp_bp", "tok_xp_rp"):
        a, b = (coefficients(one(csv_of([cells_])), key).values for cells_ in (values, turned))
        assert np.array_equal(a, b)


def test_one_photometer_alone() -> None:
    item = one(csv_of([row(rp_coefficients=None)]))
    assert item.data.keys() == {"tok_xp_bp"}
    assert item.flags == ("missing_rp",)
    item = one(csv_of([row(bp_coefficients="")]))
    assert item.data.keys() == {"tok_xp_rp"}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"bp_coefficients": cells(np.arange(54))}, "shape_mismatch"),
        ({"rp_coefficients": cells(np.arange(110))}, "shape_mismatch"),
        ({"bp_coefficients": cells([*np.arange(54), np.nan])}, "not_finite"),
        ({"bp_coefficients": cells([*np.arange(54), np.inf])}, "not_finite"),
        ({"bp_coefficients": cells(np.arange(55)).replace("3.0", "null", 1)}, "not_finite"),
        ({"bp_coefficients": "(one, two)"}, "value_out_of_range"),
        ({"bp_coefficient_errors": cells(np.ones(3))}, "shape_mismatch"),
        ({"bp_coefficient_errors": cells(-np.ones(55))}, "value_out_of_range"),
        ({"bp_coefficients": "", "rp_coefficients": ""}, "value_missing"),
        ({"source_id": ""}, "value_missing"),
    ],
)
def test_a_bad_row_fails_alone(changes: dict[str, Any], code: str) -> None:
    good = {"source_id": BIG} | {key: row()[key] for key in ("bp_coefficients", "rp_coefficients")}
    if "bp_coefficient_errors" in changes:
        good["bp_coefficient_errors"] = cells(np.ones(55))
    bad = good | changes
    items = read(csv_of([good, bad, good]))
    assert isinstance(items[0], Observation)
    assert isinstance(items[2], Observation)
    assert isinstance(items[1], AlbireoError)
    assert items[1].code == code
    assert items[1].file == "xp.csv"
    assert "row 1" in str(items[1])
    assert items[1].fix


def test_files_that_cannot_be_used() -> None:
    assert code_of(csv_of([row(source_id=None)])) == "column_missing"
    assert one(csv_of([row(source_id=None, name="7")]), columns={"source_id": "name"}).id == "7"
    assert code_of(csv_of([row()]), survey="sdss") == "statement_conflict"
    values = table()
    values["bp_coefficients"].unit = "erg"
    assert code_of(save(values, "fits")) == "unit_unknown"


def test_ids_that_went_through_a_float_are_refused() -> None:
    values = table()
    values["source_id"] = values["source_id"].astype(np.float64)
    items = read(save(values, "fits"))
    assert [item.code for item in items if isinstance(item, AlbireoError)] == ["value_out_of_range"] * 2


def test_units_are_honoured() -> None:
    values = table()
    values["parallax"].unit = "arcsec"
    item = read(save(values, "fits"))[0]
    assert isinstance(item, Observation)
    parallax = item.data["tok_parallax"]
    assert isinstance(parallax, Scalar)
    assert parallax.value == pytest.approx(-500)


@pytest.mark.parametrize("unit", ["'electron'.s**-1", "e-/s", "electron/s", "electron s-1"])
@pytest.mark.filterwarnings("ignore::astropy.units.UnitsWarning")
def test_an_archive_file_as_the_archive_writes_it(unit: str) -> None:
    names = {"source_id": "int64", "bp_coefficients": "string", "phot_g_mean_flux": "float64", "parallax": "float64"}
    lines = ["# %ECSV 1.0", "# ---", "# delimiter: ','", "# datatype:"]
    for name, kind in names.items():
        lines += ["# -", f"#   name: {name}", f"#   datatype: {kind}"]
        lines += ["#   subtype: 'float64[null]'"] if kind == "string" else []
        lines += [f'#   unit: "{unit}"'] if name.startswith("phot") else []
    lines += [",".join(names), f'{BIG},"{cells(np.arange(55), "[]").replace(" ", "")}",12.5,null']
    item = one(Source("gaia.ecsv", "\n".join(lines).encode()))
    assert coefficients(item, "tok_xp_bp").values[54] == 54
    flux = item.data["tok_flux_g_gaia"]
    assert isinstance(flux, Scalar)
    assert flux.value == 12.5
    assert "tok_parallax" not in item.data


def test_votables_may_not_name_other_files(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\x00" * 8 + b"\x2a" * 8)
    document = save(table()[["source_id", "bp_coefficients"]], "vot").content.decode()
    for address in (f"file://{tmp_path}/secret", "http://127.0.0.1:9/secret"):
        start, end = document.index("<DATA>"), document.index("</DATA>")
        stream = f'<DATA><BINARY><STREAM encoding="a>b" href="{address}"/></BINARY>'
        file = Source("xp.vot", (document[:start] + stream + document[end:]).encode())
        assert gaia.sniff_xp(file)
        assert code_of(file) == "reference_refused"
    entity = document.replace("<VOTABLE", '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/hostname">]>\n<VOTABLE', 1)
    assert code_of(Source("xp.vot", entity.encode())) == "entities_refused"
    assert code_of(Source("xp.vot", document[: len(document) // 2].encode())) == "damaged_file"


def test_foreign_tables_are_not_claimed() -> None:
    for content in (b"source_id,ra,dec\n1,2,3\n", b"\x89PNG", b"bp_coefficients"):
        assert not gaia.sniff_xp(Source("x", content))


@pytest.mark.real
def test_real_files_of_four_formats_are_identical(test_data: Path) -> None:
    items = {
        kind: read(Source.from_path(test_data / f"raw/gaia/XP_CONTINUOUS_RAW.{kind}"))
        for kind in ("csv", "ecsv", "fits", "xml")
    }
    raw = Table.read(test_data / "raw/gaia/XP_CONTINUOUS_RAW.fits")
    for kind, found in items.items():
        assert len(found) == 2, kind
        for i, item in enumerate(found):
            assert isinstance(item, Observation)
            assert item.id == ("5853498713190525696", "5762406957886626816")[i]
            for xp, key in (("bp", "tok_xp_bp"), ("rp", "tok_xp_rp")):
                payload = coefficients(item, key)
                assert np.array_equal(payload.values, np.array(raw[f"{xp}_coefficients"][i]).astype(np.float32))
                assert payload.errors is not None
                assert np.array_equal(payload.errors, np.array(raw[f"{xp}_coefficient_errors"][i], np.float32))
            reference = items["fits"][i]
            assert isinstance(reference, Observation)
            assert item.metadata == reference.metadata
    first = items["csv"][0]
    assert isinstance(first, Observation)
    assert first.metadata["bp_n_relevant_bases"] == 53
    assert first.metadata["rp_n_relevant_bases"] == 40
