"""Fuzzing of every reader: nothing but typed errors, in bounded memory and time.

    python -m tests.fuzz                                  every reader, 60 s each
    python -m tests.fuzz --reader npz --seconds 300       one, for longer; --seed N changes otherwise
    python -m tests.fuzz --reader npz --repeat FOLDER     a finding again

Seconds are of CPU time, so that a pause costs nothing. The same seed, code and files give the same inputs. What is
found is written below --state, outside of the checkout. Exit code 1 if anything was found. Bounds stand in bounds.py.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz.readers import READERS
from tests.fuzz.run import Limits, repeat, run


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--reader", action="append", help="only this one; may be given again")
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU time for each reader")
    parser.add_argument("--inputs", type=int, default=1 << 62, help="most inputs for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, default=Path(tempfile.gettempdir()) / "albireo-fuzz")
    parser.add_argument("--jobs", type=int, default=1, help="readers at a time")
    parser.add_argument("--repeat", type=Path, help="folder of a finding, read once by the reader")
    parser.add_argument("--list", action="store_true", help="the readers")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(f"{reader.name:<16} {reader.what}" for reader in READERS))
        return 0
    if options.repeat is not None:
        return repeat(options.reader[0], options.repeat)
    names = options.reader or [reader.name for reader in READERS]
    limits = Limits(options.seconds, options.inputs, options.seed)
    results = run(names, limits, options.state, options.jobs, lambda line: print(line, flush=True))
    print("\n" + "\n".join(result.line() for result in results))
    bad = [result.reader for result in results if result.findings or not result.complete]
    for name in bad:
        print(f"\nfound: {options.state / name / 'findings'}")
        print(f"again: python -m tests.fuzz --reader {name} --repeat {options.state / name / 'findings'}/NAME")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
