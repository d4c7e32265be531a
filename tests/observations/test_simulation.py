"""The simulated survey sky: lines in vacuum, raw fluxes, noise as stated, seeds that hold, colours like real ones."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from numpy.typing import NDArray

from albireo.observations.errors import BadInput, Conflict
from albireo.observations.modalities import LABEL_KEYS, MODALITIES
from albireo.observations.observation import Image, Observation, Scalar, Spectrum
from albireo.observations.reading import read_files
from albireo.observations.simulation import galaxies, quasars, stars, survey
from albireo.observations.simulation.images import Appearance, Neighbour, correlated, draw, moments
from albireo.observations.simulation.light import (
    EDGES,
    GRID,
    NO_LINES,
    OPTICAL_GRID,
    Light,
    Lines,
    dimmed,
    edges_of,
    extinction,
    line_density,
    smoothed,
    transmission,
)
from albireo.observations.simulation.photometry import BANDS, photometer
from albireo.observations.simulation.populations import Galaxy, age_of_universe, luminosity_distance
from albireo.observations.simulation.production import Order, produce
from albireo.observations.simulation.spectrographs import INSTRUMENTS, observe, truth_of
from albireo.observations.source import Source

Doubles = NDArray[np.float64]

STARBURST = Galaxy(
    kind="star-forming", z=0.11, log_mass=10.3, log_ssfr=-9.3, log_z=-0.2, a_v=0.3, slope=0.0, clouds=2.0, log_u=-2.8,
    onset=8.0, burst=0.0, burst_age=0.5, quenched=False, sigma=60.0, radius=3.0, bulge=0.3, tilt=0.6, nucleus=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def objects() -> list[Observation]:
    return [survey.simulate(5, index) for index in range(60)]


# Light


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_a_line_keeps_flux_and_centre_whatever_the_pixels(name: str) -> None:
    instrument = INSTRUMENTS[name]
    edges = edges_of(instrument.grid)
    for centre in (4321.37, 6564.61, 9012.3):
        lines = Lines(np.array([centre]), np.array([7.0]), np.array([50.0]))
        seen = truth_of(Light(np.zeros(len(GRID)), lines), instrument)
        flux = seen * np.diff(edges)
        assert flux.sum() == pytest.approx(7.0, rel=1e-4)
        assert flux @ instrument.grid / flux.sum() == pytest.approx(centre, abs=0.01)
    assert (line_density(EDGES, lines) * np.diff(EDGES)).sum() == pytest.approx(7.0, rel=1e-6)


def test_smoothing_has_the_width_it_is_given() -> None:
    """A spike becomes a Gaussian of the sigma at its place, and its flux stays."""
    sigma = np.interp(OPTICAL_GRID, [3500.0, 10600.0], [90.0, 25.0])
    for place in (4000.0, 9000.0):
        k = int(np.searchsorted(OPTICAL_GRID, place))
        spike = np.zeros(len(OPTICAL_GRID))
        spike[k - 2 : k + 3] = 1.0
        out = smoothed(spike, sigma)
        velocity = 299792.458 * (OPTICAL_GRID / OPTICAL_GRID[k] - 1)
        width = np.sqrt((out * velocity**2).sum() / out.sum())
        assert width == pytest.approx(np.hypot(sigma[k], 18.0 * np.sqrt(2)), rel=0.05)
        assert out.sum() == pytest.approx(5.0, rel=0.01)


def test_extinction_is_that_of_the_published_coefficients() -> None:
    """A / E(B-V) of the SFD map in DECam's g r z and WISE's W1: those the Legacy Surveys state, for a flat spectrum."""
    flux = GRID**-2.0
    raw, dark = photometer()(flux), photometer()(flux * transmission(GRID, 0.1))
    for key, coefficient in (("g", 3.214), ("r", 2.165), ("i", 1.592), ("z", 1.211), ("w1", 0.184)):
        measured = -25 * np.log10(dark[f"tok_flux_{key}"] / raw[f"tok_flux_{key}"])
        assert measured == pytest.approx(coefficient, rel=0.03, abs=0.015), key
    assert extinction(np.array([5500.0]), 1.0)[0] == pytest.approx(0.86 * 3.07, rel=0.02)


@pytest.mark.parametrize("kind", ["flat", "galaxy", "star", "quasar"])
def test_photometry_equals_speclite(kind: str) -> None:
    import astropy.units as u
    import speclite.filters

    flux = {
        "flat": lambda: 3.0 * (GRID / 5000.0) ** -1.3,
        "galaxy": lambda: galaxies.shine(STARBURST).light.flux,
        "star": lambda: stars.shine(stars.Star(4100.0, 4.6, -0.5, 0.1, 30.0, 4.0)).flux,
        "quasar": lambda: quasars.shine(quasars.draw_quasar(2.3, 19.0, np.random.default_rng(1))).flux,
    }[kind]()
    ours = photometer()(flux)
    curves = speclite.filters.load_filters(*BANDS.values())
    theirs = curves.get_ab_maggies(flux * 1e-17 * u.erg / u.s / u.cm**2 / u.AA, GRID * u.AA)
    for key, name in BANDS.items():
        assert ours[key] == pytest.approx(float(theirs[name][0]) * 1e9, rel=1e-3), key


# What shines


def test_distances_and_ages_are_astropys() -> None:
    from astropy.cosmology import FlatLambdaCDM

    cosmology = FlatLambdaCDM(H0=70, Om0=0.3, Tcmb0=0)
    for z in (0.003, 0.1, 0.9, 3.0):
        assert luminosity_distance(z) == pytest.approx(cosmology.luminosity_distance(z).value, rel=1e-3)
        assert age_of_universe(z) == pytest.approx(cosmology.age(z).value, rel=1e-3)


@pytest.mark.parametrize("z", [0.02, 0.11, 0.31])
@pytest.mark.parametrize("rest", [4862.68, 4960.30, 5008.24, 6564.61, 6585.27, 6732.67])
def test_emission_lines_are_in_vacuum(rest: float, z: float) -> None:
    """Centroids over the continuum, within 0.1 Angstrom of the vacuum wavelengths of NIST."""
    light = galaxies.shine(replace(STARBURST, z=z)).light
    instrument = INSTRUMENTS["desi"]
    excess = truth_of(light, instrument) - truth_of(replace(light, lines=NO_LINES), instrument)
    near = np.abs(instrument.grid - rest * (1 + z)) < 7.0
    centroid = excess[near] @ instrument.grid[near] / excess[near].sum()
    assert centroid / (1 + z) == pytest.approx(rest, abs=0.1)


def core(wavelength: Doubles, flux: Doubles, near: float, half: float = 2.5) -> float:
    """Where an absorption line is deepest: the vertex of a parabola through five pixels about the lowest."""
    inside = np.flatnonzero(np.abs(wavelength - near) < half)
    lowest = int(inside[flux[inside].argmin()])
    five = slice(lowest - 2, lowest + 3)
    curve, slope, _ = np.polyfit(wavelength[five] - wavelength[lowest], flux[five], 2)
    return float(wavelength[lowest] - slope / (2 * curve))


def test_absorption_lines_of_stellar_populations_are_in_vacuum() -> None:
    """Balmer lines of young populations and the calcium triplet of all: right to 0.1 Angstrom in the mean of ages.

    In air they are 1.1 to 2.3 Angstrom bluer.
    """
    t = galaxies.templates()
    for lines, ages in (
        ((4102.90, 4341.69, 4862.69, 6564.61), (1e8, 2e8, 3e8)),
        ((8500.36, 8544.44, 8664.52), (1e8, 3e8, 1e9, 3e9, 1e10)),
    ):
        rows = [t.stars[4, np.abs(np.log(t.ages / age)).argmin()].astype(np.float64) for age in ages]
        offsets = np.array([[core(t.wavelength, row, rest) - rest for row in rows] for rest in lines]).mean(axis=1)
        print("offsets in Angstrom:", offsets.round(3))
        assert abs(offsets.mean()) < 0.05
        assert np.abs(offsets).max() < 0.1


@pytest.mark.parametrize("rest", [5891.58, 8544.44, 8664.52])
def test_stellar_lines_are_in_vacuum_and_move_with_the_star(rest: float) -> None:
    for velocity in (0.0, 200.0):
        light = stars.shine(stars.Star(5000.0, 4.5, 0.0, 0.0, velocity, 4.0))
        seen = truth_of(light, INSTRUMENTS["desi"])
        near = core(INSTRUMENTS["desi"].grid / (1 + velocity / 299792.458), seen, rest)
        assert near == pytest.approx(rest, abs=0.1)


def test_galaxies_are_those_of_bagpipes() -> None:
    """The mix of templates beside bagpipes' own model: continuum within 4 %, mass exact to 0.02 dex."""
    with matplotlib.rc_context():  # its import turns pictures over to LaTeX
        import bagpipes
    galaxy = replace(STARBURST, z=0.05, a_v=0.4, clouds=1.5, log_ssfr=-10.2, log_z=0.0)
    rate = 10**galaxy.log_ssfr * galaxy.onset * 1e9 * 0.6
    tau = galaxy.onset / float(np.interp(-rate, *galaxies._rate_table()))
    grid = np.arange(3700.0, 9000.0, 4.0)
    model = bagpipes.model_galaxy(
        {
            "redshift": 0.05,
            "delayed": {"age": galaxy.onset, "tau": tau, "massformed": 10.5, "metallicity": 1.0},
            "dust": {"type": "Calzetti", "Av": 0.4, "eta": 1.5},
            "nebular": {"logU": galaxy.log_u},
            "t_bc": 0.01,
        },
        spec_wavs=grid,
    )
    share = galaxies.history(galaxy)
    living = float(np.log10(share @ galaxies.templates().alive[4]))
    assert model.sfh.stellar_mass == pytest.approx(10.5 + living, abs=0.02)
    light = galaxies.shine(replace(galaxy, log_mass=10.5 + living)).light
    for low in range(3800, 8800, 500):
        bin_ = (grid > low) & (grid < low + 200)
        theirs = float(np.median(model.spectrum[bin_, 1])) / 1e-17
        ours = float(np.median(np.interp(grid[bin_], GRID, light.flux)))
        assert ours == pytest.approx(theirs, rel=0.04), low


