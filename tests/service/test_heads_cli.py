"""`albireo heads` and `albireo predict` with fitted heads: from labels to answers, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from matplotlib.image import imread

from albireo.models.heads import Head
from tests.service.conftest import TellingEngine
from tests.service.heads import Run, fit, runner, write_objects


@pytest.fixture(scope="module")
def engine() -> TellingEngine:
    return TellingEngine()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("heads")


@pytest.fixture(scope="module")
def run(engine: TellingEngine, folder: Path) -> Run:
    return runner(engine, folder)


@pytest.fixture(scope="module")
def table(folder: Path) -> Path:
    return write_objects(folder / "objects.ecsv")


@pytest.fixture(scope="module")
def heads(run: Run, table: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """A head for each task, and what was told when it was fitted."""
    told = {}
    for name, task in (("far", "redshift"), ("kind", "classification"), ("galaxy", "regression")):
        more = ("--target", "size", "--label-unit", "size=kpc") if task == "regression" else ()
        done = fit(run, name, table, folder, task, *more, "--json")
        assert done.exit_code == 0, done.output
        told[name] = json.loads(done.stdout)
    return told


def test_a_fit_tells_what_became_of_everything(heads: dict[str, dict[str, Any]], folder: Path) -> None:
    told = heads["galaxy"]
    assert told["output"] == str(folder / "heads" / "galaxy.safetensors")
    assert told["labels_without_object"] == told["objects_without_label"] == told["errors"] == []
    card = told["head"]["card"]
    assert (told["head"]["targets"], told["head"]["units"]) == (["mass", "size"], ["dex(solMass)", "kpc"])
    assert sum(card["data"]["objects"].values()) == 400
    assert card["data"]["files"] == ["objects.ecsv"]
    assert card["metrics"]["test"]["mass"]["r2"][0] > 0.5
    assert Head.open(Path(told["output"])).sha256[:12] == told["head"]["version"]


def test_heads_are_listed_and_shown(run: Run, heads: dict[str, dict[str, Any]], folder: Path) -> None:
    listed = json.loads(run("heads", "ls", "--json").stdout)
    assert [(one["name"], one["origin"], one["fits"]) for one in listed["heads"]] == [
        ("far", "own", True), ("galaxy", "own", True), ("kind", "own", True), ("tok_z", "built in", True),
    ]  # fmt: skip
    text = run("heads", "ls").stdout
    assert "blue, red" in text
    assert "400 objects" in text
    shown = run("heads", "show", "galaxy").stdout
    for words in ("mass (dex(solMass)), size (kpc)", "legacysurvey.flux_g 100%", "split by object", "coverage_68%"):
        assert words in shown
    by_path = json.loads(run("heads", "show", folder / "heads" / "far.safetensors", "--json").stdout)
    assert (by_path["name"], by_path["origin"], by_path["version"]) == ("far", "path", heads["far"]["head"]["version"])
    assert "not calibrated" in run("heads", "show", "tok_z").stdout


def test_several_heads_in_one_pass(
    run: Run, engine: TellingEngine, heads: dict[str, dict[str, Any]], folder: Path, tmp_path: Path
) -> None:
    new = write_objects(tmp_path / "new.ecsv", 60, seed=1)
    out, plot, qp_file = (tmp_path / name for name in ("all.parquet", "all.png", "z.hdf5"))
    engine.passes = 0
    done = run("predict", "far,kind,galaxy", new, "-o", out, "--pdf", "--plot", plot, "--qp", qp_file)
    assert done.exit_code == 0, done.output
    assert engine.passes == 60
    table = pq.read_table(out)
    truth = Table.read(new, format="ascii.ecsv")
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == truth["id"].tolist()
    about = json.loads(table.schema.metadata[b"heads"])
    assert {name: one["version"] for name, one in about.items()} == {
        name: told["head"]["version"] for name, told in heads.items()
    }
    assert table.schema.field("galaxy_mass").metadata[b"unit"] == b"dex(solMass)"
    z = np.array([row["far"] for row in rows])
    assert np.median(np.abs(z - truth["z_spec"])) < 0.06
    for name in ("far", "galaxy_mass", "galaxy_size"):
        outer = [(row[f"{name}_low95"], row[f"{name}_high95"]) for row in rows]
        inner = [(row[f"{name}_low68"], row[f"{name}_high68"]) for row in rows]
        for (a, d), (b, c), row in zip(outer, inner, rows, strict=True):
            assert a <= b <= row[name] <= c <= d
    label = truth["mass"]
    inside = [row["galaxy_mass_low95"] <= t <= row["galaxy_mass_high95"] for row, t in zip(rows, label, strict=True)]
    assert np.mean(inside) > 0.8
    assert np.mean([row["kind"] == t for row, t in zip(rows, truth["kind"], strict=True)]) > 0.9
    for row in rows:
        assert row["kind_p_blue"] + row["kind_p_red"] == pytest.approx(1)
        assert row[f"kind_p_{row['kind']}"] >= 0.5
        assert sum(row["far_pdf"]) == pytest.approx(1, abs=1e-4)
        assert len(row["far_pdf"]) == len(about["far"]["edges"]) - 1
        assert 0 <= row["far_typicality"] <= 1
    assert imread(plot).shape[0] > 500
    check_ensemble(qp_file, rows, np.array(about["far"]["edges"]))


def check_ensemble(path: Path, rows: list[dict[str, Any]], edges: np.ndarray) -> None:
    """The ensemble, read back by qp, is that of the table."""
    import qp

    ensemble = qp.read(str(path))
    assert ensemble.npdf == len(rows)
    ids = [name.decode() if isinstance(name, bytes) else name for name in ensemble.ancil["id"]]
    assert ids == [row["id"] for row in rows]
    np.testing.assert_allclose(ensemble.ancil["z_mean"], [row["far_mean"] for row in rows])
    below = np.array([[0, *np.cumsum(row["far_pdf"])] for row in rows])
    np.testing.assert_allclose(ensemble.cdf(edges[1:-1]), below[:, 1:-1], atol=1e-4)
    np.testing.assert_allclose(ensemble.ppf(0.5)[:, 0], [row["far"] for row in rows], atol=1e-4)


def test_answers_as_text_and_as_data(run: Run, heads: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    new = write_objects(tmp_path / "new.ecsv", 3, seed=1)
    data = json.loads(run("predict", "kind,galaxy,tok_z", new, "--json").stdout)
    assert set(data["heads"]) == {"kind", "galaxy", "tok_z"}
    answers = data["objects"][0]["predictions"]
    assert answers["kind"]["class"] == max(answers["kind"]["classes"], key=answers["kind"]["classes"].get)
    assert [number["name"] for number in answers["galaxy"]["numbers"]] == ["mass", "size"]
    assert [span["level"] for span in answers["galaxy"]["numbers"][0]["intervals"]] == [0.68, 0.95]
    assert answers["tok_z"]["typicality"] is None
    text = run("predict", "kind,galaxy,tok_z", new).stdout
    assert f"{answers['galaxy']['numbers'][0]['value']:.5g}" in text
    assert "dex(solMass)" in text
    assert text.count("o1-0") == 3


def test_a_flag_by_name_for_what_the_head_never_saw(
    run: Run, heads: dict[str, dict[str, Any]], folder: Path, tmp_path: Path
) -> None:
    bright = write_objects(tmp_path / "b.ecsv", 2, seed=1, FLUX_G=[900.0, 900.0], FLUX_R=[900.0, 900.0])
    (row, _) = json.loads(run("predict", "far", bright, "--json").stdout)["objects"]
    answer = row["predictions"]["far"]
    assert {"brighter_than_training", "unlike_training"} <= set(answer["flags"])
    assert answer["typicality"] < 0.01
    one_band = write_objects(tmp_path / "g.ecsv", 2, seed=1, without=("FLUX_R",))
    (row, _) = json.loads(run("predict", "far", one_band, "--json").stdout)["objects"]
    assert {"no_r_band", "modality_set_not_in_training"} <= set(row["predictions"]["far"]["flags"])


def test_the_prior_can_be_swapped(run: Run, heads: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    new = write_objects(tmp_path / "new.ecsv", 5, seed=1)
    low = tmp_path / "low.csv"
    low.write_text("z_low,z_high,n\n0,0.2,10\n0.2,0.25,1\n")

    def values(*more: object) -> list[float]:
        done = run("predict", "far,kind", new, "--json", *more)
        assert done.exit_code == 0, done.output
        rows = json.loads(done.stdout)["objects"]
        flags = {flag for row in rows for flag in row["predictions"]["far"]["flags"]}
        assert ("prior_replaced" in flags) == (bool(more) and more[1] != "training")
        return [row["predictions"]["far"]["numbers"][0]["value"] for row in rows]

    plain = values()
    assert values("--prior", "training") == plain
    assert values("--prior", "flat") != plain
    assert max(values("--prior", low)) <= 0.25
    for text, code in (("z_low,z_high\n0,1\n", "column_missing"), ("z_low,z_high,n\n0,1,2\n2,3,1\n", "not_sorted")):
        low.write_text(text)
        assert code in run("predict", "far", new, "--prior", low).output
    assert "option_invalid" in run("predict", "kind", new, "--prior", "flat").output
    assert "option_invalid" in run("predict", "far,tok_z", new, "--prior", "flat").output


def test_labels_are_no_inputs(run: Run, heads: dict[str, dict[str, Any]], folder: Path, tmp_path: Path) -> None:
    """Answers are the same, to the byte, without redshifts, classes, positions and labels in the file."""
    said = {}
    for name, without in (
        ("with", ()),
        ("without", ("z_spec", "kind", "mass", "size", "ra", "dec")),
    ):
        new = write_objects(tmp_path / f"{name}.ecsv", 20, seed=2, without=without)
        done = run("predict", "far,kind,galaxy,tok_z", new, "-o", tmp_path / f"{name}.parquet", "--pdf")
        assert done.exit_code == 0, done.output
        table = pq.read_table(tmp_path / f"{name}.parquet")
        said[name] = table.select([c for c in table.column_names if c not in ("ra", "dec", "file", "sha256")])
    assert said["with"].equals(said["without"])
    assert said["with"].num_columns > 25


def test_fitting_again_does_not_encode_again(
    run: Run, engine: TellingEngine, heads: dict[str, dict[str, Any]], table: Path, folder: Path
) -> None:
    engine.passes = 0
    done = fit(run, "again", table, folder, "redshift", "--json")
    assert engine.passes == 0
    told = json.loads(done.stdout)
    first = Head.open(Path(heads["far"]["output"]))
    second = Head.open(Path(told["output"]))
    assert all(np.array_equal(first.arrays[name], second.arrays[name]) for name in first.arrays)


def test_what_has_no_partner_is_told(run: Run, table: Path, folder: Path, tmp_path: Path) -> None:
    whole = Table.read(table, format="ascii.ecsv")
    some = whole[["id", "z_spec", "kind"]][:360]
    some["id"][0] = "gone"
    some.write(tmp_path / "labels.csv")
    rest = ("--task", "redshift", "--target", "z_spec", "--data", folder, "--epochs", 5, "--seed", 3)
    done = run("heads", "fit", "some", table, "--labels", tmp_path / "labels.csv", *rest, "--out",
               tmp_path / "some.safetensors", "--report", tmp_path / "report")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "1 label without an object, 'gone' for one" in done.stdout
    assert "41 objects without a label, 'o0-0' for one" in done.stdout
    assert "41 without label, 1 without object" in run("heads", "show", tmp_path / "some.safetensors").stdout
    assert imread(tmp_path / "report" / "test.png").size
    assert imread(tmp_path / "report" / "curve.png").size
    assert "sigma_nmad" in (tmp_path / "report" / "README.md").read_text()


def test_evaluation_counts_what_the_fit_did_not_see(
    run: Run, heads: dict[str, dict[str, Any]], table: Path, tmp_path: Path
) -> None:
    for name, target in (("galaxy", "mass"), ("kind", "kind"), ("far", "redshift")):
        done = run("heads", "evaluate", name, table, "--labels", table, "--json", "--report", tmp_path / name)
        assert done.exit_code == 0, done.output
        told = json.loads(done.stdout)
        card = heads[name]["head"]["card"]
        assert told["n"] == card["data"]["objects"]["test"]
        assert told["n"] + told["n_of_the_fit"] == 400
        for metric, (value, low, high) in told["metrics"][target].items():
            assert low <= high
            # Though the fit saw states from the disk, in half precision.
            assert value == pytest.approx(card["metrics"]["test"][target][metric][0], abs=1e-5)
        assert (tmp_path / name / "test.png").exists()
    other = write_objects(tmp_path / "other.ecsv", 80, seed=4)
    told = json.loads(run("heads", "evaluate", "far", other, "--labels", other, "--json").stdout)
    assert (told["n"], told["n_of_the_fit"]) == (80, 0)
    text = run("heads", "evaluate", "tok_z", other, "--labels", other, "--target", "z_spec").stdout
    assert "tok_z on 80 objects" in text
    assert "outliers_15%" in text


@pytest.mark.parametrize("group", ["field", "sky"])
def test_groups_and_weights(run: Run, table: Path, folder: Path, tmp_path: Path, group: str) -> None:
    """The parts of a fit are found again by an evaluation, whatever they hang on."""
    field, weight = [f"f{i % 80}" for i in range(400)], np.linspace(1, 3, 400)
    labels = write_objects(tmp_path / "labels.ecsv", field=field, weight=weight)
    rest = ("--labels", labels, "--target", "mass", "--task", "regression", "--group", group, "--weights", "weight")
    done = run("heads", "fit", group, table, *rest, "--data", folder, "--epochs", 5, "--json")
    assert done.exit_code == 0, done.output
    card = json.loads(done.stdout)["head"]["card"]
    assert (card["plan"]["group"], card["plan"]["weights"]) == (group, "weight")
    told = json.loads(run("heads", "evaluate", group, table, "--labels", labels, "--json").stdout)
    assert told["n"] == card["data"]["objects"]["test"]
    assert told["metrics"]["mass"]["rms"][0] == pytest.approx(card["metrics"]["test"]["mass"]["rms"][0], rel=1e-5)


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({"id": ["same"] * 400}, (), "id_duplicate"),
        ({"z_spec": [-9999.0] * 400}, (), "--missing -9999"),
        ({"z_spec": [np.inf] * 400}, (), "not_finite"),
        ({"w": [-1.0] * 400}, ("--weights", "w"), "value_out_of_range"),
        ({}, ("--weights", "nothing"), "column_unknown"),
        ({}, ("--id", "mass"), "id_inexact"),
        ({}, ("--id", "kind"), "id_duplicate"),
        ({"z_spec": ["far"] * 400}, (), "value_out_of_range"),
        ({}, ("--label-unit", "mass=kg"), "not TARGET=UNIT"),
        ({}, ("--missing", "few"), "--missing"),
        ({}, ("--out", "head.pkl"), ".safetensors"),
        ({"id2": [f"x{i}" for i in range(400)]}, ("--id", "id2"), "no label has an object"),
    ],
)
def test_labels_that_are_refused(
    run: Run, table: Path, folder: Path, tmp_path: Path, change: dict[str, Any], options: tuple[str, ...], said: str
) -> None:
    labels = write_objects(tmp_path / "labels.ecsv", **change)
    rest = ("--task", "redshift", "--target", "z_spec", "--data", folder)
    done = run("heads", "fit", "refused", table, "--labels", labels, *rest, *options)
    assert done.exit_code in (1, 2)
    assert said in done.output
    assert not (folder / "heads" / "refused.safetensors").exists()


def test_a_label_that_is_a_measurement_is_refused(run: Run, table: Path, folder: Path, tmp_path: Path) -> None:
    """Also in another file, under another name, as a magnitude; but not one that depends on more."""
    flux = np.asarray(Table.read(table, format="ascii.ecsv")["FLUX_R"])
    labels = write_objects(tmp_path / "labels.ecsv", brightness=22.5 - 2.5 * np.log10(flux))
    for name, source in (("FLUX_R", table), ("brightness", labels)):
        rest = ("--labels", source, "--target", name, "--task", "regression", "--data", folder)
        done = run("heads", "fit", "leak", table, *rest)
        assert done.exit_code == 1
        assert "label_given" in done.output
        assert name in done.output


def test_names_of_heads(run: Run, table: Path, folder: Path, heads: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    shipped = folder / "model" / "heads" / "given.safetensors"
    shipped.parent.mkdir(parents=True, exist_ok=True)
    shipped.write_bytes((folder / "heads" / "far.safetensors").read_bytes())
    for name in ("tok_z", "../far", "given", ""):
        assert "option_invalid" in fit(run, name, table, folder, "redshift").output
    assert json.loads(run("predict", "given", table, "--json").stdout)["heads"]["given"]["origin"] == "shipped"
    unknown = run("predict", "farther", table)
    assert unknown.exit_code == 1
    assert "head_unknown" in unknown.output
    assert "far, " in unknown.output
    assert "head_unknown" in run("predict", tmp_path / "gone.safetensors", table).output
    assert "option_invalid" in run("predict", "far,far", table).output
    assert run("predict", "far,given", table, "--qp", tmp_path / "z.hdf5").exit_code == 2
    assert "option_invalid" in run("predict", "far", table, "--qp", tmp_path / "z.txt").output
    bad = folder / "heads" / "bad.safetensors"
    bad.write_bytes(b"nothing of the kind")
    try:
        listed = run("heads", "ls")
        assert listed.exit_code == 1
        assert "head_invalid" in listed.output
        assert "galaxy" in listed.output
    finally:
        bad.unlink()
        shipped.unlink()


def test_a_head_of_another_model_is_refused(
    run: Run, heads: dict[str, dict[str, Any]], table: Path, folder: Path, tmp_path: Path
) -> None:
    class Other(TellingEngine):
        def space(self, pooling: Any, normalize: bool = False) -> str:
            return f"other@ba9876543210:{pooling}"

    other = runner(Other(), folder)
    done = other("predict", "tok_z,far", table, "-o", tmp_path / "z.parquet")
    assert done.exit_code == 1
    assert "space_mismatch" in done.output
    assert "albireo heads fit" in done.output
    assert not (tmp_path / "z.parquet").exists()
    assert "of another model" in other("heads", "ls").stdout
