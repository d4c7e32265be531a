"""SNANA files: the pair, the text, and every way they are known to be misread."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from albireo.observations import reading, snana
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.lightcurves import FORMATS
from albireo.observations.observation import LightCurve, Observation
from albireo.observations.options import ReadOptions
from albireo.observations.source import Source

OPTIONS = ReadOptions()


def curve(item: Observation | AlbireoError) -> LightCurve:
    assert isinstance(item, Observation), item
    payload = item.data["lightcurve"]
    assert isinstance(payload, LightCurve)
    return payload


def error_of(item: Observation | AlbireoError) -> AlbireoError:
    assert isinstance(item, AlbireoError), item
    return item


def fits_bytes(columns: list[fits.Column], cards: dict[str, object]) -> bytes:
    primary = fits.PrimaryHDU()
    for key, value in cards.items():
        primary.header[f"HIERARCH {key}" if len(key) > 8 else key] = value
    out = io.BytesIO()
    fits.HDUList([primary, fits.BinTableHDU.from_columns(columns)]).writeto(out)
    return out.getvalue()


def pair(
    name: str = "FOO",
    *,
    survey: str = "DES",
    bands: tuple[str, ...] = ("g", "r", "g"),
    band_column: str = "FLT",
    ids: tuple[str, ...] = ("000012", "1991bg"),
    cards: dict[str, object] | None = None,
    photflag: tuple[int, ...] = (0, 0, 0),
    files: tuple[str, str] | None = None,
) -> tuple[Source, Source]:
    """Two objects (or as many as there are ids) with the same three epochs, written out of order."""
    n, per = len(ids), len(bands)
    header = {"SURVEY": survey, "VERSION": name, "PHOTFILE": f"{name}_PHOT.FITS", **(cards or {})}
    first = [1 + i * (per + 1) for i in range(n)]
    head = [
        fits.Column("SNID", "16A", array=np.array([f" {i} " for i in ids])),
        fits.Column("RA", "1D", array=np.full(n, 30.5)),
        fits.Column("DEC", "1D", array=np.full(n, -9.0)),
        fits.Column("NOBS", "1J", array=np.full(n, per)),
        fits.Column("PTROBS_MIN", "1J", array=np.array(first)),
        fits.Column("PTROBS_MAX", "1J", array=np.array(first) + per - 1),
        fits.Column("MWEBV", "1E", array=np.full(n, 0.25)),
        fits.Column("PEAKMJD", "1E", array=np.full(n, -9.0)),
        fits.Column("REDSHIFT_HELIO", "1E", array=np.full(n, -9.0)),
        fits.Column("REDSHIFT_FINAL", "1E", array=np.full(n, 0.5)),
        fits.Column("SNTYPE", "1J", array=np.full(n, 1)),
    ]
    time, flux = [57002.0, 57001.0, 57003.0][:per], [20.0, 10.0, -3.0][:per]
    phot = [
        fits.Column("MJD", "1D", array=np.array((*time, -777.0) * n)),
        fits.Column(band_column, "20A", array=np.array((*bands, "-") * n)),
        fits.Column("PHOTFLAG", "1J", array=np.array((*photflag[:per], 0) * n)),
        fits.Column("FLUXCAL", "1E", array=np.array((*flux, -777.0) * n)),
        fits.Column("FLUXCALERR", "1E", array=np.array((*[2.0] * per, -777.0) * n)),
    ]
    names = files or (f"{name}_HEAD.FITS", f"{name}_PHOT.FITS")
    return Source(names[0], fits_bytes(head, header)), Source(names[1], fits_bytes(phot, header))


def test_rows_of_an_object_are_counted_from_one_both_ends_included_and_sorted() -> None:
    head, phot = pair()
    first, second = snana.read_head(head, OPTIONS, [phot])
    for item in (first, second):
        got = curve(item)
        assert got.time.tolist() == [57001.0, 57002.0, 57003.0]
        assert got.flux.tolist() == [10.0, 20.0, -3.0]
        assert got.flux_err.tolist() == [2.0, 2.0, 2.0]
        assert got.band.tolist() == ["DES-r", "DES-g", "DES-g"]
        assert set(got.zero_point.tolist()) == {27.5}
        assert set(got.system.tolist()) == {"AB"}
        assert got.kind == "difference"
        assert not got.extinction_corrected
        assert got.time.dtype.isnative
        assert got.flux.dtype.isnative


def test_names_are_no_numbers_and_sentinels_are_no_values() -> None:
    head, phot = pair()
    item = snana.read_head(head, OPTIONS, [phot])[0]
    assert isinstance(item, Observation)
    assert item.id == "000012"
    assert "peakmjd" not in item.metadata
    assert "redshift_helio" not in item.metadata
    assert item.metadata["redshift"] == item.metadata["redshift_final"] == 0.5
    assert item.metadata["redshift_frame"] == "CMB"
    assert item.metadata["mwebv"] == 0.25
    assert item.metadata["phot_file"] == "FOO_PHOT.FITS"
    assert (item.ra, item.dec) == (30.5, -9.0), "-9 is a declination"
    assert set(item.data) == {"lightcurve"}, "labels are metadata, never data"


@pytest.mark.parametrize(
    ("survey", "written", "expected"),
    [
        ("DES", "g", "DES-g"),
        ("FOUNDATION", "g", "PS1-g"),
        ("PS1MD", "z", "PS1-z"),
        ("LSST", "LSST-u", "LSST-u"),
        ("FOUNDATION", "PS1-g", "PS1-g"),
        ("SOMETHING", "DES-g", "DES-g"),
        ("LSST", "Y", "LSST-y"),
    ],
)
@pytest.mark.parametrize("column", ["FLT", "BAND"])
def test_one_spelling_of_bands(survey: str, written: str, expected: str, column: str) -> None:
    head, phot = pair(survey=survey, bands=(written,), band_column=column)
    assert curve(snana.read_head(head, OPTIONS, [phot])[0]).band.tolist() == [expected]


def test_a_bare_band_without_survey_and_a_band_of_no_table() -> None:
    head, phot = pair(survey="", bands=("g",))
    assert error_of(snana.read_head(head, OPTIONS, [phot])[0]).code == "survey_missing"
    told = snana.read_head(head, ReadOptions(survey="PS1"), [phot])[0]
    assert curve(told).band.tolist() == ["PS1-g"]
    head, phot = pair(survey="DES", bands=("q",))
    error = error_of(snana.read_head(head, OPTIONS, [phot])[0])
    assert error.code == "band_unknown"
    assert error.file == "FOO_HEAD.FITS"
    assert error.fix


def test_one_file_of_a_pair_is_not_enough() -> None:
    head, phot = pair()
    for read, source, other in ((snana.read_head, head, "FOO_PHOT.FITS"), (snana.read_phot, phot, "FOO_HEAD.FITS")):
        with pytest.raises(BadInput) as caught:
            read(source, OPTIONS, [])
        assert caught.value.code == "companion_missing"
        assert other in str(caught.value.fix)


def test_pairs_find_each_other_among_many() -> None:
    sources = [*pair("A"), *pair("B", ids=("x", "y", "z"))]
    a_head, a_phot, b_head, b_phot = sources
    assert [snana.head_completes(a_head, s, OPTIONS) for s in sources] == [False, True, False, False]
    assert [snana.head_completes(b_head, s, OPTIONS) for s in sources] == [False, False, False, True]
    assert len(snana.read_head(b_head, OPTIONS, [b_phot])) == 3
    assert len(snana.read_head(a_head, OPTIONS, [a_phot])) == 2


def test_pairs_of_one_version_are_told_by_name_and_renamed_ones_by_content() -> None:
    # Chunks of one simulation share VERSION and can have equal lengths; PHOTFILE tells them apart.
    one, two = pair("SIM-01", cards={"VERSION": "SIM"}), pair("SIM-02", cards={"VERSION": "SIM"})
    assert snana.head_completes(one[0], one[1], OPTIONS)
    assert not snana.head_completes(one[0], two[1], OPTIONS)
    renamed = pair("C", files=("upload1", "upload2"))
    other = pair("D", files=("upload3", "upload4"))
    assert snana.head_completes(renamed[0], renamed[1], OPTIONS)
    assert not snana.head_completes(renamed[0], other[1], OPTIONS)
    zipped = Source("A_PHOT.FITS.gz", gzip.compress(pair("A")[1].content))
    assert snana.head_completes(pair("A")[0], zipped, OPTIONS)


def test_a_phot_of_another_head_is_noticed() -> None:
    head, _ = pair("A", ids=("a", "b", "c"))
    _, phot = pair("A", ids=("a", "b"))
    with pytest.raises(BadInput) as caught:
        snana.read_head(head, OPTIONS, [phot])
    assert caught.value.code == "shape_mismatch"
    head, _ = pair("A")
    _, shifted = pair("A", bands=("g", "r"), ids=("a", "b", "c"))
    codes = {error_of(item).code for item in snana.read_head(head, OPTIONS, [shifted])}
    assert codes == {"shape_mismatch"}, "separator rows among the epochs"


def test_twins_fail_and_the_others_are_read() -> None:
    head, phot = pair(ids=("a", "b", "a"))
    items = snana.read_head(head, OPTIONS, [phot])
    assert [isinstance(item, Observation) for item in items] == [False, True, False]
    assert error_of(items[0]).code == "id_duplicate"


def test_applied_extinction_and_detection_bits_are_taken_from_the_cards() -> None:
    head, phot = pair(cards={"MWEBV_APPLYFLAG": 1, "PHOTFLAG_DETECT": 4096}, photflag=(4096, 0, 4097))
    item = snana.read_head(head, OPTIONS, [phot])[0]
    got = curve(item)
    assert got.extinction_corrected
    assert got.detected.tolist() == [False, True, True], "in the order of time"
    assert isinstance(item, Observation)
    assert item.metadata["photflag"] == (0, 4096, 4097)
    conflict = snana.read_head(head, ReadOptions(extinction_corrected=False), [phot])[0]
    assert error_of(conflict).code == "statement_conflict"


def test_damage_is_a_typed_error_and_never_stops_pairing() -> None:
    head, phot = pair(ids=tuple(f"sn{i}" for i in range(400)))
    cut = Source(phot.name, phot.content[: len(phot.content) // 3])
    assert snana.head_completes(head, cut, OPTIONS) in (True, False)
    with pytest.raises(AlbireoError) as caught:
        snana.read_head(head, OPTIONS, [cut])
    assert caught.value.code in ("damaged_file", "companion_missing")


TEXT = """\
DOCUMENTATION:
  PURPOSE: nothing
  SNID: not this one
