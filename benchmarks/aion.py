"""Albireo beside the released package `polymathic-aion`, on random weights in AION-1's shapes.

    python -m benchmarks.aion --case image --batch 8        one case
    python -m benchmarks.aion --list                        what there is
    python -m benchmarks.aion --all --out results.jsonl     everything, each finished case a line of JSON
    python -m benchmarks.aion --sweep-pass-tokens 600,1200  our time against the tokens of a pass

Rounds alternate between the sides; ratios are of medians, at least 15 rounds make them quotable. Peak memory of each
side is that of a process of its own which opens it and calls it once. Exit code 3: figures are VOID, because the
machine's speed changed. The rival in bfloat16 is left out by default where the processor does not multiply it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from albireo.models.cpu import fast_bf16
from albireo.models.engine import Tokens
from albireo.models.torch_engine import DTYPES, PASS_TOKENS, TorchEngine
from benchmarks.cases import ENCODER, OURS, TOKENIZER, Case, Options, draw_tokens, encoder_case, stream, tokenizer_case
from benchmarks.checkpoints import BASE, QUICK, make, their_codecs
from benchmarks.files import files_case
from benchmarks.measuring import (
    ROUNDS,
    VOID_EXIT,
    PeakAnonymous,
    alternate,
    gemm_rate,
    machine,
    quartiles,
    ratio,
    status,
    steady,
    use_all_cores,
)

CASES: dict[str, Callable[[Options], Case]] = {
    **{name: lambda options, name=name: encoder_case(name, options) for name in (*ENCODER, "mixed")},  # type: ignore[misc]
    **{name: lambda options, name=name: tokenizer_case(name, options) for name in TOKENIZER},  # type: ignore[misc]
    "files": files_case,
}  # fmt: skip
ONE_SIZE = ("mixed", "files")
"""Cases that have their own number of objects."""

BATCHES = (1, 8)
QUICK_ROUNDS, QUICK_STREAM = 3, 6
RIVALS = {"fp32": ("float32",), "bf16": ("bfloat16",), "both": ("float32", "bfloat16")}
NO_BF16 = (
    "this processor does not multiply bfloat16: not measured are the package in it (ask with --rival both), our "
    "transformer kept in it, and the reduced mode of our tokenizers (ask with --dtype bfloat16)"
)

Record = dict[str, Any]


def tell(line: str) -> None:
    """Progress, beside the results."""
    print(f"  {line}", file=sys.stderr, flush=True)


def measure(
    name: str, options: Options, rounds: int, budget: float | None = None, probe: Callable[[], float] = gemm_rate
) -> Record:
    """One case, timed: what goes into the results file, without memory. `probe` tells the machine's speed."""
    case = CASES[name](options)
    calls = {side: open_side() for side, open_side in case.sides.items()}
    before = probe()
    taken = alternate(calls, rounds, budget, case.before, case.between, tell)
    after = probe()
    ours = taken[OURS]
    done = len(ours)
    facts = case.facts(median(ours))
    return {
        "case": name,
        "batch": None if name in ONE_SIZE else options.batch,
        "objects": case.objects,
        "rounds": done,
        "void": not steady(before, after),
        "quotable": done >= ROUNDS and steady(before, after) and options.folder.name.startswith(BASE.name),
        "checkpoint": options.folder.name,
        "probe_gflops": [before, after],
        "seconds": taken,
        "quartiles": {side: quartiles(times) for side, times in taken.items()},
        "ratios": {side: ratio(times, ours) for side, times in taken.items() if side != OURS},
        "machine": machine(),
    } | facts


def one_call(name: str, options: Options, side: str) -> Record:
    """Peak memory of this process after opening one side and calling it once.

    Ours opens tokenizers with the transformer; so does the package here, as a user has both.
    """
    case = CASES[name](options)
    with PeakAnonymous() as anonymous:
        codecs = their_codecs(options.folder) if side.startswith("package") and name in (*ENCODER, "mixed") else {}
        call = case.sides[side]()
        call(0)
    del codecs
    return {"peak_bytes": status("VmHWM"), "anonymous_bytes": anonymous.start + anonymous.peak}


def memory(name: str, options: Options, sides: Sequence[str], arguments: Sequence[str]) -> dict[str, Record]:
    """Peak memory of each side, each in a process of its own."""
    found = {}
    for side in sides:
        tell(f"memory: {side}")
        command = [sys.executable, "-m", "benchmarks.aion", "--case", name, "--batch", str(options.batch)]
        done = subprocess.run(
            [*command, *arguments, "--memory-of", side], stdout=subprocess.PIPE, check=True, text=True
        )
        found[side] = json.loads(done.stdout)
    return found


def describe(record: Mapping[str, Any]) -> str:
    """A case in words and figures."""
    batch = f", batch {record['batch']}" if record["batch"] else f", {record['objects']} objects"
    head = f"{record['case']}{batch}: {record['rounds']} rounds"
    low, high = record["probe_gflops"]
    lines = []
    if record["void"]:
        head += f"  VOID: the GEMM probe went from {low:.0f} to {high:.0f} GFLOP/s"
    elif not record["quotable"]:
        head += "  NOT QUOTABLE: " + ("a shape to try things with" if record["rounds"] >= ROUNDS else "too few rounds")
    for side, (first, middle, third) in record["quartiles"].items():
        rate = record["objects"] / middle
        line = f"  {side:30} {middle:9.4g} s ({first:.4g} to {third:.4g}) {rate:9.4g} objects/s"
        if side in record["ratios"]:
            one = record["ratios"][side]
            line += f"   {one['value']:.2f} x ours ({one['low']:.2f} to {one['high']:.2f})"
        if side in record.get("memory", {}):
            line += f"   peak {record['memory'][side]['peak_bytes'] / 2**20:.0f} MiB"
        lines.append(line)
    if "gemm_share" in record:
        reached = f"{record['gflops']:.1f} of {record['gemm_gflops']:.1f} GFLOP/s ({record['compute']})"
        lines.append(f"  share of the GEMM rate of the block's own shapes: {record['gemm_share']:.1%}, {reached}")
    if "identical_tokens" in record:
        lines.append(f"  identical tokens: {record['identical_tokens']:.4%}; {record['codes']} different codes")
    return "\n".join([head, *lines])


