"""Files to Parquet, end to end: reading, tokenizing, encoding and writing, beside their parts and the rival's script.

Every round has files of its own, in the surveys' formats, written from the simulated sky: of 14 files five are
Legacy Survey cutouts, four SDSS spectra, four DESI coadds and one a photometry table of ten objects. Sides:

    ours              what `albireo embed FOLDER -o out.parquet` does, in this process, the model open
    ours, in memory   the same objects already read: tokenize and encode
    ours, encoder     the same tokens: encode
    package script    rival_script.py, the package's model and codecs open

So the time of a part over the time of the whole is the share of the part's rate that the whole reaches. Files were
just written, so they come from the page cache.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner

from albireo.index.collection import Collections
from albireo.models.engine import Tokens
from albireo.models.torch_engine import DTYPES, TorchEngine
from albireo.observations.observation import Observation
from albireo.observations.options import ReadOptions
from albireo.observations.sky import simulate
from albireo.observations.sky_files import write_cutout, write_desi, write_photometry, write_sdss
from albireo.service.cli import app
from albireo.service.core import Core
from albireo.service.files import read_batches
from benchmarks.cases import OURS, Call, Case, Options, short
from benchmarks.checkpoints import DESI, IMAGE, PHOTOMETRY, SDSS, their_codecs, their_model
from benchmarks.rival_script import embed_files

KINDS = ("cutout", "sdss", "desi", "cutout", "sdss", "desi", "cutout", "sdss", "desi", "cutout", "sdss", "desi",
         "cutout", "photometry")  # fmt: skip
TABLE_ROWS = 10


def write_files(folder: Path, number: int, objects: Iterator[Observation]) -> list[Path]:
    """`number` files of KINDS in turn; every object is in one file only."""
    folder.mkdir(parents=True)

    def take(key: str) -> Observation:
        found = next(o for o in objects if key in o.data)
        name = found.id.rpartition("-")[2].lstrip("0") or "0"
        keys = PHOTOMETRY if key == PHOTOMETRY[0] else (key,)
        return replace(found, id=name, data={k: found.data[k] for k in keys if k in found.data})

    paths = []
    for i in range(number):
        kind = KINDS[i % len(KINDS)]
        path = folder / f"{i:03d}-{kind}.{'ecsv' if kind == 'photometry' else 'fits'}"
        if kind == "cutout":
            write_cutout(take(IMAGE), path)
        elif kind == "sdss":
            write_sdss(take(SDSS), path)
        elif kind == "desi":
            write_desi([take(DESI)], path)
        else:
            write_photometry([take(PHOTOMETRY[0]) for _ in range(TABLE_ROWS)], path)
        paths.append(path)
    return paths


class Rounds:
    """What the sides of a round are given: files, the objects read from them, and their tokens."""

    def __init__(self, folder: Path, files: int) -> None:
        self._folder, self._files = folder, files
        self._objects = simulate(1_000_000, np.random.default_rng(3))
        self._written = 0
        self.engine: TorchEngine | None = None
        self.paths: list[Path] = []
        self.observations: list[Observation] = []
        self.tokens: list[Tokens] = []

    def prepare(self) -> None:
        """Write the next files, and read them; tokenize them if a side wants that."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self.paths = write_files(self._folder / f"{self._written:03d}", self._files, self._objects)
        self._written += 1
        batches = read_batches(self.paths, ReadOptions())
        self.observations = [s.observation for batch in batches for s in batch.subjects if s.observation is not None]
        if self.engine is not None:
            self.tokenize_with(self.engine)

    def tokenize_with(self, engine: TorchEngine) -> None:
        """Have tokens ready, now and from now on."""
        self.engine, self.tokens = engine, tokenize(engine, self.observations)


def tokenize(engine: TorchEngine, observations: Sequence[Observation]) -> list[Tokens]:
    """Tokens of all objects: one that cannot be tokenized would make the figures worthless."""
    tokens = [one for one in engine.tokenize(observations) if isinstance(one, Tokens)]
    assert len(tokens) == len(observations) > 0
    return tokens


def embed_folder(core: Core, folder: Path, output: Path) -> None:
    """`albireo embed FOLDER -o OUTPUT`, its model open; no object may fail."""
    done = CliRunner().invoke(app, ["embed", str(folder), "-o", str(output)], obj=lambda settings: core)
    assert done.exit_code == 0, done.output


def files_case(options: Options) -> Case:
    """See the module's first lines: `options.files` files a round, in a folder of `options.work`."""
    engine = cache(lambda: TorchEngine.open(options.folder, dtype=options.dtype))
    rounds = Rounds(options.work / "files", options.files)
    output = options.work / "embeddings.parquet"

    def ours() -> Call:
        core = Core(engine, lambda: Collections(options.work / "none.sqlite"))
        return lambda number: embed_folder(core, rounds.paths[0].parent, output)

    def in_memory() -> Call:
        opened = engine()
        return lambda number: opened.embed(tokenize(opened, rounds.observations))

    def encoder() -> Call:
        opened = engine()
        rounds.tokenize_with(opened)
        return lambda number: opened.embed(rounds.tokens)

    def theirs(dtype: str) -> Callable[[], Call]:
        def open_side() -> Call:
            model, codecs = their_model(options.folder, DTYPES[dtype]), their_codecs(options.folder)
            return lambda number: embed_files(model, codecs, rounds.paths, output)

        return open_side

    sides: dict[str, Callable[[], Call]] = {
        OURS: ours,
        "ours, in memory": in_memory,
        "ours, encoder": encoder,
    }
    sides |= {f"package script {short(dtype)}": theirs(dtype) for dtype in options.rivals}

    def known(seconds: float) -> dict[str, Any]:
        tokens = sum(one.n_tokens for one in rounds.tokens)
        compute = engine().numerics.compute
        return {"dtype": options.dtype, "compute": compute, "files": options.files, "tokens": tokens}

    rounds.prepare()
    return Case(len(rounds.observations), sides, before=lambda number: rounds.prepare(), facts=known)
