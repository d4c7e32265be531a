"""The neighbours of queries as a table: one row a neighbour, and one of a query that has none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from albireo.service.core import Neighbours, Outcome
from albireo.service.embedding_table import OUTCOME, TEXT, WHO, column, object_columns

NEIGHBOUR = (
    column("query", pa.int32(), "meta.number"),
    column("query_id", TEXT, "meta.id.cross"),
    column("rank", pa.int32(), "stat.rank"),
    *WHO,
    column("score", pa.float64(), "stat.value"),
    column("modalities", pa.list_(pa.string()), "meta.id;meta.dataset"),
    column("metadata", TEXT, "meta.note"),
    column("short_reason", TEXT, "meta.note"),
    *OUTCOME,
)
"""`query` counts from 0 in the order of the request, `rank` from 1, 0 in the row of a query without neighbours; id, ra,
dec, modalities and metadata (JSON) are of the neighbour; short_reason says why there are fewer than were asked for, and
status and the error are of the query."""


def neighbour_table(
    outcomes: Sequence[Outcome | None], found: Sequence[Neighbours], ids: Sequence[str | None], about: Mapping[str, str]
) -> pa.Table:
    """The neighbours found for each query.

    outcomes  of queries that were embedded for this; None for the others, which did not fail
    ids       of the queries, where they have one
    about     metadata of the table
    """
    counts = [max(1, len(one.hits)) for one in found]
    places = pa.array(np.repeat(np.arange(len(found)), counts))
    rows = [(rank, hit) for one in found for rank, hit in enumerate(one.hits or [None], 1)]
    hits = [hit for _, hit in rows]
    columns = {
        "query": places.cast(pa.int32()),
        "query_id": pa.array(ids, TEXT).take(places),
        "rank": pa.array([rank if hit else 0 for rank, hit in rows], pa.int32()),
        "id": pa.array([hit and hit.id for hit in hits], TEXT),
        "ra": pa.array([hit and hit.ra for hit in hits], pa.float64()),
        "dec": pa.array([hit and hit.dec for hit in hits], pa.float64()),
        "score": pa.array([hit and hit.score for hit in hits], pa.float64()),
        "modalities": pa.array([hit and hit.modalities for hit in hits], pa.list_(pa.string())),
        "metadata": pa.array([hit and json.dumps(dict(hit.metadata)) for hit in hits], TEXT),
        "short_reason": pa.array([one.short_reason for one in found], TEXT).take(places),
    }
    columns |= {one.name: values.take(places) for one, values in _outcomes(outcomes)}
    schema = pa.schema(NEIGHBOUR, metadata=dict(about))
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _outcomes(outcomes: Sequence[Outcome | None]) -> list[tuple[pa.Field, pa.Array]]:
    """Status and error of each query."""
    there = [outcome for outcome in outcomes if outcome is not None]
    if len(there) < len(outcomes):
        nothing = pa.nulls(len(outcomes), TEXT)
        return [(one, pa.array(["ok"] * len(outcomes)) if one.name == "status" else nothing) for one in OUTCOME]
    known = object_columns(there, [()] * len(there))
    return [(one, known[one.name]) for one in OUTCOME]
