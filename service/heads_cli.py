"""`albireo heads`: heads fitted on your labels, kept, shown and judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from albireo.observations.errors import AlbireoError
from albireo.service.commands import (
    Data,
    Files,
    Join,
    Json,
    Model,
    OpenCore,
    Preprocessing,
    Reading,
    command,
    expanded,
    reading_options,
    settings_of,
    subject_batches,
)
from albireo.service.heads_text import card_lines, metric_lines
from albireo.service.printing import counting_bar, errors_of, plural, print_json, progress_bar, tell
from albireo.service.reading_flags import with_reading

if TYPE_CHECKING:
    from albireo.service.core import Core
    from albireo.service.fitting import Judged, Matched
    from albireo.service.labels import Wanted
    from albireo.service.shelf import Shelved

heads_app = typer.Typer(no_args_is_help=True, help="Heads: redshift, class or properties, learnt from your labels.")

LabelTable = Annotated[
    Path,
    typer.Option(
        "--labels", metavar="TABLE", help="table with an id and a label a row: FITS, VOTable, ECSV, CSV, Parquet"
    ),
]
IdColumn = Annotated[
    str | None,
    typer.Option("--id", metavar="COLUMN", help="its column of ids; found by its name if it has a usual one"),
]
Missing = Annotated[
    str | None,
    typer.Option(metavar="N,N,..|none", help="numbers that stand for no value, e.g. -9999; none: no number does"),
]
Targets = Annotated[
    list[str], typer.Option("--target", metavar="COLUMN", help="what is to be predicted (several: repeat it)")
]
TaskName = Annotated[
    Literal["regression", "classification", "redshift"],
    typer.Option(help="numbers with intervals, classes with probabilities, or a density of redshift"),
]
LabelUnit = Annotated[
    list[str] | None,
    typer.Option("--label-unit", metavar="TARGET=UNIT", help="where the table does not state it"),
]
Group = Annotated[
    str,
    typer.Option(metavar="object|sky|survey|COLUMN", help="what is never in two parts: cells of the sky, ..."),
]
Epochs = Annotated[int | None, typer.Option(min=1, help="at most; chosen by the number of objects")]
Report = Annotated[
    Path | None, typer.Option("--report", metavar="FOLDER", help="write a page with pictures of how well it does")
]
Which = Annotated[
    str, typer.Argument(metavar="HEAD", help="a name that `albireo heads ls` shows, or a file", show_default=False)
]


@command(heads_app, "fit")
@with_reading
def fit(
    name: Annotated[str, typer.Argument(metavar="NAME", help="what the head will be called", show_default=False)],
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
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="COLUMN", help="how much each object counts")
    ] = None,
    balanced: Annotated[
        bool, typer.Option("--balanced", help="classes count alike, however many objects each has")
    ] = False,
    pooling: Annotated[
        Literal["mean", "mean_per_modality", "attentive"],
        typer.Option(help="how the states of an object's tokens become one vector"),
    ] = "attentive",
    network: Annotated[Literal["linear", "mlp"], typer.Option(help="what follows the pooling")] = "mlp",
    interval: Annotated[
        Literal["cqr", "split"], typer.Option(help="of numbers: a width for each object, or one for all")
    ] = "cqr",
    z_max: Annotated[float, typer.Option(min=0.01, max=20, help="end of the grid of redshifts")] = 5.0,
    epochs: Epochs = None,
    seed: Annotated[int, typer.Option(min=0, help="same seed, same parts, same head")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="the head's file, instead of its place in --data")
    ] = None,
    report: Report = None,
    join: Join = False,
    model: Model = None,
    preprocessing: Preprocessing = None,
    data: Data = None,
    json_output: Json = False,
) -> int:
    """Fit a head on your labels.

    Every object of FILES that TABLE has a label for is encoded once by the model, which stays as it is; then a small
    network learns the label. Objects are dealt into four parts, by object, cell of the sky, survey or a column: 70 %
    teach, 10 % choose, 10 % calibrate (of few objects more), 10 % only test. Labels without an object, objects without
    a label and what fails are told. A label that is among what the model reads is refused. Afterwards
    `albireo predict NAME FILES` uses the head; fitting again on the same files does not encode them again.

    \b
    Examples:
      albireo heads fit my_redshift spectra/ --labels truth.csv --target zspec --task redshift
      albireo heads fit my_class photometry.fits --labels photometry.fits --target CLASS --task classification
      albireo heads fit galaxy cutouts/ --labels masses.fits --id TARGETID --target logm --target ssfr
        --label-unit logm=dex(solMass) --task regression --group sky --report galaxy-report
    """
    from albireo.models.head_fitting import Plan
    from albireo.models.head_fitting import fit as fit_head
    from albireo.models.heads import Head
    from albireo.service.fitting import gather, judge, states_folder
    from albireo.service.labels import Wanted, read_labels, without_value

    if out is not None and out.suffix != ".safetensors":
        raise typer.BadParameter(f"{out.name} does not end in .safetensors", param_hint="--out")
    options = reading_options(reading)
    wanted = Wanted(tuple(target), task, id, group, weights, missing_values(missing))
    table, stated = read_labels(labels, wanted)
    plan = Plan(
        task=task,
        targets=tuple(target),
        name=name,
        units=units_of(label_unit, stated, target),
        pooling=pooling,
        network=network,
        group=group,
        weights=weights,
        balanced=balanced,
        interval=interval,
        z_max=z_max,
        epochs=epochs,
        seed=seed,
    )
    settings = settings_of(model, data, preprocessing=preprocessing)
    core = open_core(settings)
    path = core.shelf.own(name) if out is None else out
    paths = expanded(files)

    def batches() -> Any:
        return subject_batches(paths, options, None, join)

    space = core.engine.space("tokens")
    folder = states_folder(settings.states_folder, space, paths, options, join)
    states, matched = gather(core, batches(), table, folder, progress_bar)
    with counting_bar("fitting") as progress:
        head = fit_head(states, table, plan, progress)
    left_out = _left_out(matched) | {"without_value": without_value(table, plan.targets)}
    about_data = {**head.card.data, **left_out, "files": [one.name for one in paths[:20]], "n_files": len(paths)}
    head = Head(replace(head.card, data=about_data), head.arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    head.save(path)
    shelved = core.shelf.open(name) if out is None else core.shelf.open_named([str(path)])[path.stem]
    if report is not None:
        judged = judge(core, batches(), table, shelved, target, progress_bar)
        _write_report(report, core, shelved, judged)
    about = shelved.about(core.described)
    answer = {
        "output": str(path),
        "head": about,
        **matched.as_data(),
        "report": str(report) if report else None,
        "errors": errors_of(list(matched.failed)),
    }
    hint = [f"report: {report}"] if report else []
    hint.append(f"next: albireo predict {path if out else name} FILES")
    tell(
        answer,
        "\n".join([*matched_lines(matched), *card_lines(about), f"kept in {path}"]),
        "\n".join(hint),
        json_output,
    )
    return 1 if matched.failed else 0


@command(heads_app, "ls")
def ls(
    *,
    open_core: OpenCore,
    model: Model = None,
    preprocessing: Preprocessing = None,
    data: Data = None,
    json_output: Json = False,
) -> int:
    """List the heads that there are.

    Your own, those shipped with the model, and the model's own token of redshift; and whether the model can serve
    each. Loads no network.

    \b
    Examples:
      albireo heads ls
      albireo heads ls --model aion-base --json
    """
    core = open_core(settings_of(model, data, preprocessing=preprocessing))
    shelf = core.shelf
    found = list(shelf.all())
    heads = [_with_path(one, core) for one in found if not isinstance(one, AlbireoError)]
    errors = [{"id": None, **one.as_dict()} for one in found if isinstance(one, AlbireoError)]
    hidden = [str(path) for _, path in shelf.hidden()]
    lines = []
    for about in heads:
        what = ", ".join(about["classes"] or about["targets"])
        count = f"{sum(about['card']['data']['objects'].values())} objects" if about["card"] else ""
        state = "" if about["fits"] else "of another model"
        lines.append(
            f"{about['name']:<24} {about['origin']:<9} {about['task']:<15} {what:<32} {count:<16} {state}".rstrip()
        )
    lines += [f"not used, another has its name: {path}" for path in hidden]
    tell({"heads": heads, "hidden": hidden, "errors": errors}, "\n".join(lines), None, json_output)
    return 1 if errors else 0


@command(heads_app, "show")
def show(
    head: Which,
    *,
    open_core: OpenCore,
    model: Model = None,
    preprocessing: Preprocessing = None,
    data: Data = None,
    json_output: Json = False,
) -> int:
    """Show the card of a head.

    What it tells and from what, the labels it was fitted on, how well it does, and the model that it belongs to.
    docs/heads.md says what each number means.

    \b
    Examples:
      albireo heads show tok_z
      albireo heads show my_redshift
      albireo heads show ./my_redshift.safetensors --json
    """
    core = open_core(settings_of(model, data, preprocessing=preprocessing))
    (shelved,) = core.shelf.open_named([head]).values()
    about = _with_path(shelved, core)
    if json_output:
        print_json(about)
    else:
        print("\n".join(card_lines(about)))
        if about["file"]:
            print(f"  file      {about['file']}")
    return 0


@command(heads_app, "evaluate")
@with_reading
def evaluate(
    head: Which,
    files: Files,
    *,
    reading: Reading,
    open_core: OpenCore,
    labels: LabelTable,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", metavar="COLUMN", help="where the table has other names than the head's labels had"),
    ] = None,
    id: IdColumn = None,
    missing: Missing = None,
    report: Report = None,
    join: Join = False,
    model: Model = None,
    preprocessing: Preprocessing = None,
    data: Data = None,
    json_output: Json = False,
) -> int:
    """Judge a head on labelled objects.

    Metrics of what it says of every object of FILES that TABLE has a label for, with 95 % intervals by bootstrap.
    If TABLE is the one that the head was fitted on, only the objects of its test part count.

    \b
    Examples:
      albireo heads evaluate my_redshift other-spectra/ --labels other.csv --target z_spec
      albireo heads evaluate tok_z spectra/ --labels truth.csv --target zspec --report tok_z-report
      albireo heads evaluate galaxy cutouts/ --labels masses.fits --id TARGETID --json
    """
    from albireo.service.fitting import judge
    from albireo.service.labels import Wanted

    options = reading_options(reading)
    core = open_core(settings_of(model, data, preprocessing=preprocessing))
    (shelved,) = core.shelf.open_named([head]).values()
    card = shelved.card
    columns = tuple(target or (card.plan["targets"] if card else shelved.targets))
    if len(columns) != len(shelved.targets):
        told = f"the head tells {plural(len(shelved.targets), 'thing')}: {', '.join(shelved.targets)}"
        raise typer.BadParameter(f"{told}; {len(columns)} columns are named", param_hint="--target")
    table = _labels_for(shelved, labels, Wanted(columns, shelved.task, id, missing=missing_values(missing)))
    batches = subject_batches(expanded(files), options, None, join)
    judged = judge(core, batches, table, shelved, columns, progress_bar)
    if report is not None:
        _write_report(report, core, shelved, judged)
    matched = judged.matched
    answer = {
        "head": shelved.identity(core.engine.space("tokens")),
        "n": len(judged.ids),
        "n_of_the_fit": judged.seen,
        "metrics": judged.scores,
        **matched.as_data(),
        "report": str(report) if report else None,
        "errors": errors_of(list(matched.failed)),
    }
    lines = [
        f"{shelved.name} on {plural(len(judged.ids), 'object')}, with 95 % intervals",
        *metric_lines(judged.scores),
    ]
    if judged.seen:
        lines.append(f"{plural(judged.seen, 'object')} had a part in the fit: not counted")
    tell(answer, "\n".join([*lines, *matched_lines(matched)]), f"report: {report}" if report else None, json_output)
    return 1 if matched.failed else 0


def _labels_for(shelved: Shelved, path: Path, wanted: Wanted) -> Any:
    """The labels; with the column of groups where the table is the one that the head was fitted on."""
    from albireo.service.labels import read_labels

    table, _ = read_labels(path, wanted)
    card = shelved.card
    if card is not None and table.sha256 == card.labels_sha256:
        table, _ = read_labels(path, replace(wanted, group=card.plan["group"]))
    return table


def _write_report(folder: Path, core: Core, shelved: Shelved, judged: Judged) -> None:
    from albireo.service.head_report import write_report

    write_report(folder, shelved.name, shelved.about(core.described), shelved.card, judged)


def _with_path(shelved: Shelved, core: Core) -> dict[str, Any]:
    return shelved.about(core.described) | {"file": str(shelved.path) if shelved.path else None}


def _left_out(matched: Matched) -> dict[str, int]:
    """Counts for the card: it speaks of files and labels as they were given."""
    return {
        "without_label": len(matched.without_label),
        "without_object": len(matched.without_object),
        "failed": len(matched.failed),
    }


def matched_lines(matched: Matched) -> list[str]:
    """What was left out, and for what reason."""
    lost, idle = matched.without_object, matched.without_label
    lines = []
    if lost:
        lines.append(f"{plural(len(lost), 'label')} without an object, {lost[0]!r} for one")
    if idle:
        lines.append(f"{plural(len(idle), 'object')} without a label, {idle[0]!r} for one")
    if matched.failed:
        lines.append(f"{plural(len(matched.failed), 'object')} failed")
    return lines


def missing_values(text: str | None) -> tuple[float, ...] | None:
    """Numbers that stand for no value; () for "none", None if nothing was said."""
    if text is None or text == "none":
        return None if text is None else ()
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        told = f"{text!r} is neither none nor numbers with commas between them"
        raise typer.BadParameter(told, param_hint="--missing") from None


def units_of(pairs: list[str] | None, stated: Mapping[str, str], targets: list[str]) -> dict[str, str]:
    """Target -> unit, as the table or the options state it; that both do, and differ, is wrong usage."""
    units = dict(stated)
    for pair in pairs or []:
        target, equals, unit = pair.partition("=")
        if not equals or target not in targets:
            raise typer.BadParameter(f"{pair!r} is not TARGET=UNIT of a target", param_hint="--label-unit")
        if units.get(target, unit) != unit:
            raise typer.BadParameter(
                f"the table has {target} in {units[target]}, not {unit}", param_hint="--label-unit"
            )
        units[target] = unit
    return units
