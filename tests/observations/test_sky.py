"""The simulated sky: lines where they belong, one SED behind every measurement, noise as stated, same seed same sky."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Image, Observation, Scalar, Spectrum
from albireo.observations.sky import (
    C_ANGSTROM,
    DESI_GRID,
    NANOMAGGY,
    PASSBANDS,
    PHOTOMETRIC_GRID,
    Truth,
    band_flux,
    draw,
    extinction,
    group,
    mixed,
    sed,
    simulate,
)
from albireo.observations.sky_images import Shape, correlated, cutout, profile

STARBURST = Truth("GALAXY", "star-forming", 0.1, 18.0, -9.3, 0.2, 1.0, 0.05, 3)


@pytest.fixture(scope="module")
def objects() -> list[Observation]:
    return list(simulate(250, np.random.default_rng(11)))


def scalar(observation: Observation, key: str) -> float:
    payload = observation.data[key]
    assert isinstance(payload, Scalar)
    return payload.value


def test_same_seed_same_sky() -> None:
    first, second = (list(simulate(20, np.random.default_rng(5), start=40)) for _ in range(2))
    other = list(simulate(20, np.random.default_rng(6), start=40))
    assert [one.id for one in first] == [f"sim-{k:06d}" for k in range(40, 60)]
    for a, b in zip(first, second, strict=True):
        assert (a.id, a.ra, a.dec, dict(a.metadata), a.data.keys()) == (
            b.id,
            b.ra,
            b.dec,
            dict(b.metadata),
            b.data.keys(),
        )
        for key, payload in a.data.items():
            same = b.data[key]
            if isinstance(payload, Image | Spectrum):
                assert isinstance(same, Image | Spectrum)
                assert np.array_equal(payload.flux, same.flux), key
            else:
                assert payload == same, key
    assert [a.ra for a in first] != [b.ra for b in other]


def test_a_longer_sky_begins_with_the_shorter() -> None:
    short, long = (list(simulate(n, np.random.default_rng(5))) for n in (3, 6))
    assert [a.ra for a in short] == [b.ra for b in long[:3]]


def test_every_object_is_complete_and_finite(objects: list[Observation]) -> None:
    for one in objects:
        assert {
            "tok_image",
            "tok_ebv",
            "tok_shape_r",
            *(f"tok_flux_{b}" for b in ("g", "r", "i", "z", "w1", "w2")),
        } <= (one.data.keys())
        assert not {"tok_z", "tok_ra", "tok_dec"} & one.data.keys()
        assert set(one.provenance) == set(one.data)
        for key, payload in one.data.items():
            row = MODALITIES[key]
            if isinstance(payload, Scalar):
                assert np.isfinite(payload.value), (one.id, key)
                assert payload.unit == row.unit
            elif isinstance(payload, Image):
                assert payload.flux.shape == row.shape
                assert payload.bands == row.bands
                assert payload.pixel_scale == row.pixel_scale
                assert np.isfinite(payload.flux).all()
                assert payload.flux.dtype == np.float32
            elif isinstance(payload, Spectrum):
                assert len(payload.wavelength) == len(payload.flux) == len(payload.ivar) == len(payload.mask)
                assert np.isfinite(payload.flux).all()
                assert (np.diff(payload.wavelength) > 0).all()
                assert payload.medium == "vacuum"
                assert (payload.ivar[payload.mask] == 0).all()
                assert (payload.ivar[~payload.mask] > 0).all()


def test_populations(objects: list[Observation]) -> None:
    kinds = Counter(one.metadata["class"] for one in objects)
    for kind, share in (("GALAXY", 0.6), ("STAR", 0.25), ("QSO", 0.15)):
        assert abs(kinds[kind] / len(objects) - share) < 0.08
    for one in objects:
        kind, z = one.metadata["class"], one.metadata["redshift"]
        low, high = {"GALAXY": (0.01, 0.95), "STAR": (-0.001, 0.001), "QSO": (0.1, 3.6)}[kind]
        assert low <= z <= high
        assert (scalar(one, "tok_shape_r") > 0) == (kind == "GALAXY")
        assert ("tok_parallax" in one.data) <= (kind != "GALAXY")
    for key, share in (("tok_spectrum_desi", 0.6), ("tok_spectrum_sdss", 0.6), ("tok_image_hsc", 0.25)):
        assert abs(np.mean([key in one.data for one in objects]) - share) < 0.08


@pytest.mark.parametrize(
    ("rest", "window"),
    # Vacuum wavelengths of the NIST Atomic Spectra Database; half-windows in Angstrom stay clear of neighbours.
    [(4862.68, 10), (4960.30, 10), (5008.24, 10), (6564.61, 7), (6585.27, 7), (6718.29, 5), (6732.67, 5)],
)
@pytest.mark.parametrize("z", [0.02, 0.1, 0.31])
def test_emission_lines_lie_at_their_vacuum_wavelength(rest: float, window: float, z: float) -> None:
    truth = Truth("GALAXY", "star-forming", z, 18.0, -9.3, 0.0, 1.0, 0.05, 3)
    quiet = Truth("GALAXY", "star-forming", z, 18.0, -9.3, 0.0, 1e-6, 0.05, 3)
    line = sed(truth, DESI_GRID) - sed(quiet, DESI_GRID)
    near = np.abs(DESI_GRID - rest * (1 + z)) < window * (1 + z)
    assert line[near].max() > 0.05 * sed(quiet, DESI_GRID)[near].mean()
    centroid = (line[near] * DESI_GRID[near]).sum() / line[near].sum()
    assert abs(centroid - rest * (1 + z)) < 0.1


@pytest.mark.parametrize(
    ("rest", "window"), [(3934.78, 14), (3969.59, 14), (5176.63, 36), (5895.60, 16), (8544.44, 12)]
)
@pytest.mark.parametrize("velocity", [-200.0, 0.0, 200.0])
def test_absorption_lines_of_a_cool_star(rest: float, window: float, velocity: float) -> None:
    z = velocity / 2.998e5
    truth, bare = (Truth("STAR", "K", z, 18.0, 4800.0, 0.0, lines, 0.05, 3) for lines in (1.0, 1e-9))
    centre = rest * (1 + z)
    near = np.abs(DESI_GRID - centre) < window
    depth = 1 - (sed(truth, DESI_GRID) / sed(bare, DESI_GRID))[near]
    assert 0.1 < depth.max() < 0.7
    assert abs((depth * DESI_GRID[near]).sum() / depth.sum() - centre) < 0.1


@pytest.mark.parametrize(("rest", "z"), [(1549.5, 2.0), (1908.7, 1.5), (1549.5, 3.0)])
def test_broad_lines_of_a_quasar(rest: float, z: float) -> None:
    grid = np.arange(3600.0, 9800.0, 0.5)
    bright, faint = (Truth("QSO", "broad-line", z, 19.0, -1.5, 0.0, k, 0.05, 3) for k in (1.0, 1e-6))
    line = sed(bright, grid) - sed(faint, grid)
    near = np.abs(grid / (1 + z) - rest) < 80
    centroid = (line[near] * grid[near]).sum() / line[near].sum()
    assert abs(centroid / (1 + z) - rest) < 1.0  # the wing of the iron bump leans on it


def test_the_forest_absorbs_only_blueward_of_lyman_alpha() -> None:
    """Transmission against the power law continued from 1330 A: below 1, lower at higher redshift, and ragged."""
    through = []
    for z in (2.4, 3.0, 3.6):
        flux = sed(Truth("QSO", "broad-line", z, 19.0, -1.5, 0.0, 1.0, 0.05, 3), DESI_GRID)
        rest = DESI_GRID / (1 + z)
        blue, red = (rest > 1060) & (rest < 1140), (rest > 1300) & (rest < 1360)
        share = flux[blue] / (np.median(flux[red]) * (rest[blue] / 1330.0) ** -1.5)
        assert share.std() > 0.05
        assert np.abs(np.diff(flux[red])).max() < 0.01 * flux[red].mean()
        through.append(share.mean())
    assert 0.95 > through[0] > through[1] > through[2] > 0.4


def test_one_sed_on_every_grid() -> None:
    for kind in (STARBURST, Truth("QSO", "broad-line", 2.8, 19.0, -1.5, 0.0, 1.0, 0.05, 3)):
        fine = np.arange(3600.0, 9200.0, 0.1)
        coarse = DESI_GRID[DESI_GRID < 9200]
        assert np.allclose(np.interp(coarse, fine, sed(kind, fine)), sed(kind, coarse), rtol=0.02)


def test_the_balmer_lines_are_deepest_near_9500_kelvin() -> None:
    near = np.abs(DESI_GRID - 4862.68) < 15

    def depth(teff: float) -> float:
        flux = sed(Truth("STAR", "A", 0.0, 18.0, teff, 0.0, 1.0, 0.05, 3), DESI_GRID)[near]
        return float(1 - flux.min() / flux[[0, -1]].mean())

    assert depth(9500) > depth(7000) > depth(4500)
    assert depth(9500) > depth(14000)


def test_extinction_is_that_of_cardelli_clayton_and_mathis() -> None:
    # V and B by the definition of R_V = 3.1; R, I, J, K of their table 3 at 1.43, 1.11, 0.80, 0.46 per micron.
    at = 1e4 / np.array([1.82, 2.27, 1.43, 1.11, 0.80, 0.46])
    assert np.allclose(extinction(at, 1.0) / 3.1, [1.0, 1 + 1 / 3.1, 0.751, 0.479, 0.282, 0.114], atol=0.003)
    assert np.allclose(extinction(at, 0.2), 0.2 * extinction(at, 1.0))


@pytest.mark.parametrize("band", PASSBANDS)
def test_a_source_of_constant_f_nu_has_its_ab_magnitude(band: str) -> None:
    flat = 7.0 * NANOMAGGY * C_ANGSTROM / PHOTOMETRIC_GRID**2 / 1e-17
    assert band_flux(flat, band) == pytest.approx(7.0, rel=1e-3)


@pytest.mark.parametrize(
    ("band", "wavelength", "tolerance"),
    # Effective wavelengths in Angstrom: DES DR2 (Abbott et al. 2021), HSC (Kawanomoto et al. 2018), WISE (Wright et
    # al. 2010). The pass-bands are smooth boxes; that of HSC-Y lacks the fall of the detector's response.
    [("DES-G", 4809, 0.025), ("DES-R", 6417, 0.01), ("DES-I", 7814, 0.01), ("DES-Z", 9168, 0.01),
     ("HSC-G", 4754, 0.01), ("HSC-R", 6175, 0.01), ("HSC-I", 7711, 0.01), ("HSC-Z", 8898, 0.01),
     ("HSC-Y", 9762, 0.04), ("W1", 33526, 0.02), ("W2", 46028, 0.02)],
)  # fmt: skip
def test_passbands_lie_where_the_real_ones_do(band: str, wavelength: float, tolerance: float) -> None:
    def response(at: float) -> float:
        narrow = np.exp(-0.5 * ((PHOTOMETRIC_GRID - at) / (0.004 * at)) ** 2)
        return band_flux(narrow, band) / at**2  # a line of unit flux density, width proportional to wavelength

    grid = np.linspace(0.75, 1.25, 201) * wavelength
    weight = np.array([response(at) for at in grid])
    assert (weight * grid).sum() / weight.sum() == pytest.approx(wavelength, rel=tolerance)


def test_the_spectrum_has_the_colours_of_the_photometry() -> None:
    """For bright stars: g, r and i integrated from the measured SDSS or DESI spectrum differ by one fibre factor."""
    tried = 0
    for seed in range(60):
        one = next(iter(simulate(1, np.random.default_rng(seed))))
        spectrum = one.data.get("tok_spectrum_desi")
        if one.metadata["class"] == "GALAXY" or not isinstance(spectrum, Spectrum) or scalar(one, "tok_flux_r") < 15:
            continue
        flux = np.interp(PHOTOMETRIC_GRID, spectrum.wavelength, spectrum.flux)
        ratios = [band_flux(flux, f"DES-{b.upper()}") / scalar(one, f"tok_flux_{b}") for b in "gri"]
        assert np.ptp(ratios) < 0.06 * np.mean(ratios), (seed, ratios)
        assert 0.6 < np.mean(ratios) < 1.05
        tried += 1
    assert tried >= 5


def test_the_spectrum_is_the_sed_with_the_noise_it_states() -> None:
    """Chi squared per pixel is 1 when the noiseless SED is fitted by one factor, the fibre's."""
    tried = 0
    for seed in range(25):
        truth = draw(np.random.default_rng(seed))
        one = next(iter(simulate(1, np.random.default_rng(seed))))
        assert one.metadata["redshift"] == truth.z
        for key in ("tok_spectrum_desi", "tok_spectrum_sdss"):
            spectrum = one.data.get(key)
            if not isinstance(spectrum, Spectrum):
                continue
            model = sed(truth, spectrum.wavelength) * 10 ** (-0.4 * extinction(spectrum.wavelength, truth.ebv))
            factor = (spectrum.ivar * spectrum.flux * model).sum() / (spectrum.ivar * model**2).sum()
            chi2 = (spectrum.ivar * (spectrum.flux - factor * model) ** 2).sum() / (~spectrum.mask).sum()
            assert 0.93 < chi2 < 1.07, (seed, key, chi2)
            assert 0 < spectrum.mask.mean() < 0.05
            tried += 1
    assert tried > 15


