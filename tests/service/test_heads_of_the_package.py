"""Heads on the model in the package, end to end: labels of simulated objects, a fit, answers on every door."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import Table
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from albireo.observations.sky import simulate
from albireo.observations.sky_files import write_photometry
from albireo.service.app import create_app
from albireo.service.cli import app
from albireo.service.core import Core
from albireo.service.settings import Settings

SAMPLES = Path(__file__).parent.parent.parent / "observations" / "samples"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the heads `far` and `kind`, fitted on the photometry of 120 simulated objects."""
    folder = tmp_path_factory.mktemp("mini")
    objects = [replace(one, id=f"s{i}") for i, one in enumerate(simulate(120, np.random.default_rng(11)))]
    write_photometry(objects, folder / "sky.ecsv")
    for name, target, task in (("far", "redshift", "redshift"), ("kind", "class", "classification")):
        labels = ("--labels", folder / "sky.ecsv", "--target", target, "--task", task)
        run("heads", "fit", name, folder / "sky.ecsv", *labels, "--data", folder, "--epochs", 5)
    return folder


def run(*arguments: object) -> Any:
    done = CliRunner(env={"ALBIREO_THREADS": "1"}).invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_from_labels_to_answers(data: Path) -> None:
    told = run("predict", "far,kind", SAMPLES / "photometry.ecsv", "--data", data)
    assert len(told["objects"]) == 16
    for row in told["objects"]:
        (number,) = row["predictions"]["far"]["numbers"]
        assert 0 <= number["intervals"][1]["low"] <= number["value"] <= number["intervals"][1]["high"] <= 5
        assert row["predictions"]["kind"]["class"] in {"GALAXY", "QSO", "STAR"}
    card = run("heads", "show", "kind", "--data", data)["card"]
    assert card["checkpoint"] == "albireo-mini"
    assert sum(card["data"]["objects"].values()) == 120


def test_http_says_what_the_command_line_says(data: Path) -> None:
    told = run("predict", "far,kind", SAMPLES / "photometry.ecsv", "--data", data, "--pdf")
    settings = Settings(data_folder=data)
    with TestClient(create_app(Core.local(settings), settings)) as client:
        table = ("photometry.ecsv", (SAMPLES / "photometry.ecsv").read_bytes())
        answer = client.post("/v1/predict?heads=far,kind", files=[("file", table)])
        assert answer.status_code == 200, answer.text
        heads = client.get("/v1/heads").json()["heads"]
    assert [head["name"] for head in heads if head["fits"]] == [
        "class", "far", "galaxy", "kind", "redshift", "stellar", "tok_z",
    ]  # fmt: skip
    assert answer.json()["space"] == told["space"]
    assert answer.json()["heads"]["far"]["edges"] == told["heads"]["far"]["edges"]
    for item, row in zip(answer.json()["items"], told["objects"], strict=True):
        said = {name: {k: v for k, v in one.items() if k != "error"} for name, one in item["predictions"].items()}
        assert said == row["predictions"]


def without_labels(path: Path) -> Path:
    """The same measurements without redshift, class and position: a table without columns, FITS without cards."""
    if path.suffix == ".ecsv":
        table = Table.read(path, format="ascii.ecsv")
        table.remove_columns(["ra", "dec", "redshift", "class", "subclass"])
        table.write(path, format="ascii.ecsv", overwrite=True)
        return path
    with fits.open(io.BytesIO(path.read_bytes())) as hdus:
        for hdu in hdus:
            for card in ("RA", "DEC", "PLUG_RA", "PLUG_DEC", "RA_TARG", "DEC_TARG", "CRVAL1", "CRVAL2", "Z"):
                hdu.header.remove(card, ignore_missing=True)
        if "SPECOBJ" in hdus:
            kept = [
                c for c in hdus["SPECOBJ"].columns if c.name not in ("PLUG_RA", "PLUG_DEC", "CLASS", "SUBCLASS", "Z")
            ]
            hdus["SPECOBJ"] = fits.BinTableHDU.from_columns(kept, name="SPECOBJ")
        hdus.writeto(path, overwrite=True)
    return path


def test_nothing_leaks(data: Path, tmp_path: Path) -> None:
    """Answers are the same, to the byte, whether files state redshift, class and position or not."""
    import gzip

    said = {}
    for name in ("with", "without"):
        folder = tmp_path / name
        folder.mkdir()
        files = []
        for sample in ("photometry.ecsv", "spec-39627600000000001.fits.gz", "cutout-39627600000000001.fits.gz"):
            content = (SAMPLES / sample).read_bytes()
            file = folder / sample.removesuffix(".gz")
            file.write_bytes(gzip.decompress(content) if sample.endswith(".gz") else content)
            files.append(without_labels(file) if name == "without" else file)
        heads = "far,kind,tok_z"
        out = folder / "out.parquet"
        run("predict", heads, *files, "--join", "--data", data, "-o", out, "--pdf")
        table = pq.read_table(out)
        assert "spectrum.sdss" in {m for row in table["modalities"].to_pylist() for m in row}
        assert (table["ra"].null_count == 0) == (name == "with")
        said[name] = table.select([c for c in table.column_names if c.startswith(("id", "far", "kind", "tok_z"))])
    assert said["with"].num_rows == 16
    assert said["with"].equals(said["without"])
