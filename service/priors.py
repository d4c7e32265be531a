"""Priors of redshift as people state them: a word, or a table of an n(z)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from albireo.models.heads import Prior
from albireo.observations.columns import load_columns
from albireo.observations.errors import BadInput
from albireo.observations.source import Source
from albireo.service.predictions import AnyPrior

TRAINING = "training"
"""The n(z) that a head was fitted on: nothing is changed."""

FLAT: Literal["flat"] = "flat"
"""Every redshift of a head's grid alike."""

COLUMNS = ("z_low", "z_high", "n")


def prior_of(text: str) -> AnyPrior:
    """A prior by its word, or from a table (CSV, ECSV, FITS, VOTable, Parquet) of cells z_low, z_high and their n.

    The cells must follow one another without a gap. None stands for the training n(z). BadInput column_missing,
    not_sorted, not_finite, option_invalid.
    """
    if text == TRAINING:
        return None
    if text == FLAT:
        return FLAT
    source = Source.from_path(Path(text))
    table = load_columns(source)
    low, high, n = ((None if (c := table.find(name)) is None else c.numbers()) for name in COLUMNS)
    if low is None or high is None or n is None:
        raise BadInput(
            "column_missing",
            "a prior needs the columns "
            + ", ".join(COLUMNS)
            + "; there are "
            + ", ".join(c.name for c in table.columns),
            file=source.name,
            field="prior",
            fix="write one row a cell: where it begins, where it ends, and how many or how much is in it",
        )
    if not all(np.isfinite(values).all() for values in (low, high, n)):
        raise BadInput("not_finite", "a cell of the prior is not a number", file=source.name, field="prior")
    if not np.array_equal(low[1:], high[:-1]):
        raise BadInput(
            "not_sorted",
            "a cell of the prior does not begin where the one before it ends",
            file=source.name,
            field="z_low",
            fix="sort the rows by z_low, and leave no gap: a cell may have n = 0",
        )
    return Prior(np.append(low, high[-1:]), n)
