"""Pictures of what heads say (densities, intervals, probabilities of classes), and of draws of a modality."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from albireo.models.engine import Engine
from albireo.models.heads import Answer, Number
from albireo.models.redshift import Posterior
from albireo.observations.modalities import MODALITIES, Modality
from albireo.observations.observation import Coefficients, Image, Scalar, SegmentationMap, Spectrum
from albireo.service.draws import Drawn, Wanted
from albireo.service.picture import FAINT, INK, NEIGHBOUR, QUERY, rgb
from albireo.service.predictions import Answers, Prediction
from albireo.service.shelf import Shelved

DRAWS_IN_ROW = 6
"""Draws of an image that are shown."""

EDGE = 0.01
"""Probability from which the cells at the ends of the redshift grid are told in words."""

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.6,
    "text.color": INK,
    "axes.labelcolor": INK,
}


def draw_predictions(
    predictions: Sequence[Prediction[Answers]], heads: Mapping[str, Shelved], path: Path, subtitle: str
) -> None:
    """Densities: a panel for each object, a redshift that its file states as a line. Numbers: a panel for each target,
    intervals as thick and thin bars. Classes: a panel for each head, a bar for each object."""
    panels: list[Callable[[Any], None]] = []
    for name, shelved in heads.items():
        there = [(one, answer) for one in predictions if isinstance(answer := (one.answer or {}).get(name), Answer)]
        if shelved.task == "redshift":
            panels += [partial(_density, name, one, answer) for one, answer in there]
        elif shelved.task == "classification":
            panels.append(partial(_classes, name, shelved.classes, there))
        else:
            panels += [partial(_values, name, n, there) for n in range(len(shelved.targets))]
    columns = min(4, max(1, len(panels)))
    with mpl.rc_context(STYLE):
        figure, axes = panels_of(len(panels), columns, (3.1, 2.4), ", ".join(heads), subtitle)
        for panel, draw in zip(axes, panels, strict=False):
            draw(panel)
        save(figure, path)


def _density(name: str, one: Prediction[Answers], answer: Answer, axes: Any) -> None:
    assert answer.density is not None
    _posterior(axes, answer.density, answer.numbers[0], _stated(one))
    axes.set_title(f"{_short(one)}\n{name} from {_sources(one.modalities)}", fontsize=7.5, linespacing=1.35)


def _posterior(axes: Any, posterior: Posterior, number: Number, stated: float | None) -> None:
    """Probability density as steps; the first interval shaded."""
    edges, probability = posterior.edges, posterior.probability
    widths = np.diff(edges)
    # A cell without width (z <= 0 of the token) is told in words, like the last, which may have no end.
    density = np.divide(probability, widths, out=np.zeros_like(probability), where=widths > 0)
    low, high = next(iter(number.intervals.values()))
    axes.stairs(density, edges, color=NEIGHBOUR, fill=False, lw=0.9)
    axes.axvspan(low, high, color=NEIGHBOUR, alpha=0.12, lw=0)
    seen = [posterior.quantile(0.002), posterior.quantile(0.998), low, high]
    if stated is not None and edges[0] <= stated <= edges[-1]:
        axes.axvline(stated, color=QUERY, lw=1.0)
        seen.append(stated)
    margin = max(0.02, 0.08 * (max(seen) - min(seen)))
    axes.set_xlim(max(float(edges[0]), min(seen) - margin), min(float(edges[-1]), max(seen) + margin))
    axes.set_ylim(0, 1.25 * max(float(density.max()), 1e-9))
    words = [(f"{number.value:.3f} (+{high - number.value:.3f} -{number.value - low:.3f})", NEIGHBOUR)]
    if stated is not None:
        words.append((f"in the file: {round(stated, 4) + 0.0:.4f}", QUERY))
    if probability[-1] >= EDGE:
        words.append((f"{probability[-1]:.0%} at {edges[-1]:g} or beyond", FAINT))
    if probability[0] >= EDGE and widths[0] == 0:
        words.append((f"{probability[0]:.0%} at {edges[0]:g} or below", FAINT))
    for line, (text, colour) in enumerate(words):
        axes.text(0.97, 0.95 - 0.1 * line, text, ha="right", va="top", fontsize=7, color=colour,
                  transform=axes.transAxes, bbox={"fc": "white", "ec": "none", "alpha": 0.7, "pad": 0.5})  # fmt: skip
    axes.set_xlabel("redshift", fontsize=7)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(5))


def _values(name: str, n: int, there: Sequence[tuple[Prediction[Answers], Answer]], axes: Any) -> None:
    """The n-th number of a head for each object, its intervals as bars: the wider the level, the thinner."""
    for line, (_, answer) in enumerate(there):
        number = answer.numbers[n]
        for width, (low, high) in zip((3.0, 1.0, 0.6), number.intervals.values(), strict=False):
            axes.plot([low, high], [line, line], color=NEIGHBOUR, lw=width, solid_capstyle="butt", alpha=0.8)
        axes.plot([number.value], [line], "o", color="white", mec=NEIGHBOUR, ms=4)
    _objects(axes, there)
    if there:
        number = there[0][1].numbers[n]
        axes.set_title(f"{name}: {number.name}", fontsize=8)
        axes.set_xlabel(number.unit or number.name, fontsize=7)


def _classes(name: str, classes: Sequence[str], there: Sequence[tuple[Prediction[Answers], Answer]], axes: Any) -> None:
    """One bar for each object, cut in proportion to the probabilities of the classes."""
    colours = mpl.colormaps["tab10"](np.arange(len(classes)) % 10)
    for line, (_, answer) in enumerate(there):
        left = 0.0
        for colour, label in zip(colours, classes, strict=True):
            width = answer.classes[label]
            axes.barh(line, width, left=left, height=0.7, color=colour, label=label if line == 0 else None)
            if width > 0.25:
                axes.text(left + width / 2, line, f"{width:.2f}", ha="center", va="center", fontsize=6, color="white")
            left += width
    _objects(axes, there)
    axes.set_xlim(0, 1)
    axes.set_title(name, fontsize=8)
    axes.set_xlabel("probability", fontsize=7)
    axes.legend(fontsize=6, frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, -0.55))


def _objects(axes: Any, there: Sequence[tuple[Prediction[Answers], Answer]]) -> None:
    """Names of the objects along the y axis, the first on top."""
    axes.set_yticks(range(len(there)), [_short(one, 14) for one, _ in there])
    axes.set_ylim(len(there) - 0.4, -0.6)


def draw_draws(predictions: Sequence[Prediction[Drawn]], path: Path, wanted: Wanted, engine: Engine) -> None:
    """The draws of each object: curves, pictures or a histogram, beside what its file has of the modality."""
    row = MODALITIES[wanted.target]
    part = ""
    if wanted.mask is not None:
        part = ", pixels {}, {} to {}, {} filled in".format(*wanted.mask)
    if wanted.keep is not None:
        part = ", known from {:g} to {:g} Å".format(*wanted.keep)
    title, subtitle = f"Draws of {row.name}{part}", f"{engine.name}: samples of a model, no measurements"
    with mpl.rc_context(STYLE):
        if row.kind in ("image", "segmentation"):
            figure = _pictures(predictions, row, wanted, title, subtitle)
        else:
            size, columns = ((6.0, 2.2), 2) if row.kind == "spectrum" else ((3.1, 2.3), 4)
            count = len(predictions)
            figure, panels = panels_of(count, min(columns, max(1, count)), size, title, subtitle)
            for axes, one in zip(panels, predictions, strict=False):
                assert one.answer is not None
                if row.kind == "spectrum":
                    _spectra(axes, one, wanted, engine.wavelength(row.key))
                elif row.kind == "coefficients":
                    _coefficients(axes, one.answer, row)
                else:
                    _histogram(axes, one.answer, row)
                axes.set_title(f"{_short(one)}\nfrom {_sources(one.modalities)}", fontsize=7.5, linespacing=1.35)
        save(figure, path)


def _spectra(axes: Any, one: Prediction[Drawn], wanted: Wanted, wavelength: NDArray[np.float32]) -> None:
    """Each draw thin, their median thick, a spectrum of the file behind; what stayed known is shaded."""
    assert one.answer is not None
    x = _binned(wavelength)
    curves = np.stack([_binned(flux) for flux in one.answer.values])
    middle = np.median(curves, axis=0)
    seen = [middle]
    key, known = _known_spectrum(one, wanted.target)
    if known is not None:
        good = ~known.mask & (known.ivar > 0) & np.isfinite(known.flux)
        inside = (known.wavelength >= wavelength[0]) & (known.wavelength <= wavelength[-1])
        flux = _binned(np.where(good & inside, known.flux, np.nan))
        axes.plot(_binned(known.wavelength), flux, color=QUERY, lw=0.8, label=f"{MODALITIES[key].name} in the file")
        seen.append(flux)
    else:
        seen += list(np.percentile(curves, [16, 84], axis=0))
    for number, curve in enumerate(curves):
        axes.plot(x, curve, color=NEIGHBOUR, lw=0.5, alpha=0.35, label="draws" if number == 0 else None)
    axes.plot(x, middle, color=NEIGHBOUR, lw=1.1, label="their median")
    if wanted.keep is not None:
        axes.axvspan(*wanted.keep, color=FAINT, alpha=0.18, lw=0, label="stayed known")
    # A draw of another brightness must not flatten the rest: it may leave the panel.
    limits = [np.nanpercentile(flux, [0.5, 99.5]) for flux in seen if np.isfinite(flux).any()]
    low, high = min(pair[0] for pair in limits), max(pair[1] for pair in limits)
    margin = 0.15 * max(high - low, 1e-9)
    axes.set_ylim(low - margin, high + 2 * margin)
    axes.set_xlim(wavelength[0], wavelength[-1])
    axes.set_xlabel("wavelength in vacuum (Å)", fontsize=7)
    axes.set_ylabel(f"flux ({MODALITIES[wanted.target].unit.replace('Angstrom', 'Å')})", fontsize=6)
    axes.legend(fontsize=6, frameon=False, ncols=4, loc="upper right")


def _known_spectrum(one: Prediction[Drawn], target: str) -> tuple[str, Spectrum | None]:
    """What the files have of the target, else another spectrum that the draws rest on."""
    assert one.answer is not None
    observation = one.outcome.subject.observation
    there = {target: one.answer.given} | dict(observation.data if observation else {})
    return next(((key, spectrum) for key, spectrum in there.items() if isinstance(spectrum, Spectrum)), (target, None))


def _coefficients(axes: Any, drawn: Drawn, row: Modality) -> None:
    for values in drawn.values:
        axes.plot(values, color=NEIGHBOUR, lw=0.6, alpha=0.4)
    if isinstance(drawn.given, Coefficients):
        axes.plot(drawn.given.values, color=QUERY, lw=0.9)
    axes.set_yscale("symlog")
    axes.set_xlabel("coefficient", fontsize=7)
    axes.set_ylabel(row.unit, fontsize=6)


def _histogram(axes: Any, drawn: Drawn, row: Modality) -> None:
    values = drawn.values.ravel()
    axes.hist(values, bins=min(30, max(5, len(values) // 3)), color=NEIGHBOUR, alpha=0.7)
    if isinstance(drawn.given, Scalar):
        axes.axvline(drawn.given.value, color=QUERY, lw=1.2, label="in the file")
        axes.legend(fontsize=6, frameon=False)
    axes.set_xlabel(f"{row.name} ({row.unit})" if row.unit else row.name, fontsize=7)
    axes.set_ylabel("draws", fontsize=7)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))


def _pictures(
    predictions: Sequence[Prediction[Drawn]], row: Modality, wanted: Wanted, title: str, subtitle: str
) -> Figure:
    """A line for each object: what its file has, then draws in the same stretch; the box that was drawn is outlined."""
    most = max((len(one.answer.values) for one in predictions if one.answer is not None), default=1)
    columns = 1 + min(DRAWS_IN_ROW, most)
    figure, panels = panels_of(len(predictions) * columns, columns, (1.75, 1.85), title, subtitle)
    for line, one in enumerate(predictions):
        assert one.answer is not None
        given = one.answer.given
        pictures = [_painted(values, row, given) for values in one.answer.values[: columns - 1]]
        heads = [f"draw {number}" for number in range(len(pictures))]
        first = _given(given)
        for column, (picture, head) in enumerate(zip([first, *pictures], ["in the file", *heads], strict=True)):
            axes = panels[line * columns + column]
            if picture is None:
                axes.text(0.5, 0.5, "not in the file", ha="center", va="center", color=FAINT, transform=axes.transAxes)
                axes.set_axis_off()
            else:
                axes.imshow(picture, origin="lower", interpolation="nearest", cmap="gray", vmin=0, vmax=1)
            if wanted.mask is not None:
                x0, y0, x1, y1 = wanted.mask
                axes.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, ec="white", lw=0.8))
            axes.set_title(f"{_short(one)}\n{head}" if column == 0 else head, fontsize=7)
        for axes in panels[line * columns + 1 + len(pictures) : (line + 1) * columns]:
            axes.set_axis_off()
    return figure


def _given(given: object) -> NDArray[np.float64] | None:
    if isinstance(given, Image):
        return rgb(given)
    return given.field.astype(np.float64) if isinstance(given, SegmentationMap) else None


def _painted(values: NDArray[np.float32], row: Modality, given: object) -> NDArray[np.float64]:
    """A drawn image in colours, in the bands and the stretch of the file's if it has one; or a drawn map."""
    if row.kind == "segmentation":
        return values.astype(np.float64)
    like = given if isinstance(given, Image) else None
    bands = like.bands if like else row.bands
    flux = values[[row.bands.index(band) for band in bands]]
    scale, zero_point = row.pixel_scale or 1.0, like.zero_point if like else math.nan
    return rgb(Image(flux, bands, scale, row.unit, zero_point, np.zeros(flux.shape, bool), ()), like)


