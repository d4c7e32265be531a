"""Spectra of simulated objects as DESI, SDSS and BOSS take them: resolution, pixels, noise, sky lines, bad pixels.

observe   one spectrum, with the truth behind it
Instrument, INSTRUMENTS
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from albireo.observations.modalities import FLUX_DENSITY
from albireo.observations.observation import Spectrum
from albireo.observations.simulation.light import (
    C_KMS,
    OPTICAL_GRID,
    Light,
    binned,
    edges_of,
    line_density,
    optical,
)
from albireo.observations.wavelengths import air_to_vacuum

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Instrument:
    """A spectrograph.

    grid        (L,) vacuum Angstrom
    resolution  (wavelengths in Angstrom, R = lambda / FWHM there)
    noise       (wavelengths, sigma per pixel of blank sky in 1e-17 erg / (s cm2 Angstrom) of a typical exposure)
    gain        variance that flux adds, per unit of flux and of blank-sky sigma at 6000 Angstrom
    fibre       radius in arcsec
    joints      wavelengths at which cameras meet
    """

    key: str
    grid: Doubles
    resolution: tuple[tuple[float, ...], tuple[float, ...]]
    noise: tuple[tuple[float, ...], tuple[float, ...]]
    gain: float
    fibre: float
    joints: tuple[float, ...]


INSTRUMENTS = {
    # Noise per 0.8 Angstrom as measured in DESI coadds; R rises along each of the three cameras.
    "desi": Instrument(
        "tok_spectrum_desi",
        3600.0 + 0.8 * np.arange(7781, dtype=np.float64),
        ((3600, 5800, 5801, 7600, 7601, 9824), (2050, 3300, 3200, 4500, 4000, 5400)),
        ((3600, 4000, 5000, 6000, 7000, 8000, 9000, 9500, 9824), (0.95, 0.46, 0.26, 0.19, 0.13, 0.10, 0.11, 0.13, 0.2)),
        0.012, 0.75, (5780.0, 7570.0),
    ),
    "sdss": Instrument(
        "tok_spectrum_sdss",
        10.0 ** (3.5797 + 1e-4 * np.arange(3853, dtype=np.float64)),
        ((3800, 6000, 6001, 9230), (1850, 2100, 1850, 2200)),
        ((3800, 4000, 5000, 6000, 7000, 8000, 9000, 9230), (2.6, 1.9, 1.05, 0.9, 0.85, 0.85, 1.0, 1.3)),
        0.05, 1.5, (6000.0,),
    ),
    "boss": Instrument(
        "tok_spectrum_sdss",
        10.0 ** (3.5563 + 1e-4 * np.arange(4612, dtype=np.float64)),
        ((3600, 6100, 6101, 10400), (1500, 2200, 1850, 2600)),
        ((3600, 4000, 5000, 6000, 7000, 8000, 9000, 10000, 10400), (2.0, 0.95, 0.5, 0.42, 0.38, 0.38, 0.45, 0.75, 1.2)),
        0.022, 1.0, (6050.0,),
    ),
}  # fmt: skip

# Air Angstrom and relative strength of night-sky lines (positions after Osterbrock et al. 1996, PASP 108, 277).
_SKY = np.array([
    (4046.6, 0.3), (4358.3, 0.4), (5460.7, 0.5), (5577.34, 8.0), (5889.95, 1.2), (5895.92, 0.7), (6300.30, 4.0),
    (6363.78, 1.4), (6498.7, 0.4), (6533.0, 0.5), (6553.6, 0.4), (6863.96, 0.9), (6923.2, 0.7), (6978.3, 0.5),
    (7244.9, 0.7), (7276.4, 1.7), (7284.4, 0.8), (7316.3, 2.2), (7329.1, 0.8), (7340.9, 2.2), (7369.2, 0.9),
    (7401.9, 0.8), (7524.1, 0.6), (7571.7, 0.5), (7715.3, 0.8), (7750.6, 2.6), (7759.9, 0.9), (7794.1, 3.0),
    (7808.5, 1.1), (7821.5, 2.6), (7841.3, 1.0), (7853.3, 1.1), (7913.7, 3.2), (7921.1, 0.9), (7964.6, 2.6),
    (7993.3, 3.0), (8014.1, 0.8), (8025.8, 1.9), (8062.2, 0.7), (8288.6, 1.2), (8298.6, 1.2), (8344.6, 3.2),
    (8352.8, 1.0), (8382.4, 1.1), (8399.2, 4.0), (8415.2, 1.4), (8430.2, 4.0), (8452.3, 1.2), (8465.4, 3.4),
    (8493.4, 2.2), (8504.6, 1.4), (8548.7, 0.9), (8761.7, 1.2), (8767.9, 2.0), (8778.3, 2.0), (8791.2, 1.5),
    (8827.1, 4.0), (8836.0, 1.2), (8850.0, 2.8), (8867.6, 3.6), (8885.8, 4.8), (8903.1, 3.4), (8919.6, 4.6),
    (8943.4, 3.0), (8957.9, 3.4), (8988.4, 2.2), (9001.4, 2.2), (9037.9, 2.4), (9049.2, 1.2), (9102.7, 1.0),
    (9310.0, 2.4), (9337.9, 3.4), (9375.9, 4.2), (9399.7, 2.2), (9419.7, 4.0), (9439.6, 4.4), (9458.5, 2.0),
    (9476.9, 2.0), (9502.8, 4.4), (9519.3, 2.0), (9552.5, 3.2), (9567.6, 3.4), (9607.7, 2.0), (9620.6, 2.2),
    (9700.7, 2.4), (9719.8, 4.0), (9740.8, 1.6), (9791.3, 3.6), (9801.2, 1.6), (9872.1, 4.6), (9914.7, 4.6),
    (9956.0, 2.0), (10013.5, 5.0), (10082.5, 5.0), (10124.0, 5.0), (10171.0, 4.0), (10210.0, 4.0), (10289.0, 4.5),
    (10375.0, 4.0),
])  # fmt: skip
_SKY[:, 0] = air_to_vacuum(_SKY[:, 0])


def sky_lines(instrument: Instrument) -> Doubles:
    """(L,) brightness of night-sky lines as this instrument resolves them, 1 = as bright as the sky between them."""
    edges = edges_of(instrument.grid)
    sigma = _SKY[:, 0] / np.interp(_SKY[:, 0], *instrument.resolution) / 2.355
    out = np.zeros(len(instrument.grid))
    for (centre, strength), width in zip(_SKY, sigma, strict=True):
        window = slice(*np.searchsorted(edges[:-1], [centre - 5 * width, centre + 5 * width]))
        out[window] += strength * np.exp(-0.5 * ((instrument.grid[window] - centre) / width) ** 2)
    return out


_SKY_OF = {name: sky_lines(instrument) for name, instrument in INSTRUMENTS.items()}


@dataclass(frozen=True)
class Observed:
    """A spectrum, and the noiseless flux (L,) behind it at the same resolution and calibration."""

    spectrum: Spectrum
    truth: NDArray[np.float64]


def truth_of(light: Light, instrument: Instrument) -> Doubles:
    """(L,) noiseless f_lambda in the instrument's pixels."""
    continuum = optical(light, C_KMS / 2.355 / np.interp(OPTICAL_GRID, *instrument.resolution))
    edges = edges_of(instrument.grid)
    width = C_KMS / 2.355 / np.interp(light.lines.wavelength, *instrument.resolution)
    return binned(continuum, edges) + line_density(edges, light.lines, width)


