"""NumPy archives: arrays are read by their documented names, and neither pickles nor lying sizes get in."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from albireo.observations import packed
from albireo.observations.archive import Archive, sniff_npz
from albireo.observations.errors import AlbireoError, TooLarge
from albireo.observations.modalities import FLUX_DENSITY
from albireo.observations.observation import Image, Observation, Spectrum
from albireo.observations.options import ReadOptions
from albireo.observations.source import Source
from albireo.observations.wavelengths import air_to_vacuum

Item = Observation | AlbireoError

LEGACY = {"bands": np.array(["g", "r", "z"]), "unit": "nanomaggy", "pixel_scale": 0.262, "survey": "legacysurvey"}
DESI = {"survey": "desi", "unit": FLUX_DENSITY, "medium": "vacuum", "frame": "barycentric"}


def archive(arrays: dict[str, Any], name: str = "batch.npz", limit: int = 1 << 28) -> Source:
    stream = io.BytesIO()
    np.savez_compressed(stream, **{key: np.asarray(value) for key, value in arrays.items() if value is not None})
    return Source(name, stream.getvalue(), limit)


def read(file: Source, **options: Any) -> list[Item]:
    return packed.read_npz(file, ReadOptions(**options), ())


def one(file: Source, **options: Any) -> Observation:
    (item,) = read(file, **options)
    assert isinstance(item, Observation), item
    return item


def code_of(file: Source, **options: Any) -> str:
    with pytest.raises(AlbireoError) as caught:
        read(file, **options)
    assert str(caught.value)
    return caught.value.code


def pixels(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(3).normal(0, 1, shape).astype(np.float32)


def image_of(item: Item) -> Image:
    assert isinstance(item, Observation), item
    (payload,) = item.data.values()
    assert isinstance(payload, Image)
    return payload


def spectrum_of(item: Item) -> Spectrum:
    assert isinstance(item, Observation), item
    (payload,) = item.data.values()
    assert isinstance(payload, Spectrum)
    return payload


# Images


@pytest.mark.parametrize("order", ["<f4", ">f4", ">f8"])
def test_one_scene(order: str) -> None:
    flux = pixels(3, 120, 111)
    observation = one(archive({"images": flux.astype(order), **LEGACY, "redshift": 0.3}, "scene.npz"))
    image = image_of(observation)
    assert np.array_equal(image.flux, flux[:, 12:108, 7:103])
    assert image.flux.dtype == np.float32
    assert image.flux.dtype.isnative
    assert image.bands == ("DES-G", "DES-R", "DES-Z")
    assert set(observation.flags) == {"missing_bands", "cropped"}
    assert observation.id == "scene"
    assert observation.metadata["redshift"] == 0.3
    assert "tok_z" not in observation.data
    assert observation.provenance["tok_image"].format == "npz"


def test_a_batch_with_ids_positions_labels_and_one_blank_object() -> None:
    flux = pixels(3, 4, 96, 96)
    flux[1] = 0
    file = archive(
        {
            **{"image": flux, **LEGACY, "bands": "z,i,r,g", "ivar": np.full(flux.shape, 4.0), "label": ["a", "b", "c"]},
            **{"id": np.array([2**53 + 1, 2, 3]), "ra": [1.0, 2.0, 3.0], "dec": [4.0, 5.0, 6.0]},
            **{"zero_point": 25.0, "unit": None, "stack": np.zeros((2, 2))},
        }
    )
    first, blank, last = read(file)
    assert isinstance(blank, AlbireoError)
    assert (blank.code, blank.field) == ("image_blank", "image[1], image")
    assert isinstance(first, Observation)
    assert isinstance(last, Observation)
    assert (first.id, last.id) == ("9007199254740993", "3")
    assert (last.ra, last.dec) == (3.0, 6.0)
    assert last.metadata["label"] == "c"
    assert last.metadata["ignored_arrays"] == ("stack",)
    assert last.provenance["tok_image"].row == 2
    image = image_of(last)
    assert np.allclose(image.flux, flux[2, ::-1] * 0.1, rtol=1e-6)
    assert image.ivar is not None
    assert np.allclose(image.ivar, 400.0)
    assert image.bands == ("DES-G", "DES-R", "DES-I", "DES-Z")


def test_objects_without_id_are_numbered_after_the_file() -> None:
    items = read(archive({"flux": pixels(2, 3, 96, 96), **LEGACY}))
    assert [item.id for item in items if isinstance(item, Observation)] == ["batch-0", "batch-1"]


@pytest.mark.parametrize(
    ("arrays", "options", "code"),
    [
        ({"survey": None}, {}, "survey_missing"),
        ({"bands": None}, {}, "band_missing"),
        ({"bands": "griz"}, {}, "band_count"),
        ({"bands": "ugr"}, {}, "band_unknown"),
        ({"bands": [1, 2, 3]}, {}, "value_out_of_range"),
        ({"unit": None}, {}, "unit_missing"),
        ({"unit": "counts"}, {}, "zero_point_missing"),
        ({"pixel_scale": None}, {}, "pixel_scale_missing"),
        ({"zero_point": 30.0}, {}, "statement_conflict"),
        ({}, {"survey": "hsc"}, "statement_conflict"),
        ({}, {"bands": ("g", "i", "z")}, "statement_conflict"),
        ({}, {"at": (1.0, 2.0)}, "wcs_missing"),
        ({}, {"positions": "p.csv"}, "wcs_missing"),
        ({"cube": np.zeros((3, 96, 96))}, {}, "alias_ambiguous"),
        ({"wavelength": np.arange(5.0)}, {}, "alias_ambiguous"),
        ({"ivar": np.ones((3, 5, 5))}, {}, "shape_mismatch"),
        ({"ivar": np.ones((3, 96, 96)), "var": np.ones((3, 96, 96))}, {}, "alias_ambiguous"),
        ({"mask": np.ones((4, 4))}, {}, "shape_mismatch"),
        ({"ra": [1.0, 2.0], "dec": 1.0}, {}, "shape_mismatch"),
        ({"images": np.ones((3, 96, 96), np.uint8)}, {}, "not_photometric"),
        ({"images": np.ones(96)}, {}, "shape_mismatch"),
        ({"images": np.array(["a"])}, {}, "shape_mismatch"),
        ({}, {"columns": {"images": "nothing"}}, "column_unknown"),
        ({}, {"system": "Vega"}, "option_invalid"),
    ],
)
def test_what_images_do_not_state_is_an_error(arrays: dict[str, Any], options: dict[str, Any], code: str) -> None:
    assert code_of(archive({"images": pixels(3, 96, 96), **LEGACY, **arrays}), **options) == code


def test_one_bad_object_fails_alone() -> None:
    arrays = {"images": pixels(2, 3, 96, 96), **LEGACY, "id": [1.5, 2.0], "ra": [1.0, 2.0], "dec": [1.0, 95.0]}
    codes = [item.code for item in read(archive(arrays)) if isinstance(item, AlbireoError)]
    assert codes == ["value_out_of_range", "value_out_of_range"]
    small = read(archive({"images": pixels(2, 3, 23, 23), **LEGACY}))
    assert [item.code for item in small if isinstance(item, AlbireoError)] == ["image_too_small"] * 2
    scaled = read(archive({"images": pixels(3, 200, 200), **LEGACY, "pixel_scale": 0.2}))
    assert [item.code for item in scaled if isinstance(item, AlbireoError)] == ["pixel_scale"]
    resampled = one(archive({"images": pixels(3, 200, 200), **LEGACY, "pixel_scale": 0.2}), resample=True)
    assert "resampled" in resampled.flags


def test_masks() -> None:
    flat = np.zeros((96, 96), bool)
    flat[1, 2] = True
    image = image_of(one(archive({"images": pixels(3, 96, 96), **LEGACY, "mask": flat})))
    assert np.argwhere(image.mask).tolist() == [[0, 1, 2], [1, 1, 2], [2, 1, 2]]
    bits = np.zeros((96, 96), np.int32)
    bits[1, 2], bits[3, 4] = 1 << 3, 1
    image = image_of(one(archive({"images": pixels(3, 96, 96), **LEGACY, "maskbits": bits})))
    assert np.argwhere(image.mask).tolist() == [[1, 1, 2]]
    hsc = np.full((2, 96, 96), 32, np.int32)  # detected
    hsc[1, 5, 6] |= 2  # saturated
    arrays = {"images": pixels(2, 96, 96), "bands": ["HSC-G", "HSC-R"], "zp": [27.0, 24.5], "pixscale": 0.168}
    observation = one(archive({**arrays, "mask": hsc}))
    image = image_of(observation)
    assert np.argwhere(image.mask).tolist() == [[1, 5, 6]]
    assert "saturated" in observation.flags
    assert np.array_equal(image.flux[0], arrays["images"][0])
    assert np.allclose(image.flux[1], arrays["images"][1] * 10, rtol=1e-6)


# Spectra


def spectra(n: int | None = None, **more: Any) -> dict[str, Any]:
    wave = 3600 + 0.8 * np.arange(500)
    flux = np.arange(500.0) + 1 if n is None else np.arange(n * 500.0).reshape(n, 500) + 1
    return {"wavelength": wave, "flux": flux, "ivar": np.full(flux.shape, 4.0), **DESI, **more}


def test_one_spectrum_with_bad_pixels() -> None:
    arrays = spectra(mask=np.arange(500) == 7)
    arrays["ivar"][3] = 0
    arrays["flux"][5] = np.nan
    observation = one(archive(arrays))
    spectrum = spectrum_of(observation)
    assert np.array_equal(spectrum.wavelength, arrays["wavelength"])
    assert np.flatnonzero(spectrum.mask).tolist() == [3, 5, 7]
    assert np.flatnonzero(spectrum.ivar == 0).tolist() == [3, 5, 7]
    assert spectrum.flux[5] == 0
    assert spectrum.flux[9] == 10
    assert (spectrum.unit, spectrum.medium, spectrum.frame) == (FLUX_DENSITY, "vacuum", "barycentric")
    assert set(observation.flags) == {"nan_pixels", "masked_pixels"}


def test_units_media_and_noise_are_converted() -> None:
    arrays = spectra(unit="erg / (s cm2 Angstrom)", medium="air", wavelength=None)
    arrays |= {"loglam": np.log10(6000 + np.arange(500.0)), "flux": np.full(500, 3e-17), "ivar": None}
    arrays["error"] = np.full(500, 0.5e-17)
    spectrum = spectrum_of(one(archive(arrays)))
    assert np.allclose(spectrum.wavelength, air_to_vacuum(6000 + np.arange(500.0)), rtol=1e-12)
    assert np.allclose(spectrum.flux, 3.0, rtol=1e-6)
    assert np.allclose(spectrum.ivar, 4.0, rtol=1e-6)
    assert spectrum.medium == "air"


def test_padding_of_ragged_batches_is_left_out() -> None:
    arrays = spectra(2)
    wave = np.tile(arrays["wavelength"], (2, 1))
    wave[1, 400:], arrays["ivar"][1, 400:] = 0, 0
    first, second = read(archive({**arrays, "wavelength": wave}))
    assert len(spectrum_of(first).wavelength) == 500
    assert len(spectrum_of(second).wavelength) == 400
    assert isinstance(second, Observation)
    assert "padding_dropped" in second.flags
    arrays["ivar"][1, 450] = 1
    _, broken = read(archive({**arrays, "wavelength": wave}))
    assert isinstance(broken, AlbireoError)
    assert (broken.code, broken.field) == ("wavelength_not_monotonic", "flux[1], wavelength")


@pytest.mark.parametrize(
    ("arrays", "options", "code"),
    [
        ({"survey": None}, {}, "survey_missing"),
        ({"survey": "6df"}, {}, "modality_unknown"),
        ({"unit": None}, {}, "unit_missing"),
        ({"unit": "Jy"}, {}, "unit_unknown"),
        ({"unit": "bananas"}, {}, "unit_unknown"),
        ({"medium": None}, {}, "medium_missing"),
        ({"medium": "water"}, {}, "option_invalid"),
        ({"frame": None}, {}, "frame_missing"),
        ({}, {"medium": "air"}, "statement_conflict"),
        ({}, {"survey": "sdss"}, "statement_conflict"),
        ({"ivar": None}, {}, "column_missing"),
        ({"wavelength": None}, {}, "column_missing"),
        ({"flux": None}, {}, "column_missing"),
        ({"wavelength": np.arange(10.0)}, {}, "shape_mismatch"),
        ({"wavelength": np.array(["a"] * 500)}, {}, "shape_mismatch"),
        ({"loglam": np.linspace(3.5, 4, 500)}, {}, "alias_ambiguous"),
        ({"wave": np.linspace(3500, 4000, 500)}, {}, "alias_ambiguous"),
        ({"survey": 7}, {}, "value_out_of_range"),
    ],
)
def test_what_spectra_do_not_state_is_an_error(arrays: dict[str, Any], options: dict[str, Any], code: str) -> None:
    assert code_of(archive({**spectra(), **arrays}), **options) == code


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"wavelength": (3600 + 0.8 * np.arange(500))[::-1]}, "wavelength_not_monotonic"),
        ({"wavelength": np.full(500, 5000.0)}, "wavelength_not_monotonic"),
        ({"wavelength": np.linspace(360, 980, 500)}, "wavelength_unit"),
        ({"ivar": np.zeros(500)}, "no_coverage"),
        ({"wavelength": np.full(500, np.nan), "ivar": np.zeros(500)}, "no_coverage"),
    ],
)
def test_spectra_that_cannot_be_used_fail_alone(change: dict[str, Any], code: str) -> None:
    (item,) = read(archive({**spectra(), **change}))
    assert isinstance(item, AlbireoError)
    assert item.code == code


# Safety


class Trap:
    """Unpickling it would be seen."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (pytest.fail, ("an archive was unpickled",))


