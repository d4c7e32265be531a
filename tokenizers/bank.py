"""All tokenizers of a checkpoint, by token key."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from albireo.observations.errors import BadCheckpoint, BadInput
from albireo.observations.modalities import MODALITIES, Modality
from albireo.observations.observation import Payload
from albireo.tokenizers.base import Tokenizer
from albireo.tokenizers.catalog import CatalogTokenizer
from albireo.tokenizers.checkpoint import WEIGHTS, Checkpoint
from albireo.tokenizers.image import ImageTokenizer
from albireo.tokenizers.scalar import CoefficientsTokenizer, ScalarTokenizer
from albireo.tokenizers.segmentation import SegmentationTokenizer
from albireo.tokenizers.spectrum import SpectrumTokenizer
from albireo.tokenizers.weights import check_shapes, load, materialise

KINDS: dict[str, type[Tokenizer[Any]]] = {
    "image": ImageTokenizer,
    "spectrum": SpectrumTokenizer,
    "coefficients": CoefficientsTokenizer,
    "scalar": ScalarTokenizer,
    "segmentation": SegmentationTokenizer,
    "catalog": CatalogTokenizer,
}
"""Kind of modality -> its tokenizer."""


class TokenizerBank(Mapping[str, Tokenizer[Any]]):
    """Token key -> tokenizer, in the table's order. Modalities that share a codec share its weights."""

    def __init__(self, tokenizers: Mapping[str, Tokenizer[Any]]) -> None:
        self._tokenizers = {key: tokenizers[key].eval() for key in MODALITIES if key in tokenizers}

    @classmethod
    def open(
        cls, checkpoint: Checkpoint, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> TokenizerBank:
        """Read what encoding needs of every codec that is there; the rest is read when something is decoded.

        dtype  that the networks of encoding compute in: float32, or bfloat16 (see `Tokenizer.compute_in`)
        """
        by_folder: dict[Path, Tokenizer[Any]] = {}
        tokenizers = {}
        for key, spec in checkpoint.coded.items():
            folder = checkpoint.codec_folder(key)
            if folder not in by_folder:
                tokenizer = open_codec(
                    MODALITIES[key], checkpoint.codec_config(key), folder / WEIGHTS, torch.device(device)
                )
                by_folder[folder] = tokenizer.compute_in(dtype)
            tokenizer = as_row(by_folder[folder], MODALITIES[key])
            if tokenizer.n_tokens != spec.n_tokens or tokenizer.vocab_size > spec.vocab_size:
                raise BadCheckpoint(
                    "checkpoint_invalid",
                    f"the codec gives {tokenizer.n_tokens} tokens of {tokenizer.vocab_size}, "
                    f"the model has {spec.n_tokens} of {spec.vocab_size}",
                    file=str(folder),
                    field=key,
                )
            tokenizers[key] = tokenizer
        return cls(tokenizers)

    def __getitem__(self, key: str) -> Tokenizer[Any]:
        try:
            return self._tokenizers[key]
        except KeyError:
            raise BadInput(
                "modality_not_in_checkpoint",
                f"this checkpoint does not read {MODALITIES[key].name}",
                field=MODALITIES[key].name,
                fix="it reads " + ", ".join(MODALITIES[known].name for known in self._tokenizers),
            ) from None

    def tokens(
        self, key: str, payloads: Sequence[Payload]
    ) -> list[tuple[NDArray[np.int64], tuple[str, ...]] | BadInput]:
        """Tokens (n,) and QA flags of each payload of a modality, or why it has none."""
        tokenizer = self[key]
        checked = tokenizer.check_each(payloads)
        good = [payload for payload, one in zip(payloads, checked, strict=True) if not isinstance(one, BadInput)]
        several = MODALITIES[key].kind in ("scalar", "coefficients")  # else objects can be of different lengths
        made: Iterator[NDArray[np.int64]]
        if several and good:
            made = iter(tokenizer.encode_checked(good).cpu().numpy())
        else:
            made = (tokenizer.encode_checked([payload])[0].cpu().numpy() for payload in good)
        return [one if isinstance(one, BadInput) else (next(made), one) for one in checked]

    def __contains__(self, key: object) -> bool:
        return key in self._tokenizers

    def __iter__(self) -> Iterator[str]:
        return iter(self._tokenizers)

    def __len__(self) -> int:
        return len(self._tokenizers)


def build(row: Modality, config: Mapping[str, Any]) -> Tokenizer[Any]:
    """A tokenizer of random weights from its configuration."""
    try:
        return KINDS[row.kind](row, dict(config))
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:  # RuntimeError: of torch, for sizes
        raise BadCheckpoint("checkpoint_invalid", f"codec configuration: {error!r}", field=row.key) from error


def as_row(tokenizer: Tokenizer[Any], row: Modality) -> Tokenizer[Any]:
    """The same tokenizer for another survey's modality, sharing its weights."""
    twin = copy.copy(tokenizer)
    twin.row = row
    return twin


def own_name(stored: str) -> str | None:
    """A tensor's name here, by its name in a codec's file; None if it is not read.

    Some published scalar codecs were saved before the quantizer's name got its underscore. A moving average of the
    weights is kept for training; the released package never computes with it.
    """
    if stored.startswith("ema."):
        return None
    return "_" + stored if stored.startswith("quantizer.") else stored


def open_codec(row: Modality, config: Mapping[str, Any], path: Path, device: torch.device) -> Tokenizer[Any]:
    """A tokenizer with the weights of its file, without those that only decoding needs."""
    with torch.device("meta"):
        tokenizer = build(row, config)

    def read(decoder: bool) -> None:
        def wanted(name: str) -> bool:
            return name.startswith(tokenizer.decoder_parts) == decoder

        def rename(stored: str) -> str | None:
            name = own_name(stored)
            return name if name is not None and wanted(name) else None

        check_shapes({name: tensor for name, tensor in tokenizer.state_dict().items() if wanted(name)}, path, rename)
        materialise(tokenizer, wanted, device, torch.float32)
        load({name: tensor for name, tensor in tokenizer.state_dict().items() if wanted(name)}, path, rename)

    read(decoder=False)
    tokenizer.read_rest = lambda: read(decoder=True)
    return tokenizer
