"""What a checkpoint costs: the encoder until something is predicted, codecs without their decoders until something is
decoded; a shorter type for the weights, and computing in float32 where bfloat16 is slow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from albireo.models.cpu import fast_bf16
from albireo.models.engine import Numerics, Tokens
from albireo.models.torch_engine import TorchEngine, numerics_of
from albireo.observations.errors import BadCheckpoint, BadInput
from albireo.observations.sky import simulate
from albireo.tokenizers.checkpoint import MINI


@pytest.fixture(scope="module")
def given() -> list[Tokens]:
    found = TorchEngine.open(MINI).tokenize(list(simulate(3, np.random.default_rng(2))))
    return [one for one in found if isinstance(one, Tokens)]


def linked(folder: Path) -> Path:
    """The shipped checkpoint over links, but for the weights of the network."""
    for path in MINI.rglob("*"):
        if path.is_file() and path != MINI / "model.safetensors":
            (folder / path.relative_to(MINI)).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(MINI)).symlink_to(path)
    return folder


def on_meta(module: torch.nn.Module) -> set[str]:
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name.split(".")[0] for name, tensor in named if tensor.is_meta}


def test_only_what_embedding_needs_is_read_at_first(given: list[Tokens]) -> None:
    engine = TorchEngine.open(MINI)
    engine.embed(given)
    left = {"decoder", "decoder_norm", "mask_token", "target_pos_emb", "to_logits"}
    assert on_meta(engine.transformer) == left
    before = engine.embed(given)[0].values
    engine.logits(given, ["tok_z"])
    assert on_meta(engine.transformer) == set()
    np.testing.assert_array_equal(engine.embed(given)[0].values, before)


def test_codecs_are_read_without_their_decoders(given: list[Tokens]) -> None:
    engine = TorchEngine.open(MINI)
    image, hsc, spectrum = (engine.bank[key] for key in ("tok_image", "tok_image_hsc", "tok_spectrum_desi"))
    assert on_meta(image) == on_meta(hsc) == {"model", "post_quant_proj", "subsample_out"}
    assert on_meta(spectrum) == {"decoder", "post_quant_conv"}
    ids = given[0].ids
    assert np.isfinite(engine.values("tok_image", ids["tok_image"][None])).all()
    assert on_meta(image) == on_meta(hsc) == set()
    assert on_meta(spectrum) == {"decoder", "post_quant_conv"}
    assert np.isfinite(engine.values("tok_spectrum_desi", ids["tok_spectrum_desi"][None])).all()


def test_a_damaged_decoder_is_told_when_it_is_needed(given: list[Tokens], tmp_path: Path) -> None:
    folder = linked(tmp_path / "mini")
    weights = load_file(MINI / "model.safetensors")
    del weights["decoder.0.mlp.fc1.weight"]
    save_file(weights, folder / "model.safetensors")
    engine = TorchEngine.open(folder)
    engine.embed(given)
    with pytest.raises(BadCheckpoint, match=r"decoder\.0\.mlp\.fc1\.weight"):
        engine.logits(given, ["tok_z"])


def test_a_shared_embedding_may_be_stored_under_either_name(given: list[Tokens], tmp_path: Path) -> None:
    """The released `save_pretrained` keeps one of two names of a tensor that both sides share."""
    engine, weights = TorchEngine.open(MINI), load_file(MINI / "model.safetensors")
    embedded = engine.embed(given)[0].values
    logits = engine.logits(given, ["tok_image"])[0]["tok_image"]
    for dropped in ("encoder_embeddings", "decoder_embeddings"):
        folder = linked(tmp_path / dropped)
        save_file(
            {name: value for name, value in weights.items() if name != f"{dropped}.tok_image.mod_emb"},
            folder / "model.safetensors",
        )
        other = TorchEngine.open(folder)
        np.testing.assert_array_equal(other.embed(given)[0].values, embedded)
        np.testing.assert_array_equal(other.logits(given, ["tok_image"])[0]["tok_image"], logits)


def test_bfloat16_computes_as_the_processor_can() -> None:
    assert numerics_of("bfloat16", "cpu", fast=True) == Numerics("bfloat16", "bfloat16", "cpu")
    assert numerics_of("bfloat16", "cpu", fast=False) == Numerics("bfloat16", "float32", "cpu")
    assert numerics_of("bfloat16", "cuda:1", fast=False) == Numerics("bfloat16", "bfloat16", "cuda:1")
    assert numerics_of("float32", "cpu", fast=True) == Numerics("float32", "float32", "cpu")
    assert numerics_of("float32", "cpu", True, "bfloat16") == Numerics("float32", "float32", "cpu", "bfloat16")
    assert numerics_of("float32", "cpu", False, "bfloat16") == Numerics("float32", "float32", "cpu", "float32")
    assert TorchEngine.open(MINI, dtype="bfloat16").numerics == numerics_of("bfloat16", "cpu", fast_bf16())


@pytest.mark.parametrize("compute", ["bfloat16", "float32"])
def test_bfloat16_weights_are_near_and_of_the_same_space(given: list[Tokens], compute: str) -> None:
    engine, exact = TorchEngine.open(MINI, dtype="bfloat16"), TorchEngine.open(MINI)
    engine.numerics = Numerics("bfloat16", compute, "cpu")
    assert {p.dtype for p in engine.transformer.parameters() if not p.is_meta} == {torch.bfloat16}
    found, expected = (np.stack([e.values for e in one.embed(given)]) for one in (engine, exact))
    assert found.dtype == np.float32
    spread = np.sqrt(((expected - expected.mean(axis=0)) ** 2).mean())
    assert 0 < np.abs(found - expected).max() < 0.1 * spread
    assert engine.space("mean") == exact.space("mean")


def test_another_type_is_refused() -> None:
    with pytest.raises(BadInput) as caught:
        TorchEngine.open(MINI, dtype="int8")
    assert caught.value.code == "option_invalid"