def test_more_dust_and_age_are_redder() -> None:
    def colour(galaxy: Galaxy) -> float:
        fluxes = photometer()(galaxies.shine(galaxy).light.total())
        return float(-2.5 * np.log10(fluxes["tok_flux_g"] / fluxes["tok_flux_r"]))

    assert colour(STARBURST) < colour(replace(STARBURST, a_v=1.5)) - 0.2
    assert colour(STARBURST) < colour(replace(STARBURST, log_ssfr=-12.0)) - 0.2
    labels = galaxies.shine(STARBURST).labels
    assert labels["log_ssfr"] == pytest.approx(STARBURST.log_ssfr, abs=0.2)
    assert 0.1 < labels["age"] < STARBURST.onset


@pytest.mark.parametrize("z", [2.2, 3.0, 3.8])
def test_the_forest_absorbs_as_much_as_observed(z: float) -> None:
    """Mean transmission of many lines of sight within 10 % of exp(-tau) of Kim et al. (2007)."""
    inside = (1050 * (1 + z) < GRID) & (1180 * (1 + z) > GRID)
    mean = np.mean([quasars.forest(z, np.random.default_rng(k))[inside] for k in range(80)])
    expected = np.exp(-quasars.optical_depth(GRID[inside] / 1215.67 - 1)).mean()
    assert mean == pytest.approx(expected, rel=0.1)


