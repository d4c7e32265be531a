"""Redshifts by templates: planted spectra come back, and what is not measured has no say."""

from __future__ import annotations

import numpy as np
import pytest

from albireo.observations.observation import Observation, Spectrum
from benchmarks.template_fit import OBSERVED, STEP, TemplateFit, Templates, on_grid

LINES = ((3728.5, 8.0), (4862.7, 6.0), (5008.2, 12.0), (6564.6, 15.0))
"""Vacuum A and height."""


def galaxy(z: float, seed: int, mask: bool = False) -> Observation:
    rng = np.random.default_rng(seed)
    x = np.arange(3600.0, 9824.0, 0.8)
    rest = x / (1 + z)
    flux = 3.0 * (1 + 0.5 * np.tanh((rest - 4000) / 100)) * (rest / 5000) ** rng.normal(0, 0.2)
    for centre, height in LINES:
        flux += height * rng.uniform(0.5, 1.5) * np.exp(-0.5 * ((rest - centre) / 3.0) ** 2)
    flux += 0.3 * rng.normal(size=len(x))
    bad = (x > 7000) & (x < 7100) if mask else np.zeros(len(x), bool)
    flux[bad] = 1e5
    return Observation(f"{z}-{seed}", {"tok_spectrum_desi": Spectrum(
        x, flux.astype(np.float32), np.full(len(x), 1 / 0.09, np.float32), bad, "1e-17 erg / (s cm2 Angstrom)",
        "heliocentric")})  # fmt: skip


def star(seed: int) -> Observation:
    """A hot continuum with absorption lines at rest."""
    rng = np.random.default_rng(seed)
    x = np.arange(3600.0, 9824.0, 0.8)
    flux = 5.0 * (x / 5000) ** rng.normal(-2.5, 0.3)
    for centre in (4102.9, 4341.7, 4862.7, 6564.6):
        flux *= 1 - rng.uniform(0.3, 0.6) * np.exp(-0.5 * ((x - centre) / 12.0) ** 2)
    flux += 0.3 * rng.normal(size=len(x))
    return Observation(f"star-{seed}", {"tok_spectrum_desi": Spectrum(
        x, flux.astype(np.float32), np.full(len(x), 1 / 0.09, np.float32), np.zeros(len(x), bool),
        "1e-17 erg / (s cm2 Angstrom)", "heliocentric")})  # fmt: skip


def fitted() -> TemplateFit:
    z = np.random.default_rng(0).uniform(0.0, 0.5, 60)
    galaxies, stars = [galaxy(float(one), k) for k, one in enumerate(z)], [star(k) for k in range(20)]
    return TemplateFit.fit([*galaxies, *stars], np.append(z, np.zeros(20)), ["GALAXY"] * 60 + ["STAR"] * 20)


@pytest.fixture(scope="module")
def templates() -> TemplateFit:
    return fitted()


@pytest.mark.parametrize("z", [0.01, 0.123, 0.3, 0.48])
def test_redshifts_come_back(templates: TemplateFit, z: float) -> None:
    found = templates.redshift(galaxy(z, 1000))
    assert abs(found - z) / (1 + z) < 3e-4, "half a pixel"


def test_masked_pixels_have_no_say(templates: TemplateFit) -> None:
    assert abs(templates.redshift(galaxy(0.2, 77, mask=True)) - 0.2) < 5e-4
    flux, weight = on_grid(galaxy(0.2, 77, mask=True))
    place = int((np.log(7050.0) - OBSERVED[0]) / STEP)
    assert weight[place] == 0
    assert flux[place] == 0
    assert flux.max() < 20


def test_the_class_of_least_chi_square_is_taken(templates: TemplateFit) -> None:
    """Stars are at rest to less than a pixel, though galaxies have templates at every redshift."""
    assert max(abs(templates.redshift(star(1000 + k))) for k in range(5)) < STEP / 2


def test_all_shifts_at_once_are_each_shift_alone(templates: TemplateFit) -> None:
    """The correlations are the sums that they stand for."""
    one: Templates = templates.templates["GALAXY"]
    f, w = on_grid(galaxy(0.31, 5, mask=True))
    gains = one.gains(f, w)
    last = len(gains) - 1
    for shift in (0, 7, last // 2, last):
        t = one.components[:, last - shift :][:, : len(f)]
        tw = t * w[: t.shape[1]]
        gram = tw @ t.T
        gram += np.eye(len(t)) * 1e-3 * np.trace(gram) / len(t)
        right = tw @ f[: t.shape[1]]
        assert gains[shift] == pytest.approx(right @ np.linalg.solve(gram, right), rel=1e-6)


def test_it_is_deterministic(templates: TemplateFit) -> None:
    again = fitted()
    for name, one in templates.templates.items():
        assert (again.templates[name].components == one.components).all()


def test_a_spectrum_of_nothing(templates: TemplateFit) -> None:
    x = np.arange(3600.0, 9824.0, 0.8)
    zero = np.zeros(len(x), np.float32)
    blank = Spectrum(x, zero, zero, np.ones(len(x), bool), "1e-17 erg / (s cm2 Angstrom)", "heliocentric")
    assert templates.redshift(Observation("a", {"tok_spectrum_desi": blank})) == 0.0
