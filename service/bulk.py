"""Any number of objects, embedded chunk by chunk into Parquet: killed at any moment, it goes on where it was.

    Job       what is wanted
    Limits    how large a chunk is at most
    Progress  how far it is
    embed     do it, or the rest of it
    Summary   what came of it

Chunks depend on nothing but the inputs, the options and the limits, and the objects of a chunk are embedded together,
so the vectors of a run that was killed and went on are the same to the bit as those of one that was not. While one unit
of inputs is computed, the next is read.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from albireo.models.engine import Pooling
from albireo.observations.errors import Conflict
from albireo.observations.options import ReadOptions
from albireo.service import subjects as of_subjects
from albireo.service.bulk_reading import Unit, one_unit, size_of, units
from albireo.service.bulk_run import ERRORS, Chunk, Run, digest_of, storing, to_disk
from albireo.service.core import Core
from albireo.service.embedding_table import ERRORS as ERROR_SCHEMA
from albireo.service.embedding_table import embedding_schema, embedding_table, error_table, errors_path
from albireo.service.files import read_batches
from albireo.service.subjects import Subject
from albireo.tokenizers.checkpoint import TokenSpec

FORMAT = 1
"""Raised when the same job gives other rows or other chunks than before."""

SHOWN = 20
"""Errors that a summary lists; all are in their table."""

COUNTS = ("objects", "failed", "tokens", "chunks")
"""Of a summary, which the metadata of a finished table have too."""

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Limits:
    """Of one chunk: objects, bytes of what was measured, and tokens."""

    objects: int = 4096
    bytes: int = 64 << 20
    tokens: int = 131_072


STEP = Limits(objects=256, tokens=16_384)
"""Of what the engine is given at a time, so that progress is told often."""


@dataclass(frozen=True)
class Job:
    """Files to embed into `output`.

    output   a Parquet file, or a folder: one that is there, or a name without an ending
    as_one   the files are measurements of one object, called so
    join     objects of the same id in several files are one
    """

    paths: Sequence[Path]
    output: Path
    options: ReadOptions = field(default_factory=ReadOptions)
    pooling: Pooling = "mean"
    normalize: bool = False
    as_one: str | None = None
    join: bool = False
    limits: Limits = field(default_factory=Limits)

    @property
    def in_folder(self) -> bool:
        return self.output.is_dir() or not self.output.suffix

    @property
    def run_folder(self) -> Path:
        """Where parts are kept until they are put together, or for good."""
        return self.output if self.in_folder else self.output.with_name(f"{self.output.name}.parts")

    @property
    def errors_output(self) -> Path:
        """The table of errors, or the folder of its parts."""
        return self.output / ERRORS if self.in_folder else errors_path(self.output)


@dataclass
class Progress:
    """How far a job is. `earlier` objects were finished by a run before this one, which began at `began`.

    size, of_size  bytes of inputs that are done, and of all
    """

    of_files: int
    of_size: int
    files: int = 0
    size: float = 0.0
    objects: int = 0
    failed: int = 0
    earlier: int = 0
    size_earlier: float = 0.0
    began: float = field(default_factory=time.monotonic)

    @property
    def rate(self) -> float:
        """Objects per second of this run."""
        return (self.objects - self.earlier) / max(time.monotonic() - self.began, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """As fast as it went so far; None as long as nothing is known."""
        computed = self.size - self.size_earlier
        left = self.of_size - self.size
        return None if computed <= 0 else left * (time.monotonic() - self.began) / computed


@dataclass(frozen=True)
class Summary:
    """What came of a job. `resumed` chunks were finished before, `damaged` parts of it had to be computed again;
    `errors` are the first of those in the table."""

    output: Path
    errors_output: Path
    space: str
    objects: int
    failed: int
    tokens: int
    chunks: int
    resumed: int = 0
    damaged: tuple[str, ...] = ()
    errors: tuple[Mapping[str, Any], ...] = ()


def embed(
    core: Core, job: Job, resume: bool = False, watch: Callable[[Progress], None] = lambda progress: None
) -> Summary:
    """Embed all objects of a job into its output; with `resume`, what a run before did not finish.

    Raises Conflict run_unfinished if there is such a run and `resume` is False, run_differs if it was of something
    else; Full storage_full if the disk is full: what is finished stays.
    """
    order = order_of(core, job)
    if resume and not job.in_folder and not job.run_folder.exists() and job.output.exists():
        return _finished(job, order)
    schema = _schema(order)
    progress = Progress(len(job.paths), sum(map(size_of, job.paths)))
    with Run(job.run_folder, order, resume) as run:
        earlier = len(run.chunks())
        for number, unit, subjects in ahead(_read(run, job)):
            if subjects is None:
                _pass_over(run.of_unit(number), unit, progress)
            else:
                _compute(core, job, run, schema, number, unit, subjects, progress, watch)
            progress.files += unit.files
            watch(progress)
        chunks = run.chunks()
        summary = Summary(
            job.output,
            job.errors_output,
            str(order["space"]),
            sum(chunk.stop - chunk.start for chunk in chunks),
            sum(chunk.failed for chunk in chunks),
            sum(chunk.tokens for chunk in chunks),
            len(chunks),
            earlier,
            tuple(run.damaged),
            tuple(_first_errors(run, chunks)),
        )
        if not job.in_folder:
            _assemble(run, job, schema, summary)
            run.remove()
    return summary


def order_of(core: Core, job: Job) -> dict[str, Any]:
    """What decides the rows of a run, and where one chunk ends and the next begins, as plain data."""
    engine = core.engine
    unset = ReadOptions()
    stated = {one.name: getattr(job.options, one.name) for one in fields(ReadOptions)}
    return {
        "format": FORMAT,
        "version": metadata.version("albireo"),
        "space": engine.space(job.pooling, job.normalize),
        "model": engine.name,
        "dim": engine.dim,
        "numerics": asdict(engine.numerics),
        "pooling": job.pooling,
        "normalize": job.normalize,
        "reading": {name: _plain(value) for name, value in stated.items() if value != getattr(unset, name)},
        "as_one": job.as_one,
        "join": job.join,
        "limits": asdict(job.limits),
        "inputs": [[str(path), size_of(path)] for path in job.paths],
    }


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _schema(order: Mapping[str, Any]) -> pa.Schema:
    about = {name: str(order[name]) for name in ("space", "model", "pooling", "version")} | order["numerics"]
    return embedding_schema(order["dim"], about | {"run": digest_of(order)})


def _read(run: Run, job: Job) -> Iterator[tuple[int, Unit, list[Subject] | None]]:
    """Units in order with their objects, None in the place of those that are finished."""
    for number, unit in enumerate(_units(job)):
        whole = run.is_whole(number, unit.pieces)
        if whole and unit.ids is not None:
            unit.ids.add(run.ids(number))
        yield number, unit, None if whole else unit.read()


def _units(job: Job) -> Iterator[Unit]:
    if job.as_one is None and not job.join:
        yield from units(job.paths, job.options, job.limits.objects)
        return

    def everything() -> list[Subject]:
        found = [one for batch in read_batches(job.paths, job.options) for one in batch.subjects]
        return of_subjects.join(found) if job.as_one is None else [of_subjects.as_one(found, job.as_one)]

    yield one_unit(job.paths, everything)


def ahead(things: Iterator[Thing]) -> Iterator[Thing]:
    """The same things; while one is used, a thread makes the next."""
    end = object()
    with ThreadPoolExecutor(1, "reading") as pool:
        coming = pool.submit(next, things, end)
        while (thing := coming.result()) is not end:
            coming = pool.submit(next, things, end)
            yield thing  # type: ignore[misc]


def _pass_over(chunks: Sequence[Chunk], unit: Unit, progress: Progress) -> None:
    objects = sum(chunk.stop - chunk.start for chunk in chunks)
    progress.objects += objects
    progress.earlier += objects
    progress.failed += sum(chunk.failed for chunk in chunks)
    progress.size += unit.size
    progress.size_earlier += unit.size
    progress.began = time.monotonic()


def _compute(
    core: Core,
    job: Job,
    run: Run,
    schema: pa.Schema,
    number: int,
    unit: Unit,
    subjects: Sequence[Subject],
    progress: Progress,
    watch: Callable[[Progress], None],
) -> None:
    """Embed the chunks of a unit that are not finished, and keep each."""
    there = {chunk.chunk: chunk for chunk in run.of_unit(number)}
    each = unit.size / max(len(subjects), 1)

    def advance(more: int) -> None:
        progress.objects += more
        progress.size += more * each
        watch(progress)

    for k, (start, stop) in enumerate(cuts(subjects, core.inputs, job.limits)):
        done = there.get(k)
        if done is None:
            outcomes = [
                outcome
                for a, b in cuts(subjects[start:stop], core.inputs, STEP)
                for outcome in core.embed(subjects[start + a : start + b], job.pooling, advance, job.normalize).outcomes
            ]
            rows, errors = embedding_table(outcomes, schema), error_table(outcomes)
            name = f"part-{number:06d}-{k:03d}.parquet"
            done = Chunk(
                unit=number,
                chunk=k,
                start=start,
                stop=stop,
                objects=len(subjects),
                pieces=unit.pieces,
                part=None if rows is None else run.write(name, rows),
                errors=None if errors is None else run.write(f"{ERRORS}/{name}", errors),
                rows=0 if rows is None else rows.num_rows,
                failed=sum(outcome.error is not None for outcome in outcomes),
                tokens=sum(outcome.embedding.n_tokens for outcome in outcomes if outcome.embedding),
                space=str(run.order["space"]),
                version=str(run.order["version"]),
            )
            run.add(done)
        else:
            advance(stop - start)
            progress.earlier += stop - start
            progress.size_earlier += (stop - start) * each
        progress.failed += done.failed
    if not subjects:
        progress.size += unit.size


def cuts(subjects: Sequence[Subject], inputs: Mapping[str, TokenSpec], limits: Limits) -> Iterator[tuple[int, int]]:
    """Where chunks begin and end: as many objects as the limits allow, at least one. Without objects one, empty."""
    start = size = tokens = 0
    for i, subject in enumerate(subjects):
        more_size, more_tokens = _weight(subject, inputs)
        over = size + more_size > limits.bytes or tokens + more_tokens > limits.tokens
        if i > start and (over or i - start == limits.objects):
            yield start, i
            start, size, tokens = i, 0, 0
        size += more_size
        tokens += more_tokens
    yield start, len(subjects)


def _weight(subject: Subject, inputs: Mapping[str, TokenSpec]) -> tuple[int, int]:
    """Bytes of an object's arrays, and the most tokens that it can have."""
    if subject.observation is None:
        return 0, 0
    data = subject.observation.data
    arrays = (value for payload in data.values() for value in vars(payload).values() if isinstance(value, np.ndarray))
    return sum(array.nbytes for array in arrays), sum(inputs[key].n_tokens for key in data if key in inputs)