# What is observed


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_the_noise_of_spectra_is_as_ivar_says(name: str) -> None:
    """chi = (flux - truth) sqrt(ivar) is N(0, 1) away from sky lines, whose residuals come on top."""
    light = Light(np.full(len(GRID), 2.0))
    chi = []
    for seed in range(12):
        observed = observe(light, name, 1.0, np.random.default_rng(seed))
        spectrum = observed.spectrum
        assert (spectrum.ivar[spectrum.mask] == 0).all()
        blue = (spectrum.wavelength > 4500) & (spectrum.wavelength < 5400) & ~spectrum.mask
        chi.append((spectrum.flux - observed.truth)[blue] * np.sqrt(spectrum.ivar[blue]))
    values = np.concatenate(chi)
    assert abs(values.mean()) < 4 / np.sqrt(len(values))
    assert values.std() == pytest.approx(1.0, abs=4 / np.sqrt(2 * len(values)))
    assert (np.abs(values) > 3).mean() < 0.006


def test_skylines_leave_residuals() -> None:
    instrument = INSTRUMENTS["desi"]
    near = np.abs(instrument.grid - 8887.0) < 40
    chi = []
    for seed in range(30):
        observed = observe(Light(np.full(len(GRID), 1.0)), "desi", 1.0, np.random.default_rng(seed))
        chi.append(((observed.spectrum.flux - observed.truth) * np.sqrt(observed.spectrum.ivar))[near])
    assert 1.01 < np.std(chi) < 1.5


