"""What is pre-trained on is nothing that is tested on, and tells no label."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from albireo.observations.observation import Observation, Scalar
from albireo.observations.options import ReadOptions
from albireo.observations.shards import read_shard
from albireo.observations.source import Source
from benchmarks import real_sky
from benchmarks.datasets import DATASETS
from benchmarks.labelled import Dataset, held_out
from benchmarks.questions import QUESTIONS
from benchmarks.science_runs import Setting


def dataset(n: int) -> Dataset:
    rows = tuple(
        Observation(
            f"object-{k}",
            {"flux_r_sdss": Scalar(10.0 + k, "nanomaggy")},
            ra=1.0,
            dec=2.0,
            metadata={"redshift": 0.1, "class": "GALAXY"},
            extras={"other": Scalar(1.0, "")},
        )
        for k in range(n)
    )
    return Dataset("invented", rows, {"redshift": np.full(n, 0.1)}, tuple(one.id for one in rows), False, "")


def written(folder: Path) -> list[Observation]:
    found = [
        one
        for path in sorted(folder.glob("*.parquet"))
        for one in read_shard(Source.from_path(path), ReadOptions(), [])
    ]
    assert all(isinstance(one, Observation) for one in found)
    return [one for one in found if isinstance(one, Observation)]


def test_a_fifth_is_held_out_by_name_alone() -> None:
    names = [f"object-{k}" for k in range(5000)]
    first = held_out(names)
    assert 0.18 < first.mean() < 0.22
    assert np.array_equal(held_out(names[::-1]), first[::-1])


def test_nothing_but_measurements_of_training_objects_is_written(tmp_path: Path) -> None:
    whole = dataset(300)
    n = real_sky.write(whole, tmp_path)
    found = written(tmp_path)
    testing = {one.id for one, held in zip(whole.observations, held_out(whole.groups), strict=True) if held}
    assert n == len(found) == 300 - len(testing)
    assert testing
    assert not testing & {one.id for one in found}
    assert all(not one.metadata and one.ra is None and one.dec is None and not one.extras for one in found)
    assert {one.id: one.data["flux_r_sdss"].value for one in found} == {  # type: ignore[union-attr]
        one.id: one.data["flux_r_sdss"].value  # type: ignore[union-attr]
        for one in whole.observations
        if one.id not in testing
    }


@pytest.mark.real
def test_no_test_galaxy_of_a_question_is_pretrained_on(tmp_path: Path) -> None:
    read = {name: DATASETS[name](Path(os.environ["ALBIREO_TEST_DATA"])) for name in real_sky.SETS[1:]}
    for name, whole in read.items():
        real_sky.write(whole, tmp_path / name)
        seen = {one.id for one in written(tmp_path / name)}
        asked = [one for one in QUESTIONS.values() if one.tested == name]
        assert asked
        for question in asked:
            tested = {one.id for one in Setting.of(question, read.__getitem__, 0).test.observations}
            assert tested, question.name
            assert not tested & seen, question.name
