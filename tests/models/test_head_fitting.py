"""Heads find what is there to be found, cover what they say, and refuse labels that cannot be used."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from albireo.models import head_training
from albireo.models.head_density import COMPONENTS, Density, grid
from albireo.models.head_fitting import Labels, Plan, fit
from albireo.models.head_network import HeadNetwork, components, n_kinds, run
from albireo.models.head_scores import scores
from albireo.models.head_splits import PARTS, groups_of, shares_of, split
from albireo.models.head_tasks import Quantiles
from albireo.models.heads import LEVELS, POOLINGS, Head, Network, Pooling
from albireo.models.token_states import TokenStates
from albireo.observations.errors import BadInput
from albireo.observations.observation import Observation, Scalar
from tests.models.toys import Toys, needles, states_of, toys


@pytest.fixture(scope="module")
def made() -> Toys:
    return toys(900, seed=11)


@pytest.fixture(scope="module")
def fresh() -> Toys:
    return toys(1_000, seed=12)


@pytest.fixture(autouse=True)
def one_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """No choice among weight decays: a third of the time."""
    monkeypatch.setattr(head_training, "FEW", 0)


def share_covered(head: Head, some: Toys, target: str, level: float) -> float:
    truth = some.labels[target]
    low, high = np.array([a.numbers[0].intervals[level] for a in head.predict(some.embeddings, some.observations)]).T
    return float(((low <= truth) & (truth <= high)).mean())


def test_numbers_are_found(made: Toys, fresh: Toys) -> None:
    """Also with labels that are missing; the card's test metrics are those of fresh objects."""
    head = made.fit(Plan("regression", ("t", "cubic"), pooling="mean_per_modality", epochs=8))
    answers = head.predict(fresh.embeddings, fresh.observations)
    truth = {"t": fresh.labels["t"], "cubic": fresh.labels["cubic"]}
    found = scores("regression", answers, truth)
    assert found["t"]["r2"][0] > 0.9
    assert found["cubic"]["r2"][0] > 0.6
    assert found["cubic"]["n"][0] == 800
    value, low, high = head.card.metrics["test"]["t"]["r2"]
    assert low <= value <= high
    assert low < found["t"]["r2"][0] + 0.05
    assert head.card.labels["cubic"]["n"] < head.card.labels["t"]["n"]


@pytest.mark.parametrize("network", ["linear", "mlp"])
@pytest.mark.parametrize("interval", ["cqr", "split"])
def test_intervals_cover(made: Toys, fresh: Toys, network: str, interval: str) -> None:
    """A head that has hardly learned covers as well: within 4 sigma of both samples."""
    plan = Plan("regression", ("t",), pooling="mean", network=network, interval=interval, epochs=3,
                parts=(0.3, 0.1, 0.6, 0.0))  # type: ignore[arg-type] # fmt: skip
    head = made.fit(plan)
    n = head.card.data["objects"]["calibration"]
    for level in LEVELS:
        sigma = math.sqrt(level * (1 - level) * (1 / n + 1 / len(fresh.observations)))
        assert abs(share_covered(head, fresh, "t", level) - level) < 4 * sigma


