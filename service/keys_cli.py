"""`albireo keys`: keys for those who may use the service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from albireo.service.commands import Json, command
from albireo.service.printing import print_json

if TYPE_CHECKING:
    from albireo.service.keys import Role

keys_app = typer.Typer(no_args_is_help=True, help="API keys: who may use the service, and how much of it.")

RequestsMinute = Annotated[int | None, typer.Option(min=1, metavar="N", help="default: any number")]
RequestsDay = Annotated[int | None, typer.Option(min=1, metavar="N", help="the same of a day")]
TokensMinute = Annotated[int | None, typer.Option(min=1, metavar="N", help="what answers cost in all; default: any")]
TokensDay = Annotated[int | None, typer.Option(min=1, metavar="N", help="the same of a day")]


@command(keys_app, "new")
def new(
    *,
    name: Annotated[str, typer.Option("--name", help="whose key it is; logs and messages call it so")],
    role: Annotated[
        str, typer.Option("--role", metavar="read|write|admin", help="read: ask; write: also collections; admin: all")
    ] = "read",
    requests_per_minute: RequestsMinute = None,
    requests_per_day: RequestsDay = None,
    tokens_per_minute: TokensMinute = None,
    tokens_per_day: TokensDay = None,
    burst: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="requests at once; default: those of a minute")
    ] = None,
    json_output: Json = False,
) -> int:
    """Make a key.

    It is printed once and kept nowhere: what the file of keys gets is its hash, in the lines that are printed with it.

    \b
    Examples:
      albireo keys new --name pipeline --role write
      albireo keys new --name students --tokens-per-day 1000000 --requests-per-minute 60
    """
    from albireo.service.keys import Key, Quota, check_name, entry, new_key, sha256_of

    quota = Quota(requests_per_minute, requests_per_day, tokens_per_minute, tokens_per_day, burst)
    key = new_key()
    made = Key(check_name(name), sha256_of(key), _role(role), quota)
    if json_output:
        stated = {field: value for field, value in vars(quota).items() if value is not None}
        print_json({"key": key, "entry": {made.name: {"sha256": made.sha256, "role": made.role, **stated}}})
        return 0
    print(f"The key, which is shown only now:\n\n  {key}\n")
    print(f"Lines for the file that ALBIREO_KEYS_FILE names:\n\n{entry(made)}")
    return 0


@command(keys_app, "ls")
def ls(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="ALBIREO_KEYS_FILE if none is named", show_default=False)
    ] = None,
    *,
    json_output: Json = False,
) -> int:
    """List the keys of a file, and check it.

    \b
    Examples:
      albireo keys ls
      albireo keys ls keys.toml --json
    """
    from albireo.observations.errors import BadInput
    from albireo.service.keys import read_keys
    from albireo.service.settings import read_settings

    path = file or read_settings().keys_file
    if path is None:
        raise BadInput("option_invalid", "no file of keys is set", field="ALBIREO_KEYS_FILE", fix="name a file")
    keys = read_keys(path.expanduser()).values()
    if json_output:
        rows = [{"name": key.name, "role": key.role, "sha256": key.sha256, "quota": vars(key.quota)} for key in keys]
        print_json({"file": str(path), "keys": rows})
        return 0
    width = max((len(key.name) for key in keys), default=0)
    for key in keys:
        limits = [f"{value} {name.replace('_', ' ')}" for name, value in vars(key.quota).items() if value is not None]
        print(f"{key.name:{width}}  {key.role:5}  {', '.join(limits) or 'any amount'}")
    return 0


def _role(text: str) -> Role:
    from albireo.service.keys import ROLES

    for role in ROLES:
        if role == text:
            return role
    raise typer.BadParameter(f"one of {', '.join(ROLES)}", param_hint="--role")
