"""A page of what `albireo simulate` made, for a person to look at: samples.png and population.png."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from albireo.observations.errors import AlbireoError
from albireo.observations.observation import Image, Observation, Scalar, Spectrum
from albireo.observations.options import ReadOptions
from albireo.observations.shards import read_shard
from albireo.observations.source import Source
from albireo.service.picture import rgb

COLOURS = {"GALAXY": "#3b6fb6", "STAR": "#d08c2a", "QSO": "#8b2f6b"}
SHOWN = 1000
"""Objects of the first shards that the population's pictures are drawn from."""
STYLE: dict[Any, Any] = {"font.size": 8, "axes.linewidth": 0.6}


def draw_page(folder: Path) -> list[Path]:
    """Draw both pictures into the folder of the shards; returns their paths."""
    objects = _objects(folder)
    paths = [folder / "samples.png", folder / "population.png"]
    with mpl.rc_context(STYLE):
        _samples(objects).savefig(paths[0], dpi=110, metadata={"Software": None})
        _population(objects, _labels(folder)).savefig(paths[1], dpi=110, metadata={"Software": None})
    return paths


def _objects(folder: Path) -> list[Observation]:
    found: list[Observation] = []
    for path in sorted(folder.glob("*-[0-9][0-9][0-9][0-9][0-9].parquet")):
        for item in read_shard(Source.from_path(path), ReadOptions(), ()):
            if isinstance(item, AlbireoError):
                raise item
            found.append(item)
        if len(found) >= SHOWN:
            break
    return found[:SHOWN]


def _labels(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "labels.parquet").to_pylist()
    return rows


def _brightness(one: Observation, key: str) -> float:
    payload = one.data.get(key)
    if isinstance(payload, Scalar):
        return payload.value
    spectrum = one.data.get("tok_spectrum_desi", one.data.get("tok_spectrum_sdss"))
    return float(np.median(spectrum.flux)) if isinstance(spectrum, Spectrum) else 0.0


def _spread(objects: Sequence[Observation], n: int) -> list[Observation]:
    """n objects over the whole range of brightness, brightest first, the classes in turn."""
    by_class = {
        kind: sorted(
            (one for one in objects if one.metadata["class"] == kind), key=lambda one: -_brightness(one, "tok_flux_r")
        )
        for kind in COLOURS
    }
    there = [kind for kind, members in by_class.items() if members]
    each = -(-n // max(len(there), 1))
    picked = {
        kind: [by_class[kind][int(k)] for k in np.linspace(0, 0.85 * (len(by_class[kind]) - 1), each)] for kind in there
    }
    return [picked[kind][k] for k in range(each) for kind in there][:n]


def _samples(objects: Sequence[Observation]) -> Figure:
    """Twelve spectra over their noise, twelve cutouts of each survey."""
    figure = Figure(figsize=(13, 14), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.35, 1))
    spectra, images = halves
    with_spectrum = [one for one in objects if "tok_spectrum_desi" in one.data or "tok_spectrum_sdss" in one.data]
    axes = spectra.subplots(4, 3, squeeze=False).ravel()
    for one, ax in zip(_spread(with_spectrum, 12), axes, strict=False):
        _spectrum(ax, one)
    spectra.suptitle("spectra (1e-17 erg / s / cm2 / A over vacuum A), smoothed over 5 pixels; grey: sigma")
    axes = images.subplots(3, 8, squeeze=False)
    for key, places in (("tok_image", axes[:2].ravel()), ("tok_image_hsc", axes[2])):
        there = _spread([one for one in objects if key in one.data], len(places))
        for ax, one in zip(places, there, strict=False):
            payload = one.data[key]
            assert isinstance(payload, Image)
            ax.imshow(rgb(payload), origin="lower")
            ax.set_title(f"{one.metadata['class'].lower()} z {one.metadata['redshift']:.2f}", fontsize=7)
    for ax in axes.ravel():
        ax.set_axis_off()
    images.suptitle("cutouts: Legacy Surveys (two rows), HSC; east is left")
    return figure


