"""Tokenizers of single numbers and of vectors of coefficients: one token per number, no network."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from albireo.observations.errors import BadCheckpoint, BadInput
from albireo.observations.modalities import Modality
from albireo.observations.observation import Coefficients, Scalar
from albireo.tokenizers.base import Tokenizer
from albireo.tokenizers.quantizers import SCALES, LinearQuantizer, MultiReservoirQuantizer, ReservoirQuantizer

LOG_KEYS = frozenset(
    {f"tok_flux_{band}" for band in ("g", "r", "i", "z", "w1", "w2", "w3", "w4", "g_gaia", "bp_gaia", "rp_gaia")}
    | {"tok_shape_r", "tok_parallax"}
)
"""Keys whose reservoir holds logarithms in AION-1."""


class ScalarTokenizer(Tokenizer[Scalar]):
    """One number, one token. The quantizer is a regular grid for redshift, else a (log) reservoir.

    AION-1's grid for redshift ends at 1: larger redshifts share the last code, and are flagged.
    """

    n_tokens = 1
    grid = (1, 1)

    def __init__(self, row: Modality, config: dict[str, Any]) -> None:
        super().__init__()
        self.row = row
        size = int(config["codebook_size"])
        logarithmic = "min_log_value" in config
        if row.aion and logarithmic != (row.key in LOG_KEYS):
            raise BadCheckpoint("checkpoint_invalid", "min_log_value does not fit this modality", field=row.key)
        self._quantizer: LinearQuantizer | ReservoirQuantizer
        if "reservoir_size" not in config:
            self._quantizer = LinearQuantizer(size, (0.0, 1.0))
        elif logarithmic:
            self._quantizer = ReservoirQuantizer(size, int(config["reservoir_size"]), "log", config["min_log_value"])
        else:
            self._quantizer = ReservoirQuantizer(size, int(config["reservoir_size"]))

    @property
    def quantizer(self) -> LinearQuantizer | ReservoirQuantizer:
        return self._quantizer

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        return self._quantizer.vocab_size

    def check(self, payload: Scalar) -> tuple[str, ...]:
        if not math.isfinite(payload.value):
            raise BadInput(
                "not_finite", f"the value is {payload.value}", field=self.row.name, fix="leave the modality out"
            )
        if payload.unit != self.row.unit:
            raise BadInput(
                "unit_unknown", f"the unit is {payload.unit!r}, the model reads {self.row.unit!r}", field=self.row.name
            )
        quantizer = self._quantizer
        if isinstance(quantizer, LinearQuantizer):
            inside = quantizer.range[0] <= payload.value <= quantizer.range[1]
            return () if inside else (f"{self.row.key.removeprefix('tok_')}_token_saturated",)
        if quantizer.scale == "log" and payload.value <= quantizer.floor:
            return (f"{self.row.key.removeprefix('tok_')}_below_floor",)
        return ()

    def _encode(self, payload: Scalar) -> Tensor:
        return self._quantizer.encode(torch.tensor([[payload.value]], dtype=torch.float32, device=self.device)).long()

    def _decode(self, tokens: Tensor, **target: Any) -> Tensor:
        """(B, 1) tokens -> (B, 1) values in the row's unit."""
        return self._quantizer.decode(tokens)


class CoefficientsTokenizer(Tokenizer[Coefficients]):
    """K coefficients, K tokens: each has its own arcsinh-compressed reservoir."""

    def __init__(self, row: Modality, config: dict[str, Any]) -> None:
        super().__init__()
        self.row = row
        (scale,) = config["compression_fns"]
        if scale not in SCALES:
            raise BadCheckpoint("checkpoint_invalid", f"unknown compression {scale!r}", field=row.key)
        self.n_tokens = int(config["num_quantizers"])
        self.grid = (self.n_tokens, 1)
        self._quantizer = MultiReservoirQuantizer(
            int(config["codebook_size"]), int(config["reservoir_size"]), self.n_tokens, scale
        )

    @property
    def quantizer(self) -> MultiReservoirQuantizer:
        return self._quantizer

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        return self._quantizer.vocab_size

    def check(self, payload: Coefficients) -> tuple[str, ...]:
        values = torch.as_tensor(payload.values.copy())
        if values.shape != (self.n_tokens,):
            raise BadInput(
                "shape_mismatch", f"{tuple(values.shape)} coefficients, not ({self.n_tokens},)", field=self.row.name
            )
        if not torch.isfinite(values).all():
            raise BadInput("not_finite", "a coefficient is not finite", field=self.row.name)
        return ()

    def _encode(self, payload: Coefficients) -> Tensor:
        values = torch.tensor(payload.values, dtype=torch.float32, device=self.device)
        return self._quantizer.encode(values[None]).long()

    def _decode(self, tokens: Tensor, **target: Any) -> Tensor:
        """(B, K) tokens -> (B, K) coefficients."""
        return self._quantizer.decode(tokens)
