"""`albireo predict` and `albireo generate`: what a model expects of objects, given what is known of them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from albireo.observations.errors import BadInput
from albireo.observations.modalities import modality
from albireo.service.commands import (
    AsOne,
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
from albireo.service.printing import errors_of, plural, progress_bar, redshifts_text, tell
from albireo.service.reading_flags import with_reading

if TYPE_CHECKING:
    from albireo.models.redshift import Posterior
    from albireo.service.core import Outcome
    from albireo.service.predictions import Drawn, Prediction, Wanted

predict_app = typer.Typer(no_args_is_help=True, help="Properties of objects, as probabilities.")

PICTURED = 12
"""Objects that a picture shows: the first of them."""

Plot = Annotated[Path | None, typer.Option("--plot", metavar="PNG", help=f"draw the first {PICTURED} objects")]


@command(predict_app, "redshift")
@with_reading
def redshift(
    files: Files,
    *,
    reading: Reading,
    open_core: OpenCore,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="the Parquet table to write")
    ] = None,
    pdf: Annotated[bool, typer.Option("--pdf", help="with -o or --json: also the probability of every cell")] = False,
    plot: Plot = None,
    as_one: AsOne = None,
    join: Join = False,
    model: Model = None,
    preprocessing: Preprocessing = None,
    json_output: Json = False,
) -> int:
    """Give the probability of redshifts.

    Mean, standard deviation, mode and quantiles of each object's redshift, from all of its modalities that the model
    reads. A redshift that the file states is never an input; the picture shows it as a line. If much of the
    probability is in the last cell of the model's grid, the object may lie beyond it: z_posterior_saturated. What
    fails goes to OUT.errors.parquet.

    \b
    Examples:
      albireo predict redshift spec-0266-51630-0168.fits
      albireo predict redshift spectra/ -o z.parquet --pdf --plot z.png
      albireo predict redshift image.fits photometry.ecsv --join --json
    """
    if pdf and output is None and not json_output:
        raise typer.BadParameter("goes with -o or --json", param_hint="--pdf")
    from albireo.models.redshift import cell_edges
    from albireo.service.prediction_tables import RedshiftWriter, identity, redshift_row

    options = reading_options(reading)
    paths = expanded(files)
    core = open_core(settings_of(model, preprocessing=preprocessing))
    edges = cell_edges(core.engine)
    rows: list[dict[str, Any]] = []
    failed: list[Outcome] = []
    shown: list[Prediction[Posterior]] = []
    with nullcontext() if output is None else RedshiftWriter(output, core.engine, pdf) as writer:
        for subjects in subject_batches(paths, options, as_one, join):
            with progress_bar("redshifts", len(subjects)) as progress:
                batch = core.redshift(subjects, progress)
            good = [one for one in batch if one.answer is not None]
            rows += [redshift_row(one, pdf) for one in good]
            failed += [one.outcome for one in batch if one.outcome.error]
            shown += good[: PICTURED - len(shown)]
            if writer is not None:
                writer.write(batch)
    if plot is not None:
        from albireo.service.prediction_pictures import draw_posteriors

        draw_posteriors(shown, plot, f"{core.engine.name}, {plural(len(rows), 'object')}")
    answer: dict[str, Any] = {"checkpoint": identity(core.engine), "objects": rows, "errors": errors_of(failed)}
    if pdf:
        answer["z_edges"] = edges
    text = redshifts_text(rows) if output is None else f"{_of_all(rows, failed)} with a redshift in {output}"
    tell(answer | _written(output, plot), text, _hint(output, plot), json_output)
    return 1 if failed else 0


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
    from albireo.service.prediction_tables import DrawsWriter, identity

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
    from albireo.service.predictions import Wanted

    key = modality(target).key
    known = None if not sources else frozenset(modality(name).key for name in sources)
    box, wavelengths = _numbers("--mask", mask, 4, int), _numbers("--keep", keep, 2, float)
    try:
        return Wanted(key, box, wavelengths, known)
    except BadInput as error:
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


def _written(output: Path | None, plot: Path | None) -> dict[str, str]:
    """The files that were written, for the answer."""
    from albireo.service.embedding_table import errors_path

    tables = {} if output is None else {"output": str(output), "errors_output": str(errors_path(output))}
    return tables | ({} if plot is None else {"plot": str(plot)})


def _hint(output: Path | None, plot: Path | None) -> str | None:
    written = _written(output, plot)
    lines = [f"errors: {written['errors_output']}"] if output else []
    return "\n".join(lines + ([f"picture: {plot}"] if plot else [])) or None
