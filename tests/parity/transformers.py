"""Transformers of the released package on random weights, and how far from its answers ours are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from aion.model import AION
from torch import Tensor

from albireo.models.engine import Tokens
from albireo.observations.modalities import AION_KEYS

SHAPES: dict[str, dict[str, Any]] = {
    "aion": {},
    "plain-with-biases": {
        "gated_mlp": False, "act_layer": "GELU", "qk_norm": False, "qkv_bias": True, "proj_bias": True,
        "mlp_bias": True, "norm_bias": True,
    },
    "narrow-deep-registers": {
        "dim": 32, "num_heads": 2, "encoder_depth": 6, "decoder_depth": 3, "num_register_tokens": 2,
    },
    "wide-gated-without-qk-norm": {
        "dim": 96, "num_heads": 3, "encoder_depth": 2, "decoder_depth": 4, "qk_norm": False, "mlp_ratio": 2.0,
        "norm_bias": True,
    },
}  # fmt: skip
"""Name -> what differs from AION-1's switches at two blocks of width 64."""

TARGETS = tuple(key for key in AION_KEYS if key != "catalog")
"""What `AION.forward` can be asked for: its class of catalogs states no number of tokens, and their decoder is
autoregressive, without which the released logits mean nothing."""

LOOK_ALIKE = 0.9
"""Above this mean cosine between different objects, agreement would prove nothing."""

JUDGED = (("tok_flux_g", "tok_flux_r", "tok_z"), ("tok_spectrum_desi",), ("tok_image_hsc",), ("tok_image",), AION_KEYS)
"""Sets of modalities through which the mean cosine is taken, ..."""

JUDGES = 4
"""... over so many of the objects, the last ones: extremes are unlike anything."""

MOST_STEPS = 20
"""Steps of scaling after which `make_transformer` gives up; the tests then say that objects look alike."""


def config(**changes: Any) -> dict[str, Any]:
    """Configuration of a small model for all token keys, with AION-1's switches unless changed."""
    return {
        "domains_in": list(AION_KEYS), "domains_out": list(TARGETS), "dim": 64, "encoder_depth": 2,
        "decoder_depth": 2, "num_heads": 4, "mlp_ratio": 4.0, "qkv_bias": False, "proj_bias": False,
        "mlp_bias": False, "norm_bias": False, "act_layer": "SiLU", "gated_mlp": True, "qk_norm": True,
    } | changes  # fmt: skip


def make_transformer(shape: str, objects: Sequence[Tokens], seed: int) -> tuple[AION, list[float]]:
    """A model for all 40 keys, its weights drawn from `seed` and scaled until embeddings of `objects` differ; and the
    mean cosines between them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AION(config(**SHAPES[shape])).eval()
        _draw(model)
    for _ in range(MOST_STEPS):
        cosines = [mean_cosine(model, objects, keys) for keys in JUDGED]
        if max(cosines) < LOOK_ALIKE:
            break
        _scale(model)
    return model, cosines


@torch.no_grad()
def _draw(model: AION) -> None:
    """Draw norms and biases as well, which start as ones and zeros, and make tokens weigh more than their places,
    before and after the encoder."""
    for name, parameter in model.named_parameters():
        if "token_emb" in name:
            parameter.normal_(std=8.0)
        elif name == "decoder_proj_context.weight":
            parameter.mul_(8.0)
        elif parameter.ndim == 1:
            parameter.normal_(std=0.2).add_(1.0 if name.endswith("weight") else 0.0)


@torch.no_grad()
def _scale(model: AION) -> None:
    """One step: larger token tables and projection of the encoder's states, and blocks that mix more."""
    for name, parameter in model.named_parameters():
        if name == "decoder_proj_context.weight" or (name.startswith("encoder_emb") and "token_emb" in name):
            parameter.mul_(1.5)
        elif name.startswith("encoder.") and parameter.ndim == 2 and "qkv" not in name:
            parameter.mul_(1.2)


def mean_cosine(model: AION, objects: Sequence[Tokens], keys: Sequence[str]) -> float:
    """Mean cosine between the pooled states of different objects, seen through `keys`."""
    pooled = np.stack([states(model, tokens, keys).mean(axis=0) for tokens in objects[-JUDGES:]])
    unit = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    return float((unit @ unit.T)[np.triu_indices(len(unit), 1)].mean())


def ids_of(tokens: Tokens, keys: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """One object's tokens and masks (1, n) for the package, in the order of `keys`, and how many count."""
    ids = {key: torch.from_numpy(tokens.ids[key])[None] for key in keys}
    masks = {key: torch.from_numpy(np.asarray(tokens.mask[key]))[None] for key in keys if key in tokens.mask}
    return ids, masks, sum(value.numel() for value in ids.values()) - sum(int(mask.sum()) for mask in masks.values())


@torch.no_grad()
def states(model: AION, tokens: Tokens, keys: Sequence[str]) -> np.ndarray:
    """The package's encoder states (N, D) of the tokens that count, without registers, in the order of `keys`."""
    ids, masks, count = ids_of(tokens, keys)
    found: np.ndarray = model.encode(ids, input_mask=masks, num_encoder_tokens=count)[0].numpy()
    return found[len(found) - count :]


@torch.no_grad()
def answers(
    model: AION, tokens: Tokens, keys: Sequence[str], targets: Sequence[str]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The package's states of one object, as above, and its logits[key] (n, V) for every token of the targets."""
    ids, masks, count = ids_of(tokens, keys)
    sizes = {key: model.decoder_embeddings[key].pos_emb.shape[1] for key in targets}
    asked = {key: torch.zeros(1, n, dtype=torch.bool) for key, n in sizes.items()}
    seen: list[Tensor] = []
    hook = model.decoder_proj_context.register_forward_hook(lambda _, given, out: seen.append(out))
    found = model._forward(
        ids, asked, input_mask=masks, num_encoder_tokens=count, num_decoder_tokens=sum(sizes.values())
    )
    hook.remove()
    _, places, _, _ = model.embed_inputs(ids, mask=masks, num_encoder_tokens=count)
    context = (seen[0] + places)[0].numpy()
    return context[len(context) - count :], {key: value.numpy() for key, value in found.items()}


def errors(ours: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> tuple[float, float]:
    """(rms, largest) difference of objects' arrays of one shape, over the rms distance of objects from their mean."""
    a, b = np.stack(ours), np.stack(expected)
    spread = np.sqrt(((b - b.mean(axis=0)) ** 2).mean())
    assert spread > 1e-3 * np.sqrt((b**2).mean()), "the objects look alike: agreement proves nothing"
    difference = np.abs(a - b)
    return float(np.sqrt((difference**2).mean()) / spread), float(difference.max() / spread)


def with_masks(tokens: Tokens, rng: np.random.Generator) -> Tokens:
    """The same object with some of its tokens left out; at least one token remains."""
    masks: Mapping[str, np.ndarray] = {key: rng.random(len(ids)) < rng.random() for key, ids in tokens.ids.items()}
    some = next(iter(masks))
    masks[some][rng.integers(len(masks[some]))] = False
    return Tokens(tokens.ids, masks)
