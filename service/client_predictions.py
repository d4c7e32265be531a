"""What heads say, as tables with units: a value, its intervals and its flags for every head.

PredictionTable   the columns of `albireo predict -o`, as quantities where a head gives a unit
RedshiftResult    redshifts with intervals and densities; `to_qp()` for the tools of LSST DESC
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy import units
from numpy.typing import NDArray

from albireo.observations.errors import AlbireoError, BadInput
from albireo.service.client_answers import Answered, AnswerTable, about, envelope, items_of, numbers, set_out, texts

Doubles = NDArray[np.float64]


class PredictionTable(AnswerTable):
    """An object a row. Of a head named H: `H` (or `H_target` of each target), `.._low68`, `.._high68`, `.._low95`,
    `.._high95`, `H_flags`, `H_typicality`, and `H_error` where it refused the object.

    A class has `H_p_NAME`, the probability of each; a redshift `H_mean`, `H_std`, `H_mode` and `H_pdf` (V,), the
    probability of each cell between `meta["heads"]["H"]["edges"]`.
    """


def prediction_table(answers: Sequence[Answered]) -> PredictionTable:
    """What the heads say of the objects of all batches."""
    items = items_of(answers)
    heads = next(answer.content["heads"] for answer in answers if "heads" in answer.content)
    meta = envelope(answers) | {"heads": {name: dict(head) for name, head in heads.items()}}
    columns = about(items)
    order = ["id", "file", "ra", "dec"]
    for name, head in heads.items():
        said = _head_columns(name, head, [item.get("predictions", {}).get(name) or {} for item in items])
        twins = said.keys() & columns.keys()
        if twins:
            raise BadInput(
                "option_invalid", f"two columns of the table would be called {min(twins)!r}", field="heads",
                fix="predict with one of these heads at a time",
            )  # fmt: skip
        columns |= said
        order += said
    return PredictionTable({name: columns[name] for name in (*order, *set_out(columns, order))}, meta=meta)


def _head_columns(name: str, head: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The columns of one head; `answers` is what it says of each object, {} of one that failed."""
    columns: dict[str, Any] = {}
    if head["task"] == "classification":
        columns[name] = texts(answers, lambda one: one.get("class"))
        for word in head["classes"]:
            columns[f"{name}_p_{word}"] = numbers([one.get("classes", {}).get(word) for one in answers])
    else:
        for number, (target, unit) in enumerate(zip(head["targets"], head["units"], strict=True)):
            stem = f"{name}_{target}" if head["task"] == "regression" else name
            said = [one["numbers"][number] if one.get("numbers") else {"intervals": ()} for one in answers]
            columns |= {key: _with_unit(values, unit) for key, values in _number_columns(stem, said).items()}
    densities = [one.get("density") or {} for one in answers]
    if head["task"] == "redshift":
        columns |= {f"{name}_{what}": numbers([one.get(what) for one in densities]) for what in ("mean", "std", "mode")}
        if head.get("edges"):
            blank = [np.nan] * (len(head["edges"]) - 1)
            columns[f"{name}_pdf"] = np.array([one.get("probability") or blank for one in densities], np.float64)
    columns[f"{name}_flags"] = texts(answers, lambda one: ",".join(one.get("flags", ())))
    columns[f"{name}_typicality"] = numbers([one.get("typicality") for one in answers])
    errors = [one.get("error") or {} for one in answers]
    if any(errors):
        columns[f"{name}_error"] = texts(errors, lambda error: f"{error['code']}: {error['message']}" if error else "")
    return columns


def _number_columns(stem: str, said: Sequence[Mapping[str, Any]]) -> dict[str, Doubles]:
    """Values and the ends of their intervals, by column."""
    levels = sorted({interval["level"] for one in said for interval in one["intervals"]})
    columns = {stem: numbers([one.get("value") for one in said])}
    for level in levels:
        found: list[Mapping[str, Any]] = [
            next((i for i in one["intervals"] if i["level"] == level), {}) for one in said
        ]
        for side in ("low", "high"):
            columns[f"{stem}_{side}{round(100 * level)}"] = numbers([interval.get(side) for interval in found])
    return columns


def _with_unit(values: Doubles, unit: str) -> Any:
    if not unit:
        return values
    known = units.Unit(unit, parse_strict="silent")
    return values if isinstance(known, units.UnrecognizedUnit) else values << known


@dataclass(frozen=True)
class RedshiftResult:
    """Redshifts of N objects, NaN of those that failed; `table` has everything else that was said.

    z           (N,) medians
    low, high   (N,) ends of the 68 % interval
    density     (N, V) probability of each cell between `edges` (V + 1,)
    flags       (N,) why the head may not apply
    """

    table: PredictionTable
    head: str

    @property
    def z(self) -> Doubles:
        return self._column("")

    @property
    def low(self) -> Doubles:
        return self.interval(0.68)[0]

    @property
    def high(self) -> Doubles:
        return self.interval(0.68)[1]

    @property
    def density(self) -> Doubles:
        return self._column("_pdf")

    @property
    def edges(self) -> Doubles:
        return np.array(self.table.meta["heads"][self.head]["edges"], np.float64)

    @property
    def flags(self) -> NDArray[np.str_]:
        return np.asarray(self.table[f"{self.head}_flags"])

    def interval(self, level: float) -> tuple[Doubles, Doubles]:
        """(low, high) of the interval that holds the truth of that share of objects: 0.68 or 0.95."""
        name = f"_low{round(100 * level)}"
        if f"{self.head}{name}" not in self.table.colnames:
            raise BadInput("option_invalid", f"no interval of {level}", field="level", fix="0.68 or 0.95")
        return self._column(name), self._column(name.replace("low", "high"))

    def ok(self) -> RedshiftResult:
        """Of the objects that did not fail."""
        return RedshiftResult(self.table.ok(), self.head)

    def errors(self) -> list[AlbireoError]:
        """Why the others failed."""
        return self.table.errors()

    def to_qp(self) -> Any:
        """The densities as a qp.Ensemble of histograms, of the objects that have one; `ancil` has their ids.

        Unavailable dependency_missing without the package qp-prob.
        """
        from albireo.models.redshift import Posterior  # these are needed here only
        from albireo.service.qp_file import ensemble, need_qp

        need_qp()
        have = np.isfinite(self.density).all(axis=1)
        posteriors = [Posterior(self.edges, row) for row in self.density[have]]
        return ensemble(posteriors, {"id": self.table["id"][have].tolist()})

    def _column(self, suffix: str) -> Doubles:
        return np.asarray(self.table[f"{self.head}{suffix}"], np.float64)