def _assemble(run: Run, job: Job, schema: pa.Schema, summary: Summary) -> None:
    """Put the parts together into one table and one of errors, which appear when they are whole."""
    drafts = run.folder / ".rows.tmp", run.folder / ".errors.tmp"
    with storing(job.output):
        with pq.ParquetWriter(drafts[0], schema) as rows, pq.ParquetWriter(drafts[1], ERROR_SCHEMA) as errors:
            for chunk in run.chunks():
                for writer, table in ((rows, run.rows(chunk)), (errors, run.errors(chunk))):
                    if table is not None:
                        writer.write_table(table)
            rows.add_key_value_metadata({name: str(getattr(summary, name)) for name in COUNTS})
        for draft, target in zip(reversed(drafts), (job.errors_output, job.output), strict=True):
            to_disk(draft)
            os.replace(draft, target)
        to_disk(job.output.parent)


def _finished(job: Job, order: Mapping[str, Any]) -> Summary:
    """What an earlier run of the same job came to, by the table that is there."""
    with storing(job.output):
        about = pq.read_metadata(job.output).metadata or {}
    if about.get(b"run") != digest_of(order).encode():
        raise Conflict(
            "run_differs", "a table of another run is here, and no parts of an unfinished one", file=str(job.output),
            field="output", fix="leave --resume out to write it anew, or name another output",
        )  # fmt: skip
    objects, failed, tokens, chunks = (int(about[name.encode()]) for name in COUNTS)
    listed = pq.read_table(job.errors_output).slice(0, SHOWN).to_pylist() if failed else []
    return Summary(
        job.output, job.errors_output, str(order["space"]), objects, failed, tokens, chunks, chunks, (), tuple(listed)
    )


def _first_errors(run: Run, chunks: Sequence[Chunk]) -> Iterator[Mapping[str, Any]]:
    left = SHOWN
    for chunk in chunks:
        table = run.errors(chunk) if left else None
        if table is not None:
            rows = table.slice(0, left).to_pylist()
            left -= len(rows)
            yield from rows
