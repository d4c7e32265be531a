"""Masking and training: what is shown is never asked for, a packed batch is its members, a stopped run goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from albireo.models import mini
from albireo.models.codec_training import Schedule, train_codec
from albireo.models.masking import Budget, Split, split
from albireo.models.neighbours import agreement, paired_bootstrap
from albireo.models.pretrain import BLUR, REDSHIFT_WEIGHT, Readers, batch_loss, total
from albireo.models.stages import load_state, save_state
from albireo.models.transformer import Packed, Queries, Transformer, TransformerConfig
from albireo.observations.modalities import MODALITIES
from albireo.tokenizers.checkpoint import TokenSpec

SPECS = {
    "tok_image": TokenSpec(9, 20),
    "tok_spectrum_desi": TokenSpec(12, 30),
    "tok_flux_g": TokenSpec(1, 16),
    "tok_flux_r": TokenSpec(1, 16),
    "tok_z": TokenSpec(1, 8),
}
INPUTS, OUTPUTS = ["tok_image", "tok_spectrum_desi", "tok_flux_g", "tok_flux_r"], list(SPECS)


def objects(n: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(4)
    out = []
    for i in range(n):
        keys = [k for j, k in enumerate(SPECS) if (i + j) % 3 or k == "tok_flux_g"]
        out.append({k: rng.integers(0, SPECS[k].vocab_size, SPECS[k].n_tokens).astype(np.int32) for k in keys})
    return out


@pytest.fixture(scope="module")
def model() -> Transformer:
    config = TransformerConfig.from_json(
        mini.TRANSFORMER | {"dim": 32, "num_heads": 2, "encoder_depth": 2, "decoder_depth": 1}
    )
    model = Transformer(config, {k: SPECS[k] for k in INPUTS}, {k: SPECS[k] for k in OUTPUTS})
    grids = {k: (s.n_tokens, 1) for k, s in SPECS.items()}
    model.initialise(grids, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model


@given(st.integers(0, 2**31), st.integers(4, 24), st.integers(1, 12), st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_what_is_shown_is_never_asked_for(seed: int, inputs: int, targets: int, which: int) -> None:
    ids = objects(6)[which]
    got = split(ids, INPUTS, OUTPUTS, Budget(inputs, targets), np.random.default_rng(seed))
    assert 1 <= sum(map(len, got.shown.values())) <= inputs
    assert sum(map(len, got.asked.values())) <= targets
    for key, at in got.asked.items():
        assert not set(at) & set(got.shown.get(key, []))
    for part in (got.shown, got.asked):
        for key, at in part.items():
            assert list(at) == sorted(set(at))
            assert 0 <= at[0] <= at[-1] < len(ids[key])
    assert "tok_z" not in got.shown


@given(st.integers(0, 2**31), st.integers(2, 9))
@settings(max_examples=100, deadline=None)
def test_of_an_object_without_other_targets_something_is_asked(seed: int, n: int) -> None:
    """Four magnitudes fit in any budget: shown all, they would teach nothing."""
    ids = {f"tok_mag_{b}": np.array([3]) for b in "griz"} | {"tok_spectrum_desi": np.arange(n)}
    keys = list(ids)
    got = split(ids, keys, keys, Budget(50, 50), np.random.default_rng(seed))
    assert sum(map(len, got.shown.values())) >= 1
    assert sum(map(len, got.asked.values())) >= 1


def test_small_budgets_reach_everything() -> None:
    rng, seen = np.random.default_rng(0), set()
    for _ in range(300):
        got = split(objects(6)[1], INPUTS, OUTPUTS, Budget(24, 12).draw(rng), rng)
        seen |= {(key, int(at)) for key, places in got.shown.items() for at in places}
    expected = {(k, i) for k in objects(6)[1] if k in INPUTS for i in range(SPECS[k].n_tokens)}
    assert seen == expected


def test_a_packed_batch_is_its_members(model: Transformer) -> None:
    """The loss of a packed batch equals the one from every object alone, each modality asked for by itself."""
    batch = objects(5)
    rng = np.random.default_rng(1)
    splits = [split(ids, INPUTS, OUTPUTS, Budget(20, 10), rng) for ids in batch]
    with torch.no_grad():
        found = batch_loss(model, batch, splits)
        expected = slow_losses(model, batch, splits)
    assert found.keys() == expected.keys()
    for key, loss in found.items():
        torch.testing.assert_close(loss, expected[key], rtol=1e-5, atol=1e-6)
    weights = {key: REDSHIFT_WEIGHT if key == "tok_z" else 1.0 for key in found}
    mean = sum(weights[key] * float(loss) for key, loss in found.items()) / sum(weights.values())
    assert float(total(found)) == pytest.approx(mean, rel=1e-6)


def slow_losses(model: Transformer, batch: list[dict[str, np.ndarray]], splits: list[Split]) -> dict[str, torch.Tensor]:
    per_key: dict[str, list[torch.Tensor]] = {}
    for ids, one in zip(batch, splits, strict=True):
        codes = [model.codes.first[key] + int(ids[key][at]) for key, places in one.shown.items() for at in places]
        places = [model.places.first[key] + int(at) for key, places in one.shown.items() for at in places]
        context = model.encode(Packed(torch.tensor(codes), torch.tensor(places), (len(codes),)))
        for key, at in one.asked.items():
            rows = torch.tensor([model.target_places.first[key] + int(place) for place in at])
            states = model.decode(context, (len(codes),), Queries(rows, (len(at),), (len(at),)))
            logs = model.logits(key, states).log_softmax(dim=1)
            for row, place in zip(logs, at, strict=True):
                per_key.setdefault(key, []).append(-(row * asked_for(key, int(ids[key][place]), len(row))).sum())
    return {key: torch.stack(losses).mean() for key, losses in per_key.items()}


def asked_for(key: str, code: int, size: int) -> torch.Tensor:
    """Probabilities of the codes that are asked for: a bell around a number, one code of an image or a spectrum."""
    if MODALITIES[key].kind in ("image", "spectrum"):
        return F.one_hot(torch.tensor(code), size).float()
    width = 1.0 if key == "tok_z" else size * BLUR
    bell = torch.exp(-((torch.arange(size) - code) ** 2) / (2 * width**2))
    return bell / bell.sum()


def test_training_moves_every_weight(model: Transformer) -> None:
    """Nothing in the packed pass cuts a gradient off."""
    batch = objects(6)
    splits = [
        Split(
            shown={key: np.arange(0, len(ids[key]), 2) for key in INPUTS if key in ids},
            asked={key: np.arange(len(ids[key])) for key in OUTPUTS if key in ids},
        )
        for ids in batch
    ]
    model.zero_grad()
    total(batch_loss(model, batch, splits)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    model.zero_grad()


def test_readers_ask_the_mean_for_numbers() -> None:
    """Their loss falls as far as the means tell the numbers, those shown and those not; what is missing counts not."""
    rng = np.random.default_rng(0)
    keys = ("tok_flux_g", "tok_xp_bp")
    numbers = {key: torch.linspace(-1, 1, 16) for key in keys}
    sizes = {"tok_flux_g": 1, "tok_xp_bp": 3}
    batch = [
        {key: rng.integers(0, 16, sizes[key]).astype(np.int32) for key in keys if key == "tok_xp_bp" or i % 2}
        for i in range(100)
    ]
    splits = [Split({"tok_xp_bp": np.array([0, 2])}, {}) for _ in batch]
    told = torch.stack([numbers["tok_xp_bp"][torch.tensor(ids["tok_xp_bp"]).long()] for ids in batch])
    flux = torch.tensor([float(numbers["tok_flux_g"][ids["tok_flux_g"][0]]) if len(ids) > 1 else 9.0 for ids in batch])
    told = torch.cat([flux[:, None], told], dim=1)
    generator = torch.Generator().manual_seed(1)
    readers = Readers(numbers, sizes, 8)
    found = {}
    for name, means in {
        "all": told @ torch.randn(4, 8, generator=generator),
        "but the second coefficient": (told * torch.tensor([1, 1, 0, 1])) @ torch.randn(4, 8, generator=generator),
        "but the third": (told * torch.tensor([1, 1, 1, 0])) @ torch.randn(4, 8, generator=generator),
    }.items():
        with torch.no_grad():
            readers.read.weight.copy_(torch.linalg.lstsq(means.double(), told.double(), driver="gelsd").solution.T)
            found[name] = readers.loss(means, batch, splits).item()
    best, off = 0.5 * np.log(1e-5), [0.5 * float(told[:, k].square().mean().log()) for k in (2, 3)]
    # Shown are coefficients 1 and 3, not shown coefficient 2 and the flux.
    assert found["all"] == pytest.approx(best, abs=1e-2)
    assert found["but the second coefficient"] == pytest.approx((best + (best + off[0]) / 2) / 2, abs=1e-2)
    assert found["but the third"] == pytest.approx((best + (best + off[1]) / 2) / 2, abs=1e-2)
    assert readers.loss(means[:1], [{}], [Split({}, {})]).item() == 0


def test_redshift_weighs_more_for_readers() -> None:
    numbers = {"tok_flux_g": torch.tensor([0.5, -0.5]), "tok_z": torch.tensor([2.0, -2.0])}
    batch = [{"tok_flux_g": np.array([0]), "tok_z": np.array([1])}]
    found = Readers(numbers, {"tok_flux_g": 1, "tok_z": 1}, 4).loss(torch.zeros(1, 4), batch, [Split({}, {})])
    flux, z = (0.5 * np.log(one**2 + 1e-5) for one in (0.5, 2.0))
    assert found.item() == pytest.approx((flux + REDSHIFT_WEIGHT * z) / (1 + REDSHIFT_WEIGHT), rel=1e-5)


def test_readers_read_the_mean_of_what_is_shown(model: Transformer) -> None:
    """In a packed batch each object's own."""
    batch, rng = objects(5), np.random.default_rng(1)
    splits = [split(ids, INPUTS, OUTPUTS, Budget(20, 10), rng) for ids in batch]
    numbers = {"tok_z": torch.linspace(-1, 1, SPECS["tok_z"].vocab_size)}
    readers = Readers(numbers, {"tok_z": 1}, model.config.dim)
    with torch.no_grad():
        readers.read.weight.normal_(generator=torch.Generator().manual_seed(0))
        found = batch_loss(model, batch, splits, readers)["read"]
        squares = []
        for ids, one in zip(batch, splits, strict=True):
            codes = [model.codes.first[key] + int(ids[key][at]) for key, places in one.shown.items() for at in places]
            places = [model.places.first[key] + int(at) for key, places in one.shown.items() for at in places]
            mean = model.encode(Packed(torch.tensor(codes), torch.tensor(places), (len(codes),))).mean(dim=0)
            if "tok_z" in ids:
                squares.append((readers.read(mean)[0] - numbers["tok_z"][int(ids["tok_z"][0])]).square())
        expected = 0.5 * (torch.stack(squares).mean() + 1e-5).log()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_stopped_training_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    data = [torch.randn(40, 6, generator=torch.Generator().manual_seed(2))]

    def fresh() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Linear(6, 6)

    def loss(module: torch.nn.Module, x: torch.Tensor, **progress: object) -> torch.Tensor:
        return ((module(x) - x) ** 2).mean()

    whole, first, second = fresh(), fresh(), fresh()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    train_codec("m", whole, loss, data, Schedule(400, 8, 1e-2, 10), tmp_path / "a", 7)
    train_codec("m", first, loss, data, Schedule(400, 8, 1e-2, 10), tmp_path / "b", 7)
    state = tmp_path / "b" / "m.pt.safetensors"
    optimiser = torch.optim.AdamW(second.parameters())
    assert load_state(state, second, optimiser) == 400
    for a, b, c in zip(whole.parameters(), first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    # Stop after 200 steps (a validation saves there), then resume from the file.
    (tmp_path / "c").mkdir()
    stopped = fresh()

    class Stop(Exception):
        pass

    calls = 0

    def stopping(module: torch.nn.Module, x: torch.Tensor, **progress: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 250:
            raise Stop
        return loss(module, x)

    with pytest.raises(Stop):
        train_codec("m", stopped, stopping, data, Schedule(400, 8, 1e-2, 10), tmp_path / "c", 7)
    resumed = fresh()
    train_codec("m", resumed, loss, data, Schedule(400, 8, 1e-2, 10), tmp_path / "c", 7)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_state_is_replaced_as_a_whole(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(module.parameters())
    path = tmp_path / "m.safetensors"
    assert load_state(path, module, optimiser) == 0
    save_state(path, module, optimiser, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    assert load_state(path, module, optimiser) == 3


def test_agreement_does_not_count_the_object_itself() -> None:
    rng = np.random.default_rng(0)
    labels = np.array(["a", "b"] * 30)
    vectors = np.where(labels[:, None] == "a", [1.0, 0.0], [0.0, 1.0]) + rng.normal(0, 0.01, (60, 2))
    redshift = np.where(labels == "a", 0.1, 2.0)
    scores = agreement(vectors.astype(np.float32), labels, redshift)
    assert scores.label.mean() == scores.redshift.mean() == 1.0
    alone = np.array([f"unique-{i}" for i in range(60)])
    assert agreement(vectors.astype(np.float32), alone, np.arange(60.0)).label.max() == 0.0
    assert agreement(vectors.astype(np.float32), alone, np.arange(60.0)).redshift.max() == 0.0


def test_bootstrap_interval_holds_the_mean() -> None:
    rng = np.random.default_rng(0)
    ours = rng.normal(0.3, 1.0, 400)
    low, high = paired_bootstrap(ours, np.zeros(400), draws=2000)
    assert low < ours.mean() < high
    assert 0.15 < high - low < 0.25