def test_the_flux_in_the_image_is_the_flux_in_the_catalogue(objects: list[Observation]) -> None:
    """Bright point sources, summed within 5 arcsec: the catalogue's flux in every band."""
    axis = np.arange(96) - 47.5
    ratios = []
    for one in objects:
        if one.metadata["class"] == "GALAXY" or scalar(one, "tok_flux_g") < 20 or scalar(one, "tok_flux_z") < 40:
            continue
        image = one.data["tok_image"]
        assert isinstance(image, Image)
        inside = np.hypot(axis[:, None], axis[None, :]) * image.pixel_scale < 5
        for plane, band in zip(image.flux, "griz", strict=True):
            ratios.append(plane[inside].sum() / scalar(one, f"tok_flux_{band}"))
    assert len(ratios) >= 40
    assert np.median(ratios) == pytest.approx(1.0, abs=0.01)
    assert np.median(np.abs(np.array(ratios) - 1)) < 0.02


def test_hsc_images_are_at_zero_point_27(objects: list[Observation]) -> None:
    differences = []
    for one in objects:
        image = one.data.get("tok_image_hsc")
        if isinstance(image, Image) and scalar(one, "tok_mag_i") < 19 and one.metadata["class"] != "GALAXY":
            inside = slice(48 - 24, 48 + 24)
            measured = 27.0 - 2.5 * np.log10(image.flux[2, inside, inside].sum())
            differences.append(measured - scalar(one, "tok_mag_i"))
            assert image.zero_point == 27.0
    assert len(differences) >= 5
    assert abs(np.median(differences)) < 0.02


