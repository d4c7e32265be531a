"""What one object of each kind costs on this machine: read, tokenize, encode; alone, and in batches of some kinds.

    python -m benchmarks.objects [--repeat 15] [--json]

In batches are 16 objects with everything, and 1,000 with photometry only. Files are written from the simulated sky into
a temporary folder, in the surveys' layouts. Times are medians in milliseconds of an object; a GEMM probe before and
after tells how steady the machine was.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from albireo.models.engine import Tokens
from albireo.models.torch_engine import TorchEngine
from albireo.observations.observation import Observation
from albireo.observations.reading import read_files
from albireo.observations.sky import group, simulate
from albireo.observations.sky_files import write_cutout, write_desi, write_photometry, write_sdss
from albireo.observations.source import Source
from albireo.tokenizers.checkpoint import MINI
from benchmarks.measuring import VOID_EXIT, gemm_rate, seconds, steady, use_all_cores

BATCH = 16


def read(paths: list[Path]) -> list[Observation]:
    """Observations of files, all of which must be readable."""
    reports = read_files([Source.from_path(path) for path in paths])
    observations = [item for report in reports for item in report.observations]
    assert observations, [report.error or report.items for report in reports]
    return observations


def tokens_of(engine: TorchEngine, observations: list[Observation]) -> list[Tokens]:
    items = engine.tokenize(observations)
    assert all(isinstance(item, Tokens) for item in items), items
    return [item for item in items if isinstance(item, Tokens)]


def survey_files(folder: Path) -> dict[str, list[Path]]:
    """One object of each kind, as files."""
    sky = list(simulate(300, np.random.default_rng(1)))
    full = replace(next(o for o in sky if {"tok_spectrum_desi", "tok_spectrum_sdss"} <= o.data.keys()), id="1")
    files = {kind: [folder / name] for kind, name in (
        ("photometry", "photometry.ecsv"), ("image", "cutout.fits"), ("SDSS spectrum", "spec.fits"),
        ("DESI spectrum", "coadd.fits"),
    )}  # fmt: skip
    write_photometry([full], files["photometry"][0])
    write_cutout(full, files["image"][0])
    write_sdss(full, files["SDSS spectrum"][0])
    write_desi([full], files["DESI spectrum"][0])
    return files | {"everything": [path for paths in files.values() for path in paths]}


def main() -> int:
    """Command line: see the module's first lines. Exit code 3: the machine was unsteady."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=MINI, help="default: the shipped albireo-mini")
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    use_all_cores()
    engine = TorchEngine.open(args.checkpoint)
    before = gemm_rate()
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        for kind, paths in survey_files(Path(name)).items():
            observations = read(paths)
            data = {key: payload for o in observations for key, payload in o.data.items() if key in engine.inputs}
            one = [replace(observations[0], data=data)]
            tokens = tokens_of(engine, one)
            rows[kind] = {
                "tokens": tokens[0].n_tokens,
                "read_ms": 1e3 * median(seconds(lambda p=paths: read(p)) for _ in range(args.repeat)),
                "tokenize_ms": 1e3 * median(seconds(lambda o=one: tokens_of(engine, o)) for _ in range(args.repeat)),
                "encode_ms": 1e3 * median(seconds(lambda t=tokens: engine.embed(t)) for _ in range(args.repeat)),
            }
    full = [replace(one[0], id=str(i)) for i in range(BATCH)]
    tokens = tokens_of(engine, full)
    batch = {
        "tokenize_ms": 1e3 / BATCH * median(seconds(lambda: tokens_of(engine, full)) for _ in range(args.repeat)),
        "encode_ms": 1e3 / BATCH * median(seconds(lambda: engine.embed(tokens)) for _ in range(args.repeat)),
    }
    many = [
        replace(o, data={key: p for key, p in o.data.items() if group(key) == "photometry"})
        for o in simulate(1000, np.random.default_rng(2))
    ]
    tokens = tokens_of(engine, many)
    thousand = {
        "tokenize_s": median(seconds(lambda: tokens_of(engine, many)) for _ in range(5)),
        "encode_s": median(seconds(lambda: engine.embed(tokens)) for _ in range(5)),
    }
    after = gemm_rate()
    code = 0 if steady(before, after) else VOID_EXIT
    if args.json:
        print(
            json.dumps(
                {"objects": rows, "batch_16": batch, "photometry_1000": thousand, "gemm_gflops": [before, after]},
                indent=2,
            )
        )
        return code
    print(f"{engine.name}, {torch.get_num_threads()} threads, medians of {args.repeat}")
    print(f"{'':15}{'tokens':>8}{'read ms':>10}{'tokenize ms':>13}{'encode ms':>11}")
    for kind, row in rows.items():
        print(f"{kind:15}{row['tokens']:8.0f}{row['read_ms']:10.1f}{row['tokenize_ms']:13.1f}{row['encode_ms']:11.1f}")
    print(f"everything, in batches of {BATCH}: {batch['tokenize_ms']:.1f} ms + {batch['encode_ms']:.1f} ms an object")
    print(
        f"1,000 photometry-only objects: tokenize {thousand['tokenize_s']:.2f} s, encode {thousand['encode_s']:.2f} s"
    )
    print(f"GEMM probe {before:.0f} -> {after:.0f} GFLOP/s" + (": unsteady, the figures are VOID" if code else ""))
    return code


if __name__ == "__main__":
    sys.exit(main())
