"""`albireo evaluate`: four contenders with the same labels, judged on the same test objects; nothing leaks in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.table import Table
from matplotlib.image import imread
from typer.testing import CliRunner

from albireo.models.head_fitting import Labels, Plan
from albireo.models.torch_engine import TorchEngine
from albireo.models.untrained import untrained
from albireo.observations.observation import Observation, Scalar
from albireo.service.cli import app
from albireo.service.evaluation import ENCODER, RIVAL, TRIVIAL, Collected, Trial
from albireo.service.fitting import Matched
from albireo.tokenizers.checkpoint import MINI
from tests.service.conftest import TellingEngine
from tests.service.heads import Run, runner, write_objects

Answer = dict[str, Any]


@pytest.fixture(scope="module")
def of_mini(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Answer, Path]:
    """A regression with albireo-mini: what was printed, all numbers, and the folder of the report."""
    folder = tmp_path_factory.mktemp("mini")
    table = write_objects(folder / "objects.ecsv", 200)
    rest = ("--target", "mass", "--task", "regression", "--sizes", "100,all", "--epochs", 5, "--pooling", "mean")
    done = CliRunner(env={"ALBIREO_THREADS": "1"}).invoke(
        app,
        [str(a) for a in ("evaluate", table, "--labels", table, *rest, "--data", folder, "--report", folder / "page")],
    )
    assert done.exit_code == 0, done.output
    return done.stdout, json.loads((folder / "page" / "evaluation.json").read_text()), folder / "page"


def test_every_contender_with_every_number_of_labels(of_mini: tuple[str, Answer, Path]) -> None:
    text, answer, _ = of_mini
    assert answer["n_test"] + answer["n_labels"] == 200
    assert 20 <= answer["n_test"] <= 60
    assert [(run["labels"], run["who"]) for run in answer["runs"]] == [
        (size, who) for size in (100, answer["n_labels"]) for who in ("trivial", "rival", "untrained", "encoder")
    ]
    for run in answer["runs"]:
        found = run["scores"]["mass"]
        assert found["n"][0] == answer["n_test"]
        assert {"r2", "rms", "robust_scatter", "coverage_68%", "coverage_95%"} <= found.keys()
        assert all(low <= value <= high for value, low, high in found.values()), found
        assert f"{found['r2'][0] + 0.0:.3g}" in text
    rival = [run["scores"]["mass"] for run in answer["runs"] if run["who"] == "rival"]
    assert min(one["r2"][0] for one in rival) > 0.8
    assert min(one["coverage_95%"][0] for one in rival) > 0.8
    trivial = [run["scores"]["mass"]["r2"][0] for run in answer["runs"] if run["who"] == "trivial"]
    assert max(trivial) < 0.01
    assert "dex(solMass)" in text


def test_the_report(of_mini: tuple[str, Answer, Path]) -> None:
    _, answer, folder = of_mini
    assert imread(folder / "curves.png").shape[0] > 300
    page = (folder / "README.md").read_text()
    assert "curves.png" in page
    assert page.count("mass, r2") == 1
    assert "/" not in answer["labels"]


def test_the_untrained_twin_is_another_network_behind_the_same_tokens() -> None:
    engine = TorchEngine.open(MINI)
    twin, again, other = (untrained(engine, seed) for seed in (1, 1, 2))
    assert twin.bank is engine.bank
    (tokens,) = engine.tokenize([Observation("a", {"tok_flux_g": Scalar(3.0, "nanomaggy")})])
    vectors = [one.embed([tokens])[0].values for one in (engine, twin, again, other)]  # type: ignore[list-item]
    np.testing.assert_array_equal(vectors[1], vectors[2])
    assert np.abs(vectors[0] - vectors[1]).max() > 0.1
    assert np.abs(vectors[3] - vectors[1]).max() > 0.01


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return runner(TellingEngine(), tmp_path)


def test_a_redshift(run: Run, tmp_path: Path) -> None:
    """Of an engine whose states tell the numbers, and without the untrained one."""
    table = write_objects(tmp_path / "o.ecsv", 400)
    rest = ("--labels", table, "--target", "z_spec", "--task", "redshift", "--no-untrained", "--sizes", "all")
    done = run("evaluate", table, *rest, "--epochs", 10, "--pooling", "mean", "--data", tmp_path, "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    by_who = {run["who"]: run["scores"]["redshift"] for run in answer["runs"]}
    assert set(by_who) == {"trivial", "rival", "encoder"}
    assert by_who["encoder"]["sigma_nmad"][0] < 0.7 * by_who["trivial"]["sigma_nmad"][0]
    assert by_who["rival"]["coverage_95%"][0] > 0.8


def test_a_label_among_the_inputs_is_refused(run: Run, tmp_path: Path) -> None:
    table = write_objects(tmp_path / "o.ecsv", 200, mag=0.0)
    read = Table.read(table, format="ascii.ecsv")
    read["mag"] = -2.5 * np.log10(read["FLUX_G"])
    read.write(table, format="ascii.ecsv", overwrite=True)
    rest = ("--labels", table, "--target", "mag", "--task", "regression", "--no-untrained", "--sizes", "all")
    done = run("evaluate", table, *rest, "--epochs", 2, "--pooling", "mean", "--data", tmp_path)
    assert done.exit_code == 1
    assert "label_given" in done.output


def test_why_nothing_was_read(run: Run, tmp_path: Path) -> None:
    """Not that no label has an object, which follows from it."""
    labels = write_objects(tmp_path / "o.ecsv", 3)
    (tmp_path / "x.fits").write_bytes(b"no FITS file")
    rest = ("--labels", labels, "--target", "mass", "--task", "regression", "--no-untrained", "--data", tmp_path)
    done = run("evaluate", tmp_path / "x.fits", *rest)
    assert done.exit_code == 1
    assert "x.fits" in done.output
    assert "no label has an object" not in done.output


@pytest.mark.parametrize("text", ["", "0", "100,few", "-5"])
def test_sizes_that_are_none(run: Run, tmp_path: Path, text: str) -> None:
    table = write_objects(tmp_path / "o.ecsv", 3)
    rest = ("--labels", table, "--target", "mass", "--task", "regression", "--sizes", text)
    assert run("evaluate", table, *rest).exit_code == 2


@pytest.fixture
def trial() -> Callable[..., Trial]:
    def make(n: int = 300, per_group: int = 3, seed: int = 0) -> Trial:
        rng = np.random.default_rng(seed)
        flux = rng.uniform(1, 20, n)
        observations = tuple(Observation(f"o{i}", {"tok_flux_g": Scalar(float(f), "nanomaggy")})
                             for i, f in enumerate(flux))  # fmt: skip
        columns = {"y": np.where(np.arange(n) % 7 == 0, np.nan, np.log(flux) + rng.normal(0, 0.1, n))}
        labels = Labels(tuple(one.id for one in observations), columns, "0" * 64)
        groups = tuple(str(i // per_group) for i in range(n))
        data = Collected(observations, labels, groups, {}, Matched((), (), ()))
        return Trial(data, Plan("regression", ("y",), seed=seed), ("mean",))

    return make


def test_no_group_is_in_both_parts_and_few_labels_are_some_of_more(trial: Callable[..., Trial]) -> None:
    one = trial()
    groups = np.array(one.data.groups)
    assert not set(groups[one.pool]) & set(groups[one.test])
    given = one.data.labels.columns["y"]
    assert np.isfinite(given[one.pool]).all()
    assert np.isfinite(given[one.test]).all()
    assert len(one.pool) + len(one.test) == np.isfinite(given).sum()
    assert 0.1 < len(one.test) / np.isfinite(given).sum() < 0.3
    assert one.sizes([100, None, 10_000]) == [100, len(one.pool)]
    assert sorted(one.pool) != one.pool.tolist()
    np.testing.assert_array_equal(one.pool, trial().pool)


def test_contenders_without_an_encoder(trial: Callable[..., Trial]) -> None:
    one = trial()
    trivial, rival = (one.run(who, 150) for who in (TRIVIAL, RIVAL))
    assert trivial.scores["y"]["r2"][0] < 0.05
    assert rival.scores["y"]["r2"][0] > 0.9
    assert rival.scores["y"]["rms"][0] == pytest.approx(0.1, rel=0.5)
    assert rival.scores["y"]["coverage_68%"][0] > 0.5
    few = one.run(RIVAL, 2)
    assert (few.failed or "").startswith("labels_too_few")
    assert few.scores == {}
    assert ENCODER not in one.data.states
