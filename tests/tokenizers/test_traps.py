"""Inputs from which the released package makes a silently wrong token, and what becomes of them here.

Where it costs little, the package's own answer stands beside ours, so that a trap is shown and not only told.
The table of traps and decisions is in docs/aion.md.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from aion import modalities as theirs
from aion.codecs.image import ImageCodec
from aion.codecs.scalar import GridScalarCodec, ScalarCodec
from aion.codecs.spectrum import SpectrumCodec

from albireo.observations.errors import BadCheckpoint, BadInput
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Coefficients, Image, Scalar, Spectrum
from albireo.tokenizers.bank import as_row, build
from albireo.tokenizers.image import HSC_SCALE, ImageTokenizer
from albireo.tokenizers.preprocessing import AION_1, ALBIREO_1, PREPROCESSINGS
from albireo.tokenizers.scalar import CoefficientsTokenizer, ScalarTokenizer
from albireo.tokenizers.spectrum import SpectrumTokenizer

IMAGE: dict[str, Any] = {"quantizer_levels": [7, 5, 5, 5, 5], "hidden_dims": 16, "num_consecutive": 1}
SPECTRUM: dict[str, Any] = {
    "encoder_dims": [8, 8, 8, 16], "decoder_dims": [8, 8, 8, 2], "latent_channels": 16, "embedding_dim": 10,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "tok_image": IMAGE,
    "tok_spectrum_desi": SPECTRUM,
    "tok_xp_bp": {"codebook_size": 8, "reservoir_size": 10, "num_quantizers": 55, "compression_fns": ["arcsinh"]},
    "tok_flux_g": {"codebook_size": 8, "reservoir_size": 10, "min_log_value": -3},
    "tok_ebv": {"codebook_size": 8, "reservoir_size": 10},
    "tok_z": {"codebook_size": 1024},
    "tok_segmap": {"encoder_output_dim": 16, "res_hidden_dims": 8, "embedding_dim": 4},
    "catalog": {"codebook_size": 8, "reservoir_size": 10},
}
"""A configuration of each kind of codec, small."""


def wild(module: torch.nn.Module) -> torch.nn.Module:
    """Draw all weights, gates and norms too, so that every input pixel can change a token."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(std=0.3, generator=generator)
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.add_(1.0)
    return module.eval()


def image_tokenizer(preprocessing: str = AION_1, key: str = "tok_image") -> ImageTokenizer:
    tokenizer = as_row(build(MODALITIES["tok_image"], IMAGE | {"preprocessing": preprocessing}), MODALITIES[key])
    assert isinstance(tokenizer, ImageTokenizer)
    wild(tokenizer)
    return tokenizer


def spectrum_tokenizer(preprocessing: str = AION_1) -> SpectrumTokenizer:
    tokenizer = build(MODALITIES["tok_spectrum_desi"], SPECTRUM | {"preprocessing": preprocessing})
    assert isinstance(tokenizer, SpectrumTokenizer)
    wild(tokenizer)
    return tokenizer


def image(key: str = "tok_image") -> Image:
    row = MODALITIES[key]
    flux = np.random.default_rng(1).normal(0, 0.3, (len(row.bands), 96, 96)).astype(np.float32)
    flux[:, 40:56, 40:56] += 2
    return Image(flux, row.bands, row.pixel_scale or 0, row.unit, 22.5, np.zeros(flux.shape, bool), ())


def spectrum(**changes: Any) -> Spectrum:
    rng = np.random.default_rng(2)
    wavelength = 3600 + 0.8 * np.arange(7781)
    flux = (5 + 2 * np.sin(wavelength / 300) + rng.normal(0, 0.2, 7781)).astype(np.float32)
    base = Spectrum(wavelength, flux, np.full(7781, 25, np.float32), np.zeros(7781, bool), "", "heliocentric")
    return dataclasses.replace(base, **changes)


def code_of(error: pytest.ExceptionInfo[BadInput]) -> str:
    return error.value.code


# Which preprocessing


