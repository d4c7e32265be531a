"""The redshift posterior: cells of the published grid, its moments, and the flag where it says only "1 or more"."""

from __future__ import annotations

import numpy as np
import pytest

from albireo.models import redshift
from albireo.models.engine import Tokens
from albireo.models.redshift import SATURATED, Posterior, redshift_posterior
from albireo.models.torch_engine import TorchEngine
from albireo.observations.errors import BadInput
from albireo.observations.sky import simulate
from albireo.tokenizers.checkpoint import MINI


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    return TorchEngine.open(MINI)


@pytest.fixture(scope="module")
def tokens(engine: TorchEngine) -> list[Tokens]:
    return [t for t in engine.tokenize(list(simulate(8, np.random.default_rng(3)))) if isinstance(t, Tokens)]


@pytest.fixture(scope="module")
def posteriors(engine: TorchEngine, tokens: list[Tokens]) -> list[Posterior]:
    return redshift_posterior(engine, tokens)


def test_moments_of_a_known_posterior() -> None:
    edges = np.array([0.0, 0.0, 0.5, 1.0])
    posterior = Posterior(edges, np.array([0.0, 0.5, 0.5]))
    assert posterior.mean == pytest.approx(0.5)
    assert posterior.std == pytest.approx(0.25)
    assert posterior.quantile(0.5) == pytest.approx(0.5)
    assert posterior.quantile(0.25) == pytest.approx(0.25)
    assert Posterior(edges, np.array([0.0, 0.1, 0.9])).mode == pytest.approx(0.75)


def test_probabilities_are_the_softmax_of_the_codes(
    engine: TorchEngine, tokens: list[Tokens], posteriors: list[Posterior]
) -> None:
    logits = [row["tok_z"][0].astype(np.float64) for row in engine.logits(tokens, ["tok_z"])]
    for posterior, row in zip(posteriors, logits, strict=True):
        assert posterior.probability.sum() == pytest.approx(1.0)
        np.testing.assert_allclose(np.diff(np.log(posterior.probability)), np.diff(row[: len(posterior.probability)]),
                                   atol=1e-6)  # fmt: skip
        assert posterior.edges[0] == 0.0
        assert posterior.edges[-1] == pytest.approx(5.0)
        assert 0 <= posterior.quantile(0.16) <= posterior.quantile(0.5) <= posterior.quantile(0.84) <= 5


def test_every_cell_holds_what_the_tokenizer_puts_there(engine: TorchEngine, tokens: list[Tokens]) -> None:
    (posterior,) = redshift_posterior(engine, tokens[:1])
    quantizer = engine.bank["tok_z"].quantizer  # type: ignore[attr-defined]
    import torch

    z = 5 * torch.rand(500, generator=torch.Generator().manual_seed(1))
    for value, cell in zip(z.tolist(), quantizer.encode(z).tolist(), strict=True):
        assert posterior.edges[cell] <= value <= posterior.edges[cell + 1] + 1e-7


def test_saturation_is_flagged(
    engine: TorchEngine, tokens: list[Tokens], posteriors: list[Posterior], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No object is at the end of a grid that ends at z = 5, so the limit is set among what was found."""
    last = [posterior.probability[-1] for posterior in posteriors]
    assert max(last) < SATURATED
    limit = float(np.median(last))
    monkeypatch.setattr(redshift, "SATURATED", limit)
    flagged = ["z_posterior_saturated" in posterior.flags for posterior in redshift_posterior(engine, tokens)]
    assert flagged == [one >= limit for one in last]
    assert True in flagged
    assert False in flagged


def test_the_answer_may_not_be_given(engine: TorchEngine, tokens: list[Tokens]) -> None:
    with pytest.raises(BadInput) as caught:
        redshift_posterior(engine, [Tokens({**tokens[0].ids, "tok_z": np.array([3])})])
    assert caught.value.code == "label_given"
