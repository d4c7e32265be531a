"""How the released package `polymathic-aion` is asked for tokens and for what tokens stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from aion.codecs.catalog import CatalogCodec
from aion.codecs.config import MODALITY_CODEC_MAPPING
from aion.codecs.image import ImageCodec
from aion.codecs.scalar import GridScalarCodec, LogScalarCodec, MultiScalarCodec, ScalarCodec
from aion.codecs.scalar_field import ScalarFieldCodec
from aion.codecs.spectrum import SpectrumCodec
from aion.fourm.modality_info import MODALITY_INFO
from torch import Tensor

from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import (
    Catalog,
    Coefficients,
    Image,
    Payload,
    Scalar,
    SegmentationMap,
    Spectrum,
)

CLASSES: dict[str, Any] = {cls.token_key: cls for cls in MODALITY_CODEC_MAPPING if cls.token_key}
"""Token key -> the package's modality class."""

HSC_SCALE = 10.0 ** ((27.0 - 22.5) / 2.5)
"""What the package's image decoder would multiply HSC images with, if it did not fail before."""

OFFSET, PAD = MODALITY_INFO["catalog"]["vocab_offset"], MODALITY_INFO["catalog"]["codec_pad_id"]
"""What its table of modalities says of catalogs, and its encode() does not do: codes + 204, padding left out."""

CATALOG_ROWS = 20
"""Objects that arrays of catalogs have room for."""


def as_theirs(key: str, payload: Payload) -> Any:
    """The payload as a batch of one of the package's modality class; arrays are copies."""
    kind = CLASSES[key]

    def one(values: object) -> Tensor:
        return torch.tensor(np.asarray(values, np.float32))[None]

    if isinstance(payload, Image):
        return kind(flux=one(payload.flux), bands=list(payload.bands))
    if isinstance(payload, Spectrum):
        mask = torch.tensor(payload.mask)[None]
        return kind(flux=one(payload.flux), ivar=one(payload.ivar), mask=mask, wavelength=one(payload.wavelength))
    if isinstance(payload, Coefficients):
        return kind(one(payload.values))
    if isinstance(payload, SegmentationMap):
        return kind(one(payload.field))
    if isinstance(payload, Catalog):
        return kind(*(_padded(c) for c in (payload.x, payload.y, payload.e1, payload.e2, payload.r)))
    assert isinstance(payload, Scalar)
    return kind(one(payload.value))


def _padded(column: np.ndarray) -> Tensor:
    """(n,) -> (1, 20), filled up as the survey's files are."""
    return torch.from_numpy(np.pad(column, (0, CATALOG_ROWS - len(column)), constant_values=PAD))[None]


@torch.no_grad()
def encode(codec: Any, key: str, payload: Payload) -> np.ndarray:
    """Tokens (n,) int64 of one payload, as the transformer's tables have them."""
    codes = codec.encode(as_theirs(key, payload)).reshape(-1).long().numpy()
    return codes[codes != PAD] + OFFSET if key == "catalog" else codes


@torch.no_grad()
def encode_all(codec: Any, key: str, payloads: Sequence[Payload]) -> list[np.ndarray]:
    """Tokens of each payload; numbers in one batch, objects one at a time, as there is one shape for each."""
    if MODALITIES[key].kind != "scalar":
        return [encode(codec, key, payload) for payload in payloads]
    values = torch.cat([as_theirs(key, payload).value for payload in payloads])
    return list(codec.encode(CLASSES[key](values)).long().numpy()[:, None])


@torch.no_grad()
def decode(codec: Any, key: str, tokens: Tensor, **target: Any) -> np.ndarray:
    """What tokens (B, n) stand for: flux of images and spectra, fields of maps, values of numbers, rows of catalogs."""
    if key == "tok_image_hsc":
        return decode_hsc(codec, tokens, **target)
    if isinstance(codec, ScalarCodec | LogScalarCodec | GridScalarCodec):
        return codec.decode(tokens[:, 0]).value[:, None].numpy()
    if isinstance(codec, CatalogCodec):
        decoded = codec.decode(tokens - OFFSET)
        columns = (decoded.X, decoded.Y, decoded.SHAPE_E1, decoded.SHAPE_E2, decoded.SHAPE_R)
        return torch.stack([column.float() for column in columns], dim=-1).numpy()
    decoded = codec.decode(tokens, **target)
    if isinstance(codec, ScalarFieldCodec):
        return decoded.field.numpy()
    return (decoded.flux if hasattr(decoded, "flux") else decoded.value).numpy()


@torch.no_grad()
def decode_hsc(codec: Any, tokens: Tensor, bands: Sequence[str]) -> np.ndarray:
    """HSC flux by the package's parts: its `decode` misspells the method that gives the last factor."""
    z = codec.quantizer.decode(tokens).unflatten(2, (24, 24))
    slots = codec.decoder(codec.post_quant_proj(z))
    slots = codec.subsample_out(slots, torch.ones(len(tokens), 9, dtype=torch.bool))
    flux = codec.image_padder.backward(codec._reverse_range_compress(slots), list(bands))
    return (flux * HSC_SCALE).numpy()


@torch.no_grad()
def distance(codec: Any, key: str, payload: Payload) -> np.ndarray:
    """How far (n,) each token's pre-quantisation value is from the nearest boundary of its code: of an FSQ level, of
    a sign, or of a cell of a codebook, (compressed) numbers in their unit. What is never near one is infinitely far."""
    given, quantizer = as_theirs(key, payload), codec.quantizer
    if isinstance(codec, ImageCodec | ScalarFieldCodec):
        bounded = quantizer._bound(codec._encode(given).movedim(1, -1))
        return (bounded - bounded.floor() - 0.5).abs().amin(dim=-1)[0].numpy()
    if isinstance(codec, SpectrumCodec):
        latents, _ = codec._encode(given)
        return np.append(np.inf, latents.abs().amin(dim=1)[0].numpy())
    if isinstance(payload, Catalog):
        shapes = zip(list(quantizer.quantizers.values())[2:], (payload.e1, payload.e2, payload.r), strict=True)
        columns = [_from_cells(torch.from_numpy(column), part.codebook) for part, column in shapes]
        never = np.full(payload.n_objects, np.inf)
        return np.stack([never, never, *columns], axis=1).reshape(-1)
    if isinstance(codec, MultiScalarCodec):
        parts = [_from_cells(q.compress(given.value[:, k]), q.codebook) for k, q in enumerate(quantizer.quantizers)]
        return np.concatenate(parts)
    value = quantizer._log_and_apply_min(given.value) if isinstance(codec, LogScalarCodec) else given.value
    return _from_cells(value, quantizer.codebook)


def _from_cells(values: Tensor, codebook: Tensor) -> np.ndarray:
    """Distance (n,) of values (n,) from the nearest edge of a codebook's cells."""
    return (values[:, None] - codebook).abs().amin(dim=1).numpy()
