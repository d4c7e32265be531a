"""Cells and columns of FITS tables as plain Python values, whatever the case of a column's name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from albireo.observations.errors import BadInput


def columns_of(hdu: fits.BinTableHDU) -> dict[str, str]:
    """Upper-case name -> name as written, from the header alone."""
    return {str(name).upper(): str(name) for name in hdu.columns.names}


def is_table_with(hdu: Any, names: Iterable[str]) -> bool:
    """True if `hdu` is a binary table that has all columns of `names` (upper case); reads no data."""
    return isinstance(hdu, fits.BinTableHDU) and set(names) <= columns_of(hdu).keys()


def column(hdu: fits.BinTableHDU, name: str) -> NDArray[Any]:
    """One column in native byte order; raises column_missing."""
    names = columns_of(hdu)
    if name not in names:
        raise BadInput(
            "column_missing",
            f"the table has no column {name} (it has {', '.join(hdu.columns.names)})",
            field=f"{hdu.name or 'table'}.{name}",
            fix="fetch the whole file from the survey's archive",
        )
    return native(hdu.data[names[name]])


def cards_of(hdu: Any) -> dict[str, Any]:
    """Keyword -> value of the first card with it. A header asked by a keyword takes it for a pattern if it has a *."""
    return {card.keyword: card.value for card in reversed(hdu.header.cards)}


def numbers(hdu: fits.BinTableHDU, name: str) -> NDArray[Any]:
    """One column of numbers in native byte order; raises column_missing, damaged_file if it is of something else."""
    values = column(hdu, name)
    if values.dtype.kind not in "biuf":
        raise BadInput(
            "damaged_file",
            f"a column of {values.dtype} where numbers are",
            field=f"{hdu.name or 'table'}.{name}",
            fix="fetch the file again",
        )
    return values


def native(values: NDArray[Any]) -> NDArray[Any]:
    """A copy in native byte order."""
    values = np.asarray(values)
    return values.astype(values.dtype.newbyteorder("="))


def first_row(hdu: Any) -> dict[str, Any]:
    """The first row of a table by upper-case names, as plain values; {} if there is none."""
    if not isinstance(hdu, fits.BinTableHDU) or len(hdu.data) == 0:
        return {}
    return {upper: plain(hdu.data[name][0]) for upper, name in columns_of(hdu).items()}


def plain(value: Any) -> Any:
    """Text stripped, numpy numbers as Python's, arrays as tuples."""
    if isinstance(value, bytes):
        return value.decode("ascii", "replace").strip()
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, np.ndarray):
        return tuple(plain(item) for item in value.ravel())
    return value.item() if isinstance(value, np.generic) else value
