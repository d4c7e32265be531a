"""What commands of the command line are made of: how one is registered, and the options that several have.

Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from albireo.observations.errors import AlbireoError, BadInput
from albireo.service.printing import print_error
from albireo.service.reading_flags import read_options
from albireo.tokenizers.preprocessing import PreprocessingName

if TYPE_CHECKING:
    from albireo.observations.options import ReadOptions
    from albireo.service.core import Core
    from albireo.service.settings import Settings
    from albireo.service.subjects import Subject

Json = Annotated[bool, typer.Option("--json", help="print one JSON document instead of text")]
Files = Annotated[list[Path], typer.Argument(metavar="FILES...", help="files, or folders of files", show_default=False)]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="a name that `albireo models ls` shows, or a folder (ALBIREO_MODEL)"),
]
Preprocessing = Annotated[
    PreprocessingName | None,
    typer.Option("--preprocessing", help="of the tokenizers, instead of the model's own (ALBIREO_PREPROCESSING)"),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="FOLDER", help="folder of the collections and of your own heads (ALBIREO_DATA_FOLDER)"
    ),
]
AsOne = Annotated[
    str | None,
    typer.Option("--as-one", metavar="ID", help="the files are measurements of one object, called ID"),
]
Join = Annotated[bool, typer.Option("--join", help="objects of the same id in several files are one object")]
Reading = dict[str, Any]
OpenCore = Callable[..., Any]


def command(group: typer.Typer, name: str) -> Callable[[Callable[..., int]], Callable[..., Any]]:
    """Register a command that returns its exit code; its AlbireoErrors are printed, with code 1.

    A command with a parameter `open_core` gets what makes a Core from settings: the context's object if it has one
    (another engine can be put there), else the checkpoint and collections of this machine.
    """

    def register(function: Callable[..., int]) -> Callable[..., Any]:
        signature = inspect.signature(function, eval_str=True)

        @functools.wraps(function)
        def run(ctx: typer.Context, **values: Any) -> None:
            if "open_core" in signature.parameters:
                values["open_core"] = ctx.obj or local_core
            try:
                code = function(**values)
            except AlbireoError as error:
                print_error(error, bool(values.get("json_output")))
                code = 1
            raise typer.Exit(code)

        context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        stated = [parameter for parameter in signature.parameters.values() if parameter.name != "open_core"]
        parameters = [context, *stated]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return group.command(name)(run)

    return register


def local_core(settings: Settings) -> Core:
    """The checkpoint and the collections of this machine, opened when they are needed."""
    from albireo.service.core import Core

    return Core.local(settings)


def reading_options(reading: Reading) -> ReadOptions:
    """ReadOptions from the flags; a value that cannot be is wrong usage."""
    try:
        return read_options(reading)
    except BadInput as error:
        raise typer.BadParameter(f"{error.message}", param_hint=f"--{(error.field or '').replace('_', '-')}") from error


def settings_of(model: str | None = None, data: Path | None = None, **more: Any) -> Settings:
    """The settings of the environment, with what the command line says over them."""
    from albireo.service.settings import read_settings

    stated = {"model": model, "data_folder": data} | more
    return read_settings().model_copy(update={key: value for key, value in stated.items() if value is not None})


def expanded(files: list[Path]) -> list[Path]:
    """The files named, folders opened up."""
    from albireo.service.files import expand

    return expand(files)


def subject_batches(paths: list[Path], options: ReadOptions, as_one: str | None, join: bool) -> Iterator[list[Subject]]:
    """The objects of the files, group by group; all at once if they are to be put together."""
    from albireo.service import subjects
    from albireo.service.files import read_batches

    batches = (list(batch.subjects) for batch in read_batches(paths, options))
    if as_one is None and not join:
        yield from batches
        return
    everything = [subject for batch in batches for subject in batch]
    yield subjects.join(everything) if as_one is None else [subjects.as_one(everything, as_one)]
