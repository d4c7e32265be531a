"""Training the network of a head: AdamW under a cosine, the best epoch on the validation part kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from albireo.models.head_network import AT_ONCE, HeadNetwork, Rows, collate, reduce, run
from albireo.models.head_tasks import FRACTIONS, HeadTask, Quantiles
from albireo.models.heads import Pooling
from albireo.models.token_states import TokenStates

FEW = 3_000
"""Training objects below which the weight decay is chosen on the validation part."""

DECAYS = (0.01, 0.3, 3.0)
STEPS = 5_000
"""Steps that a fit takes, about, unless there are so many objects that they need more."""

PENALTIES = np.logspace(-5, 1, 13)
"""Of ridge regression, in variances of a feature."""

RATE = 2e-3
REACH = 0.24
"""Rate of the queries, to be divided by sqrt(D): what a step can do to an attention is then alike for every D."""

PATIENCE = 0.25
"""Share of all epochs after which a fit that gets no better ends."""

IN_MEMORY = 1 << 30
"""Bytes of token states up to which attentive pooling keeps them in memory while it is fitted."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Part:
    """Objects of one part: what the network reads, truth (n, ...) and weights (n,)."""

    rows: Sequence[Rows]
    truth: Array
    weights: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.truth)


@dataclass(frozen=True)
class Trained:
    """A network with the weights of its best epoch, and how it got there.

    curve  loss of the training and of the validation part after each epoch
    """

    network: HeadNetwork
    loss: float
    decay: float
    epoch: int
    curve: tuple[tuple[float, float], ...]


