"""Spans of a large table are what the whole table is, row by row, in every format that can be cut."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import Table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from albireo.observations.errors import BadInput
from albireo.observations.observation import Observation
from albireo.observations.options import ReadOptions
from albireo.observations.reading import read_files
from albireo.observations.row_spans import Span, open_spans
from albireo.observations.shards import write_shard
from albireo.observations.sky import simulate
from albireo.observations.source import Source
from tests.service import bombs

OPTIONS = ReadOptions(survey="legacysurvey", release="dr10")
ROWS = 220


def table(rows: int = ROWS, ids: bool = True) -> Table:
    rng = np.random.default_rng(1)
    columns = {
        "id": [f"o{n}" for n in range(rows)],
        "ra": rng.uniform(0, 360, rows),
        "dec": rng.uniform(-30, 30, rows),
        "flux_g": rng.lognormal(1, 1, rows),
        "flux_r": rng.lognormal(1, 1, rows),
        "class": ["GALAXY", "STAR"] * (rows // 2),
    }
    if not ids:
        del columns["id"]
    return Table(columns)


def as_csv(path: Path) -> None:
    table().write(path, format="ascii.csv")


def as_gzipped_csv(path: Path) -> None:
    as_csv(path.with_suffix(".plain"))
    path.write_bytes(gzip.compress(path.with_suffix(".plain").read_bytes()))


def as_ecsv(path: Path) -> None:
    table().write(path, format="ascii.ecsv", delimiter=",")


def as_csv_with_quotes_and_comments(path: Path) -> None:
    lines = ["# a comment", "id,flux_g,flux_r,type"]
    lines += [f'"o{n}",{n + 1}.5,2.5,"a\n""b"", c"' if n % 3 else f"o{n},1.5,{n + 1},PSF\n" for n in range(ROWS)]
    path.write_text("\n".join(lines) + "\n")


def as_csv_without_ids(path: Path) -> None:
    table(ids=False).write(path, format="ascii.csv")


def as_fits(path: Path) -> None:
    table().write(path, format="fits")


def as_parquet(path: Path) -> None:
    pq.write_table(pa.table({name: list(column) for name, column in table().items()}), path, row_group_size=70)


def as_parquet_in_one_group(path: Path) -> None:
    pq.write_table(pa.table({name: list(column) for name, column in table().items()}), path)


def as_arrow_stream(path: Path) -> None:
    content = pa.table({name: list(column) for name, column in table().items()})
    with pa.ipc.new_stream(path, content.schema) as writer:
        writer.write_table(content, max_chunksize=90)


def as_arrow_file(path: Path) -> None:
    content = pa.table({name: list(column) for name, column in table().items()})
    with pa.ipc.new_file(path, content.schema) as writer:
        writer.write_table(content)


FORMS = (as_csv, as_gzipped_csv, as_ecsv, as_csv_with_quotes_and_comments, as_csv_without_ids, as_fits, as_parquet,
         as_parquet_in_one_group, as_arrow_stream, as_arrow_file)  # fmt: skip


def objects(content: Source, options: ReadOptions = OPTIONS) -> list[Observation]:
    (report,) = read_files([content], options)
    assert report.error is None, report.error
    return report.observations


def facts(observation: Observation) -> tuple[object, ...]:
    rows = {where.row for where in observation.provenance.values()}
    return observation.id, repr(observation.data), observation.ra, repr(observation.metadata), rows, observation.flags


def spans_of(path: Path, rows: int, size: int = 1 << 20) -> list[Span]:
    spans = open_spans(path, rows, size)
    assert spans is not None
    return list(spans)


@pytest.mark.parametrize("write", FORMS)
@pytest.mark.parametrize("rows", [60, 100, 1000])
def test_spans_are_the_table(tmp_path: Path, write: Callable[[Path], None], rows: int) -> None:
    write(tmp_path / "t.1")
    whole = objects(Source.from_path(tmp_path / "t.1"))
    assert len(whole) == ROWS
    spans = spans_of(tmp_path / "t.1", rows)
    if write is not as_csv_with_quotes_and_comments:  # a span begins with a row of one line
        assert max(span.count for span in spans) <= rows
    assert [span.first for span in spans] == np.cumsum([0, *(span.count for span in spans)])[:-1].tolist()
    untils = [span.until for span in spans]
    assert untils == sorted(untils)
    assert untils[-1] == 1.0
    read = [span.read("t.1", "hash") for span in spans]
    assert {source.sha256 for source in read} == {"hash"}
    assert [facts(one) for source in read for one in objects(source)] == [facts(one) for one in whole]


@pytest.mark.parametrize("write", FORMS)
def test_spans_that_are_left_out(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "t.1")
    whole = [facts(one) for one in objects(Source.from_path(tmp_path / "t.1"))]
    for span in spans_of(tmp_path / "t.1", 30)[1::3]:
        assert [facts(one) for one in objects(span.read("t.1", ""))] == whole[span.first : span.first + span.count]


def test_spans_of_whole_observations(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    sky = list(simulate(4, rng))
    write_shard(sky, tmp_path / "s.parquet", {})
    whole = objects(Source.from_path(tmp_path / "s.parquet"), ReadOptions())
    spans = spans_of(tmp_path / "s.parquet", 100, size=600_000)
    assert len(spans) > 1
    sha256 = whole[0].provenance["tok_image"].sha256
    read = [one for span in spans for one in objects(span.read("s.parquet", sha256), ReadOptions())]
    assert [(one.id, repr(one.data), one.provenance) for one in read] == [
        (one.id, repr(one.data), one.provenance) for one in whole
    ]


def test_about_so_many_bytes(tmp_path: Path) -> None:
    for write in (as_csv, as_fits, as_parquet_in_one_group, as_arrow_file):
        path = tmp_path / write.__name__
        write(path)
        sizes = [len(span.content()) for span in spans_of(path, 1000, size=2000)]
        assert len(sizes) > 3
        assert max(sizes) < 12_000, write.__name__


def test_what_cannot_be_cut(tmp_path: Path) -> None:
    table().write(tmp_path / "t.xml", format="votable")
    fits.PrimaryHDU(np.zeros((4, 4))).writeto(tmp_path / "image.fits")
    several = [fits.PrimaryHDU(), fits.BinTableHDU(table()), fits.BinTableHDU(table())]
    fits.HDUList(several).writeto(tmp_path / "two.fits")
    ragged = fits.Column("spectra", "PE()", array=np.array([[1.0], [1.0, 2.0]], object))
    fits.BinTableHDU.from_columns([ragged]).writeto(tmp_path / "ragged.fits")
    as_fits(tmp_path / "plain.fits")
    (tmp_path / "zipped.fits").write_bytes(gzip.compress((tmp_path / "plain.fits").read_bytes()))
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "empty").write_bytes(b"")
    names = sorted(path.name for path in tmp_path.iterdir() if path.name != "plain.fits")
    for name in names:
        spans = open_spans(tmp_path / name, 10, 1000)
        if name == "cut.parquet":
            with pytest.raises(BadInput, match="damaged_file"):
                list(spans or ())
        else:
            assert spans is None, name


def test_a_table_that_is_broken_further_on(tmp_path: Path) -> None:
    rows = "".join(f"o{n},{n}.5\n" for n in range(20_000))
    zipped = gzip.compress(f"id,flux_g\n{rows}".encode())
    (tmp_path / "t.csv.gz").write_bytes(zipped[:-200])
    spans = open_spans(tmp_path / "t.csv.gz", 1000, 1 << 20)
    assert spans is not None
    read = []
    with pytest.raises(BadInput, match="damaged_file"):
        read.extend(span.first for span in spans)
    assert len(read) > 10
    as_fits(tmp_path / "t.fits")
    content = (tmp_path / "t.fits").read_bytes()
    (tmp_path / "t.fits").write_bytes(content[: content.index(b"o150")])
    spans = spans_of(tmp_path / "t.fits", 20)
    assert [len(objects(span.read("t.fits", ""))) for span in spans[:7]] == [20] * 7
    for span in spans[7:]:
        with pytest.raises(BadInput, match="damaged_file"):
            span.read("t.fits", "")


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cells=st.lists(st.sampled_from(["1", '"a, b"', '"a\nb"', '"""\n"""', ""]), max_size=30), rows=st.integers(1, 9))
def test_any_text_is_cut_into_what_it_was(tmp_path: Path, cells: list[str], rows: int) -> None:
    path = tmp_path / "t.csv"
    header = b"id,flux_g\n"
    path.write_bytes(header + b"o,1\n" + "".join(f"{cell},{n}\n" for n, cell in enumerate(cells)).encode())
    spans = spans_of(path, rows)
    assert b"".join(span.content()[len(header) :] for span in spans) == path.read_bytes()[len(header) :]
    assert all(span.count >= rows for span in spans[:-1])
    assert sum(span.count for span in spans) == len(cells) + 1


def test_fits_files_that_cannot_be_cut(tmp_path: Path) -> None:
    """More HDUs than a table, or a header that states a milliard axes: the reader of whole files says what it is."""
    path = tmp_path / "t.fits"
    as_fits(path)
    whole = path.read_bytes()
    assert open_spans(path, 10, 1000) is not None
    path.write_bytes(whole + whole[2880:])
    assert open_spans(path, 10, 1000) is None
    path.write_bytes(whole.replace(b"NAXIS   =                    0", b"NAXIS   =           2147483647"))
    assert open_spans(path, 10, 1000) is None


def test_fits_rows_that_are_not_there(tmp_path: Path) -> None:
    """Nothing is taken for what a header states alone, and one error says where the file ends."""
    path = tmp_path / "t.fits"
    as_fits(path)
    whole = path.read_bytes()
    at = whole.index(b"NAXIS2  =", 2880)
    width = int(whole[whole.index(b"NAXIS1  =", 2880) + 10 :][:20])
    rows = (len(whole) - 2880 * -(-whole.index(b"END".ljust(80), 2880) // 2880)) // width
    path.write_bytes(whole[:at] + b"NAXIS2  =           2147483647" + whole[at + 30 :])
    spans = list(open_spans(path, 1000, 1 << 20) or ())
    assert sum(span.count for span in spans) == rows + 1
    with pytest.raises(BadInput, match="ends within row"):
        spans[-1].read("t.fits", "0" * 64)
    end = whole.index(b"END".ljust(80), 2880)
    cards = b"".join(f"C{n:07d}= {n:20d}".ljust(80).encode() for n in range(3600))
    path.write_bytes(whole[:end] + cards + whole[end:])
    assert open_spans(path, 10, 1000) is None, "a long header is not read again and again"
    path.write_bytes(whole.replace(b"XTENSION= 'BINTABLE'", b"XTENSION=  BINTABLE "))
    assert open_spans(path, 10, 1000) is None


def test_parquet_whose_groups_state_other_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(bombs.parquet_of_rows_of_a_group())
    spans = open_spans(path, 10, 1000)
    assert spans is not None
    with pytest.raises(BadInput, match="damaged_file"):
        next(spans)
