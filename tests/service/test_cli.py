"""The command line: starts fast, says what it understood, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from albireo.index.collection import Collections
from albireo.service.cli import app
from albireo.service.core import Core

Make = Callable[..., bytes]
Run = Callable[..., Result]


@pytest.fixture
def run(engine, tmp_path: Path) -> Run:
    """Runs a command with the toy engine and a data folder of the test's own."""

    def open_core(settings) -> Core:
        return Core(lambda: engine, lambda: Collections(tmp_path / "data" / "collections.sqlite"))

    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments], obj=open_core)


@pytest.fixture
def folder(tmp_path: Path, image: Make, spectrum: Make, jpeg: bytes) -> Path:
    """Images A, B, C, a spectrum below, a picture, and a hidden file."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for seed, name in enumerate("ABC"):
        (tmp_path / "in" / f"{name}.fits").write_bytes(image(name, seed))
    (tmp_path / "in" / "deep" / "s.fits").write_bytes(spectrum(7))
    (tmp_path / "in" / "p.jpg").write_bytes(jpeg)
    (tmp_path / "in" / ".hidden").write_bytes(b"no file of ours")
    return tmp_path / "in"


def test_help_answers_at_once() -> None:
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "albireo.service.cli", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - began)
    assert b"validate" in done.stdout
    assert min(seconds) < 0.5, seconds


@pytest.mark.parametrize(
    "name",
    [
        "validate",
        "embed",
        "search",
        "serve",
        "demo",
        "index add",
        "predict",
        "heads fit",
        "heads ls",
        "heads show",
        "heads evaluate",
        "generate",
        "models pull",
        "models ls",
        "models show",
        "models verify",
    ],
)
def test_every_command_teaches(run: Run, name: str) -> None:
    text = run(*name.split(), "--help").output
    assert "Examples:" in text
    assert f"albireo {name}" in text
    assert "--json" in text


@pytest.mark.parametrize(
    "name", ["validate", "embed", "search", "index add", "predict", "generate", "heads fit", "heads evaluate"]
)
def test_reading_flags_are_shared(run: Run, name: str) -> None:
    text = run(*name.split(), "--help").output
    flags = "--at --positions --resample --survey --release --bands --pixel-scale --unit --zero-point --medium --frame"
    more = "--system --kind --extinction-corrected --no-extinction-corrected --column --token"
    assert [flag for flag in (flags + " " + more).split() if flag not in text] == []


def test_validate_never_loads_torch(tmp_path: Path, image: Make) -> None:
    (tmp_path / "a.fits").write_bytes(image("A"))
    model = tiny_checkpoint(tmp_path / "tiny")
    program = (
        "import sys\nfrom albireo.service.cli import app\n"
        f"code = app(['validate', {str(tmp_path / 'a.fits')!r}, '--model', {str(model)!r}], standalone_mode=False)\n"
        "print('torch' in sys.modules, 'faiss' in sys.modules, code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "object A" in done.stdout
    assert "usable, 4 tokens" in done.stdout
    assert done.stdout.splitlines()[-1] == "False False 0"


def tiny_checkpoint(folder: Path) -> Path:
    """A folder that says what it reads, without weights: enough to describe it."""
    (folder / "codecs" / "image").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"dim": 8, "domains_in": ["tok_image"], "domains_out": []}))
    shapes = {
        "encoder_embeddings.tok_image.token_emb.weight": [10, 8],
        "encoder_embeddings.tok_image.pos_emb": [1, 4, 8],
    }
    header = {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    return folder


def test_validate_a_folder(run: Run, folder: Path) -> None:
    done = run("validate", folder)
    assert done.exit_code == 0, done.output
    assert "object A" in done.output
    assert "DES-G DES-R DES-I DES-Z" in done.output
    assert "995 pixels used, 5 masked" in done.output
    assert "not_photometric" in done.output
    assert "5 of 5 files recognised, 4 of 5 objects usable" in done.output
    assert run("validate", folder, "--require-usable").exit_code == 1


def test_validate_as_data(run: Run, folder: Path) -> None:
    done = run("validate", folder / "A.fits", folder / "p.jpg", "--json")
    answer = json.loads(done.stdout)
    assert [file["format"] for file in answer["files"]] == ["fits_image", "jpeg"]
    assert [item["usable"] for item in answer["items"]] == [True, False]


def test_validate_exit_codes(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"\0\1\2 nothing known")
    unknown = run("validate", folder / "A.fits", tmp_path / "x.bin")
    assert unknown.exit_code == 1
    assert "unknown_format" in unknown.output
    assert "object A" in unknown.output
    missing = run("validate", tmp_path / "none.fits")
    assert missing.exit_code == 1
    assert "file_not_found" in missing.output
    damaged = tmp_path / "cut.fits"
    damaged.write_bytes((folder / "A.fits").read_bytes()[:4000])
    assert run("validate", damaged).exit_code == 1
    assert run("validate").exit_code == 2
    assert run("validate", folder / "A.fits", "--medium", "water").exit_code == 2
    assert run("validate", folder / "A.fits", "--at", "12").exit_code == 2


def test_flags_reach_the_reader(run: Run, tmp_path: Path, image: Make) -> None:
    (tmp_path / "a.fits").write_bytes(image("A", BANDS=None, SURVEY=None))
    bare = run("validate", tmp_path / "a.fits", "--json")
    assert json.loads(bare.stdout)["items"][0]["usable"] is False
    told = run("validate", tmp_path / "a.fits", "--survey", "legacysurvey", "--bands", "g,r,i,z", "--json")
    assert json.loads(told.stdout)["items"][0]["usable"] is True


def test_embed_writes_embeddings_and_errors(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "table.parquet"
    done = run("embed", folder, "-o", out)
    assert done.exit_code == 1
    assert "4 of 5 objects embedded" in done.output
    table = pq.read_table(out)
    assert table.schema.metadata[b"space"] == b"toy@0123456789ab:mean"
    assert table.column("id").to_pylist() == ["A", "B", "C", table.column("id").to_pylist()[3]]
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[16]"
    row = table.to_pylist()[0]
    assert (row["file"], row["n_tokens"], row["modalities"]) == ("A.fits", 4, ["image.legacysurvey"])
    assert len(row["sha256"]) == 64
    (error,) = pq.read_table(tmp_path / "out" / "table.errors.parquet").to_pylist()
    assert (error["file"], error["code"]) == ("p.jpg", "not_photometric")
    assert sorted(p.name for p in out.parent.iterdir()) == ["table.errors.parquet", "table.parquet"]


def test_embed_without_errors(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    done = run("embed", folder / "A.fits", "-o", out, "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["embedded"] == 1
    assert pq.read_table(tmp_path / "t.errors.parquet").num_rows == 0


def test_embed_tells_of_errors_where_there_are_any(run: Run, folder: Path, tmp_path: Path) -> None:
    """Into a folder no table of errors is written when nothing failed."""
    clean = run("embed", folder / "A.fits", "-o", tmp_path / "clean")
    assert clean.exit_code == 0
    assert "errors:" not in clean.output
    told = json.loads(run("embed", folder / "A.fits", "-o", tmp_path / "again", "--json").stdout)
    assert told["errors_output"] is None
    failed = run("embed", folder, "-o", tmp_path / "failed")
    assert f"errors: {tmp_path / 'failed' / '_errors'}" in failed.output.replace("\n", "")
    assert (tmp_path / "failed" / "_errors").is_dir()


def test_pooling_by_modality_makes_a_row_each(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    files = (folder / "A.fits", folder / "deep" / "s.fits")
    done = run("embed", *files, "--as-one", "NGC 1", "--pooling", "mean_per_modality", "-o", out)
    assert done.exit_code == 0, done.output
    rows = pq.read_table(out).to_pylist()
    assert [row["row"] for row in rows] == ["image.legacysurvey", "spectrum.sdss"]
    assert {row["id"] for row in rows} == {"NGC 1"}
    assert {row["file"] for row in rows} == {"A.fits + s.fits"}


def test_index_and_search(run: Run, folder: Path, tmp_path: Path, image: Make) -> None:
    added = run("index", "add", folder, "--collection", "c", "--json")
    assert added.exit_code == 1
    assert json.loads(added.stdout)["indexed"] == 4
    assert [error["code"] for error in json.loads(added.stdout)["errors"]] == ["not_photometric"]
    by_id = json.loads(run("search", "-c", "c", "--id", "A", "-k", 2, "--json").stdout)
    assert "A" not in [hit["id"] for hit in by_id["results"][0]["hits"]]
    query = tmp_path / "x.fits"
    query.write_bytes(image("X", 1))
    by_file = json.loads(run("search", "-c", "c", "--file", query, "-k", 2, "--json").stdout)
    best = by_file["results"][0]["hits"][0]
    assert best["id"] == "B"
    assert best["score"] == pytest.approx(1.0, abs=1e-6)
    text = run("search", "-c", "c", "--id", "A", "-k", 9)
    assert text.exit_code == 0
    assert "nearest to A" in text.output
    assert "only 3" in text.output


def test_search_that_cannot_be(run: Run, folder: Path) -> None:
    unknown = run("search", "-c", "none", "--id", "A")
    assert unknown.exit_code == 1
    assert "collection_unknown" in unknown.output
    as_data = run("search", "-c", "none", "--id", "A", "--json")
    assert json.loads(as_data.stdout)["error"]["code"] == "collection_unknown"
    assert run("search").exit_code == 2
    assert run("search", "--id", "A", "--file", folder / "A.fits").exit_code == 2


def test_the_same_objects_by_command_and_by_http(run: Run, client: Any, folder: Path, tmp_path: Path) -> None:
    run("embed", folder / "A.fits", "-o", tmp_path / "t.parquet")
    (row,) = pq.read_table(tmp_path / "t.parquet").to_pylist()
    answer = client.post("/v1/embed", files=[("file", ("A.fits", (folder / "A.fits").read_bytes()))]).json()
    np.testing.assert_array_equal(np.float32(row["embedding"]), np.float32(answer["items"][0]["embedding"]))
    assert pq.read_schema(tmp_path / "t.parquet").metadata[b"space"].decode() == answer["space"]