DOCUMENTATION_END:
SURVEY: PS1MD   # a comment
SNID: 000123
IAUC: UNKNOWN
RA:   53.5 deg   DECL: -28.25 deg
MWEBV: 0.0071 +- 0.0006 MW E(B-V)
REDSHIFT_FINAL: 0.0247 +- 0.0001 (CMB)
SEARCH_PEAKMJD: -9
words without a key
NOBS: 3
NVAR: 5
VARLIST: MJD  FLT FIELD FLUXCAL FLUXCALERR
OBS: 55003.0 r NULL  3.0 1.0
OBS: 55001.0 g NULL -1.5 1.5
OBS: 55002.0 PS1-i NULL 2.0 -9
END:
"""


def read_text(text: str, options: ReadOptions = OPTIONS) -> list[Observation | AlbireoError]:
    source = Source("sn.dat", text.encode())
    assert snana.is_text(source)
    return snana.read_text(source, options, [])


def test_text() -> None:
    (item,) = read_text(TEXT)
    got = curve(item)
    assert isinstance(item, Observation)
    assert item.id == "000123"
    assert (item.ra, item.dec) == (53.5, -28.25)
    assert item.metadata["mwebv"] == 0.0071
    assert item.metadata["mwebv_err"] == 0.0006
    assert item.metadata["redshift"] == 0.0247
    assert item.metadata["redshift_frame"] == "CMB"
    assert "search_peakmjd" not in item.metadata
    assert got.time.tolist() == [55001.0, 55002.0, 55003.0]
    assert got.flux.tolist() == [-1.5, 2.0, 3.0]
    assert got.band.tolist() == ["PS1-g", "PS1-i", "PS1-r"]
    np.testing.assert_array_equal(got.flux_err, [1.5, np.nan, 1.0])
    assert "missing_errors" in item.flags


def test_text_with_several_objects_and_one_of_them_bad() -> None:
    second = TEXT.replace("000123", "2019np").replace("NOBS: 3", "NOBS: 4")
    third = TEXT.replace("000123", "third").replace("\nEND:\n", "\n")
    items = read_text(TEXT + second + third)
    assert [getattr(item, "id", None) for item in items] == ["000123", None, "third"]
    assert error_of(items[1]).code == "damaged_file"
    assert "2019np" in str(error_of(items[1]))


def test_text_without_end_begins_anew_at_the_next_survey() -> None:
    body = TEXT.replace("\nEND:\n", "\n")
    assert [getattr(item, "id", None) for item in read_text(body + body.replace("000123", "b"))] == ["000123", "b"]


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("SURVEY: PS1MD", "", "survey_missing"),
        ("FLUXCALERR", "ERR", "column_missing"),
        ("OBS: 55003.0 r NULL  3.0 1.0", "OBS: 55003.0 r NULL  3.0", "damaged_file"),
        ("OBS: 55003.0", "OBS: 2455003.0", "time_unit"),
        ("OBS: 55003.0", "OBS: -777", "time_unit"),
        ("RA:   53.5", "RA:   453.5", "value_out_of_range"),
        ("3.0 1.0", "inf 1.0", "not_finite"),
        ("SURVEY: PS1MD", "SURVEY: KAIT", "band_unknown"),
    ],
)
def test_what_is_wrong_with_a_text_is_named(old: str, new: str, code: str) -> None:
    (item,) = read_text(TEXT.replace(old, new))
    error = error_of(item)
    assert error.code == code
    assert error.file == "sn.dat"
    assert error.field


def test_numbers_that_no_float_holds_are_no_values() -> None:
    (item,) = read_text(TEXT.replace("SEARCH_PEAKMJD: -9", f"SEARCH_PEAKMJD: {10**400}"))
    assert isinstance(item, Observation)
    assert "search_peakmjd" not in item.metadata


def test_a_system_that_is_not_known_must_be_stated() -> None:
    text = TEXT.replace(" g NULL", " Bessell-B NULL")
    assert error_of(read_text(text)[0]).code == "convention_missing"
    assert error_of(read_text(text, ReadOptions(system="Vega"))[0]).code == "statement_conflict", "PS1 is AB"
    only = text.replace(" r NULL", " Bessell-R NULL").replace(" PS1-i NULL", " Bessell-I NULL")
    assert set(curve(read_text(only, ReadOptions(system="Vega"))[0]).system.tolist()) == {"Vega"}


def test_formats_are_told_by_content() -> None:
    head, phot = pair()
    text = Source("sn.dat", TEXT.encode())
    for source, name in ((head, "snana_fits"), (phot, "snana_phot"), (text, "snana_text")):
        assert next(row[0] for row in FORMATS if row[2](source)) == name


# Real files


@pytest.mark.real
def test_foundation_equals_sncosmo(test_data: Path) -> None:
    import sncosmo

    folder = test_data / "raw" / "snana"
    paths = [folder / f"DES-SN5YR_Foundation_{part}.FITS.gz" for part in ("HEAD", "PHOT")]
    head, phot = (Source.from_path(path) for path in paths)
    assert snana.head_completes(head, phot, OPTIONS)
    items = snana.read_head(head, OPTIONS, [phot])
    oracle = sncosmo.read_snana_fits(str(paths[0]), str(paths[1]))
    assert len(items) == len(oracle) == 185
    total = 0
    for item, table in zip(items, oracle, strict=True):
        got = curve(item)
        assert isinstance(item, Observation)
        meta = table.meta
        name = meta["SNID"]
        assert item.id == (name.decode() if isinstance(name, bytes) else str(name)).strip()
        order = np.argsort(np.asarray(table["MJD"], np.float64), kind="stable")
        np.testing.assert_array_equal(got.time, np.asarray(table["MJD"])[order])
        np.testing.assert_array_equal(got.flux, np.asarray(table["FLUXCAL"])[order])
        np.testing.assert_array_equal(got.flux_err, np.asarray(table["FLUXCALERR"])[order])
        bands = [b.decode() if isinstance(b, bytes) else str(b) for b in table["BAND"][order].tolist()]
        assert got.band.tolist() == [f"PS1-{band.strip()}" for band in bands]
        assert item.metadata["redshift_final"] == pytest.approx(float(meta["REDSHIFT_FINAL"]), abs=0)
        assert item.metadata["mwebv"] == pytest.approx(float(meta["MWEBV"]), abs=0)
        assert (item.ra, item.dec) == (float(meta["RA"]), float(meta["DEC"]))
        assert not got.extinction_corrected
        total += len(got.time)
    assert total == sum(len(table) for table in oracle) == 6010


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "id", "epochs"),
    [
        ("FOUND_F15aqb.txt", "2017erp", 51),
        ("FOUND_F15auj.txt", "2018gv", 62),
        ("Found_2019np.txt", "2019np", 137),
        ("PS1_PSc000006.txt", "000006", 23),
        ("PS1_PSc000010.txt", "000010", 49),
    ],
)
def test_text_equals_sncosmo(test_data: Path, name: str, id: str, epochs: int) -> None:
    import sncosmo

    path = test_data / "raw" / "snana" / name
    (item,) = snana.read_text(Source.from_path(path), OPTIONS, [])
    meta, tables = sncosmo.read_snana_ascii(str(path), default_tablename="OBS")
    table = tables["OBS"]
    got = curve(item)
    assert isinstance(item, Observation)
    assert item.id == id
    assert len(got.time) == len(table) == epochs
    order = np.argsort(np.asarray(table["MJD"]), kind="stable")
    np.testing.assert_array_equal(got.time, np.asarray(table["MJD"])[order])
    np.testing.assert_array_equal(got.flux, np.asarray(table["FLUXCAL"])[order])
    np.testing.assert_array_equal(got.flux_err, np.asarray(table["FLUXCALERR"])[order])
    assert got.band.tolist() == [f"PS1-{band}" for band in np.asarray(table["FLT"])[order].tolist()]
    assert (item.ra, item.dec) == (meta["RA"], meta["DECL"])
    assert item.metadata["redshift"] == item.metadata["redshift_helio"] == meta["REDSHIFT_HELIO"]
    assert item.metadata["mwebv"] == meta["MWEBV"]


@pytest.mark.real
def test_many_files_in_one_call(test_data: Path) -> None:
    """The real pair among synthetic pairs and texts: each PHOT goes to its HEAD, every object is read once."""
    folder = test_data / "raw" / "snana"
    sources = [Source.from_path(path) for path in sorted(folder.iterdir())]
    sources = [*pair("B")[::-1], *sources, *pair("A", ids=("x",))]
    reports = reading.read_files(sources, OPTIONS)
    assert not [report.error for report in reports if report.error]
    assert {r.file: r.companion_of for r in reports if r.companion_of} == {
        "A_PHOT.FITS": "A_HEAD.FITS",
        "B_PHOT.FITS": "B_HEAD.FITS",
        "DES-SN5YR_Foundation_PHOT.FITS.gz": "DES-SN5YR_Foundation_HEAD.FITS.gz",
    }
    assert sum(len(report.observations) for report in reports) == 185 + 5 + 2 + 1