def _spectrum(ax: Any, one: Observation) -> None:
    payload = one.data.get("tok_spectrum_desi", one.data.get("tok_spectrum_sdss"))
    assert isinstance(payload, Spectrum)
    good = ~payload.mask
    whole = np.interp(payload.wavelength, payload.wavelength[good], payload.flux[good])
    smooth = np.convolve(np.pad(whole, 2, mode="edge"), np.ones(5) / 5, "valid")
    sigma = 1 / np.sqrt(np.where(payload.ivar > 0, payload.ivar, np.nan))
    ax.plot(payload.wavelength, sigma, color="0.75", lw=0.5)
    ax.plot(payload.wavelength, smooth, color=COLOURS[one.metadata["class"]], lw=0.6)
    low, high = np.percentile(smooth, [0.5, 99.7])
    ax.set_ylim(min(0.0, low), 1.15 * max(high, 1e-3))
    survey = "DESI" if "tok_spectrum_desi" in one.data else "SDSS"
    ax.set_title(f"{one.metadata['subclass']}, z {one.metadata['redshift']:.3f}, {survey}", fontsize=7)


def _population(objects: Sequence[Observation], labels: Sequence[dict[str, Any]]) -> Figure:
    """Redshifts, magnitudes, colours, and the labels of galaxies and stars."""
    figure = Figure(figsize=(13, 9), layout="constrained")
    axes = figure.subplots(2, 4).ravel()
    for kind, colour in COLOURS.items():
        z = [row["redshift"] for row in labels if row["class"] == kind and kind != "STAR"]
        if z:
            axes[0].hist(z, bins=40, histtype="step", color=colour, label=f"{kind} ({len(z)})")
        theirs = [one for one in objects if one.metadata["class"] == kind]
        r = _magnitudes(theirs, "tok_flux_r")
        axes[1].hist(r[np.isfinite(r)], bins=30, histtype="step", color=colour)
        colours = {
            name: _magnitudes(theirs, f"tok_flux_{name[0]}") - _magnitudes(theirs, f"tok_flux_{name[1]}")
            for name in (("g", "r"), ("r", "z"), ("z", "w1"))
        }
        axes[2].plot(colours["g", "r"], colours["r", "z"], ".", ms=2, color=colour)
        axes[3].plot(colours["r", "z"], colours["z", "w1"], ".", ms=2, color=colour)
        axes[4].plot([one.metadata["redshift"] for one in theirs], colours["g", "r"], ".", ms=2, color=colour)
    texts = (("redshift", ""), ("r (AB mag)", ""), ("g - r", "r - z"), ("r - z", "z - W1"), ("redshift", "g - r"))
    for ax, (x, y) in zip(axes, texts, strict=False):
        ax.set(xlabel=x, ylabel=y)
    axes[0].legend(frameon=False)
    axes[2].set(xlim=(-0.7, 2.6), ylim=(-0.7, 2.6))
    axes[3].set(xlim=(-0.7, 2.6), ylim=(-2.5, 3))
    axes[4].set(ylim=(-0.8, 2.6))
    for ax, x, y, colour, limits in (
        (axes[5], "log_mass", "log_ssfr", "redshift", (0, 1.2)),
        (axes[6], "log_mass", "metallicity", "age", (0, 11)),
        (axes[7], "teff", "logg", "fe_h", (-2, 0.4)),
    ):
        rows = [row for row in labels if row.get(x) is not None and row.get(colour) is not None]
        values = np.array([[row[x], row[y], row[colour]] for row in rows]).reshape(-1, 3)
        drawn = ax.scatter(*values[:, :2].T, c=values[:, 2], s=2, vmin=limits[0], vmax=limits[1], cmap="viridis")
        figure.colorbar(drawn, ax=ax, label=colour)
        ax.set(xlabel=x, ylabel=y)
    axes[7].invert_xaxis()
    axes[7].invert_yaxis()
    return figure


def _magnitudes(objects: Sequence[Observation], key: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """AB magnitudes of a flux in nanomaggies, NaN where it is missing or not positive."""
    values = [payload.value if isinstance(payload := one.data.get(key), Scalar) else np.nan for one in objects]
    flux = np.array(values, np.float64)
    return 22.5 - 2.5 * np.log10(np.where(flux > 0, flux, np.nan))
