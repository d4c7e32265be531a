"""The command line. Nothing heavy is imported before a command needs it: `--help` answers in a fraction of a second."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

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
    command,
    expanded,
    reading_options,
    settings_of,
    subject_batches,
)
from albireo.service.doctor_cli import doctor
from albireo.service.embed_cli import embed
from albireo.service.evaluate_cli import evaluate
from albireo.service.heads_cli import heads_app
from albireo.service.keys_cli import keys_app
from albireo.service.models_cli import models_app
from albireo.service.predict_cli import generate, predict
from albireo.service.printing import (
    errors_of,
    neighbours_text,
    print_json,
    progress_bar,
    tell,
    validation_text,
)
from albireo.service.reading_flags import with_reading
from albireo.service.simulate_cli import simulate
from albireo.service.verify_checkpoint_cli import verify_checkpoint
from albireo.service.worker_cli import worker

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help cuts no long flag, and keeps the lines of the examples
    help="""Raw survey files in, embeddings and neighbours out.

    Start with `albireo demo`, or with `albireo validate FILE` to see what is understood of a file of yours.

    Exit codes: 0 all went well, 1 something failed (the rest is done), 2 wrong usage.""",
)
index_app = typer.Typer(no_args_is_help=True, help="Collections of embeddings on this machine.")
app.add_typer(index_app, name="index")
app.add_typer(models_app, name="models")
app.add_typer(heads_app, name="heads")
app.add_typer(keys_app, name="keys")


@command(app, "validate")
@with_reading
def validate(
    files: Files,
    *,
    reading: Reading,
    open_core: OpenCore,
    model: Model = None,
    require_usable: Annotated[
        bool, typer.Option("--require-usable", help="exit with 1 unless every object can be embedded")
    ] = False,
    json_output: Json = False,
) -> int:
    """Say what is understood of files.

    Format, objects, bands, units, conventions, pixels, token cost, and whether each object is usable. Loads no
    network. Exit code 0 when every file is recognised and whole, usable or not.

    \b
    Examples:
      albireo validate spec-0266-51630-0168.fits
      albireo validate cutout.fits --survey legacysurvey --bands g,r,i,z
      albireo validate coadd-*.fits redrock-*.fits --json
    """
    from albireo.service.files import read_batches

    options = reading_options(reading)
    core = open_core(settings_of(model))
    batches = list(read_batches(expanded(files), options))
    reports = [report for batch in batches for report in batch.reports]
    answer = core.validate(reports, [subject for batch in batches for subject in batch.subjects])
    if json_output:
        print_json(answer)
    else:
        print(validation_text(answer, [str(path) for batch in batches for path in batch.paths]))
    good = all(file["recognised"] for file in answer["files"])
    return 0 if good and (not require_usable or all(item["usable"] for item in answer["items"])) else 1


command(app, "embed")(embed)
command(app, "worker")(worker)


@command(index_app, "add")
@with_reading
def index_add(
    files: Files,
    *,
    reading: Reading,
    open_core: OpenCore,
    collection: Annotated[str, typer.Option("--collection", "-c", help="made if there is none")] = "default",
    as_one: AsOne = None,
    join: Join = False,
    model: Model = None,
    preprocessing: Preprocessing = None,
    data: Data = None,
    json_output: Json = False,
) -> int:
    """Embed files into a collection.

    Every object of the files is kept, replacing those whose id is known.

    \b
    Examples:
      albireo index add spectra/
      albireo index add coadd-*.fits --collection desi
    """
    options = reading_options(reading)
    paths = expanded(files)
    core = open_core(settings_of(model, data, preprocessing=preprocessing))
    space = core.engine.space("mean")
    target = core.collections.create(collection, space, core.engine.dim)
    outcomes: list[Any] = []
    kept = 0
    for subjects in subject_batches(paths, options, as_one, join):
        with progress_bar("indexing", len(subjects)) as progress:
            embedded, count = core.index(collection, subjects, progress)
        outcomes += embedded.outcomes
        kept += count
    failed = [outcome for outcome in outcomes if outcome.error]
    tell(
        {
            "collection": collection,
            "space": space,
            "indexed": kept,
            "count": target.count,
            "errors": errors_of(failed),
        },
        f"{kept} objects kept in collection {collection!r}, which holds {target.count}",
        f"next: albireo search --collection {collection} --id ID",
        json_output,
    )
    core.close()
    return 1 if failed else 0


@command(app, "search")
@with_reading
def search(
    *,
    reading: Reading,
    open_core: OpenCore,
    collection: Annotated[str, typer.Option("--collection", "-c", help="where to search")] = "default",
    id: Annotated[str | None, typer.Option("--id", help="neighbours of this object of the collection")] = None,
    file: Annotated[
        list[Path] | None, typer.Option("--file", "-f", help="neighbours of the objects of a file (may be repeated)")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=10_000, help="neighbours wanted")] = 10,
    as_one: AsOne = None,
    join: Join = False,
    model: Model = None,
    preprocessing: Preprocessing = None,
    data: Data = None,
    json_output: Json = False,
) -> int:
    """Find the most similar objects.

    The nearest objects of a collection to one of its own or to those of a file; exact, the query itself left out.

    \b
    Examples:
      albireo search --id 0266-51630-0168 -k 5
      albireo search --collection desi --file my-spectrum.fits
    """
    if (id is None) == (not file):
        raise typer.BadParameter("give one of --id and --file", param_hint="--id / --file")
    options = reading_options(reading)
    core = open_core(settings_of(model, data, preprocessing=preprocessing))
    failed: list[Any] = []
    if id is not None:
        answers = [(id, core.search_id(collection, id, k))]
    else:
        batches = subject_batches(expanded(file or []), options, as_one, join)
        embedded, found = core.search_subjects(collection, [s for batch in batches for s in batch], k)
        failed = [outcome for outcome in embedded.outcomes if outcome.error]
        pairs = zip(embedded.outcomes, found, strict=True)
        answers = [(outcome.subject.id or "?", near) for outcome, near in pairs if outcome.error is None]
    results = [
        {"query": name, "hits": [asdict(hit) for hit in near.hits], "short_reason": near.short_reason}
        for name, near in answers
    ]
    body = {"collection": collection, "exact": True, "k": k, "results": results, "errors": errors_of(failed)}
    tell(body, neighbours_text(results), None, json_output)
    core.close()
    return 1 if failed else 0


command(app, "predict")(predict)
command(app, "generate")(generate)
command(app, "evaluate")(evaluate)
command(app, "simulate")(simulate)
command(app, "verify-checkpoint")(verify_checkpoint)
command(app, "doctor")(doctor)


@command(app, "serve")
def serve(
    *,
    open_core: OpenCore,
    host: Annotated[str | None, typer.Option("--host", help="address to listen on (ALBIREO_HOST)")] = None,
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535, help="port (ALBIREO_PORT)")] = None,
    grpc_port: Annotated[
        int | None, typer.Option("--grpc-port", min=0, max=65535, help="port of gRPC, 0: none (ALBIREO_GRPC_PORT)")
    ] = None,
    model: Model = None,
    preprocessing: Preprocessing = None,
    data: Data = None,
    json_output: Json = False,
) -> int:
    """Serve HTTP and gRPC.

    Every operation is described at /docs, those of gRPC in docs/grpc.md. Ready when /readyz says so.

    \b
    Examples:
      albireo serve
      albireo serve --port 9000 --grpc-port 9001 --data /srv/albireo
    """
    from albireo.service.app import create_app
    from albireo.service.logs import configure
    from albireo.service.server import run
    from albireo.service.settings import GRPC_PORT
    from albireo.service.tls import Tls
    from albireo.tokenizers.checkpoint import Checkpoint

    settings = settings_of(model, data, preprocessing=preprocessing, host=host, port=port, grpc_port=grpc_port)
    if settings.grpc_port is None:
        settings = settings.model_copy(update={"grpc_port": GRPC_PORT})
    Checkpoint(settings.model_folder)  # A folder that is no checkpoint is told now, not by /readyz.
    tls = Tls.of(settings)
    address = f"http{'s' if tls else ''}://{settings.host}:{settings.port}"
    grpc = f"{settings.host}:{settings.grpc_port}" if settings.grpc_port else None
    line = {"address": address, "grpc": grpc, "model": str(settings.model_folder)}
    line["collections"] = str(settings.collections_file)
    if json_output:
        print_json(line)
    else:
        beside = f", gRPC on {grpc}" if grpc else ""
        print(f"Albireo on {address}{beside}  (try {address}/docs; stop with Ctrl-C)", flush=True)
    configure(settings.log_format, settings.log_level)
    secured = tls.uvicorn() if tls else {}
    run(create_app(open_core(settings), settings), settings.host, settings.port, **secured)
    return 0


@command(app, "demo")
def demo(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILES...]", help="files of yours, beside the samples")
    ] = None,
    *,
    out: Annotated[Path, typer.Option("--out", help="the picture to write")] = Path("demo.png"),
    model: Model = None,
    json_output: Json = False,
) -> int:
    """Show the whole road on samples.

    Starts the service, sends it sample observations and FILES, searches, and draws the query beside its neighbours.

    \b
    Examples:
      albireo demo
      albireo demo spec-0266-51630-0168.fits --out mine.png
    """
    from albireo.service.demo import run_demo

    return run_demo(files or [], out, settings_of(model).model_folder, json_output)


def main() -> None:
    """The entry point `albireo`."""
    try:
        app()
    except BrokenPipeError:
        # The reader of a pipe has gone (`albireo ... | head`): nothing is left to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
