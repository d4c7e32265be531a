"""Whole observations in Parquet: what was written is what is read, to the bit; what cannot be is refused by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from albireo.observations.errors import BadInput
from albireo.observations.modalities import LABEL_KEYS, MODALITIES
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
from albireo.observations.options import ReadOptions
from albireo.observations.reading import read_files
from albireo.observations.shards import MARK, write_shard
from albireo.observations.sky import simulate
from albireo.observations.source import Source

SKY = list(simulate(6, np.random.default_rng(3)))


def everything() -> Observation:
    """One object with a payload of every kind, also those that the simulated sky lacks."""
    rng = np.random.default_rng(1)
    data: dict[str, Payload] = {
        "tok_xp_bp": Coefficients(rng.normal(size=55).astype(np.float32), "electron / s"),
        "tok_xp_rp": Coefficients(
            rng.normal(size=55).astype(np.float32), "electron / s", rng.random(55).astype(np.float32)
        ),
        "tok_segmap": SegmentationMap((rng.integers(0, 6, (96, 96)) / 5).astype(np.float32), 0.262, 0.5),
        "catalog": Catalog(
            np.array([48, 3]), np.array([47, 90]), np.float32([0.1, 0]), np.float32([-0.2, 0]), np.float32([1.5, 0])
        ),
        "lightcurve": LightCurve(
            time=np.array([1.0, 2.5]), band=np.array(["g", "r"]), flux=np.array([3.0, np.nan]),
            flux_err=np.array([0.1, np.nan]), zero_point=np.array([25.0, 25.0]), system=np.array(["AB", "Vega"]),
            detected=np.array([True, False]), limit=np.array([np.nan, 20.5]), extinction_corrected=False,
        ),
    }  # fmt: skip
    return Observation("everything", data, 10.0, -3.5, metadata={"redshift": 0.5, "class": "STAR"}, flags=("cropped",))


def read(path: Path, options: ReadOptions | None = None) -> Any:
    (report,) = read_files([Source.from_path(path)], options)
    return report


def assert_same(a: Payload, b: Payload) -> None:
    assert type(a) is type(b)
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            assert x.dtype.kind == y.dtype.kind
            assert x.shape == y.shape
            assert np.array_equal(x, y, equal_nan=x.dtype.kind == "f"), field.name
        else:
            assert x == y, field.name


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = [*SKY, everything()]
    path = tmp_path / "a.parquet"
    write_shard(written, path, {"origin": "simulated", "seed": 3})
    report = read(path)
    assert (report.format, report.error) == ("albireo", None)
    assert [one.id for one in report.items] == [one.id for one in written]
    for a, b in zip(written, report.items, strict=True):
        assert (a.ra, a.dec, dict(a.metadata), a.flags) == (b.ra, b.dec, dict(b.metadata), b.flags)
        assert set(a.data) == set(b.data) == set(b.provenance)
        for key in a.data:
            assert_same(a.data[key], b.data[key])
    assert report.items[2].provenance["tok_flux_g"].row == 2


def test_equal_objects_equal_bytes_and_no_other_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shard(SKY, tmp_path / name, {"seed": 3})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_labels_are_metadata_unless_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_shard(SKY, path, {})
    assert not any(LABEL_KEYS & one.data.keys() for one in read(path).items)
    asked = read(path, ReadOptions(tokens=("redshift",))).items
    assert [one.data["tok_z"].value for one in asked] == [one.metadata["redshift"] for one in SKY]


def test_a_bad_row_fails_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    spoilt = dataclasses.replace(SKY[1], data={"tok_flux_g": Scalar(float("nan"), "nanomaggy")}, provenance={})
    write_shard([SKY[0], spoilt, SKY[2]], path, {})
    good, bad, last = read(path).items
    assert (good.id, last.id) == (SKY[0].id, SKY[2].id)
    assert isinstance(bad, BadInput)
    assert (bad.code, bad.file) == ("not_finite", "a.parquet")


def replaced(path: Path, name: str, column: pa.Array) -> Path:
    """The file with one column exchanged."""
    table = pq.read_table(path)
    table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize(
    ("name", "column", "code"),
    [
        ("ra", pa.array([400.0]), "value_out_of_range"),
        ("ra", pa.array([None], pa.float64()), "value_out_of_range"),
        ("id", pa.array([""]), "value_missing"),
        ("metadata", pa.array(["[1"]), "damaged_file"),
        ("metadata", pa.array(["[1]"]), "damaged_file"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, name: str, column: pa.Array, code: str) -> None:
    write_shard([everything()], tmp_path / "a.parquet", {})
    (item,) = read(replaced(tmp_path / "a.parquet", name, column)).items
    assert item.code == code


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"unit": "Jy"}, "unit_unknown"),
        ({"wavelength": np.array([2.0, 1.0, 3.0])}, "wavelength_not_monotonic"),
        ({"ivar": np.float32([1, -1, 1])}, "not_finite"),
        ({"mask": np.zeros(30, bool)}, "shape_mismatch"),
        ({"flux": np.zeros(2, np.float32)}, "shape_mismatch"),
    ],
)
def test_spectra_that_cannot_be(tmp_path: Path, change: dict[str, Any], code: str) -> None:
    unit = MODALITIES["tok_spectrum_desi"].unit
    fine = Spectrum(
        np.array([4000.0, 4001.0, 4002.0]),
        np.ones(3, np.float32),
        np.ones(3, np.float32),
        np.zeros(3, bool),
        unit,
        "rest",
    )
    spoilt = dataclasses.replace(fine, **change)
    write_shard([Observation("a", {"tok_spectrum_desi": spoilt})], tmp_path / "a.parquet", {})
    (item,) = read(tmp_path / "a.parquet").items
    assert item.code == code


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"bands": ("DES-R", "DES-G")}, "band_unknown"),
        ({"bands": ("DES-G", "SDSS-R")}, "band_unknown"),
        ({"flux": np.zeros((2, 90, 90), np.float32), "mask": np.zeros((2, 90, 90), bool)}, "shape_mismatch"),
        ({"conventions": ()}, "shape_mismatch"),
        ({"flux": np.full((2, 96, 96), np.nan, np.float32)}, "not_finite"),
    ],
)
def test_images_that_cannot_be(tmp_path: Path, change: dict[str, Any], code: str) -> None:
    convention = Convention("legacysurvey", "DES-G", "AB", "image", False)
    fine = Image(
        np.zeros((2, 96, 96), np.float32), ("DES-G", "DES-R"), 0.262, "nanomaggy", 22.5, np.zeros((2, 96, 96), bool),
        (convention, convention),
    )  # fmt: skip
    write_shard([Observation("a", {"tok_image": dataclasses.replace(fine, **change)})], tmp_path / "a.parquet", {})
    (item,) = read(tmp_path / "a.parquet").items
    assert item.code == code


def test_the_file_states_everything(tmp_path: Path) -> None:
    write_shard(SKY, tmp_path / "a.parquet", {})
    error = read(tmp_path / "a.parquet", ReadOptions(survey="hsc")).error
    assert (error.code, error.field) == ("option_invalid", "survey")


def test_damage_and_other_versions_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_shard(SKY, path, {})
    content = bytearray(path.read_bytes())
    content[200:20000] = bytes(19800)
    path.write_bytes(content)
    report = read(path)
    assert report.error.code == "damaged_file"
    write_shard(SKY, path, {})
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({MARK: b"9"}), path)
    assert read(path).error.code == "unknown_format"
    pq.write_table(
        table.drop_columns(["image.legacysurvey"]).append_column("image.legacysurvey", pa.array([1] * 6)), path
    )
    assert read(path).error.code == "column_missing"


def test_other_parquet_is_no_shard(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "ra": [1.0], "dec": [2.0]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").format != "albireo"


def test_what_has_no_row_is_refused(tmp_path: Path) -> None:
    odd = Observation("a", {}, extras={"sdss.petroflux_u": Scalar(1.0, "nanomaggy")})
    with pytest.raises(BadInput, match="petroflux"):
        write_shard([odd], tmp_path / "a.parquet", {})
    label = Observation("a", {"tok_z": Scalar(0.1, "")})
    with pytest.raises(BadInput, match="label_given"):
        write_shard([label], tmp_path / "a.parquet", {})
    assert not (tmp_path / "a.parquet").exists()


def test_a_field_whose_name_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    write_shard([everything()], tmp_path / "a.parquet", {})
    table = pq.read_table(tmp_path / "a.parquet")
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)
    path.write_bytes(path.read_bytes().replace(b"zero_point", b"zero\xff\xfeoint"))
    assert read(path).error.code == "damaged_file"
