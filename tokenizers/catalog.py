"""The catalog tokenizer: five tokens for each object of a cutout, nearest to the centre first, and no network.

A token is a code of the quantizer plus 204: AION-1's table of the encoder keeps that many rows for tokens of sequences
(sentinels, start, end, padding, unknown) which its catalogs do not use. The released package does not add them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from albireo.observations.catalogs import COLUMNS, check_catalog
from albireo.observations.errors import BadInput
from albireo.observations.modalities import IMAGE_SIZE, Modality
from albireo.observations.observation import Catalog
from albireo.tokenizers.base import Tokenizer
from albireo.tokenizers.checkpoint import CATALOG_TOKENS
from albireo.tokenizers.quantizers import ComposedQuantizer, IdentityQuantizer, ReservoirQuantizer

RESERVED = 204
"""Rows of the encoder's table before those of the codes."""


class CatalogTokenizer(Tokenizer[Catalog]):
    """X, Y, e1, e2, r of each object, object by object; a sequence is as long as the catalog.

    Its configuration may state `codebook_size` and `reservoir_size` of the shapes' quantizers; AION-1's states neither.
    """

    n_tokens = CATALOG_TOKENS
    grid = (CATALOG_TOKENS, 1)

    def __init__(self, row: Modality, config: dict[str, Any]) -> None:
        super().__init__(row, config)
        size, reservoir = int(config.get("codebook_size", 1024)), int(config.get("reservoir_size", 100_000))
        position, shape = COLUMNS[:2], COLUMNS[2:]
        self._quantizer = ComposedQuantizer(
            {name: IdentityQuantizer(IMAGE_SIZE) for name in position}
            | {name: ReservoirQuantizer(size, reservoir) for name in shape}
        )
        self.vocab_size = RESERVED + self._quantizer.vocab_size

    @property
    def quantizer(self) -> ComposedQuantizer:
        return self._quantizer

    @property
    def lengths(self) -> range:
        return range(len(COLUMNS), self.n_tokens + 1, len(COLUMNS))

    def check(self, payload: Catalog) -> tuple[str, ...]:
        try:
            check_catalog(payload)
        except BadInput as error:
            raise error.at(field=self.row.name) from None
        if payload.n_objects * len(COLUMNS) > self.n_tokens:
            raise BadInput(
                "too_many_tokens",
                f"{payload.n_objects} objects, the model reads {self.n_tokens // len(COLUMNS)}",
                field=self.row.name,
                fix=f"give the option nearest={self.n_tokens // len(COLUMNS)}, or a shorter catalog",
            )
        return ()

    def _encode(self, payload: Catalog) -> Tensor:
        columns = (payload.x, payload.y, payload.e1, payload.e2, payload.r)
        numbers = np.stack([column.astype(np.float32) for column in columns], axis=1)
        codes = self._quantizer.encode(torch.as_tensor(numbers, device=self.device))
        return (codes + RESERVED).reshape(1, -1)

    def _decode(self, tokens: Tensor, **target: Any) -> Tensor:
        """(B, 5 n) tokens -> (B, n, 5): X, Y, e1, e2, r in arcsec; NaN where a token is not one of its column."""
        return self._quantizer.decode(tokens.unflatten(1, (-1, len(COLUMNS))) - RESERVED)
