"""Laws of a fitted head: what it says hangs on what it is given, and on nothing else; a file is the head."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from albireo.models import head_training
from albireo.models.engine import Embedding
from albireo.models.head_fitting import Plan
from albireo.models.head_network import HeadNetwork, n_kinds, reduce
from albireo.models.heads import LEVELS, Answer, Card, Head, Network, Pooling, Prior
from albireo.observations.errors import BadInput, Conflict
from albireo.observations.observation import Observation, Scalar
from tests.models.toys import ToyEngine, Toys, changed, states_of, toys

POOLINGS: tuple[Pooling, ...] = ("mean", "mean_per_modality", "attentive")


@pytest.fixture(scope="module", autouse=True)
def one_fit() -> Iterator[None]:
    """No choice among weight decays: a third of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_training, "FEW", 0)
        yield


@pytest.fixture(scope="module")
def made() -> Toys:
    return toys(400, seed=1)


@pytest.fixture(scope="module")
def other() -> Toys:
    """Objects that no head was fitted on."""
    return toys(60, seed=2)


@pytest.fixture(scope="module", params=POOLINGS)
def head(request: pytest.FixtureRequest, made: Toys) -> Head:
    """Of numbers, with each pooling."""
    return made.fit(Plan("regression", ("t", "cubic"), pooling=request.param, units={"t": "K"}, epochs=4, queries=2))


@pytest.fixture(scope="module")
def classes(made: Toys) -> Head:
    return made.fit(Plan("classification", ("kind",), pooling="mean_per_modality", epochs=4))


@pytest.fixture(scope="module")
def redshift(made: Toys) -> Head:
    return made.fit(Plan("redshift", ("redshift",), pooling="mean_per_modality", epochs=4))


def numbers(answers: Sequence[Answer]) -> np.ndarray:
    """(n, T, 1 + 2 levels): values and ends of intervals."""
    return np.array(
        [[[one.value, *(x for level in LEVELS for x in one.intervals[level])] for one in a.numbers] for a in answers]
    )


def test_what_an_answer_carries(head: Head, classes: Head, redshift: Head, other: Toys) -> None:
    for answer, observation in zip(head.predict(other.embeddings, other.observations), other.observations, strict=True):
        assert [(one.name, one.unit) for one in answer.numbers] == [("t", "K"), ("cubic", "")]
        for one in answer.numbers:
            (low, high), (lower, higher) = (one.intervals[level] for level in LEVELS)
            assert lower <= low <= one.value <= high <= higher
        image = ("image.legacysurvey",) if "tok_image" in observation.data else ()
        assert answer.modalities == (*image, "legacysurvey.flux_g", "legacysurvey.flux_r")
        assert 0 <= answer.typicality <= 1
        assert (answer.classes, answer.density) == ({}, None)
    for answer in classes.predict(other.embeddings, other.observations):
        assert sorted(answer.classes) == ["high", "low", "middle"]
        assert list(answer.classes.values()) == sorted(answer.classes.values(), reverse=True)
        assert sum(answer.classes.values()) == pytest.approx(1)
    for answer in redshift.predict(other.embeddings, other.observations):
        (one,) = answer.numbers
        assert answer.density is not None
        assert answer.density.probability.sum() == pytest.approx(1)
        assert (one.name, one.value) == ("redshift", answer.density.quantile(0.5))
        assert one.intervals[0.95][0] <= one.intervals[0.68][0] <= one.value <= one.intervals[0.68][1]


def test_a_batch_is_its_objects_one_by_one(head: Head, other: Toys) -> None:
    together = head.predict(other.embeddings, other.observations)
    alone = [head.predict([e], [o])[0] for e, o in zip(other.embeddings, other.observations, strict=True)]
    np.testing.assert_allclose(numbers(together), numbers(alone), rtol=1e-5, atol=1e-5)
    assert [a.flags for a in together] == [a.flags for a in alone]
    np.testing.assert_array_equal(numbers(together), numbers(head.predict(other.embeddings, other.observations)))


def test_the_order_of_modalities_does_not_matter(head: Head, other: Toys) -> None:
    shuffled = [changed(one, lambda at: np.random.default_rng(3).permutation(at)) for one in other.embeddings]
    backwards = [replace(one, data=dict(reversed(one.data.items()))) for one in other.observations]
    there, here = head.predict(other.embeddings, other.observations), head.predict(shuffled, backwards)
    np.testing.assert_allclose(numbers(here), numbers(there), rtol=1e-5, atol=1e-5)
    assert [a.flags for a in here] == [a.flags for a in there]


