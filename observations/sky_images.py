"""Pixels of the simulated sky: galaxies as mixtures of Gaussians, point sources, correlated noise, faint neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from albireo.observations.modalities import IMAGE_SIZE

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]

FWHM = {"legacysurvey": (1.3, 1.2, 1.15, 1.1), "hsc": (0.75, 0.72, 0.6, 0.65, 0.68)}
"""Seeing in arcsec per band, in the order of the survey's bands."""

SKY = {"legacysurvey": (0.0022, 0.0035, 0.006, 0.0103), "hsc": (0.0005, 0.0007, 0.0009, 0.0016, 0.003)}
"""Noise per pixel in nanomaggy."""

EXPONENTIAL = ((0.30, 0.045), (1.18, 0.14), (4.34, 0.46), (6.00, 1.50))
DE_VAUCOULEURS = ((2.45, 0.012), (2.84, 0.068), (4.46, 0.287), (5.72, 1.333), (5.61, 8.40))
"""(weight, variance in half-light radii squared) of Gaussians, after Hogg & Lang (2013, PASP 125, 719)."""


@dataclass(frozen=True)
class Shape:
    """Half-light radius in arcsec along the major axis (0 = point source), ellipticity components, bulge fraction.

    Ellipticity as the Legacy Surveys have it: |e| = (1 - q) / (1 + q), position angle 0.5 atan2(e2, e1) from the
    image's y axis (north) towards -x (east).
    """

    radius: float
    e1: float
    e2: float
    bulge: float

    def covariance(self) -> Doubles:
        """(2, 2) arcsec2, axes x and y: of a Gaussian of this radius and ellipticity."""
        size = float(np.hypot(self.e1, self.e2))
        ratio = (1 - size) / (1 + size)
        angle = 0.5 * np.arctan2(self.e2, self.e1) + np.pi / 2  # of the major axis, from x towards y
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        out: Doubles = turn @ np.diag([self.radius**2, (self.radius * ratio) ** 2]) @ turn.T
        return out


def cutout(
    survey: str, bands: tuple[str, ...], fluxes: Doubles, shape: Shape, pixel_scale: float, rng: np.random.Generator
) -> Floats:
    """(C, 96, 96) in nanomaggy: the object at the centre, neighbours, noise that neighbouring pixels share."""
    pixel = (np.arange(IMAGE_SIZE) - (IMAGE_SIZE - 1) / 2).astype(np.float32) * np.float32(pixel_scale)
    centre = rng.uniform(-0.3, 0.3, 2) * pixel_scale
    others = [
        (rng.uniform(pixel[0], pixel[-1], 2), 10 ** rng.uniform(-1.3, 0.5), rng.uniform(0, 0.7), rng.normal(0, 0.3))
        for _ in range(rng.poisson(1.5))
    ]
    out = np.empty((len(bands), IMAGE_SIZE, IMAGE_SIZE), np.float32)
    for i, (fwhm, sky) in enumerate(zip(FWHM[survey], SKY[survey], strict=True)):
        plane = fluxes[i] * profile(shape, fwhm, pixel - np.float32(centre[0]), pixel - np.float32(centre[1]), i)
        for place, flux, radius, slope in others:
            seen = Shape(float(radius), 0.0, 0.0, 0.0)
            colour = np.exp(slope * (i - len(bands) / 2))
            plane += flux * colour * profile(seen, fwhm, pixel - np.float32(place[0]), pixel - np.float32(place[1]), i)
        plane *= np.float32(pixel_scale**2)
        shot = np.sqrt(np.clip(plane, 0, None)) * np.float32(0.002)
        out[i] = plane + correlated(rng) * np.float32(sky) + shot * rng.normal(size=plane.shape).astype(np.float32)
    return out


def profile(shape: Shape, fwhm: float, x: Floats, y: Floats, band: int) -> Floats:
    """Surface brightness (len(y), len(x)) per arcsec2 of unit flux, seen through a PSF of two Gaussians.

    The bulge is redder than the disc: its share grows with the band's number.
    """
    psf = [(0.85, (fwhm / 2.355) ** 2), (0.15, (2 * fwhm / 2.355) ** 2)]
    parts: list[tuple[float, float]] = [(1.0, 0.0)]
    if shape.radius:
        bulge = float(np.clip(shape.bulge * (0.8 + 0.13 * band), 0, 1))
        parts = [
            (share * weight / sum(w for w, _ in mixture), variance)
            for share, mixture in ((bulge, DE_VAUCOULEURS), (1 - bulge, EXPONENTIAL))
            if share > 0
            for weight, variance in mixture
        ]
    covariance = shape.covariance() if shape.radius else np.zeros((2, 2))
    out = np.zeros((len(y), len(x)), np.float32)
    for weight, variance in parts:
        for fraction, spread in psf:
            total = covariance * variance + np.eye(2) * spread
            inverse, area = np.linalg.inv(total), 2 * np.pi * np.sqrt(np.linalg.det(total))
            a, b, c = (np.float32(v) for v in (inverse[0, 0], inverse[0, 1], inverse[1, 1]))
            exponent = a * x[None, :] ** 2 + 2 * b * x[None, :] * y[:, None] + c * y[:, None] ** 2
            out += np.float32(weight * fraction / area) * np.exp(np.float32(-0.5) * exponent)
    return out


def correlated(rng: np.random.Generator) -> Floats:
    """(96, 96) noise of unit variance whose neighbours correlate by 0.35, as in coadded surveys."""
    share = 0.6
    white = rng.normal(size=(IMAGE_SIZE + 1, IMAGE_SIZE + 1)).astype(np.float32)
    noise = white[1:, 1:] + share * white[:-1, 1:] + share * white[1:, :-1]
    out: Floats = noise / np.float32(np.sqrt(1 + 2 * share**2))
    return out
