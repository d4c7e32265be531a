"""Arrow streams and files say what Parquet says, and cannot unfold to more than they may."""

from __future__ import annotations

import io
import resource
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from albireo.observations.arrow import arrow_table
from albireo.observations.columns import Columns, load_columns
from albireo.observations.errors import AlbireoError, BadInput, TooLarge
from albireo.observations.observation import Observation
from albireo.observations.options import ReadOptions
from albireo.observations.parquet_footer import Chunk, row_groups
from albireo.observations.reading import FileReport, detect, read_files
from albireo.observations.shards import write_shard
from albireo.observations.source import Source
from tests.service import bombs

Write = Callable[..., bytes]

OPTIONS = ReadOptions(survey="legacysurvey")


def parquet(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def stream(table: pa.Table, compression: str | None = None, rows: int | None = None) -> bytes:
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=rows)
    return bytes(out.getvalue())


def file(table: pa.Table, compression: str | None = None, rows: int | None = None) -> bytes:
    out = pa.BufferOutputStream()
    with pa.ipc.new_file(out, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=rows)
    return bytes(out.getvalue())


def photometry(n: int = 3) -> pa.Table:
    rng = np.random.default_rng(n)
    columns: dict[str, Any] = {
        "id": [f"o{i}" for i in range(n)],
        "ra": rng.uniform(0, 360, n),
        "dec": rng.uniform(-90, 90, n),
    }
    columns |= {f"FLUX_{band}": rng.uniform(1, 20, n) for band in ("G", "R", "Z", "W1")}
    return pa.table(columns)


def report(content: bytes, options: ReadOptions = OPTIONS) -> FileReport:
    (one,) = read_files([Source("a", content)], options)
    return one


def said(content: bytes, options: ReadOptions = OPTIONS) -> Any:
    """Everything that is read, but for which format and which bytes it was."""
    one = report(content, options)
    items = [
        replace(item, provenance={key: replace(p, format="", sha256="") for key, p in item.provenance.items()})
        if isinstance(item, Observation)
        else item.as_dict()
        for item in one.items
    ]
    return one.format, one.error and one.error.as_dict(), repr(items)


def same(one: Columns, other: Columns) -> None:
    assert one.rows == other.rows
    assert one.meta == other.meta
    assert [column.name for column in one.columns] == [column.name for column in other.columns]
    for a, b in zip(one.columns, other.columns, strict=True):
        assert a.unit == b.unit
        np.testing.assert_array_equal(a.missing, b.missing)
        assert a.values.dtype == b.values.dtype
        if a.values.dtype == object:
            assert repr(a.values.tolist()) == repr(b.values.tolist())
        else:
            np.testing.assert_array_equal(a.values, b.values)


NUMBERS = {
    pa.float64(): st.floats(allow_nan=True),
    pa.float32(): st.floats(width=32),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint8(): st.integers(0, 255),
    pa.bool_(): st.booleans(),
}
CELLS = NUMBERS | {
    pa.string(): st.text(max_size=8),
    pa.large_string(): st.text(max_size=8),
    pa.dictionary(pa.int8(), pa.string()): st.sampled_from(["GALAXY", "STAR", "QSO"]),
    pa.timestamp("s"): st.integers(0, 2**31),
    pa.list_(pa.float32()): st.lists(st.floats(width=32), max_size=3),
    pa.list_(pa.int64(), 2): st.lists(st.integers(0, 99), min_size=2, max_size=2),
    pa.list_(pa.string()): st.lists(st.text(max_size=3), max_size=2),
}


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    n = draw(st.integers(1, 6))
    names = draw(
        st.lists(st.from_regex(r"[a-zA-Z][a-z_0-9]{0,6}", fullmatch=True), min_size=1, max_size=5, unique=True)
    )
    described, columns = [], []
    for name in names:
        kind = draw(st.sampled_from(sorted(CELLS, key=str)))
        cells = draw(st.lists(st.none() | CELLS[kind], min_size=n, max_size=n))
        unit = draw(st.none() | st.sampled_from(["nanomaggy", "deg", "1e-17 erg / (s cm2 Angstrom)"]))
        described.append(pa.field(name, kind, metadata={"unit": unit} if unit else None))
        columns.append(pa.array(cells, kind))
    meta = draw(st.dictionaries(st.sampled_from(["survey", "Release", "note"]), st.text(max_size=5)))
    return pa.table(columns, schema=pa.schema(described, meta))