def test_profiles_hold_unit_flux_and_the_seeing() -> None:
    axis = ((np.arange(385) - 192) * 0.1).astype(np.float32)
    star = profile(Shape(0.0, 0.0, 0.0, 0.0), 1.2, axis, axis, 1)
    assert star.sum() * 0.01 == pytest.approx(1.0, abs=1e-3)
    row = star[192] / star.max()
    assert 2 * abs(axis[row > 0.5]).max() == pytest.approx(1.2, abs=0.2)
    disc = profile(Shape(1.5, 0.3, -0.2, 0.0), 0.2, axis, axis, 1)
    assert disc.sum() * 0.01 == pytest.approx(1.0, abs=0.01)


def test_a_disc_holds_half_its_light_within_its_radius() -> None:
    axis = ((np.arange(769) - 384) * 0.05).astype(np.float32)
    for bulge, tolerance in ((0.0, 0.03), (1.0, 0.08)):
        light = profile(Shape(2.0, 0.0, 0.0, bulge), 0.05, axis, axis, 1) * 0.05**2
        radius = np.hypot(axis[:, None], axis[None, :])
        assert light[radius < 2.0].sum() == pytest.approx(0.5, abs=tolerance)


def test_image_noise_is_correlated_between_neighbours() -> None:
    rng = np.random.default_rng(2)
    noise = np.stack([correlated(rng) for _ in range(40)])
    assert noise.std() == pytest.approx(1.0, abs=0.01)
    for a, b in ((noise[:, 1:], noise[:, :-1]), (noise[:, :, 1:], noise[:, :, :-1])):
        assert 0.33 <= (a * b).mean() / noise.var() <= 0.60
    empty = cutout("legacysurvey", MODALITIES["tok_image"].bands, np.zeros(4), Shape(0.0, 0.0, 0.0, 0.0), 0.262, rng)
    spread = [1.4826 * np.median(np.abs(plane - np.median(plane))) for plane in empty]
    assert np.allclose(spread, [0.0022, 0.0035, 0.006, 0.0103], rtol=0.2)


