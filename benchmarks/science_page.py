"""docs/science.md and its pictures, from the records of benchmarks.science_runs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from benchmarks import neighbourhoods
from benchmarks.questions import QUESTIONS, Question
from benchmarks.science_runs import CONTENDERS, ENCODER, PCA, QUANTISED, RIVAL, TEMPLATES, TRIVIAL, UNTRAINED, Records

NAMES = {
    TRIVIAL: "trivial",
    TEMPLATES: "chi-square of templates",
    RIVAL: "best rival",
    QUANTISED: "best rival on what the tokens keep",
    PCA: "the encoder's head on principal components",
    UNTRAINED: "the encoder untrained",
    ENCODER: "the encoder",
}
COLOURS = {
    TRIVIAL: "0.6",
    TEMPLATES: "tab:purple",
    RIVAL: "tab:orange",
    QUANTISED: "tab:red",
    PCA: "tab:brown",
    UNTRAINED: "tab:green",
    ENCODER: "tab:blue",
}

COLUMNS = {
    "regression": ("r2", "robust_scatter", "rms", "crps", "coverage_68%", "coverage_95%"),
    "redshift": (
        "sigma_nmad",
        "bias",
        "outliers_5%",
        "outliers_15%",
        "within",
        "crps",
        "pit_ks",
        "coverage_68%",
        "coverage_95%",
    ),
    "classification": ("balanced_accuracy", "macro_f1", "calibration_error", "nll"),
}
HEADINGS = {
    "r2": "R²", "robust_scatter": "robust scatter", "rms": "rms", "crps": "CRPS", "pit_ks": "PIT (KS)",
    "coverage_68%": "68 % covers", "coverage_95%": "95 % covers", "sigma_nmad": "σ NMAD", "bias": "bias",
    "outliers_5%": "beyond 0.05", "outliers_15%": "beyond 0.15", "within": "within the limit",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1", "calibration_error": "calibration error", "nll": "NLL",
}  # fmt: skip
NEAR = {
    "class": "same class",
    "ndcg": "nDCG@10",
    "redshift": "same redshift",
    "same set over chance": "same modalities, over chance",
}
SHARES = ("coverage", "within", "outliers", "balanced", "macro", "calibration")
"""What is told in percent."""

INTRODUCTION = """# What the encoder is good for

