"""The transformer before its first step: tables that begin as smooth functions of what their codes stand for.

untrained      the model
code_features  what each code stands for, as numbers
is_number      whether the tokens of a modality stand for numbers
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from albireo.models import mini
from albireo.models.transformer import Transformer, TransformerConfig
from albireo.observations.modalities import MODALITIES
from albireo.tokenizers.bank import TokenizerBank
from albireo.tokenizers.base import Tokenizer
from albireo.tokenizers.checkpoint import TokenSpec
from albireo.tokenizers.image import ImageTokenizer
from albireo.tokenizers.spectrum import SpectrumTokenizer

HARMONICS = 16
"""Waves, over a code's place in its codebook or over its flux, in its row of the token table at the beginning."""

WAVES = 0.03
"""Size of those waves beside the number itself, in the table of tokens. Waves as large as the number hide colours from
heads: with them 300 labels gave a photometric redshift to 0.027, with a tenth of them to 0.023 (docs/log.md)."""

GAIA = 2.9
"""ln of the electrons per second that Gaia counts of a source of one nanomaggy, about."""


def untrained(bank: TokenizerBank, seed: int) -> Transformer:
    """The transformer before its first step.

    Token tables begin as random smooth functions of what their codes stand for (a flux, a number's place in its
    codebook, an image's latent values, a spectrum's sign bits), as large as the position embeddings: with AION-1's 0.02
    the places drown the values, and some thousand steps only learn how often each code occurs. So do the rows of the
    logits. Fluxes and magnitudes of all surveys are one function of the flux: a colour is a difference of two rows.
    """
    specs = {key: TokenSpec(tokenizer.n_tokens, tokenizer.vocab_size) for key, tokenizer in bank.items()}
    model = Transformer(
        TransformerConfig.from_json(mini.TRANSFORMER),
        {key: specs[key] for key in MODALITIES if key in mini.INPUTS},
        {key: specs[key] for key in MODALITIES if key in mini.OUTPUTS},
    )
    generator = torch.Generator().manual_seed(seed)
    model.initialise({key: tokenizer.grid for key, tokenizer in bank.items()}, generator)
    width = model.config.dim
    shared = {size: torch.randn(1 + 2 * HARMONICS, width, generator=generator) for size in (1.0, 0.04)}
    with torch.no_grad():
        for table, rows, size, waves in (
            (model.token_emb, model.codes, 1.0, WAVES),
            (model.to_logits, model.target_codes, 0.04, 1.0),
        ):
            for key in rows.sizes:
                features, is_flux = code_features(bank[key])
                features = torch.cat([features[:, :1], waves * features[:, 1:]], dim=1) if is_number(key) else features
                own = torch.randn(features.shape[1], width, generator=generator)
                values = features @ (shared[size] if is_flux else own)
                table[rows[key]] = values * (size / values.std())
        model.mod_emb[: len(model.codes.sizes)].normal_(std=0.5, generator=generator)
    return model


def _log_flux(tokenizer: Tokenizer[Any]) -> Tensor | None:
    """ln of the nanomaggies that each code stands for (vocab_size,); None if codes are no fluxes."""
    row = tokenizer.row
    if row.kind != "scalar" or not (row.unit in ("nanomaggy", "electron / s") or row.key.startswith("tok_mag_")):
        return None
    values = tokenizer.decode(torch.arange(tokenizer.vocab_size)[:, None])[:, 0]
    if row.unit == "mag":
        return (22.5 - values) / 2.5 * math.log(10.0)
    return values.clamp(min=1e-3).log() - (GAIA if row.unit == "electron / s" else 0.0)


def code_features(tokenizer: Tokenizer[Any]) -> tuple[Tensor, bool]:
    """What each code stands for, as numbers (vocab_size, F), and whether that is a flux.

    Of a number: itself, standardised (fluxes by their logarithm, others by their place in the codebook as a normal
    distribution has it), and waves of it: of a flux from 20 to 0.3 long, so that they tell 0.01 mag apart.
    """
    codes = torch.arange(tokenizer.vocab_size)
    if isinstance(tokenizer, ImageTokenizer | SpectrumTokenizer):
        return tokenizer.quantizer.decode(codes[None])[0].T, False
    log_flux = _log_flux(tokenizer)
    if log_flux is None:
        place = (codes + 0.5) / len(codes)
        number, phase = torch.special.ndtri(place), math.pi * place[:, None] * torch.arange(1, HARMONICS + 1)
        waves = torch.cat([phase.cos(), phase.sin()], dim=1) / torch.arange(1, HARMONICS + 1).repeat(2)
    else:
        number = (log_flux - 3.0) / 1.5
        phase = log_flux[:, None] * torch.logspace(math.log10(0.3), math.log10(20.0), HARMONICS)
        waves = torch.cat([phase.cos(), phase.sin()], dim=1) / HARMONICS**0.5
    return torch.cat([number[:, None], waves], dim=1), log_flux is not None


def is_number(key: str) -> bool:
    """Whether tokens of a modality stand for numbers, whose codes are in order."""
    return MODALITIES[key].kind in ("scalar", "coefficients")
