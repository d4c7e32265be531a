"""Tokenizers of single numbers and of vectors of coefficients: one token per number, no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from albireo.observations.errors import BadCheckpoint, BadInput
from albireo.observations.modalities import Modality
from albireo.observations.observation import Coefficients, Scalar
from albireo.tokenizers.base import Tokenizer
from albireo.tokenizers.preprocessing import ALBIREO_1
from albireo.tokenizers.quantizers import SCALES, LinearQuantizer, MultiReservoirQuantizer, ReservoirQuantizer

LARGEST = float(np.finfo(np.float32).max)
"""Tokenizers read float32: a larger number would become infinity."""

FIRST_FLOOR = 1e-3
"""Electrons per second: no source with a spectrum has a first coefficient below."""

LOG_KEYS = frozenset(
    {f"tok_flux_{band}" for band in ("g", "r", "i", "z", "w1", "w2", "w3", "w4", "g_gaia", "bp_gaia", "rp_gaia")}
    | {"tok_shape_r", "tok_parallax"}
)
"""Keys whose reservoir holds logarithms in AION-1."""


class ScalarTokenizer(Tokenizer[Scalar]):
    """One number, one token. The quantizer is a regular grid for redshift, else a (log) reservoir.

    AION-1's grid for redshift ends at 1, ours where the configuration's `range` says: larger redshifts share the last
    code, and are flagged.
    """

    n_tokens = 1
    grid = (1, 1)

    def __init__(self, row: Modality, config: dict[str, Any]) -> None:
        super().__init__(row, config)
        size = int(config["codebook_size"])
        logarithmic = "min_log_value" in config
        if row.aion and logarithmic != (row.key in LOG_KEYS):
            raise BadCheckpoint("checkpoint_invalid", "min_log_value does not fit this modality", field=row.key)
        self._quantizer: LinearQuantizer | ReservoirQuantizer
        if "reservoir_size" not in config:
            low, high = config.get("range", (0.0, 1.0))
            self._quantizer = LinearQuantizer(size, (float(low), float(high)))
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
        (checked,) = self.check_each([payload])
        if isinstance(checked, BadInput):
            raise checked
        return checked

    def check_each(self, payloads: Sequence[Scalar]) -> list[tuple[str, ...] | BadInput]:
        quantizer = self._quantizer
        floor = -math.inf
        if isinstance(quantizer, ReservoirQuantizer) and quantizer.scale == "log":
            floor = quantizer.floor
        covered = quantizer.covers(self._numbers(payloads))[:, 0].tolist()
        below, beyond = (f"{self.row.key.removeprefix('tok_')}_below_floor",), (_saturated(self.row),)
        return [
            self._refusal(payload) or (below if payload.value <= floor else () if inside else beyond)
            for payload, inside in zip(payloads, covered, strict=True)
        ]

    def _refusal(self, payload: Scalar) -> BadInput | None:
        if not abs(payload.value) <= LARGEST:
            return BadInput(
                "not_finite", f"the value is {payload.value}", field=self.row.name, fix="leave the modality out"
            )
        if payload.unit != self.row.unit:
            return BadInput(
                "unit_unknown", f"the unit is {payload.unit!r}, the model reads {self.row.unit!r}", field=self.row.name
            )
        return None

    def _numbers(self, payloads: Sequence[Scalar]) -> Tensor:
        """(B, 1) float32."""
        values = torch.tensor([payload.value for payload in payloads], dtype=torch.float64)
        return values.float()[:, None].to(self.device)

    def encode_checked(self, payloads: Sequence[Scalar]) -> Tensor:
        """Element by element: what else is in the batch changes nothing."""
        return self._quantizer.encode(self._numbers(payloads)).long()

    def _encode(self, payload: Scalar) -> Tensor:
        return self.encode_checked([payload])

    def _decode(self, tokens: Tensor, **target: Any) -> Tensor:
        """(B, 1) tokens -> (B, 1) values in the row's unit: by "aion-1" the largest that have the token."""
        return self._quantizer.decode(tokens, centre=self.preprocessing == ALBIREO_1)


