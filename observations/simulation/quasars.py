"""The light of simulated quasars: power laws, broad and narrow lines, iron, the Balmer continuum, hot dust, the forest.

Levels and equivalent widths are those of the composite of Vanden Berk et al. (2001, AJ 122, 549), rounded and
scattered; wavelengths are in vacuum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from albireo.observations.simulation.light import C_KMS, GRID, NO_LINES, Light, smc_transmission

Doubles = NDArray[np.float64]

LYMAN_ALPHA, LYMAN_BETA, LYMAN_LIMIT = 1215.67, 1025.72, 911.75

BROAD = {
    "Ly alpha": (1215.67, 75.0, 1.2), "N V": (1240.14, 12.0, 1.1), "O VI": (1033.83, 10.0, 1.1),
    "Si II": (1305.42, 1.7, 0.8), "C II": (1335.30, 0.7, 0.8), "Si IV": (1399.8, 8.5, 1.1),
    "C IV": (1549.06, 27.0, 1.15), "He II": (1640.42, 3.0, 1.3), "Al III": (1857.40, 2.0, 1.0),
    "Si III]": (1892.03, 2.0, 1.0), "C III]": (1908.73, 19.0, 1.1), "Mg II a": (2796.35, 16.5, 0.85),
    "Mg II b": (2803.53, 14.0, 0.85), "H delta": (4102.89, 6.0, 1.0), "H gamma": (4341.68, 13.0, 1.0),
    "H beta": (4862.68, 46.0, 1.0), "He I": (5877.29, 4.9, 1.0), "H alpha": (6564.61, 195.0, 0.9),
    "O I": (8448.6, 5.0, 0.8), "Pa 9": (9231.5, 3.0, 0.9), "Pa epsilon": (9548.6, 5.0, 0.9),
    "Pa delta": (10052.1, 7.0, 0.9), "He I b": (10833.3, 30.0, 0.9),
    "Pa beta": (12821.6, 30.0, 0.9), "Pa alpha": (18756.1, 55.0, 0.9),
}  # fmt: skip
"""Vacuum Angstrom, rest equivalent width in Angstrom, width over that of H beta."""

NARROW = {
    "Ne V": (3426.84, 1.5), "[O II] a": (3727.09, 0.7), "[O II] b": (3729.88, 0.9), "[Ne III]": (3869.86, 1.4),
    "H beta": (4862.68, 1.3), "[O III] b": (4960.30, 4.5), "[O III] a": (5008.24, 13.4), "[O I]": (6302.05, 0.7),
    "[N II] b": (6549.85, 1.2), "H alpha": (6564.61, 4.5), "[N II] a": (6585.27, 3.6), "[S II] a": (6718.29, 1.6),
    "[S II] b": (6732.67, 1.4),
}  # fmt: skip

IRON: tuple[tuple[float, float, float], ...] = (
    (2080, 30, 0.05), (2250, 70, 0.07), (2390, 60, 0.16), (2500, 60, 0.14), (2580, 50, 0.10), (2630, 35, 0.09),
    (2750, 50, 0.10), (2880, 50, 0.07), (2965, 45, 0.06), (3200, 120, 0.04), (4180, 60, 0.03), (4300, 50, 0.03),
    (4515, 40, 0.06), (4570, 35, 0.08), (4630, 35, 0.07), (5180, 45, 0.05), (5275, 50, 0.08), (5330, 40, 0.05),
)  # fmt: skip
"""Blends of Fe II: centre and sigma in Angstrom, height over the continuum (after Vestergaard & Wilkes 2001 and
Boroson & Green 1992, as sums of Gaussians)."""


@dataclass(frozen=True)
class Quasar:
    """What one quasar is.

    blue, red   spectral indices of f_lambda below and above 5000 A
    width       of H beta, FWHM in km/s
    lines, narrow, iron  strengths over the composite's
    balmer      Balmer continuum at its edge over the power law
    reddening   E(B-V) in mag of dust like that of the SMC
    dust        hot dust at 2 um over the power law
    trough      depth, start and end (km/s) of a broad absorption; depth 0 = none
    seed        of line ratios and the forest
    """

    z: float
    blue: float
    red: float
    width: float
    lines: float
    narrow: float
    iron: float
    balmer: float
    reddening: float
    dust: float
    trough: tuple[float, float, float]
    seed: int


def draw_quasar(z: float, mag: float, rng: np.random.Generator) -> Quasar:
    """A quasar at this redshift, of about this magnitude: fainter ones have stronger lines (Baldwin 1977)."""
    luminosity = -(mag - 19.5) + 5 * np.log10(max(z, 0.05) / 1.5)
    absorbed = z > 1.5 and rng.random() < 0.1
    end = float(rng.uniform(6000, 22000))
    return Quasar(
        z=z,
        blue=float(rng.normal(-1.56, 0.22)),
        red=float(rng.normal(-0.6, 0.35)),
        width=float(np.clip(rng.lognormal(np.log(4500), 0.35), 1500, 14000)),
        lines=float(rng.lognormal(-0.12 * np.clip(luminosity, -3, 3), 0.3)),
        narrow=float(rng.lognormal(-0.1, 0.8)),
        iron=float(rng.lognormal(0.0, 0.45)),
        balmer=float(rng.uniform(0.02, 0.14)),
        # Most are blue, with a tail of reddened ones: Hopkins et al. (2004, AJ 128, 1112).
        reddening=float(rng.exponential(0.015) if rng.random() < 0.85 else rng.exponential(0.12)),
        dust=float(rng.lognormal(np.log(1.1), 0.35)),
        trough=(float(rng.uniform(0.4, 0.98)), float(rng.uniform(0, 0.5) * end), end) if absorbed else (0.0, 0.0, 0.0),
        seed=int(rng.integers(2**31)),
    )


def _power(quasar: Quasar, rest: Doubles) -> Doubles:
    """Broken power law, 1 at 3000 A."""
    blue = (rest / 3000.0) ** quasar.blue
    red = (5000.0 / 3000.0) ** quasar.blue * (rest / 5000.0) ** quasar.red
    far = (1100.0 / 3000.0) ** quasar.blue * (rest / 1100.0) ** (quasar.blue + 0.7)
    # Beyond 1 um the disc falls as a Rayleigh-Jeans tail, and the dust takes over.
    steep = np.where(rest > 9000.0, (9000.0 / rest) ** 1.4, 1.0)
    out: Doubles = np.where(rest < 1100.0, far, np.where(rest < 5000.0, blue, red)) * steep
    return out


def _planck(rest: Doubles, temperature: float, at: float) -> Doubles:
    """f_lambda of a black body, 1 at wavelength `at`."""
    x = np.minimum(1.43877e8 / (rest * temperature), 500.0)
    out: Doubles = (at / rest) ** 5 * np.expm1(1.43877e8 / (at * temperature)) / np.expm1(x)
    return out


def _balmer(rest: Doubles) -> Doubles:
    """Balmer continuum of Grandi (1982, ApJ 255, 25), optically thin at the edge, 1 there, with its blended lines."""
    edge = 3646.0
    depth = 1 - np.exp(-((np.minimum(rest, edge) / edge) ** 3))
    below = _planck(np.minimum(rest, edge), 15000.0, edge) * depth / (1 - np.exp(-1.0))
    # High-order lines fill the gap to H delta.
    above = np.exp(-np.maximum(rest - edge, 0.0) / 90.0)
    out: Doubles = np.where(rest < edge, below, above)
    return out


def shine(quasar: Quasar) -> Light:
    """The light of a quasar as it arrives at the Galaxy, in relative units; its lines are in `flux`."""
    rest = GRID / (1 + quasar.z)
    power = _power(quasar, rest)
    flux = power.copy()
    for centre, sigma, height in IRON:
        _add(flux, power, rest, centre, float(np.hypot(sigma, centre * quasar.width / 2.355 / C_KMS)),
             height * quasar.iron)  # fmt: skip
    flux += quasar.balmer * 3.0 * (3646.0 / 3000.0) ** quasar.blue * _balmer(rest)
    flux += quasar.dust * _power(quasar, np.array([20000.0])) * _planck(rest, 1280.0, 20000.0)
    scatter = np.random.default_rng(quasar.seed)
    for centre, equivalent, width in BROAD.values():
        strength = equivalent * quasar.lines * float(scatter.lognormal(0, 0.18))
        sigma = centre * quasar.width * width / 2.355 / C_KMS
        # High-ionisation lines are blueshifted by some 100 to 1000 km/s: Shen et al. (2016, ApJ 831, 7).
        blue = 1 - abs(float(scatter.normal(0, 350 if centre in (1549.06, 1240.14, 1640.42) else 60))) / C_KMS
        for share, spread in ((0.65, 0.6), (0.35, 1.7)):
            _add(flux, power, rest, centre * blue, sigma * spread,
                 strength * share / (np.sqrt(2 * np.pi) * sigma * spread))  # fmt: skip
    for centre, equivalent in NARROW.values():
        sigma = centre * 220.0 / C_KMS
        _add(flux, power, rest, centre, sigma, equivalent * quasar.narrow / (np.sqrt(2 * np.pi) * sigma))
    flux *= smc_transmission(rest, quasar.reddening)
    depth, start, end = quasar.trough
    if depth:
        for centre in (1549.06, 1399.8, 1240.14):
            velocity = C_KMS * (1 - rest / centre)
            edge = 1 / (1 + np.exp(np.clip((start - velocity) / 300, -60, 60)))
            flux *= 1 - depth * edge / (1 + np.exp(np.clip((velocity - end) / 800, -60, 60)))
    if rest[0] < LYMAN_ALPHA:
        flux *= forest(quasar.z, scatter)
    return Light(flux, NO_LINES)


def _add(flux: Doubles, power: Doubles, rest: Doubles, centre: float, sigma: float, height: float) -> None:
    """Add a Gaussian of `height` over the power law."""
    window = slice(*np.searchsorted(rest, [centre - 6 * sigma, centre + 6 * sigma]))
    flux[window] += power[window] * height * np.exp(-0.5 * ((rest[window] - centre) / sigma) ** 2)


def optical_depth(z: Doubles) -> Doubles:
    """Mean Lyman-alpha optical depth between galaxies: 0.0023 (1 + z)^3.65, Kim et al. (2007, MNRAS 382, 1657)."""
    out: Doubles = 0.0023 * (1 + z) ** 3.65
    return out


def mean_forest(wavelength: Doubles, z: float) -> Doubles:
    """Mean share of light that passes the gas between us and redshift z: Lyman alpha, beta and the Lyman limit."""
    rest = wavelength / (1 + z)
    out = np.where(rest < LYMAN_ALPHA, np.exp(-optical_depth(wavelength / LYMAN_ALPHA - 1)), 1.0)
    out *= np.where(rest < LYMAN_BETA, np.exp(-0.3 * optical_depth(np.maximum(wavelength / LYMAN_BETA - 1, 0.0))), 1.0)
    return out * _limit(wavelength, z)


def _limit(wavelength: Doubles, z: float) -> Doubles:
    """Lyman-continuum absorption: mean free path of Worseck et al. (2014, MNRAS 445, 1745), 37 Mpc at z = 4."""
    edge = wavelength / LYMAN_LIMIT - 1
    path = np.maximum(z - edge, 0.0)
    out: Doubles = np.exp(-path * 3.75 * ((1 + z) / 5.0) ** 2.9)
    return out


def forest(z: float, rng: np.random.Generator) -> Doubles:
    """Share of light on GRID that passes one line of sight: clouds about the mean depth, and rare strong absorbers.

    A log-normal field, smooth over 25 km/s and correlated over a few hundred, has the mean transmission of
    `optical_depth`; systems of high column density have damping wings and cut the Lyman continuum.
    """
    inside = slice(0, int(np.searchsorted(GRID, LYMAN_ALPHA * (1 + z))))
    wavelength = GRID[inside]
    if not len(wavelength):
        return np.ones(len(GRID))
    velocity = np.arange(0.0, C_KMS * np.log(wavelength[-1] / wavelength[0]) + 30.0, 25.0)
    field = _correlated(len(velocity), rng)
    cloud = np.interp(C_KMS * np.log(wavelength / wavelength[0]), velocity, field)
    out = np.ones(len(GRID))
    depth = optical_depth(wavelength / LYMAN_ALPHA - 1) * cloud
    beta = wavelength < LYMAN_BETA * (1 + z)
    depth[beta] += 0.3 * (optical_depth(np.maximum(wavelength / LYMAN_BETA - 1, 0.0)) * cloud[::-1])[beta]
    out[inside] = np.exp(-depth)
    for _ in range(rng.poisson(0.25 * max(z - 1.8, 0.0))):  # damped systems, N(HI) 10^20 to 10^21
        where = LYMAN_ALPHA * (1 + rng.uniform(0.75 * z, z))
        column = 10 ** rng.uniform(20.0, 21.2)
        # Damping wings: tau = 1 at 2.06 A of rest offset for 10^20 cm-2, so that its equivalent width is 7.3 A.
        offset = np.maximum(np.abs(GRID - where) / (where / LYMAN_ALPHA), 0.3)
        out *= np.exp(-(column / 1e20) * (2.06 / offset) ** 2 * (offset < 60))
    return out * _limit(GRID, z)


def _correlated(n: int, rng: np.random.Generator) -> Doubles:
    """Log-normal optical depths over their effective value: mean exp(-tau field) is that of tau up to a few percent."""
    white = rng.normal(size=(2, n + 40))
    fine = np.convolve(white[0], np.exp(-0.5 * (np.arange(-20, 21) / 1.6) ** 2), "valid")
    wide = np.convolve(white[1], np.exp(-0.5 * (np.arange(-20, 21) / 7.0) ** 2), "valid")
    field = 0.8 * fine / np.sqrt(np.pi**0.5 * 1.6) + 0.6 * wide / np.sqrt(np.pi**0.5 * 7.0)
    # Strongly clumped: most of the way is nearly empty, so that clouds must be thicker to absorb as much.
    out: Doubles = np.exp(1.6 * field - 0.5 * 1.6**2) * 2.1
    return out
