"""Generation: schedules and filters against the released package, and what a draw may and may not change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from aion.fourm import generation_utils
from aion.fourm.generate import GenerationSampler
from aion.model import AION
from hypothesis import given, settings
from hypothesis import strategies as st

from albireo.models.engine import Tokens
from albireo.models.generation import Sampling, counts, generate, probabilities, temperatures
from albireo.models.torch_engine import TorchEngine
from albireo.models.transformer import UNIFORM, WITHIN
from albireo.observations.errors import BadInput
from albireo.tokenizers.checkpoint import TokenSpec

TARGET = "tok_spectrum_desi"


def test_golden_schedules() -> None:
    assert counts("cosine", 8, 273) == [10, 30, 44, 52, 52, 44, 30, 11]
    assert counts("cosine", 4, 576) == [84, 204, 204, 84]
    assert counts("linear", 8, 273) == [35, 34, 34, 34, 34, 34, 34, 34]
    np.testing.assert_allclose(temperatures("linear", 1.0, [84, 204, 204, 84]), [1, 0.85417, 0.5, 0.14583], atol=5e-6)


@given(st.integers(1, 40), st.integers(1, 700))
@settings(max_examples=200, deadline=None)
def test_schedules_are_those_of_the_package(rounds: int, total: int) -> None:
    theirs = generation_utils.cosine_schedule(rounds, total)
    if (theirs >= 0).all():  # with few tokens and many rounds the package's rounding can overdraw
        assert counts("cosine", rounds, total) == [n for n in theirs.tolist() if n > 0]
    assert counts("linear", rounds, total) == generation_utils.linear_schedule(rounds, total).tolist()
    for schedule in ("cosine", "linear"):
        filled = counts(schedule, rounds, total)
        assert sum(filled) == total
        assert len(filled) <= rounds
        np.testing.assert_allclose(
            temperatures("linear", 0.7, filled), generation_utils.linear_temp_schedule(0.7, np.array(filled)), atol=1e-8
        )


def test_cooling_starts_at_the_temperature_and_falls() -> None:
    filled = counts("cosine", 12, 273)
    for cooling in ("linear", "power"):
        heat = temperatures(cooling, 1.3, filled)
        assert heat[0] == pytest.approx(1.3)
        assert all(a > b > 0 for a, b in pairwise(heat))
    assert temperatures("constant", 1.3, filled) == [1.3] * len(filled)


@given(st.integers(0, 2**31), st.sampled_from([0, 1, 3, 20]), st.sampled_from([0.0, 0.3, 0.9]), st.floats(0.2, 3))
@settings(max_examples=100, deadline=None)
def test_filters_are_those_of_the_package(seed: int, top_k: int, top_p: float, temperature: float) -> None:
    logits = np.random.default_rng(seed).normal(0, 2, (5, 20)).astype(np.float32)
    kept = GenerationSampler(torch.nn.Identity()).top_k_top_p_filtering(torch.tensor(logits), top_k, top_p)
    expected = torch.softmax(kept.double() / temperature, dim=-1).numpy()
    np.testing.assert_allclose(probabilities(logits, temperature, top_k, top_p), expected, atol=1e-6)


def test_temperature_zero_takes_the_most_probable() -> None:
    assert probabilities(np.array([[0.0, 3.0, 1.0]]), 0.0).tolist() == [[0.0, 1.0, 0.0]]


class Toy:
    """An engine whose logits say `(position + what is known) % V`, and that keeps what it was asked."""

    inputs: Mapping[str, TokenSpec] = {TARGET: TokenSpec(12, 7), "tok_flux_g": TokenSpec(1, 16)}
    outputs: Mapping[str, TokenSpec] = {TARGET: TokenSpec(12, 7), "tok_z": TokenSpec(1, 8)}

    def __init__(self, sharpness: float = 50.0, dead: int = 0) -> None:
        self.sharpness = sharpness
        self.dead = dead
        self.asked: list[tuple[Tokens, np.ndarray, str | None]] = []

    def n_codes(self, key: str) -> int:
        return self.outputs[key].vocab_size - self.dead

    def logits(
        self, tokens: Sequence[Tokens], targets: Sequence[Mapping[str, np.ndarray]], attention: str | None = None
    ) -> list[dict[str, np.ndarray]]:
        out = []
        for one, asked in zip(tokens, targets, strict=True):
            for key, at in asked.items():
                self.asked.append((one, at, attention))
                shift = int(one.ids["tok_flux_g"][0]) if "tok_flux_g" in one.ids else 0
                hot = (at[:, None] + shift) % self.outputs[key].vocab_size == np.arange(self.outputs[key].vocab_size)
                out.append({key: (self.sharpness * hot).astype(np.float32)})
        return out


def flux(value: int) -> Tokens:
    return Tokens({"tok_flux_g": np.array([value])})


def test_every_position_is_drawn_once_and_then_given() -> None:
    engine = Toy()
    (codes,) = generate(engine, [flux(3)], TARGET, Sampling(rounds=5))
    np.testing.assert_array_equal(codes, [(np.arange(12) + 3) % 7])
    drawn = np.concatenate([at for _, at, _ in engine.asked])
    assert sorted(drawn.tolist()) == list(range(12))
    assert {attention for _, _, attention in engine.asked} == {WITHIN}
    known = 0
    for tokens, at, _ in engine.asked:
        given = ~tokens.mask[TARGET] if TARGET in tokens.ids else np.zeros(12, bool)
        assert given.sum() == known
        assert not given[at].any()
        np.testing.assert_array_equal(tokens.ids["tok_flux_g"], [3])
        known += len(at)


def test_what_is_given_stays_and_the_rest_is_filled_in() -> None:
    """In-painting: only the masked positions change, whatever stood there."""
    ids, hole = np.full(12, 5), np.arange(12) >= 9
    tokens = Tokens({TARGET: ids, "tok_flux_g": np.array([0])}, {TARGET: hole})
    (codes,) = generate(Toy(), [tokens], TARGET, Sampling(rounds=8))
    np.testing.assert_array_equal(codes[0, :9], 5)
    np.testing.assert_array_equal(codes[0, 9:], np.arange(9, 12) % 7)
    np.testing.assert_array_equal(ids, 5)
    with pytest.raises(BadInput) as caught:
        generate(Toy(), [Tokens({TARGET: ids})], TARGET)
    assert caught.value.code == "nothing_to_generate"


def test_draws_depend_on_the_seed_and_the_object_alone() -> None:
    sampling = Sampling(rounds=4, draws=3, seed=11)
    together = generate(Toy(0.5), [flux(0), flux(4)], TARGET, sampling)
    alone = generate(Toy(0.5), [flux(4)], TARGET, sampling)
    np.testing.assert_array_equal(together[1], alone[0])
    assert together[0].shape == (3, 12)
    assert len({tuple(row) for row in together[0]}) == 3
    assert not np.array_equal(generate(Toy(0.5), [flux(4)], TARGET, Sampling(rounds=4, draws=3, seed=12))[0], alone[0])


def test_draws_follow_the_probabilities() -> None:
    engine = Toy(1.0)
    drawn = np.concatenate([generate(engine, [flux(0)], TARGET, Sampling(rounds=1, draws=400, seed=1))[0]])
    share = np.mean(drawn == np.arange(12) % 7)
    expected = np.exp(1) / (np.exp(1) + 6)
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / drawn.size)


def test_guidance_pushes_away_from_the_unconditional() -> None:
    """l_without + g (l_with - l_without): the toy says `at` without and `at + 2` with the flux."""
    (codes,) = generate(Toy(), [flux(2)], TARGET, Sampling(rounds=3, guidance=3.0))
    np.testing.assert_array_equal(codes[0], (np.arange(12) + 2) % 7)
    (codes,) = generate(Toy(), [flux(2)], TARGET, Sampling(rounds=3, guidance=0.0))
    np.testing.assert_array_equal(codes[0], np.arange(12) % 7)
    engine = Toy()
    generate(engine, [flux(2)], TARGET, Sampling(rounds=3, guidance=2.0))
    assert {"tok_flux_g" in tokens.ids for tokens, _, _ in engine.asked} == {True, False}


@pytest.mark.parametrize(
    "change",
    [{"rounds": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 1.5}, {"draws": 0}, {"top_k": -1},
     {"schedule": "sudden"}, {"cooling": "warm"}, {"guidance": float("inf")}],
)  # fmt: skip
def test_impossible_sampling_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(BadInput) as caught:
        Sampling(**change)  # type: ignore[arg-type]
    assert caught.value.code == "option_invalid"
    assert caught.value.field in change


def test_a_row_of_the_vocabulary_that_is_no_code_is_never_drawn() -> None:
    sampling = Sampling(rounds=1, draws=200, guidance=2.0)
    assert generate(Toy(0.1), [flux(0)], TARGET, sampling)[0].max() == 6
    assert generate(Toy(0.1, dead=2), [flux(0)], TARGET, sampling)[0].max() == 4


def test_targets_that_cannot_be() -> None:
    for target in ("tok_flux_g", "tok_segmap"):
        with pytest.raises(BadInput) as caught:
            generate(Toy(), [flux(1)], target)
        assert caught.value.code == "modality_not_in_checkpoint"
    (codes,) = generate(Toy(), [flux(1)], "tok_z")  # one token needs no rounds: it need not be an input
    assert codes.shape == (1, 1)


# ---------------------------------------------------------------------------------------- against the package


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[AION, TorchEngine]:
    """A small transformer of random weights, in the package and here. No codec is needed for tokens."""
    folder = tmp_path_factory.mktemp("roar")
    torch.manual_seed(2)
    model = AION(
        {"domains_in": [TARGET, "tok_flux_g", "tok_ebv"], "domains_out": [TARGET, "tok_z"], "dim": 48,
         "encoder_depth": 2, "decoder_depth": 2, "num_heads": 3, "mlp_ratio": 4.0, "qkv_bias": False,
         "proj_bias": False, "mlp_bias": False, "norm_bias": False, "act_layer": "SiLU", "gated_mlp": True,
         "qk_norm": True}
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(20.0 if "token_emb" in name else 2.0)
    model.eval().save_pretrained(folder)
    from aion.codecs.scalar import GridScalarCodec, LogScalarCodec, ScalarCodec
    from aion.codecs.spectrum import SpectrumCodec
    from aion.modalities import DESISpectrum, LegacySurveyEBV, LegacySurveyFluxG, Z

    SpectrumCodec(
        encoder_dims=(8, 8, 8, 16), decoder_dims=(8, 8, 8, 2), latent_channels=16, embedding_dim=10
    ).save_pretrained(folder, DESISpectrum)
    LogScalarCodec("FLUX_G", 1024, 1024).save_pretrained(folder, LegacySurveyFluxG)
    ScalarCodec("EBV", 1024, 1024).save_pretrained(folder, LegacySurveyEBV)
    GridScalarCodec("Z", 1024).save_pretrained(folder, Z)
    return model, TorchEngine.open(folder)


def objects(n: int) -> list[Tokens]:
    rng = np.random.default_rng(0)
    return [Tokens({"tok_flux_g": rng.integers(0, 1024, 1), "tok_ebv": rng.integers(0, 1024, 1)}) for _ in range(n)]


@pytest.mark.parametrize("known", [0, 100])
def test_logits_of_a_round_are_those_of_the_released_sampler(pair: tuple[AION, TorchEngine], known: int) -> None:
    model, engine = pair
    tokens = objects(4)
    spectrum = np.random.default_rng(1).integers(0, 1024, (4, 273))
    hidden = np.arange(273) >= known
    state = {
        key: {
            "tensor": torch.tensor(np.stack([one.ids[key] for one in tokens])),
            "input_mask": torch.zeros(4, 1, dtype=torch.bool),
        }
        for key in ("tok_flux_g", "tok_ebv")
    }
    state[TARGET] = {
        "tensor": torch.tensor(np.where(hidden, 0, spectrum)),
        "input_mask": torch.tensor(hidden).expand(4, -1).clone(),
        "target_mask": torch.tensor(~hidden).expand(4, -1).clone(),
    }
    with torch.no_grad():
        expected, at = GenerationSampler(model).forward_enc_dec_roar_batched(state, TARGET, 40, seed=5)
    given = [Tokens({**one.ids, TARGET: row}, {TARGET: hidden}) for one, row in zip(tokens, spectrum, strict=True)]
    found = engine.logits(given, [{TARGET: row.numpy()} for row in at], WITHIN)
    spread = float(((expected - expected.mean(0)) ** 2).mean().sqrt())
    assert spread > 1e-3
    worst = np.abs(np.stack([row[TARGET] for row in found]) - expected.numpy()).max()
    assert worst < 1e-4 * spread


def test_attention_among_queries_matters_only_for_several(pair: tuple[AION, TorchEngine]) -> None:
    """What `AION.forward` of the released code computes for several tokens is not what the model was trained with."""
    _, engine = pair
    for key in ("tok_z", TARGET):
        one, other = (engine.logits(objects(3), [key], way)[0][key] for way in (UNIFORM, WITHIN))
        assert np.allclose(one, other, atol=1e-5) == (key == "tok_z")


def test_generation_of_a_checkpoint(pair: tuple[AION, TorchEngine]) -> None:
    _, engine = pair
    first, again = (generate(engine, objects(2), TARGET, Sampling(rounds=4, draws=2, seed=3)) for _ in range(2))
    assert [codes.shape for codes in first] == [(2, 273), (2, 273)]
    np.testing.assert_array_equal(first, again)
    flux_on_grid = engine.bank[TARGET].decode(torch.as_tensor(first[0]))
    assert flux_on_grid.shape == (2, 8704)
    assert torch.isfinite(flux_on_grid).all()