def observe(light: Light, name: str, fibre_share: float, rng: np.random.Generator) -> Observed:
    """A spectrum of light that passed the Galaxy (`dimmed`), of which `fibre_share` enters the fibre.

    Noise is Gaussian and as large as ivar says: of the sky, of the object, more on sky lines. Besides, as pipelines
    leave them, there are residuals of sky lines by 1 % of a line (not in ivar), a calibration that is a few percent off
    and bends, and masked pixels: single ones and, in a tenth of spectra, a run of them.
    """
    instrument = INSTRUMENTS[name]
    grid = instrument.grid
    depth = float(np.clip(rng.lognormal(0.0, 0.25), 0.5, 2.5))
    x = (grid - grid[0]) / (grid[-1] - grid[0]) * 2 - 1
    bend = 0.03 * rng.normal(size=3) @ np.stack([np.ones_like(x), x, 1.5 * x**2 - 0.5])
    truth = truth_of(light, instrument) * fibre_share * np.exp(bend)
    sky = np.interp(grid, *instrument.noise)
    typical = float(np.interp(6000.0, *instrument.noise))
    lines = _SKY_OF[name]
    sigma = depth * np.sqrt(sky**2 * (1 + 1.2 * lines) + instrument.gain * typical * np.maximum(truth, 0.0))
    # A residual is one number for each sky line: what a pipeline subtracts too much or too little.
    knots = np.interp(
        grid, np.arange(grid[0], grid[-1], 40.0), rng.normal(size=len(np.arange(grid[0], grid[-1], 40.0)))
    )
    residual = 0.25 * sky * lines * knots * depth
    mask = rng.random(len(grid)) < 0.003
    if rng.random() < 0.1:
        start = int(rng.integers(len(grid)))
        mask[start : start + int(rng.integers(5, 120))] = True
    for joint in instrument.joints:
        if rng.random() < 0.02:
            mask |= np.abs(grid - joint) < 30.0
    measured = truth + sigma * rng.normal(size=len(grid)) + residual
    ivar = np.where(mask, 0.0, sigma**-2)
    # Kept to a 64th of sigma: finer digits are noise, and do not compress.
    step = 2.0 ** np.floor(np.log2(np.median(sigma) / 64))
    measured = np.round(measured / step) * step
    spectrum = Spectrum(
        grid, measured.astype(np.float32), _short(ivar), mask, FLUX_DENSITY,
        "barycentric" if name == "desi" else "heliocentric", "vacuum",
    )  # fmt: skip
    return Observed(spectrum, truth)


def _short(values: Doubles) -> NDArray[np.float32]:
    """float32 with 10 bits of mantissa: an ivar good to 0.05 %."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)).view(np.float32)