@pytest.mark.parametrize("correlation", [0.1, 0.33, 0.6])
def test_noise_of_neighbours_correlates(correlation: float) -> None:
    rng = np.random.default_rng(2)
    planes = [correlated(correlation, rng) for _ in range(30)]
    assert np.std(planes) == pytest.approx(1.0, abs=0.02)
    along = np.mean([(p[:, 1:] * p[:, :-1]).mean() for p in planes])
    across = np.mean([(p[1:] * p[:-1]).mean() for p in planes])
    assert along == pytest.approx(correlation, abs=0.03)
    assert across == pytest.approx(correlation, abs=0.03)


def test_an_image_holds_the_flux_it_is_given() -> None:
    looks = Appearance(1.0, tilt=0.5, angle=30.0, bulge=0.3, knots=0.2)
    fluxes = np.array([10.0, 20.0, 25.0, 30.0])
    image, clean = draw("tok_image", fluxes, looks, (), np.random.default_rng(1))
    assert clean.sum(axis=(1, 2)) == pytest.approx(fluxes, rel=0.05)
    noise = (image.flux - clean)[:, :20, :20]
    for band, sigma in enumerate((0.0022, 0.0035, 0.006, 0.0103)):
        assert noise[band].std() == pytest.approx(sigma, rel=0.5)
    _, wide = draw("tok_image_hsc", np.append(fluxes, 33.0), looks, (), np.random.default_rng(1))
    assert wide.sum(axis=(1, 2)) / 10**1.8 == pytest.approx(np.append(fluxes, 33.0), rel=0.06)


@pytest.mark.parametrize("angle", [0.0, 45.0, 90.0, 135.0])
def test_the_long_axis_points_as_the_shape_says(angle: float) -> None:
    """From north (up) towards east (left): moments against e1 and e2."""
    looks = Appearance(2.0, tilt=0.35, angle=angle)
    _, clean = draw("tok_image", np.full(4, 500.0), looks, (), np.random.default_rng(1))
    found = moments(clean[1], 0.262)
    assert found is not None
    xx, xy, yy = found
    e1, e2 = looks.ellipticity()
    # North-south elongation is e1 > 0; north-east elongation, x falling while y rises, is e2 > 0.
    assert np.array([yy - xx, -2 * xy]) / np.hypot(yy - xx, 2 * xy) == pytest.approx(
        np.array([e1, e2]) / np.hypot(e1, e2), abs=0.05
    )


def test_a_neighbour_is_where_it_was_put() -> None:
    other = Neighbour((100.0,) * 4, (6.0, -4.0), 0.0, 1.0, 0.0)
    _, clean = draw("tok_image", np.full(4, 1e-3), Appearance(0.0), (other,), np.random.default_rng(1))
    y, x = np.unravel_index(int(clean[1].argmax()), clean[1].shape)
    assert ((x - 47.5) * 0.262, (y - 47.5) * 0.262) == pytest.approx((6.0, -4.0), abs=0.3)


# Objects


def test_the_same_object_whatever_else_is_drawn(objects: list[Observation]) -> None:
    again = survey.simulate(5, 7)
    assert again.id == objects[7].id
    assert dict(again.metadata) == dict(objects[7].metadata)
    for key, payload in again.data.items():
        other = objects[7].data[key]
        if isinstance(payload, Image | Spectrum):
            assert isinstance(other, Image | Spectrum)
            assert np.array_equal(payload.flux, other.flux)
        else:
            assert payload == other
    assert survey.simulate(6, 7).ra != again.ra