@pytest.mark.parametrize("key", CONFIGS)
def test_every_kind_of_tokenizer_knows_both_preprocessings_and_refuses_others(key: str) -> None:
    row, config = MODALITIES[key], CONFIGS[key]
    assert build(row, config).preprocessing == AION_1, "what names none is AION-1's"
    for name in PREPROCESSINGS:
        assert build(row, config | {"preprocessing": name}).preprocessing == name
    with pytest.raises(BadCheckpoint, match="aion-2") as caught:
        build(row, config | {"preprocessing": "aion-2"})
    assert caught.value.code == "checkpoint_invalid"
    assert caught.value.fix == "one of aion-1, albireo-1"


# Images


def test_masked_pixels_of_an_image() -> None:
    given = image()
    mask = given.mask.copy()
    mask[1, 10:20, 10:20] = True
    spoilt = given.flux.copy()
    spoilt[mask] = 14.0
    masked, other = dataclasses.replace(given, mask=mask), dataclasses.replace(given, mask=mask, flux=spoilt)
    released, corrected = image_tokenizer(), image_tokenizer(ALBIREO_1)
    assert released.check(given) == () == corrected.check(masked)
    assert released.check(other) == ("masked_pixels_used",)
    assert released.check(dataclasses.replace(other, flux=np.where(mask, np.float32(0), spoilt))) == ()
    assert not torch.equal(released.encode([masked]), released.encode([other]))
    assert torch.equal(corrected.encode([masked]), corrected.encode([other]))
    assert torch.equal(released.encode([given]), corrected.encode([given])), "without masks there is no difference"
    assert (other.flux[mask] == 14.0).all(), "the input is as it was"


def test_a_band_of_masked_pixels_is_absent_in_the_corrected_version() -> None:
    given = image()
    mask = given.mask.copy()
    mask[2] = True
    masked = dataclasses.replace(given, mask=mask)
    rest = [0, 1, 3]
    without = dataclasses.replace(
        given, flux=given.flux[rest], mask=given.mask[rest], bands=tuple(given.bands[i] for i in rest)
    )
    corrected = image_tokenizer(ALBIREO_1)
    assert corrected.check(masked) == ("band_left_out",)
    assert torch.equal(corrected.encode([masked]), corrected.encode([without]))
    released = image_tokenizer()
    assert not torch.equal(released.encode([masked]), released.encode([without]))
    with pytest.raises(BadInput) as caught:
        corrected.check(dataclasses.replace(given, mask=np.ones_like(mask)))
    assert code_of(caught) == "image_blank"


def test_nan_pixels_of_an_image() -> None:
    given = image()
    flux, mask = given.flux.copy(), given.mask.copy()
    flux[0, 3, 3] = np.nan
    mask[0, 3, 3] = True
    for tokenizer, bad in (
        (image_tokenizer(), dataclasses.replace(given, flux=flux, mask=mask)),
        (image_tokenizer(ALBIREO_1), dataclasses.replace(given, flux=flux)),
    ):
        with pytest.raises(BadInput) as caught:
            tokenizer.encode([bad])
        assert code_of(caught) == "not_finite"
    assert image_tokenizer(ALBIREO_1).check(dataclasses.replace(given, flux=flux, mask=mask)) == ()


@torch.no_grad()
def test_small_images_and_planes_without_a_name_are_taken_by_the_package_and_refused_here() -> None:
    codec = ImageCodec(**IMAGE).eval()
    given = image()
    tensor = torch.tensor(given.flux)[None]
    small = codec.encode(theirs.LegacySurveyImage(flux=tensor[:, :, :64, :64].clone(), bands=list(given.bands)))
    assert small.shape != (1, 576), "fewer tokens, without a word"
    three = list(given.bands[:3])
    dropped = codec.encode(theirs.LegacySurveyImage(flux=tensor.clone(), bands=three))
    assert torch.equal(dropped, codec.encode(theirs.LegacySurveyImage(flux=tensor[:, :3].clone(), bands=three)))
    tokenizer = image_tokenizer()
    for changes, code in (
        ({"flux": given.flux[:, :64, :64], "mask": given.mask[:, :64, :64]}, "shape_mismatch"),
        ({"bands": given.bands[:3]}, "shape_mismatch"),
        ({"mask": given.mask[:3]}, "shape_mismatch"),
        ({"bands": (*given.bands[:3], given.bands[0])}, "band_count"),
        ({"bands": (), "flux": given.flux[:0], "mask": given.mask[:0]}, "band_unknown"),
    ):
        with pytest.raises(BadInput) as caught:
            tokenizer.encode([dataclasses.replace(given, **changes)])
        assert code_of(caught) == code


