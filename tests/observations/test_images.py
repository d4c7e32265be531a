"""FITS images: every trap of a cutout gives the right value or a typed error, and cuts are exact to the pixel."""

from __future__ import annotations

import gzip
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy import units
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from numpy.typing import NDArray
from scipy.special import erf

from albireo.observations import images
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.image_conventions import split_bands, unit_zero_point, zero_point
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Image, Observation
from albireo.observations.options import ReadOptions
from albireo.observations.source import Source

LEGACY = MODALITIES["tok_image"]
HSC = MODALITIES["tok_image_hsc"]


def cube(shape: tuple[int, ...] = (3, 96, 96), seed: int = 0) -> NDArray[Any]:
    """Noise in which every pixel has a value of its own, in FITS byte order."""
    return np.random.default_rng(seed).normal(0, 1, shape).astype(">f4")


def sky_cards(
    shape: tuple[int, int], scale: float = 0.262, angle: float = 0.0, center: tuple[float, float] = (150.0, 2.0)
) -> dict[str, Any]:
    """A tangent projection with east left, rotated by `angle` degrees, with `center` in the middle of the image."""
    cos, sin = np.cos(np.radians(angle)) * scale / 3600, np.sin(np.radians(angle)) * scale / 3600
    return {
        **{"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": center[0], "CRVAL2": center[1]},
        **{"CRPIX1": (shape[1] + 1) / 2, "CRPIX2": (shape[0] + 1) / 2},
        **{"CD1_1": -cos, "CD1_2": sin, "CD2_1": sin, "CD2_2": cos},
    }


def stated(shape: tuple[int, int] = (96, 96), **more: Any) -> dict[str, Any]:
    """Cards of a complete Legacy Survey cutout; None takes a card away."""
    cards = {"SURVEY": "LegacySurvey", "BANDS": "grz", "BUNIT": "nanomaggy", **sky_cards(shape), **more}
    return {key: value for key, value in cards.items() if value is not None}


def header(cards: dict[str, Any]) -> fits.Header:
    head = fits.Header()
    for key, value in cards.items():
        head[key] = value
    return head


def source(*hdus: fits.hdu.base._BaseHDU, name: str = "cutout.fits") -> Source:
    stream = io.BytesIO()
    fits.HDUList(list(hdus)).writeto(stream, output_verify="silentfix")
    return Source(name, stream.getvalue())


def cutout(pixels: NDArray[Any], cards: dict[str, Any], name: str = "cutout.fits") -> Source:
    return source(fits.PrimaryHDU(pixels, header(cards)), name=name)


def read(file: Source, **options: Any) -> Observation:
    (item,) = images.read_fits_image(file, ReadOptions(**options), ())
    assert isinstance(item, Observation), item
    return item


def image_of(observation: Observation) -> Image:
    (payload,) = observation.data.values()
    assert isinstance(payload, Image)
    return payload


def code_of(file: Source, **options: Any) -> str:
    with pytest.raises(BadInput) as caught:
        images.read_fits_image(file, ReadOptions(**options), ())
    assert str(caught.value)
    return caught.value.code


# Values


def test_exact_size_is_taken_as_it_is() -> None:
    pixels = cube()
    observation = read(cutout(pixels, stated()))
    image = image_of(observation)
    assert np.array_equal(image.flux, pixels.astype(np.float32))
    assert image.flux.dtype == np.float32
    assert image.flux.dtype.isnative
    assert image.bands == ("DES-G", "DES-R", "DES-Z")
    assert observation.flags == ("missing_bands",)
    assert image.kept_fraction == 1.0
    assert (image.unit, image.zero_point) == ("nanomaggy", 22.5)
    assert image.pixel_scale == pytest.approx(0.262, rel=1e-9)
    assert not image.mask.any()
    assert [(c.band, c.system, c.kind, c.extinction_corrected) for c in image.conventions] == [
        (band, "AB", "image", False) for band in image.bands
    ]
    assert observation.ra == pytest.approx(150.0, abs=1e-9)
    assert observation.dec == pytest.approx(2.0, abs=1e-9)


@pytest.mark.parametrize(("height", "width"), [(97, 97), (152, 152), (160, 131), (509, 300)])
def test_a_larger_image_is_cropped_at_its_centre_as_aion_does(height: int, width: int) -> None:
    pixels = cube((3, height, width))
    observation = read(cutout(pixels, stated((height, width))))
    y, x = (height - 96) // 2, (width - 96) // 2
    assert np.array_equal(image_of(observation).flux, pixels[:, y : y + 96, x : x + 96].astype(np.float32))
    assert "cropped" in observation.flags
    assert image_of(observation).kept_fraction == 96 * 96 / (height * width)


@pytest.mark.parametrize("shape", [(95, 96), (96, 95), (64, 64)])
def test_a_smaller_image_is_refused(shape: tuple[int, int]) -> None:
    assert code_of(cutout(cube((3, *shape)), stated(shape))) == "image_too_small"


