"""One simulated object, observed: which surveys saw it, and what they measured.

simulate    one object: a function of a seed and an index
photometry  one object of which nothing but photometry is known
spectra     spectra alone, with the noiseless flux behind them
Kind, KINDS
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Image, Observation, Payload, Provenance, Scalar
from albireo.observations.simulation import galaxies, quasars, stars
from albireo.observations.simulation.images import Appearance, Neighbour, draw, moments
from albireo.observations.simulation.light import Light, dimmed
from albireo.observations.simulation.photometry import band_name, gaia, measured, photometer
from albireo.observations.simulation.populations import Galaxy, arcsec_per_kpc, draw_galaxy
from albireo.observations.simulation.spectrographs import INSTRUMENTS, Observed, observe
from albireo.observations.sky_images import DE_VAUCOULEURS, EXPONENTIAL

Doubles = NDArray[np.float64]
Kind = Literal["galaxies", "stars", "quasars", "mix"]
KINDS: tuple[Kind, ...] = ("galaxies", "stars", "quasars", "mix")

MIX = {"galaxies": 0.62, "stars": 0.2, "quasars": 0.18}
"""Shares of the kinds in "mix"."""

LIMITS = (("tok_flux_r", 17.8, 0.2), ("tok_flux_r", 20.2, 0.3), ("tok_flux_r", 22.3, 0.35), ("tok_mag_i", 23.6, 0.15))
"""Samples that galaxies are drawn from, as SDSS's main one, DESI's bright one, and deeper: band, AB limit, share."""

FAR = 25.0 / 2
"""arcsec: half the side of the field in which neighbours are."""


@dataclass(frozen=True)
class Target:
    """What an object is and looks like, before anything is observed: fluxes in nanomaggies before Galactic dust."""

    light: Light
    fluxes: dict[str, float]
    looks: Appearance
    labels: dict[str, Any]
    parallax: float = 0.0
    moving: bool = False


def _limited(band: str, limit: float) -> galaxies.GalaxyDraw:
    return _draws()[band, limit]


@lru_cache(maxsize=1)
def _draws() -> dict[tuple[str, float], galaxies.GalaxyDraw]:
    wanted = [(band, limit) for band, limit, _ in LIMITS] + [("tok_flux_r", 23.3)]
    return {(band, limit): galaxies.GalaxyDraw(photometer(), band, limit) for band, limit in wanted}


def galaxy_target(rng: np.random.Generator) -> Target:
    band, limit, _ = LIMITS[int(rng.choice(len(LIMITS), p=[share for *_, share in LIMITS]))]
    galaxy, shining, fluxes = _limited(band, limit)(rng)
    labels = {"redshift": galaxy.z, "class": "GALAXY", "subclass": "AGN" if galaxy.nucleus else galaxy.kind}
    labels |= shining.labels | {"sigma": galaxy.sigma}
    return Target(shining.light, fluxes, _looks(galaxy, shining.labels["log_ssfr"], rng), labels)


def _looks(galaxy: Galaxy, log_ssfr: float, rng: np.random.Generator) -> Appearance:
    knots = float(np.clip(0.14 + 0.13 * (log_ssfr + 10.3) + rng.normal(0, 0.05), 0.0, 0.45))
    return Appearance(
        radius=float(np.clip(galaxy.radius * arcsec_per_kpc(galaxy.z), 0.05, 9.0)),
        tilt=galaxy.tilt if galaxy.kind == "star-forming" else float(rng.uniform(0.5, 1.0)),
        angle=float(rng.uniform(0, 180)), bulge=galaxy.bulge, reddening=float(rng.normal(0.07, 0.02)), knots=knots,
        core=0.05 if galaxy.nucleus else 0.0,
    )  # fmt: skip


def star_target(rng: np.random.Generator) -> Target:
    star = stars.draw_star(rng)
    # Counts of stars at high latitude grow by about 10^(0.17 mag).
    low, high = 13.0, 21.5
    growth = 0.17 * np.log(10)
    mag = float(low + np.log(rng.uniform() * np.expm1(growth * (high - low)) + 1) / growth)
    light = stars.shine(star)
    raw = photometer()(light.total())
    factor = 10 ** (-0.4 * (mag - 22.5)) / raw["tok_flux_r"]
    distance = 10 ** ((mag - stars.absolute_magnitude(star) + 5) / 5)  # pc
    labels = {
        "redshift": star.velocity / 299792.458, "class": "STAR", "subclass": stars.subclass(star), "teff": star.teff,
        "logg": star.logg, "fe_h": star.fe_h, "alpha_m": star.alpha_m, "radial_velocity": star.velocity,
    }  # fmt: skip
    if star.logg > 6.5:  # white dwarfs have no such abundances
        del labels["fe_h"], labels["alpha_m"]
    fluxes = {key: value * factor for key, value in raw.items()}
    return Target(light.scaled(factor), fluxes, Appearance(0.0), labels, parallax=1000 / distance, moving=True)


def quasar_target(rng: np.random.Generator) -> Target:
    """z to 4.2, with the wide maximum about 1.5 of optically selected quasars; their host is seen below z = 0.9."""
    while not 0.1 < (z := float(rng.gamma(3.6, 0.5))) < 4.2:
        pass
    mag = float(np.clip(22.3 - rng.exponential(1.1), 15.5, 22.3))
    quasar = quasars.draw_quasar(z, mag, rng)
    light = quasars.shine(quasar)
    raw = photometer()(light.total())
    factor = 10 ** (-0.4 * (mag - 22.5)) / raw["tok_flux_r"]
    light, fluxes, looks = light.scaled(factor), {key: value * factor for key, value in raw.items()}, Appearance(0.0)
    if z < 0.9:
        host = draw_galaxy("star-forming" if rng.random() < 0.6 else "quiescent", z, float(rng.normal(10.7, 0.3)), rng)
        shining = galaxies.shine(host)
        theirs = photometer()(shining.light.total())
        if theirs["tok_flux_r"] > 2 * fluxes["tok_flux_r"]:  # or it would have been called a galaxy
            dim = 2 * fluxes["tok_flux_r"] / theirs["tok_flux_r"]
        else:
            dim = 1.0
        core = fluxes["tok_flux_r"] / (fluxes["tok_flux_r"] + dim * theirs["tok_flux_r"])
        light = Light(light.flux + dim * shining.light.flux, shining.light.scaled(dim).lines)
        fluxes = {key: value + dim * theirs[key] for key, value in fluxes.items()}
        seen = _looks(host, shining.labels["log_ssfr"], rng)
        looks = Appearance(seen.radius, seen.tilt, seen.angle, seen.bulge, seen.reddening, seen.knots, core)
    labels = {"redshift": z, "class": "QSO", "subclass": "BAL" if quasar.trough[0] else "broad-line"}
    return Target(light, fluxes, looks, labels)


TARGETS = {"galaxies": galaxy_target, "stars": star_target, "quasars": quasar_target}


@lru_cache(maxsize=1)
def _field() -> tuple[tuple[dict[str, float], float, float], ...]:
    """What may lie beside an object, always the same: fluxes, radius in arcsec, axis ratio of galaxies and stars."""
    rng = np.random.default_rng(1609)
    found = []
    for _ in range(160):
        galaxy, _, fluxes = _limited("tok_flux_r", 23.3)(rng)
        found.append((fluxes, float(min(galaxy.radius * arcsec_per_kpc(galaxy.z), 4.0)), max(galaxy.tilt, 0.3)))
    for _ in range(30):
        found.append((star_target(rng).fluxes, 0.0, 1.0))
    return tuple(found)


def prepare() -> None:
    """Read templates, curves and tables once, so that processes forked afterwards share them."""
    _field()


def _neighbours(rng: np.random.Generator) -> list[tuple[dict[str, float], float, float, tuple[float, float], float]]:
    """Some of the field: fluxes, radius, axis ratio, offset in arcsec, angle; in one field of twenty one is a blend."""
    field = _field()
    out = []
    for k in range(min(int(rng.poisson(2.5)), 6)):
        fluxes, radius, tilt = field[int(rng.integers(len(field)))]
        place = rng.uniform(-FAR, FAR, 2)
        if k == 0 and rng.random() < 0.05:
            place = rng.normal(0, 2.0, 2)
        out.append((fluxes, radius, tilt, (float(place[0]), float(place[1])), float(rng.uniform(0, 180))))
    return out


def fibre_share(looks: Appearance, radius: float, seeing: float = 1.2) -> float:
    """Light in a fibre of this radius (arcsec) over what a point source gives: 1 for points, less for what is large."""
    psf = (seeing / 2.355) ** 2
    point = 1 - np.exp(-(radius**2) / (2 * psf))
    if not looks.radius:
        return 1.0
    share = 0.0
    for part, mixture in ((looks.bulge, DE_VAUCOULEURS), (1 - looks.bulge, EXPONENTIAL)):
        total = sum(weight for weight, _ in mixture)
        for weight, variance in mixture:
            spread = variance * looks.radius**2 * looks.tilt + psf
            share += part * weight / total * (1 - np.exp(-(radius**2) / (2 * spread)))
    return float(looks.core + (1 - looks.core) * share / point)


def simulate(seed: int, index: int, kind: Kind = "mix") -> Observation:
    """Object number `index` of the sky of `seed`; the same arguments give the same object, whatever else is drawn."""
    rng = np.random.default_rng([seed, index])
    target, stated, light, fluxes = _behind_dust(kind, rng)
    r = 22.5 - 2.5 * np.log10(fluxes["tok_flux_r"])
    data: dict[str, Payload] = {}
    legacy, hsc = rng.random() < 0.85, rng.random() < 0.25
    neighbours = _neighbours(rng)
    if legacy and rng.random() < 0.93:
        data |= _legacy(target, fluxes, stated, rng)
    if hsc:
        data |= measured("hsc", fluxes, _spread(target.looks, 0.7), stated, rng)
    if r < 22.3 and rng.random() < 0.5:
        data |= measured("sdss", fluxes, _spread(target.looks, 1.3), stated, rng)
        if rng.random() < 0.7:
            data |= measured("2mass", fluxes, _spread(target.looks, 2.5), stated, rng)
    if target.looks.radius * (1 - target.looks.core) < 0.3 and rng.random() < 0.75:
        data |= gaia(fluxes, target.parallax, rng)
    spectra = _spectra(target, light, r, rng)
    if spectra and rng.random() < 0.12:
        data = {}
    elif legacy and rng.random() < 0.65:
        data["tok_image"] = _cutout("tok_image", fluxes, target.looks, neighbours, rng)[0]
    if hsc and data and rng.random() < 0.6:
        image, clean = _cutout("tok_image_hsc", fluxes, target.looks, neighbours, rng)
        data["tok_image_hsc"] = image
        found = moments(image.flux[2], image.pixel_scale) if clean[2].max() > 0 else None
        if found is not None:
            unit = MODALITIES["tok_shape11"].unit
            data |= {f"tok_shape{c}": Scalar(v, unit) for c, v in zip(("11", "12", "22"), found, strict=True)}
    data |= spectra
    if not data:
        data = _legacy(target, fluxes, stated, rng)
    if legacy and rng.random() < 0.25:
        data = _without_i(data)
    return _observation(f"sim-{seed}-{index:07d}", target, data, stated, rng)


def photometry(seed: int, index: int, kind: Kind = "mix") -> Observation:
    """Object number `index` of a sky in which there are no images and no spectra, and several surveys of most objects.

    Another sky than that of `simulate`: made twice as fast, for what takes many objects to be learnt from few numbers.
    """
    rng = np.random.default_rng([seed, index, 2])
    target, stated, _, fluxes = _behind_dust(kind, rng)
    data: dict[str, Payload] = {}
    if rng.random() < 0.5:
        data |= _legacy(target, fluxes, stated, rng)
        if rng.random() < 0.25:
            data = _without_i(data)
    if rng.random() < 0.4:
        data |= measured("hsc", fluxes, _spread(target.looks, 0.7), stated, rng)
    if not data or (fluxes["tok_flux_r"] > 1.2 and rng.random() < 0.8):
        data |= measured("sdss", fluxes, _spread(target.looks, 1.3), stated, rng)
        if rng.random() < 0.75:
            data |= measured("2mass", fluxes, _spread(target.looks, 2.5), stated, rng)
    if target.looks.radius * (1 - target.looks.core) < 0.3 and rng.random() < 0.75:
        data |= gaia(fluxes, target.parallax, rng)
    return _observation(f"phot-{seed}-{index:07d}", target, data, stated, rng)


def _behind_dust(kind: Kind, rng: np.random.Generator) -> tuple[Target, float, Light, dict[str, float]]:
    """An object, E(B-V) of the map, and its light and fluxes behind the Galaxy's dust."""
    name = str(rng.choice(list(MIX), p=list(MIX.values()))) if kind == "mix" else kind
    target = TARGETS[name](rng)
    stated = float(np.clip(rng.lognormal(np.log(0.035), 0.65), 0.004, 0.5))
    # The map of dust is right to some 8 %.
    light = dimmed(target.light, stated * float(np.clip(rng.normal(1.0, 0.08), 0.7, 1.3)))
    return target, stated, light, photometer()(light.total())