def panels_of(
    count: int, columns: int, size: tuple[float, float], title: str, subtitle: str
) -> tuple[Figure, list[Any]]:
    """A figure of `count` panels in so many columns, `size` inches each, beneath two lines of text."""
    lines = max(1, math.ceil(count / columns))
    height = size[1] * lines + 0.75
    beneath = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - 0.6 / height))
    figure = Figure(figsize=(max(4.5, size[0] * columns), height), dpi=130, facecolor="white", layout=beneath)
    figure.text(0.012, 1 - 0.1 / height, title, fontsize=12, fontweight="bold", ha="left", va="top")
    figure.text(0.012, 1 - 0.37 / height, subtitle, fontsize=8, color=FAINT, ha="left", va="top")
    panels = list(figure.subplots(lines, columns, squeeze=False).ravel())
    for axes in panels:
        axes.tick_params(labelsize=6.5, colors=FAINT, width=0.6, length=2.5)
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def _binned(values: NDArray[Any], most: int = 900) -> NDArray[np.float64]:
    """Means of neighbours, so many that at most about `most` are left; NaN counts for nothing."""
    width = max(1, len(values) // most)
    groups = values[: len(values) // width * width].astype(np.float64).reshape(-1, width)
    there = np.isfinite(groups)
    sums = np.where(there, groups, 0.0).sum(axis=1)
    return np.where(there.any(axis=1), sums / np.maximum(there.sum(axis=1), 1), np.nan)


def _stated(one: Prediction[Any]) -> float | None:
    """The redshift that the file states."""
    observation = one.outcome.subject.observation
    value = observation.metadata.get("redshift") if observation else None
    number = float(value) if isinstance(value, int | float | np.number) else math.nan
    return number if math.isfinite(number) else None


def _sources(names: Sequence[str], most: int = 2) -> str:
    """ "image.hsc, spectrum.sdss and 8 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _short(one: Prediction[Any], most: int = 28) -> str:
    text = str(one.outcome.subject.id)
    return text if len(text) <= most else f"{text[: most - 1]}…"