@pytest.mark.parametrize("angle", [0.0, 37.0, 180.0, -90.0])
@pytest.mark.parametrize(("x", "y"), [(48, 48), (100, 61), (151, 151), (77, 130)])
def test_a_position_is_cut_to_the_pixel_whatever_the_rotation(angle: float, x: int, y: int) -> None:
    pixels = cube((3, 200, 200))
    cards = stated((200, 200), **sky_cards((200, 200), angle=angle))
    ra, dec = (float(v) for v in WCS(header(cards)).all_pix2world(x + 0.3, y - 0.4, 0))
    observation = read(cutout(pixels, cards), at=(ra, dec))
    expected = pixels[:, y - 48 : y + 48, x - 48 : x + 48].astype(np.float32)
    assert np.array_equal(image_of(observation).flux, expected)
    assert (observation.ra, observation.dec) == (ra, dec)
    assert ("rotated" in observation.flags) == (angle != 0)
    assert "mirrored" not in observation.flags


def test_the_centre_as_a_position_is_the_centre_crop() -> None:
    for size in (96, 97, 152, 201):
        file = cutout(cube((3, size, size)), stated((size, size)))
        assert np.array_equal(image_of(read(file)).flux, image_of(read(file, at=(150.0, 2.0))).flux), size


@pytest.mark.parametrize("at", [(150.0, 2.02), (330.0, -2.0), (10.0, 80.0)])
def test_a_position_without_its_whole_box_is_refused(at: tuple[float, float]) -> None:
    assert code_of(cutout(cube((3, 200, 200)), stated((200, 200))), at=at) == "position_outside"


def test_a_position_across_right_ascension_zero() -> None:
    cards = stated((300, 300), **sky_cards((300, 300), center=(0.001, 0.0)))
    observation = read(cutout(cube((3, 300, 300)), cards), at=(359.999, 0.0))
    # West is to the right: 0.002 degrees from the centre of the image, pixel 149.5.
    assert observation.metadata["box_start"] == (102.0, np.floor(149.5 + 0.002 * 3600 / 0.262 + 0.5) - 48)


def test_positions_need_world_coordinates() -> None:
    cards = {"SURVEY": "LegacySurvey", "BANDS": "grz", "BUNIT": "nanomaggy", "PIXSCALE": 0.262}
    assert code_of(cutout(cube((3, 120, 120)), cards), at=(150.0, 2.0)) == "wcs_missing"
    assert code_of(cutout(cube((3, 120, 120)), stated((120, 120))), at=(float("nan"), 2.0)) == "value_out_of_range"


def test_mirrored_images_are_flagged() -> None:
    cards = stated()
    cards["CD1_1"] = -cards["CD1_1"]
    assert "mirrored" in read(cutout(cube(), cards)).flags


# Zero points and units


@pytest.mark.parametrize(
    ("cards", "factor"),
    [
        ({"BUNIT": "nanomaggy"}, 1.0),
        ({"BUNIT": "nanomaggies"}, 1.0),
        ({"BUNIT": None, "MAGZERO": 22.5}, 1.0),
        ({"BUNIT": None, "MAGZERO": 27.0}, 10**-1.8),
        ({"BUNIT": "ADU", "MAGZPT": 30.0}, 10**-3.0),
        ({"BUNIT": None, "ZP": 25.0}, 0.1),
        ({"BUNIT": "nJy"}, 10 ** (0.4 * (22.5 - 31.4))),
        ({"BUNIT": "maggy"}, 1e9),
    ],
)
def test_fluxes_come_in_nanomaggies(cards: dict[str, Any], factor: float) -> None:
    pixels = cube()
    image = image_of(read(cutout(pixels, stated(**cards))))
    assert np.allclose(image.flux, pixels.astype(np.float64) * factor, rtol=1e-7, atol=0)


def test_hsc_comes_at_zero_point_27() -> None:
    pixels = cube((5, 96, 96))
    cards = {"INSTRUME": "HSC", "BANDS": "g,r,i,z,y", **sky_cards((96, 96), 0.168)}
    published = image_of(read(cutout(pixels, {**cards, "FLUXMAG0": 63095734448.0194})))
    assert published.bands == HSC.bands
    factor = 10 ** (0.4 * (27.0 - 2.5 * np.log10(63095734448.0194)))
    assert published.zero_point == 27.0
    assert np.allclose(published.flux, pixels * factor, rtol=1e-7)
    scaled = image_of(read(cutout(pixels, {**cards, "FLUXMAG0": 10**10.8})))
    assert np.array_equal(scaled.flux, pixels.astype(np.float32))
    assert scaled.flux[0, 0, 0] == pixels[0, 0, 0]
    njy = image_of(read(cutout(pixels, {**cards, "BUNIT": "nJy"})))
    assert np.allclose(njy.flux, pixels * 10 ** (0.4 * (27 - 31.4)), rtol=1e-6)


@pytest.mark.parametrize(
    ("cards", "options", "code"),
    [
        ({"BUNIT": None}, {}, "unit_missing"),
        ({"BUNIT": "adu"}, {}, "zero_point_missing"),
        ({"BUNIT": "electron/s"}, {}, "zero_point_missing"),
        ({"BUNIT": "mag"}, {}, "unit_unknown"),
        ({"BUNIT": "MJy/sr"}, {}, "unit_unknown"),
        ({"BUNIT": "bananas"}, {}, "unit_unknown"),
        ({"MAGZERO": 30.0}, {}, "statement_conflict"),
        ({"MAGZERO": 22.5, "FLUXMAG0": 1e12}, {}, "statement_conflict"),
        ({"MAGZERO": "bright"}, {}, "value_out_of_range"),
        ({}, {"zero_point": 25.0}, "statement_conflict"),
        ({}, {"unit": "nJy"}, "statement_conflict"),
        ({}, {"system": "Vega"}, "option_invalid"),
    ],
)
def test_a_flux_unit_is_stated_once_or_refused(cards: dict[str, Any], options: dict[str, Any], code: str) -> None:
    assert code_of(cutout(cube(), stated(**cards)), **options) == code