def _observation(
    name: str, target: Target, data: dict[str, Payload], ebv: float, rng: np.random.Generator
) -> Observation:
    """What was measured, with E(B-V) if there are fluxes, and a place in the sky."""
    if any(MODALITIES[key].kind == "scalar" for key in data):
        data["tok_ebv"] = Scalar(ebv, "mag")
    ordered = {key: data[key] for key in MODALITIES if key in data}
    return Observation(
        id=name,
        data=ordered,
        ra=float(rng.uniform(0, 360)),
        dec=float(np.degrees(np.arcsin(rng.uniform(-0.35, 0.87)))),
        metadata=target.labels,
        provenance={key: Provenance("simulated", MODALITIES[key].survey) for key in ordered},
    )


SPECTRA_MIX = {"galaxies": 0.5, "stars": 0.2, "quasars": 0.3}
BRIGHTER = 2.5
"""mag by which an object of `spectra` is at most brighter than drawn: lines are learnt where they stand out."""


def spectra(seed: int, index: int) -> list[Observed]:
    """Spectra of object number `index` by two instruments, and the noiseless flux behind each: nothing else is drawn.

    For codecs of spectra, which learn more from what should be there than from noise. It is faster than `simulate`.
    """
    rng = np.random.default_rng([seed, index, 1])
    target = TARGETS[str(rng.choice(list(SPECTRA_MIX), p=list(SPECTRA_MIX.values())))](rng)
    dust = float(np.clip(rng.lognormal(np.log(0.035), 0.65), 0.004, 0.5))
    light = dimmed(target.light, dust).scaled(10 ** (0.4 * rng.uniform(0.0, BRIGHTER)))
    names = rng.choice(list(INSTRUMENTS), 2, replace=False)
    return [observe(light, str(name), fibre_share(target.looks, INSTRUMENTS[name].fibre), rng) for name in names]


