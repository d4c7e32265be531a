"""The table and the roofline of a results file of `benchmarks.aion`.

    python -m benchmarks.report results.jsonl                          prints the table
    python -m benchmarks.report results.jsonl --page docs/benchmarks.md  writes it there, and roofline.png beside

Of a case that was measured several times the last one counts. VOID cases are named and have no figures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.cases import OURS

BEGIN, END = "<!-- results: written by benchmarks.report -->", "<!-- end of results -->"

HEAD = ("case", "beside", "ours", "theirs", "ratio (95 %)", "peak memory, ours", "theirs", "GEMM share")

Record = dict[str, Any]


def latest(lines: Iterable[str]) -> list[Record]:
    """The last record of every case, batch, dtype of ours and shape, in the order of the first."""
    found: dict[tuple[object, ...], Record] = {}
    for line in lines:
        record = json.loads(line)
        found[record["checkpoint"], record.get("case"), record.get("batch"), record["dtype"]] = record
    return list(found.values())


def large(record: Mapping[str, Any]) -> str:
    """What `benchmarks.xlarge` found, in a sentence."""
    load, first, embed = (_time(record[f"{what}_seconds"]) for what in ("load", "first_embed", "embed"))
    return (
        f"{record['checkpoint']}, {record['parameters_in_file'] / 1e9:.2f} billion parameters, kept as "
        f"{record['dtype']}: open in {load}, {record['tokens']} tokens embedded in {embed} (the first time {first}); "
        f"at most {record['peak_bytes'] / 2**30:.1f} GiB resident, {record['kept_bytes'] / 2**30:.2f} GiB of weights "
        f"kept to embed, anonymous memory while loading {record['anonymous_over_kept']:.3f} of that.\n"
    )


def title(record: Mapping[str, Any]) -> str:
    size = f"batch {record['batch']}" if record["batch"] else f"{record['objects']} objects"
    weights = {"float32": "fp32", "bfloat16": "bf16"}[record["dtype"]]
    if record.get("compute", record["dtype"]) != record["dtype"]:
        weights += ", products in fp32"
    marks = "" if record["quotable"] else " **VOID**" if record["void"] else " (not quotable)"
    shape = "" if record["checkpoint"].startswith("aion-base") else f", {record['checkpoint']}"
    return f"{record['case']}, {size}, {weights}{shape}{marks}"


def rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A line of the table for each side that ours is compared with."""
    if record["void"]:
        return [(title(record), *[""] * (len(HEAD) - 1))]
    memory = record.get("memory", {})
    share = f"{record['gemm_share']:.0%}" if "gemm_share" in record else ""
    medians = {side: values[1] for side, values in record["quartiles"].items()}
    return [
        (
            title(record),
            side,
            _time(medians[OURS]),
            _time(medians[side]),
            f"{one['value']:.2f} ({one['low']:.2f} to {one['high']:.2f})",
            _size(memory.get(OURS)),
            _size(memory.get(side)),
            share,
        )
        for side, one in record["ratios"].items()
    ]


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _size(memory: Mapping[str, int] | None) -> str:
    return f"{memory['peak_bytes'] / 2**20:.0f} MiB" if memory else ""


def table(records: Sequence[Record]) -> str:
    """Markdown: the machines, a line for each comparison, and what is no comparison."""
    machines = list(dict.fromkeys(_machine(record) for record in records))
    compared = [record for record in records if "case" in record]
    lines = [HEAD, ["---"] * len(HEAD), *(row for record in compared for row in rows(record))]
    grid = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    same = [r for r in compared if "identical_tokens" in r and not r["void"]]
    shares = [f"{r['case']}, batch {r['batch']}: {r['identical_tokens']:.3%}" for r in same]
    tokens = f"\nTokens equal to the package's: {'; '.join(shares)}.\n" if shares else ""
    others = "".join("\n" + large(record) for record in records if "case" not in record)
    return "\n".join(machines) + "\n\n" + grid + tokens + others


def _machine(record: Mapping[str, Any]) -> str:
    one = record["machine"]
    flags = ", ".join(one["flags"]) or "no vector instructions that are told"
    return (
        f"{one['processor']}, {one['threads']} threads, {flags}, {one['memory_gib']} GiB, torch {one['torch']}, "
        f"Python {one['python']}.  "
    )


def roofline(records: Sequence[Record]) -> Figure:
    """GFLOP/s against operational intensity: what memory and the library's GEMM allow, and where each case is.

    The ceiling is the fastest GEMM rate of the block's shapes among the cases, the slope the fastest copy.
    """
    points = [record for record in records if "gemm_gflops" in record and not record["void"]]
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    if points:
        _roof(axes, points)
    for n, record in enumerate(points):
        intensity, color = record["flop"] / record["bytes"], f"C{n}"
        axes.plot(intensity, record["gflops"], "o", color=color, label=title(record).replace("**", ""))
        for values in (v for side, v in record["quartiles"].items() if side != OURS):
            axes.plot(intensity, record["flop"] / values[1] / 1e9, "o", mfc="none", mec=color)
    axes.set(
        xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="GFLOP / s", title="Encoder: ours, package (open)"
    )
    if points:
        axes.legend(fontsize=7, loc="lower right")
    return figure


def _roof(axes: Axes, points: Sequence[Record]) -> None:
    ceiling = max(record["gemm_gflops"] for record in points)
    slope = max(record["memory_gb_per_second"] for record in points)
    intensities = [record["flop"] / record["bytes"] for record in points]
    x = np.geomspace(min(*intensities, ceiling / slope) / 3, max(*intensities, ceiling / slope) * 3, 200)
    axes.plot(x, np.minimum(slope * x, ceiling), "k-", lw=1)
    axes.annotate(f"GEMM {ceiling:.0f} GFLOP/s", (x[-1], ceiling), ha="right", va="bottom", fontsize=8)
    axes.annotate(f"memory {slope:.0f} GB/s", (x[0], slope * x[0]), ha="left", va="bottom", fontsize=8)


def write_page(page: Path, records: Sequence[Record]) -> None:
    """Put the table between the marks of a page, and draw roofline.png beside it."""
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} has no marks for the results")
    picture = "\n![Roofline](roofline.png)\n"
    page.write_text(f"{before}{BEGIN}\n{table(records)}{picture}{END}{after}")
    roofline(records).savefig(page.with_name("roofline.png"), dpi=120)


def main() -> None:
    """Command line: see the module's first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    records = latest(args.results.read_text().splitlines())
    print(table(records))
    if args.page:
        write_page(args.page, records)


if __name__ == "__main__":
    main()
