"""Promises of the engine, on the shipped checkpoint and simulated objects: same object, same embedding."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from albireo.models.engine import Tokens
from albireo.models.torch_engine import TorchEngine
from albireo.observations.errors import AlbireoError, BadCheckpoint, BadInput
from albireo.observations.observation import Image, Observation, Scalar
from albireo.observations.sky import mixed, simulate
from albireo.tokenizers.checkpoint import MINI, Checkpoint
from albireo.tokenizers.image import ImageTokenizer

N = 17

pytestmark = pytest.mark.usefixtures("all_cores")


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    return TorchEngine.open(MINI)


@pytest.fixture(scope="module")
def observations() -> list[Observation]:
    rng = np.random.default_rng(5)
    return [mixed(observation, rng) for observation in simulate(N, np.random.default_rng(6))]


@pytest.fixture(scope="module")
def tokens(engine: TorchEngine, observations: list[Observation]) -> list[Tokens]:
    return good(engine.tokenize(observations))


@pytest.fixture(scope="module")
def together(engine: TorchEngine, tokens: list[Tokens]) -> np.ndarray:
    """The mean embeddings of all, from one call."""
    return vectors(engine, tokens)


def good(items: list[Tokens | AlbireoError]) -> list[Tokens]:
    for item in items:
        assert isinstance(item, Tokens), item
    return [item for item in items if isinstance(item, Tokens)]


def vectors(engine: TorchEngine, tokens: list[Tokens]) -> np.ndarray:
    return np.stack([e.values for e in engine.embed(tokens)])


def test_the_same_batch_twice_is_bit_identical(engine: TorchEngine, tokens: list[Tokens], together: np.ndarray) -> None:
    np.testing.assert_array_equal(vectors(engine, tokens), together)


def test_alone_or_among_others(
    engine: TorchEngine, observations: list[Observation], tokens: list[Tokens], together: np.ndarray
) -> None:
    for observation, expected, among in zip(observations, together, tokens, strict=True):
        (alone,) = good(engine.tokenize([observation]))
        for key, ids in among.ids.items():
            np.testing.assert_array_equal(alone.ids[key], ids)
        found = vectors(engine, [alone])[0]
        assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


def test_order_of_modalities_does_not_matter(
    engine: TorchEngine, observations: list[Observation], tokens: list[Tokens], together: np.ndarray
) -> None:
    turned = [dataclasses.replace(o, data=dict(reversed(o.data.items()))) for o in observations]
    assert any(list(a.data) != list(b.data) for a, b in zip(turned, observations, strict=True))
    np.testing.assert_array_equal(together, vectors(engine, good(engine.tokenize(turned))))
    shuffled = [Tokens(dict(reversed(t.ids.items()))) for t in tokens]
    np.testing.assert_array_equal(together, vectors(engine, shuffled))


def test_after_save_and_load(tokens: list[Tokens], together: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / MINI.name
    for path in MINI.rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(MINI)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".safetensors":
                save_file(load_file(path), target)
            else:
                target.write_bytes(path.read_bytes())
    np.testing.assert_array_equal(together, vectors(TorchEngine.open(folder), tokens))


def test_inputs_are_not_modified(engine: TorchEngine, observations: list[Observation]) -> None:
    before = copy.deepcopy([{k: dataclasses.asdict(p) for k, p in o.data.items()} for o in observations])
    tokens = good(engine.tokenize(observations))
    kept = copy.deepcopy([dict(t.ids) for t in tokens])
    engine.embed(tokens)
    after = [{k: dataclasses.asdict(p) for k, p in o.data.items()} for o in observations]
    np.testing.assert_equal(after, before)
    np.testing.assert_equal([dict(t.ids) for t in tokens], kept)


def test_masked_tokens_have_no_influence(engine: TorchEngine) -> None:
    observation = next(iter(simulate(1, np.random.default_rng(8))))
    (full,) = good(engine.tokenize([observation]))
    gone = Tokens({k: v for k, v in full.ids.items() if k != "tok_image"})
    masked = Tokens(full.ids, {"tok_image": np.ones(36, bool)})
    np.testing.assert_array_equal(vectors(engine, [gone]), vectors(engine, [masked]))
    half = np.arange(36) < 18
    noise = full.ids["tok_image"].copy()
    noise[half] = (noise[half] + 1) % engine.inputs["tok_image"].vocab_size
    one, two = Tokens(full.ids, {"tok_image": half}), Tokens({**full.ids, "tok_image": noise}, {"tok_image": half})
    np.testing.assert_array_equal(vectors(engine, [one]), vectors(engine, [two]))
    assert not np.array_equal(vectors(engine, [one]), vectors(engine, [full]))
    assert one.n_tokens == full.n_tokens - 18


def test_pooling(engine: TorchEngine, tokens: list[Tokens]) -> None:
    some = tokens[:8]
    for mean, parts, every in zip(
        engine.embed(some), engine.embed(some, "mean_per_modality"), engine.embed(some, "tokens"), strict=True
    ):
        assert every.values.shape == (mean.n_tokens, engine.dim)
        assert len(every.modalities) == mean.n_tokens
        np.testing.assert_allclose(every.values.mean(axis=0), mean.values, rtol=0, atol=1e-5)
        assert parts.modalities == mean.modalities
        for key, row in zip(parts.modalities, parts.values, strict=True):
            of_key = every.values[np.array(every.modalities) == key]
            assert len(of_key) == engine.inputs[key].n_tokens
            np.testing.assert_allclose(of_key.mean(axis=0), row, rtol=0, atol=1e-5)
    with pytest.raises(BadInput, match="pooling"):
        engine.embed(tokens, "median")  # type: ignore[arg-type]


def test_one_bad_object_fails_alone(engine: TorchEngine, observations: list[Observation], tokens: list[Tokens]) -> None:
    bad = Observation("bad", {"tok_flux_g": Scalar(float("nan"), "nanomaggy")})
    found = engine.tokenize([*observations[:3], bad, *observations[3:6]])
    assert isinstance(found[3], BadInput)
    assert found[3].code == "not_finite"
    assert "nan" in str(found[3])
    for got, expected in zip(good(found[:3] + found[4:]), tokens[:6], strict=True):
        np.testing.assert_equal(dict(got.ids), dict(expected.ids))


def test_what_the_checkpoint_lacks(engine: TorchEngine) -> None:
    (error,) = engine.tokenize([Observation("star", {"tok_flux_w3": Scalar(1.0, "nanomaggy")})])
    assert isinstance(error, BadInput)
    assert error.code == "modality_not_in_checkpoint"
    assert "legacysurvey.flux_w3" in str(error)
    (error,) = engine.tokenize([Observation("nothing", {})])
    assert isinstance(error, BadInput)
    assert error.code == "nothing_to_embed"
    with pytest.raises(BadInput) as caught:
        engine.logits([Tokens({"tok_ebv": np.array([3])})], ["tok_segmap"])
    assert caught.value.code == "modality_not_in_checkpoint"


@pytest.mark.parametrize(
    ("ids", "code"),
    [
        ({"tok_image": np.zeros(576, np.int64)}, "too_many_tokens"),
        ({"tok_image": np.zeros(3, np.int64)}, "shape_mismatch"),
        ({"tok_ebv": np.array([100_000])}, "value_out_of_range"),
        ({"tok_ebv": np.array([-1])}, "value_out_of_range"),
        ({"tok_segmap": np.array([1])}, "modality_not_in_checkpoint"),
        ({}, "nothing_to_embed"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(engine: TorchEngine, ids: dict[str, np.ndarray], code: str) -> None:
    with pytest.raises(BadInput) as caught:
        engine.embed([Tokens(ids)])
    assert caught.value.code == code


def test_logits_have_the_shape_of_their_targets(engine: TorchEngine, tokens: list[Tokens]) -> None:
    for row in engine.logits(tokens[:3], ["tok_z", "tok_image"]):
        assert {key: value.shape for key, value in row.items()} == {
            key: (engine.checkpoint.outputs[key].n_tokens, engine.checkpoint.outputs[key].vocab_size)
            for key in ("tok_z", "tok_image")
        }
    alone, beside = engine.logits(tokens[:1], ["tok_z"]), engine.logits(tokens[:1], ["tok_image", "tok_z"])
    np.testing.assert_allclose(alone[0]["tok_z"], beside[0]["tok_z"], rtol=1e-4, atol=1e-5)


def test_the_fingerprint_is_of_the_content(engine: TorchEngine, tmp_path: Path) -> None:
    folder = tmp_path / MINI.name
    for path in MINI.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(MINI)).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(MINI)).write_bytes(path.read_bytes())
    assert Checkpoint(folder).space("mean") == engine.space("mean") != engine.space("tokens")
    codec = folder / "codecs" / "EBV" / "model.safetensors"
    tensors = load_file(codec)
    tensors["_quantizer._index_to_val"] = tensors["_quantizer._index_to_val"] + np.float32(1e-3)
    save_file(tensors, codec)
    assert Checkpoint(folder).fingerprint != engine.checkpoint.fingerprint


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"config\.json"):
        Checkpoint(tmp_path)
    folder = tmp_path / "mini"
    for path in MINI.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(MINI)).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(MINI)).write_bytes(path.read_bytes())
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors"):
        TorchEngine.open(folder)
    tensors = load_file(MINI / "model.safetensors")
    del tensors["encoder.0.attn.qkv.weight"]
    save_file(tensors, weights)
    with pytest.raises(BadCheckpoint, match=r"encoder\.0\.attn\.qkv\.weight"):
        TorchEngine.open(folder)


def test_bands_that_are_absent_are_no_zeros(engine: TorchEngine) -> None:
    """The projection scales as if every slot were filled: sqrt(9 / 3) against sqrt(9 / 4) for the same pixels."""
    observation = next(iter(simulate(1, np.random.default_rng(9))))
    image, tokenizer = observation.data["tok_image"], engine.bank["tok_image"]
    assert isinstance(image, Image)
    assert isinstance(tokenizer, ImageTokenizer)
    zeroed = torch.tensor(image.flux)[None]
    zeroed[:, 2] = 0
    with torch.inference_mode():
        three = tokenizer.network_input(zeroed[:, [0, 1, 3]], ("DES-G", "DES-R", "DES-Z"))
        four = tokenizer.network_input(zeroed, image.bands)
        assert torch.equal(three[0], four[0])
        assert (int(three[1].sum()), int(four[1].sum())) == (3, 4)
        projected = [tokenizer.subsample_in.project(*given) for given in (three, four)]
        torch.testing.assert_close(projected[0], projected[1] * (4 / 3) ** 0.5)
        assert not torch.equal(tokenizer.latents(*three), tokenizer.latents(*four))