def test_options_supply_what_the_file_leaves_out() -> None:
    pixels = cube()
    bare = cutout(pixels, {})
    given = {"survey": "legacysurvey", "bands": ("g,r,z",), "pixel_scale": 0.262, "zero_point": 25.0, "release": "dr10"}
    observation = read(bare, **given)
    assert np.allclose(image_of(observation).flux, pixels * 0.1, rtol=1e-6)
    assert observation.provenance["tok_image"].release == "dr10"
    for missing, code in {
        "survey": "survey_missing",
        "bands": "band_missing",
        "pixel_scale": "pixel_scale_missing",
        "zero_point": "unit_missing",
    }.items():
        assert code_of(bare, **{key: value for key, value in given.items() if key != missing}) == code


def test_viewer_cutouts_are_nanomaggies_at_their_native_scale_only() -> None:
    cards = {"SURVEY": "LegacySurvey", "VERSION": "DR9", "IMAGETYP": "IMAGE", "BANDS": "grz"}
    observation = read(cutout(cube(), {**cards, **sky_cards((96, 96))}))
    assert image_of(observation).unit == "nanomaggy"
    assert observation.provenance["tok_image"].release == "dr9"
    coarse = cutout(cube(), {**cards, **sky_cards((96, 96), 0.524)})
    assert code_of(coarse, resample=True) == "unit_missing"


def test_units_and_band_lists() -> None:
    assert unit_zero_point("nanomaggy") == 22.5
    assert unit_zero_point("Jy") == pytest.approx(8.9, abs=1e-9)
    assert unit_zero_point("uJy") == pytest.approx(23.9, abs=1e-9)
    assert unit_zero_point(HSC.unit) == 27.0
    assert unit_zero_point("count") is None
    assert zero_point(LEGACY, [], [], ReadOptions(unit="nanomaggy", zero_point=22.5)) == 22.5
    for text in ("grz", "g,r,z", "g r z", "g;r;z", "g, r, z"):
        assert split_bands(text, LEGACY) == ("g", "r", "z")
    assert split_bands("DES-G", LEGACY) == ("DES-G",)


# Survey, bands


@pytest.mark.parametrize(
    ("cards", "options", "code"),
    [
        ({"SURVEY": None}, {}, "survey_missing"),
        ({"SURVEY": None, "INSTRUME": "DECam"}, {}, "survey_missing"),
        ({"SURVEY": "SDSS"}, {}, "modality_unknown"),
        ({"SURVEY": "DES"}, {}, "modality_unknown"),
        ({}, {"survey": "hsc"}, "statement_conflict"),
        ({}, {"survey": "nowhere"}, "statement_conflict"),
        ({"BANDS": None}, {}, "band_missing"),
        ({"BANDS": "gr"}, {}, "band_count"),
        ({"BANDS": "griz"}, {}, "band_count"),
        ({"BANDS": "ugr"}, {}, "band_unknown"),
        ({"BANDS": "ggr"}, {}, "band_count"),
        ({"BANDS": "HSC-G,HSC-R,HSC-Z"}, {}, "statement_conflict"),
        ({"BAND0": "g", "BAND1": "z", "BAND2": "r"}, {}, "statement_conflict"),
        ({}, {"bands": ("g", "r", "i")}, "statement_conflict"),
        ({"BANDS": None}, {"bands": ("g", "r")}, "band_count"),
        ({}, {"release": "dr10"}, None),
        ({"SURVEYDR": "DR9"}, {"release": "dr10"}, "statement_conflict"),
    ],
)
def test_survey_and_bands_are_stated_once_or_refused(
    cards: dict[str, Any], options: dict[str, Any], code: str | None
) -> None:
    file = cutout(cube(), stated(**cards))
    if code is None:
        read(file, **options)
    else:
        assert code_of(file, **options) == code


def test_bands_come_in_the_order_of_the_modality() -> None:
    pixels = cube((4, 96, 96))
    observation = read(cutout(pixels, stated(BANDS="z,i,g,r")))
    assert image_of(observation).bands == LEGACY.bands
    assert np.array_equal(image_of(observation).flux, pixels[[2, 3, 1, 0]].astype(np.float32))
    assert "missing_bands" not in observation.flags
    numbered = read(cutout(pixels, stated(BANDS=None, BAND1="z", BAND2="i", BAND3="g", BAND4="r")))
    assert np.array_equal(image_of(numbered).flux, image_of(observation).flux)


def test_full_band_names_state_the_survey() -> None:
    cards = {"BANDS": "HSC-R HSC-G", "MAGZERO": 27.0, **sky_cards((96, 96), 0.168)}
    pixels = cube((2, 96, 96))
    observation = read(cutout(pixels, cards))
    assert np.array_equal(observation.data["tok_image_hsc"].flux, pixels[::-1].astype(np.float32))


