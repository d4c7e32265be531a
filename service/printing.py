"""Text for the terminal: what was read, errors with place and fix, neighbours; progress. Imports nothing heavy."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from albireo.observations.errors import AlbireoError

SHOWN = 3
"""Objects of a file that are described one by one; the rest are summed up."""


def validation_text(answer: Mapping[str, Any], paths: Sequence[str]) -> str:
    """What `validate` understood of each file; `paths` are the files as they were named."""
    items = iter(answer["items"])
    lines: list[str] = []
    for file, path in zip(answer["files"], paths, strict=True):
        lines += _file_lines(file, path)
        count = file["n_objects"] + (file["error"] is not None)
        objects = [next(items) for _ in range(count)]
        if file["error"] is None:
            lines += [line for item in objects[:SHOWN] for line in _object_lines(item)]
            lines += _summary_lines(objects[SHOWN:])
        lines.append("")
    usable = [item for item in answer["items"] if item["usable"]]
    known = sum(file["recognised"] for file in answer["files"])
    lines.append(
        f"{known} of {len(answer['files'])} files recognised, {len(usable)} of {len(answer['items'])} objects usable, "
        f"{answer['usage']['tokens']} tokens"
    )
    return "\n".join(lines)


def _file_lines(file: Mapping[str, Any], path: str) -> Iterator[str]:
    if file["companion_of"]:
        yield f"{path}: {file['format']}, read together with {file['companion_of']}"
        return
    failed = f", {file['n_failed']} failed" if file["n_failed"] else ""
    yield f"{path}: {file['format'] or 'not recognised'}, {plural(file['n_objects'], 'object')}{failed}"
    if file["error"]:
        yield from error_lines(file["error"], "  ", with_file=False)


def _object_lines(item: Mapping[str, Any]) -> Iterator[str]:
    if item["detected"] is None:
        yield f"  object {item['id'] or '(not read)'}: not usable"
        for error in item["errors"]:
            yield from error_lines(error, "    ", with_file=False)
        return
    where = (
        f"  RA {item['ra']:.6f} Dec {item['dec']:+.6f}" if item["ra"] is not None and item["dec"] is not None else ""
    )
    tokens = item["detected"]["n_tokens"]
    state = {"ok": f"usable, {plural(tokens, 'token')}", "degraded": f"usable in part, {plural(tokens, 'token')}"}
    yield f"  object {item['id']}{where}: {state.get(item['status'], 'not usable')}"
    for row in item["detected"]["modalities"]:
        cost = plural(row["n_tokens"], "token") if row["in_checkpoint"] else "not in the checkpoint"
        yield f"    {row['modality']} ({cost}): " + "; ".join(_facts(row))
    for name, extra in item["detected"]["extras"].items():
        yield f"    {name} (no modality, not used): " + "; ".join(_facts(extra))
    if item["qa_flags"]:
        yield "    QA flags: " + ", ".join(item["qa_flags"])
    if _labels(item["metadata"]):
        yield "    metadata: " + _labels(item["metadata"])
    for error in item["errors"]:
        yield from error_lines(error, "    ", with_file=False)


def _facts(row: Mapping[str, Any]) -> Iterator[str]:
    """The physical statements about one payload, in words."""
    if "value" in row:
        error = f" +- {row['error']:.6g}" if row["error"] is not None else ""
        yield f"{row['value']:.6g}{error} {row['unit']}".rstrip() if row["value"] is not None else "no value"
    elif "n_coefficients" in row:
        yield f"{row['n_coefficients']} coefficients, {row['unit']}"
    else:
        yield row["unit"] or "no unit"
    if "n_objects" in row:
        x, y, *_ = row["nearest"]
        yield f"{plural(row['n_objects'], 'object')}, the nearest to the centre at X {x}, Y {y}"
    if "covered_fraction" in row:
        yield f"objects on {row['covered_fraction']:.1%} of the pixels"
    if row.get("bands"):
        yield "bands " + " ".join(row["bands"])
    if "shape" in row:
        kept = f", kept {row['kept_fraction']:.1%} of the file's pixels" if row["kept_fraction"] < 1 else ""
        yield f"{' x '.join(map(str, row['shape']))} px of {row['pixel_scale']:.4g} arcsec{kept}"
    if "wavelength_range" in row:
        low, high = row["wavelength_range"]
        yield f"{low:.2f} to {high:.2f} Angstrom in vacuum (in the file: {row['medium']}), {row['frame']}"
    if "epochs" in row:
        start, end = row["time_range"]
        yield f"{plural(row['epochs'], 'epoch')}, {row['detections']} detected, MJD {start:.3f} to {end:.3f}"
        yield "zero points " + " ".join(f"{zp:g}" for zp in row["zero_points"]) + " " + " ".join(row["systems"])
    conventions = row.get("conventions") or ([row["convention"]] if row.get("convention") else [])
    if conventions:
        yield " / ".join(dict.fromkeys(_convention(convention) for convention in conventions))
    if "pixels_used" in row:
        yield f"{row['pixels_used']} pixels used, {row['pixels_masked']} masked"
    if row.get("median_flux") is not None:
        yield f"median flux {row['median_flux']:.6g}"
    if row.get("median_flux_by_band"):
        by_band = row["median_flux_by_band"].items()
        yield "by band " + " ".join(f"{band} {flux:.4g}" for band, flux in by_band if flux is not None)


def _convention(convention: Mapping[str, Any]) -> str:
    source = " ".join(str(convention[key]) for key in ("survey", "release", "system", "kind") if key in convention)
    return f"{source}, {'' if convention['extinction_corrected'] else 'not '}corrected for Galactic extinction"


def _summary_lines(items: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not items:
        return
    usable = sum(item["usable"] for item in items)
    yield f"  and {plural(len(items), 'more object')}: {usable} usable, {len(items) - usable} not (all of them: --json)"
    reasons = Counter(error["code"] for item in items for error in item["errors"])
    for code, count in reasons.most_common():
        yield f"    {code}: {plural(count, 'object')}"


def error_lines(error: Mapping[str, Any], indent: str = "", with_file: bool = True) -> Iterator[str]:
    """An error as code, place, message and fix."""
    parts = [error.get("file") if with_file else None, error.get("field")]
    where = " ".join(f"{part}:" for part in parts if part)
    yield f"{indent}{error['code']}: {where} {error['message']}".replace(":  ", ": ")
    if error.get("fix"):
        yield f"{indent}  fix: {error['fix']}"


def neighbours_text(results: Sequence[Mapping[str, Any]]) -> str:
    """The hits of each query as a table: rank, score, id, position, labels."""
    lines = []
    for result in results:
        lines.append(f"nearest to {result['query']}:")
        for rank, hit in enumerate(result["hits"], 1):
            where = f"{hit['ra']:10.5f} {hit['dec']:+10.5f}" if hit["ra"] is not None and hit["dec"] is not None else ""
            lines.append(
                f"  {rank:3d}  {hit['score']:+.4f}  {hit['id']:<28} {where:<21}  {_labels(hit['metadata'])}".rstrip()
            )
        if result["short_reason"]:
            lines.append(f"  only {len(result['hits'])}: {result['short_reason']}")
    return "\n".join(lines)


def predictions_text(rows: Sequence[Mapping[str, Any]], heads: Sequence[Mapping[str, Any]]) -> str:
    """What heads say, head by head: a line for each number or class of an object, then typicality and flags."""
    return "\n".join(line for head in heads for line in _head_lines(rows, head))


def _head_lines(rows: Sequence[Mapping[str, Any]], head: Mapping[str, Any]) -> Iterator[str]:
    yield f"{head['name']} ({head['task']}, {' '.join(filter(None, (head['origin'], head['version'])))})"
    answers = [(str(row["id"]), row["predictions"].get(head["name"])) for row in rows]
    table = [line for name, answer in answers if answer for line in _answer_cells(name, answer)]
    first = "class" if head["task"] == "classification" else "target"
    middle = ("probability",) if head["task"] == "classification" else ("value", "68 %", "95 %", "unit")
    table = [("object", first, *middle, "typicality", "flags"), *table]
    widths = [max(len(cells[i]) for cells in table) for i in range(len(table[0]))]
    for cells in table:
        yield "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()


def _answer_cells(who: str, answer: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The lines of one object under one head; typicality and flags stand in the first."""
    typicality = "" if answer["typicality"] is None else f"{answer['typicality']:.2f}"
    ends = (typicality, ", ".join(answer["flags"]))
    for number in answer["numbers"]:
        levels = [f"{span['low']:.5g} to {span['high']:.5g}" for span in number["intervals"]]
        yield (who, number["name"], f"{number['value']:.5g}", *levels, number["unit"], *ends)
        who, ends = "", ("", "")
    for name, probability in answer["classes"].items():
        yield (who, name, f"{probability:.3f}", *ends)
        who, ends = "", ("", "")


