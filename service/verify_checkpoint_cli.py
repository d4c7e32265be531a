"""`albireo verify-checkpoint`: does a checkpoint compute what it should, on observations that everybody has?"""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from albireo.observations.errors import AlbireoError
from albireo.service.commands import Json, settings_of
from albireo.service.models_cli import Which
from albireo.service.printing import print_json, progress_bar

if TYPE_CHECKING:
    from albireo.service.subjects import Subject
    from albireo.service.verify_checkpoint import Check, Evidence, Found

MARKS = {"passed": ("green", "passed"), "failed": ("bold red", "FAILED"), "not possible": ("dim", "not here")}
"""State -> style and word in the table."""

WIDTH = 120
"""Columns of the table where there is no terminal."""


def verify_checkpoint(
    model: Which,
    *,
    also: Annotated[
        list[Path] | None,
        typer.Option(
            "--also",
            metavar="FILE",
            help="figures of these too: files or folders that state class and redshift, as SDSS spectra do (repeat it)",
        ),
    ] = None,
    package: Annotated[
        bool, typer.Option("--package/--no-package", help="compare with polymathic-aion, if it is installed")
    ] = True,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="write the report there, as JSON")] = None,
    json_output: Json = False,
) -> int:
    """Check that a checkpoint computes what it should.

    Files: layout, sha256, tensors, modalities, vocabularies, size. Codecs: grids and codebooks, numbers there and back.
    Meaning: images and spectra come back from tokens, a hidden flux is foretold, the redshift of a spectrum is found,
    neighbours share a class. Then what the checkpoint itself ships as its answers (recipe.json), and the tokens, states
    and logits of the package polymathic-aion where it is installed. Each check says what is expected, where that is
    from, and what was measured. Exit code 1 if one failed; docs/checkpoints.md says what a failure means.

    \b
    Examples:
      albireo verify-checkpoint aion-base --out report.json
      albireo verify-checkpoint aion-base --also sdss-spectra/
      albireo verify-checkpoint albireo-mini
      albireo verify-checkpoint ./my-checkpoint --no-package
    """
    from albireo.service.verify_checkpoint import Evidence, objects_of, verify
    from albireo.tokenizers.hub import resolve

    evidence = Evidence(resolve(model), package, settings_of().threads)
    # What cannot be read is told now, not after minutes.
    rows = checks_of(evidence, objects_of(also) if also else ())
    found = []
    with progress_bar("verifying", len(rows)) as progress:
        for one in verify(rows, evidence):
            found.append(one)
            progress(1)
    report = report_of(model, evidence, found)
    if out is not None:
        out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    if json_output:
        print_json(report)
    else:
        _print_table(found)
        print(report["summary"])
        if out is not None:
            print(f"\nreport: {out}")
    return 0 if report["ok"] else 1


def checks_of(evidence: Evidence, also: Sequence[Subject] = ()) -> tuple[Check, ...]:
    """Every check of a checkpoint, in the order in which they are made."""
    from albireo.service import recipe, verify_checkpoint_figures, verify_checkpoint_package, verify_checkpoint_rows

    recorded = recipe.Recipe.found(evidence.folder)
    figures = recorded.figures if isinstance(recorded, recipe.Recipe) else None
    return (
        *verify_checkpoint_rows.ROWS,
        *verify_checkpoint_package.ROWS,
        *verify_checkpoint_figures.checks(figures),
        *(verify_checkpoint_figures.checks_of_files(also) if also else ()),
        *recipe.checks(recorded),
    )


def report_of(model: str, evidence: Evidence, found: Sequence[Found]) -> dict[str, Any]:
    """Everything that was found, as plain data, with a summary in Markdown to paste into an issue."""
    tally = Counter[str](one.state for one in found)
    counts = {state: tally[state] for state in MARKS}
    about = {"checkpoint": _identity(evidence), "software": _software()}
    return {
        "model": model,
        "folder": str(evidence.folder),
        "ok": not counts["failed"],
        "counts": counts,
        **about,
        "checks": [one.as_data() for one in found],
        "summary": "\n".join(_summary(model, counts, about, found)),
    }


def _identity(evidence: Evidence) -> dict[str, Any]:
    """Which weights they are; as much of it as the folder tells."""
    from albireo.service.verify_checkpoint import NotPossible

    try:
        checkpoint = evidence.checkpoint
        manifest = checkpoint.manifest
        return {
            "name": checkpoint.name,
            "repository": f"{manifest.repository}@{manifest.revision}" if manifest else None,
            "fingerprint": checkpoint.fingerprint,
            "preprocessing": checkpoint.preprocessing,
        }
    except (AlbireoError, NotPossible):
        return {"name": evidence.folder.name, "repository": None, "fingerprint": None, "preprocessing": None}


def _software() -> dict[str, str]:
    from importlib.metadata import version

    named = {name: version(name) for name in ("albireo", "torch", "numpy")}
    return named | {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}


def _summary(model: str, counts: Mapping[str, int], about: Mapping[str, Any], found: Sequence[Found]) -> Iterator[str]:
    which = about["checkpoint"]
    yield f"**albireo verify-checkpoint {model}**: {counts['passed']} passed, {counts['failed']} failed, " + (
        f"{counts['not possible']} not possible here\n"
    )
    yield f"- checkpoint {which['repository'] or which['name']}, fingerprint {which['fingerprint'] or 'unknown'}"
    yield f"- {', '.join(f'{name} {version}' for name, version in about['software'].items())}"
    for one in found:
        if one.state == "failed":
            yield f"- FAILED {one.group}, {one.name}: expected {one.expected} ({one.source}); measured {one.measured}"
    left = [f"{one.name} ({one.measured})" for one in found if one.state == "not possible"]
    if left:
        yield f"- not possible here: {'; '.join(left)}"


def _print_table(found: Sequence[Found]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console = console if console.is_terminal else Console(width=WIDTH)
    table = Table(pad_edge=False, expand=False, show_lines=False)
    for heading, share in (("check", 4), ("expected", 8), ("measured", 8), ("", None)):
        table.add_column(heading, overflow="fold", ratio=share, no_wrap=share is None)
    group = ""
    for one in found:
        if one.group != group:
            group = one.group
            table.add_section()
            table.add_row(Text(group, style="bold"))
        style, word = MARKS[one.state]
        table.add_row(*(Text(text) for text in (one.name, one.expected, one.measured)), Text(word, style=style))
    console.print(table)
