"""What a checkpoint is good for, on real and simulated objects, beside what it must beat: docs/science.md.

    python -m benchmarks.science --out docs/science.md              all that is not measured yet, then the page
    python -m benchmarks.science --question stars                   only this
    python -m benchmarks.science --page-only --out docs/science.md  the page from what is there

Real data are read from the folder in ALBIREO_TEST_DATA, the training stars from that in ALBIREO_STAR_DATA (python -m
benchmarks.star_sets). Records are kept in --state, one for each question, contender and number of labels: a run that
was stopped goes on, and another checkpoint has records of its own.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path

from albireo.models.torch_engine import TorchEngine
from albireo.models.untrained import untrained
from albireo.tokenizers.checkpoint import MINI
from benchmarks import datasets, neighbourhoods
from benchmarks.encoding import Codes, Encoder
from benchmarks.labelled import Dataset
from benchmarks.questions import MOST, QUESTIONS, Question
from benchmarks.science_page import page
from benchmarks.science_runs import ENCODER, UNTRAINED, Records, Setting, answer, code_version

ROOT = Path(__file__).parent.parent

Read = Callable[[str], Dataset]


def main() -> int:
    """Command line: see the module's first lines. Exit code 1: something could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=MINI, help="default: the shipped albireo-mini")
    parser.add_argument("--state", type=Path, default=ROOT / ".science", help="where records and token states are kept")
    parser.add_argument("--out", type=Path, help="the page; its pictures are written beside it")
    parser.add_argument("--question", action="append", choices=list(QUESTIONS), help="default: all; can be repeated")
    parser.add_argument("--page-only", action="store_true", help="measure nothing")
    parser.add_argument("--most", type=int, help="labels that are given at most; default: as each question says")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    engine = TorchEngine.open(args.checkpoint)
    records = Records(args.state / "records", code_version(ROOT), engine.checkpoint.fingerprint)

    @cache
    def read(name: str) -> Dataset:
        dataset = datasets.read(name, Path(os.environ["ALBIREO_TEST_DATA"]), args.state / "sky")
        records.note(name, dataset.note)
        return dataset

    failed: list[str] = []
    if not args.page_only:
        codes = Codes(engine)
        encoders = {
            ENCODER: Encoder("encoder", engine, args.state / "states", codes),
            UNTRAINED: Encoder("untrained", untrained(engine, args.seed), args.state / "states", codes),
        }
        questions = args.question or list(QUESTIONS)
        tasks = {name: partial(asked, QUESTIONS[name], read, encoders, records, args) for name in questions}
        if not args.question:
            for name in neighbourhoods.SETS:
                tasks[f"neighbours in {name}"] = partial(
                    near, neighbourhoods.measure, name, read, encoders, records, args
                )
            across = partial(near, neighbourhoods.measure_across, neighbourhoods.ACROSS, read, encoders, records, args)
            tasks["neighbours of objects given by lot"] = across
        failed = [name for name, task in tasks.items() if not done(name, task)]
    if args.out:
        about = {
            "checkpoint": f"{engine.name}, {engine.checkpoint.fingerprint[:12]}",
            "seed": str(args.seed),
            "labels given": f"all there are, but {args.most or MOST} at most where a question does not say otherwise",
        }
        pictures = args.out.with_suffix("")
        args.out.write_text(page(records, about, pictures))
        print(f"{args.out}. Next: look at it and at {pictures}")
    if failed:
        print(f"Not measured, see above: {', '.join(failed)}")
    return 1 if failed else 0


def asked(
    question: Question, read: Read, encoders: Mapping[str, Encoder], records: Records, args: argparse.Namespace
) -> None:
    """What is missing of one question."""
    answer(Setting.of(question, read, args.seed, args.most or question.most), encoders, records, args.seed)


def near(
    measure: Callable[..., None],
    name: str,
    read: Read,
    encoders: Mapping[str, Encoder],
    records: Records,
    args: argparse.Namespace,
) -> None:
    """Neighbours in a set."""
    measure(read(name), encoders, records, args.seed)


def done(name: str, task: Callable[[], None]) -> bool:
    """Whether a task came to its end: one that does not must not take the others, and hours, down with it."""
    began = time.monotonic()
    try:
        task()
    except FileNotFoundError as error:
        print(f"{name}: left out, {error}", flush=True)
    except Exception:
        traceback.print_exc()
        return False
    print(f"{name}: {time.monotonic() - began:.0f} s in all", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