@pytest.mark.parametrize("network", ["linear", "mlp"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_head_starts_from_ridge_regression(made: Toys, fresh: Toys, pooling: Pooling, network: Network) -> None:
    """So that it is as good as that from the first epoch on; of modalities one by one it is better than of the mean."""
    head = made.fit(Plan("regression", ("t",), pooling=pooling, network=network, epochs=1))
    truth = {"t": fresh.labels["t"]}
    found = scores("regression", head.predict(fresh.embeddings, fresh.observations), truth)["t"]["r2"][0]
    x, new = (np.array([e.values.mean(axis=0) for e in some.embeddings]) for some in (made, fresh))
    weights = np.linalg.lstsq(np.c_[x, np.ones(len(x))], made.labels["t"], rcond=None)[0]
    expected = np.c_[new, np.ones(len(new))] @ weights
    r2 = 1 - ((expected - truth["t"]) ** 2).sum() / ((truth["t"] - truth["t"].mean()) ** 2).sum()
    if pooling == "mean":
        assert found == pytest.approx(r2, abs=0.03)
    else:
        assert found > r2


@pytest.mark.parametrize(("objects", "numbers"), [(300, 12), (40, 200)])
def test_components_are_uncorrelated_and_of_unit_variance(objects: int, numbers: int) -> None:
    """Those along which most varies, largest first; what does not vary has none."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(objects, 6)) * [9, 7, 5, 3, 1, 0.1]) @ np.linalg.qr(rng.normal(size=(numbers, 6)))[0].T + 4
    slopes = components(x, 10)
    assert slopes.shape == (6, numbers)
    told = (x - x.mean(axis=0)) @ slopes.T
    np.testing.assert_allclose(told.T @ told / objects, np.eye(6), atol=1e-6)
    np.testing.assert_allclose(slopes[:3], components(x, 3), atol=1e-9)
    spread = 1 / np.linalg.norm(slopes, axis=1)
    assert (np.diff(spread) < 0).all()
    assert components(np.ones((5, 3)), 2).shape == (0, 3)


@pytest.mark.parametrize("pooling", ["mean_per_modality", "attentive"])
def test_a_network_begins_with_features_of_unit_variance(made: Toys, pooling: Pooling) -> None:
    """However little of what varies they are made of."""
    states = made.states
    known = sorted({key for one in states.objects for key in one.keys})
    rows = head_training.rows_of(states, np.arange(len(states)), pooling, known)
    torch.manual_seed(0)
    network = HeadNetwork(pooling, "linear", states.dim, n_kinds(pooling, known), 2, 1)
    network.begin(rows)
    _, features = run(network, rows)
    together = features.shape[1] if pooling == "mean_per_modality" else features.shape[1] // 2
    for part in np.split(features, features.shape[1] // together, axis=1):
        covariance = np.cov(part[:, :4].T)
        np.testing.assert_allclose(covariance, np.eye(4), atol=0.05)


def test_ridge_regression_of_few_objects_is_that_of_many_numbers() -> None:
    """By the covariance of objects or of numbers: the same slopes; labels that are missing have no say."""
    rng = np.random.default_rng(5)
    x, x_new = rng.normal(size=(40, 60)), rng.normal(size=(30, 60))
    slopes = rng.normal(size=60)
    y, y_new = x @ slopes + 3, x_new @ slopes + 3
    weights = rng.uniform(0.5, 2.0, 40)
    y[3] = np.nan
    (few,) = head_training.ridge(x, y[:, None], weights, x_new, y_new[:, None])
    kept = np.arange(40) != 3
    twice, labels, shares = (np.concatenate([one[kept]] * 2) for one in (x, np.stack([y, y], axis=1), weights))
    many, same = head_training.ridge(twice, labels, shares, x_new, np.stack([y_new, y_new], axis=1))
    assert len(twice) > 60 > kept.sum()
    np.testing.assert_array_equal(many.slopes, same.slopes)
    np.testing.assert_allclose(few.slopes, many.slopes, atol=1e-8)
    assert few.middle == pytest.approx(many.middle)
    assert few.spread == pytest.approx(np.sqrt(np.mean((x_new @ few.slopes + few.middle - y_new) ** 2)))


def test_quantiles_never_cross() -> None:
    truth = np.random.default_rng(1).normal(size=(200, 3))
    task = Quantiles.fit(("a", "b", "c"), ("", "", ""), truth, np.ones(200), True)
    outputs = np.random.default_rng(2).normal(size=(500, task.n_outputs)) * 100
    assert (np.diff(task._quantiles(torch.from_numpy(outputs)).numpy(), axis=-1) >= 0).all()
    for widths in (np.full((3, 2), -5.0), np.full((3, 2), 5.0)):
        for told in replace(task, widths=widths).told(outputs, None):
            for one in told.numbers:
                (low, high), (lower, higher) = (one.intervals[level] for level in LEVELS)
                assert lower <= low <= one.value <= high <= higher


def test_attention_finds_the_needle_that_the_mean_loses() -> None:
    hay, fresh = needles(1_000, 21, rows=20), needles(300, 22, rows=20)
    found = {}
    for pooling in ("mean", "attentive"):
        head = hay.fit(Plan("regression", ("y",), pooling=pooling, queries=2, epochs=12))  # type: ignore[arg-type]
        answers = head.predict(fresh.embeddings, fresh.observations)
        found[pooling] = scores("regression", answers, fresh.labels)["y"]["r2"][0]
    assert found["attentive"] > 0.8
    assert found["mean"] < 0.3


def test_classes_are_found_and_their_probabilities_true(made: Toys, fresh: Toys) -> None:
    head = made.fit(Plan("classification", ("kind",), pooling="mean_per_modality", epochs=6))
    found = scores("classification", head.predict(fresh.embeddings, fresh.observations), {"kind": fresh.labels["kind"]})
    assert found["kind"]["balanced_accuracy"][0] > 0.75
    assert found["kind"]["calibration_error"][0] < 0.08
    assert head.card.classes == ("high", "low", "middle")
    assert sum(one["n"] for one in head.card.labels.values()) == head.card.data["objects"]["training"]


def test_balanced_classes_count_alike(made: Toys, fresh: Toys) -> None:
    """Of a rare class more is found; the price is what is called by its name and is not."""
    rare = {"kind": np.where(made.labels["t"] > 1.3, "rare", "other")}
    truth = np.where(fresh.labels["t"] > 1.3, "rare", "other")
    found = []
    for balanced in (False, True):
        head = made.fit(Plan("classification", ("kind",), pooling="mean", balanced=balanced, epochs=4), **rare)
        said = np.array([next(iter(a.classes)) for a in head.predict(fresh.embeddings, fresh.observations)])
        found.append(((said == truth)[truth == "rare"].mean(), (said == "rare").mean()))
    assert found[1] > found[0]
    assert found[1][1] > found[0][1]


def test_redshifts_are_found_and_covered(made: Toys, fresh: Toys) -> None:
    plan = Plan("redshift", ("redshift",), pooling="mean_per_modality", epochs=9, parts=(0.5, 0.1, 0.4, 0.0))
    head = made.fit(plan)
    answers = head.predict(fresh.embeddings, fresh.observations)
    found = scores("redshift", answers, {"redshift": fresh.labels["redshift"]})["redshift"]
    assert found["sigma_nmad"][0] < 0.04
    n = head.card.data["objects"]["calibration"]
    for level in LEVELS:
        sigma = math.sqrt(level * (1 - level) * (1 / n + 1 / 1_000))
        assert abs(share_covered(head, fresh, "redshift", level) - level) < 4 * sigma
    density = answers[0].density
    assert density is not None
    assert (density.edges[0], density.edges[-1]) == (0.0, 5.0)
    assert np.diff(np.log1p(density.edges)).max() <= 0.002 + 1e-12


def test_a_density_is_as_fine_as_what_is_known() -> None:
    """States that hold the redshift: half of it within 1,000 km/s."""
    rng = np.random.default_rng(31)

    def sharp(n: int, name: str) -> Toys:
        u = rng.uniform(0.05, 0.4, n)
        waves = np.concatenate(
            [[np.sin(2 * np.pi * k * u / 0.4), np.cos(2 * np.pi * k * u / 0.4)] for k in (0.5, 1, 2, 4)]
        )
        rows = np.concatenate([waves, rng.normal(size=(8, n))]).T
        observations = [Observation(f"{name}{i}", {"tok_flux_g": Scalar(1.0, "nanomaggy")}) for i in range(n)]
        embeddings = [states_of(row[None], ["tok_flux_g"]) for row in rows]
        return Toys(toys(1).engine, observations, embeddings, {"z": np.expm1(u)})

    made, fresh = sharp(1_000, "a"), sharp(300, "b")
    head = made.fit(Plan("redshift", ("z",), pooling="mean", epochs=20))
    said = np.array([a.numbers[0].value for a in head.predict(fresh.embeddings, fresh.observations)])
    z = fresh.labels["z"]
    assert np.median(np.abs(said - z) / (1 + z)) < 1_000 / 299_792


def test_low_and_high_redshifts_are_found_and_covered() -> None:
    """As well as others: when each component had to be taught by objects of its own redshift, the ends never were."""
    rng = np.random.default_rng(35)
    directions = rng.normal(size=(2, 16))

    def planted(n: int, name: str) -> Toys:
        u = np.log1p(rng.gamma(1.5, 0.25, n))
        noise = 0.05 * rng.normal(size=(n, 3, 16))
        noise[:, 2] *= 20
        rows = noise + np.stack([np.outer(u, directions[0]), np.outer(u**2, directions[1]), np.zeros((n, 16))], axis=1)
        keys = ["tok_flux_g", "tok_flux_r", "tok_flux_z"]
        observations = [Observation(f"{name}{i}", {"tok_flux_g": Scalar(1.0, "nanomaggy")}) for i in range(n)]
        return Toys(toys(1).engine, observations, [states_of(one, keys) for one in rows], {"z": np.expm1(u)})

    made, fresh = planted(1_200, "a"), planted(1_500, "b")
    head = made.fit(Plan("redshift", ("z",), pooling="mean_per_modality", epochs=15, parts=(0.4, 0.1, 0.5, 0.0)))
    z = fresh.labels["z"]
    answers = head.predict(fresh.embeddings, fresh.observations)
    error = np.array([a.numbers[0].value for a in answers]) - z
    order = np.argsort(z)
    ends = {"lowest": order[:300], "highest": order[-300:]}
    for at in ends.values():
        assert np.median(np.abs(error[at]) / (1 + z[at])) < 0.02
    for level in LEVELS:
        low, high = np.array([a.numbers[0].intervals[level] for a in answers]).T
        inside = (low <= z) & (z <= high)
        n = head.card.data["objects"]["calibration"]
        for at in (order, *ends.values()):
            sigma = math.sqrt(level * (1 - level) * (1 / n + 1 / len(at)))
            assert abs(inside[at].mean() - level) < 4 * sigma


def test_the_density_that_is_learned_is_the_one_that_is_told() -> None:
    """The loss is minus the logarithm of the probability of the label's cell, where cells are narrow."""
    rng = np.random.default_rng(41)
    truth = rng.gamma(2.0, 0.2, size=400).clip(0, 4.9)
    task = Density.fit(grid(5.0), truth, np.ones(400))
    outputs = rng.normal(size=(400, task.n_outputs))
    outputs[:, -COMPONENTS:] += 2  # Wide beside a cell.
    cells = task._cells(outputs)
    np.testing.assert_allclose(cells.sum(axis=1), 1)
    at = np.searchsorted(task.edges, truth, side="right") - 1
    centres = np.sqrt((1 + task.edges[at]) * (1 + task.edges[at + 1])) - 1
    loss = task.loss(torch.from_numpy(outputs), torch.from_numpy(centres)).numpy()
    np.testing.assert_allclose(loss, -np.log(cells[np.arange(400), at]), atol=0.05)


def test_weights_make_some_objects_count_more() -> None:
    """Of two kinds of objects that cannot be told apart, the one with the larger weights decides the median."""
    made = toys(600, seed=51)
    truth = np.where(np.arange(600) % 2 == 0, -3.0, 3.0) + 0.1 * made.labels["t"]
    for heavy in (0, 1):
        weights = np.where(np.arange(600) % 2 == heavy, 10.0, 1.0)
        head = made.fit(Plan("regression", ("y",), pooling="mean", weights="w", epochs=4), y=truth, w=weights)
        said = [a.numbers[0].value for a in head.predict(made.embeddings, made.observations)]
        assert np.sign(np.median(said)) == (-1 if heavy == 0 else 1)


@pytest.mark.parametrize("task", ["regression", "classification", "redshift"])
def test_the_same_seed_makes_the_same_file(made: Toys, task: str) -> None:
    target = {"regression": "cubic", "classification": "kind", "redshift": "redshift"}[task]
    plan = Plan(task, (target,), epochs=2, queries=2)  # type: ignore[arg-type]
    some = made.part(range(300))
    torch.manual_seed(123)
    first = some.fit(plan)
    state = torch.random.get_rng_state()
    torch.manual_seed(321)
    assert some.fit(plan).sha256 == first.sha256
    assert some.fit(replace(plan, seed=1)).sha256 != first.sha256
    torch.manual_seed(123)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_states_that_stay_on_disk_make_the_same_head(made: Toys, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """All of them, or those of the training part only: the others are fewer, and fit into memory."""
    plan, some = Plan("regression", ("t",), epochs=2, queries=2), made.part(range(200))
    in_memory = some.fit(plan)
    rows = sum(one.n_rows for one in some.states.objects) * some.states.dim * 4
    monkeypatch.setattr(head_training, "IN_MEMORY", int(share * rows))
    assert some.fit(plan).sha256 == in_memory.sha256


def test_of_few_objects_the_weight_decay_is_chosen(made: Toys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_training, "FEW", 3_000)
    told: list[tuple[int, int]] = []
    head = fit(
        made.states, made.table(), Plan("regression", ("t",), pooling="mean", epochs=4), lambda *x: told.append(x)
    )
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1] == (len(head_training.DECAYS) + 1) * 4
    assert 1 <= len(head.card.curve) <= 4
    assert head.card.plan["best_epoch"] <= len(head.card.curve)
    assert head.card.plan["weight_decay"] in head_training.DECAYS
    assert head.card.plan["validation_loss"] <= min(validation for _, validation in head.card.curve)


# Splits


def test_no_group_is_in_two_parts() -> None:
    groups = [f"group {i % 700}" for i in range(5_000)]
    parts = split(groups, (0.7, 0.1, 0.1, 0.1), seed=3)
    assert all(len({p for g, p in zip(groups, parts, strict=True) if g == name}) == 1 for name in set(groups[:50]))
    shares = np.bincount(parts, minlength=4) / len(parts)
    np.testing.assert_allclose(shares, (0.7, 0.1, 0.1, 0.1), atol=4 * math.sqrt(0.25 / 700))
    np.testing.assert_array_equal(split(groups[:100], (0.7, 0.1, 0.1, 0.1), 3), parts[:100])
    assert not np.array_equal(split(groups, (0.7, 0.1, 0.1, 0.1), 4), parts)
    assert set(split(groups, (0.5, 0.25, 0.25, 0.0), 3)) == {0, 1, 2}


def test_of_few_objects_more_are_for_calibration() -> None:
    assert shares_of(100_000) == pytest.approx((0.7, 0.1, 0.1, 0.1))
    assert shares_of(150)[2] == pytest.approx(40 / 150)
    for n in (1, 100, 399, 400, 5_000):
        shares = shares_of(n)
        assert sum(shares) == pytest.approx(1)
        assert shares[0] >= 0.5 - 1e-12


def test_groups_by_object_sky_survey_and_column(made: Toys) -> None:
    facts = [one.facts for one in made.states.objects]
    assert groups_of(facts, "object", {}) == made.states.ids
    assert set(groups_of(facts, "survey", {})) == {"legacysurvey"}
    assert groups_of(facts, "field", {"field": np.arange(len(facts))})[7] == "7"
    cells = groups_of(facts, "sky", {})
    near = [replace(one, ra=10.0 + 1e-4 * i, dec=0.3) for i, one in enumerate(facts[:20])]
    assert 100 < len(set(cells)) < len(facts)
    assert len(set(groups_of(near, "sky", {}))) == 1
    with pytest.raises(BadInput) as caught:
        groups_of([replace(facts[0], ra=None)], "sky", {})
    assert caught.value.code == "value_missing"


@pytest.mark.parametrize("group", ["sky", "field"])
def test_a_fit_by_groups(made: Toys, group: str) -> None:
    fields = np.arange(900) % 90
    head = made.fit(Plan("regression", ("t",), pooling="mean", group=group, epochs=2), field=fields)
    assert sum(head.card.data["objects"].values()) == 900
    cells = groups_of([one.facts for one in made.states.objects], "sky", {})
    assert head.card.data["groups"] == (90 if group == "field" else len(set(cells)))
    assert list(head.card.data["objects"]) == list(PARTS)


# Refusals


def refused(some: Toys, plan: Plan, **columns: np.ndarray) -> BadInput:
    with pytest.raises(BadInput) as caught:
        some.fit(plan, **columns)
    return caught.value


def test_labels_among_the_inputs_are_refused(made: Toys) -> None:
    some = made.part(range(200))
    g = np.array([one.data["tok_flux_g"].value for one in some.observations])  # type: ignore[union-attr]
    error = refused(some, Plan("regression", ("brightness",), pooling="mean"), brightness=g)
    assert error.code == "label_given"
    assert "legacysurvey.flux_g" in error.message
    with_z = Toys(
        some.engine,
        [replace(o, data={**o.data, "tok_z": Scalar(0.1, "")}) for o in some.observations],
        [states_of(np.concatenate([e.values, e.values[:1]]), [*e.modalities, "tok_z"]) for e in some.embeddings],
        some.labels,
    )
    assert refused(with_z, Plan("redshift", ("redshift",))).code == "label_given"
    assert refused(with_z, Plan("regression", ("Z",)), Z=some.labels["t"]).code == "label_given"
    assert with_z.fit(Plan("regression", ("t",), epochs=1)).card.own_keys == frozenset()


@pytest.mark.parametrize(
    ("plan", "columns", "code"),
    [
        (Plan("regression", ("nothing",)), {}, "column_missing"),
        (Plan("regression", ("t",), group="field"), {}, "column_missing"),
        (Plan("regression", ("kind",)), {}, "request_invalid"),
        (Plan("regression", ("t",)), {"t": np.full(200, np.inf)}, "not_finite"),
        (Plan("regression", ("t",)), {"t": np.ones(200)}, "value_out_of_range"),
        (Plan("regression", ("t",)), {"t": np.where(np.arange(200) < 30, 1.0, np.nan)}, "labels_too_few"),
        (Plan("regression", ("t",), group="survey"), {}, "labels_too_few"),
        (Plan("regression", ("t",), weights="w"), {"w": np.zeros(200)}, "value_out_of_range"),
        (Plan("regression", ("t",), parts=(0.85, 0.1, 0.05, 0.0)), {}, "labels_too_few"),
        (Plan("redshift", ("t",)), {}, "value_out_of_range"),
        (Plan("classification", ("kind",)), {"kind": np.array(["one"] * 200)}, "labels_too_few"),
        (Plan("classification", ("kind",)), {"kind": np.array(["a", *["b"] * 199])}, "labels_too_few"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(
    made: Toys, plan: Plan, columns: dict[str, np.ndarray], code: str
) -> None:
    assert refused(made.part(range(200)), replace(plan, epochs=1), **columns).code == code


def test_an_id_with_two_labels_is_refused(made: Toys) -> None:
    table = made.table()
    with pytest.raises(BadInput) as caught:
        fit(made.states, Labels((*table.ids[:-1], table.ids[0]), table.columns, ""), Plan("regression", ("t",)))
    assert caught.value.code == "id_duplicate"


def test_objects_that_share_no_modality_with_the_training_objects_are_of_no_part(made: Toys) -> None:
    some = made.part(range(300))
    parts = split(some.states.ids, shares_of(300), 0)
    alien = [i for i in range(300) if parts[i] != 0][:5]
    for i in alien:
        some.observations[i] = replace(some.observations[i], data={"tok_parallax": Scalar(1.0, "mas")})
        some.embeddings[i] = states_of(np.ones((1, 16)), ["tok_parallax"])
    head = some.fit(Plan("regression", ("t",), epochs=1, queries=1))
    assert head.card.data["without_modality_in_training"] == 5
    assert sum(head.card.data["objects"].values()) == 295


def test_what_is_left_out_is_counted(made: Toys) -> None:
    some = made.part(range(300))
    table = some.table()
    ids = (*table.ids[:280], *(f"elsewhere {i}" for i in range(20)))
    columns = {"t": np.where(np.arange(300) < 10, np.nan, table.columns["t"])}
    head = fit(some.states, Labels(ids, columns, "0"), Plan("regression", ("t",), pooling="mean", epochs=1))
    assert sum(head.card.data["objects"].values()) == 270
    assert head.card.data["without_label"] == 30
    assert head.card.data["without_object"] == 20


@pytest.mark.parametrize(
    "wrong",
    [
        {"task": "guess"},
        {"pooling": "max"},
        {"network": "tree"},
        {"targets": ()},
        {"targets": ("t", "t")},
        {"task": "redshift", "targets": ("a", "b")},
        {"units": {"x": "K"}},
        {"parts": (0.5, 0.5, 0.5, 0.5)},
        {"z_max": -1.0},
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(BadInput) as caught:
        Plan(**{"task": "regression", "targets": ("t",), **wrong})  # type: ignore[arg-type]
    assert caught.value.code == "option_invalid"


def test_negative_redshifts_of_near_objects_count_as_none(made: Toys) -> None:
    some = made.part(range(300))
    z = np.where(np.arange(300) % 3 == 0, -0.0005, some.labels["redshift"])
    head = some.fit(Plan("redshift", ("z",), pooling="mean", epochs=1), z=z)
    assert head.prior is not None
    assert head.prior.probability[0] > head.prior.probability[50]


def test_states_in_memory_hold_what_was_embedded(made: Toys) -> None:
    states = TokenStates.of(made.engine, made.observations, made.embeddings)  # type: ignore[arg-type]
    values, keys = states.rows(3)
    np.testing.assert_array_equal(values, made.embeddings[3].values)
    assert keys == made.embeddings[3].modalities