def test_pickles_are_refused_and_never_loaded() -> None:
    trap = np.empty(1, object)
    trap[0] = Trap()
    stream = io.BytesIO()
    np.savez(stream, images=trap, **{key: np.asarray(value) for key, value in LEGACY.items()})
    assert code_of(Source("trap.npz", stream.getvalue())) == "pickle_refused"
    stream = io.BytesIO()
    np.savez(stream, images=pixels(3, 96, 96), extra=trap, **{k: np.asarray(v) for k, v in LEGACY.items()})
    assert one(Source("trap.npz", stream.getvalue())).metadata["ignored_arrays"] == ("extra",)
    members = io.BytesIO()
    with zipfile.ZipFile(members, "w") as zipped:
        zipped.writestr("images.npy", pickle.dumps([1, 2]))
    assert code_of(Source("trap.npz", members.getvalue())) == "damaged_file"


@pytest.mark.parametrize("header", [b"(-1, -1)", b",,"])
def test_headers_that_numpy_stumbles_over(header: bytes) -> None:
    content = archive({"images": np.zeros((4, 4), np.float32)}).content
    members = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as packed, zipfile.ZipFile(members, "w") as zipped:
        member = packed.read("images.npy")
        zipped.writestr("images.npy", member.replace(b"(4, 4)", header.ljust(6))[: len(member) - 60])
    assert code_of(Source("a.npz", members.getvalue())) == "damaged_file"


