"""A folder that says how a head was fitted and how well it does: a page, pictures, and the numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from albireo.models.heads import LEVELS, Card
from albireo.models.metrics import pit_histogram, reliability
from albireo.service.descriptions import plain
from albireo.service.fitting import Judged
from albireo.service.heads_text import card_lines, metric_lines
from albireo.service.picture import FAINT, NEIGHBOUR, QUERY
from albireo.service.prediction_pictures import STYLE, panels_of, save


def write_report(folder: Path, name: str, about: Mapping[str, Any], card: Card | None, judged: Judged) -> None:
    """README.md, head.json, test.png, and curve.png of a head that was fitted here; `about` is the head as data."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {"head": plain(about), "metrics": judged.scores, "n": len(judged.ids), **judged.matched.as_data()}
    (folder / "head.json").write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
    _draw(folder / "test.png", name, judged)
    if card is not None:
        _draw_curve(folder / "curve.png", card)
    (folder / "README.md").write_text("\n".join(_page(name, about, card, judged)) + "\n")


def _page(name: str, about: Mapping[str, Any], card: Card | None, judged: Judged) -> Iterator[str]:
    yield f"# Head {name}\n"
    yield "```\n" + "\n".join(card_lines(about)) + "\n```\n"
    left_out = f"; {judged.seen} that had a part in the fit are left out" if judged.seen else ""
    yield f"## On {len(judged.ids)} objects that it was not fitted on{left_out}\n"
    yield "```\n" + "\n".join(metric_lines(judged.scores)) + "\n```\n"
    yield "![labels and what the head says](test.png)\n"
    if card is not None:
        yield "## Loss by epoch\n\n![loss of the training and the validation part](curve.png)\n"
    yield "What each number means: docs/heads.md of Albireo. All of it as data: head.json."


def _draw(path: Path, name: str, judged: Judged) -> None:
    """Each number against its label, coverage, PIT; or confusion and reliability of classes."""
    panels: list[Callable[[Any], None]] = []
    if judged.task == "classification":
        panels += [partial(_confusion, judged), partial(_reliability, judged)]
    else:
        panels += [partial(_against, judged, target) for target in judged.truth]
        panels.append(partial(_coverage, judged))
        panels += [partial(_pit, judged)] * bool(len(judged.pit))
    with mpl.rc_context(STYLE):
        figure, axes = panels_of(len(panels), min(4, len(panels)), (3.2, 2.9), name, f"{len(judged.ids)} objects")
        for panel, draw in zip(axes, panels, strict=False):
            draw(panel)
        save(figure, path)


def _against(judged: Judged, target: str, axes: Any) -> None:
    """What the head says against the label, with the wider interval."""
    truth = judged.truth[target].astype(np.float64)
    numbers = [next(one for one in answer.numbers if one.name == target) for answer in judged.answers]
    value = np.array([one.value for one in numbers])
    bounds = np.array([one.intervals[LEVELS[-1]] for one in numbers]).reshape(-1, 2)
    axes.vlines(truth, bounds[:, 0], bounds[:, 1], color=NEIGHBOUR, lw=0.4, alpha=0.3)
    axes.plot(truth, value, ".", color=NEIGHBOUR, ms=3)
    there = truth[np.isfinite(truth)]
    if len(there):
        axes.plot([there.min(), there.max()], [there.min(), there.max()], color=QUERY, lw=0.8)
    axes.set_title(target, fontsize=8)
    axes.set_xlabel(f"label {f'({numbers[0].unit})' if numbers and numbers[0].unit else ''}", fontsize=7)
    axes.set_ylabel("head, and its 95 %", fontsize=7)


def _coverage(judged: Judged, axes: Any) -> None:
    """Share of labels inside the intervals, with its uncertainty, beside what was promised."""
    for line, (target, found) in enumerate(judged.scores.items()):
        for level in LEVELS:
            value, low, high = found[f"coverage_{level:.0%}"]
            axes.plot([low, high], [line, line], color=NEIGHBOUR, lw=2)
            axes.plot([value], [line], "o", color="white", mec=NEIGHBOUR, ms=4)
        axes.text(0.02, line - 0.25, target, fontsize=6)
    for level in LEVELS:
        axes.axvline(level, color=QUERY, lw=0.8)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(len(judged.scores) - 0.4, -0.6)
    axes.set_yticks([])
    axes.set_title("coverage of 68 and 95 % intervals", fontsize=8)


def _pit(judged: Judged, axes: Any) -> None:
    """Flat if the densities are true."""
    shares = pit_histogram(judged.pit)
    axes.stairs(shares * len(shares), np.linspace(0, 1, len(shares) + 1), color=NEIGHBOUR)
    axes.axhline(1, color=QUERY, lw=0.8)
    axes.set_ylim(0, None)
    axes.set_title("probability below the label (PIT)", fontsize=8)


def _confusion(judged: Judged, axes: Any) -> None:
    """Shares of each true class; rows are labels."""
    truth = next(iter(judged.truth.values())).astype(np.str_)
    said = np.array([next(iter(answer.classes)) for answer in judged.answers])
    there = truth != ""
    names = sorted({*truth[there].tolist(), *said[there].tolist()})
    counts = np.array([[((truth == a) & (said == b)).sum() for b in names] for a in names])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(counts):
        axes.text(j, i, str(count), ha="center", va="center", fontsize=6, color="white" if shares[i, j] > 0.5 else "k")
    axes.set_xticks(range(len(names)), names, rotation=30)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("head", fontsize=7)
    axes.set_ylabel("label", fontsize=7)


def _reliability(judged: Judged, axes: Any) -> None:
    """How often the most probable class is right, against how probable it was."""
    truth = next(iter(judged.truth.values())).astype(np.str_)
    names = sorted(judged.answers[0].classes) if judged.answers else []
    known = [i for i, name in enumerate(truth.tolist()) if name in names]
    axes.plot([0, 1], [0, 1], color=QUERY, lw=0.8)
    if known:
        probability = np.array([[judged.answers[i].classes[name] for name in names] for i in known])
        found = reliability(probability, np.array([names.index(str(truth[i])) for i in known]))
        there = found.objects > 0
        axes.plot(found.confidence[there], found.accuracy[there], "o-", color=NEIGHBOUR, ms=3, lw=0.8)
    axes.set_xlabel("probability of the class", fontsize=7)
    axes.set_ylabel("how often it is right", fontsize=7)


def _draw_curve(path: Path, card: Card) -> None:
    with mpl.rc_context(STYLE):
        figure, (axes,) = panels_of(1, 1, (4.5, 2.8), card.name, "loss by epoch")
        training, validation = np.array(card.curve).reshape(-1, 2).T
        axes.plot(training, color=FAINT, lw=0.9, label="training")
        axes.plot(validation, color=NEIGHBOUR, lw=0.9, label="validation")
        axes.legend(fontsize=7, frameon=False)
        save(figure, path)
