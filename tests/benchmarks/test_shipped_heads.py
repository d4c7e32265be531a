"""The heads that ship: objects whole and in part, on one side of every split, each set with the labels it has."""

from __future__ import annotations

import numpy as np

from albireo.models.applicability import Facts
from albireo.models.masking import group_of
from albireo.models.token_states import Held, TokenStates
from albireo.observations.observation import Observation, Scalar
from benchmarks.labelled import Dataset
from benchmarks.shipped_heads import PLANS, joined, with_parts

KEYS = ("tok_flux_g", "tok_flux_r", "flux_g_sdss", "flux_j_2mass")


def dataset(name: str, n: int, labels: dict[str, np.ndarray]) -> Dataset:
    rows = tuple(
        Observation(
            f"{name}-{k}",
            {key: Scalar(1.0 + k, "nanomaggy") for key in (KEYS if k % 2 else KEYS[:2])},
            metadata={"redshift": 0.5},
        )
        for k in range(n)
    )
    return Dataset(name, rows, labels, tuple(one.id for one in rows), False, f"note of {name}")


def states(of: Dataset, start: float) -> TokenStates:
    """Three states an object, all of one number: where it stands."""
    made = TokenStates("space", 4, "checkpoint", None)
    held = [Held(Facts.of(one), (("tok_flux_g", 3),)) for one in of.observations]
    rows = np.repeat(start + np.arange(len(held), dtype=np.float32), 3)[:, None] * np.ones((1, 4), np.float32)
    made.extend(held, rows)
    return made


def test_an_object_in_part_has_whole_groups_of_its_modalities_and_no_label() -> None:
    whole = dataset("sky", 40, {"redshift": np.arange(40.0)})
    found = with_parts(whole, KEYS)
    by_id = {one.id: one for one in found.observations}
    assert len(by_id) == 60  # those of one group come once
    for one, label, group in zip(found.observations, found.labels["redshift"], found.groups, strict=True):
        original = whole.observations[int(label)]
        assert group == original.id
        assert not one.metadata
        kept = {group_of(key) for key in one.data}
        assert one.data == {key: value for key, value in original.data.items() if group_of(key) in kept}
        assert (one.data.keys() < original.data.keys()) == one.id.endswith("in part")


def test_sets_are_joined_with_the_labels_they_have() -> None:
    shipped = next(one for one in PLANS if one.plan.name == "stellar")
    sky = dataset("sky", 6, {"class": np.array(["STAR", "QSO"] * 3), "teff": np.arange(6.0), "logg": np.full(6, 4.0)})
    real = dataset("real", 4, {"teff": 100.0 + np.arange(4.0), "fe_h": np.full(4, -0.5)})
    together, labels = joined([(states(sky, 0.0), sky), (states(real, 50.0), real)], shipped)
    assert together.ids == [one.id for one in (*sky.observations, *real.observations)]
    for i, name in enumerate(together.ids):
        values, keys = together.rows(i)
        assert values.shape == (3, 4)
        assert keys == ("tok_flux_g",) * 3
        assert (values == (50.0 if name.startswith("real") else 0.0) + int(name.split("-")[1])).all()
    assert labels.ids == ("sky-0", "sky-2", "sky-4", "real-0", "real-1", "real-2", "real-3")
    assert labels.columns["teff"].tolist() == [0.0, 2.0, 4.0, 100.0, 101.0, 102.0, 103.0]
    assert np.isnan(labels.columns["fe_h"][:3]).all()
    assert np.isnan(labels.columns["logg"][3:]).all()
    assert labels.columns["origin"].tolist() == list(labels.ids)
    assert "note of real" in labels.source