@settings(max_examples=80, deadline=None)
@given(table=tables(), write=st.sampled_from([stream, file]), compression=st.sampled_from([None, "lz4", "zstd"]),
       rows=st.sampled_from([None, 1, 2]))  # fmt: skip
def test_a_table_is_the_same_in_arrow_and_parquet(
    table: pa.Table, write: Write, compression: str | None, rows: int | None
) -> None:
    if write is file and rows is not None:
        table = table.unify_dictionaries()
    arrow = load_columns(Source("a", write(table, compression, rows)))
    assert arrow.kind == "arrow"
    same(arrow, load_columns(Source("a", parquet(table))))


@pytest.mark.parametrize("write", [stream, file])
def test_photometry_light_curves_xp_catalogs_and_spectra_are_read_as_from_parquet(write: Write) -> None:
    rng = np.random.default_rng(0)
    epochs = {"id": ["SN1"] * 3, "mjd": [59000.0, 59001.0, 59003.5], "band": ["ZTF-g", "ZTF-g", "ZTF-r"],
              "flux": [10.0, 12.0, 9.0], "fluxerr": [1.0] * 3, "zp": [25.0] * 3, "zpsys": ["ab"] * 3}  # fmt: skip
    bases = pa.array([rng.normal(size=55) for _ in range(2)], pa.list_(pa.float64()))
    spectrum = {"wavelength": np.linspace(3600, 9000, 500), "flux": rng.normal(5, 1, 500), "ivar": np.ones(500)}
    spectral = ReadOptions(survey="sdss", unit="1e-17 erg/(s cm2 Angstrom)", medium="vacuum", frame="heliocentric")
    cases: list[tuple[str, pa.Table, ReadOptions]] = [
        ("table", photometry(), OPTIONS),
        ("table", photometry().append_column("z", pa.array([1.0, 2.0, 3.0])), OPTIONS),
        ("table", photometry(), ReadOptions(survey="sdss")),
        ("table_lightcurve", pa.table(epochs), ReadOptions(extinction_corrected=False)),
        ("table_lightcurve", pa.table(epochs), ReadOptions()),
        ("gaia_xp", pa.table({"source_id": [4295806720, 2**62], "bp_coefficients": bases, "rp_coefficients": bases}),
         ReadOptions()),
        ("table_catalog", pa.table({"X": [1, 2], "Y": [3, 4], "SHAPE_E1": [0.1, 0.2], "SHAPE_E2": [0.0, 0.1],
                                    "SHAPE_R": [1.0, 2.0]}), OPTIONS),
        ("plain_spectrum", pa.table(spectrum), spectral),
    ]  # fmt: skip
    for name, table, options in cases:
        read = said(write(table), options)
        assert read[0] == name
        assert read == said(parquet(table), options)


def test_every_object_is_there_with_its_numbers() -> None:
    table = photometry(40)
    one = report(stream(table, rows=7))
    assert [item.id for item in one.items if isinstance(item, Observation)] == table["id"].to_pylist()
    assert one.items[7].data["tok_flux_g"].value == table["FLUX_G"][7].as_py()  # type: ignore[union-attr]
    assert one.items[7].provenance["tok_flux_g"].format == "arrow"  # type: ignore[union-attr]


@pytest.mark.parametrize("write", [stream, file])
def test_whole_observations(write: Write, tmp_path: Path) -> None:
    read = report(stream(photometry()))
    write_shard(read.observations, tmp_path / "a.parquet", {})
    content = (tmp_path / "a.parquet").read_bytes()
    arrow = write(pq.read_table(io.BytesIO(content)))
    assert detect(Source("a", arrow)).name == "albireo"
    assert said(arrow, ReadOptions()) == said(content, ReadOptions())
    assert len(report(arrow, ReadOptions()).observations) == 3


