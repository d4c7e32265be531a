"""`albireo evaluate`: how good a model is on your labelled objects, beside what it must beat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from albireo.service.commands import (
    Data,
    Files,
    Join,
    Json,
    Model,
    OpenCore,
    Preprocessing,
    Reading,
    expanded,
    reading_options,
    settings_of,
    subject_batches,
)
from albireo.service.heads_cli import (
    Epochs,
    Group,
    IdColumn,
    LabelTable,
    LabelUnit,
    Missing,
    Targets,
    TaskName,
    matched_lines,
    missing_values,
    units_of,
)
from albireo.service.printing import errors_of, plural, progress_bar, tell
from albireo.service.reading_flags import with_reading

if TYPE_CHECKING:
    from albireo.models.engine import Engine
    from albireo.models.heads import Pooling
    from albireo.service.core import Core
    from albireo.service.evaluation import Run

MAIN = {
    "regression": ("r2", "robust_scatter", "coverage_68%"),
    "classification": ("balanced_accuracy", "nll"),
    "redshift": ("sigma_nmad", "outliers_15%", "coverage_68%"),
}
"""Task -> the metrics that are printed and drawn; the report has all of them."""


@with_reading
def evaluate(
    files: Files,
    *,
    reading: Reading,
    open_core: OpenCore,
    labels: LabelTable,
    target: Targets,
    task: TaskName,
    id: IdColumn = None,
    missing: Missing = None,
    label_unit: LabelUnit = None,
    group: Group = "object",
    sizes: Annotated[str, typer.Option(metavar="N,N,..,all", help="numbers of labels")] = "100,300,1000,all",
    pooling: Annotated[
        str,
        typer.Option(
            metavar="P,P,..",
            help="poolings of heads that are tried: mean, mean_per_modality, attentive; the best is taken",
        ),
    ] = "mean_per_modality,attentive",
    with_untrained: Annotated[
        bool, typer.Option("--untrained/--no-untrained", help="also heads on the same encoder before its training")
    ] = True,
    epochs: Epochs = None,
    seed: Annotated[int, typer.Option(min=0, help="same seed, same parts, same numbers")] = 0,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FOLDER", help="write a page, curves.png and evaluation.json")
    ] = None,
    join: Join = False,
    model: Model = None,
    preprocessing: Preprocessing = None,
    data: Data = None,
    json_output: Json = False,
) -> int:
    """Judge a model on your labels.

    A fifth of the objects is kept for the test, by group. Of the others 100, 300, 1000, ... labels are given to four
    contenders: a trivial model; the best of boosted trees, networks and support vectors on the raw inputs; heads on the
    same encoder untrained; heads on the encoder. Each metric has a 95 % bootstrap interval. To judge a head that is
    fitted already: `albireo heads evaluate`. All labelled objects are held in memory. Needs the extra `train`.

    \b
    Examples:
      albireo evaluate spectra/ --labels truth.csv --target zspec --task redshift --report redshift-report
      albireo evaluate photometry.fits --labels photometry.fits --target CLASS --task classification --group sky
      albireo evaluate cutouts/ --labels masses.fits --target logm --task regression --sizes 100,all --model aion-base
    """
    from albireo.models.head_fitting import Plan
    from albireo.service.evaluation import CONTENDERS, ENCODER, UNTRAINED, Trial, collect
    from albireo.service.fitting import states_folder
    from albireo.service.labels import Wanted, read_labels

    asked, poolings = _sizes(sizes), _poolings(pooling)
    options = reading_options(reading)
    table, stated = read_labels(labels, Wanted(tuple(target), task, id, group, None, missing_values(missing)))
    plan = Plan(task, tuple(target), units=units_of(label_unit, stated, target), group=group, epochs=epochs, seed=seed)
    settings = settings_of(model, data, preprocessing=preprocessing)
    core = open_core(settings)
    paths = expanded(files)
    engines = _engines(core, with_untrained, seed)
    space = core.engine.space("tokens")
    # Those of the encoder are where a fit on the same files finds them, and the other way round.
    folders = {
        who: states_folder(settings.states_folder, space, paths, options, join, *said)
        for who, said in {ENCODER: (), UNTRAINED: (UNTRAINED, seed)}.items()
        if who in engines
    }
    collected = collect(core, subject_batches(paths, options, None, join), table, engines, folders, group, progress_bar)
    trial = Trial(collected, plan, poolings)
    numbers = trial.sizes(asked)
    contenders = [who for who in CONTENDERS if who != UNTRAINED or with_untrained]
    runs: list[Run] = []
    with progress_bar("fitting", len(numbers) * len(contenders)) as progress:
        for size in numbers:
            for who in contenders:
                runs.append(trial.run(who, size))
                progress(1)
    matched = collected.matched
    answer: dict[str, Any] = {
        "model": core.engine.name,
        "space": space,
        "task": task,
        "targets": list(target),
        "units": dict(plan.units),
        "labels": table.source,
        "labels_sha256": table.sha256,
        "group": group,
        "seed": seed,
        "n_test": len(trial.test),
        "n_labels": len(trial.pool),
        "runs": [vars(run) for run in runs],
        **matched.as_data(),
        "report": str(report) if report else None,
        "errors": errors_of(list(matched.failed)),
    }
    lines = [*result_lines(answer), *matched_lines(matched)]
    if report is not None:
        from albireo.service.evaluation_report import write_report

        write_report(report, answer, lines)
    tell(answer, "\n".join(lines), f"report: {report}" if report else None, json_output)
    return 1 if matched.failed else 0


def result_lines(answer: Mapping[str, Any]) -> Iterator[str]:
    """What was found as text: a table for each target and metric, a line for each number of labels."""
    yield (
        f"{answer['model']} on {plural(answer['n_test'], 'test object')}, of {plural(answer['n_labels'], 'label')} "
        f"to learn from; split by {answer['group']}, 95 % intervals by bootstrap"
    )
    runs = answer["runs"]
    contenders = list(dict.fromkeys(run["who"] for run in runs))
    targets = list(dict.fromkeys(target for run in runs for target in run["scores"]))
    for target in targets:
        for metric in MAIN[answer["task"]]:
            unit = answer["units"].get(target, "") if metric == "robust_scatter" else ""
            yield f"\n{target}, {metric}" + (f" ({unit})" if unit else "")
            rows = [["labels", *contenders]]
            for size in sorted({run["labels"] for run in runs}):
                cells = {run["who"]: run["scores"].get(target, {}).get(metric) for run in runs if run["labels"] == size}
                rows.append([str(size), *(_cell(cells.get(who)) for who in contenders)])
            widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
            for row in rows:
                yield "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
    yield ""
    for run in runs:
        if run["failed"]:
            yield f"{run['who']} with {run['labels']} labels: {run['failed']}"
        elif run["unanswered"]:
            yield f"{run['who']} with {run['labels']} labels says nothing of {plural(run['unanswered'], 'object')}"


def _cell(three: Sequence[float] | None) -> str:
    return "-" if three is None else "{:.3g} ({:.3g} to {:.3g})".format(*(value + 0.0 for value in three))


def _engines(core: Core, with_untrained: bool, seed: int) -> dict[str, Engine]:
    """Contender -> encoder."""
    from albireo.service.evaluation import ENCODER, UNTRAINED

    engines: dict[str, Engine] = {ENCODER: core.engine}
    if with_untrained:
        from albireo.models.torch_engine import TorchEngine
        from albireo.models.untrained import untrained
        from albireo.service.engine_around import EngineAround

        engine = core.engine
        while isinstance(engine, EngineAround):
            engine = engine.engine
        assert isinstance(engine, TorchEngine), "only a checkpoint has a network that could be untrained"
        engines[UNTRAINED] = untrained(engine, seed)
    return engines


def _poolings(text: str) -> tuple[Pooling, ...]:
    from albireo.models.heads import POOLINGS

    parts = text.split(",")
    if not set(parts) <= set(POOLINGS):
        raise typer.BadParameter(f"{text!r} is not some of {', '.join(POOLINGS)}", param_hint="--pooling")
    return tuple(name for name in POOLINGS if name in parts)


def _sizes(text: str) -> list[int | None]:
    """ "100,all" -> [100, None]."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part == "all" or (part.isdecimal() and int(part) > 0) for part in parts):
        raise typer.BadParameter(f"{text!r} is no list of numbers of labels", param_hint="--sizes")
    return [None if part == "all" else int(part) for part in parts]