def _spread(looks: Appearance, fwhm: float) -> float:
    """How much noisier the flux of something this large is than that of a point: root of the areas."""
    return float(np.sqrt(1 + (2.0 * looks.radius / fwhm) ** 2)) if looks.core < 0.9 else 1.0


def _legacy(target: Target, fluxes: dict[str, float], ebv: float, rng: np.random.Generator) -> dict[str, Payload]:
    """Fluxes and shape; what is no larger than 0.12 arcsec, or mostly a point, is of TYPE PSF, with shape 0."""
    looks = target.looks
    data = measured("legacysurvey", fluxes, _spread(looks, 1.2), ebv, rng)
    faintness = 0.4 / np.sqrt(max(fluxes["tok_flux_r"], 0.3))
    e1, e2 = looks.ellipticity()
    shape = (0.0, 0.0, 0.0)
    if looks.radius > 0.12 and looks.core < 0.8:
        size = looks.radius * float(rng.lognormal(0, 0.03 + 0.2 * faintness))
        shape = (size, float(np.clip(e1 + rng.normal(0, 0.02 + 0.1 * faintness), -0.9, 0.9)),
                 float(np.clip(e2 + rng.normal(0, 0.02 + 0.1 * faintness), -0.9, 0.9)))  # fmt: skip
    for key, value in zip(("tok_shape_r", "tok_shape_e1", "tok_shape_e2"), shape, strict=True):
        data[key] = Scalar(value, MODALITIES[key].unit)
    return data