def test_texts_in_views_and_dictionaries_as_other_libraries_write_them() -> None:
    table = photometry()
    plain = table.append_column("class", pa.array(["GALAXY", None, "STAR"]))
    plain = plain.append_column("notes", pa.array([["a", "b"], [], None]))
    for kind, many in (
        (pa.string_view(), pa.list_(pa.string_view())),
        (pa.large_string(), pa.large_list(pa.large_string())),
        (pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.string())),
    ):
        wrapped = plain.set_column(7, "class", plain["class"].cast(kind))
        wrapped = wrapped.set_column(8, "notes", wrapped["notes"].cast(many))
        assert said(stream(wrapped)) == said(parquet(plain))


def test_a_type_that_is_not_read_is_named() -> None:
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array(["u", "v"]))
    error = report(stream(photometry().append_column("runs", runs))).error
    assert error is not None
    assert error.code == "damaged_file"
    assert "run_end_encoded" in error.message


LIMIT = 1 << 20


def limited(content: bytes) -> AlbireoError | None:
    (one,) = read_files([Source("a", content, LIMIT)], OPTIONS)
    return one.error


def shared_views(n: int) -> pa.Array:
    """n texts of n characters that are the same bytes."""
    (_, views, data) = pa.array(["x" * n]).cast(pa.string_view()).buffers()
    return pa.Array.from_buffers(pa.string_view(), n, [None, pa.py_buffer(views.to_pybytes()[:16] * n), data])


N = 10_000
ONES, ZEROS = np.ones(N), pa.array(np.zeros(1 << 20))
ONE_TEXT = pa.DictionaryArray.from_arrays(pa.array([0] * N, pa.int32()), pa.array(["x" * N]))
LISTED = pa.ListArray.from_arrays(pa.array(range(N + 1), pa.int32()), ONE_TEXT)
NULLS = {"flux_g": pa.nulls(0x123456), "flux_r": pa.nulls(0x123456)}

BOMBS: dict[str, Callable[[], bytes]] = {
    "rows without bytes": lambda: stream(pa.table(NULLS)).replace(
        (0x123456).to_bytes(8, "little"), (1 << 40).to_bytes(8, "little")
    ),
    "one text for every row": lambda: stream(pa.table({"id": ONE_TEXT, "flux_g": ONES})),
    "one text for every list": lambda: stream(pa.table({"id": LISTED, "flux_g": ONES})),
    "one text for every view": lambda: stream(pa.table({"id": shared_views(N), "flux_g": ONES})),
    "one long cell": lambda: stream(pa.table({"id": ["x" * 100_000] + ["y"] * 100, "flux_g": ONES[:101]})),
    "compressed": lambda: stream(pa.table({"flux_g": ZEROS, "flux_r": ZEROS}), "zstd"),
    "a compressed file": lambda: file(pa.table({"flux_g": ZEROS, "flux_r": ZEROS}), "lz4"),
    "one text for every row of Parquet": lambda: parquet(pa.table({"id": ONE_TEXT, "flux_g": ONES})),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_unfolds_to_more_than_the_limit_is_refused_before(name: str) -> None:
    content = BOMBS[name]()
    assert len(content) <= LIMIT, "small as it is sent"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error = limited(content)
    assert isinstance(error, TooLarge), error
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * LIMIT / 1024


def test_a_cut_is_seen_wherever_it_is() -> None:
    for write in (stream, file):
        content = write(photometry(), rows=2)
        for end in (*range(1, len(content), 16), len(content) - 1, len(content) - 8):
            one = report(content[:end])
            assert one.error is not None, end
            assert one.error.code in ("damaged_file", "unknown_format")
    whole = stream(photometry(), rows=2)
    error = report(whole[:-8]).error
    assert error is not None
    assert "no end mark" in error.message


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_spoilt_bytes_are_a_typed_error_or_a_table(data: st.DataObject) -> None:
    write = data.draw(st.sampled_from([stream, file]))
    compression = data.draw(st.sampled_from([None, "lz4"]))
    table = photometry().append_column("class", pa.array(["a", "b", "a"]).dictionary_encode())
    content = bytearray(write(table.append_column("l", pa.array([[1.0], [2.0, 3.0], []])), compression))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (one,) = read_files([Source("a", bytes(content), 1 << 22)], OPTIONS)
    assert one.error is not None or one.items


def test_two_columns_of_one_name_are_refused() -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array([1.0]), pa.array([2.0])], ["id", "FLUX_G", "FLUX_G"])
    error = report(stream(table)).error
    assert isinstance(error, BadInput)
    assert error.code == "alias_ambiguous"


