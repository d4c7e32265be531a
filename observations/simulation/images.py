"""Images of simulated objects: bulge, disc and knots through the air and a telescope, on a sky with correlated noise.

draw      96 x 96 pixels in several bands
Appearance, Neighbour
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.observations.modalities import IMAGE_SIZE, MODALITIES
from albireo.observations.observation import Convention, Image

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Camera:
    """By band: FWHM of the PSF in arcsec, sky sigma per pixel and variance per flux in nanomaggy.

    And the least and the most that the noise of neighbouring pixels correlates.
    """

    fwhm: tuple[float, ...]
    sky: tuple[float, ...]
    photon: tuple[float, ...]
    correlation: tuple[float, float]


CAMERAS = {
    # Sky sigma and correlation as measured in DECaLS coadds; a photon's variance from the sky's brightness.
    "tok_image": Camera((1.3, 1.2, 1.1, 1.1), (0.0022, 0.0035, 0.006, 0.0103), (4.4e-5, 4.1e-5, 4.8e-5, 4.7e-5),
                        (0.33, 0.60)),
    "tok_image_hsc": Camera((0.78, 0.74, 0.60, 0.67, 0.68), (5e-4, 7e-4, 9e-4, 1.6e-3, 3e-3),
                            (6e-6, 8e-6, 9e-6, 1.2e-5, 2.5e-5), (0.10, 0.30)),
}  # fmt: skip

FIELD = 5
"""Most neighbours that a cutout gets."""


@dataclass(frozen=True)
class Appearance:
    """What an object looks like, one flux aside.

    radius     half-light radius in arcsec along the major axis, 0 = point source
    tilt       axis ratio of the disc
    angle      of the major axis, degrees from north (y) to east (-x)
    bulge      share of the light in r
    reddening  of the bulge: log10 of its share's growth per band
    knots      share of the disc's light in star-forming knots in g
    core       share of the light in a point at the centre (an active nucleus, a quasar in its host)
    """

    radius: float
    tilt: float = 1.0
    angle: float = 0.0
    bulge: float = 0.0
    reddening: float = 0.06
    knots: float = 0.0
    core: float = 0.0

    def ellipticity(self) -> tuple[float, float]:
        """(e1, e2) as the Legacy Surveys state them: |e| = (1 - q) / (1 + q) of disc and bulge together."""
        ratio = self.tilt * (1 - self.bulge) + (0.3 + 0.7 * self.tilt) * self.bulge
        size = (1 - ratio) / (1 + ratio) if self.radius else 0.0
        return size * float(np.cos(2 * np.radians(self.angle))), size * float(np.sin(2 * np.radians(self.angle)))


@dataclass(frozen=True)
class Neighbour:
    """Another object in the cutout: fluxes (nanomaggy, by band of the image), offset in arcsec, radius in arcsec."""

    fluxes: tuple[float, ...]
    offset: tuple[float, float]
    radius: float
    tilt: float
    angle: float


def draw(
    key: str, fluxes: Doubles, looks: Appearance, neighbours: tuple[Neighbour, ...], rng: np.random.Generator
) -> tuple[Image, Floats]:
    """The image of an object in the bands of `key`, and (C, 96, 96) without noise, both in the modality's unit.

    `fluxes` (C,) nanomaggy, dimmed by the Galaxy. Row 0 is south, column 0 is east.
    """
    import galsim

    row, camera = MODALITIES[key], CAMERAS[key]
    assert row.pixel_scale is not None
    seeing = float(np.clip(rng.lognormal(0.0, 0.08), 0.8, 1.3))
    correlation = float(rng.uniform(*camera.correlation))
    depth = float(rng.lognormal(0.0, 0.12))
    generator = galsim.BaseDeviate(int(rng.integers(1, 2**31)))
    parts = _parts(looks, generator)
    shift = rng.uniform(-0.3, 0.3, 2) * row.pixel_scale
    others = [(_other(one), one) for one in neighbours]
    clean = np.empty((len(row.bands), IMAGE_SIZE, IMAGE_SIZE), np.float32)
    for i in range(len(row.bands)):
        psf = galsim.Moffat(beta=3.0, fwhm=camera.fwhm[i] * seeing * float(rng.lognormal(0, 0.03)))
        scene = _scene(looks, parts, float(fluxes[i]), i).shift(float(shift[0]), float(shift[1]))
        profiles = [
            scene,
            *(shape.withFlux(one.fluxes[i]).shift(*one.offset) for shape, one in others if one.fluxes[i] > 0),
        ]
        image = galsim.Convolve(galsim.Sum(profiles), psf, gsparams=_coarse()).drawImage(
            nx=IMAGE_SIZE, ny=IMAGE_SIZE, scale=row.pixel_scale, dtype=np.float32
        )
        clean[i] = image.array
    noisy = np.empty_like(clean)
    for i in range(len(row.bands)):
        grain = correlated(correlation, rng)
        shot = np.sqrt(np.maximum(clean[i], 0.0) * camera.photon[i]).astype(np.float32)
        # The coadds' resampling correlates the photon noise of the object as it does that of the sky.
        noisy[i] = clean[i] + np.hypot(np.float32(camera.sky[i] * depth), shot) * grain
        step = np.float32(2.0 ** np.floor(np.log2(camera.sky[i] * depth / 32)))
        noisy[i] = np.round(noisy[i] / step) * step
    mask = np.zeros(noisy.shape, bool)
    if rng.random() < 0.03:  # a bad column, interpolated over by nobody
        column = int(rng.integers(IMAGE_SIZE))
        band = int(rng.integers(len(row.bands)))
        mask[band, :, column] = True
        noisy[band, :, column] = 0.0
    zero_point = 27.0 if row.survey == "hsc" else 22.5
    factor = np.float32(10 ** (0.4 * (zero_point - 22.5)))
    conventions = tuple(Convention(row.survey, band, "AB", "image", False) for band in row.bands)
    image_of = Image(noisy * factor, row.bands, row.pixel_scale, row.unit, zero_point, mask, conventions)
    return image_of, clean * factor


def _coarse() -> Any:
    """Accuracy of galsim's Fourier transforms: a few 1e-3 of the flux, far below the noise."""
    import galsim

    return galsim.GSParams(folding_threshold=1e-2, maxk_threshold=5e-3, kvalue_accuracy=1e-4, maximum_fft_size=8192)