def test_a_blank_image_is_flagged() -> None:
    assert image_tokenizer().check(dataclasses.replace(image(), flux=np.zeros((4, 96, 96), np.float32))) == (
        "blank_image",
    )


@torch.no_grad()
def test_hsc_images_are_decoded() -> None:
    codec = wild(ImageCodec(**IMAGE))
    tokenizer = image_tokenizer(key="tok_image_hsc")
    row = MODALITIES["tok_image_hsc"]
    tokens = torch.randint(0, 4375, (1, 576), generator=torch.Generator().manual_seed(1))
    # Decoding ends in a sinh: weights that keep its argument small.
    spread = codec.decoder(codec.post_quant_proj(codec.quantizer.decode(tokens).unflatten(2, (24, 24)))).std()
    codec.subsample_out.weight.mul_(0.05 / spread)
    codec.subsample_out.bias.zero_()
    tokenizer.load_state_dict(codec.state_dict())
    with pytest.raises(AttributeError, match="reverse_zeropoint"):
        codec.decode(tokens, bands=list(row.bands))
    # Its own parts up to the call that fails: without HSC first in the list no factor is looked for.
    names = [MODALITIES["tok_image"].bands[0], *row.bands]
    expected = codec.decode(tokens, bands=names).flux[:, 1:] * HSC_SCALE
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(tokenizer.decode(tokens), expected, rtol=1e-4, atol=1e-4)
    assert pytest.approx(63.0957, abs=1e-4) == HSC_SCALE


# Spectra


def test_a_masked_spike_is_flagged_where_it_is_read() -> None:
    released, corrected = spectrum_tokenizer(), spectrum_tokenizer(ALBIREO_1)
    mask = np.zeros(7781, bool)
    mask[[700, 3000, 3001]] = True
    quiet = spectrum(mask=mask)
    assert released.check(quiet) == ()
    spiked = quiet.flux.copy()
    spiked[3000] = 1e4
    loud = dataclasses.replace(quiet, flux=spiked)
    assert released.check(loud) == ("masked_pixels_used",)
    assert corrected.check(loud) == ()
    assert not torch.equal(released.encode([quiet]), released.encode([loud]))
    assert torch.equal(corrected.encode([quiet]), corrected.encode([loud]))
    # A masked NaN is read as 0, which is as far from its neighbours.
    spiked[3000] = np.nan
    assert released.check(dataclasses.replace(quiet, flux=spiked)) == ("masked_pixels_used",)
    outside = dataclasses.replace(
        loud, wavelength=np.append(3400 - 0.1 * np.arange(3002)[::-1], 3600 + np.arange(4779))
    )
    assert "masked_pixels_used" not in released.check(outside), "outside of the grid nobody reads it"


def test_the_noise_of_the_corrected_version_does_not_depend_on_the_scale() -> None:
    """S.d. of flux / n is sigma / n, so 1 / s.d. is to be multiplied by n; AION-1 divides it."""
    bright = spectrum(flux=spectrum().flux * np.float32(100), ivar=spectrum().ivar / np.float32(1e4))
    change = {}
    for name in PREPROCESSINGS:
        tokenizer = spectrum_tokenizer(name)
        istd = []
        for given in (spectrum(), bright):
            arrays = (torch.tensor(np.asarray(a, np.float32))[None] for a in (given.flux, given.ivar))
            wavelength = torch.tensor(given.wavelength.astype(np.float32))[None]
            x, _ = tokenizer.network_input(*arrays, torch.tensor(given.mask)[None], wavelength)
            istd.append(float(torch.sinh(x[0, 1, 4000])))
        change[name] = istd[1] / istd[0]
    assert change[ALBIREO_1] == pytest.approx(1.0, rel=0.05)
    assert change[AION_1] == pytest.approx(1e-4, rel=0.05)


