"""Simulated spectra and the noiseless flux behind them, as a codec of spectra learns from: shards of arrays on disk.

    python -m albireo.models.spectrum_pairs FOLDER --objects 12000 --seed 20261128 --workers 2

A shard holds `x` (n, 2, L), the network's input, and `truth` (n, L), the flux that should come out, in its unit: both
as float16. A shard is there as a whole or not at all, and one that is there is kept. Needs the extra `train`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor

from albireo.models import mini
from albireo.models.stages import Progress
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Spectrum
from albireo.tokenizers.bank import build
from albireo.tokenizers.spectrum import SpectrumTokenizer, norm_of_log

SHARD = 500
"""Objects of a shard; each gives two spectra."""


@dataclass(frozen=True)
class Task:
    """One shard."""

    folder: Path
    seed: int
    number: int

    @property
    def path(self) -> Path:
        return self.folder / f"{self.number:05d}.safetensors"


def network_arrays(
    tokenizer: SpectrumTokenizer, spectra: Sequence[Spectrum], truths: Sequence[NDArray[np.float64]]
) -> tuple[Tensor, Tensor]:
    """x (n, 2, L) as the network reads it, truth (n, L) as it should give it: flux over the norm, minus one."""
    length = len(tokenizer.latent_grid.wavelength)
    x = torch.zeros(len(spectra), 2, length, dtype=torch.float16)
    out = torch.zeros(len(spectra), length, dtype=torch.float16)
    for i, (spectrum, truth) in enumerate(zip(spectra, truths, strict=True)):
        flux, ivar, wavelength, clean = (
            torch.as_tensor(array.astype(np.float32))[None]
            for array in (spectrum.flux, spectrum.ivar, spectrum.wavelength, truth)
        )
        inputs, log_norm = tokenizer.network_input(flux, ivar, torch.as_tensor(spectrum.mask)[None], wavelength)
        norm = norm_of_log(log_norm)
        x[i] = inputs[0].half()
        out[i] = tokenizer.latent_grid.to_latent((clean / norm - 1.0)[:, None], wavelength)[0, 0].half()
    return x, out


def make_shard(task: Task) -> None:
    """Simulate and write one shard."""
    from albireo.observations.simulation.survey import spectra

    torch.set_num_threads(1)
    tokenizer = build(MODALITIES["tok_spectrum_desi"], mini.SPECTRUM)
    assert isinstance(tokenizer, SpectrumTokenizer)
    numbers = range(task.number * SHARD, (task.number + 1) * SHARD)
    observed = [one for number in numbers for one in spectra(task.seed, number)]
    x, truth = network_arrays(tokenizer, [one.spectrum for one in observed], [one.truth for one in observed])
    part = task.path.with_suffix(".part")
    save_file({"x": x.numpy(), "truth": truth.numpy()}, part)
    os.replace(part, task.path)


def make(folder: Path, objects: int, seed: int, workers: int) -> list[Path]:
    """Every shard that is missing; paths of all."""
    from albireo.observations.simulation.survey import prepare

    folder.mkdir(parents=True, exist_ok=True)
    tasks = [Task(folder, seed, number) for number in range(-(-objects // SHARD))]
    missing = [task for task in tasks if not task.path.exists()]
    progress = Progress("spectra", len(tasks), len(tasks) - len(missing), Path(os.devnull))
    if missing:
        prepare()
        # Forked, so that the templates are in memory once.
        with multiprocessing.get_context("fork").Pool(min(workers, len(missing))) as pool:
            for done, _ in enumerate(pool.imap_unordered(make_shard, missing), 1):
                progress.update(len(tasks) - len(missing) + done)
    return [task.path for task in tasks]


def load(paths: Sequence[Path]) -> tuple[Tensor, Tensor]:
    """x (n, 2, L) and truth (n, L) of all shards."""
    parts = [load_file(path) for path in paths]
    return tuple(torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in ("x", "truth"))  # type: ignore[return-value]


def main() -> None:
    """Command line: see the module's first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--objects", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=20261128)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    make(args.folder, args.objects, args.seed, args.workers)
    print(f"{args.folder}; train on it with: python -m albireo.models.pretrain --pairs {args.folder} ...")


if __name__ == "__main__":
    main()