def test_no_label_is_an_input(objects: list[Observation]) -> None:
    for one in objects:
        assert not LABEL_KEYS & one.data.keys()
        assert {"redshift", "class", "subclass"} <= one.metadata.keys()
        assert not {"log_mass", "teff"} & one.data.keys()
        needed = {
            "GALAXY": {"log_mass", "log_ssfr", "age", "metallicity", "a_v"},
            "STAR": {"teff", "logg"},
            "QSO": set(),
        }
        assert needed[one.metadata["class"]] <= one.metadata.keys()


def test_objects_are_finite_and_in_their_units(objects: list[Observation]) -> None:
    seen: set[str] = set()
    for one in objects:
        assert one.data
        assert list(one.data) == [key for key in MODALITIES if key in one.data]
        seen |= one.data.keys()
        for key, payload in one.data.items():
            row = MODALITIES[key]
            if isinstance(payload, Scalar):
                assert np.isfinite(payload.value)
                assert payload.unit == row.unit
                assert payload.convention is None or not payload.convention.extinction_corrected
            else:
                assert isinstance(payload, Image | Spectrum)
                assert np.isfinite(payload.flux).all()
                assert payload.unit == row.unit
            if isinstance(payload, Image):
                assert set(payload.bands) <= set(row.bands)
                assert payload.flux.shape == (len(payload.bands), 96, 96)
        if any(MODALITIES[key].kind == "scalar" for key in one.data):
            assert "tok_ebv" in one.data
    assert {
        "tok_image",
        "tok_image_hsc",
        "tok_spectrum_desi",
        "tok_spectrum_sdss",
        "tok_parallax",
        "tok_shape11",
    } <= seen
    assert {"flux_u_sdss", "flux_j_2mass", "tok_mag_g", "tok_flux_w1", "tok_flux_g_gaia"} <= seen


def test_fluxes_are_raw(objects: list[Observation]) -> None:
    """Dust dims what is measured by what its E(B-V) says."""
    light = Light(np.full(len(GRID), 5.0))
    ratio = {k: v / photometer()(light.total())[k] for k, v in photometer()(dimmed(light, 0.3).total()).items()}
    assert -2.5 * np.log10(ratio["tok_flux_g"]) == pytest.approx(3.2 * 0.3, rel=0.06)
    assert ratio["tok_flux_g"] < ratio["tok_flux_r"] < ratio["tok_flux_z"] < ratio["tok_flux_w1"] < 1


def test_what_the_surveys_see_differs(objects: list[Observation]) -> None:
    """Photometry only, image only, spectrum only, everything: subsets as in real surveys."""
    sets = {frozenset(MODALITIES[key].kind for key in one.data) for one in objects}
    assert len(sets) >= 4
    assert len({frozenset(one.data) for one in objects}) > 25


# Shards


def test_a_sky_of_photometry_has_more_of_it_and_nothing_else() -> None:
    some = [survey.photometry(5, index) for index in range(60)]
    assert some[7] == survey.photometry(5, 7)
    assert {MODALITIES[key].kind for one in some for key in one.data} == {"scalar"}
    assert all("redshift" in one.metadata and not LABEL_KEYS & set(one.data) for one in some)
    for key in ("tok_flux_r", "tok_mag_i", "flux_u_sdss", "flux_k_2mass", "tok_ebv"):
        assert sum(key in one.data for one in some) > 4, key


@pytest.fixture(scope="module")
def sky(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Order]:
    order = Order(objects=7, kind="mix", seed=5, shard_size=4)
    folder = tmp_path_factory.mktemp("sky")
    produce(folder, order)
    return folder, order


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_stopped_and_resumed_by_more_workers_the_bytes_are_the_same(sky: tuple[Path, Order], tmp_path: Path) -> None:
    folder, order = sky
    (tmp_path / "order.json").write_bytes((folder / "order.json").read_bytes())
    (tmp_path / "mix-00001.parquet").write_bytes(b"PAR1 cut off")
    (tmp_path / "mix-00000.parquet.part").write_bytes(b"left over")
    told: list[int] = []
    produce(tmp_path, order, workers=2, progress=told.append)
    (tmp_path / "mix-00000.parquet.part").unlink(missing_ok=True)
    assert contents(tmp_path) == contents(folder)
    assert sum(told) == 7
    told.clear()
    produce(tmp_path, order, progress=told.append)
    assert sum(told) == 7
    assert contents(tmp_path) == contents(folder)


