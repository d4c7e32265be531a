"""`albireo predict tok_z` and `albireo generate`: tables, pictures, what the model is shown, and exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from matplotlib.image import imread
from typer.testing import CliRunner, Result

from albireo.index.collection import Collections
from albireo.models.generation import Sampling
from albireo.models.heads import Answer
from albireo.observations.options import ReadOptions
from albireo.service.cli import app
from albireo.service.core import Core
from albireo.service.draws import Wanted
from albireo.service.files import expand, read_batches
from albireo.service.subjects import Subject

Make = Callable[..., bytes]
Run = Callable[..., Result]
SAMPLES = Path(__file__).parent.parent.parent / "observations" / "samples"


@pytest.fixture
def run(engine: Any, tmp_path: Path) -> Run:
    """Runs a command with the toy engine."""

    def open_core(settings: object) -> Core:
        return Core(lambda: engine, lambda: Collections(tmp_path / "data" / "collections.sqlite"))

    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments], obj=open_core)


@pytest.fixture
def mini() -> Run:
    """Runs a command with the model in the package."""
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def files(tmp_path: Path, image: Make, spectrum: Make, jpeg: bytes) -> Path:
    """Images A and B, a spectrum, an image that is too bright, and a picture."""
    folder = tmp_path / "in"
    folder.mkdir()
    for seed, name in enumerate("AB"):
        (folder / f"{name}.fits").write_bytes(image(name, seed))
    (folder / "s.fits").write_bytes(spectrum(7))
    (folder / "bright.fits").write_bytes(image("bright", level=1e7))
    (folder / "p.jpg").write_bytes(jpeg)
    return folder


def metadata(table: Any) -> dict[str, Any]:
    return {key.decode(): value.decode() for key, value in table.schema.metadata.items()}


def test_redshifts_of_files(run: Run, files: Path, tmp_path: Path) -> None:
    out, picture = tmp_path / "deep" / "z.parquet", tmp_path / "z.png"
    done = run("predict", "tok_z", files, "-o", out, "--pdf", "--plot", picture)
    assert done.exit_code == 1, done.output
    assert "3 of 5 objects" in done.output
    table = pq.read_table(out)
    about, rows = metadata(table), table.to_pylist()
    assert [row["id"] for row in rows] == ["A", "B", "sdss-0266-51630-0007"]
    head = json.loads(about["heads"])["tok_z"]
    assert head["origin"] == "built in"
    assert head["space"] == "toy@0123456789ab:tokens"
    edges = np.array(head["edges"])
    assert about["checkpoint"] == "toy@0123456789ab"
    for row in rows:
        pdf, centres = np.array(row["tok_z_pdf"]), (edges[1:] + edges[:-1]) / 2
        assert len(pdf) == len(edges) - 1 == 16
        assert pdf.sum() == pytest.approx(1)
        assert row["tok_z_mean"] == pytest.approx(pdf @ centres, abs=1e-6)
        assert row["tok_z_std"] == pytest.approx(np.sqrt(pdf @ (centres - pdf @ centres) ** 2), abs=1e-6)
        assert row["tok_z_mode"] == pytest.approx(centres[pdf.argmax()])
        below = np.concatenate([[0], np.cumsum(pdf)])
        quantiles = {"tok_z": 0.5, "tok_z_low68": 0.16, "tok_z_high68": 0.84, "tok_z_low95": 0.025}
        for name, share in (quantiles | {"tok_z_high95": 0.975}).items():
            assert np.interp(row[name], edges[1:], below[1:]) == pytest.approx(max(share, pdf[0]), abs=1e-5)
        assert ("z_posterior_saturated" in row["tok_z_flags"]) == (pdf[-1] >= 0.05)
        assert row["tok_z_typicality"] is None
        assert "toy" in row["qa_flags"]
    assert rows[0]["modalities"] == ["image.legacysurvey"]
    errors = pq.read_table(out.with_name("z.errors.parquet")).to_pylist()
    assert sorted(error["code"] for error in errors) == ["not_photometric", "value_out_of_range"]
    assert imread(picture).shape[1] > 1000


def test_redshifts_as_text_and_as_data(run: Run, files: Path) -> None:
    text = run("predict", "tok_z", files / "A.fits")
    assert text.exit_code == 0, text.output
    data = json.loads(run("predict", "tok_z", files / "A.fits", files / "s.fits", "--json", "--pdf").stdout)
    first, second = (row["predictions"]["tok_z"] for row in data["objects"])
    about, head, line = text.stdout.splitlines()
    assert about.startswith("tok_z (redshift, built in)")
    assert head.split()[:3] == ["object", "target", "value"]
    assert line.split()[:3] == ["A", "redshift", f"{first['numbers'][0]['value']:.5g}"]
    assert sum(second["density"]["probability"]) == pytest.approx(1)
    assert len(data["heads"]["tok_z"]["edges"]) == 17
    assert data["errors"] == []
    plain = json.loads(run("predict", "tok_z", files / "A.fits", "--json").stdout)
    assert "probability" not in plain["objects"][0]["predictions"]["tok_z"]["density"]
    assert "edges" not in plain["heads"]["tok_z"]


def test_a_checkpoint_without_redshifts(run: Run, engine: Any, files: Path, tmp_path: Path) -> None:
    engine.outputs = {"tok_image": engine.outputs["tok_image"]}
    done = run("predict", "tok_z", files, "-o", tmp_path / "z.parquet")
    assert done.exit_code == 1
    assert "modality_not_in_checkpoint" in done.output
    assert not (tmp_path / "z.parquet").exists()


def test_a_redshift_that_is_given_is_refused_alone(run: Run, engine: Any, core: Core, files: Path) -> None:
    """Only where it is asked to be a token, of a model that reads it."""
    engine.inputs = {**engine.inputs, "tok_z": engine.outputs["tok_z"]}
    plain = json.loads(run("predict", "tok_z", files / "s.fits", "--json").stdout)
    assert [set(tokens.ids) for tokens in engine.given] == [{"tok_spectrum_sdss"}]
    told = json.loads(run("predict", "tok_z", files / "s.fits", "--json", "--token", "redshift").stdout)
    assert [(error["code"], error["file"]) for error in told["errors"]] == [("label_given", "s.fits")]
    subjects = subjects_of(files / "s.fits") + subjects_of(files / "s.fits", tokens=("redshift",))
    first, second = core.predict(subjects, {"tok_z": core.shelf.open("tok_z")}).predictions
    answer = (first.answer or {})["tok_z"]
    assert isinstance(answer, Answer)
    assert answer.numbers[0].value == plain["objects"][0]["predictions"]["tok_z"]["numbers"][0]["value"]
    assert second.outcome.error is not None
    assert second.outcome.error.code == "label_given"


def subjects_of(path: Path, **options: Any) -> list[Subject]:
    (batch,) = read_batches(expand([path]), ReadOptions(**options))
    return list(batch.subjects)


def draws_of(done: Result, path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    assert done.exit_code == 0, done.output
    table = pq.read_table(path)
    return metadata(table), table.to_pylist()


def test_draws_of_files(run: Run, engine: Any, files: Path, tmp_path: Path) -> None:
    out, picture = tmp_path / "d.parquet", tmp_path / "d.png"
    command = ("generate", files, "--target", "spectrum.sdss", "-o", out, "--draws", 3, "--rounds", 2)
    done = run(*command, "--plot", picture, "--seed", 5)
    assert done.exit_code == 1, done.output
    assert "2 of 5 objects" in done.output
    codes = {error["code"] for error in pq.read_table(tmp_path / "d.errors.parquet").to_pylist()}
    assert codes == {"not_photometric", "value_out_of_range", "nothing_to_embed"}, "the spectrum itself is no input"
    about, rows = metadata(pq.read_table(out)), pq.read_table(out).to_pylist()
    assert [(row["id"], row["draw"]) for row in rows] == [(name, draw) for name in "AB" for draw in range(3)]
    assert json.loads(about["shape"]) == [20]
    assert about["target"] == "spectrum.sdss"
    assert about["unit"] == "1e-17 erg / (s cm2 Angstrom)"
    np.testing.assert_allclose(json.loads(about["wavelength"]), np.linspace(4000, 6000, 20), rtol=1e-6)
    assert json.loads(about["sampling"]) | {"draws": 3, "rounds": 2, "seed": 5} == json.loads(about["sampling"])
    for row in rows:
        np.testing.assert_array_equal(row["values"], np.repeat(row["tokens"][1:], 10))
        assert row["modalities"] == ["image.legacysurvey"]
    assert len({tuple(row["tokens"]) for row in rows}) == 6
    assert imread(picture).shape[0] > 200
    assert all("tok_image" in tokens.ids for tokens in engine.given)
    run(*command, "--seed", 5)
    assert pq.read_table(out).to_pylist() == rows
    run(*command, "--seed", 6)
    assert pq.read_table(out).to_pylist() != rows


def test_draws_do_not_depend_on_what_else_is_drawn(run: Run, files: Path, tmp_path: Path) -> None:
    """Also over the edge of a chunk."""
    out = tmp_path / "d.parquet"
    rest = ("--target", "spectrum.sdss", "-o", out, "--draws", 40)
    together = draws_of(run("generate", files / "A.fits", files / "B.fits", *rest), out)[1]
    alone = draws_of(run("generate", files / "B.fits", *rest), out)[1]
    assert together[40:] == alone


def test_filling_a_hole(run: Run, engine: Any, files: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.parquet"
    command = ("generate", files / "A.fits", "--target", "image.legacysurvey", "-o", out, "--draws", 5)
    about, rows = draws_of(run(*command, "--mask", "0,50,20,90", "--plot", tmp_path / "f.png"), out)
    assert all(tokens.mask["tok_image"].tolist() == [False, False, True, False] for tokens in engine.given)
    known = engine.given[0].ids["tok_image"]
    tokens = np.array([row["tokens"] for row in rows])
    np.testing.assert_array_equal(tokens[:, [0, 1, 3]], np.broadcast_to(known[[0, 1, 3]], (5, 3)))
    assert len(set(tokens[:, 2].tolist())) > 1
    assert json.loads(about["shape"]) == [4, 96, 96]
    assert json.loads(about["bands"]) == ["DES-G", "DES-R", "DES-I", "DES-Z"]
    assert json.loads(about["mask"]) == [0, 50, 20, 90]
    assert len(rows[0]["values"]) == 4 * 96 * 96
    assert imread(tmp_path / "f.png").shape[1] > 500
    done = run("generate", files / "s.fits", "--target", "image.legacysurvey", "-o", out, "--mask", "0,50,20,90")
    assert done.exit_code == 1
    assert "value_missing" in done.output


def test_keeping_wavelengths(run: Run, engine: Any, files: Path, tmp_path: Path) -> None:
    out = tmp_path / "k.parquet"
    command = ("generate", files / "s.fits", "--target", "spectrum.sdss", "-o", out, "--draws", 5)
    about, rows = draws_of(run(*command, "--keep", "3900,5000", "--plot", tmp_path / "k.png"), out)
    assert all(tokens.mask["tok_spectrum_sdss"].tolist() == [False, False, True] for tokens in engine.given)
    assert json.loads(about["keep"]) == [3900, 5000]
    assert len({row["tokens"][1] for row in rows}) == 1
    for keep, code in (("4100,4900", "option_invalid"), ("0,9000", "nothing_to_generate")):
        done = run(*command, "--keep", keep)
        assert done.exit_code == 1
        assert code in done.output


def test_inputs_are_chosen(run: Run, engine: Any, files: Path, tmp_path: Path) -> None:
    rest = ("--target", "legacysurvey.flux_r", "-o", tmp_path / "r.parquet", "--as-one", "X")
    done = run("generate", files / "A.fits", files / "s.fits", *rest, "--from", "spectrum.sdss", "--plot",
               tmp_path / "r.png")  # fmt: skip
    about, rows = draws_of(done, tmp_path / "r.parquet")
    assert {tuple(tokens.ids) for tokens in engine.given} == {("tok_spectrum_sdss",)}
    assert json.loads(about["from"]) == ["spectrum.sdss"]
    assert rows[0]["modalities"] == ["spectrum.sdss"]
    assert json.loads(about["shape"]) == [1]
    assert "wavelength" not in about
    engine.given.clear()
    draws_of(run("generate", files / "A.fits", files / "s.fits", *rest), tmp_path / "r.parquet")
    assert {frozenset(tokens.ids) for tokens in engine.given} == {frozenset({"tok_image", "tok_spectrum_sdss"})}


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--mask", "1,2,3"), 2),
        (("--mask", "1,2,3,4.5"), 2),
        (("--mask", "1,2,3,4"), 2),  # the target is no image
        (("--keep", "5000,4000"), 2),
        (("--keep", "blue"), 2),
        (("--draws", "0"), 2),
        (("--temperature", "-1"), 2),
        (("--top-p", "1.5"), 2),
        (("--schedule", "sudden"), 2),
        (("--from", "spectrum.sdss"), 2),  # what is drawn
        (("--from", "spectrum.gone"), 1),
        (("--target", "legacysurvey.flux_g"), 1),  # not predicted
        (("--target", "spectrum.gone"), 1),
    ],
)
def test_what_cannot_be_asked(run: Run, files: Path, tmp_path: Path, options: tuple[str, str], code: int) -> None:
    out = tmp_path / "n.parquet"
    done = run("generate", files / "A.fits", "--target", "spectrum.sdss", "-o", out, *options)
    assert done.exit_code == code, done.output
    assert options[0] in done.output or options[1] in done.output or options[1].split(".")[-1] in done.output
    assert not out.exists()


def test_progress_counts_every_round(engine: Any, core: Core, files: Path) -> None:
    subjects = subjects_of(files)
    told: list[int] = []
    core.generate(subjects, Wanted("tok_spectrum_sdss"), Sampling(rounds=7, draws=30), told.append)
    assert sum(told) == 7 * len(subjects)
    assert len(told) > 3
    told.clear()
    core.predict(subjects, {"tok_z": core.shelf.open("tok_z")}, told.append)
    assert sum(told) == len(subjects)


def test_the_model_in_the_package(mini: Run, tmp_path: Path) -> None:
    spectra = [SAMPLES / f"spec-3962760000000000{n}.fits.gz" for n in (1, 2)]
    done = mini("predict", "tok_z", *spectra, "--json", "--plot", tmp_path / "z.png")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["checkpoint"].startswith("albireo-mini@")
    for row in answer["objects"]:
        (number,) = row["predictions"]["tok_z"]["numbers"]
        inner, outer = number["intervals"]
        assert 0 <= outer["low"] <= inner["low"] <= number["value"] <= inner["high"] <= outer["high"] <= 1
    assert all(row["modalities"] == ["spectrum.sdss"] for row in answer["objects"])
    out = tmp_path / "d.parquet"
    about, rows = draws_of(
        mini("generate", spectra[0], "--target", "spectrum.desi", "-o", out, "--draws", 2, "--rounds", 2), out
    )
    assert json.loads(about["shape"]) == [8704]
    assert json.loads(about["wavelength"])[:2] == [3500.0, 3500.8]
    assert about["checkpoint"] == answer["checkpoint"]
    assert [len(row["tokens"]) for row in rows] == [273, 273]
    assert np.isfinite(rows[0]["values"]).all()
    cutout = SAMPLES / "cutout-39627600000000001.fits.gz"
    rest = ("--target", "image.legacysurvey", "-o", out, "--mask", "40,40,56,56", "--draws", 2, "--rounds", 2)
    about, rows = draws_of(mini("generate", cutout, *rest), out)
    one, other = (np.array(row["tokens"]).reshape(6, 6) for row in rows)
    np.testing.assert_array_equal(np.delete(one.ravel(), [14, 15, 20, 21]), np.delete(other.ravel(), [14, 15, 20, 21]))
    assert (one != other)[2:4, 2:4].any()


@pytest.mark.real
def test_the_redshift_of_a_real_spectrum(test_data: Path, tmp_path: Path) -> None:
    """From the flux alone: the file's own redshift is never among the tokens, and only the picture shows it."""
    from albireo.models.torch_engine import TorchEngine
    from albireo.tokenizers.checkpoint import MINI

    shown: list[Any] = []

    class Watched(TorchEngine):
        def logits(self, tokens: Any, targets: Any, attention: str | None = None) -> Any:
            shown.extend(tokens)
            return super().logits(tokens, targets, attention)

    def open_core(settings: object) -> Core:
        return Core(lambda: Watched.open(MINI), lambda: Collections(tmp_path / "c.sqlite"))

    path = test_data / "raw" / "sdss" / "spec-0266-51630-0168.fits"
    arguments = ["predict", "tok_z", str(path), "--json", "--pdf", "--plot", str(tmp_path / "z.png")]
    done = CliRunner().invoke(app, arguments, obj=open_core)
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)["objects"]
    density = row["predictions"]["tok_z"]["density"]
    assert sum(density["probability"]) == pytest.approx(1, abs=1e-5)
    assert 0 < density["std"] < 1
    assert [set(tokens.ids) for tokens in shown] == [{"tok_spectrum_sdss"}]
    assert imread(tmp_path / "z.png").size