BROKEN_GRIDS = {
    "descending": spectrum().wavelength[::-1],
    "padded with -1": np.append(spectrum().wavelength[:-500], np.full(500, -1.0)),
    "padded with 0": np.append(spectrum().wavelength[:-500], np.zeros(500)),
    "one value twice": np.sort(np.append(spectrum().wavelength[:-1], 5000.0)),
    "too fine for float32": 8000 + 1e-4 * np.arange(7781),
    "NaN": np.where(np.arange(7781) == 5, np.nan, spectrum().wavelength),
}


@pytest.mark.parametrize("grid", BROKEN_GRIDS)
def test_grids_that_do_not_increase_are_refused(grid: str) -> None:
    with pytest.raises(BadInput) as caught:
        spectrum_tokenizer().encode([spectrum(wavelength=BROKEN_GRIDS[grid])])
    assert code_of(caught) == "wavelength_not_monotonic"


@torch.no_grad()
@pytest.mark.parametrize("grid", ["descending", "padded with -1", "micron"])
def test_the_package_gives_such_spectra_one_embedding(grid: str) -> None:
    """Whatever their flux, all tokens but the first are those of an empty grid."""
    codec = wild(SpectrumCodec(**SPECTRUM))
    wavelength = BROKEN_GRIDS.get(grid, spectrum().wavelength / 1e4)
    one, other = spectrum(), spectrum(flux=np.random.default_rng(9).normal(5, 3, 7781).astype(np.float32))
    tokens = [
        codec.encode(
            theirs.DESISpectrum(
                flux=torch.tensor(given.flux)[None],
                ivar=torch.tensor(given.ivar)[None],
                mask=torch.tensor(given.mask)[None],
                wavelength=torch.tensor(wavelength.astype(np.float32))[None],
            )
        )
        for given in (one, other)
    ]
    assert torch.equal(tokens[0][:, 1:], tokens[1][:, 1:])
    with pytest.raises(BadInput) as caught:
        spectrum_tokenizer().encode([dataclasses.replace(one, wavelength=wavelength)])
    assert code_of(caught) == ("no_coverage" if grid == "micron" else "wavelength_not_monotonic")


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"flux": np.zeros(7781, np.float32)}, "blank_spectrum"),
        ({"flux": spectrum().flux * np.float32(1e-17)}, "norm_floored"),
        ({"flux": spectrum().flux * np.float32(1e5)}, "norm_saturated"),
        ({"ivar": np.zeros(7781, np.float32)}, "no_inverse_variance"),
        ({"ivar": np.where(np.arange(7781) == 9, np.float32(-1), np.float32(1))}, "negative_inverse_variance"),
        ({"wavelength": 3400 + 0.1 * np.arange(7781)}, "low_coverage"),
    ],
)
def test_spectra_of_little_meaning_are_flagged(changes: dict[str, Any], flag: str) -> None:
    assert spectrum_tokenizer().check(spectrum()) == ()
    assert flag in spectrum_tokenizer().check(spectrum(**changes))
    assert torch.isfinite(spectrum_tokenizer().decode(spectrum_tokenizer().encode([spectrum(**changes)]))).all()


def test_negative_inverse_variances_never_become_nan() -> None:
    """A codec that does not clip inverse variances would take their root."""
    tokenizer = build(MODALITIES["tok_spectrum_desi"], SPECTRUM | {"clip_ivar": None})
    assert isinstance(tokenizer, SpectrumTokenizer)
    flux, ivar, wavelength = (torch.tensor([row]) for row in ([5.0, 5.0], [-1.0, 2.0], [4000.0, 4001.0]))
    x, _ = tokenizer.network_input(flux, ivar, torch.zeros(1, 2, dtype=torch.bool), wavelength)
    assert torch.isfinite(x).all()


def test_a_grid_that_the_network_cannot_halve_is_refused() -> None:
    with pytest.raises(BadCheckpoint, match="no multiple of 32"):
        build(MODALITIES["tok_spectrum_desi"], SPECTRUM | {"num_pixels": 8700})


# Numbers