def test_shards_are_read_as_they_were_made(sky: tuple[Path, Order], objects: list[Observation]) -> None:
    folder, order = sky
    sources = [Source.from_path(folder / name) for name, _ in order.shards()]
    reports = read_files(sources)
    assert [report.format for report in reports] == ["albireo", "albireo"]
    found = [one for report in reports for one in report.items]
    assert len(found) == 7
    for made, got in zip(objects, found, strict=False):
        assert isinstance(got, Observation)
        assert (made.id, made.data.keys(), dict(made.metadata)) == (got.id, got.data.keys(), dict(got.metadata))


def test_the_manifest_says_what_was_made(sky: tuple[Path, Order]) -> None:
    folder, _ = sky
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["order"] == {
        "objects": 7,
        "kind": "mix",
        "seed": 5,
        "shard_size": 4,
        "recipe": 1,
        "photometry": False,
    }
    assert sum(manifest["classes"].values()) == 7
    assert set(manifest["files"]) == {"mix-00000.parquet", "mix-00001.parquet", "labels.parquet"}
    assert {"numpy", "galsim", "bagpipes"} <= manifest["versions"].keys()


def test_another_order_in_the_same_folder_is_refused(sky: tuple[Path, Order]) -> None:
    folder, order = sky
    with pytest.raises(Conflict, match="seed 5"):
        produce(folder, replace(order, seed=6))
    with pytest.raises(Conflict, match="photometry False"):
        produce(folder, replace(order, photometry=True))
    with pytest.raises(BadInput):
        Order(objects=0, kind="mix", seed=1)


# Beside real galaxies


@pytest.mark.real
def test_colours_are_those_of_sdss_galaxies() -> None:
    """Medians and quartiles at fixed redshift of galaxies brighter than r = 17.8, corrected for the Galaxy."""
    from astropy.table import Table

    table = Table.read(Path(os.environ["ALBIREO_TEST_DATA"]) / "eval/photoz_kcorrect_gst.fits")
    flux = np.asarray(table["MODELFLUX"], np.float64)
    real = 22.5 - 2.5 * np.log10(np.where(flux > 0, flux, np.nan)) - np.asarray(table["EXTINCTION"], np.float64)
    z = np.asarray(table["Z"], np.float64)
    rng = np.random.default_rng(3)
    sample = galaxies.GalaxyDraw(photometer(), "tok_flux_r", 17.8)
    drawn: list[Any] = [sample(rng) for _ in range(700)]
    simulated_z = np.array([galaxy.z for galaxy, _, _ in drawn])
    simulated = np.array([[22.5 - 2.5 * np.log10(f[f"flux_{b}_sdss"]) for b in "ugriz"] for _, _, f in drawn])
    worst = 0.0
    for low, high in ((0.03, 0.07), (0.07, 0.12), (0.12, 0.2)):
        ours = (simulated_z > low) & (simulated_z < high)
        theirs = (z > low) & (z < high) & (real[:, 2] < 17.8)
        for name, (a, b) in {"g - r": (1, 2), "r - i": (2, 3), "r - z": (2, 4)}.items():
            quartiles = [
                np.nanpercentile(m[k, a] - m[k, b], [25, 50, 75]) for m, k in ((real, theirs), (simulated, ours))
            ]
            print(f"z {low:.2f}-{high:.2f} {name}: real {quartiles[0].round(3)}, simulated {quartiles[1].round(3)}")
            worst = max(worst, float(np.abs(quartiles[0] - quartiles[1]).max()))
    print(f"largest difference of a quartile: {worst:.3f} mag")
    assert worst < 0.15
    low, middle, high = np.percentile(simulated_z, [5, 50, 95])
    real_low, real_middle, real_high = np.percentile(z[real[:, 2] < 17.8], [5, 50, 95])
    print(f"redshift 5, 50, 95 %: real {real_low:.3f} {real_middle:.3f} {real_high:.3f}")
    print(f"simulated {low:.3f} {middle:.3f} {high:.3f}")
    assert middle == pytest.approx(real_middle, abs=0.03)