def train(
    build: Callable[[], HeadNetwork],
    task: HeadTask,
    training: Part,
    validation: Part,
    epochs: int | None,
    seed: int,
    progress: Callable[[int, int], None],
) -> Trained:
    """The best of the networks that `build` gives, one for each weight decay worth a try; `progress` is told epochs.

    Every random number comes from the seed, and torch's own state is as before afterwards.
    """
    decays = DECAYS if len(training) < FEW else DECAYS[:1]
    batch = int(np.clip(len(training) // 16, 16, 256))
    size = max(training.rows[i].values.size for i in range(min(len(training), 200)))
    batch = max(min(batch, 4 * AT_ONCE // size), 16)
    if epochs is None:
        epochs = int(np.clip(STEPS * batch // len(training), 20, 150))
    found: list[Trained] = []
    for number, decay in enumerate(decays):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tell = partial(_tell, progress, number * epochs, len(decays) * epochs)
            found.append(_train(build(), task, training, validation, decay, epochs, batch, seed, tell))
    progress(len(decays) * epochs, len(decays) * epochs)
    return min(found, key=lambda one: one.loss)


def _tell(progress: Callable[[int, int], None], before: int, total: int, epoch: int) -> None:
    progress(before + epoch, total)


def _train(
    network: HeadNetwork,
    task: HeadTask,
    training: Part,
    validation: Part,
    decay: float,
    epochs: int,
    batch: int,
    seed: int,
    progress: Callable[[int], None],
) -> Trained:
    truth, weights = torch.from_numpy(training.truth), torch.from_numpy(training.weights).float()
    optimiser = torch.optim.AdamW(_groups(network, decay), lr=RATE, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    order = np.random.default_rng(seed)
    best = Trained(network, loss_of(network, task, validation), decay, 0, ())
    kept = _copy(network)
    curve: list[tuple[float, float]] = []
    for epoch in range(1, epochs + 1):
        network.train()
        total = 0.0
        for at in np.array_split(order.permutation(len(training)), -(-len(training) // batch)):
            outputs, _ = network(*collate([training.rows[i] for i in at]))
            chosen = torch.from_numpy(at)
            loss = (task.loss(outputs, truth[chosen]) * weights[chosen]).mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            total += loss.item() * len(at)
        schedule.step()
        curve.append((total / len(training), loss_of(network, task, validation)))
        progress(epoch)
        if curve[-1][1] < best.loss:
            best = Trained(network, curve[-1][1], decay, epoch, ())
            kept = _copy(network)
        if epoch - best.epoch > max(PATIENCE * epochs, 5):
            break
    network.load_state_dict(kept)
    return Trained(network.eval(), best.loss, decay, best.epoch, tuple(curve))


def _groups(network: HeadNetwork, decay: float) -> list[dict[str, Any]]:
    """Parameters with their weight decay and rate; a step draws all weights to zero by the same share."""
    attention = [p for name, p in network.named_parameters() if name in ("queries", "preference")]
    others = [p for name, p in network.named_parameters() if name not in ("queries", "preference")]
    rate = REACH / math.sqrt(network.centre.shape[1])
    return [
        {"params": [p for p in others if p.dim() > 1], "weight_decay": decay},
        # Biases are not drawn to zero.
        {"params": [p for p in others if p.dim() <= 1], "weight_decay": 0.0},
        # A query must grow long before it can choose.
        {"params": attention, "weight_decay": decay * RATE / rate, "lr": rate},
    ]


def rows_of(states: TokenStates, at: NDArray[np.int64], pooling: Pooling, known: Sequence[str]) -> Sequence[Rows]:
    """What a head reads of objects: in memory, unless that is more than IN_MEMORY."""
    lazy = StateRows(states, at, pooling, known)
    size = sum(states.objects[i].n_rows for i in at) * states.dim * 4
    return lazy if pooling == "attentive" and size > IN_MEMORY else [lazy[i] for i in range(len(lazy))]


class StateRows(Sequence[Rows]):
    """Rows of objects, read from the token states when they are asked for."""

    def __init__(self, states: TokenStates, at: NDArray[np.int64], pooling: Pooling, known: Sequence[str]) -> None:
        self.states, self.at, self.pooling, self.known = states, at, pooling, known

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, i: Any) -> Any:
        return reduce(*self.states.rows(int(self.at[i])), self.pooling, self.known)


@torch.no_grad()
def start_from_ridge(network: HeadNetwork, task: Quantiles, training: Part, validation: Part) -> None:
    """Set a linear read-out to ridge regression on the features as they are: a start that takes no step.

    The penalty is the best on the validation part, for each target; steps to the quantiles are those of a normal
    distribution with the residuals' spread.
    """
    assert isinstance(network.readout, nn.Linear)
    x, x_new = (run(network, part.rows)[1] for part in (training, validation))
    y, y_new = task.scaled(training.truth), task.scaled(validation.truth)
    weight, bias = np.zeros((len(task.names), len(FRACTIONS), x.shape[1])), np.zeros((len(task.names), len(FRACTIONS)))
    for t in range(len(task.names)):
        there, there_new = np.isfinite(y[:, t]), np.isfinite(y_new[:, t])
        w = training.weights[there] / training.weights[there].sum()
        x_mean, y_mean = w @ x[there], w @ y[there, t]
        off = x[there] - x_mean
        values, vectors = np.linalg.eigh(off.T * w @ off)
        along = vectors.T @ (off.T @ (w * (y[there, t] - y_mean)))
        slopes = vectors @ (along[:, None] / (values.clip(0)[:, None] + PENALTIES))
        errors = ((x_new[there_new] - x_mean) @ slopes + y_mean - y_new[there_new, t][:, None]) ** 2
        best = int(errors.mean(axis=0).argmin()) if len(errors) else len(PENALTIES) // 2
        spread = np.sqrt(w @ (off @ slopes[:, best] + y_mean - y[there, t]) ** 2)
        weight[t, 0], bias[t, 0] = slopes[:, best], y_mean - x_mean @ slopes[:, best]
        bias[t, 1:] = np.log(np.expm1(max(spread, 1e-3)))
    network.readout.weight.copy_(torch.from_numpy(weight.reshape(-1, x.shape[1])))
    network.readout.bias.copy_(torch.from_numpy(bias.reshape(-1)))


@torch.no_grad()
def loss_of(network: HeadNetwork, task: HeadTask, part: Part) -> float:
    """Weighted mean loss of a part, in evaluation mode."""
    outputs, _ = run(network, part.rows)
    losses = task.loss(torch.from_numpy(outputs), torch.from_numpy(part.truth)).numpy()
    return float(part.weights @ losses / part.weights.sum())


def _copy(network: HeadNetwork) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