@torch.no_grad()
def test_nan_gets_the_highest_token_of_the_package_and_is_refused_here() -> None:
    codec = ScalarCodec("EBV", 1024, 5000).eval()
    codec._quantizer._update_reservoirs(torch.linspace(0, 1, 5000))
    assert codec.encode(theirs.LegacySurveyEBV(torch.tensor([float("nan")]))).tolist() == [1023]
    tokenizer = build(MODALITIES["tok_ebv"], CONFIGS["tok_ebv"])
    for value in (float("nan"), float("inf"), -float("inf"), 1e39):
        with pytest.raises(BadInput) as caught:
            tokenizer.encode([Scalar(value, "mag")])
        assert code_of(caught) == "not_finite"
    xp = build(MODALITIES["tok_xp_bp"], CONFIGS["tok_xp_bp"])
    with pytest.raises(BadInput) as caught:
        xp.encode([Coefficients(np.where(np.arange(55) == 3, np.nan, 1).astype(np.float32), "electron / s")])
    assert code_of(caught) == "not_finite"


def fitted(key: str, preprocessing: str = AION_1) -> ScalarTokenizer:
    tokenizer = build(MODALITIES[key], CONFIGS[key] | {"preprocessing": preprocessing})
    assert isinstance(tokenizer, ScalarTokenizer)
    if key != "tok_z":
        tokenizer.quantizer.fit(torch.linspace(0.5, 30, 2000))
    return tokenizer


def test_numbers_beyond_the_codebook_are_flagged() -> None:
    for key, unit, inside, outside, flag in (
        ("tok_z", "", 0.3, 1.2, "z_token_saturated"),
        ("tok_z", "", 0.0, -0.1, "z_token_saturated"),
        ("tok_ebv", "mag", 3.0, 31.0, "ebv_token_saturated"),
        ("tok_ebv", "mag", 3.0, 0.4, "ebv_token_saturated"),
        ("tok_flux_g", "nanomaggy", 3.0, 31.0, "flux_g_token_saturated"),
        ("tok_flux_g", "nanomaggy", 3.0, -2.0, "flux_g_below_floor"),
    ):
        tokenizer = fitted(key)
        assert tokenizer.check(Scalar(inside, unit)) == ()
        assert tokenizer.check(Scalar(outside, unit)) == (flag,)
    xp = build(MODALITIES["tok_xp_bp"], CONFIGS["tok_xp_bp"])
    assert isinstance(xp, CoefficientsTokenizer)
    xp.quantizer.fit(torch.linspace(-10, 10, 100)[:, None].expand(-1, 55))
    values = np.zeros(55, np.float32)
    assert xp.check(Coefficients(values, "electron / s")) == ()
    values[7] = 10.5
    assert xp.check(Coefficients(values, "electron / s")) == ("xp_bp_token_saturated",)


@torch.no_grad()
def test_all_redshifts_beyond_one_share_a_token() -> None:
    codec, tokenizer = GridScalarCodec("Z", 1024).eval(), fitted("tok_z")
    for value in (1.0, 1.2, 7.0):
        expected = codec.encode(theirs.Z(torch.tensor([value])))
        assert tokenizer.encode([Scalar(value, "")])[0].tolist() == expected.tolist() == [1023]


@pytest.mark.parametrize("key", ["tok_z", "tok_ebv", "tok_flux_g"])
def test_decoding_gives_the_end_of_a_cell_or_its_centre(key: str) -> None:
    end, centre = fitted(key), fitted(key, ALBIREO_1)
    tokens = torch.arange(end.vocab_size)[:, None]
    upper, middle = end.decode(tokens)[:, 0], centre.decode(tokens)[:, 0]
    assert (middle[1:] < upper[1:]).all()
    assert (middle[1:] > upper[:-1]).all()
    assert middle[0] == upper[0], "the lowest cell has no other end"
    unit = MODALITIES[key].unit
    again = torch.cat([centre.encode([Scalar(float(value), unit)]) for value in middle[1:]])
    assert torch.equal(again, tokens[1:]), "a centre has the token that it stands for"
    values = np.random.default_rng(4).uniform(0.6, 0.99 if key == "tok_z" else 29, 200)
    given = [Scalar(float(value), unit) for value in values]
    assert torch.equal(end.encode(given), centre.encode(given)), "tokens are the same in both"
    errors = [np.abs(t.decode(t.encode(given))[:, 0].numpy() - values).mean() for t in (end, centre)]
    assert errors[1] < 0.7 * errors[0]