def test_an_empty_table_holds_no_object() -> None:
    error = report(stream(photometry(3).slice(0, 0))).error
    assert error is not None
    assert error.code == "empty_file"


def test_lists_of_one_length_are_arrays_of_two_axes() -> None:
    values = pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32()))
    table = pa.table({"a": values, "b": pc.cast(values, pa.list_(pa.int16())), "c": [[1.0, None], [2.0, 3.0]]})
    a, b, c = load_columns(Source("a", stream(table))).columns
    assert (a.values.dtype, a.values.shape) == (np.float64, (2, 2))
    assert (b.values.dtype, b.values.shape) == (np.int64, (2, 2))
    assert c.values.shape == (2, 2)


@given(table=tables(), rows=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_footers_are_read_as_pyarrow_reads_them(table: pa.Table, rows: int) -> None:
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=rows)
    theirs = pq.read_metadata(io.BytesIO(out.getvalue()))
    ours = row_groups(out.getvalue())
    assert [group.num_rows for group in ours] == [theirs.row_group(i).num_rows for i in range(theirs.num_row_groups)]
    for i, group in enumerate(ours):
        columns = [theirs.row_group(i).column(k) for k in range(theirs.num_columns)]
        for name in fields(Chunk):
            assert [getattr(one, name.name) for one in group.chunks] == [getattr(one, name.name) for one in columns]


def test_footers_that_are_none() -> None:
    content = parquet(photometry())
    length = int.from_bytes(content[-8:-4], "little")
    footer = content[-8 - length : -8]
    twice = footer[:-1] + b"\x06\x06\x06\x00"  # field 3, the number of rows, behind the last field once more
    for spoilt in (b"", b"\x00", footer[:50], footer[:-1] + b"\x15", b"\xff" * 50, b"\x06\x06\x02" * 2, twice):
        tail = spoilt + len(spoilt).to_bytes(4, "little") + b"PAR1"
        with pytest.raises(ValueError, match=r"footer|field|type|list|rows"):
            row_groups(b"PAR1" + tail)
    for tail in (b"", b"PAR1", content[-8:], content[:-1]):
        with pytest.raises(ValueError, match="footer"):
            row_groups(tail)


def test_views_of_nothing_where_a_cell_is_null() -> None:
    """What Arrow does not validate there, it follows when it copies the texts: the process would end."""
    texts = pa.array(["GALAXY", None, "a star that is named by more than twelve bytes"] * 2, pa.string_view())
    table = pa.table({"id": ["a", "b", "c"] * 2, "flux_g": [1.0] * 6, "class": texts})
    validity, views, *held = texts.buffers()
    for at, number in ((16, -(1 << 24)), (16, 1 << 30), (24, 7), (28, -5), (28, 1 << 20)):
        cells = bytearray(views.to_pybytes())
        cells[16:32] = cells[32:48]  # a null that was a text once is as good as others
        for honest in (True, False):
            if not honest:
                cells[at : at + 4] = number.to_bytes(4, "little", signed=True)
            column = pa.Array.from_buffers(pa.string_view(), 6, [validity, pa.py_buffer(bytes(cells)), *held])
            table = table.set_column(2, "class", column)
            read = report(stream(table))
            assert (read.error is None) is honest, (at, number, read.error)
            assert read.error is None or read.error.code == "damaged_file"


def test_a_column_of_a_row_group_that_the_schema_has_not() -> None:
    """pyarrow looks it up by name, and would end in a KeyError that no reader expects."""
    with pytest.raises(pa.ArrowInvalid, match="the schema has none"):
        arrow_table(Source("t.parquet", bombs.parquet_of_a_column_of_no_schema()))