def test_an_absent_modality_has_no_influence(made: Toys, other: Toys) -> None:
    """Whatever a head has learned of images, an object without one is the same to the last bit."""
    at = [i for i, one in enumerate(other.observations) if "tok_image" not in one.data]
    without = other.part(at)
    for pooling, about_images in (
        ("mean_per_modality", {"network.maps": (0,)}),
        ("attentive", {"network.preference": (slice(None), 0)}),
    ):
        head = made.fit(Plan("regression", ("t",), pooling=pooling, epochs=1))
        assert next(iter(head.coverage.modalities)) == "tok_image"
        arrays = {name: array.copy() for name, array in head.arrays.items()}
        for name, place in ({"network.centre": (0,)} | about_images).items():
            arrays[name][place] += 7
        twisted = Head(head.card, arrays)
        here, there = (numbers(h.predict(without.embeddings, without.observations)) for h in (head, twisted))
        np.testing.assert_array_equal(here, there)
        changed_by = numbers(head.predict(other.embeddings, other.observations))
        assert not np.array_equal(changed_by, numbers(twisted.predict(other.embeddings, other.observations)))


def test_beside_an_object_of_many_tokens(head: Head, other: Toys) -> None:
    """Room that longer objects take in a batch is not read."""
    large = states_of(np.full((500, 16), 50.0), ["tok_image"] * 500)
    alone = head.predict(other.embeddings[:5], other.observations[:5])
    beside = head.predict([*other.embeddings[:5], large], [*other.observations[:5], other.observations[0]])
    np.testing.assert_allclose(numbers(beside[:5]), numbers(alone), rtol=1e-5, atol=1e-5)


def test_inputs_are_not_modified(head: Head, other: Toys) -> None:
    before = [one.values.copy() for one in other.embeddings]
    head.predict(other.embeddings, other.observations)
    for one, values in zip(other.embeddings, before, strict=True):
        np.testing.assert_array_equal(one.values, values)


def test_a_file_is_the_head(head: Head, classes: Head, redshift: Head, other: Toys, tmp_path: Path) -> None:
    for one in (head, classes, redshift):
        path = tmp_path / f"{one.card.name}.safetensors"
        one.save(path)
        again = Head.open(path)
        assert again.card == one.card == Card.open(path)
        assert again.sha256 == one.sha256
        assert again.arrays.keys() == one.arrays.keys()
        here, there = (h.predict(other.embeddings, other.observations) for h in (one, again))
        np.testing.assert_array_equal(numbers(here), numbers(there))
        assert [(a.classes, a.flags, a.typicality) for a in here] == [(a.classes, a.flags, a.typicality) for a in there]
        assert [path.name for path in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_file_is_small(pooling: Pooling, tmp_path: Path) -> None:
    """Under 2 MB with 256 numbers a token, also when 28 modalities are known."""
    wide = toys(200, seed=5, dim=256)
    head = wide.fit(Plan("redshift", ("redshift",), pooling=pooling, epochs=1, parts=(0.6, 0.2, 0.2, 0.0)))
    head.save(tmp_path / "head.safetensors")
    size = (tmp_path / "head.safetensors").stat().st_size
    outputs = len(head.arrays["network.readout.bias"])
    few, many = (_bytes(HeadNetwork(pooling, "mlp", 256, kinds, 8, outputs)) for kinds in (3, 28))
    assert few < size
    assert size + many - few < 2_000_000


def _bytes(network: HeadNetwork) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())