Written by `make science` (`python -m benchmarks.science`); do not edit. Every task stands beside a trivial model (the
median of the labels, the shares of the classes), the best of boosted trees, small networks and support vector machines
on the same inputs and labels, and the same encoder before its training. Values are followed by 95 % bootstrap intervals
over the test objects. Models were chosen on validation parts; the test parts were only measured on. Intervals of rivals
are split conformal: one width, of redshifts one share of 1 + z, from their errors on the validation part. σ NMAD is
1.4826 median(|dz - median(dz)|) with dz = (z' - z) / (1 + z); CRPS is in the unit of the label; PIT (KS) is how far the
probability integral transform is from a uniform one.
"""


def page(
    records: Records, about: Mapping[str, str], pictures: Path, questions: Mapping[str, Question] = QUESTIONS
) -> str:
    """The page; its pictures are written to the folder `pictures`, which lies beside it.

    about  what is told of the run: the checkpoint and its fingerprint
    """
    pictures.mkdir(parents=True, exist_ok=True)
    codes = sorted({record["code"] for one in questions.values() for record in _all(records, one)})
    told = [*(f"- {name}: {value}" for name, value in about.items()), f"- code: {', '.join(codes) or 'none'}"]
    parts = [INTRODUCTION, "\n".join(told) + "\n", _claims(records, questions)]
    parts += [_section(question, records, pictures) for question in questions.values()]
    parts.append(_neighbours(records))
    notes = records.notes()
    used = sorted({name for one in questions.values() for name in (one.fitted, one.tested)})
    parts.append(
        "## The data\n\n" + "\n".join(f"- **{name}**: {notes[name]}." for name in used if name in notes) + "\n"
    )
    return "\n".join(parts)


def _all(records: Records, question: Question) -> list[dict[str, Any]]:
    found = (records.read(question.name, who, size) for who in CONTENDERS for size in question.sizes)
    return [one for one in found if one is not None]


def _claims(records: Records, questions: Mapping[str, Question]) -> str:
    """On which tasks the trained encoder is beyond the untrained one, and beyond the rival, with all labels."""
    rows = []
    for question in questions.values():
        ours = records.read(question.name, ENCODER, None)
        if ours is None or "targets" not in ours:
            continue
        for target, judged in ours["targets"].items():
            cells = [f"{question.title}" + (f": {target}" if len(ours["targets"]) > 1 else "")]
            cells.append(_cell(question.main, judged["metrics"].get(question.main)))
            for who in (UNTRAINED, PCA, RIVAL, TEMPLATES):
                other = (records.read(question.name, who, None) or {}).get("targets", {}).get(target, {})
                cells.append(_verdict(question, judged["metrics"], other.get("metrics", {})))
            rows.append(cells)
    if not rows:
        return "This checkpoint has answered no question yet.\n"
    head = ["task", "all labels", "against untrained", "principal components", "the best rival", "templates"]
    return "## In short\n\n" + _table(head, rows)


def _verdict(question: Question, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Better or worse, and whether the one's interval reaches the other's."""
    a, b = ours.get(question.main), theirs.get(question.main)
    if a is None or b is None:
        return "-"
    sign = -1.0 if question.main == "sigma_nmad" else 1.0
    if sign * a[0] > sign * b[0]:
        apart = a[1] > b[2] if sign > 0 else a[2] < b[1]
        return "better" if apart else "better, intervals overlap"
    apart = a[2] < b[1] if sign > 0 else a[1] > b[2]
    return "worse" if apart else "worse, intervals overlap"


def _section(question: Question, records: Records, pictures: Path) -> str:
    lines = [f"## {question.title}\n"]
    where = f"Fitted to {question.fitted}, tested on {question.tested}"
    lines.append(where + (f" ({QUESTIONS[question.beside].title} below).\n" if question.beside else ".\n"))
    found = {who: records.read(question.name, who, None) for who in CONTENDERS}
    if all(one is None for one in found.values()):
        return "\n".join([*lines, "Not measured yet.\n"])
    if found[ENCODER] is None:
        lines.append("This checkpoint does not read these inputs, or was not asked yet.\n")
    for who, one in found.items():
        if one is not None and "failed" in one:
            lines.append(f"{NAMES[who].capitalize()} could not be fitted: {one['failed']}\n")
    for target, unit in question.targets.items():
        told = [name for name in COLUMNS[question.task] if any(name in _metrics(one, target) for one in found.values())]
        rows = [_row(told, target, who, one) for who, one in found.items() if _metrics(one, target)]
        if not rows:
            continue
        called = f"`{target}`" + (f" in {unit}" if unit else "")
        n = max(one["targets"][target]["n"] for one in found.values() if _metrics(one, target))
        limit = f"; the limit is {question.limit:.0f} km/s" if question.limit else ""
        lines.append(f"{called}, {n} test objects, all labels{limit}:\n")
        lines.append(_table(["", "labels", "model", *(HEADINGS[name] for name in told)], rows))
        ours = found[ENCODER]
        if ours is not None and _metrics(ours, target):
            lines += [*_more(ours["targets"][target]), *_tried(question, ours["detail"], target), ""]
    lines += _failures(question, records, pictures)
    for kind, figure in (("labels", _curves(question, records)), ("objects", _objects(question, found))):
        if figure is not None:
            path = pictures / f"{question.name}-{kind}.png"
            figure.savefig(path, dpi=110, metadata={"Software": None})
            plt.close(figure)
            lines.append(f"![{kind}]({pictures.name}/{path.name})\n")
    return "\n".join(lines)


def _failures(question: Question, records: Records, pictures: Path) -> list[str]:
    """Every object that the encoder was wrong about, and the picture of their spectra if one was drawn."""
    drawn = records.path(question.name, ENCODER, None).with_suffix(".png")
    if not drawn.exists():
        return []
    shutil.copyfile(drawn, pictures / f"{question.name}-failures.png")
    record = records.read(question.name, ENCODER, None) or {"targets": {}}
    failed = [one for judged in record["targets"].values() for one in judged["failed"]]
    rows = [[one["id"], one["label"], one["said"]] for one in failed]
    picture = f"![failures]({pictures.name}/{question.name}-failures.png)\n"
    return [f"{len(failed)} failures of the encoder:\n", _table(["object", "label", "said"], rows), picture]


def _neighbours(records: Records) -> str:
    """A table for every set that neighbours were looked for in."""
    lines = [f"## Neighbours\n\n{neighbourhoods.__doc__ or ''}"]
    across = {
        neighbourhoods.row(who, pooling): f"{NAMES[who]}, {pooling}"
        for who in (UNTRAINED, ENCODER)
        for pooling in neighbourhoods.POOLINGS
    }
    tables = {name: {who: NAMES.get(who, who) for who in neighbourhoods.ROWS} for name in neighbourhoods.SETS}
    for name, named in (tables | {"across": across}).items():
        found = {who: records.read(neighbourhoods.question(name), who, None) for who in named}
        there = {who: one for who, one in found.items() if one is not None}
        if not there:
            continue
        heads = [head for head in NEAR if any(head in one["metrics"] for one in there.values())]
        rows = [[named[who], *(_cell(head, one["metrics"].get(head)) for head in heads)] for who, one in there.items()]
        called = f"{neighbourhoods.ACROSS}, given by lot" if name == "across" else name
        objects = next(iter(there.values()))["objects"]
        lines.append(f"{called}, {objects} objects:\n\n" + _table(["", *(NEAR[head] for head in heads)], rows))
    return "\n".join(lines)


def _metrics(record: Mapping[str, Any] | None, target: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = ((record or {}).get("targets") or {}).get(target, {}).get("metrics", {})
    return found


def _row(told: Sequence[str], target: str, who: str, record: Any) -> list[str]:
    detail, metrics = record["detail"], _metrics(record, target)
    cells = [_cell(name, metrics.get(name)) for name in told]
    return [NAMES[who], str(detail["labels"]), detail["model"].get(target, ""), *cells]


def _more(judged: Mapping[str, Any]) -> list[str]:
    """What is told of the encoder alone: worst bins, classes found, flags."""
    lines = []
    for level, bins in judged.get("bins", {}).items():
        nominal = float(level.rstrip("%")) / 100
        worst = max(bins, key=lambda one: abs(one["coverage"] - nominal), default=None)
        if worst is not None:
            lines.append(
                f"- {level} intervals, worst bin: {worst['variable']} {worst['bin']}, {worst['objects']} objects, "
                f"{100 * worst['coverage']:.0f} % covered"
            )
    if judged.get("found"):
        lines.append("- found: " + ", ".join(f"{name} {text}" for name, text in judged["found"].items()))
    if judged.get("flags"):
        lines.append("- flags: " + ", ".join(f"`{name}` {count}" for name, count in judged["flags"].items()))
    return lines


def _tried(question: Question, detail: Mapping[str, Any], target: str) -> list[str]:
    """What each pooling gave; which of them is the encoder's, the validation part had said."""
    tried = {pooling: found[target] for pooling, found in detail.get("tried", {}).items() if target in found}
    told = ", ".join(f"{pooling} {_cell(question.main, three)}" for pooling, three in tried.items())
    return [f"- {HEADINGS[question.main]} by pooling: {told}"] if told else []


def _cell(name: str, three: Sequence[float] | None) -> str:
    if three is None:
        return "-"
    if name.startswith(SHARES):
        return f"{100 * three[0]:.1f} % ({100 * three[1]:.1f} to {100 * three[2]:.1f})"
    return f"{three[0]:.3g} ({three[1]:.3g} to {three[2]:.3g})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _curves(question: Question, records: Records) -> Figure | None:
    """The main metric of every target against the number of labels."""
    if len(question.sizes) < 2:
        return None
    figure, axes = plt.subplots(
        1, len(question.targets), figsize=(3.4 * len(question.targets) + 0.6, 3.0), squeeze=False
    )
    drawn = False
    for axis, target in zip(axes[0], question.targets, strict=True):
        for who in CONTENDERS:
            read = [records.read(question.name, who, size) for size in question.sizes]
            points = sorted(
                (one["detail"]["labels"], _metrics(one, target)[question.main])
                for one in read
                if one is not None and question.main in _metrics(one, target)
            )
            if points:
                x = [n for n, _ in points]
                y = np.array([three for _, three in points])
                axis.plot(x, y[:, 0], "o-", ms=3, color=COLOURS[who], label=NAMES[who])
                axis.fill_between(x, y[:, 1], y[:, 2], color=COLOURS[who], alpha=0.15, lw=0)
                drawn = True
        axis.set_xscale("log")
        axis.set_xlabel("labels")
        axis.set_title(target, fontsize=9)
        if question.main == "r2":
            axis.set_ylim(max(axis.get_ylim()[0], -0.1), 1.0)
        elif question.main == "sigma_nmad":
            axis.set_yscale("log")
    axes[0, 0].set_ylabel(HEADINGS[question.main])
    axes[0, 0].legend(fontsize=5, framealpha=0.5)
    figure.tight_layout()
    if not drawn:
        plt.close(figure)
        return None
    return figure


def _objects(question: Question, found: Mapping[str, Any]) -> Figure | None:
    """What the encoder and the rival say of each test object, against its label."""
    shown = [who for who in (RIVAL, ENCODER) if (found[who] or {}).get("targets")]
    if question.task == "classification" or not shown:
        return None
    n = len(question.targets)
    figure, axes = plt.subplots(len(shown), n, figsize=(2.9 * n + 0.6, 2.7 * len(shown)), squeeze=False)
    for row, who in zip(axes, shown, strict=True):
        for axis, (target, unit) in zip(row, question.targets.items(), strict=True):
            points = found[who]["targets"].get(target, {}).get("shown")
            if not points:
                continue
            truth, value = np.array(points["truth"]), np.array(points["value"])
            few = len(truth) <= 300 and "low" in points
            if few:
                ends = np.abs(np.array([points["low"], points["high"]]) - value)
                axis.errorbar(truth, value, yerr=ends, fmt="none", ecolor="0.8", lw=0.5)
            axis.plot(truth, value, ".", ms=3 if few else 1, color=COLOURS[who], alpha=0.7)
            low, high = np.percentile(truth, [0.1, 99.9])
            axis.plot([low, high], [low, high], color="k", lw=0.6)
            axis.set_xlim(low, high)
            axis.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
            axis.set_title(f"{NAMES[who]}: {target}" + (f" ({unit})" if unit else ""), fontsize=8)
    figure.supxlabel("label", fontsize=8)
    figure.tight_layout()
    return figure