def _labels(metadata: Mapping[str, Any]) -> str:
    """Class and redshift, if they are known."""
    known = {key: metadata[key] for key in ("class", "redshift") if metadata.get(key) is not None}
    return ", ".join(f"{key} {v:.6g}" if isinstance(v, float) else f"{key} {v}" for key, v in known.items())


def plural(count: int, noun: str) -> str:
    """ "1 object", "2 objects"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, nothing elsewhere."""
    with counting_bar(what) as tell_of:
        so_far = 0
        tell_of(0, total)

        def advance(more: int) -> None:
            nonlocal so_far
            so_far += more
            tell_of(so_far, total)

        yield advance


@contextmanager
def counting_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal that is told (done, of how many), nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def errors_of(failed: list[Any]) -> list[dict[str, Any]]:
    return [{"id": outcome.subject.id, **outcome.error.as_dict()} for outcome in failed]


def tell(answer: dict[str, Any], text: str, hint: str | None, as_json: bool) -> None:
    """The answer of a command: as data, or as text with its errors on stderr."""
    if as_json:
        print_json(answer)
        return
    for error in answer["errors"]:
        print("\n".join(error_lines(error)), file=sys.stderr)
    print(text)
    if hint:
        print(hint)


def print_error(error: AlbireoError, as_json: bool) -> None:
    if as_json:
        print_json({"error": error.as_dict()})
        return
    print("\n".join(error_lines(error.as_dict())), file=sys.stderr)


def print_json(content: Any) -> None:
    from albireo.service.descriptions import plain

    print(json.dumps(plain(content), indent=2, ensure_ascii=False))