def sweep(options: Options, budgets: Sequence[int], rounds: int) -> None:
    """Our time for 8 images and for the mixed stream, by the tokens that a pass may have."""
    engine, usual = TorchEngine.open(options.folder, dtype=options.dtype), PASS_TOKENS["cpu"]
    for name, objects in {"image, batch 8": [ENCODER["image"]] * 8, "mixed": stream(options.stream)}.items():
        tokens = draw_tokens(options.folder, objects)

        def call(budget: int, tokens: list[Tokens] = tokens) -> None:
            PASS_TOKENS["cpu"] = budget
            engine.embed(tokens)

        taken = alternate({str(n): lambda number, n=n, call=call: call(n) for n in budgets}, rounds, progress=tell)
        best = min(median(times) for times in taken.values())
        print(f"{name}: seconds by tokens of a pass")
        for budget, times in taken.items():
            print(f"  {budget:>7}  {median(times):9.4g} s   {median(times) / best:.3f} x the best", flush=True)
    PASS_TOKENS["cpu"] = usual


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--case", choices=CASES)
    what.add_argument("--all", action="store_true")
    what.add_argument("--list", action="store_true")
    what.add_argument("--sweep-pass-tokens", metavar="N,N,...", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--batch", type=int, default=1, help="objects of a call; `--all` takes 1 and 8")
    parser.add_argument("--rounds", type=int, help=f"alternations; default {ROUNDS}, below that not quotable")
    parser.add_argument("--rival", choices=RIVALS, help="what the package computes in")
    parser.add_argument("--dtype", choices=DTYPES, help="of ours; default: all that are fast here")
    parser.add_argument("--files", type=int, default=14, help="files in a round of the case `files`")
    parser.add_argument("--budget-minutes", type=float, help="of a case: rounds that would not fit are left out")
    parser.add_argument("--quick", action="store_true", help="a tiny shape and 3 rounds, to try the benchmark itself")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--work", type=Path, help="where checkpoints are kept; default: a temporary folder")
    parser.add_argument("--out", type=Path, help="file to which each finished case is appended as a line of JSON")
    parser.add_argument("--memory-of", metavar="SIDE", help=argparse.SUPPRESS)
    return parser


def plan(args: argparse.Namespace) -> list[tuple[str, int, str]]:
    """(case, batch, dtype of ours) of everything asked for."""
    names = CASES if args.all else [args.case]
    dtypes = [args.dtype] if args.dtype else ["float32", *["bfloat16"] * fast_bf16()]
    return [
        (name, batch, dtype)
        for name in names
        for batch in ((1,) if name in ONE_SIZE else BATCHES if args.all else (args.batch,))
        for dtype in dtypes
    ]


def run(args: argparse.Namespace, work: Path, probe: Callable[[], float] = gemm_rate) -> int:
    """Everything asked for; the exit code."""
    tell("making the checkpoint, unless it is there")
    work.mkdir(parents=True, exist_ok=True)
    rivals = RIVALS[args.rival or ("both" if fast_bf16() else "fp32")]
    options = Options(make(work, QUICK if args.quick else BASE), rivals=rivals, files=args.files, work=work)
    options = replace(options, stream=QUICK_STREAM) if args.quick else options
    rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    if args.sweep_pass_tokens:
        sweep(replace(options, dtype=args.dtype or "float32"), args.sweep_pass_tokens, rounds)
        return 0
    if args.memory_of:
        batch_options = replace(options, batch=args.batch, dtype=args.dtype, rivals=RIVALS["both"])
        print(json.dumps(one_call(args.case, batch_options, args.memory_of)))
        return 0
    if args.rival is None and not fast_bf16():
        tell(NO_BF16)
    void = False
    for name, batch, dtype in plan(args):
        tell(f"{name}, batch {batch}, {dtype}")
        chosen = replace(options, batch=batch, dtype=dtype)
        record = measure(name, chosen, rounds, args.budget_minutes and 60 * args.budget_minutes, probe)
        if not args.no_memory:
            given = ["--work", str(work), "--files", str(args.files), "--dtype", dtype, *["--quick"] * args.quick]
            record["memory"] = memory(name, chosen, list(record["seconds"]), given)
        print(describe(record), flush=True)
        void = void or record["void"]
        if args.out:
            with args.out.open("a") as file:
                file.write(json.dumps(record | {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}) + "\n")
    return VOID_EXIT if void else 0


def main() -> int:
    """Command line: see the module's first lines."""
    args = arguments().parse_args()
    use_all_cores()
    if args.list:
        for name, batch, dtype in plan(argparse.Namespace(all=True, case=None, dtype=args.dtype)):
            print(name + ("" if name in ONE_SIZE else f" --batch {batch}") + f" --dtype {dtype}")
        return 0
    try:
        if args.work:
            return run(args, args.work)
        with tempfile.TemporaryDirectory() as name:
            return run(args, Path(name))
    except KeyboardInterrupt:
        tell("stopped; finished cases are kept")
        return 130


if __name__ == "__main__":
    sys.exit(main())
