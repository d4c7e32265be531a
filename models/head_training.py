"""Training the network of a head: AdamW under a cosine. The validation part chooses the epoch; then validation objects
teach as well, for as many epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from albireo.models.head_density import Density
from albireo.models.head_network import AT_ONCE, PER_MODALITY, HeadNetwork, Rows, collate, reduce, run, run_pooled
from albireo.models.head_tasks import HeadTask, Line, Quantiles
from albireo.models.heads import Pooling
from albireo.models.token_states import TokenStates

FEW = 1_500
"""Training objects below which the weight decay is chosen on the validation part."""

DECAYS = (0.01, 1.0)
STEPS = 4_000
"""Steps that a fit takes, about, unless there are so many objects that they need more."""

PENALTIES = np.logspace(-5, 3, 17)
"""Of ridge regression, in variances of what is pooled."""

MOST = 2_000
"""Objects that a ridge regression is made of, if what is pooled has more numbers than this."""

RATE = 6e-4
MAPS_RATE = 0.1
"""Rate of the maps of states, to be divided by how many numbers a feature is made of: a step along all of them moves it
by so much, however many modalities there are. At 30 times the rate a head lost on SDSS photometry what ridge regression
had found (docs/log.md)."""

REACH = 0.24
"""Rate of the queries, to be divided by sqrt(D): what a step can do to an attention is then alike for every D."""

PATIENCE = 0.2
"""Share of all epochs after which a fit that gets no better ends."""

SIDE_BY_SIDE = 1 << 27
"""Numbers, 512 MB, up to which training objects are scaled once and not batch by batch."""

IN_MEMORY = 1 << 30
"""Bytes of token states up to which attentive pooling keeps them in memory while it is fitted."""

Doubles = NDArray[np.float64]
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
    """A network, and how it got there.

    network     taught by training and validation objects
    validation  outputs of a network that training objects alone had taught, for validation objects
    loss        of these
    curve       loss of the training and of the validation part after each epoch, before validation objects taught
    """

    network: HeadNetwork
    validation: Doubles
    loss: float
    decay: float
    epoch: int
    curve: tuple[tuple[float, float], ...]


def train(
    build: Callable[[Part, bool], HeadNetwork],
    task: HeadTask,
    training: Part,
    validation: Part,
    epochs: int | None,
    seed: int,
    progress: Callable[[int, int], None],
) -> Trained:
    """The network of the best epoch under the best weight decay, taught again with validation objects among the others.

    build     a network that begins from what a part tells; False: from training objects, True: from those of both
    progress  is told epochs
    Every random number comes from the seed, and torch's own state is as before afterwards.
    """
    decays = DECAYS if len(training) < FEW else DECAYS[:1]
    batch = int(np.clip(len(training) // 16, 16, 256))
    size = max(training.rows[i].values.size for i in range(min(len(training), 200)))
    batch = max(min(batch, 4 * AT_ONCE // size), 16)
    if epochs is None:
        epochs = int(np.clip(STEPS * batch // len(training), 20, 100))
    runs = len(decays) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = build(training, False)
        found: list[_Run] = []
        for number, decay in enumerate(decays):
            torch.manual_seed(seed)
            tell = partial(_tell, progress, number * epochs, runs * epochs)
            found.append(_train(deepcopy(first), task, training, validation, decay, epochs, batch, seed, tell))
        best = min(found, key=lambda one: one.loss)
        both = _joined(training, validation)
        torch.manual_seed(seed)
        last = build(both, True)
        torch.manual_seed(seed)
        tell = partial(_tell, progress, len(decays) * epochs, runs * epochs)
        last = _train(last, task, both, None, best.decay, epochs, batch, seed, tell, best.epoch).network
    progress(runs * epochs, runs * epochs)
    outputs, _ = run(best.network, validation.rows)
    return Trained(last, outputs, best.loss, best.decay, best.epoch, best.curve)


def _tell(progress: Callable[[int, int], None], before: int, total: int, epoch: int) -> None:
    progress(before + epoch, total)


@dataclass(frozen=True)
class _Run:
    """A network with the weights of its best epoch."""

    network: HeadNetwork
    loss: float
    decay: float
    epoch: int
    curve: tuple[tuple[float, float], ...]


def _train(
    network: HeadNetwork,
    task: HeadTask,
    training: Part,
    validation: Part | None,
    decay: float,
    epochs: int,
    batch: int,
    seed: int,
    progress: Callable[[int], None],
    until: int | None = None,
) -> _Run:
    """The best epoch of those up to `epochs`; without a validation part that of number `until`."""
    truth, weights = torch.from_numpy(training.truth), torch.from_numpy(training.weights).float()
    optimiser = torch.optim.AdamW(_groups(network, decay), lr=RATE, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    order = np.random.default_rng(seed)
    batch_of = _batches(network, training.rows)
    best, kept = (0, math.inf if validation is None else loss_of(network, task, validation)), _copy(network)
    curve: list[tuple[float, float]] = []
    for epoch in range(1, 1 + (epochs if until is None else until)):
        network.train()
        total = 0.0
        for at in np.array_split(order.permutation(len(training)), -(-len(training) // batch)):
            chosen = torch.from_numpy(at)
            outputs, _ = network.read(*batch_of(chosen))
            loss = (task.loss(outputs, truth[chosen]) * weights[chosen]).mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            total += loss.item() * len(at)
        schedule.step()
        progress(epoch)
        if validation is None:
            continue
        curve.append((total / len(training), loss_of(network, task, validation)))
        if curve[-1][1] < best[1]:
            best, kept = (epoch, curve[-1][1]), _copy(network)
        if epoch - best[0] > max(PATIENCE * epochs, 5):
            break
    if validation is not None:
        network.load_state_dict(kept)
    return _Run(network.eval(), best[1], decay, best[0], tuple(curve))


def _batches(network: HeadNetwork, rows: Sequence[Rows]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Numbers of objects -> their scaled states, and kinds: made once for all epochs, if there are not many."""
    size = max((rows[i].values.size for i in range(min(len(rows), 200))), default=0)
    if not isinstance(rows, list) or size * len(rows) > SIDE_BY_SIDE:
        return lambda chosen: _scaled(network, [rows[i] for i in chosen.tolist()])
    x, kinds = _scaled(network, rows)
    return lambda chosen: (x[chosen], kinds[chosen])


