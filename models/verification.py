"""Is a checkpoint folder sound that no manifest describes? Its tensors against its configuration, and all finite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from albireo.models.transformer import Transformer, TransformerConfig
from albireo.observations.errors import BadCheckpoint
from albireo.observations.modalities import MODALITIES
from albireo.tokenizers.bank import open_codec
from albireo.tokenizers.checkpoint import WEIGHTS, Checkpoint

SHOWN = 5


def check(checkpoint: Checkpoint) -> Iterator[tuple[str, str | None]]:
    """(path, None or what is wrong) of every file of weights; one tensor at a time is in memory."""
    yield WEIGHTS, _misfits(checkpoint) or _damage(checkpoint.folder / WEIGHTS)
    codecs = {checkpoint.codec_folder(key): key for key in reversed(checkpoint.inputs)}
    for folder, key in sorted(codecs.items()):
        path = folder / WEIGHTS
        yield path.relative_to(checkpoint.folder).as_posix(), _damage(path) or _codec_misfits(checkpoint, key)


def _misfits(checkpoint: Checkpoint) -> str | None:
    """Tensors in which the configuration and the file of the transformer differ."""
    try:
        config = TransformerConfig.from_json(checkpoint.config)
        with torch.device("meta"):
            model = Transformer(config, checkpoint.inputs, checkpoint.outputs)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        return f"the configuration describes no transformer: {error}"
    wanted = {name: tuple(tensor.shape) for name, tensor in model.published().items() if model.one_name(name) == name}
    stored = {name: shape for full, shape in checkpoint.shapes.items() if (name := model.one_name(full)) is not None}
    wrong = sorted(name for name in wanted.keys() | stored.keys() if wanted.get(name) != stored.get(name))
    named = ", ".join(wrong[:SHOWN])
    return f"{len(wrong)} tensors are missing, unknown or of another shape: {named}" if wrong else None


def _codec_misfits(checkpoint: Checkpoint, key: str) -> str | None:
    try:
        path = checkpoint.codec_folder(key) / WEIGHTS
        open_codec(MODALITIES[key], checkpoint.codec_config(key), path, torch.device("cpu")).read_rest()
    except BadCheckpoint as error:
        return error.message
    return None


def _damage(path: Path) -> str | None:
    """Tensors of a file that are not finite, or why it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            wrong = [name for name in names if not bool(torch.isfinite(file.get_tensor(name)).all())]
    except (OSError, SafetensorError) as error:
        return str(error)
    return f"{len(wrong)} tensors are not finite: {', '.join(wrong[:SHOWN])}" if wrong else None
