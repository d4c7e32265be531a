"""The released package `polymathic-aion`, asked what it computes on a checkpoint folder: an oracle that is not ours.

It is no dependency of the service but the extra `aion`; nothing of it is imported before it is asked. Where it fails by
a known slip (docs/aion.md) it is asked the way its own tables say it is meant.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from albireo.models.engine import Tokens
from albireo.observations.observation import Catalog, Coefficients, Image, Payload, Scalar, SegmentationMap, Spectrum

CATALOG_ROWS = 20
"""Objects that arrays of catalogs have room for in the survey's files."""

Floats = NDArray[np.float32]


def installed() -> str | None:
    """Its version, or None."""
    try:
        return metadata.version("polymathic-aion")
    except metadata.PackageNotFoundError:
        return None


class AionPackage:
    """The package's codecs and model of a folder, each opened when it is first asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._codecs: dict[str, Any] = {}

    @cached_property
    def classes(self) -> Mapping[str, Any]:
        """Token key -> the package's modality class."""
        from aion.codecs.config import MODALITY_CODEC_MAPPING

        return {cls.token_key: cls for cls in MODALITY_CODEC_MAPPING if cls.token_key}

    @cached_property
    def model(self) -> Any:
        """Its transformer, in float32."""
        from aion.model import AION

        with redirect_stdout(sys.stderr):  # It prints while it loads.
            return AION.from_pretrained(self.folder).eval().float()

    @torch.no_grad()
    def tokens(self, key: str, payload: Payload) -> NDArray[np.int64]:
        """Tokens (n,) of one payload, as the tables of the transformer have them."""
        from aion.fourm.modality_info import MODALITY_INFO

        codes = self._codec(key).encode(self._given(key, payload)).reshape(-1).long().numpy()
        if key != "catalog":
            return np.asarray(codes)
        # Its table says that codes are shifted and padding is left out; its `encode` does neither.
        about = MODALITY_INFO[key]
        return np.asarray(codes[codes != about["codec_pad_id"]] + about["vocab_offset"])

    @torch.no_grad()
    def states(self, tokens: Tokens) -> Floats:
        """Encoder states (N, D) of one object, in the order of its tokens, without registers."""
        ids, count = self._ids(tokens)
        found: Floats = self.model.encode(ids, num_encoder_tokens=count)[0].numpy()
        return found[len(found) - count :]

    @torch.no_grad()
    def logits(self, tokens: Tokens, targets: Sequence[str]) -> dict[str, Floats]:
        """Logits (n, V) of every token of the target modalities, key by key."""
        ids, count = self._ids(tokens)
        sizes = {key: self.model.decoder_embeddings[key].pos_emb.shape[1] for key in targets}
        asked = {key: torch.zeros(1, n, dtype=torch.bool) for key, n in sizes.items()}
        found = self.model._forward(
            ids, asked, input_mask={}, num_encoder_tokens=count, num_decoder_tokens=sum(sizes.values())
        )
        return {key: found[key].numpy() for key in targets}

    def _ids(self, tokens: Tokens) -> tuple[dict[str, Tensor], int]:
        return {key: torch.from_numpy(ids)[None] for key, ids in tokens.ids.items()}, tokens.n_tokens

    def _codec(self, key: str) -> Any:
        """The codec of a modality; one serves all surveys of its kind.

        The package finds `codecs/<name>/config.json` on a hub only, never in a folder: each is opened in its own.
        """
        from aion.codecs.config import MODALITY_CODEC_MAPPING
        from huggingface_hub import PyTorchModelHubMixin

        kind = self.classes[key]
        if kind.name not in self._codecs:
            inherited: Any = PyTorchModelHubMixin.from_pretrained
            with redirect_stdout(sys.stderr):
                codec = inherited.__func__(MODALITY_CODEC_MAPPING[kind], self.folder / "codecs" / kind.name)
            self._codecs[kind.name] = codec.eval()
        return self._codecs[kind.name]

    def _given(self, key: str, payload: Payload) -> Any:
        """The payload as a batch of one; arrays are copies, because the package writes into what it is given."""
        kind = self.classes[key]

        def one(values: object) -> Tensor:
            return torch.tensor(np.asarray(values, np.float32))[None]

        if isinstance(payload, Image):
            return kind(flux=one(payload.flux), bands=list(payload.bands))
        if isinstance(payload, Spectrum):
            rest = {"mask": torch.tensor(payload.mask)[None], "wavelength": one(payload.wavelength)}
            return kind(flux=one(payload.flux), ivar=one(payload.ivar), **rest)
        if isinstance(payload, Coefficients):
            return kind(one(payload.values))
        if isinstance(payload, SegmentationMap):
            return kind(one(payload.field))
        if isinstance(payload, Catalog):
            columns = (payload.x, payload.y, payload.e1, payload.e2, payload.r)
            return kind(*(_padded(column) for column in columns))
        assert isinstance(payload, Scalar), type(payload)
        return kind(one(payload.value))


def _padded(column: NDArray[Any]) -> Tensor:
    """(n,) -> (1, 20), filled up as the survey's files are."""
    from aion.fourm.modality_info import MODALITY_INFO

    pad = MODALITY_INFO["catalog"]["codec_pad_id"]
    return torch.from_numpy(np.pad(column, (0, max(CATALOG_ROWS - len(column), 0)), constant_values=pad))[None]
