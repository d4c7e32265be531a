"""Segmentation maps and catalogs as files hold them: tables of the objects in cutouts, and NumPy archives."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from astropy import units
from astropy.table import Table
from numpy.typing import NDArray

from albireo.observations.errors import AlbireoError
from albireo.observations.observation import Catalog, Image, Observation, SegmentationMap
from albireo.observations.options import ReadOptions
from albireo.observations.reading import FileReport, read_files
from albireo.observations.source import Source

LEGACY = ReadOptions(survey="legacysurvey")
ROWS = """\
object_id,objid,X,Y,SHAPE_E1,SHAPE_E2,SHAPE_R,FLUX_G
9007199254740993,1,48,47,0.1,-0.2,1.5,10.0
9007199254740993,2,60,47,0.0,0.0,0.0,2.0
31,3,47,47,-0.5,0.25,3.0,7.0
9007199254740993,4,0,95,0.3,0.3,0.7,1.0
"""


def report(content: str | bytes, options: ReadOptions = LEGACY, name: str = "t.csv") -> FileReport:
    (one,) = read_files([Source(name, content.encode() if isinstance(content, str) else content)], options)
    return one


def objects(content: str | bytes, options: ReadOptions = LEGACY, name: str = "t.csv") -> list[Observation]:
    read = report(content, options, name)
    assert read.error is None, read.error
    return [item for item in read.items if isinstance(item, Observation)]


def catalog_of(item: Observation) -> Catalog:
    payload = item.data["catalog"]
    assert isinstance(payload, Catalog)
    return payload


def map_of(item: Observation) -> SegmentationMap:
    payload = item.data["tok_segmap"]
    assert isinstance(payload, SegmentationMap)
    return payload


def code_of(content: str | bytes, options: ReadOptions = LEGACY, name: str = "t.csv") -> str:
    read = report(content, options, name)
    errors = [read.error] if read.error else [item for item in read.items if isinstance(item, AlbireoError)]
    assert errors, read.items
    return errors[0].code


def archive(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **{key: np.asarray(value) for key, value in arrays.items()})
    return stream.getvalue()


def field(size: int = 96, value: float = 0.6) -> NDArray[np.float32]:
    out = np.zeros((size, size), np.float32)
    out[size // 2 - 5 : size // 2 + 4, size // 2 - 3 : size // 2 + 6] = value
    return out


# Tables


def test_a_table_has_as_many_rows_as_objects_of_a_cutout() -> None:
    first, second = objects(ROWS)
    assert (first.id, second.id) == ("9007199254740993", "31")
    catalog = catalog_of(first)
    assert catalog.x.tolist() == [48, 60, 0]
    assert catalog.y.tolist() == [47, 47, 95]
    np.testing.assert_array_equal(catalog.e2, np.float32([-0.2, 0.0, 0.3]))
    np.testing.assert_array_equal(catalog.r, np.float32([1.5, 0.0, 0.7]))
    assert catalog.x.dtype == np.int64
    assert first.metadata["unused_columns"] == ("objid", "FLUX_G"), "fluxes of the objects around are not the object's"
    assert first.provenance["catalog"].format == "table_catalog"
    assert second.provenance["catalog"].row == 2
    assert first.flags == ()


def test_rows_out_of_order_are_sorted_and_a_long_catalog_is_shortened_only_when_asked() -> None:
    x = [90, 48, 60, 50, 47]
    text = "id,x,y,shape_e1,shape_e2,shape_r\n" + "".join(f"a,{value},47,0,0,{value}\n" for value in x)
    (item,) = objects(text)
    assert catalog_of(item).x.tolist() == [48, 47, 50, 60, 90]
    assert catalog_of(item).r.tolist() == [48, 47, 50, 60, 90]
    assert item.flags == ("catalog_sorted",)
    (item,) = objects(text, ReadOptions(survey="legacysurvey", nearest=2))
    assert catalog_of(item).x.tolist() == [48, 47]
    assert item.flags == ("catalog_sorted", "catalog_shortened")
    assert code_of(text, ReadOptions(survey="legacysurvey", nearest=0)) == "option_invalid"


def test_a_table_without_ids_is_one_cutout_and_units_are_converted() -> None:
    table = Table({"X": [48, 50], "Y": [48, 50], "SHAPE_E1": [0.0, 0.1], "SHAPE_E2": [0.0, 0.1],
                   "SHAPE_R": [0.01, 0.02] * units.arcmin})  # fmt: skip
    stream = io.StringIO()
    table.write(stream, format="ascii.ecsv")
    (item,) = objects(stream.getvalue(), name="cutout-7.ecsv")
    assert item.id == "cutout-7"
    np.testing.assert_allclose(catalog_of(item).r, [0.6, 1.2], rtol=1e-6)
    table["SHAPE_R"] = [0.01, 0.02] * units.s
    stream = io.StringIO()
    table.write(stream, format="ascii.ecsv")
    assert code_of(stream.getvalue()) == "unit_unknown"


def test_a_bad_cutout_fails_alone() -> None:
    read = report(ROWS.replace("31,3,47,47,-0.5", "31,3,47,147,-0.5"))
    good, bad = read.items
    assert isinstance(good, Observation)
    assert isinstance(bad, AlbireoError)
    assert bad.code == "value_out_of_range"
    assert "31" in str(bad)


@pytest.mark.parametrize(
    ("old", "new", "options", "code"),
    [
        ("", "", ReadOptions(), "survey_missing"),
        ("", "", ReadOptions(survey="hsc"), "modality_unknown"),
        ("", "", ReadOptions(survey="legacysurvey", columns={"redshift": "FLUX_G"}), "option_invalid"),
        ("31,3,47,", "31,3,47.5,", LEGACY, "value_out_of_range"),
        ("31,3,47,", "31,3,,", LEGACY, "not_finite"),
        ("31,3,47,47,-0.5", ",3,47,47,-0.5", LEGACY, "value_missing"),
        ("31,3,47,47,-0.5,0.25,3.0", "31,3,9999,9999,9999,9999,9999", LEGACY, "value_missing"),
    ],
)
def test_what_a_catalog_must_be(old: str, new: str, options: ReadOptions, code: str) -> None:
    assert code_of(ROWS.replace(old, new) if old else ROWS, options) == code


def test_a_tractor_catalogue_stays_a_table_of_scalars() -> None:
    text = "objid,bx,by,shape_e1,shape_e2,shape_r\n1,1200.5,77.25,0.1,0.2,1.5\n"
    (item,) = objects(text)
    assert set(item.data) == {"tok_shape_e1", "tok_shape_e2", "tok_shape_r"}


# Archives

CATALOGS = {
    "catalog_x": [[48, 60, 0], [47, 9999, 9999]],
    "catalog_y": [[47, 47, 95], [48, 9999, 9999]],
    "catalog_shape_e1": [[0.1, 0.0, 0.3], [-0.5, 9999, 9999]],
    "catalog_shape_e2": [[-0.2, 0.0, 0.3], [0.25, 9999, 9999]],
    "catalog_shape_r": [[1.5, 0.0, 0.7], [3.0, 9999, 9999]],
}


def test_an_archive_of_maps_and_padded_catalogs() -> None:
    maps = np.stack([field(), field(value=0.2)])
    content = archive(
        segmentation_map=maps, **CATALOGS, survey="legacysurvey", pixel_scale=0.262, release="dr10",
        id=["a", "b"], ra=[1.0, 2.0], dec=[3.0, 4.0], redshift=[0.1, 0.2],
    )  # fmt: skip
    first, second = objects(content, ReadOptions(), "maps.npz")
    assert (second.id, second.ra, second.dec, second.metadata["redshift"]) == ("b", 2.0, 4.0, 0.2)
    np.testing.assert_array_equal(map_of(second).field, maps[1])
    assert map_of(second).pixel_scale == 0.262
    assert catalog_of(first).n_objects == 3
    assert catalog_of(second).x.tolist() == [47]
    assert first.flags == ()
    assert second.flags == ("padding_dropped",)
    assert {origin.release for origin in second.provenance.values()} == {"dr10"}
    assert [second.provenance[key].row for key in ("tok_segmap", "catalog")] == [1, 1]


def test_one_map_alone_is_cut_at_its_centre() -> None:
    (item,) = objects(archive(segmentation_map=field(161), survey="legacysurvey", pixel_scale=0.262), LEGACY, "m.npz")
    assert item.id == "m"
    assert item.flags == ("cropped",)
    np.testing.assert_array_equal(map_of(item).field, field(161)[32:128, 32:128])
    assert map_of(item).kept_fraction == pytest.approx((96 / 161) ** 2)


def test_maps_and_catalogs_beside_images() -> None:
    shared = {"survey": "legacysurvey", "pixel_scale": 0.262, "bands": ["g", "r", "i", "z"], "unit": "nanomaggy"}
    images = np.random.default_rng(0).normal(0, 1, (2, 4, 100, 100)).astype(np.float32)
    maps = np.stack([field(100), field(100)])
    first, second = objects(archive(images=images, segmentation_map=maps, **shared), ReadOptions(), "both.npz")
    assert isinstance(second.data["tok_image"], Image)
    np.testing.assert_array_equal(second.data["tok_image"].flux[0], images[1, 0, 2:98, 2:98])
    np.testing.assert_array_equal(map_of(second).field, field(100)[2:98, 2:98])
    assert first.flags == ("cropped",)
    cut = images[..., 2:98, 2:98]
    (_, item) = objects(archive(images=cut, **CATALOGS, **shared), ReadOptions(), "both.npz")
    assert set(item.data) == {"tok_image", "catalog"}
    assert code_of(archive(images=images, **CATALOGS, **shared), ReadOptions(), "x.npz") == "shape_mismatch"
    assert code_of(archive(images=cut[:1], **CATALOGS, **shared), ReadOptions(), "x.npz") == "shape_mismatch"


def test_a_bad_map_fails_alone() -> None:
    maps = np.stack([field(), field(value=3.0)])
    read = report(archive(segmentation_map=maps, survey="legacysurvey", pixel_scale=0.262), LEGACY, "m.npz")
    good, bad = read.items
    assert isinstance(good, Observation)
    assert isinstance(bad, AlbireoError)
    assert bad.code == "value_out_of_range"
    assert "object 1" in str(bad)


@pytest.mark.parametrize(
    ("arrays", "code"),
    [
        ({"segmentation_map": field()}, "survey_missing"),
        ({"segmentation_map": field(), "survey": "hsc"}, "modality_unknown"),
        ({"segmentation_map": field(), "survey": "legacysurvey"}, "pixel_scale_missing"),
        ({"segmentation_map": field(), "survey": "legacysurvey", "pixel_scale": 0.168}, "pixel_scale"),
        ({"segmentation_map": field(90), "survey": "legacysurvey", "pixel_scale": 0.262}, "image_too_small"),
        ({"segmentation_map": (field() * 5).astype(np.uint8), "survey": "legacysurvey", "pixel_scale": 0.262},
         "value_out_of_range"),
        ({"segmentation_map": np.full((96, 96), "a"), "survey": "legacysurvey", "pixel_scale": 0.262},
         "shape_mismatch"),
        ({**CATALOGS, "catalog_x": [[48, 60], [47, 9999]], "survey": "legacysurvey"}, "shape_mismatch"),
        ({"catalog_x": [48], "catalog_y": [48], "survey": "legacysurvey"}, "column_missing"),
        ({**CATALOGS, "segmentation_map": field(), "survey": "legacysurvey", "pixel_scale": 0.262}, "shape_mismatch"),
        ({**CATALOGS, "segmentation_map": np.stack([field(160)] * 2), "survey": "legacysurvey", "pixel_scale": 0.262},
         "shape_mismatch"),
    ],
)  # fmt: skip
def test_what_archives_must_state(arrays: dict[str, Any], code: str) -> None:
    assert code_of(archive(**arrays), ReadOptions(), "x.npz") == code