def test_quoted_photometric_errors_are_the_scatter() -> None:
    """Pulls of the measured fluxes against the fluxes of the noiseless SED have unit width."""
    pulls = []
    for seed in range(80):
        truth = draw(np.random.default_rng(seed))
        one = next(iter(simulate(1, np.random.default_rng(seed))))
        model = sed(truth, PHOTOMETRIC_GRID)
        model *= 10 ** (-0.4 * (truth.mag - 22.5)) / band_flux(model, "DES-R")
        model *= 10 ** (-0.4 * extinction(PHOTOMETRIC_GRID, truth.ebv))
        for key, band in (("g", "DES-G"), ("r", "DES-R"), ("z", "DES-Z"), ("w1", "W1")):
            measured = one.data[f"tok_flux_{key}"]
            assert isinstance(measured, Scalar)
            assert measured.error
            pulls.append((measured.value - band_flux(model, band)) / measured.error)
    assert np.std(pulls) == pytest.approx(1.0, abs=0.12)
    assert abs(np.mean(pulls)) < 0.15


def test_mixed_keeps_a_part_and_never_nothing(objects: list[Observation]) -> None:
    rng = np.random.default_rng(3)
    sets: Counter[tuple[str, ...]] = Counter()
    for one in objects:
        before = dict(one.data)
        part = mixed(one, rng)
        assert dict(one.data) == before
        assert part.data
        assert all(payload is one.data[key] for key, payload in part.data.items())
        assert (part.id, part.ra, part.dec, dict(part.metadata)) == (one.id, one.ra, one.dec, dict(one.metadata))
        assert set(part.provenance) == set(part.data)
        sets[tuple(sorted({group(key) for key in part.data}))] += 1
    for kept in (("photometry",), ("image",), ("spectrum",), ("image", "photometry"), ("photometry", "spectrum")):
        assert sets[kept] > 5, sets
    assert max(len(kept) for kept in sets) >= 4
    again = [sorted(mixed(one, np.random.default_rng(4)).data) for one in objects[:20]]
    assert again == [sorted(mixed(one, np.random.default_rng(4)).data) for one in objects[:20]]
