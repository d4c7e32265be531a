"""A table stated cell by cell is the ECSV file that astropy would write, and is read as that file is."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from astropy.table import MaskedColumn, Table
from hypothesis import given, settings
from hypothesis import strategies as st

from albireo.observations.columns import load_columns
from albireo.observations.errors import BadInput
from albireo.observations.options import ReadOptions
from albireo.observations.reading import read_files
from albireo.observations.source import Source
from albireo.observations.stated import stated_table

Stated = Mapping[str, Sequence[Any]]

OPTIONS = ReadOptions(survey="legacysurvey")


def by_astropy(columns: Stated, units: Mapping[str, str]) -> Source:
    table = Table()
    for name, cells in columns.items():
        known = next((cell for cell in cells if cell is not None), 0.0)
        blank = "" if isinstance(known, str) else type(known)()
        filled = [blank if cell is None else cell for cell in cells]
        table[name] = MaskedColumn(filled, mask=[cell is None for cell in cells]) if None in cells else filled
        if name in units:
            table[name].unit = units[name]
    text = io.StringIO()
    table.write(text, format="ascii.ecsv")
    return Source("a.ecsv", text.getvalue().encode())


def check(columns: Stated, units: Mapping[str, str], options: ReadOptions = OPTIONS) -> None:
    made, wanted = stated_table("a.ecsv", columns, units), by_astropy(columns, units)
    assert made.content == wanted.content
    assert repr(read_files([made], options)) == repr(read_files([wanted], options))
    try:
        theirs = load_columns(wanted)
    except BadInput as error:
        with pytest.raises(BadInput, match=re.escape(error.message)):
            load_columns(made)
        return
    ours = load_columns(made)
    assert (ours.kind, ours.rows, ours.meta) == (theirs.kind, theirs.rows, theirs.meta)
    for one, other in zip(ours.columns, theirs.columns, strict=True):
        assert (one.name, one.unit, one.values.dtype.kind) == (other.name, other.unit, other.values.dtype.kind)
        np.testing.assert_array_equal(one.missing, other.missing)
        np.testing.assert_array_equal(one.values, other.values)
        assert one.texts() == other.texts()


CELLS = {
    "numbers": st.floats(allow_nan=True) | st.integers(-(2**53), 2**53),
    "integers": st.integers(-(2**63), 2**63 - 1),
    "answers": st.booleans(),
    "words": st.text(st.characters(codec="ascii"), max_size=6)
    | st.sampled_from(["NGC 4565", "ZTF-g", "desi:1", "nan"]),
    "any": st.text(max_size=4) | st.floats() | st.booleans() | st.integers(0, 9),
}
UNITS = ["nanomaggy", "nmgy", "uJy", "nJy", "mag", "deg", "ABmag", "mag(AB)", "1e-17 erg/(s cm2 Angstrom)", "arcsec^2",
         "electron / s", "no unit", "", "#", "a: b", "{x}", "é"]  # fmt: skip
NAMES = (
    st.sampled_from(["id", "ra", "FLUX_G", "flux_r", "y", "no", "null", "MAG_I", "_x", "0", "a b", "z", "#id", "é"])
    | st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,40}", fullmatch=True)
    | st.text(min_size=1, max_size=4).filter(lambda name: name.strip() == name and "\n" not in name)
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[Stated, Mapping[str, str]]:
    rows = draw(st.integers(1, 4))
    columns, units = {}, {}
    for name in draw(st.lists(NAMES, min_size=1, max_size=5, unique=True)):
        kind = draw(st.sampled_from(sorted(CELLS)))
        columns[name] = draw(st.lists(CELLS[kind] | st.none(), min_size=rows, max_size=rows))
        if draw(st.booleans()):
            units[name] = draw(st.sampled_from(UNITS))
    return columns, units


@settings(max_examples=150, deadline=None)
@given(stated=tables())
def test_any_table_is_the_file_that_astropy_writes(stated: tuple[Stated, Mapping[str, str]]) -> None:
    try:
        by_astropy(*stated)
    except Exception as error:  # what cannot be written is refused in both ways alike
        with pytest.raises(type(error)):
            stated_table("a.ecsv", *stated)
    else:
        check(*stated)


PLAIN: dict[str, tuple[Stated, dict[str, str]]] = {
    "photometry": (
        {"id": ["NGC 4565"], "ra": [190.045], "dec": [-2.5], "FLUX_G": [12.5], "FLUX_R": [1e-30], "n": [7]},
        {"ra": "deg", "dec": "deg", "FLUX_G": "nanomaggy", "FLUX_R": "nmgy"},
    ),
    "a light curve": (
        {
            "mjd": [59000.0, 59001.0, 59003.5],
            "band": ["ZTF-g", "ZTF-g", None],
            "flux": [10.0, None, float("inf")],
            "n": [1, None, 3],
            "good": [True, None, False],
        },
        {"flux": "uJy"},
    ),
    "mixed numbers": ({"a": [1, 2.5, None], "b": [True, 2, 3], "c": ["x", 1, 2.5]}, {}),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_tables_are_made_without_astropy(name: str) -> None:
    columns, units = PLAIN[name]
    check(columns, units)
    made = stated_table("a.ecsv", columns, units)
    assert load_columns(made) is load_columns(made)


@pytest.mark.parametrize(
    ("columns", "units", "options"),
    [
        ({"flux_g": [12.5]}, {}, ReadOptions(survey="sdss", system="AB", kind="psf", extinction_corrected=False)),
        ({"flux_g": [12.5]}, {"flux_g": "furlong"}, ReadOptions(survey="hsc", kind="psf", extinction_corrected=False)),
        ({"flux_g": [12.5]}, {"flux_g": "nanomaggy"}, ReadOptions()),
        ({"FLUX_G": ["bright"]}, {}, OPTIONS),
        ({"FLUX_G": [-99.0], "FLUX_R": [float("nan")], "id": [1.5]}, {}, OPTIONS),
        ({"FLUX_G": [0.0], "FLUX_IVAR_G": [0], "z": [0.1]}, {}, OPTIONS),
        ({"FLUX_G": [1.0, 2.0], "id": ["a", "a"]}, {}, OPTIONS),
    ],
)
def test_errors_are_the_same(columns: Stated, units: dict[str, str], options: ReadOptions) -> None:
    check(columns, units, options)