def test_what_is_no_head_is_told(redshift: Head, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    with pytest.raises(BadInput) as caught:
        Head.open(path)
    assert caught.value.code == "file_not_found"
    redshift.save(path)
    whole = path.read_bytes()
    save_file({"x": np.zeros(3)}, tmp_path / "weights.safetensors")
    save_file(load_file(path), tmp_path / "no-card.safetensors", {"albireo.head": '{"task": "other"}'})
    for content in (
        b"",
        b"neither",
        whole[:-8],
        whole[:200],
        (tmp_path / "weights.safetensors").read_bytes(),
        (tmp_path / "no-card.safetensors").read_bytes(),
    ):
        path.write_bytes(content)
        with pytest.raises(BadInput) as caught:
            Head.open(path)
        assert caught.value.code == "head_invalid"


def test_weights_of_another_network_are_told(redshift: Head, other: Toys) -> None:
    arrays = {name: array for name, array in redshift.arrays.items() if name != "network.maps"}
    with pytest.raises(BadInput) as caught:
        Head(redshift.card, arrays).predict(other.embeddings, other.observations)
    assert caught.value.code == "head_invalid"


def test_another_space_is_refused(redshift: Head) -> None:
    redshift.check(ToyEngine())  # type: ignore[arg-type]
    with pytest.raises(Conflict) as caught:
        redshift.check(ToyEngine(16, "another"))  # type: ignore[arg-type]
    assert caught.value.code == "space_mismatch"
    assert "albireo heads fit" in str(caught.value.fix)


def test_the_answer_may_not_be_given(redshift: Head, classes: Head, other: Toys) -> None:
    e, o = other.embeddings[0], other.observations[0]
    given = states_of(np.concatenate([e.values, e.values[:1]]), [*e.modalities, "tok_z"])
    known = replace(o, data={**o.data, "tok_z": Scalar(0.4, "")})
    with pytest.raises(BadInput) as caught:
        redshift.predict([given], [known])
    assert caught.value.code == "label_given"
    (answer,) = classes.predict([given], [known])
    assert "modality_set_not_in_training" in answer.flags
    assert "redshift" not in answer.modalities


def test_an_object_of_unknown_modalities_is_refused(redshift: Head) -> None:
    embedding = states_of(np.ones((1, 16)), ["tok_parallax"])
    with pytest.raises(BadInput) as caught:
        redshift.predict([embedding], [Observation("a", {"tok_parallax": Scalar(1.0, "mas")})])
    assert caught.value.code == "nothing_to_embed"


def test_what_is_unlike_is_flagged(head: Head, other: Toys) -> None:
    usual = head.predict(other.embeddings, other.observations)
    far = [Embedding("tokens", one.values + 20, one.modalities, one.n_tokens) for one in other.embeddings]
    assert all("unlike_training" in answer.flags for answer in head.predict(far, other.observations))
    assert np.mean(["unlike_training" in answer.flags for answer in usual]) < 0.1
    assert np.mean([answer.typicality for answer in usual]) == pytest.approx(0.5, abs=0.15)


def test_no_more_than_training_labels(head: Head, other: Toys) -> None:
    for answer in head.predict(other.embeddings, other.observations):
        outside = False
        for one in answer.numbers:
            statistics = head.card.labels[one.name]
            low, high = one.intervals[0.68]
            outside |= low < statistics["low"] or high > statistics["high"]
        assert ("outside_label_range" in answer.flags) == outside


def densities(head: Head, some: Toys, prior: Prior | None) -> np.ndarray:
    return np.array(
        [a.density.probability for a in head.predict(some.embeddings, some.observations, prior) if a.density]
    )


def test_the_training_prior_in_its_own_place_changes_nothing(redshift: Head, other: Toys) -> None:
    assert redshift.prior is not None
    same = redshift.predict(other.embeddings, other.observations, redshift.prior)
    plain = redshift.predict(other.embeddings, other.observations)
    np.testing.assert_array_equal(densities(redshift, other, redshift.prior), densities(redshift, other, None))
    assert [(a.numbers, a.flags) for a in same] == [(a.numbers, a.flags) for a in plain]


def test_another_prior_is_a_factor(redshift: Head, other: Toys) -> None:
    assert redshift.prior is not None
    old, narrow = redshift.prior, Prior(np.array([0.25, 0.3, 0.35]), np.array([3.0, 1.0]))
    expected = densities(redshift, other, None) * narrow.on(old.edges) / old.probability
    np.testing.assert_allclose(
        densities(redshift, other, narrow), expected / expected.sum(axis=1, keepdims=True), rtol=1e-9, atol=1e-15
    )
    (answer, *_) = redshift.predict(other.embeddings, other.observations, narrow)
    assert 0.25 <= answer.numbers[0].value <= 0.36
    assert "prior_replaced" in answer.flags
    assert "prior_outside_training" not in answer.flags
    (answer, *_) = redshift.predict(other.embeddings, other.observations, Prior.flat())
    assert "prior_outside_training" in answer.flags


def test_a_prior_that_cannot_be_used_is_refused(redshift: Head, classes: Head, other: Toys) -> None:
    with pytest.raises(BadInput):
        Prior(np.array([0.0, 1.0, 0.5]), np.ones(2))
    with pytest.raises(BadInput):
        Prior(np.array([0.0, 1.0]), np.array([-1.0]))
    for head, prior in ((redshift, Prior.flat(6, 7)), (classes, Prior.flat())):
        with pytest.raises(BadInput) as caught:
            head.predict(other.embeddings, other.observations, prior)
        assert caught.value.code == "option_invalid"


def test_arrays_of_other_shapes(head: Head, classes: Head, redshift: Head, other: Toys) -> None:
    """Every array of a file that is left out, has an axis more, or is of another type: told, whatever it is for."""
    for whole, name in [(one, name) for one in (head, classes, redshift) for name in one.arrays]:
        if name.startswith("typicality.reference.") and not name.endswith(".all"):
            continue  # of one set of modalities: there is one comparison less
        array = whole.arrays[name]
        for spoilt in (None, array.astype(np.int16), np.stack([array, array]), array[:0]):
            arrays = {key: one for key, one in (whole.arrays | {name: spoilt}).items() if one is not None}
            with pytest.raises(BadInput, match="head_invalid"):
                Head(whole.card, arrays).predict(other.embeddings[:1], other.observations[:1])


@pytest.mark.parametrize(
    "changes",
    [
        {"pooling": "other"}, {"network": []}, {"dim": 1 << 40}, {"dim": "16"}, {"dim": True}, {"units": []},
        {"units": [5]}, {"targets": [{}]}, {"name": {}}, {"plan": []}, {"plan": {"queries": "x", "interval": "cqr"}},
        {"coverage": []},
        {"coverage": {"n": 1, "modalities": {"tok_none": 1.0}, "sets": {}, "brightness": {}, "bands": {}}},
        {"coverage": {"n": 1, "modalities": {"tok_flux_g": "x"}, "sets": {}, "brightness": {}, "bands": {}}},
        {"coverage": {"n": 1, "modalities": {}, "sets": {}, "brightness": {"tok_flux_g": [1]}, "bands": {}}},
        {"coverage": {"n": 1, "modalities": {}, "sets": [], "brightness": {}, "bands": {}}},
        {"coverage": {"n": 1}}, {"metrics": []}, {"curve": [[1]]},
    ],
)  # fmt: skip
def test_cards_of_other_types(head: Head, other: Toys, tmp_path: Path, changes: dict[str, Any]) -> None:
    """No size that a card states is taken before the arrays have it."""
    path = tmp_path / "head.safetensors"
    save_file(dict(head.arrays), path, {"albireo.head": json.dumps(head.card.as_json() | changes)})
    with pytest.raises(BadInput, match="head_invalid"):
        Head.open(path).predict(other.embeddings[:1], other.observations[:1])


def test_a_prior_on_other_cells_keeps_its_shape() -> None:
    prior = Prior(np.array([0.0, 1.0, 3.0]), np.array([1.0, 1.0]))
    np.testing.assert_allclose(prior.on(np.array([0.0, 0.5, 1.0, 2.0, 4.0])), [0.25, 0.25, 0.25, 0.25])


def test_nothing_of_nothing(redshift: Head) -> None:
    assert redshift.predict([], []) == []


def test_coefficients_are_not_averaged() -> None:
    """Each is another quantity; the states of an image's places are of the same kind."""
    known = ["tok_image", "tok_xp_bp", "tok_z"]
    keys = ("tok_xp_bp",) * 55 + ("tok_image",) * 4
    values = np.arange(59, dtype=np.float32)[:, None]
    rows = reduce(values, keys, "mean_per_modality", known)
    assert n_kinds("mean_per_modality", known) == 57
    assert dict(zip(rows.kinds.tolist(), rows.values[:, 0].tolist(), strict=True)) == {
        0: 56.5, **{1 + k: float(k) for k in range(55)}
    }  # fmt: skip
    assert n_kinds("attentive", known) == 3
    assert set(reduce(values, keys, "attentive", known).kinds.tolist()) == {0, 1}
    assert len(reduce(values, keys, "mean", known).values) == 1


@pytest.mark.parametrize("network", ["linear", "mlp"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_has_no_influence(pooling: Pooling, network: Network) -> None:
    """Rows of kind -1 may hold anything."""
    generator = torch.Generator().manual_seed(1)
    made = HeadNetwork(pooling, network, 8, 3, 2, 4).eval()
    values = torch.randn(3, 3, 8, generator=generator)
    kinds = torch.tensor([[0, 1, 2], [1, 2, -1], [0, -1, -1]])
    if pooling == "mean":
        values, kinds = values[:, :1], torch.zeros(3, 1, dtype=torch.int64)
    noisy = torch.where((kinds < 0)[..., None], 1e3, values)
    torch.testing.assert_close(made(noisy, kinds)[0], made(values, kinds)[0], rtol=0, atol=0)