def test_one_hdu_per_band_by_filter_or_name_with_noise_and_masks() -> None:
    r, g = cube((96, 96), 1), cube((96, 96), 2)
    ivar = np.full((96, 96), 4.0, np.float32)
    ivar[3, 4] = 0.0
    mask = np.zeros((96, 96), np.uint8)
    mask[5, 6] = 1
    sky = header(sky_cards((96, 96)))
    hdus = [
        fits.PrimaryHDU(header=header({"SURVEY": "DECaLS", "MAGZERO": 25.0, "OBJID": 9007199254740993})),
        fits.ImageHDU(r, header({"FILTER": "r DECam SDSS c0002 6415.0 1480.0", **dict(sky)}), name="SCI1"),
        fits.ImageHDU(g, sky, name="IMAGE_G"),
        fits.ImageHDU(ivar, sky, name="INVVAR_G"),
        fits.ImageHDU(ivar * 2, sky, name="IVAR_R"),
        fits.ImageHDU(mask, sky, name="MASK"),
        fits.ImageHDU(np.zeros((5, 5), np.float32), name="PSF_G"),
        fits.BinTableHDU(Table({"x": [1.0]})),
    ]
    observation = read(source(*hdus))
    image = image_of(observation)
    assert image.bands == ("DES-G", "DES-R")
    assert np.allclose(image.flux, np.stack([g, r]).astype(np.float64) * 0.1, rtol=1e-7, atol=0)
    assert image.ivar is not None
    assert image.ivar[0, 0, 0] == pytest.approx(400.0)
    assert image.ivar[1, 0, 0] == pytest.approx(800.0)
    assert image.ivar[:, 3, 4].tolist() == [0.0, 0.0]
    assert image.ivar[:, 5, 6].tolist() == [0.0, 0.0]
    expected = np.zeros((2, 96, 96), bool)
    expected[:, 3, 4] = expected[:, 5, 6] = True
    assert np.array_equal(image.mask, expected)
    assert "masked_pixels" in observation.flags
    assert observation.id == "9007199254740993"
    assert observation.metadata["id_from"] == "OBJID"
    assert observation.metadata["ignored_hdus"] == ("PSF_G",)


def test_each_band_has_its_own_zero_point() -> None:
    g, r = cube((96, 96), 1), cube((96, 96), 2)
    sky = sky_cards((96, 96))
    observation = read(
        source(
            fits.PrimaryHDU(header=header({"SURVEY": "DECaLS"})),
            fits.ImageHDU(g, header({"FILTER": "g", "MAGZERO": 22.5, **sky})),
            fits.ImageHDU(r, header({"FILTER": "r", "MAGZERO": 25.0, **sky})),
        )
    )
    assert np.array_equal(image_of(observation).flux[0], g.astype(np.float32))
    assert np.allclose(image_of(observation).flux[1], r * 0.1, rtol=1e-6)


def test_bands_that_are_not_aligned_are_refused() -> None:
    shifted = sky_cards((96, 96)) | {"CRPIX1": 50.5}
    hdus = [
        fits.PrimaryHDU(header=header({"SURVEY": "DECaLS", "BUNIT": "nanomaggy"})),
        fits.ImageHDU(cube((96, 96)), header({"FILTER": "g", **sky_cards((96, 96))})),
        fits.ImageHDU(cube((96, 96)), header({"FILTER": "r", **shifted})),
    ]
    assert code_of(source(*hdus)) == "shape_mismatch"
    hdus[2] = fits.ImageHDU(cube((97, 96)), header({"FILTER": "r", **sky_cards((96, 96))}))
    assert code_of(source(*hdus)) == "shape_mismatch"


def test_northern_filters_are_flagged() -> None:
    assert "northern_filters" in read(cutout(cube(), stated(SURVEY="BASS+MzLS"))).flags
    assert "northern_filters" not in read(cutout(cube(), stated(SURVEY="DECaLS"))).flags


def test_a_viewer_file_with_noise_and_maskbits() -> None:
    pixels = cube()
    ivar = np.full((3, 96, 96), 9.0, np.float32)
    bits = np.zeros((96, 96), np.int16)
    bits[0, 0] = 1 << 0 | 1 << 1 | 1 << 12  # outside the brick's unique area, near a bright star, in a galaxy
    bits[1, 1] = 1 << 3  # saturated in r
    bits[2, 2] = 1 << 7  # touches a bad pixel in all z exposures
    cards = {"SURVEY": "LegacySurvey", "VERSION": "DR10", "BANDS": "grz", **sky_cards((96, 96))}
    observation = read(
        source(
            fits.PrimaryHDU(pixels, header({**cards, "IMAGETYP": "IMAGE"})),
            fits.ImageHDU(ivar, header({**cards, "IMAGETYP": "INVVAR"})),
            fits.ImageHDU(bits, header({**cards, "IMAGETYP": "MASKBITS"})),
        )
    )
    image = image_of(observation)
    assert np.argwhere(image.mask).tolist() == [[1, 1, 1], [2, 2, 2]]
    assert {"masked_pixels", "saturated"} <= set(observation.flags)
    assert image.ivar is not None
    assert image.ivar[0, 0, 0] == 9.0


