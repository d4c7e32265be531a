"""`albireo embed` on its way: killed, stopped, out of disk or damaged, it goes on, and the output is the same."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from albireo.index.collection import Collections
from albireo.observations.errors import AlbireoError, Conflict
from albireo.observations.observation import Image, Observation, Scalar
from albireo.observations.options import ReadOptions
from albireo.observations.reading import FORMATS
from albireo.service import bulk
from albireo.service.bulk import Job, Limits, ahead, cuts, embed
from albireo.service.bulk_reading import KIN, Ids, units
from albireo.service.bulk_run import MANIFEST
from albireo.service.cli import app
from albireo.service.core import Core
from albireo.service.embed_cli import bar_text
from albireo.service.subjects import Subject
from albireo.tokenizers.checkpoint import TokenSpec
from tests.service.conftest import ToyEngine

SCENES = Path(__file__).parent / "bulk_scenes.py"

OPTIONS = ReadOptions(
    survey="legacysurvey", release="dr10", kind="model", system="AB", extinction_corrected=False, unit="nanomaggy"
)


def chunks_in(folder: Path) -> list[dict[str, Any]]:
    """Lines of the manifest, but for the first."""
    return [json.loads(line) for line in (folder / MANIFEST).read_text().splitlines()[1:]]


# Killed, stopped, out of disk: in processes of their own


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What bulk_scenes.py saw. It starts Python once and forks, so that many processes can be killed in a second."""
    folder = tmp_path_factory.mktemp("scenes")
    done = subprocess.run([sys.executable, SCENES, folder], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"folder": folder}


def test_killed_at_any_moment(scenes: dict[str, Any]) -> None:
    killed = scenes["killed"]
    assert killed["statuses"][:-1] == [-9] * 7
    assert killed["statuses"][-1] == 1  # some objects fail
    assert len(set(killed["before"])) >= 5, "the kills were not at different moments"
    for name in ("rows.parquet", "rows.errors.parquet"):
        clean = (scenes["folder"] / "clean" / name).read_bytes()
        assert (scenes["folder"] / "killed" / name).read_bytes() == clean
    assert sorted(path.name for path in (scenes["folder"] / "killed").iterdir()) == [
        "rows.errors.parquet",
        "rows.parquet",
    ]


def test_nothing_that_was_finished_is_computed_again(scenes: dict[str, Any]) -> None:
    """Chunks are numbered by their first object's place; each attempt says which objects it computed."""
    killed = scenes["killed"]
    for finished, computed in zip(killed["finished"], killed["computed"], strict=True):
        assert not set(finished) & set(computed)
    assert any(killed["finished"])


def test_the_clean_run_has_every_object_once(scenes: dict[str, Any]) -> None:
    rows = pq.read_table(scenes["folder"] / "clean" / "rows.parquet")
    ids = rows.column("id").to_pylist()
    assert len(set(ids)) == len(ids) == scenes["objects"] - scenes["bad"]
    errors = pq.read_table(scenes["folder"] / "clean" / "rows.errors.parquet").to_pylist()
    assert sorted(error["code"] for error in errors) == sorted(scenes["codes"])


def test_ctrl_c(scenes: dict[str, Any]) -> None:
    stopped = scenes["stopped"]
    assert stopped["status"] == 130
    assert "the same command with --resume goes on" in stopped["said"]
    assert 3 <= stopped["finished"] < scenes["chunks"]
    assert stopped["left"] == []  # no draft of a part that was dropped
    assert (scenes["folder"] / "stopped" / "rows.parquet").read_bytes() == (
        scenes["folder"] / "clean" / "rows.parquet"
    ).read_bytes()


def test_out_of_disk(scenes: dict[str, Any]) -> None:
    full = scenes["full"]
    assert full["status"] == 1
    assert "storage_full" in full["said"]
    assert "--resume goes on" in full["said"]
    assert 3 <= full["finished"] < scenes["chunks"]
    assert full["computed_again"] == []
    assert (scenes["folder"] / "full" / "rows.parquet").read_bytes() == (
        scenes["folder"] / "clean" / "rows.parquet"
    ).read_bytes()


def test_two_at_one_run(scenes: dict[str, Any]) -> None:
    assert scenes["second"]["status"] == 1
    assert "run_unfinished" in scenes["second"]["said"]
    assert "another process" in scenes["second"]["said"]