class CoefficientsTokenizer(Tokenizer[Coefficients]):
    """K coefficients, K tokens: each has its own arcsinh-compressed reservoir.

    By AION-1 every coefficient is tokenized as it is: all grow with the brightness of the source, which takes most of
    their codes. With `relative_to_first` in the configuration the first token holds the first coefficient, and the
    others coefficients over what that token stands for: the shape of the spectrum, however bright.
    """

    def __init__(self, row: Modality, config: dict[str, Any]) -> None:
        super().__init__(row, config)
        (scale,) = config["compression_fns"]
        if scale not in SCALES:
            raise BadCheckpoint("checkpoint_invalid", f"unknown compression {scale!r}", field=row.key)
        self.relative = bool(config.get("relative_to_first", False))
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
        (checked,) = self.check_each([payload])
        if isinstance(checked, BadInput):
            raise checked
        return checked

    def check_each(self, payloads: Sequence[Coefficients]) -> list[tuple[str, ...] | BadInput]:
        out: list[tuple[str, ...] | BadInput] = [self._refusal(payload) or () for payload in payloads]
        good = [i for i, checked in enumerate(out) if not isinstance(checked, BadInput)]
        if good:
            numbers = self.numbers(np.stack([payloads[i].values for i in good]))
            for i, inside in zip(good, self._quantizer.covers(numbers).all(dim=1).tolist(), strict=True):
                out[i] = () if inside else (_saturated(self.row),)
        return out

    def _refusal(self, payload: Coefficients) -> BadInput | None:
        shape = payload.values.shape
        if shape != (self.n_tokens,):
            return BadInput("shape_mismatch", f"{shape} coefficients, not ({self.n_tokens},)", field=self.row.name)
        if not (np.abs(payload.values) <= LARGEST).all():
            return BadInput("not_finite", "a coefficient is not finite", field=self.row.name)
        if self.relative and not payload.values[0] > FIRST_FLOOR:
            return BadInput(
                "value_out_of_range",
                f"the first coefficient, which is the flux, is {payload.values[0]:g}",
                field=self.row.name,
                fix="leave the modality out",
            )
        return None

    def numbers(self, coefficients: NDArray[np.float32]) -> Tensor:
        """(B, K) coefficients -> (B, K) what the codebooks are of."""
        x = torch.tensor(coefficients, dtype=torch.float32, device=self.device)
        return torch.cat([x[:, :1], x[:, 1:] / self._first(x[:, :1])], dim=1) if self.relative else x

    def fit(self, coefficients: NDArray[np.float32]) -> None:
        """Take the codebooks from a sample (n, K)."""
        if self.relative:
            # The first one's before the others', which are over what its codes stand for.
            self._quantizer.channels[0].fit(torch.tensor(coefficients[:, 0]))
        self._quantizer.fit(self.numbers(coefficients))

    def _first(self, first: Tensor) -> Tensor:
        """(B, 1) first coefficients -> what their token stands for, which the others are divided by."""
        channel = self._quantizer.channels[0]
        stands_for = channel.decode(channel.encode(first), centre=self.preprocessing == ALBIREO_1)
        return stands_for.clamp(min=FIRST_FLOOR)

    def encode_checked(self, payloads: Sequence[Coefficients]) -> Tensor:
        """Element by element: what else is in the batch changes nothing."""
        return self._quantizer.encode(self.numbers(np.stack([payload.values for payload in payloads]))).long()

    def _encode(self, payload: Coefficients) -> Tensor:
        return self.encode_checked([payload])

    def _decode(self, tokens: Tensor, **target: Any) -> Tensor:
        """(B, K) tokens -> (B, K) coefficients: by "aion-1" the largest that have the token."""
        values = self._quantizer.decode(tokens, centre=self.preprocessing == ALBIREO_1)
        if self.relative:
            values[:, 1:] *= values[:, :1].clamp(min=FIRST_FLOOR)
        return values


def _saturated(row: Modality) -> str:
    """QA flag of a number beyond the ends of its codebook: it shares the token of the end."""
    return f"{row.key.removeprefix('tok_')}_token_saturated"