def _scaled(network: HeadNetwork, rows: Sequence[Rows]) -> tuple[Tensor, Tensor]:
    values, kinds = collate(rows)
    return network.scaled(values, kinds), kinds


def _groups(network: HeadNetwork, decay: float) -> list[dict[str, Any]]:
    """Parameters with their weight decay and rate; a step draws all weights to zero by the same share."""
    attention = [p for name, p in network.named_parameters() if name in ("queries", "preference")]
    maps = [p for name, p in network.named_parameters() if name == "maps"]
    others = [p for name, p in network.named_parameters() if name not in ("queries", "preference", "maps")]
    groups = [
        (maps, decay, MAPS_RATE / network.fan_in),
        ([p for p in others if p.dim() > 1], decay, RATE),
        # Biases are not drawn to zero.
        ([p for p in others if p.dim() <= 1], 0.0, RATE),
        # A query must grow long before it can choose.
        (attention, decay, REACH / math.sqrt(network.centre.shape[1])),
    ]
    return [{"params": params, "weight_decay": d * RATE / rate, "lr": rate} for params, d, rate in groups if params]


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


class Chain(Sequence[Rows]):
    """One sequence of rows after the other, each read as it is: one part may be too large for memory, the other not."""

    def __init__(self, one: Sequence[Rows], other: Sequence[Rows]) -> None:
        self.one, self.other = one, other

    def __len__(self) -> int:
        return len(self.one) + len(self.other)

    def __getitem__(self, i: Any) -> Any:
        return self.one[i] if i < len(self.one) else self.other[i - len(self.one)]


def _joined(one: Part, other: Part) -> Part:
    in_memory = isinstance(one.rows, list) and isinstance(other.rows, list)
    rows: Sequence[Rows] = [*one.rows, *other.rows] if in_memory else Chain(one.rows, other.rows)
    weights = np.concatenate([one.weights, other.weights])
    return Part(rows, np.concatenate([one.truth, other.truth]), weights)


