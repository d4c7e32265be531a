"""`albireo predict` and `albireo generate`: what a model expects of objects, given what is known of them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from albireo.observations.errors import BadInput
from albireo.observations.modalities import modality
from albireo.service.commands import (
    AsOne,
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
from albireo.service.printing import errors_of, plural, predictions_text, progress_bar, tell
from albireo.service.reading_flags import with_reading

if TYPE_CHECKING:
    from albireo.models.redshift import Posterior
    from albireo.service.core import Core, Outcome
    from albireo.service.draws import Drawn, Wanted
    from albireo.service.predictions import Answers, Prediction
    from albireo.service.shelf import Shelved

PICTURED = 12
"""Objects that a picture shows: the first of them."""

Plot = Annotated[Path | None, typer.Option("--plot", metavar="PNG", help=f"draw the first {PICTURED} objects")]


@with_reading
def predict(
    heads: Annotated[
        str,
        typer.Argument(
            metavar="HEAD[,HEAD...]",
            help="names that `albireo heads ls` shows, or files of heads; several with commas between them",
            show_default=False,
        ),
    ],
    files: Files,
    *,
    reading: Reading,
    open_core: OpenCore,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="the Parquet table to write")
    ] = None,
    pdf: Annotated[bool, typer.Option("--pdf", help="with -o or --json: also the probability of every cell")] = False,
    prior: Annotated[
        str,
        typer.Option(
            metavar="FILE|flat|training",
            help="n(z) that redshifts are expected to have: a table of z_low, z_high, n; or a word",
        ),
    ] = "training",
    qp: Annotated[
        Path | None,
        typer.Option("--qp", metavar="FILE.hdf5", help="write the densities of redshift as an ensemble of qp"),
    ] = None,
    plot: Plot = None,
    as_one: AsOne = None,
    join: Join = False,
    model: Model = None,
    preprocessing: Preprocessing = None,
    data: Data = None,
    json_output: Json = False,
) -> int:
    """Say what heads make of objects: redshift, class, properties.

    Each number is a median with calibrated intervals of 68 and 95 %, each class a probability, each redshift a
    density, from all modalities of an object that the model reads, in one pass for all heads. Flags say why a head
    may not apply, typicality how many held-out training objects were odder than this one: 0.00 is unlike all. What a
    file states of the answer is never an input; the picture shows a stated redshift as a line. What fails goes to
    OUT.errors.parquet. The head tok_z is the model's own, uncalibrated; `albireo heads fit` makes others.

    \b
    Examples:
      albireo predict tok_z spec-0266-51630-0168.fits
      albireo predict tok_z spectra/ -o z.parquet --pdf --plot z.png
      albireo predict my_redshift,my_class photometry.csv -o both.parquet
      albireo predict my_redshift image.fits photometry.ecsv --join --prior nz.csv --qp z.hdf5
    """
    from albireo.service.prediction_tables import PredictionWriter
    from albireo.service.predictions import with_refused
    from albireo.service.priors import prior_of

    if pdf and output is None and not json_output:
        raise typer.BadParameter("goes with -o or --json", param_hint="--pdf")
    options = reading_options(reading)
    core = open_core(settings_of(model, data, preprocessing=preprocessing))
    asked = core.shelf.open_named([name.strip() for name in heads.split(",")])
    expected = prior_of(prior)
    collected = None if qp is None else _Collected(qp, asked)
    paths = expanded(files)
    rows: list[dict[str, Any]] = []
    failed: list[Outcome] = []
    shown: list[Prediction[Answers]] = []
    with nullcontext() if output is None else PredictionWriter(output, core.engine, asked, pdf) as writer:
        for subjects in subject_batches(paths, options, as_one, join):
            with progress_bar("predicting", len(subjects)) as progress:
                predicted = core.predict(subjects, asked, progress, expected)
            good = [one for one in predicted.predictions if one.answer is not None]
            rows += [_row(one, pdf and json_output) for one in good]
            failed += [outcome for outcome in with_refused(predicted.predictions) if outcome.error]
            shown += good[: PICTURED - len(shown)]
            if writer is not None:
                writer.write(predicted)
            if collected is not None:
                collected.add(good)
    if plot is not None:
        from albireo.service.prediction_pictures import draw_predictions

        draw_predictions(shown, asked, plot, f"{core.engine.name}, {plural(len(rows), 'object')}")
    if collected is not None:
        collected.write()
    answer = _answer(core, asked, rows, failed, pdf) | _written(output, plot, qp)
    text = predictions_text(rows, list(answer["heads"].values()))
    if output is not None:
        text = f"{_of_all(rows, [one for one in failed if one.subject.observation is None])} predicted into {output}"
    tell(answer, text, _hint(output, plot, qp), json_output)
    return 1 if failed else 0


def _row(one: Prediction[Answers], pdf: bool) -> dict[str, Any]:
    """One object as data, with what each head says of it."""
    from albireo.models.heads import Answer
    from albireo.service.embedding_table import about_object
    from albireo.service.predictions import as_data

    answers = {name: as_data(a, pdf) for name, a in (one.answer or {}).items() if isinstance(a, Answer)}
    return about_object(one.outcome, one.modalities) | {"predictions": answers}


def _answer(
    core: Core, heads: Mapping[str, Shelved], rows: list[dict[str, Any]], failed: list[Outcome], pdf: bool
) -> dict[str, Any]:
    """The whole answer as data: what computed it, the heads, the objects, the errors."""
    from albireo.service.prediction_tables import identity

    engine, space = core.engine, core.engine.space("tokens")
    return {
        "checkpoint": identity(engine),
        "space": space,
        "heads": {name: one.identity(space, one.edges(engine) if pdf else None) for name, one in heads.items()},
        "objects": rows,
        "errors": errors_of(failed),
    }


class _Collected:
    """Densities on their way into an ensemble of qp, of the one head among `heads` that gives any."""

    def __init__(self, path: Path, heads: Mapping[str, Shelved]) -> None:
        from albireo.service.qp_file import check_qp

        names = [name for name, shelved in heads.items() if shelved.task == "redshift"]
        if len(names) != 1:
            raise typer.BadParameter(
                f"an ensemble is of one head for redshifts, not of {len(names)}", param_hint="--qp"
            )
        check_qp(path)
        self.path = path
        self.head = names[0]
        self.ids: list[str] = []
        self.densities: list[Posterior] = []

    def add(self, predictions: list[Prediction[Answers]]) -> None:
        for one in predictions:
            answer = (one.answer or {})[self.head]
            density = getattr(answer, "density", None)  # An answer can be an error.
            if density is not None:
                self.ids.append(str(one.outcome.subject.id))
                self.densities.append(density)

    def write(self) -> None:
        from albireo.service.qp_file import write_qp

        if not self.densities:
            raise BadInput("empty_file", "no object has a density to write", field="qp", fix="see the errors")
        write_qp(self.path, self.densities, {"id": self.ids})


@with_reading
def generate(
    files: Files,
    *,
    reading: Reading,
    open_core: OpenCore,
    target: Annotated[str, typer.Option("--target", metavar="MODALITY", help="what is drawn, e.g. spectrum.desi")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="the Parquet table to write")],
    mask: Annotated[
        str | None,
        typer.Option("--mask", metavar="X0,Y0,X1,Y1", help="keep the image but for this box of pixels: fill it in"),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option("--keep", metavar="LOW,HIGH", help="keep these Angstrom of the spectrum, draw the rest"),
    ] = None,
    sources: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="MODALITY", help="use nothing but this of the files (may be repeated)"),
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="independent draws for each object")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="passes in which a draw is built up")] = 8,
    schedule: Annotated[Literal["cosine", "linear"], typer.Option(help="how many tokens a round fills")] = "cosine",
    temperature: Annotated[float, typer.Option(min=0, help="of the sampling; 0 takes what is most probable")] = 1.0,
    cooling: Annotated[
        Literal["constant", "linear", "power"], typer.Option(help="of the temperature over the rounds")
    ] = "constant",
    top_k: Annotated[int, typer.Option(min=0, help="draw from the K most probable tokens; 0 = all")] = 0,
    top_p: Annotated[
        float, typer.Option(min=0, max=1, help="draw from the most probable tokens of this probability; 0 = all")
    ] = 0.0,
    guidance: Annotated[float, typer.Option(help="1 = none; more makes draws fit what is given more closely")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="same seed, same draws")] = 0,
    plot: Plot = None,
    as_one: AsOne = None,
    join: Join = False,
    model: Model = None,
    preprocessing: Preprocessing = None,
    json_output: Json = False,
) -> int:
    """Draw what was not observed.

    A spectrum from photometry, one survey's spectrum from another's, an image with a hole filled in: every draw is one
    possibility, as the model sees it, and no measurement. What the files have of the target itself is not used,
    unless --mask or --keep says which part stays known; a part is known by its tokens, which overlap a little with
    what is beside them. What fails goes to OUT.errors.parquet.

    \b
    Examples:
      albireo generate photometry.ecsv --target spectrum.desi -o draws.parquet --plot draws.png
      albireo generate spec-0266-51630-0168.fits --target spectrum.desi -o desi.parquet
      albireo generate cutout.fits --target image.legacysurvey --mask 32,32,64,64 -o filled.parquet
      albireo generate image.fits photometry.ecsv --join --from image.legacysurvey --target legacysurvey.flux_z
        --draws 100 -o z.parquet
    """
    from albireo.models.generation import Sampling
    from albireo.service.draws_table import DrawsWriter
    from albireo.service.prediction_tables import identity

    wanted = _wanted(target, mask, keep, sources)
    sampling = Sampling(rounds, schedule, temperature, cooling, top_k, top_p, guidance, draws, seed)
    options = reading_options(reading)
    paths = expanded(files)
    core = open_core(settings_of(model, preprocessing=preprocessing))
    done: list[Outcome] = []
    shown: list[Prediction[Drawn]] = []
    with DrawsWriter(output, core.engine, wanted, sampling) as writer:
        for subjects in subject_batches(paths, options, as_one, join):
            with progress_bar("rounds", len(subjects) * rounds) as progress:
                batch = core.generate(subjects, wanted, sampling, progress)
            writer.write(batch)
            done += [one.outcome for one in batch]
            shown += [one for one in batch if one.answer is not None][: PICTURED - len(shown)]
    if plot is not None:
        from albireo.service.prediction_pictures import draw_draws

        draw_draws(shown, plot, wanted, core.engine)
    failed = [outcome for outcome in done if outcome.error]
    good = [outcome for outcome in done if not outcome.error]
    answer = {
        "checkpoint": identity(core.engine),
        "target": modality(wanted.target).name,
        "objects": [outcome.subject.id for outcome in good],
        "draws": draws,
        "errors": errors_of(failed),
    }
    text = f"{plural(draws, 'draw')} of {answer['target']} for {_of_all(good, failed)} in {output}"
    tell(answer | _written(output, plot), text, _hint(output, plot), json_output)
    return 1 if failed else 0


def _wanted(target: str, mask: str | None, keep: str | None, sources: list[str] | None) -> Wanted:
    """What the options ask for; what cannot be is wrong usage."""
    from albireo.service.draws import Wanted

    box, wavelengths = _numbers("--mask", mask, 4, int), _numbers("--keep", keep, 2, float)
    try:
        return Wanted.named(target, box, wavelengths, sources)
    except BadInput as error:
        if error.code != "option_invalid":
            raise
        raise typer.BadParameter(error.message, param_hint=f"--{error.field}") from error


def _numbers(option: str, text: str | None, count: int, number: type[Any]) -> Any:
    """`count` numbers, separated by commas."""
    if text is None:
        return None
    try:
        numbers = tuple(number(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        kind = "whole numbers" if number is int else "numbers"
        raise typer.BadParameter(f"{text!r} is not {count} {kind} with commas between them", param_hint=option)
    return numbers


def _of_all(good: list[Any], failed: list[Any]) -> str:
    return f"{len(good)} of {plural(len(good) + len(failed), 'object')}"


def _written(output: Path | None, plot: Path | None, qp: Path | None = None) -> dict[str, str]:
    """The files that were written, for the answer."""
    from albireo.service.embedding_table import errors_path

    tables = {} if output is None else {"output": str(output), "errors_output": str(errors_path(output))}
    return tables | {name: str(path) for name, path in (("plot", plot), ("qp", qp)) if path is not None}


def _hint(output: Path | None, plot: Path | None, qp: Path | None = None) -> str | None:
    words = {"errors_output": "errors", "plot": "picture", "qp": "ensemble"}
    written = _written(output, plot, qp)
    return "\n".join(f"{word}: {written[key]}" for key, word in words.items() if key in written) or None
