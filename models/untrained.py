"""The same network before its first step: what a trained encoder must be better than."""

from __future__ import annotations

import torch

from albireo.models import mini
from albireo.models.torch_engine import TorchEngine
from albireo.models.transformer import Transformer, TransformerConfig


def untrained(engine: TorchEngine, seed: int) -> TorchEngine:
    """An engine of the same shape, behind the same tokenizers, with the weights it had before the first step."""
    config = TransformerConfig.from_json(engine.checkpoint.config)
    if config == TransformerConfig.from_json(mini.TRANSFORMER) and set(engine.inputs) == set(mini.INPUTS):
        from albireo.models import neighbours  # training needs more packages than embedding

        return neighbours.untrained(engine, seed)
    model = Transformer(config, engine.inputs, engine.outputs)
    model.initialise({key: engine.bank[key].grid for key in engine.bank}, torch.Generator().manual_seed(seed))
    return TorchEngine(engine.checkpoint, engine.bank, model)
