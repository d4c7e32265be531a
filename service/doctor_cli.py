"""`albireo doctor`: the settings explained, the machine looked at."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from albireo.observations.errors import AlbireoError
from albireo.service.commands import Data, Json, Model, OpenCore, settings_of
from albireo.service.printing import plural, print_json

if TYPE_CHECKING:
    from albireo.service.doctor import Finding

MARKS = {"ok": "ok", "warning": "warning", "error": "ERROR"}


def doctor(
    *,
    open_core: OpenCore,
    quick: Annotated[bool, typer.Option("--quick", help="do not open the model")] = False,
    model: Model = None,
    data: Data = None,
    json_output: Json = False,
) -> int:
    """Explain the settings and check the machine.

    Looks at all that the service needs, and says what to do about what does not work. The model is opened, and has to
    compute its known answer. Exit code 1 if something that is needed fails; a warning is no failure.

    \b
    Examples:
      albireo doctor
      albireo doctor --quick --json
    """
    from albireo.service.doctor import Checked, Finding, examine, explained

    try:
        settings = settings_of(model, data)
    except AlbireoError as error:
        wrong = Finding("settings", "error", f"{error.field}: {error.message}", error.fix)
        return _tell([], [wrong], json_output)
    rows = explained(settings, [name for name, value in (("model", model), ("data_folder", data)) if value is not None])
    if not json_output:
        print("Settings\n")
        for row in rows:
            print("\n".join(_setting(row)))
        print("\nChecks\n")
    found = []
    core = open_core(settings)
    try:
        for finding in examine(Checked(settings, core), with_model=not quick):
            found.append(finding)
            if not json_output:
                print("\n".join(_lines(finding)), flush=True)
    finally:
        core.close()
    return _tell(rows, found, json_output, told=True)


def _tell(rows: list[dict[str, Any]], found: list[Finding], as_json: bool, told: bool = False) -> int:
    failed = sum(finding.status == "error" for finding in found)
    warned = sum(finding.status == "warning" for finding in found)
    if as_json:
        print_json({"ok": not failed, "settings": rows, "checks": [vars(finding) for finding in found]})
    else:
        if not told:
            print("\n".join(line for finding in found for line in _lines(finding)))
        print(f"\n{plural(failed, 'error')}, {plural(warned, 'warning')}")
    return 1 if failed else 0


def _setting(row: Mapping[str, Any]) -> list[str]:
    value = "none" if row["value"] is None else row["value"] if row["value"] != "" else '""'
    head = f"  {row['variable']} = {value}" + ("" if row["from"] == "default" else f"  ({row['from']})")
    return [head, *textwrap.wrap(row["meaning"], 110, initial_indent="      ", subsequent_indent="      ")]


def _lines(finding: Finding) -> list[str]:
    lines = [f"  {MARKS[finding.status]:8} {finding.name:13} {finding.detail}"]
    return lines + ([f"{'':25}to do: {finding.fix}"] if finding.status != "ok" and finding.fix else [])
