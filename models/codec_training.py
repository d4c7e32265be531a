"""Training of the image and spectrum auto-encoders on observations held in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from albireo.models.cpu import fast_bf16
from albireo.models.stages import Progress, load_state, save_state
from albireo.observations.observation import Image
from albireo.tokenizers.image import BANDS, ImageTokenizer
from albireo.tokenizers.quantizers import LookupFreeQuantizer
from albireo.tokenizers.spectrum import SpectrumTokenizer

Rng = np.random.Generator

PIECE, PIECE_STEP = 2176, 64
"""Pixels of the wavelength grid in one training step, and the step of where the piece may begin."""

MAX_SNR = 10.0
"""Signal-to-noise per pixel counted in the loss: brighter pixels do not drown the others."""

LOCAL, SHARP = 129, 2.0
"""Pixels of a local mean, about 100 Angstrom, and how much what differs from it counts beside the whole."""


@dataclass(frozen=True)
class Schedule:
    """steps of `batch` objects, AdamW with linear warm-up and cosine decay from `rate`."""

    steps: int
    batch: int
    rate: float
    warm_up: int = 100

    def factor(self, step: int) -> float:
        """Fraction of `rate` at a step."""
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        done = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def image_arrays(tokenizer: ImageTokenizer, images: Sequence[Image]) -> tuple[Tensor, Tensor]:
    """Range-compressed channel slots (n, 9, 96, 96) as float16, and their presence (n, 9)."""
    slots = torch.zeros(len(images), len(BANDS), 96, 96, dtype=torch.float16)
    present = torch.zeros(len(images), len(BANDS), dtype=torch.bool)
    for i, image in enumerate(images):
        flux, bands = tokenizer.planes(image)
        one, here = tokenizer.network_input(torch.as_tensor(flux.copy())[None], bands)
        slots[i], present[i] = one[0].half(), here[0]
    return slots, present


def image_loss(
    tokenizer: ImageTokenizer, slots: Tensor, present: Tensor, *, done: float = 1.0, rng: Rng | None = None
) -> Tensor:
    """Mean squared error of the range-compressed flux over the channels that are there."""
    quantized = tokenizer.quantizer.quantize(tokenizer.latents(slots, present))
    error = (tokenizer.reconstruct(quantized) - slots) ** 2
    return (error.mean(dim=(2, 3)) * present).sum() / present.sum()


def spectrum_loss(
    tokenizer: SpectrumTokenizer, x: Tensor, truth: Tensor, *, done: float = 1.0, rng: Rng | None = None
) -> Tensor:
    """Huber of the distance from the noiseless flux in units of the noise, once as it is and once without its local
    mean, mask cross entropy, and the sign quantizer's terms.

    x (n, 2, L) and truth (n, L) are those of `spectrum_pairs`. Beside noise and the continuum a line is a small part of
    the distance, and was learnt last or not at all: so there is no noise in the target, and what is sharp counts again.
    In training (with `rng`) a piece of the grid is used, and the bottleneck hardens: latents pass as tanh at first and
    more and more of them as signs. Signs from the start collapse: the codes freeze before the encoder has learnt.
    """
    hard = float(np.clip((done - 0.15) / 0.45, 0.0, 1.0))
    if rng is not None:
        start = PIECE_STEP * int(rng.integers(0, (x.shape[2] - PIECE) // PIECE_STEP + 1))
        x, truth = x[:, :, start : start + PIECE], truth[:, start : start + PIECE]
    z = tokenizer.latents(x).float()
    signs = tokenizer.quantizer.quantize(z)
    if hard < 1 and rng is not None:
        signs = torch.where(torch.as_tensor(rng.random(tuple(z.shape)) < hard), signs, torch.tanh(z))
    flux, mask_logits = tokenizer.reconstruct(signs).unbind(dim=1)
    snr = torch.clamp(torch.sinh(x[:, 1]) / tokenizer.input_scaling, 0, MAX_SNR)
    good = snr > 0
    off = (flux - truth) * snr
    local = F.avg_pool1d(off[:, None], LOCAL, stride=1, padding=LOCAL // 2, count_include_pad=False)[:, 0]
    distance = F.smooth_l1_loss(off, torch.zeros_like(off), reduction="none")
    sharp = F.smooth_l1_loss(off, local, reduction="none")
    fit = ((distance + SHARP * sharp) * good).sum() / good.sum()
    masked = F.binary_cross_entropy_with_logits(mask_logits, (~good).float())
    return fit + 0.05 * masked + hard * sign_terms(tokenizer.quantizer, z)


def sign_terms(quantizer: LookupFreeQuantizer, z: Tensor) -> Tensor:
    """Commitment 0.25 and entropy 0.1 of the look-up free quantizer (arXiv 2310.05737).

    The entropy of the mean distribution is taken over whole codes: bit by bit, all bits become copies of one.
    """
    commitment = F.mse_loss(z, quantizer.quantize(z).detach())
    codes = quantizer.decode(torch.arange(quantizer.vocab_size, device=z.device)[None])[0]
    p = (2.0 * z.movedim(1, -1).flatten(0, 1) @ codes).softmax(dim=-1)
    certain = _entropy(p).mean()
    spread = _entropy(p.mean(dim=0))
    return 0.25 * commitment + 0.1 * (certain - spread)


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp(min=1e-8).log()).sum(dim=-1)


def train_codec(
    name: str,
    tokenizer: nn.Module,
    loss: Callable[..., Tensor],
    arrays: Sequence[Tensor],
    schedule: Schedule,
    state: Path,
    seed: int,
    begun: float = 0.0,
) -> None:
    """Train in place; resumes from `state` and leaves the finished weights there. A tenth of the data validates.

    begun  what part of the way the loss is told to be behind it: of weights that were trained before
    """
    n = len(arrays[0])
    cut = n - n // 10
    optimiser = torch.optim.AdamW(tokenizer.parameters(), lr=schedule.rate, weight_decay=0.01)
    path = state / f"{name}.pt.safetensors"
    step = load_state(path, tokenizer, optimiser)
    progress = Progress(name, schedule.steps, step, state / f"{name}.csv")
    while step < schedule.steps:
        rng = np.random.default_rng([seed, step])
        rows = torch.as_tensor(rng.integers(0, cut, schedule.batch))
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate * schedule.factor(step)
        tokenizer.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=fast_bf16()):  # the weights stay in float32
            value = loss(
                tokenizer,
                *(_rows(array, rows) for array in arrays),
                done=begun + (1 - begun) * step / schedule.steps,
                rng=rng,
            )
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0)
        optimiser.step()
        step += 1
        extra: dict[str, Any] = {}
        if step % 200 == 0 or step == schedule.steps:
            tokenizer.eval()
            with torch.no_grad():
                held = [loss(tokenizer, *(array[i : i + 64].float() if array.is_floating_point() else array[i : i + 64]
                                          for array in arrays)).item() for i in range(cut, n, 64)]  # fmt: skip
            extra["validation"] = sum(held) / len(held)
            save_state(path, tokenizer, optimiser, step)
        progress.update(step, loss=value.item(), **extra)
    tokenizer.eval()


def _rows(array: Tensor, rows: Tensor) -> Tensor:
    picked = array[rows]
    return picked.float() if picked.is_floating_point() else picked
