"""Steps of Muon: orthogonal, each matrix of a stack by itself, resumable like any optimiser's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from albireo.models.muon import Muon, orthogonal
from albireo.models.stages import load_state, save_state


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (24, 24)])
def test_a_step_has_the_singular_vectors_of_the_gradient_and_values_near_one(shape: tuple[int, int]) -> None:
    gradient = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    step = orthogonal(gradient)
    u, s, vt = torch.linalg.svd(gradient, full_matrices=False)
    turned = u.T @ step @ vt.T
    assert (turned.diag() > 0.5).all()
    assert (turned.diag() < 1.3).all()
    assert (turned - turned.diag().diag()).abs().max() < 1e-3
    assert s.max() / s.min() > 2, "the gradient itself was far from orthogonal"


def test_matrices_one_above_the_other_are_stepped_each_by_itself() -> None:
    both, alone = nn.Parameter(torch.zeros(20, 8)), nn.Parameter(torch.zeros(10, 8))
    gradient = torch.randn(20, 8, generator=torch.Generator().manual_seed(1))
    gradient[10:] *= 1e-4
    both.grad, alone.grad = gradient.clone(), gradient[10:].clone()
    Muon([both], 0.1, parts={both: 2}).step()
    Muon([alone], 0.1).step()
    torch.testing.assert_close(both[10:], alone)
    assert float(both[:10].detach().norm()) == pytest.approx(float(both[10:].detach().norm()), rel=0.2)


def test_decay_draws_weights_to_zero() -> None:
    weight = nn.Parameter(torch.full((4, 4), 2.0))
    weight.grad = torch.zeros(4, 4)
    Muon([weight], 0.1, weight_decay=0.5).step()
    torch.testing.assert_close(weight.data, torch.full((4, 4), 2.0 * 0.95))


def test_it_goes_on_after_a_stop_as_if_there_had_been_none(tmp_path: Path) -> None:
    def run(steps: list[int], resume: bool) -> nn.Linear:
        torch.manual_seed(0)
        module = nn.Linear(6, 6, bias=False)
        optimiser = Muon(module.parameters(), 0.05)
        begin = load_state(tmp_path / "m.safetensors", module, optimiser) if resume else 0
        for step in steps[begin:]:
            x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
            loss = ((module(x) - x.flip(1)) ** 2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        save_state(tmp_path / "m.safetensors", module, optimiser, len(steps))
        return module

    whole = run(list(range(10)), resume=False)
    run(list(range(4)), resume=False)
    again = run(list(range(10)), resume=True)
    assert torch.equal(whole.weight, again.weight)