# In this process


class CountingEngine(ToyEngine):
    """Knows which fluxes it was given, and says how many objects a batch had in the last digits of its vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.fails_after: int | None = None

    def tokenize(self, observations: Sequence[Observation], kinds: Any = None) -> list[Any]:
        self.seen += [one.id for one in observations]
        if self.fails_after is not None and len(self.seen) > self.fails_after:
            raise RuntimeError("gone")
        return super().tokenize(observations, kinds)

    def embed_each(self, tokens: Sequence[Any], pooling: Any = "mean") -> list[Any]:
        out = super().embed_each(tokens, pooling)
        return [replace(one, values=one.values + np.float32(1e-6 * len(out))) for one in out]


@pytest.fixture
def counting() -> CountingEngine:
    return CountingEngine()


@pytest.fixture
def core(counting: CountingEngine, tmp_path: Path) -> Core:
    return Core(lambda: counting, lambda: Collections(tmp_path / "data" / "collections.sqlite"))


@pytest.fixture
def tables(tmp_path: Path) -> list[Path]:
    """Three tables of 10 fluxes each; the second has one that the engine refuses."""
    folder = tmp_path / "in"
    folder.mkdir()
    for k in range(3):
        rows = [f"t{k}-{n},{1 + n + 10 * k},{2e6 if (k, n) == (1, 4) else 2.5}" for n in range(10)]
        (folder / f"t{k}.csv").write_text("\n".join(["id,flux_g,flux_r", *rows]) + "\n")
    return sorted(folder.iterdir())


@pytest.fixture
def job(tables: list[Path], tmp_path: Path) -> Job:
    return Job(tables, tmp_path / "out" / "rows.parquet", OPTIONS, limits=Limits(objects=4))


@pytest.fixture
def broken_off(job: Job, core: Core, counting: CountingEngine) -> Job:
    """A run whose engine failed in the fourth chunk."""
    counting.fails_after = 14
    with pytest.raises(RuntimeError):
        embed(core, job)
    assert len(chunks_in(job.run_folder)) == 3
    counting.fails_after = None
    counting.seen.clear()
    return job


def test_an_unfinished_run_is_never_overwritten(broken_off: Job, core: Core) -> None:
    with pytest.raises(Conflict) as caught:
        embed(core, broken_off)
    assert caught.value.code == "run_unfinished"
    assert "3 chunks" in caught.value.message
    assert "--resume" in str(caught.value.fix)
    assert len(chunks_in(broken_off.run_folder)) == 3


def test_it_goes_on(broken_off: Job, core: Core, counting: CountingEngine, tmp_path: Path) -> None:
    told: list[tuple[int, int, float]] = []
    summary = embed(core, broken_off, True, lambda p: told.append((p.files, p.objects, p.size)))
    assert counting.seen == [f"t{k}-{n}" for k in range(3) for n in range(10)][12:]
    assert (summary.objects, summary.failed, summary.chunks, summary.resumed) == (30, 1, 8, 3)
    assert [error["id"] for error in summary.errors] == ["t1-4"]
    assert told == sorted(told)
    assert told[-1][:2] == (3, 30)
    assert told[-1][2] == pytest.approx(sum(path.stat().st_size for path in broken_off.paths))
    clean = embed(core, replace(broken_off, output=tmp_path / "clean.parquet"))
    assert broken_off.output.read_bytes() == clean.output.read_bytes()
    assert broken_off.errors_output.read_bytes() == clean.errors_output.read_bytes()


OTHERWISE: dict[str, tuple[str, Callable[[Job], Job]]] = {
    "pooling": ("space", lambda job: replace(job, pooling="mean_per_modality")),
    "normalize": ("space", lambda job: replace(job, normalize=True)),
    "reading": ("reading", lambda job: replace(job, options=replace(job.options, release="dr9"))),
    "columns": ("reading", lambda job: replace(job, options=replace(job.options, columns={"g": "flux_g"}))),
    "join": ("join", lambda job: replace(job, join=True)),
    "as_one": ("as_one", lambda job: replace(job, as_one="x")),
    "chunk": ("limits", lambda job: replace(job, limits=Limits(objects=5))),
    "a file less": ("inputs", lambda job: replace(job, paths=job.paths[:-1])),
    "another order": ("inputs", lambda job: replace(job, paths=job.paths[::-1])),
}


@pytest.mark.parametrize("what", OTHERWISE)
def test_a_run_of_something_else_is_refused_by_name(broken_off: Job, core: Core, what: str) -> None:
    field, change = OTHERWISE[what]
    with pytest.raises(Conflict) as caught:
        embed(core, change(broken_off), resume=True)
    assert caught.value.code == "run_differs"
    assert caught.value.field == field
    assert len(chunks_in(broken_off.run_folder)) == 3


def test_another_model_is_refused_by_name(broken_off: Job, core: Core, counting: CountingEngine) -> None:
    counting.space = lambda pooling, normalize=False: "other@0:mean"  # type: ignore[method-assign]
    with pytest.raises(Conflict, match=r"space was .*toy@.* is now .*other@"):
        embed(core, broken_off, resume=True)


def test_other_contents_are_refused_by_name(broken_off: Job, core: Core) -> None:
    path = broken_off.paths[0]
    whole = path.read_text()
    path.write_text(whole + "t0-10,3,4\n")
    with pytest.raises(Conflict, match=r"t0\.csv had \d+ bytes and has \d+ now"):
        embed(core, broken_off, resume=True)
    path.write_text(whole.replace("2.5", "2.6"))
    with pytest.raises(Conflict, match=r"t0\.csv is not what it was"):
        embed(core, broken_off, resume=True)
    path.write_text(whole)
    assert embed(core, broken_off, resume=True).objects == 30


@pytest.mark.parametrize(
    "damage", ["part", "part is gone", "errors", "a line", "a line in part", "a part without line"]
)
def test_damage_is_computed_again(job: Job, core: Core, counting: CountingEngine, tmp_path: Path, damage: str) -> None:
    clean = embed(core, job).output.read_bytes()
    counting.fails_after = len(counting.seen) + 22
    again = replace(job, output=tmp_path / "again.parquet")
    with pytest.raises(RuntimeError):
        embed(core, again)
    counting.fails_after = None
    counting.seen.clear()
    manifest = again.run_folder / MANIFEST
    lines = manifest.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6
    part = again.run_folder / json.loads(lines[4])["part"][0]
    expected = {"t1-2", "t1-3", "t1-5", "t1-4"}
    if damage == "part":
        content = bytearray(part.read_bytes())
        content[100] ^= 1
        part.write_bytes(content)
    elif damage == "part is gone":
        part.unlink()
    elif damage == "errors":
        (again.run_folder / "_errors" / part.name).write_bytes(b"")
    elif damage == "a line":
        manifest.write_bytes(b"".join([*lines[:4], lines[4].replace(b'"rows": 3', b'"rows": 4'), *lines[5:]]))
    elif damage == "a line in part":
        manifest.write_bytes(b"".join(lines)[:-50])
        expected = {"t1-6", "t1-7", "t1-8", "t1-9"}
    else:
        manifest.write_bytes(b"".join(lines[:-1]))
        expected = {"t1-6", "t1-7", "t1-8", "t1-9"}
    summary = embed(core, again, resume=True)
    assert len(summary.damaged) == (damage in ("part", "part is gone", "errors"))
    assert {name for name in counting.seen if not name.startswith("t2")} == expected
    assert again.output.read_bytes() == clean


def test_a_manifest_without_its_beginning(broken_off: Job, core: Core) -> None:
    manifest = broken_off.run_folder / MANIFEST
    manifest.write_bytes(b"\0" + manifest.read_bytes()[1:])
    with pytest.raises(AlbireoError) as caught:
        embed(core, broken_off, resume=True)
    assert caught.value.code == "storage_unavailable"
    assert "remove the folder" in str(caught.value.fix)


def test_killed_while_parts_were_put_together(broken_off: Job, core: Core, counting: CountingEngine) -> None:
    """Every chunk is finished, and a draft of the table lies about; or the table is there, and parts are half gone."""
    whole = embed(core, broken_off, resume=True).output.read_bytes()
    counting.seen.clear()
    kept = broken_off.run_folder.with_name("kept")
    in_folder = replace(broken_off, output=kept)
    embed(core, in_folder)
    shutil.copytree(kept, broken_off.run_folder)
    (broken_off.run_folder / ".rows.tmp").write_bytes(b"PAR1 half")
    broken_off.output.unlink()
    counting.seen.clear()
    embed(core, broken_off, resume=True)
    assert counting.seen == []
    assert broken_off.output.read_bytes() == whole
    old = broken_off.run_folder.with_name(f".{broken_off.run_folder.name}.old")
    shutil.copytree(kept, old)
    (old / MANIFEST).unlink()
    assert embed(core, broken_off).objects == 30
    assert not old.exists()


def test_a_finished_table_is_not_made_again(job: Job, core: Core, counting: CountingEngine) -> None:
    first = embed(core, job)
    written = job.output.stat().st_mtime_ns
    counting.seen.clear()
    again = embed(core, job, resume=True)
    assert counting.seen == []
    assert (again.objects, again.failed, again.tokens, again.errors) == (30, 1, first.tokens, first.errors)
    assert job.output.stat().st_mtime_ns == written
    with pytest.raises(Conflict, match="another run"):
        embed(core, replace(job, normalize=True), resume=True)
    embed(core, replace(job, normalize=True))
    assert job.output.stat().st_mtime_ns != written


def test_into_a_folder(job: Job, core: Core, counting: CountingEngine, tmp_path: Path) -> None:
    table = pq.read_table(embed(core, job).output)
    folder = replace(job, output=tmp_path / "parts")
    summary = embed(core, folder)
    assert pq.read_table(folder.output).equals(table)
    assert sorted(path.name for path in folder.output.iterdir()) == [
        ".lock", "_errors", MANIFEST, *(f"part-000000-00{k}.parquet" for k in range(8))
    ]  # fmt: skip
    assert pq.read_table(folder.errors_output).column("id").to_pylist() == ["t1-4"]
    lines = chunks_in(folder.output)
    assert sum(line["rows"] for line in lines) == 29
    assert lines[0]["pieces"][0]["file"] == str(job.paths[0])
    assert {line["space"] for line in lines} == {summary.space}
    counting.seen.clear()
    assert embed(core, folder, resume=True).resumed == 8
    assert counting.seen == []
    with pytest.raises(Conflict):
        embed(core, folder)
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.parquet").write_bytes(b"x")
    with pytest.raises(AlbireoError, match="other files"):
        embed(core, replace(job, output=other))


@pytest.mark.parametrize("together", [{"join": True}, {"as_one": "x"}])
def test_objects_of_several_files(
    job: Job, core: Core, counting: CountingEngine, tmp_path: Path, together: dict[str, Any]
) -> None:
    for column in "gr":
        rows = [f"o{n},{n + 1}" for n in range(10 if "join" in together else 1)]
        (tmp_path / f"{column}.csv").write_text("\n".join([f"id,flux_{column}", *rows]) + "\n")
    job = replace(job, paths=[tmp_path / "g.csv", tmp_path / "r.csv"], **together)
    counting.fails_after = 4 if "join" in together else 0
    with pytest.raises(RuntimeError):
        embed(core, job)
    counting.fails_after = None
    counting.seen.clear()
    summary = embed(core, job, resume=True)
    rows = pq.read_table(job.output).to_pylist()
    assert [row["n_tokens"] for row in rows] == [2] * summary.objects
    assert counting.seen == ([f"o{n}" for n in range(4, 10)] if "join" in together else ["x"])


# Reading


def big_table(path: Path, rows: int, twice: Sequence[int] = ()) -> None:
    """A CSV of more than 1 MiB; rows `twice` have the id of row 0."""
    note = "x" * (1 + (1 << 20) // rows)
    lines = [f"{'r0' if n in twice else f'r{n}'},{n + 1},2.5,{note}" for n in range(rows)]
    path.write_text("\n".join(["id,flux_g,flux_r,note", *lines]) + "\n")


def test_a_large_table_is_read_span_by_span(job: Job, core: Core, counting: CountingEngine, tmp_path: Path) -> None:
    big_table(tmp_path / "big.csv", 50, twice=[1, 30, 44])
    job = replace(job, paths=[tmp_path / "big.csv"], limits=Limits(objects=8))
    found = list(units(job.paths, OPTIONS, 8))
    assert [unit.pieces[0].rows for unit in found] == [(n, min(n + 8, 50)) for n in range(0, 50, 8)]
    assert sum(unit.size for unit in found) == job.paths[0].stat().st_size
    assert [unit.files for unit in found] == [0] * 6 + [1]
    counting.fails_after = 20
    with pytest.raises(RuntimeError):
        embed(core, job)
    counting.fails_after = None
    embed(core, job, resume=True)
    ids = pq.read_table(job.output).column("id").to_pylist()
    # Rows 0 and 1 stand in one span and refuse each other; of the later two, the second repeats the first.
    assert ids == [f"r{n}" if n != 30 else "r0" for n in range(50) if n not in (0, 1, 44)]
    errors = pq.read_table(job.errors_output).to_pylist()
    assert [error["code"] for error in errors] == ["id_duplicate"] * 3
    assert "earlier row" in errors[2]["message"]


def test_units_do_not_depend_on_what_was_read(tables: list[Path], tmp_path: Path) -> None:
    big_table(tmp_path / "in" / "a.csv", 20)
    paths = sorted((tmp_path / "in").iterdir())
    first = [unit.pieces for unit in units(paths, OPTIONS, 6)]
    read = list(units(paths, OPTIONS, 6))
    assert sum(len(unit.read()) for unit in read) == 50
    assert [unit.pieces for unit in read] == first
    assert [[Path(piece.file).name for piece in pieces] for pieces in first] == [["a.csv"]] * 4 + [
        ["t0.csv", "t1.csv", "t2.csv"]
    ]


def test_formats_that_complete_each_other_are_read_together() -> None:
    alone = FORMATS[0].completes
    with_companions = {row.name for row in FORMATS if row.completes is not alone and row.name != "fits_image"}
    assert with_companions <= KIN <= {row.name for row in FORMATS}


def test_companions_are_in_one_unit(tmp_path: Path) -> None:
    (tmp_path / "curves.csv").write_text("object_id,mjd,passband,flux,flux_err,detected\n1,59000.5,2,10.0,1.0,1\n")
    (tmp_path / "about.csv").write_text("object_id,ra,decl,ddf,hostgal_photoz,target\n1,10.0,-20.0,1,0.3,90\n")
    (tmp_path / "other.csv").write_text("id,flux_g\na,1.5\n")
    found = list(units(sorted(tmp_path.iterdir()), ReadOptions(), 100))
    names = [[Path(piece.file).name for piece in unit.pieces] for unit in found]
    assert names == [["other.csv"], ["about.csv", "curves.csv"]]
    (subject,) = found[1].read()
    assert subject.observation is not None
    assert subject.observation.metadata["hostgal_photoz"] == 0.3


def test_a_file_that_cannot_be_read_fails_alone(job: Job, core: Core, tmp_path: Path) -> None:
    (tmp_path / "in" / "u.bin").write_bytes(b"\0\1 nothing known")
    paths = [*job.paths, tmp_path / "in" / "u.bin", tmp_path / "none.fits"]
    summary = embed(core, replace(job, paths=paths))
    assert (summary.objects, summary.failed) == (32, 3)
    codes = pq.read_table(job.errors_output).column("code").to_pylist()
    assert sorted(codes) == ["file_not_found", "unknown_format", "value_out_of_range"]


def test_one_is_read_ahead_and_no_more() -> None:
    made: list[int] = []
    reading = threading.Event()

    def things() -> Any:
        for n in range(6):
            made.append(n)
            if n == 1:
                reading.set()
            yield n

    for n in ahead(things()):
        if n == 0:
            assert reading.wait(10), "the next is not made while one is used"
        assert len(made) <= n + 2
    assert made == list(range(6))


def test_an_error_while_reading_ahead_is_raised() -> None:
    def things() -> Any:
        yield 1
        raise OSError("disk")

    taken = []
    with pytest.raises(OSError, match="disk"):
        taken.extend(ahead(things()))


@given(calls=st.lists(st.lists(st.sampled_from([*"abcdef", None]), max_size=6), max_size=8))
def test_ids_that_were_met(calls: list[list[str | None]]) -> None:
    ids, known = Ids(), set[str | None]()
    for call in calls:
        assert ids.add(call) == [name is not None and name in known for name in call]
        known |= set(call)


# Chunks

INPUTS = {"tok_image": TokenSpec(576, 10_000), "tok_flux_g": TokenSpec(1, 1000)}


def subject(kind: str) -> Subject:
    if kind == "bad":
        return Subject(None, "f", error=AlbireoError("internal", "x"))
    flux = np.zeros((4, 96, 96), np.float32)
    image = Image(flux, ("DES-G",), 0.262, "nanomaggy", 22.5, np.zeros(flux.shape, bool), ())
    payload = {"tok_image": image} if kind == "image" else {"tok_flux_g": Scalar(1.0, "nanomaggy")}
    return Subject("a", "f", Observation("a", payload))


@given(
    kinds=st.lists(st.sampled_from(["image", "scalar", "bad"]), max_size=30),
    limits=st.builds(Limits, st.integers(1, 10), st.sampled_from([100_000, 400_000, 1 << 30]), st.integers(1, 3000)),
)
def test_chunks_cover_everything_within_the_limits(kinds: list[str], limits: Limits) -> None:
    subjects = [subject(kind) for kind in kinds]
    found = list(cuts(subjects, INPUTS, limits))
    assert [start for start, _ in found] == [0, *(stop for _, stop in found[:-1])]
    assert found[-1][1] == len(subjects)
    for start, stop in found:
        weights = [bulk._weight(one, INPUTS) for one in subjects[start:stop]]
        sizes, tokens = sum(size for size, _ in weights), sum(n for _, n in weights)
        assert stop - start <= limits.objects
        assert stop - start <= 1 or (sizes <= limits.bytes and tokens <= limits.tokens)


# The command


@pytest.fixture
def run(core: Core) -> Callable[..., Result]:
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments], obj=lambda settings: core)


FLAGS = ("--survey", "legacysurvey", "--release", "dr10", "--kind", "model", "--system", "AB", "--unit", "nanomaggy",
         "--no-extinction-corrected")  # fmt: skip


def test_the_command(run: Callable[..., Result], tables: list[Path], tmp_path: Path, counting: CountingEngine) -> None:
    out = tmp_path / "rows"
    counting.fails_after = 14
    broken = run("embed", tmp_path / "in", "-o", out, "--chunk", 4, *FLAGS)
    assert isinstance(broken.exception, RuntimeError)
    counting.fails_after = None
    refused = run("embed", tmp_path / "in", "-o", out, "--chunk", 4, *FLAGS, "--json")
    assert refused.exit_code == 1
    assert json.loads(refused.stdout)["error"]["code"] == "run_unfinished"
    done = run("embed", tmp_path / "in", "-o", out, "--chunk", 4, *FLAGS, "--resume")
    assert done.exit_code == 1
    assert "29 of 30 objects embedded" in done.output
    assert "3 chunks of 8 had been finished before" in done.output
    assert "value_out_of_range" in done.output
    as_data = json.loads(run("embed", tmp_path / "in", "-o", out, "--chunk", 4, *FLAGS, "--resume", "--json").stdout)
    assert (as_data["embedded"], as_data["failed"], as_data["resumed_chunks"]) == (29, 1, 8)
    assert as_data["token_cache"] is None


def test_tokens_are_kept(run: Callable[..., Result], image: Callable[..., bytes], tmp_path: Path,
                         counting: CountingEngine) -> None:  # fmt: skip
    for seed, name in enumerate("ABC"):
        (tmp_path / f"{name}.fits").write_bytes(image(name, seed))
    files = sorted(tmp_path.glob("*.fits"))
    tables = []
    for n, hits in enumerate((0, 3)):
        counting.seen.clear()
        out = tmp_path / f"{n}.parquet"
        done = run("embed", *files, "-o", out, "--tokens", tmp_path / "cache", "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["token_cache"] == {"hits": hits, "misses": 3 - hits, "damaged": 0, "errors": 0}
        assert len(counting.seen) == 3 - hits
        tables.append(pq.read_table(out))
    assert tables[0].equals(tables[1])
    assert tables[0].column("qa_flags").to_pylist() == [["toy"]] * 3


def test_what_the_bar_says() -> None:
    progress = bulk.Progress(of_files=3, of_size=1000)
    assert bar_text(progress) == "0 of 3 files, 0 objects"
    progress.files, progress.size, progress.objects, progress.failed = 1, 250.0, 5000, 2
    progress.began -= 100
    assert bar_text(progress) == "1 of 3 files, 5000 objects, 2 failed, 50/s, 0:05:00 left"
    progress.earlier, progress.size_earlier = 4000, 200.0
    assert bar_text(progress) == "1 of 3 files, 5000 objects, 2 failed, 10/s, 0:25:00 left"
