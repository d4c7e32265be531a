"""AION-1 at its largest: 3.1 billion random parameters in one float32 file, kept as bfloat16.

    python -m benchmarks.xlarge --work FOLDER [--size aion-xlarge] [--dtype bfloat16] [--decoder]

Writes the file (12.4 GB, once) in the layout of the package's `save_pretrained`: names and shapes are those of the
package's own model, built without storage. Then, in a process of its own, opens it as the service does and embeds one
object of 857 tokens; with --decoder it also predicts a redshift, for which the decoder's weights are read. Prints
seconds, memory, and the anonymous memory while loading over the bytes of the weights kept, which is to be at most 1.15.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from albireo.models.torch_engine import DTYPES, TorchEngine
from albireo.observations.modalities import AION_KEYS
from albireo.tokenizers.checkpoint import WEIGHTS
from albireo.tokenizers.hub import SIZES
from benchmarks.cases import ENCODER, draw_tokens
from benchmarks.checkpoints import BASE, QUICK, save_codecs, tensors_of, write_large
from benchmarks.measuring import PeakAnonymous, machine, seconds, status, use_all_cores

MOST_RATIO = 1.15
"""Anonymous memory while loading over the bytes kept."""

LIMIT = 24 << 30


def config_of(size: str) -> dict[str, Any]:
    """The configuration of a size with all of AION-1's modalities; "quick" is a tiny one."""
    shape = QUICK.transformer if size == "quick" else SIZES[size].config
    return {"domains_in": list(AION_KEYS), "domains_out": list(AION_KEYS), **shape}


def write(work: Path, size: str) -> Path:
    """The folder of the checkpoint, written unless it is there."""
    folder, config = work / f"{size}-random-fp32", config_of(size)
    if (folder / WEIGHTS).exists():
        return folder
    work.mkdir(parents=True, exist_ok=True)
    need = sum(4 * _numel(shape) for shape in tensors_of(config).values())
    free = shutil.disk_usage(work).free
    if free < 1.05 * need:
        raise SystemExit(
            f"{work} has {free / 1e9:.1f} GB free, the file needs {need / 1e9:.1f} GB: name another --work"
        )
    began = time.perf_counter()
    told = [0.0]

    def progress(done: int) -> None:
        if time.perf_counter() - told[0] > 10:
            told[0] = time.perf_counter()
            print(f"  {done / 1e9:.1f} of {need / 1e9:.1f} GB written", file=sys.stderr, flush=True)

    write_large(folder, config, progress)
    save_codecs(folder, QUICK if size == "quick" else BASE)
    print(f"  written in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return folder


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count


def kept_bytes(engine: TorchEngine) -> int:
    """Bytes of all weights that an engine holds, of the transformer and of the tokenizers."""
    modules = [engine.transformer, *engine.bank.values()]
    tensors = (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
    kept = {tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors if not tensor.is_meta}
    return sum(kept.values())


def measure(folder: Path, dtype: str, decoder: bool) -> dict[str, Any]:
    """Open, embed and, if asked, predict, in this process."""
    with PeakAnonymous() as anonymous:
        began = time.perf_counter()
        engine = TorchEngine.open(folder, dtype=dtype)
        loading = time.perf_counter() - began
    kept = kept_bytes(engine)
    tokens = draw_tokens(folder, [ENCODER["everything"]])
    record: dict[str, Any] = {
        "checkpoint": folder.name,
        "parameters_in_file": (folder / WEIGHTS).stat().st_size // 4,
        "dtype": dtype,
        "compute": engine.numerics.compute,
        "tokens": tokens[0].n_tokens,
        "load_seconds": loading,
        "kept_bytes": kept,
        "anonymous_over_kept": anonymous.peak / kept,
        "first_embed_seconds": seconds(lambda: engine.embed(tokens)),
        "embed_seconds": seconds(lambda: engine.embed(tokens)),
    }
    if decoder:
        record["predict_seconds"] = seconds(lambda: engine.logits(tokens, ["tok_z"]))
        record["kept_bytes_with_decoder"] = kept_bytes(engine)
    return record | {"peak_bytes": status("VmHWM"), "machine": machine()}


def main() -> int:
    """Command line: see the module's first lines. Exit code 1 if memory is over what is promised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="where the file is kept; default: a temporary folder")
    parser.add_argument("--size", choices=[*SIZES, "quick"], default="aion-xlarge")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--decoder", action="store_true", help="also predict a redshift")
    parser.add_argument("--out", type=Path, help="file to which the result is appended as a line of JSON")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    use_all_cores()
    if args.open:
        print(json.dumps(measure(args.open, args.dtype, args.decoder)))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = write(args.work or Path(name), args.size)
        # Written pages need not stay in memory: reading them back is part of loading.
        with (folder / WEIGHTS).open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        command = [sys.executable, "-m", "benchmarks.xlarge", "--open", str(folder), "--dtype", args.dtype]
        done = subprocess.run([*command, *["--decoder"] * args.decoder], stdout=subprocess.PIPE, check=True, text=True)
    record = json.loads(done.stdout)
    print(json.dumps(record, indent=2))
    if args.out:
        with args.out.open("a") as out:
            out.write(json.dumps(record) + "\n")
    return int(record["peak_bytes"] > LIMIT or (args.size != "quick" and record["anonymous_over_kept"] > MOST_RATIO))


if __name__ == "__main__":
    sys.exit(main())
