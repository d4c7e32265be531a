"""What all simulated objects share: light on one grid of observed vacuum wavelengths, its lines, dust on its way.

Light            f_lambda on GRID and emission lines, above the Earth's atmosphere, not dimmed by the Galaxy
dimmed           the same behind Galactic dust
smoothed, binned what a spectrograph does to it
line_density     lines as mean f_lambda in pixels, so that a line's flux and centroid do not depend on the pixels
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d
from scipy.special import erf

Doubles = NDArray[np.float64]

C_KMS = 299792.458

OPTICAL = (3500.0, 10600.0)
"""Angstrom; where GRID is fine enough for spectra."""


def _log_steps(low: float, high: float, step: float) -> Doubles:
    out: Doubles = np.exp(np.arange(np.log(low), np.log(high), step))
    return out


GRID: Doubles = np.concatenate(
    [_log_steps(2800.0, OPTICAL[0], 4e-4), _log_steps(*OPTICAL, 6e-5), _log_steps(OPTICAL[1], 55600.0, 5e-4)]
)
"""Observed vacuum wavelengths in Angstrom: every 18 km/s in the optical, every 120-150 km/s beyond it."""

EDGES: Doubles = np.concatenate([[GRID[0]], (GRID[1:] + GRID[:-1]) / 2, [GRID[-1]]])


@dataclass(frozen=True)
class Lines:
    """Emission lines (n,): observed vacuum wavelength in Angstrom, flux in 1e-17 erg / (s cm2), sigma in km/s."""

    wavelength: Doubles
    flux: Doubles
    sigma: Doubles


NO_LINES = Lines(np.empty(0), np.empty(0), np.empty(0))


@dataclass(frozen=True)
class Light:
    """One object's light as it arrives at the Galaxy.

    flux   (len(GRID),) continuum with absorption, 1e-17 erg / (s cm2 Angstrom)
    lines  emission lines, kept apart until pixels are known
    sigma  km/s: velocity dispersion that `flux` should have
    have   km/s, number or (len(GRID),): what it has already, because its templates were observed
    """

    flux: Doubles
    lines: Lines = NO_LINES
    sigma: float = 0.0
    have: Doubles | float = 0.0

    def total(self) -> Doubles:
        """f_lambda on GRID, lines included."""
        return self.flux + line_density(EDGES, self.lines)

    def scaled(self, factor: float) -> Light:
        return replace(self, flux=self.flux * factor, lines=replace(self.lines, flux=self.lines.flux * factor))


def dimmed(light: Light, ebv: float) -> Light:
    """The light behind Galactic dust of E(B-V) mag."""
    lines = replace(light.lines, flux=light.lines.flux * transmission(light.lines.wavelength, ebv))
    return replace(light, flux=light.flux * _GALACTIC**ebv, lines=lines)


_KNOTS = np.array([0.0, 0.377, 0.820, 1.667, 1.828, 2.141, 2.433, 3.704, 3.846])
_VALUES = np.array([0.0, 0.265, 0.829, 2.688, 3.055, 3.806, 4.315, 6.265, 6.591])
_FITZPATRICK = CubicSpline(_KNOTS, _VALUES)
SFD_SCALE = 0.86
"""Schlafly & Finkbeiner (2011, ApJ 737, 103): the map of Schlegel et al. (1998), whose E(B-V) surveys state, is 14 %
high."""


def extinction(wavelength: Doubles, ebv: float) -> Doubles:
    """A(lambda) in mag for E(B-V) of the SFD map; Fitzpatrick (1999, PASP 111, 63) with R_V = 3.1, 2600 A to 10 um.

    The knots are those of his Table 3 for R_V = 3.1, joined by a cubic spline in 1 / wavelength.
    """
    out: Doubles = SFD_SCALE * ebv * _FITZPATRICK(1e4 / wavelength)
    return out


def transmission(wavelength: Doubles, ebv: float) -> Doubles:
    """Share of light (0 to 1) that passes Galactic dust of E(B-V) mag."""
    out: Doubles = 10.0 ** (-0.4 * extinction(wavelength, ebv))
    return out


_GALACTIC = transmission(GRID, 1.0)


def smc_transmission(rest: Doubles, ebv: float) -> Doubles:
    """Share of light that passes dust of the Small Magellanic Cloud in the object; A = 1.39 E(B-V) (um / lambda)^1.2.

    The law that reddened quasars follow: Richards et al. (2003, AJ 126, 1131).
    """
    out: Doubles = 10.0 ** (-0.4 * 1.39 * ebv * (1e4 / rest) ** 1.2)
    return out


def line_density(edges: Doubles, lines: Lines, instrument: Doubles | float = 0.0) -> Doubles:
    """Mean f_lambda of Gaussian lines in pixels between `edges` (n + 1,); `instrument` (lines,) km/s adds in square."""
    out = np.zeros(len(edges) - 1)
    widths = lines.wavelength * np.maximum(np.hypot(lines.sigma, instrument), 5.0) / C_KMS
    first = np.searchsorted(edges, lines.wavelength - 6 * widths)
    last = np.searchsorted(edges, lines.wavelength + 6 * widths)
    for centre, flux, width, low, high in zip(lines.wavelength, lines.flux, widths, first, last, strict=True):
        low, high = max(low - 1, 0), min(high + 1, len(edges))
        if high - low > 1 and flux:
            cumulative = 0.5 * erf((edges[low:high] - centre) / (np.sqrt(2) * width))
            out[low : high - 1] += flux * np.diff(cumulative) / np.diff(edges[low:high])
    return out


_FINE = slice(int(np.searchsorted(GRID, OPTICAL[0] - 1e-6)), int(np.searchsorted(GRID, OPTICAL[1])))
OPTICAL_GRID: Doubles = GRID[_FINE]


def smoothed(flux: Doubles, sigma: Doubles) -> Doubles:
    """Flux on OPTICAL_GRID convolved with a Gaussian whose sigma in km/s (len(OPTICAL_GRID),) may vary with wavelength.

    In the coordinate that counts local sigmas the kernel is constant; below 12 km/s the grid leaves flux as it is.
    """
    sigma = np.maximum(sigma, 12.0)
    log = np.log(OPTICAL_GRID)
    coordinate = np.concatenate([[0.0], np.cumsum(np.diff(log) * C_KMS * 0.5 * (1 / sigma[1:] + 1 / sigma[:-1]))])
    even = np.arange(0.0, coordinate[-1], 0.25)
    kernel = gaussian_filter1d(np.interp(even, coordinate, flux), 4.0, truncate=5.0, mode="nearest")
    out: Doubles = np.interp(coordinate, even, kernel)
    return out


def optical(light: Light, instrument: Doubles) -> Doubles:
    """The continuum on OPTICAL_GRID as a spectrograph of sigma `instrument` (len(OPTICAL_GRID),) km/s sees it."""
    have = light.have if isinstance(light.have, float) else light.have[_FINE]
    missing = light.sigma**2 + instrument**2 - np.square(have)
    return smoothed(light.flux[_FINE], np.sqrt(np.maximum(missing, 0.0)))


def binned(flux: Doubles, edges: Doubles) -> Doubles:
    """Mean of flux on OPTICAL_GRID in each pixel between `edges` (n + 1,), from its running integral."""
    steps = np.diff(OPTICAL_GRID) * 0.5 * (flux[1:] + flux[:-1])
    running = np.concatenate([[0.0], np.cumsum(steps)])
    out: Doubles = np.diff(np.interp(edges, OPTICAL_GRID, running)) / np.diff(edges)
    return out


def edges_of(centres: Doubles) -> Doubles:
    """(n + 1,) edges of pixels with these centres."""
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])