def test_detected_pixels_of_an_hsc_mask_are_good() -> None:
    planes = {"MP_BAD": 0, "MP_SAT": 1, "MP_CR": 3, "HIERARCH MP_DETECTED": 5, "HIERARCH MP_NO_DATA": 10}
    mask = np.full((96, 96), 1 << 5, np.int32)
    mask[7, 8] |= 1 << 10
    mask[9, 9] |= 1 << 1
    variance = np.full((96, 96), 0.25, np.float32)
    observation = read(
        source(
            fits.PrimaryHDU(header=header({"FLUXMAG0": 10**10.8, "INSTRUME": "HSC", "FILTER": "HSC-I2"})),
            fits.ImageHDU(cube((96, 96)), header(sky_cards((96, 96), 0.168)), name="IMAGE"),
            fits.ImageHDU(mask, header(planes), name="MASK"),
            fits.ImageHDU(variance, name="VARIANCE"),
        )
    )
    image = image_of(observation)
    assert image.bands == ("HSC-I",)
    assert np.argwhere(image.mask).tolist() == [[0, 7, 8], [0, 9, 9]]
    assert {"saturated", "masked_pixels", "missing_bands", "second_filters"} <= set(observation.flags)
    assert image.ivar is not None
    assert image.ivar[0, 0, 0] == 4.0


# Pixels


def test_nan_pixels_are_zero_and_masked() -> None:
    pixels = cube()
    pixels[1, 10, 20] = np.nan
    pixels[2, 30, 40] = np.inf
    observation = read(cutout(pixels, stated()))
    image = image_of(observation)
    assert "nan_pixels" in observation.flags
    assert np.argwhere(image.mask).tolist() == [[1, 10, 20], [2, 30, 40]]
    assert image.flux[1, 10, 20] == image.flux[2, 30, 40] == 0.0
    assert np.isfinite(image.flux).all()


def test_nan_outside_the_box_is_no_matter() -> None:
    pixels = cube((3, 120, 120))
    pixels[:, 0, 0] = np.nan
    assert "nan_pixels" not in read(cutout(pixels, stated((120, 120)))).flags


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_blank_image_is_refused_and_a_blank_band_masked(value: float) -> None:
    pixels = np.full((3, 96, 96), value, ">f4")
    assert code_of(cutout(pixels, stated())) == "image_blank"
    pixels[:2] = cube((2, 96, 96))
    observation = read(cutout(pixels, stated()))
    assert "blank_band" in observation.flags
    assert image_of(observation).mask[2].all()
    assert not image_of(observation).mask[:2].any()


def test_display_levels_in_fits_are_refused() -> None:
    assert code_of(cutout(np.ones((3, 96, 96), np.uint8), stated())) == "not_photometric"
    assert code_of(cutout(cube(), stated(IMAGETYP="model"))) == "not_photometric"


def test_scaled_integers_are_fluxes() -> None:
    hdu = fits.PrimaryHDU(cube())
    values = hdu.data.astype(np.float64)
    hdu.scale("int16", bscale=0.001, bzero=1.0)
    hdu.header.update(header(stated()))
    assert np.allclose(image_of(read(source(hdu))).flux, values, atol=0.0006)


def test_compressed_and_gzipped_images() -> None:
    pixels = cube((96, 96))
    cards = header(stated(BANDS=None, FILTER="r"))
    packed = source(fits.PrimaryHDU(), fits.CompImageHDU(pixels, cards, compression_type="GZIP_1", quantize_level=0))
    assert images.sniff_fits_image(packed)
    assert np.array_equal(image_of(read(packed)).flux[0], pixels.astype(np.float32))
    plain = cutout(pixels, stated(BANDS="r"))
    zipped = Source("a.fits.gz", gzip.compress(plain.content))
    assert np.array_equal(image_of(read(zipped)).flux, image_of(read(plain)).flux)
    assert read(zipped).id == "a"


