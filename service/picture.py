"""The demo's picture: a query beside its neighbours, with whatever was observed of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from albireo.observations.observation import Coefficients, Image, LightCurve, Observation, Payload, Scalar, Spectrum

INK, FAINT, QUERY, NEIGHBOUR = "#1b1f2a", "#8a90a0", "#c8553d", "#2b5d8a"
MOST_ROWS = 4
SOFTENING = 5.0
"""Where the stretch of an image turns from linear to logarithmic, in units of the noise."""


@dataclass(frozen=True)
class Panel:
    """One object of the picture: `score` is None for the query."""

    id: str
    observation: Observation | None
    score: float | None
    caption: str


def draw(panels: Sequence[Panel], path: Path, title: str, subtitle: str) -> None:
    """Write the picture: one column per object, one row per kind of measurement that any of them has."""
    rows = [(name, of, paint) for name, of, paint in _ROWS if any(of(p.observation) for p in panels)][:MOST_ROWS]
    height = 1.7 + 2.35 * max(1, len(rows))
    with mpl.rc_context({"font.size": 8, "axes.edgecolor": FAINT, "axes.linewidth": 0.6, "text.color": INK}):
        figure = Figure(figsize=(2.55 * len(panels) + 0.5, height), dpi=130, facecolor="white")
        grid = figure.subplots(max(1, len(rows)), len(panels), squeeze=False)
        for column, panel in enumerate(panels):
            for line, (name, of, paint) in enumerate(rows):
                axes = grid[line, column]
                payloads = of(panel.observation)
                colour = QUERY if panel.score is None else NEIGHBOUR
                if payloads:
                    paint(axes, payloads, colour)
                else:
                    axes.set_axis_off()
                    axes.text(0.5, 0.5, f"no {name}", ha="center", va="center", color=FAINT, transform=axes.transAxes)
                axes.tick_params(labelsize=6.5, colors=FAINT, width=0.6, length=2.5)
            head = "query" if panel.score is None else f"neighbour {column}   cosine {panel.score:.4f}"
            grid[0, column].set_title(
                f"{head}\n{_short(panel.id)}\n{panel.caption}",
                fontsize=8.5,
                color=QUERY if panel.score is None else INK,
                linespacing=1.35,
            )
        figure.text(0.012, 1 - 0.12 / height, title, fontsize=13, fontweight="bold", ha="left", va="top")
        figure.text(0.012, 1 - 0.42 / height, subtitle, fontsize=8.5, color=FAINT, ha="left", va="top")
        figure.tight_layout(rect=(0, 0, 1, 1 - 0.62 / height), w_pad=0.8, h_pad=2.0)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png")


def rgb(image: Image, like: Image | None = None) -> NDArray[np.float64]:
    """(H, W, 3) in 0..1: arcsinh stretch of three bands, red = longest, one stretch so that colours are kept.

    After Lupton et al. 2004 (PASP 116, 133): the ratio of bands survives, bright cores do not burn out.
    like  an image of the same bands whose stretch is used, so that the two can be compared
    """
    model = _planes(like or image)
    sky = np.median(model, axis=(1, 2), keepdims=True)
    noise = 1.4826 * np.median(np.abs(model - sky), axis=(1, 2), keepdims=True)
    # Colours are those of the fluxes, not of their significance: one scale for the three bands.
    scale = float(np.where(noise > 0, noise, max(float(np.abs(model).max()), 1e-30)).mean())
    peak = float(np.percentile(np.clip(((model - sky) / scale).mean(axis=0), 1e-9, None), 99.7))
    planes = (_planes(image) - sky) / scale
    total = np.clip(planes.mean(axis=0), 1e-9, None)
    stretched = np.arcsinh(total / SOFTENING) / max(float(np.arcsinh(peak / SOFTENING)), 1e-9)
    colours = np.clip(planes, 0.0, None) * (stretched / total)
    return np.moveaxis(colours / np.maximum(colours.max(axis=0), 1.0), 0, -1)


def _planes(image: Image) -> NDArray[np.float64]:
    """(3, H, W) fluxes of the longest, the middle and the shortest band; 0 where there is none."""
    last = len(image.bands) - 1
    flux = np.where(image.mask, 0.0, np.nan_to_num(image.flux.astype(np.float64)))
    return flux[[last, last // 2, 0]]


def _paint_image(axes: Any, payloads: Sequence[Payload], colour: str) -> None:
    image = payloads[0]
    assert isinstance(image, Image)
    _, height, width = image.flux.shape
    side_y, side_x = height * image.pixel_scale / 2, width * image.pixel_scale / 2
    axes.imshow(rgb(image), origin="lower", extent=(-side_x, side_x, -side_y, side_y), interpolation="nearest")
    axes.set_xlabel(f"arcsec   ({' '.join(band.split('-')[-1].lower() for band in image.bands)})", fontsize=7)


def _paint_spectrum(axes: Any, payloads: Sequence[Payload], colour: str) -> None:
    spectrum = payloads[0]
    assert isinstance(spectrum, Spectrum)
    good = ~spectrum.mask & (spectrum.ivar > 0) & np.isfinite(spectrum.flux)
    flux = np.where(good, spectrum.flux, np.nan).astype(np.float64)
    width = max(1, len(flux) // 400)
    n = len(flux) // width * width
    pixels, weights = flux[:n].reshape(-1, width), good[:n].reshape(-1, width)
    binned = np.where(weights.any(axis=1), np.nansum(pixels, axis=1) / np.maximum(weights.sum(axis=1), 1), np.nan)
    wavelength = spectrum.wavelength[:n].reshape(-1, width).mean(axis=1)
    axes.plot(wavelength, binned, lw=0.7, color=colour)
    axes.set_xlabel("wavelength in vacuum (Å)", fontsize=7)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_ylabel(f"flux ({spectrum.unit.replace('Angstrom', 'Å')})", fontsize=6)
    if np.isfinite(binned).any():
        low, high = np.nanpercentile(binned, [0.5, 99.7])
        margin = 0.12 * max(high - low, 1e-9)
        axes.set_ylim(low - margin, high + margin)


def _paint_coefficients(axes: Any, payloads: Sequence[Payload], colour: str) -> None:
    offset = 0
    for payload, alpha in zip(payloads, (1.0, 0.5), strict=False):
        assert isinstance(payload, Coefficients)
        axes.plot(np.arange(offset, offset + len(payload.values)), payload.values, lw=0.8, color=colour, alpha=alpha)
        offset += len(payload.values)
    axes.set_yscale("symlog")
    axes.set_xlabel("Gaia XP coefficient", fontsize=7)
    axes.set_ylabel(getattr(payloads[0], "unit", ""), fontsize=6)


def _paint_photometry(axes: Any, payloads: Sequence[Payload], colour: str) -> None:
    measured = [p for p in payloads if isinstance(p, Scalar) and p.convention is not None]
    # One axis, one unit: the first survey's, in the table's order of modalities.
    scalars = [p for p in measured if p.unit == measured[0].unit]
    names = [p.convention.band.split("-")[-1] for p in scalars if p.convention is not None]
    axes.plot(names, [p.value for p in scalars], "o", ms=4, color=colour)
    axes.set_ylabel(scalars[0].unit, fontsize=6)
    if scalars[0].unit == "mag":
        axes.invert_yaxis()
    axes.set_xlabel("band", fontsize=7)


def _paint_lightcurve(axes: Any, payloads: Sequence[Payload], colour: str) -> None:
    curve = payloads[0]
    assert isinstance(curve, LightCurve)
    for n, band in enumerate(dict.fromkeys(curve.band)):
        here = (curve.band == band) & curve.detected
        axes.errorbar(
            curve.time[here], curve.flux[here], curve.flux_err[here], fmt="o", ms=2, lw=0.6, color=f"C{n}", label=band
        )
    axes.legend(fontsize=5, frameon=False)
    axes.set_xlabel("MJD (days)", fontsize=7)
    axes.set_ylabel("flux at its zero point", fontsize=6)


def _of(kind: type[Any]) -> Callable[[Observation | None], list[Payload]]:
    def payloads(observation: Observation | None) -> list[Payload]:
        found = [p for p in observation.data.values() if isinstance(p, kind)] if observation else []
        return [p for p in found if not isinstance(p, Scalar) or p.convention is not None]

    return payloads


_ROWS: tuple[tuple[str, Callable[[Observation | None], list[Payload]], Callable[..., None]], ...] = (
    ("image", _of(Image), _paint_image),
    ("spectrum", _of(Spectrum), _paint_spectrum),
    ("XP spectrum", _of(Coefficients), _paint_coefficients),
    ("light curve", _of(LightCurve), _paint_lightcurve),
    ("photometry", _of(Scalar), _paint_photometry),
)


def _short(text: str, most: int = 30) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