def test_texts_without_end() -> None:
    file = archive({"images": pixels(3, 96, 96), "bands": np.full(20_000, "g"), "survey": np.asarray("legacysurvey")})
    assert code_of(file) == "too_large"


def test_a_zip_bomb_is_refused_by_its_directory() -> None:
    file = archive({"images": np.zeros((3, 1000, 1000), np.float32)}, limit=1 << 20)
    assert len(file.content) < 1 << 20
    with pytest.raises(TooLarge):
        Archive(file, {})


def test_a_header_that_overstates_its_array_is_refused() -> None:
    claim = io.BytesIO()
    np.lib.format.write_array_header_1_0(claim, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)})
    members = io.BytesIO()
    with zipfile.ZipFile(members, "w") as zipped:
        zipped.writestr("images.npy", claim.getvalue() + b"\0" * 64)
    assert code_of(Source("lie.npz", members.getvalue())) == "damaged_file"


def test_damaged_archives() -> None:
    whole = archive({"images": pixels(3, 96, 96), **LEGACY}).content
    assert sniff_npz(Source("x", whole[: len(whole) // 2]))
    assert code_of(Source("half.npz", whole[: len(whole) // 2])) == "damaged_file"
    broken = bytearray(whole)
    broken[200:400] = b"\xff" * 200
    assert code_of(Source("bits.npz", bytes(broken))) == "damaged_file"


def test_other_zip_files_are_no_archives_of_arrays() -> None:
    members = io.BytesIO()
    with zipfile.ZipFile(members, "w") as zipped:
        zipped.writestr("readme.txt", "hello")
    assert not sniff_npz(Source("a.npz", members.getvalue()))
    assert not sniff_npz(Source("a.npz", b"PK\x03\x04"))
    assert not sniff_npz(Source("a.npz", b"SIMPLE  ="))
    assert sniff_npz(archive({"images": pixels(1, 2, 2)}))


# Real files


@pytest.mark.real
def test_a_real_hsc_scene_is_understood_and_too_small(test_data: Path) -> None:
    file = Source.from_path(test_data / "raw/images/hsc_cosmos_35.npz")
    assert sniff_npz(file)
    assert code_of(file) == "survey_missing"
    assert code_of(file, survey="hsc") == "unit_missing"
    assert code_of(file, survey="hsc", zero_point=27.0) == "pixel_scale_missing"
    (item,) = read(file, survey="hsc", zero_point=27.0, pixel_scale=0.168)
    assert isinstance(item, AlbireoError)
    assert item.code == "image_too_small"
    assert "48 x 58" in item.message


@pytest.mark.real
def test_real_cutouts_of_23_pixels_are_each_too_small(test_data: Path) -> None:
    file = Source.from_path(test_data / "eval/piczl_ls10_griz.npz")
    items = read(file, survey="legacysurvey", bands=("griz",), unit="nanomaggy", pixel_scale=0.262)
    assert [item.code for item in items if isinstance(item, AlbireoError)] == ["image_too_small"] * 26


@pytest.mark.real
def test_real_spectra_in_archives(test_data: Path) -> None:
    path = test_data / "eval/sdss_boss_spectra.npz"
    terms = {"survey": "sdss", "unit": FLUX_DENSITY, "medium": "vacuum", "frame": "heliocentric"}
    items = read(Source.from_path(path), **terms)
    raw = np.load(path)
    assert len(items) == 85
    for i, item in enumerate(items):
        spectrum = spectrum_of(item)
        good = raw["ivar"][i] > 0
        assert np.array_equal(~spectrum.mask, good)
        assert np.array_equal(spectrum.flux[good], raw["flux"][i][good].astype(np.float32))
        assert np.allclose(spectrum.wavelength, 10 ** raw["loglam"], rtol=1e-12)
    lamost = read(
        Source.from_path(test_data / "eval/lamost_spectra.npz"),
        **{**terms, "survey": "lamost", "unit": "relative flux"},
    )
    assert len(lamost) == 108
    assert all(isinstance(item, Observation) for item in lamost)
    desi = Source.from_path(test_data / "eval/desi_spectra.npz")
    named = read(desi, **{**terms, "survey": "desi"}, columns={"wavelength": "wave_brz"})
    # Cameras are concatenated in it, not co-added, so wavelengths step back; seven objects have no good pixel.
    codes = [item.code for item in named if isinstance(item, AlbireoError)]
    assert (codes.count("wavelength_not_monotonic"), codes.count("no_coverage")) == (17, 7)
    for name in ("eval/gaia_xp_apogee.npz", "eval/hst_cosmos10.npz", "eval/sn_spectra.npz"):
        assert code_of(Source.from_path(test_data / name), **terms) == "column_missing"


def test_text_of_numbers_that_are_no_characters() -> None:
    """numpy makes texts of any numbers, over which Python then stumbles; half a pair of surrogates cannot be sent."""
    for code in (0x110000, 0xFFFFFFFF, 0xD800):
        unit = np.frombuffer(np.array([code, 110], np.uint32).tobytes(), "<U2")
        assert code_of(archive({"image": pixels(3, 96, 96), **LEGACY, "unit": unit})) == "damaged_file"
    assert one(archive({"image": pixels(3, 96, 96), **LEGACY, "id": np.array("\U0010ffff")})).id == "\U0010ffff"


def test_catalogs_beside_what_is_no_image() -> None:
    columns = {f"catalog_{name}": [[48]] for name in ("x", "y", "shape_e1", "shape_e2", "shape_r")}
    for shape in ((), (5,)):
        assert code_of(archive({"images": np.ones(shape), **columns, **LEGACY})) == "shape_mismatch"


def test_elements_without_bytes() -> None:
    for kind in ("<U0", "|S0", "|V0"):
        stream = io.BytesIO(archive({"image": pixels(3, 96, 96), **LEGACY}).content)
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": kind, "fortran_order": False, "shape": (2,)})
        with zipfile.ZipFile(stream, "a") as more:
            more.writestr("ids.npy", head.getvalue())
        assert code_of(Source("a.npz", stream.getvalue())) == "shape_mismatch"
