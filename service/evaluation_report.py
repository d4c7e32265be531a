"""A folder that says how good a model is on somebody's labels: a page, curves by number of labels, and all numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from albireo.service.descriptions import plain
from albireo.service.evaluate_cli import MAIN
from albireo.service.picture import FAINT, INK, NEIGHBOUR, QUERY
from albireo.service.prediction_pictures import STYLE, panels_of, save

LOOKS: dict[str, dict[str, Any]] = {
    "trivial": {"color": INK, "ls": ":", "marker": ""},
    "rival": {"color": NEIGHBOUR, "ls": "-", "marker": "s"},
    "untrained": {"color": FAINT, "ls": "-", "marker": "^"},
    "encoder": {"color": QUERY, "ls": "-", "marker": "o"},
}
"""Contender -> its line."""


def write_report(folder: Path, answer: Mapping[str, Any], lines: Sequence[str]) -> None:
    """README.md, evaluation.json and curves.png; `lines` are the tables as text."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps(plain(answer), indent=1, ensure_ascii=False) + "\n")
    draw_curves(folder / "curves.png", answer)
    page = [
        f"# {answer['model']} on {answer['labels']}\n",
        "```\n" + "\n".join(lines).strip() + "\n```\n",
        "![metrics by number of labels](curves.png)\n",
        "Contenders: a trivial model; the best of boosted trees, networks and support vectors on the raw inputs; heads "
        "on the same encoder untrained; heads on the encoder. Bars are 95 % bootstrap intervals over the test objects. "
        "All of it as data: evaluation.json.",
    ]
    (folder / "README.md").write_text("\n".join(page) + "\n")


def draw_curves(path: Path, answer: Mapping[str, Any]) -> None:
    """A panel for each target and metric: its value against the number of labels, one line a contender."""
    runs = answer["runs"]
    targets = list(dict.fromkeys(target for run in runs for target in run["scores"]))
    panels = [partial(_curve, runs, target, metric) for target in targets for metric in MAIN[answer["task"]]]
    with mpl.rc_context(STYLE):
        subtitle = f"{answer['n_test']} test objects, split by {answer['group']}"
        figure, axes = panels_of(len(panels), len(MAIN[answer["task"]]), (3.2, 2.6), str(answer["model"]), subtitle)
        for panel, draw in zip(axes, panels, strict=False):
            draw(panel)
        if panels:
            axes[0].legend(fontsize=7, frameon=False)
        save(figure, path)


def _curve(runs: Sequence[Mapping[str, Any]], target: str, metric: str, axes: Any) -> None:
    for who, look in LOOKS.items():
        found = [(run["labels"], *three) for run in runs if run["who"] == who
                 if (three := run["scores"].get(target, {}).get(metric)) is not None]  # fmt: skip
        if found:
            size, value, low, high = np.array(sorted(found)).T
            bars = np.maximum([value - low, high - value], 0)
            axes.errorbar(size, value, bars, label=who, ms=3.5, lw=1, elinewidth=0.7, **look)
    axes.set_xscale("log")
    sizes = sorted({run["labels"] for run in runs})
    axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    axes.minorticks_off()
    if metric.startswith("coverage"):
        axes.axhline(float(metric.removeprefix("coverage_").removesuffix("%")) / 100, color=FAINT, lw=0.6)
    axes.set_xlabel("labels", fontsize=7)
    axes.set_title(f"{target}, {metric}", fontsize=8)