def _parts(looks: Appearance, generator: Any) -> dict[str, Any]:
    """Unit-flux profiles; the angle of galsim is from x towards y, ours from y towards -x."""
    import galsim

    if not looks.radius:
        return {}
    turn = (looks.angle + 90.0) * galsim.degrees
    round_off = np.sqrt(looks.tilt)  # the radius is along the major axis, galsim's that of a circle
    parts = {
        "bulge": galsim.DeVaucouleurs(half_light_radius=0.7 * looks.radius, trunc=6 * looks.radius).shear(
            q=0.3 + 0.7 * looks.tilt, beta=turn
        ),
        "disc": galsim.Exponential(half_light_radius=1.1 * looks.radius * round_off).shear(q=looks.tilt, beta=turn),
    }
    if looks.knots > 0:
        places = galsim.RandomKnots(npoints=20, half_light_radius=looks.radius * round_off, rng=generator)
        knot = galsim.Gaussian(half_light_radius=0.07 * looks.radius)
        parts["knots"] = galsim.Convolve(places.shear(q=looks.tilt, beta=turn), knot)
    return parts


def _scene(looks: Appearance, parts: dict[str, Any], flux: float, band: int) -> Any:
    """The object in one band: the bulge's share grows redward, that of the knots falls."""
    import galsim

    flux = max(flux, 1e-9)
    point = galsim.DeltaFunction(flux=flux)
    if not parts:
        return point
    bulge = float(np.clip(looks.bulge * 10 ** (looks.reddening * (band - 1)), 0.0, 1.0))
    knots = looks.knots * 0.75**band if "knots" in parts else 0.0
    shares = {"bulge": bulge, "disc": (1 - bulge) * (1 - knots), "knots": (1 - bulge) * knots}
    extended = [parts[name] * (share * flux * (1 - looks.core)) for name, share in shares.items() if share > 1e-4]
    return galsim.Sum([*extended, point * looks.core] if looks.core > 0 else extended)


def _other(one: Neighbour) -> Any:
    import galsim

    if not one.radius:
        return galsim.DeltaFunction()
    return galsim.Exponential(half_light_radius=one.radius).shear(q=one.tilt, beta=one.angle * galsim.degrees)


def correlated(correlation: float, rng: np.random.Generator) -> Floats:
    """(96, 96) noise of unit variance whose neighbours, in a row or a column, correlate by `correlation` (0 to 0.7)."""
    # White noise seen through (a, 1, a) along both axes has a correlation of 2 a / (1 + 2 a^2).
    a = np.float32((1 - np.sqrt(1 - 2 * correlation**2)) / (2 * correlation)) if correlation else np.float32(0)
    white = rng.standard_normal((IMAGE_SIZE + 2, IMAGE_SIZE + 2), np.float32)
    rows = white[1:-1] + a * (white[:-2] + white[2:])
    both = rows[:, 1:-1] + a * (rows[:, :-2] + rows[:, 2:])
    out: Floats = both / (1 + 2 * a**2)
    return out


def moments(image: Floats, pixel_scale: float) -> tuple[float, float, float] | None:
    """Adaptive second moments (xx, xy, yy) in arcsec2 of what is at the centre, as HSC measures them (Hirata & Seljak
    2003, MNRAS 343, 459); None where they do not converge."""
    import galsim

    found = galsim.hsm.FindAdaptiveMom(galsim.Image(image.astype(np.float64)), strict=False)
    if found.error_message:
        return None
    e1, e2 = found.observed_shape.e1, found.observed_shape.e2
    # sigma^4 is the determinant; distortions are (xx - yy) / (xx + yy) and 2 xy / (xx + yy).
    trace = 2 * found.moments_sigma**2 / np.sqrt(max(1 - e1**2 - e2**2, 1e-6)) * pixel_scale**2
    return float(trace * (1 + e1) / 2), float(trace * e2 / 2), float(trace * (1 - e1) / 2)