def test_truncated_files_are_damaged() -> None:
    whole = cutout(cube(), stated())
    with pytest.warns(UserWarning, match="truncated"):
        assert code_of(Source("half.fits", whole.content[: len(whole.content) // 2])) == "damaged_file"


def test_a_card_that_breaks_the_standard_is_an_error_only_where_it_is_read() -> None:
    whole = cutout(cube(), stated(MAGZERO=22.5, OBSERVER="nobody")).content
    harmless = whole.replace(b"OBSERVER= 'nobody  '", b"OBSERVER= nobody!!!!")
    assert harmless != whole
    assert image_of(read(Source("a.fits", harmless))).zero_point == 22.5
    broken = whole.replace(b"MAGZERO =                 22.5", b"MAGZERO =                 22,5")
    assert broken != whole
    with pytest.raises(BadInput) as caught:
        read(Source("a.fits", broken))
    assert (caught.value.code, caught.value.field) == ("damaged_file", "MAGZERO")


@pytest.mark.filterwarnings("ignore")
def test_damaged_headers_give_typed_errors_only() -> None:
    whole = cutout(cube(), stated()).content
    rng = np.random.default_rng(5)
    failed = 0
    for _ in range(60):
        content = bytearray(whole)
        for place in rng.integers(0, 2880, rng.integers(1, 8)):
            content[place] = rng.integers(32, 127)
        file = Source("a.fits", bytes(content))
        try:
            if images.sniff_fits_image(file):
                images.read_fits_image(file, ReadOptions(at=(150.0, 2.0)), ())
        except AlbireoError:
            failed += 1
    assert 10 < failed < 60


def test_the_input_is_not_changed() -> None:
    file = cutout(cube((3, 120, 120)), stated((120, 120)))
    before = hashlib.sha256(file.content).hexdigest()
    first = image_of(read(file))
    second = image_of(read(file))
    assert hashlib.sha256(file.content).hexdigest() == before == file.sha256
    assert np.array_equal(first.flux, second.flux)


# Pixel scale


@pytest.mark.parametrize(("scale", "good"), [(0.262, True), (0.266, True), (0.258, True), (0.27, False), (0.25, False)])
def test_two_percent_of_pixel_scale_are_allowed(scale: float, good: bool) -> None:
    file = cutout(cube((3, 130, 130)), stated((130, 130), **sky_cards((130, 130), scale, angle=20)))
    if good:
        assert image_of(read(file)).pixel_scale == pytest.approx(scale, rel=1e-6)
        assert "resampled" not in read(file).flags
    else:
        assert code_of(file) == "pixel_scale"
        assert "resampled" in read(file, resample=True).flags


def test_scales_must_agree_and_must_be_stated() -> None:
    assert code_of(cutout(cube(), stated(PIXSCALE=0.5))) == "statement_conflict"
    assert code_of(cutout(cube(), stated()), pixel_scale=0.168) == "statement_conflict"
    cards = stated()
    for key in ("CD1_1", "CD1_2", "CD2_1", "CD2_2"):
        del cards[key]
    # Without CDELT the standard's default would be one degree per pixel.
    assert code_of(cutout(cube(), cards)) == "pixel_scale_missing"
    assert image_of(read(cutout(cube(), cards), pixel_scale=0.262)).pixel_scale == 0.262
    assert code_of(cutout(cube(), stated(CD1_1=0.0, CD2_2=0.0))) == "damaged_file"


def galaxy(size: int, scale: float, sigma: float, at: tuple[float, float] = (0.0, 0.0)) -> NDArray[np.float64]:
    """A round Gaussian of total flux 100; sigma and offset of its centre (x, y) in arcsec, pixels integrated."""
    edges = (np.arange(size + 1) - size / 2) * scale
    x, y = (np.diff(erf((edges - p) / (np.sqrt(2) * sigma))) / 2 for p in at)
    return 100.0 * np.outer(y, x)


@pytest.mark.parametrize(("scale", "size"), [(0.131, 220), (0.2, 150), (0.396, 90), (0.524, 60)])
@pytest.mark.parametrize("sigma", [0.6, 1.5])
def test_resampling_conserves_flux_and_shape(scale: float, size: int, sigma: float) -> None:
    model = galaxy(size, scale, sigma, (1.0, -0.7)).astype(">f4")
    file = cutout(np.stack([model] * 3), stated((size, size), **sky_cards((size, size), scale)))
    observation = read(file, resample=True)
    image = image_of(observation)
    assert image.flux.shape == (3, 96, 96)
    assert image.pixel_scale == 0.262
    assert "resampled" in observation.flags
    assert image.flux[0].sum() == pytest.approx(100.0, rel=2e-3)
    truth = galaxy(96, 0.262, sigma, (1.0, -0.7))
    assert np.abs(image.flux[0] - truth).max() < 0.04 * truth.max()
    if scale <= 0.262:
        assert np.abs(image.flux[0] - truth).max() < 0.002 * truth.max()
    assert image.kept_fraction == pytest.approx((96 * 0.262 / (size * scale)) ** 2)
    assert (observation.ra, observation.dec) == pytest.approx((150.0, 2.0), abs=1e-9)


def test_resampling_makes_oblong_pixels_square() -> None:
    x = np.exp(-0.5 * (((np.arange(220) - 109.5) * 0.131) / 1.5) ** 2)
    y = np.exp(-0.5 * (((np.arange(80) - 39.5) * 0.393) / 1.5) ** 2)
    cards = stated((80, 220), **sky_cards((80, 220)))
    cards |= {"CD1_1": -0.131 / 3600, "CD2_2": 0.393 / 3600}
    file = cutout(np.stack([np.outer(y, x)] * 3).astype(">f4"), cards)
    assert code_of(file) == "pixel_scale"
    flux = image_of(read(file, resample=True)).flux[0].astype(np.float64)
    offset = (np.arange(96) - 47.5) * 0.262
    for axis in (0, 1):
        assert np.sqrt((flux.sum(axis) * offset**2).sum() / flux.sum()) == pytest.approx(1.5, rel=0.02)


def test_resampling_puts_the_position_in_the_middle() -> None:
    model = galaxy(300, 0.2, 0.8, (5.3, -4.1)).astype(">f4")
    cards = stated((300, 300), **sky_cards((300, 300), 0.2))
    ra, dec = (float(v) for v in WCS(header(cards)).all_pix2world(149.5 + 5.3 / 0.2, 149.5 - 4.1 / 0.2, 0))
    image = image_of(read(cutout(np.stack([model] * 3), cards), resample=True, at=(ra, dec)))
    assert np.abs(image.flux[0] - galaxy(96, 0.262, 0.8)).max() < 0.01 * image.flux[0].max()


def test_resampling_spreads_masks_and_drops_ivar() -> None:
    size = 150
    pixels = cube((1, size, size))
    pixels[0, 75, 75] = np.nan
    observation = read(
        source(
            fits.PrimaryHDU(pixels[0], header(stated((size, size), BANDS="r", **sky_cards((size, size), 0.2)))),
            fits.ImageHDU(np.ones((size, size), np.float32), name="IVAR"),
        ),
        resample=True,
    )
    image = image_of(observation)
    assert image.ivar is None
    assert {"resampled", "ivar_dropped", "nan_pixels"} <= set(observation.flags)
    assert image.mask[0, 48, 48]
    assert 4 <= image.mask.sum() <= 16
    assert np.isfinite(image.flux).all()


def test_too_few_arcseconds_to_resample() -> None:
    file = cutout(cube((3, 96, 96)), stated(**sky_cards((96, 96), 0.2)))
    assert code_of(file, resample=True) == "image_too_small"


# Mosaics and tables of positions


def mosaic() -> tuple[NDArray[Any], Source]:
    pixels = cube((3, 400, 400))
    return pixels, cutout(pixels, stated((400, 400)), "mosaic.fits")


def positions_csv() -> str:
    wcs = WCS(header(stated((400, 400))), naxis=2)
    lines = ["id,RA,Dec"]
    for name, x, y in (("007", 100, 100), ("9007199254740993", 250, 300), ("edge", 30, 200), ("far", 5000, 200)):
        ra, dec = wcs.all_pix2world(x, y, 0)
        lines.append(f"{name},{ra:.9f},{dec:.9f}")
    return "\n".join([*lines, "broken,,1.0"]) + "\n"


def test_a_mosaic_gives_one_object_per_row_and_bad_rows_fail_alone() -> None:
    pixels, file = mosaic()
    table = Source("where.csv", positions_csv().encode())
    options = ReadOptions(positions="where.csv")
    assert images.completes(file, table, options)
    assert not images.completes(file, Source("other.csv", b"id"), options)
    assert not images.completes(file, table, ReadOptions())
    items = images.read_fits_image(file, options, [table])
    assert [item.id if isinstance(item, Observation) else item.code for item in items] == [
        "007",
        "9007199254740993",
        "position_outside",
        "position_outside",
        "value_out_of_range",
    ]
    assert isinstance(items[1], Observation)
    assert np.array_equal(image_of(items[1]).flux, pixels[:, 252:348, 202:298].astype(np.float32))
    assert items[1].provenance["tok_image"].row == 1
    assert image_of(items[1]).kept_fraction == (96 / 400) ** 2
    failed = items[4]
    assert isinstance(failed, AlbireoError)
    assert (failed.file, failed.field) == ("where.csv", "row 4")
    outside = items[2]
    assert isinstance(outside, AlbireoError)
    assert (outside.file, outside.field) == ("mosaic.fits", "where.csv row 2, position")


@pytest.mark.parametrize("kind", ["ecsv", "fits"])
def test_positions_in_other_tables(kind: str) -> None:
    _, file = mosaic()
    table = Table({"TARGETID": np.array([9007199254740993]), "ra": [np.radians(150.0)] * units.rad, "dec": [2.0]})
    stream: Any
    if kind == "ecsv":
        stream = io.StringIO()
        table.write(stream, format="ascii.ecsv")
        content = stream.getvalue().encode()
    else:
        stream = io.BytesIO()
        table.write(stream, format="fits")
        content = stream.getvalue()
    (item,) = images.read_fits_image(file, ReadOptions(positions="where"), [Source("where", content)])
    assert isinstance(item, Observation)
    assert item.id == "9007199254740993"
    assert (item.ra, item.dec) == pytest.approx((150.0, 2.0))


@pytest.mark.parametrize(
    ("content", "options", "code"),
    [
        (b"id,dec\n1,2\n", {}, "column_missing"),
        (b"id,objid,ra,dec\n1,1,150,2\n", {}, "alias_ambiguous"),
        (b"id,ra,dec\n", {}, "empty_file"),
        (b"id,ra,dec\n1,2\n", {}, "damaged_file"),
        (b"id,ra,dec\n1,150,2\n", {"columns": {"id": "name"}}, "column_unknown"),
        (b"id,ra,dec\n1,150,2\n", {"at": (150.0, 2.0)}, "option_invalid"),
    ],
)
def test_tables_of_positions_that_cannot_be_used(content: bytes, options: dict[str, Any], code: str) -> None:
    _, file = mosaic()
    with pytest.raises(BadInput) as caught:
        images.read_fits_image(file, ReadOptions(positions="p.csv", **options), [Source("p.csv", content)])
    assert caught.value.code == code


def test_the_table_of_positions_must_be_there() -> None:
    assert code_of(mosaic()[1], positions="p.csv") == "companion_missing"


# Recognition


def test_spectra_and_tables_are_no_images() -> None:
    lamost = fits.PrimaryHDU(np.zeros((5, 3900), np.float32))
    lamost.header["COEFF0"] = 3.5682
    linear = fits.PrimaryHDU(np.zeros((4, 2000), np.float32))
    linear.header["CTYPE1"] = "WAVE"
    desi = [
        fits.PrimaryHDU(),
        fits.ImageHDU(np.arange(100.0), name="B_WAVELENGTH"),
        fits.ImageHDU(np.zeros((4, 100)), name="B_FLUX"),
    ]
    table = [fits.PrimaryHDU(), fits.BinTableHDU(Table({"flux": [1.0]}))]
    line = [fits.PrimaryHDU(np.zeros(100))]
    for hdus in ([lamost], [linear], desi, table, line):
        assert not images.sniff_fits_image(source(*hdus))
    assert images.sniff_fits_image(cutout(cube(), stated()))
    assert not images.sniff_fits_image(Source("x", b"id,ra,dec\n"))


def test_pictures_are_recognised_and_refused() -> None:
    sniffs = {name: sniff for name, _, sniff, *_ in images.FORMATS}
    for name, content in {"jpeg": b"\xff\xd8\xff\xe0rest", "png": b"\x89PNG\r\n\x1a\nrest"}.items():
        file = Source("galaxy.fits", content)
        assert [key for key, sniff in sniffs.items() if sniff(file)] == [name]
        with pytest.raises(BadInput) as caught:
            images.refuse_picture(file, ReadOptions(), ())
        assert caught.value.code == "not_photometric"
        assert caught.value.fix


# Real files


@pytest.mark.real
def test_a_real_decals_cutout(test_data: Path) -> None:
    path = test_data / "raw/images/decals_grz_a.fits"
    before = path.read_bytes()
    file = Source.from_path(path)
    assert images.sniff_fits_image(file)
    observation = read(file)
    image = image_of(observation)
    raw = fits.getdata(path)
    assert np.array_equal(image.flux, raw[:, 206:302, 206:302].astype(np.float32))
    assert image.bands == ("DES-G", "DES-R", "DES-Z")
    assert image.kept_fraction == (96 / 509) ** 2
    assert observation.flags == ("missing_bands", "cropped")
    assert observation.provenance["tok_image"].release == "dr5"
    assert observation.ra == pytest.approx(359.995016, abs=1e-4)
    assert path.read_bytes() == before
    head = fits.getheader(path)
    again = read(file, at=(head["CRVAL1"], head["CRVAL2"]))
    assert np.array_equal(image_of(again).flux, image.flux)


@pytest.mark.real
def test_real_pictures_are_refused(test_data: Path) -> None:
    paths = sorted((test_data / "raw/images").glob("*.jpeg"))
    assert len(paths) == 10
    for path in paths:
        file = Source.from_path(path)
        assert images.sniff_jpeg(file)
        with pytest.raises(BadInput, match="not_photometric"):
            images.refuse_picture(file, ReadOptions(), ())


@pytest.mark.real
def test_no_other_real_file_is_taken_for_an_image(test_data: Path) -> None:
    others = [path for path in (test_data / "raw").rglob("*") if path.is_file() and path.parent.name != "images"]
    assert len(others) > 20
    for path in others:
        file = Source.from_path(path)
        assert not any(sniff(file) for _, _, sniff, *_ in images.FORMATS), path.name


@pytest.mark.parametrize(
    ("kind", "value"), [("StdDevUncertainty", 2.0), ("VarianceUncertainty", 4.0), ("InverseVariance", 0.25)]
)
def test_uncertainties_of_ccddata_are_what_they_say(kind: str, value: float) -> None:
    """As astropy's CCDData writes them: one name, and the kind in UTYPE."""
    plane = cube()[:1]
    noise = fits.ImageHDU(np.full((96, 96), value, np.float32), name="UNCERT")
    noise.header["UTYPE"] = kind
    flux = fits.PrimaryHDU(plane[0], header(stated() | {"FILTER": "g"}))
    image = image_of(read(source(flux, noise), survey="legacysurvey", bands=("g",)))
    assert image.ivar is not None
    assert image.ivar[0, 5, 5] == pytest.approx(0.25)


def test_an_unknown_kind_of_uncertainty_is_asked_for() -> None:
    noise = fits.ImageHDU(np.ones((96, 96), np.float32), name="UNCERT")
    noise.header["UTYPE"] = "unknown"
    flux = fits.PrimaryHDU(cube()[0], header(stated() | {"FILTER": "g"}))
    assert code_of(source(flux, noise), survey="legacysurvey", bands=("g",)) == "convention_missing"


def test_world_coordinates_of_texts() -> None:
    assert code_of(cutout(cube(), stated(A_ORDER="none"))) == "damaged_file"


def test_a_tile_that_cannot_be_unfolded() -> None:
    image = fits.CompImageHDU(cube().astype(">f4"), header(stated()), compression_type="GZIP_1", quantize_level=0)
    content = source(fits.PrimaryHDU(), image).content
    at = content.index(b"\x1f\x8b") + 20
    assert code_of(Source("a.fits", content[:at] + b"\xff" * 40 + content[at + 40 :])) == "damaged_file"
