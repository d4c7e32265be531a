"""What commands of the command line are made of: how one is registered, and the options that several have."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from albireo.observations.errors import AlbireoError
from albireo.service.printing import print_error

if TYPE_CHECKING:
    from albireo.service.core import Core
    from albireo.service.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="print one JSON document instead of text")]
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