@torch.no_grad()
def start_from_ridge(
    network: HeadNetwork, task: Quantiles | Density, training: Part, validation: Part, both: bool = False
) -> None:
    """Let the network begin as ridge regression on what it pools: a start that takes no step.

    both  validation objects teach too, after they have chosen the penalty
    """
    if task.scaled(training.truth).shape[1] > PER_MODALITY:
        return
    chosen = np.arange(0, len(training), -(-len(training) // MOST))
    if run_pooled(network, [training.rows[0]]).size <= MOST:
        chosen = np.arange(len(training))
    x, x_new = (run_pooled(network, rows) for rows in ([training.rows[i] for i in chosen.tolist()], validation.rows))
    shape = x.shape[1:]
    x, x_new = x.reshape(len(x), -1), x_new.reshape(len(x_new), -1)
    y, y_new = task.scaled(training.truth[chosen]), task.scaled(validation.truth)
    weights = training.weights[chosen]
    lines = ridge(x, y, weights, x_new, y_new)
    if both:
        lines = _again(
            np.concatenate([x, x_new]), np.concatenate([y, y_new]), np.concatenate([weights, validation.weights]), lines
        )
    told = network.tell(torch.tensor(np.stack([line.slopes for line in lines])).float().unflatten(1, shape))
    weight, bias = task.start([line._replace(slopes=row) for line, row in zip(lines, told.numpy(), strict=True)])
    network.readout.weight.copy_(torch.from_numpy(weight))
    network.readout.bias.copy_(torch.from_numpy(bias))


def ridge(x: Doubles, y: Doubles, weights: Doubles, x_new: Doubles, y_new: Doubles) -> list[Line]:
    """Regressions of labels y (n, T) with NaN = missing on x (n, P), each with the penalty best for x_new, y_new."""
    lines: dict[int, Line] = {}
    for t, x_mean, y_mean, slopes_of in _regressions(x, y, weights):
        slopes = slopes_of(PENALTIES)
        new = np.isfinite(y_new[:, t])
        errors = (((x_new[new] - x_mean) @ slopes + y_mean - y_new[new, t, None]) ** 2).mean(axis=0)
        best = int(errors.argmin())
        middle, spread = float(y_mean - x_mean @ slopes[:, best]), float(np.sqrt(errors[best]))
        lines[t] = Line(slopes[:, best], middle, max(spread, 1e-3), float(PENALTIES[best]))
    return [lines[t] for t in range(y.shape[1])]


def _again(x: Doubles, y: Doubles, weights: Doubles, lines: Sequence[Line]) -> list[Line]:
    """The lines of more objects, with the same penalties."""
    out = list(lines)
    for t, x_mean, y_mean, slopes_of in _regressions(x, y, weights):
        slopes = slopes_of(np.array([lines[t].penalty]))[:, 0]
        out[t] = lines[t]._replace(slopes=slopes, middle=float(y_mean - x_mean @ slopes))
    return out


def _regressions(
    x: Doubles, y: Doubles, weights: Doubles
) -> Iterator[tuple[int, Doubles, float, Callable[[Doubles], Doubles]]]:
    """Number of each label, means of x (P,) and of the label where it is known, and penalties (L,) -> slopes (P, L)."""
    there = np.isfinite(y)
    for mask in np.unique(there, axis=1).T:
        targets = np.flatnonzero((there == mask[:, None]).all(axis=0))
        w = weights[mask] / weights[mask].sum()
        x_mean, y_mean = w @ x[mask], w @ y[mask][:, targets]
        off, aims = np.sqrt(w)[:, None] * (x[mask] - x_mean), np.sqrt(w)[:, None] * (y[mask][:, targets] - y_mean)
        # The same by the covariance of objects or of numbers, whichever is smaller.
        few = len(off) < off.shape[1]
        values, vectors = np.linalg.eigh(off @ off.T if few else off.T @ off)
        along = vectors.T @ (aims if few else off.T @ aims)
        yield from (
            (t, x_mean, float(y_mean[k]), partial(_slopes, off if few else None, values, vectors, along[:, k]))
            for k, t in enumerate(targets.tolist())
        )


def _slopes(off: Doubles | None, values: Doubles, vectors: Doubles, along: Doubles, penalties: Doubles) -> Doubles:
    slopes: Doubles = vectors @ (along[:, None] / (values.clip(0)[:, None] + penalties))
    return slopes if off is None else off.T @ slopes


@torch.no_grad()
def loss_of(network: HeadNetwork, task: HeadTask, part: Part) -> float:
    """Weighted mean loss of a part, in evaluation mode."""
    outputs, _ = run(network, part.rows)
    losses = task.loss(torch.from_numpy(outputs), torch.from_numpy(part.truth)).numpy()
    return float(part.weights @ losses / part.weights.sum())


def _copy(network: HeadNetwork) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
