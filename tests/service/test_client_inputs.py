"""Whatever a client is given, it sends what the plain file of the same numbers says; nothing of it is modified."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import CCDData, InverseVariance, NDData, StdDevUncertainty, UnknownUncertainty, VarianceUncertainty
from astropy.table import MaskedColumn, QTable, Table
from astropy.time import Time
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st
from specutils import Spectrum, SpectrumList

from albireo.observations.errors import AlbireoError, BadInput, TooLarge
from albireo.observations.reading import FileReport, read_files
from albireo.observations.source import Source
from albireo.service.client import Client
from albireo.service.client_inputs import Piece, pieces
from albireo.service.client_reading import Reading
from albireo.service.client_requests import Limits, batches, loaded
from albireo.service.client_tables import arrow_table, pieces_of, stream_bytes
from tests.service.conftest import ToyEngine
from tests.service.served import Served, served

Make = Callable[..., bytes]

FLUX = u.Unit("1e-17 erg / (s cm2 Angstrom)")
SAID = {"survey": "sdss", "medium": "vacuum", "frame": "heliocentric"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(ToyEngine(), tmp_path_factory.mktemp("served"), max_body_bytes=4 << 20, max_items=50) as made:
        yield made


@pytest.fixture(scope="module")
def client(service: Served) -> Iterator[Client]:
    with Client(service.url) as made:
        yield made


def photometry(n: int = 5) -> QTable:
    table = QTable({"id": [2**60 + i for i in range(n)]}, meta={"survey": "legacysurvey"})
    table["ra"], table["dec"] = np.linspace(10, 20, n) * u.deg, np.linspace(-5, 5, n) * u.deg
    table["flux_g"] = np.arange(1, n + 1, dtype=np.float32) * u.nmgy
    table["flux_r"] = np.arange(1, n + 1) / 3 * u.nmgy
    return table


def spectrum(n: int = 900, seed: int = 0, **more: Any) -> Spectrum:
    rng = np.random.default_rng(seed)
    parts: dict[str, Any] = {
        "spectral_axis": np.linspace(3800, 9000, n) * u.AA,
        "flux": (3 + rng.normal(0, 0.5, n)) * FLUX,
        "uncertainty": InverseVariance(np.full(n, 4.0)),
        "mask": np.arange(n) < 5,
        "meta": {"id": f"s{seed}", "ra": 12.5, "dec": -3.0, **SAID},
    }
    return Spectrum(**(parts | more))


def plain_file(one: Spectrum, path: Path, noise: str = "ivar") -> Path:
    """The same spectrum as a table that somebody wrote by hand."""
    table = Table({"wavelength": one.spectral_axis.value, "flux": one.flux.value}, meta=dict(one.meta))
    table["wavelength"].unit, table["flux"].unit = one.spectral_axis.unit, one.flux.unit
    table[noise] = one.uncertainty.array
    if one.mask is not None:
        table["mask"] = one.mask.astype(int)
    table.write(path, format="ascii.ecsv", overwrite=True)
    return path


def embeddings(client: Client, given: Any, **read: Any) -> np.ndarray:
    return np.asarray(client.embed(given, **read)["embedding"])


# Files


def test_every_form_of_a_file(client: Client, image: Make, tmp_path: Path) -> None:
    content = image("A")
    path = tmp_path / "a.fits"
    path.write_bytes(content)
    hdus = fits.open(io.BytesIO(content))
    forms = [path, str(path), content, bytearray(content), memoryview(content), hdus, hdus[0], [path], (path,)]
    forms += [tmp_path, str(tmp_path / "*.fits"), iter([path]), {"image": path}, {"image.legacysurvey": hdus}]
    forms += [{"inputs": [path]}, {"inputs": [{"modality": "image", "file": content}]}]
    before = [repr(hdus[0].header), hdus[0].data.tobytes(), bytes(content)]
    vectors = [embeddings(client, form) for form in forms]
    assert all(np.array_equal(vector, vectors[0]) for vector in vectors)
    assert vectors[0].shape == (1, 16)
    assert [repr(hdus[0].header), hdus[0].data.tobytes(), bytes(content)] == before


def test_folders_and_patterns_in_the_order_of_names(client: Client, image: Make, tmp_path: Path) -> None:
    for name in ("b", "a", "deep/c", ".hidden/d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).with_suffix(".fits").write_bytes(image(name.upper(), seed=len(name)))
    assert client.embed(tmp_path)["id"].tolist() == ["A", "B", "DEEP/C"]
    assert client.embed(str(tmp_path / "**/[bc].fits"))["id"].tolist() == ["B", "DEEP/C"]
    with pytest.raises(AlbireoError, match="there is no file"):
        client.embed(str(tmp_path / "*.txt"))


def test_compressed_hdus_lose_nothing(client: Client, image: Make, tmp_path: Path) -> None:
    plain = fits.open(io.BytesIO(image("A")))[0]
    packed = fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(plain.data, plain.header)])
    packed.writeto(tmp_path / "a.fits.fz")
    with fits.open(tmp_path / "a.fits.fz") as hdus:
        assert np.array_equal(embeddings(client, hdus), embeddings(client, tmp_path / "a.fits.fz"))


# Tables


def test_every_form_of_a_table(client: Client, tmp_path: Path) -> None:
    table = photometry()
    path = tmp_path / "t.ecsv"
    table.write(path)
    arrow = arrow_table(table)
    frame = table["id", "flux_g", "flux_r"].to_pandas()
    frame.attrs["survey"] = "legacysurvey"
    columns = {name: table[name] for name in table.colnames}
    plain = {name: list(np.asarray(table[name])) for name in ("id", "flux_g", "flux_r")}
    expected = client.embed(path)
    assert expected["id"].tolist() == [str(2**60 + i) for i in range(5)]
    assert expected["ra"].unit == u.deg
    assert expected["ra"].value.tolist() == [10, 12.5, 15, 17.5, 20]
    for given_, read in (
        (table, {}), (Table(table), {}), (arrow, {}), (frame, {}), (columns, {"survey": "legacysurvey"}),
        (plain, {"survey": "legacysurvey"}), ([table[:2], table[2:]], {}), (frame.set_index("id"), {}),
    ):  # fmt: skip
        answer = client.embed(given_, **read)
        assert answer["id"].tolist() == expected["id"].tolist()
        assert np.array_equal(answer["embedding"], expected["embedding"])
    assert np.array_equal(embeddings(client, table[1]), expected["embedding"][1:2])
    values = {"flux_g": 1.0 * u.nmgy, "flux_r": table["flux_r"][0]}
    item = {"photometry": values, "read": {"survey": "legacysurvey"}}
    assert np.array_equal(embeddings(client, item), expected["embedding"][:1])


def test_a_table_is_not_modified(client: Client) -> None:
    table = photometry()
    table["note"] = MaskedColumn(["a"] * 5, mask=[True] * 5)
    frame = table.to_pandas()
    before = table.copy(), dict(table.meta), frame.copy()
    client.embed([table, frame], survey="legacysurvey")
    assert table.meta == before[1]
    assert all(str(table[name].info.dtype) == str(before[0][name].info.dtype) for name in table.colnames)
    assert all(np.array_equal(table[name], before[0][name]) for name in ("id", "ra", "flux_g"))
    assert table["note"].mask.all()
    pandas.testing.assert_frame_equal(frame, before[2])


def read_back(table: Any, options: Any = None) -> FileReport:
    (report,) = read_files([Source("t.arrow", stream_bytes(arrow_table(table)))], options)
    return report


def test_what_is_missing_stays_missing(tmp_path: Path) -> None:
    table = photometry(3)
    table["flux_g"] = u.Quantity([1, np.nan, 3], u.nmgy)
    table["redshift"] = MaskedColumn([0.1, 0.2, 0.3], mask=[False, True, False])
    table["type"] = MaskedColumn(["REX", "DEV", "x"], mask=[False, False, True])
    table["targetid"] = MaskedColumn([1, 2, 3], mask=[True, False, False])
    table.write(tmp_path / "t.ecsv")
    (plain,) = read_files([Source.from_path(tmp_path / "t.ecsv")])
    report = read_back(table)
    assert [one.metadata for one in report.observations] == [one.metadata for one in plain.observations]
    assert [one.flags for one in report.observations] == [one.flags for one in plain.observations]
    assert "missing_redshift" in report.observations[0].flags + report.observations[1].flags


def test_light_curves_as_the_file_says(tmp_path: Path) -> None:
    table = QTable(meta={"survey": "ztf", "zpsys": "AB", "extinction_corrected": False})
    table["object_id"] = ["x", "y", "x"]
    table["time"] = Time([59000.25, 59001.5, 59002.75], format="mjd")
    table["band"] = ["g", "r", "g"]
    table["flux"], table["flux_err"] = [10.0, np.inf, 30.0] * u.uJy, [1.0, 1.0, 2.0] * u.uJy
    table.write(tmp_path / "t.ecsv")
    (plain,) = read_files([Source.from_path(tmp_path / "t.ecsv")])
    report = read_back(table)
    assert plain.error is None
    assert [one.id for one in report.observations] == ["x", "y"]
    for ours, theirs in zip(report.observations, plain.observations, strict=True):
        for name in ("time", "flux", "flux_err", "band", "detected"):
            mine, other = getattr(ours.data["lightcurve"], name), getattr(theirs.data["lightcurve"], name)
            assert np.array_equal(np.asarray(mine), np.asarray(other), equal_nan=np.asarray(mine).dtype.kind == "f")
    assert report.observations[0].data["lightcurve"].time.tolist() == [59000.25, 59002.75]


def test_gaia_coefficients_in_array_columns() -> None:
    table = Table({"source_id": [4 * 10**18 + 1, 4 * 10**18 + 3]})
    for photometer in ("bp", "rp"):
        table[f"{photometer}_coefficients"] = np.arange(110.0).reshape(2, 55) + 1
        table[f"{photometer}_coefficient_errors"] = np.ones((2, 55))
    table["bp_coefficients"] = np.ma.MaskedArray(table["bp_coefficients"], mask=[[True] * 55, [False] * 55])
    first, second = read_back(table).observations
    assert first.id == "4000000000000000001"
    assert set(first.data) == {"tok_xp_rp"}
    assert np.array_equal(second.data["tok_xp_bp"].values, np.arange(56, 111, dtype=np.float32))


def test_a_column_of_positions() -> None:
    table = photometry(2)
    table.remove_columns(["ra", "dec"])
    table["where"] = SkyCoord([10, 20] * u.deg, [1, 2] * u.deg, frame="icrs").galactic
    one, two = read_back(table).observations
    assert (one.ra, one.dec) == pytest.approx((10, 1), abs=1e-9)
    assert (two.ra, two.dec) == pytest.approx((20, 2), abs=1e-9)


@pytest.mark.parametrize(
    ("column", "code"),
    [
        (np.zeros((2, 4, 4)), "shape_mismatch"),
        (np.array([1j, 2j]), "shape_mismatch"),
        (np.array([{"a": 1}, None], object), "shape_mismatch"),
        (np.ma.MaskedArray([[1, 2], [3, 4]], mask=[[True, False], [False, False]]), "value_missing"),
    ],
)
def test_columns_that_no_file_can_hold(column: Any, code: str) -> None:
    table = photometry(2)
    table["odd"] = column
    with pytest.raises(BadInput) as caught:
        arrow_table(table)
    assert (caught.value.code, caught.value.field) == (code, "odd")


def test_an_index_without_a_name_might_be_an_id() -> None:
    frame = photometry(2).to_pandas().drop(columns="id")
    frame.index = ["a", "b"]
    with pytest.raises(BadInput, match="is it an id"):
        arrow_table(frame)
    assert arrow_table(frame.rename_axis("id"))["id"].to_pylist() == ["a", "b"]


@settings(max_examples=50, deadline=None)
@given(
    ids=st.lists(st.sampled_from("abcdef"), min_size=1, max_size=40),
    rows=st.integers(1, 5),
    size=st.integers(1, 2000),
)
def test_pieces_of_a_table_never_part_an_object(ids: list[str], rows: int, size: int) -> None:
    table = pa.table({"object_id": ids, "mjd": np.arange(len(ids)) + 5e4, "band": ["g"] * len(ids),
                      "flux": np.arange(len(ids), dtype=float)})  # fmt: skip
    parts = list(pieces_of(table, "t", {}, rows, size))
    where = [(number, name) for number, part in enumerate(parts) for name in set(part["object_id"].to_pylist())]
    assert len({name for _, name in where}) == len(where)
    assert sorted(value for part in parts for value in part["flux"].to_pylist()) == list(range(len(ids)))
    first = list(dict.fromkeys(name for part in parts for name in part["object_id"].to_pylist()))
    assert first == list(dict.fromkeys(ids))
    if table.num_rows > rows:
        assert all(len(set(part["object_id"].to_pylist())) <= rows for part in parts)


def test_rows_without_ids_stay_together(client: Client) -> None:
    table = photometry(60)
    assert len(list(pieces_of(arrow_table(table), "t", {}, 25, 1 << 20))) == 3
    table.remove_column("id")
    assert len(list(pieces_of(arrow_table(table), "t", {}, 25, 1 << 20))) == 1
    with pytest.raises(TooLarge) as caught:
        client.embed(table)
    assert "id" in (caught.value.fix or "")
    assert len(client.embed(table[:50])) == 50


# Spectra


@pytest.mark.parametrize(
    ("kind", "column"), [(InverseVariance, "ivar"), (VarianceUncertainty, "variance"), (StdDevUncertainty, "error")]
)
@pytest.mark.parametrize("unit", [u.AA, u.nm, u.micron])
def test_a_spectrum_is_its_plain_file(client: Client, tmp_path: Path, kind: Any, column: str, unit: Any) -> None:
    one = spectrum(uncertainty=kind(np.linspace(0.2, 0.4, 900)))
    one = Spectrum(flux=one.flux, spectral_axis=one.spectral_axis.to(unit), uncertainty=one.uncertainty, mask=one.mask,
                   meta=one.meta)  # fmt: skip
    before = one.flux.value.tobytes(), one.mask.tobytes(), dict(one.meta), one.uncertainty.array.tobytes()
    answer = client.embed(one)
    plain = client.embed(plain_file(one, tmp_path / "s.ecsv", column))
    assert np.array_equal(answer["embedding"], plain["embedding"])
    assert (answer["id"][0], answer["ra"][0].value, answer["dec"][0].value) == ("s0", 12.5, -3.0)
    assert before == (one.flux.value.tobytes(), one.mask.tobytes(), dict(one.meta), one.uncertainty.array.tobytes())


def test_several_spectra(client: Client, tmp_path: Path) -> None:
    lone = [spectrum(seed=seed, n=900 + seed) for seed in range(3)]
    files = [plain_file(one, tmp_path / f"s{number}.ecsv") for number, one in enumerate(lone)]
    expected = embeddings(client, files)
    assert np.array_equal(embeddings(client, SpectrumList(lone)), expected)
    assert np.array_equal(embeddings(client, lone), expected)
    flux = np.stack([spectrum(seed=seed).flux.value for seed in range(3)]) * FLUX
    noise = InverseVariance(np.full((3, 900), 4.0))
    meta = {"id": ["a", "b", "c"], "ra": [1, 2, 3] * u.deg, "dec": [4, 5, 6] * u.deg, **SAID}
    mask = np.zeros((3, 900), bool)
    table = Spectrum(spectral_axis=lone[0].spectral_axis, flux=flux, uncertainty=noise, mask=mask, meta=meta)
    answer = client.embed(table)
    assert answer["id"].tolist() == ["a", "b", "c"]
    assert answer["ra"].value.tolist() == [1, 2, 3]
    singles = [spectrum(seed=seed, mask=np.zeros(900, bool)) for seed in range(3)]
    assert np.array_equal(answer["embedding"], embeddings(client, singles))


def test_conventions_of_a_spectrum_are_carried_or_asked_for(client: Client) -> None:
    silent = spectrum(meta={})
    for known, code in (
        ({}, "survey_missing"),
        ({"survey": "sdss"}, "medium_missing"),
        ({"survey": "sdss", "medium": "air"}, "frame_missing"),
    ):
        with pytest.raises(BadInput) as caught:
            client.embed(silent, **known)
        assert caught.value.code == code
    (told,) = client.validate(spectrum(meta={"survey": "sdss", "medium": "air", "frame": "rest"})).meta["items"]
    (modality,) = told["detected"]["modalities"]
    assert (modality["medium"], modality["frame"]) == ("air", "rest")
    (told,) = client.validate(spectrum(redshift=0.25)).meta["items"]
    assert told["metadata"]["redshift"] == 0.25
    header = fits.Header({"VACUUM": True, "SPECSYS": "BARYCENT", "RA": 1.0, "DEC": 2.0})
    answer = client.validate(spectrum(meta={"header": header, "survey": "sdss"}))
    assert answer["usable"][0]
    assert np.isnan(answer["ra"][0].value), "where the telescope pointed is not where the object is"
    with pytest.raises(BadInput, match="statement_conflict"):
        client.embed(spectrum(), medium="air")


@pytest.mark.parametrize(
    ("more", "code", "field"),
    [
        ({"uncertainty": None}, "column_missing", "uncertainty"),
        ({"uncertainty": UnknownUncertainty(np.ones(900))}, "column_missing", "uncertainty"),
        ({"spectral_axis": np.linspace(1e14, 2e14, 900) * u.Hz}, "wavelength_unit", "spectral_axis"),
    ],
)
def test_spectra_that_do_not_say_enough(client: Client, more: dict[str, Any], code: str, field: str) -> None:
    with pytest.raises(BadInput) as caught:
        client.embed(spectrum(**more))
    assert (caught.value.code, caught.value.field) == (code, field)
    answer = client.embed([spectrum(), spectrum(**more), spectrum(seed=2)])
    assert answer["status"].tolist() == ["ok", "error", "ok"]
    assert answer["error_code"].tolist() == ["", code, ""]


# Images


def in_memory(content: bytes, kind: Any = CCDData, **more: Any) -> Any:
    hdu = fits.open(io.BytesIO(content))[0]
    meta = {key: hdu.header[key] for key in ("OBJECT", "SURVEY", "PIXSCALE", "RA", "DEC") if key in hdu.header}
    return kind(hdu.data, unit="nmgy", meta=meta | {"bands": ["g", "r", "i", "z"]}, **more)


@pytest.mark.parametrize("kind", [CCDData, NDData])
def test_an_image_in_memory_is_its_file(client: Client, image: Make, kind: Any) -> None:
    content = image("A")
    one = in_memory(content, kind)
    before = one.data.tobytes(), dict(one.meta)
    answer, plain = client.embed(one), client.embed(content)
    assert np.array_equal(answer["embedding"], plain["embedding"])
    assert (answer["id"][0], answer["ra"][0].value) == ("A", 150.1)
    assert before == (one.data.tobytes(), dict(one.meta))


@pytest.mark.parametrize(
    ("kind", "name"), [(InverseVariance, "INVVAR"), (VarianceUncertainty, "VARIANCE"), (StdDevUncertainty, "ERROR")]
)
def test_noise_mask_and_world_coordinates(image: Make, kind: Any, name: str) -> None:
    world = WCS(naxis=2)
    world.wcs.ctype, world.wcs.crval, world.wcs.crpix = ["RA---TAN", "DEC--TAN"], [150.1, 2.2], [60.5, 60.5]
    world.wcs.cdelt = [-0.262 / 3600, 0.262 / 3600]
    mask = np.zeros((4, 120, 120), bool)
    mask[:, 60, 60] = True
    content = image("A", size=120, PIXSCALE=None, RA=None, DEC=None)
    one = in_memory(content, uncertainty=kind(np.full((4, 120, 120), 4.0)), mask=mask, wcs=world)
    hdus = fits.open(io.BytesIO(content))
    hdus[0].header.update(world.to_header())
    hdus += [fits.ImageHDU(np.full((4, 120, 120), 4.0), name=name), fits.ImageHDU(mask.astype(np.uint8), name="MASK")]
    stream = io.BytesIO()
    hdus.writeto(stream)
    options = Reading.of({"at": SkyCoord(150.1, 2.2, unit="deg")})
    (piece,) = pieces(one, options, 10, 1 << 20)
    ours, theirs = (
        read_files([Source("a.fits", content)])[0].observations[0]
        for content in (piece.files[0].read(), stream.getvalue())
    )
    mine, other = ours.data["tok_image"], theirs.data["tok_image"]
    assert np.array_equal(mine.flux, other.flux)
    assert np.array_equal(mine.mask, other.mask)
    assert mine.mask.sum() == 4
    assert np.array_equal(mine.ivar, other.ivar)
    assert (ours.ra, ours.dec) == pytest.approx((theirs.ra, theirs.dec), abs=1e-9)
    assert options.data["at"] == pytest.approx([150.1, 2.2])


def test_images_that_cannot_be_stated(client: Client, image: Make) -> None:
    content = image("A")
    for more, code in (
        ({"uncertainty": UnknownUncertainty(np.ones((4, 96, 96)))}, "column_missing"),
        ({"uncertainty": StdDevUncertainty(np.ones((4, 96, 96)), unit="1e-3 nmgy")}, "unit_unknown"),
    ):
        with pytest.raises(BadInput) as caught:
            client.embed(in_memory(content, NDData, **more))
        assert caught.value.code == code
    nothing = in_memory(content)
    nothing.meta["OBJECT"] = "\u03a3"
    with pytest.raises(BadInput, match="cannot be a card"):
        client.embed(nothing)


# Several files of one object, and what belongs together


def test_an_object_of_several_files(client: Client, image: Make, spectrum_file: Path, tmp_path: Path) -> None:
    (tmp_path / "i.fits").write_bytes(image("A"))
    by_name = {"id": "one", "image": tmp_path / "i.fits", "spectrum.sdss": spectrum_file, "meta": {"ra": 1.5, "dec": 2}}
    by_list = {"id": "one", "inputs": [tmp_path / "i.fits", {"file": spectrum_file}], "meta": {"ra": 1.5, "dec": 2}}
    answers = [client.embed(one) for one in (by_name, by_list)]
    assert [answer["id"].tolist() for answer in answers] == [["one"]] * 2
    assert answers[0]["ra"][0].value == 1.5
    assert set(answers[0]["modalities"][0].split(",")) == {"image.legacysurvey", "spectrum.sdss"}
    assert np.array_equal(answers[0]["embedding"], answers[1]["embedding"])
    name = client.embed(spectrum_file)["id"][0]
    joined = client.embed([image(name), spectrum_file], join=True)
    assert (joined["id"].tolist(), joined["n_tokens"].tolist()) == ([name], [7])
    assert np.array_equal(joined["embedding"], answers[0]["embedding"])
    kinds = {"id": "A", "image": image("A"), "photometry": {"flux_g": 3 * u.nmgy}, "read": {"survey": "legacysurvey"}}
    assert client.embed(kinds)["n_tokens"].tolist() == [5]
    with pytest.raises(BadInput, match="said to be spectrum"):
        client.embed({"id": "A", "spectrum": image("A"), "photometry": {"flux_g": 3 * u.nmgy}}, survey="legacysurvey")


@pytest.fixture
def spectrum_file(spectrum: Make, tmp_path: Path) -> Path:
    (tmp_path / "spec.fits").write_bytes(spectrum(7))
    return tmp_path / "spec.fits"


def test_mixed_sequences_keep_their_order(client: Client, image: Make, spectrum_file: Path) -> None:
    mixed = [image("A"), {"id": "B", "image": image("b", 1)}, photometry(2), object(), spectrum_file, "/no/file"]
    answer = client.embed(mixed)
    assert answer["id"].tolist()[:4] == ["A", "B", str(2**60), str(2**60 + 1)]
    assert answer["status"].tolist() == ["ok", "ok", "ok", "ok", "error", "ok", "error"]
    assert answer["error_code"][4] == "request_invalid"
    assert answer["error_code"][6] == "file_not_found"
    assert [type(error).__name__ for error in answer.errors()] == ["BadInput", "NotFound"]


def test_files_that_complete_each_other_share_a_request(tmp_path: Path) -> None:
    """However far apart they were given: told by content, as the service tells them."""
    head = Table({"SNID": ["a"], "PTROBS_MIN": [1], "PTROBS_MAX": [2]})
    phot = Table({"MJD": [5e4, 5e4], "FLT": ["g", "g"], "FLUXCAL": [1.0, 2.0], "FLUXCALERR": [1.0, 1.0]})
    head.write(tmp_path / "x_HEAD.fits")
    phot.write(tmp_path / "x_PHOT.fits")
    for n in range(6):
        (tmp_path / f"{n}.bin").write_bytes(bytes([n]) * 3000)
    order = ["x_PHOT.fits", *(f"{n}.bin" for n in range(6)), "x_HEAD.fits"]
    found = pieces([tmp_path / name for name in order], Reading(), 10, 8000)
    todo = batches(found, Limits(max_body_bytes=10_000, max_items=50), together=False)
    sent = [[piece.name for piece in batch.pieces] for batch in todo]
    assert len(sent) > 2
    assert ["x_HEAD.fits", "x_PHOT.fits"] in [names[-2:] for names in sent]
    assert [name for names in sent for name in names] == [*order[1:], "x_PHOT.fits"]


def test_a_file_that_is_gone_when_it_is_its_turn(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.bin" for n in range(3)]
    for path in paths:
        path.write_bytes(b"x")
    (batch,) = batches(pieces(paths, Reading(), 10, 8000), Limits(), together=False)
    paths[1].unlink()
    parts = [(part.form, [piece.name for piece in part.pieces]) for part, _ in loaded(batch)]
    assert parts == [("files", ["0.bin"]), ("error", ["1.bin"]), ("files", ["2.bin"])]


def test_a_mosaic_and_its_positions_go_together(tmp_path: Path) -> None:
    (tmp_path / "m.fits").write_bytes(b"mosaic")
    positions = Table({"id": ["a"], "ra": [1.0], "dec": [2.0]})
    positions.write(tmp_path / "p.csv")
    for stated, name in ((tmp_path / "p.csv", "p.csv"), (positions, "positions.ecsv")):
        reading = Reading.of({"positions": stated})
        found = pieces(tmp_path / "m.fits", reading, 10, 1000)
        assert [piece.name for piece in found] == ["m.fits", name]
        assert reading.data["positions"] == name
        assert len(batches(found, Limits(), reading.together)) == 1


@pytest.mark.parametrize(
    ("stated", "data"),
    [
        ({"bands": "grz"}, {"bands": ["grz"]}),
        ({"unit": u.nJy, "zero_point": 31.4 * u.ABmag}, {"unit": "nJy", "zero_point": 31.4}),
        ({"pixel_scale": 0.262 * u.arcsec / u.pix}, {"pixel_scale": 0.262}),
        ({"pixel_scale": (0.5 * u.arcmin)}, {"pixel_scale": 30.0}),
        ({"at": (10 * u.deg, 5)}, {"at": [10.0, 5.0]}),
        ({"survey": None}, {}),
    ],
)
def test_reading_options(stated: dict[str, Any], data: dict[str, Any]) -> None:
    assert dict(Reading.of(stated).data) == data


@pytest.mark.parametrize("stated", [{"servey": "sdss"}, {"zero_point": 3 * u.m}])
def test_reading_options_that_there_are_not(stated: dict[str, Any]) -> None:
    with pytest.raises(BadInput) as caught:
        Reading.of(stated)
    assert (caught.value.code, caught.value.field) == ("option_invalid", next(iter(stated)))


def test_what_json_cannot_state_fails_alone(client: Client) -> None:
    good = {"id": "a", "inputs": [{"values": {"flux_g": np.float32(3), "flux_g_unit": "nmgy"}}]}
    bad = {"id": "b", "inputs": [{"values": {"flux_g": np.nan, "flux_g_unit": "nmgy"}}]}
    worse = {"id": "c", "inputs": [{"values": {"flux_g": 3 * u.nmgy}}]}
    answer = client.embed([good, bad, worse, good | {"id": "d"}], survey="legacysurvey")
    assert answer["status"].tolist() == ["ok", "error", "error", "ok"]
    assert answer["error_code"].tolist()[1:3] == ["request_invalid"] * 2
    assert np.array_equal(answer["embedding"][0], answer["embedding"][3])


def test_a_non_detection_is_no_json_number() -> None:
    (piece,) = pieces([{"photometry": {"flux_g": np.inf}}], Reading(), 10, 1000)
    assert isinstance(piece, Piece)
    assert piece.error is not None
    assert piece.error.code == "not_finite"
