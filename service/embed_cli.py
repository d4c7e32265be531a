"""`albireo embed`: any number of files, folders or tables into embeddings on disk, resumed where it was stopped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from albireo.service.commands import (
    AsOne,
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
)
from albireo.service.printing import plural, tell
from albireo.service.reading_flags import with_reading

if TYPE_CHECKING:
    from albireo.index.byte_cache import Counts
    from albireo.service.bulk import Progress, Summary

STOPPED = 130
"""Exit code after Ctrl-C."""


@with_reading
def embed(
    files: Files,
    *,
    reading: Reading,
    open_core: OpenCore,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="OUT", help="the Parquet table to write, or a folder of its parts"),
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with a run into OUT that was stopped; begin if there is none")
    ] = False,
    pooling: Annotated[
        Literal["mean", "mean_per_modality", "tokens"],
        typer.Option(help="one vector per object, per modality, or per token"),
    ] = "mean",
    normalize: Annotated[bool, typer.Option("--normalize", help="divide every vector by its length")] = False,
    as_one: AsOne = None,
    join: Join = False,
    chunk: Annotated[
        int, typer.Option("--chunk", min=1, help="most objects that are kept at a time, and lost when it is killed")
    ] = 4096,
    token_cache: Annotated[
        Path | None,
        typer.Option(
            "--tokens",
            metavar="CACHE",
            help="folder that keeps the tokens of images, spectra and maps for the next time",
        ),
    ] = None,
    model: Model = None,
    preprocessing: Preprocessing = None,
    json_output: Json = False,
) -> int:
    """Embed files into a Parquet table.

    Every object of the files is a row; what fails goes to OUT.errors.parquet beside it. If OUT is a folder, to parts
    in it, and errors to OUT/_errors. Work is kept chunk by chunk, large tables are read piece by piece. Killed or
    stopped by Ctrl-C, the same command with --resume goes on.

    \b
    Examples:
      albireo embed spectra/ -o spectra.parquet
      albireo embed survey/ -o embeddings/ --resume
      albireo embed image.fits spectrum.fits --as-one "NGC 4565" -o one.parquet
      albireo embed photometry.csv --survey legacysurvey --release dr10 --kind model --system AB
        --no-extinction-corrected -o photometry.parquet
    """
    from albireo.service import bulk
    from albireo.service.token_cache import CachedTokens, with_token_cache

    options = reading_options(reading)
    paths = expanded(files)
    settings = settings_of(model, preprocessing=preprocessing, token_cache=token_cache)
    core = with_token_cache(open_core(settings), settings)
    job = bulk.Job(paths, output, options, pooling, normalize, as_one, join, bulk.Limits(objects=chunk))
    try:
        with bulk_bar() as watch:
            summary = bulk.embed(core, job, resume, watch)
    except KeyboardInterrupt:
        print(f"stopped; what is finished is in {job.run_folder}", file=sys.stderr)
        print("next: the same command with --resume goes on", file=sys.stderr)
        return STOPPED
    cache = core.engine.cache if isinstance(core.engine, CachedTokens) else None
    if cache is not None:
        cache.close()
    _tell(summary, cache.counts if cache else None, json_output)
    return 1 if summary.failed else 0


def _tell(summary: Summary, tokens: Counts | None, as_json: bool) -> None:
    embedded = summary.objects - summary.failed
    errors = str(summary.errors_output) if summary.errors_output.exists() else None
    text = [f"{embedded} of {plural(summary.objects, 'object')} embedded into {summary.output}"]
    if summary.resumed:
        text.append(f"{plural(summary.resumed, 'chunk')} of {summary.chunks} had been finished before")
    if summary.damaged:
        text.append(f"{plural(len(summary.damaged), 'part')} were damaged, and computed again")
    if summary.failed > len(summary.errors):
        text.append(f"the first {len(summary.errors)} of {summary.failed} errors are shown")
    if tokens is not None:
        text.append(f"token cache: {tokens.hits} found, {tokens.misses} made, {tokens.damaged} damaged")
    answer = {
        "output": str(summary.output),
        "errors_output": errors,
        "space": summary.space,
        "embedded": embedded,
        "failed": summary.failed,
        "tokens": summary.tokens,
        "chunks": summary.chunks,
        "resumed_chunks": summary.resumed,
        "damaged_parts": list(summary.damaged),
        "token_cache": None if tokens is None else asdict(tokens),
        "errors": [{key: value for key, value in error.items() if value is not None} for error in summary.errors],
    }
    tell(answer, "\n".join(text), errors and f"errors: {errors}", as_json)


@contextmanager
def bulk_bar() -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal that is told how far a job is, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda progress: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda progress: bar.update(
            task, total=max(progress.of_size, 1), completed=progress.size, description=bar_text(progress)
        )


def bar_text(progress: Progress) -> str:
    """Files, objects, how many failed, the rate and the time left, in words."""
    parts = [f"{progress.files:,} of {plural(progress.of_files, 'file')}", plural(progress.objects, "object")]
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    if progress.objects > progress.earlier:
        parts.append(f"{progress.rate:.3g}/s")
    left = progress.seconds_left
    if left is not None:
        hours, minutes = divmod(round(left) // 60, 60)
        parts.append(f"{hours}:{minutes:02d}:{round(left) % 60:02d} left")
    return ", ".join(parts)
