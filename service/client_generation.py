"""Draws of what was not observed, as a table.

DrawsTable  the draws of each object: their tokens, and the numbers that these stand for
asked       what is to be drawn, as the JSON form of a request says it
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from astropy import units

from albireo.service.client_answers import Answered, AnswerTable, about, envelope, items_of, set_out
from albireo.service.client_tokens import numbers_of, stacked

DRAWN_AT_ONCE = 64
"""Draws aimed at in one request, of one object at least: so many are answered soon."""

DRAWS = 8
"""For each object, where nothing is said: as the service and `albireo generate` have it."""

SAMPLING = ("rounds", "schedule", "temperature", "cooling", "top_k", "top_p", "guidance")
"""Options of the sampling beside draws and seed; the service knows their defaults."""

NOTHING = -1
"""In the place of the tokens of an object that failed."""


class DrawsTable(AnswerTable):
    """Draws of each object: a column named as the modality (draws, ...), with its unit where it has one, NaN of those
    that failed; `tokens` (draws, n), -1 of those that failed.

    `meta["target"]` has axes, bands and wavelengths, `meta["sampling"]` how it was drawn, `meta["known"]` what was said
    of what may be known.
    """


def asked(target: str, sources: Any, mask: Any, keep: Any) -> dict[str, Any]:
    """What is to be drawn, as the JSON form of a request says it; None is left to the service."""
    if isinstance(keep, units.Quantity):
        keep = keep.to_value(units.AA)
    return {
        "target": target,
        "from": [sources] if isinstance(sources, str) else sources and list(sources),
        "mask": None if mask is None else [int(edge) for edge in mask],
        "keep": None if keep is None else [float(edge) for edge in keep],
    }


def draws_table(answers: Sequence[Answered]) -> DrawsTable:
    """The draws of the objects of all batches."""
    items = items_of(answers)
    said = next(answer.content for answer in answers if "target" in answer.content)
    target = said["target"]
    columns = about(items)
    columns[target["modality"]] = stacked([numbers_of(item.get("values")) for item in items], target["unit"])
    codes = [item.get("tokens") for item in items]
    blank = np.full_like(next(one for one in codes if one is not None), NOTHING, np.int64)
    columns["tokens"] = np.array([blank if one is None else one for one in codes], np.int64)
    order = ["id", "file", "ra", "dec", target["modality"], "tokens"]
    meta = envelope(answers) | {name: said[name] for name in ("target", "known", "sampling")}
    return DrawsTable({name: columns[name] for name in (*order, *set_out(columns, order))}, meta=meta)