def _cutout(
    key: str, fluxes: dict[str, float], looks: Appearance, neighbours: list[Any], rng: np.random.Generator
) -> tuple[Any, Any]:
    letters = [band[-1].lower() for band in MODALITIES[key].bands]
    keys = [f"tok_flux_{b}" if key == "tok_image" else f"tok_mag_{b}" for b in letters]
    assert [band_name(k) for k in keys] == list(MODALITIES[key].bands)
    others = tuple(
        Neighbour(tuple(theirs[k] for k in keys), place, radius, tilt, angle)
        for theirs, radius, tilt, place, angle in neighbours
        if key == "tok_image" or max(abs(place[0]), abs(place[1])) < 9.0  # HSC's cutout is smaller
    )
    return draw(key, np.array([fluxes[k] for k in keys]), looks, others, rng)


def _spectra(target: Target, light: Light, r: float, rng: np.random.Generator) -> dict[str, Payload]:
    """Spectra of those bright enough for a fibre, each survey with its own limit and chance."""
    data: dict[str, Payload] = {}
    deep = target.labels["class"] == "QSO"
    if r < (22.8 if deep else 22.0) and rng.random() < 0.55:
        share = fibre_share(target.looks, INSTRUMENTS["desi"].fibre)
        data["tok_spectrum_desi"] = observe(light, "desi", share, rng).spectrum
    if r < (22.0 if deep else 20.8) and rng.random() < 0.35:
        name = "sdss" if r < 18.2 and rng.random() < 0.7 else "boss"
        share = fibre_share(target.looks, INSTRUMENTS[name].fibre, 1.4)
        data["tok_spectrum_sdss"] = observe(light, name, share, rng).spectrum
    return data


def _without_i(data: dict[str, Payload]) -> dict[str, Payload]:
    """As most of DECaLS before DR10: no i band in fluxes and image."""
    out = {key: payload for key, payload in data.items() if key != "tok_flux_i"}
    image = out.get("tok_image")
    if isinstance(image, Image):
        kept = [k for k, band in enumerate(image.bands) if band != "DES-I"]
        out["tok_image"] = replace(
            image,
            flux=image.flux[kept],
            bands=tuple(image.bands[k] for k in kept),
            mask=image.mask[kept],
            conventions=tuple(image.conventions[k] for k in kept),
        )
    return out
