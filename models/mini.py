"""albireo-mini: the sizes of our own small checkpoint, in AION-1's layout with fewer channels and tokens."""

from __future__ import annotations

from typing import Any

from albireo.models.transformer import WITHIN
from albireo.observations.modalities import MODALITIES
from albireo.tokenizers.preprocessing import ALBIREO_1
from albireo.tokenizers.scalar import LOG_KEYS

FINE, COARSE = 512, 256
"""Codes of a number: its quantiles must not be coarser than the errors of the measurement."""

CODES: dict[str, int] = {
    **{f"tok_flux_{band}": FINE for band in ("g", "r", "i", "z", "w1", "w2", "g_gaia", "bp_gaia", "rp_gaia")},
    **{f"flux_{band}_sdss": FINE for band in "ugriz"},
    **{f"flux_{band}_2mass": FINE for band in "jhk"},
    **{f"tok_mag_{band}": FINE for band in "grizy"},
    **{f"tok_a_{band}": COARSE for band in "grizy"},
    **{f"tok_shape{which}": COARSE for which in ("_r", "_e1", "_e2", "11", "12", "22")},
    "tok_ebv": COARSE,
    "tok_parallax": COARSE,
    "tok_xp_bp": FINE,
    "tok_xp_rp": FINE,
    "tok_z": 1024,
}
"""Token key of a number or of coefficients -> size of its codebook."""

Z_MAX = 5.0
"""End of the grid of redshifts. AION-1's ends at 1, where most quasars begin."""

INPUTS = tuple(
    key
    for key in MODALITIES
    if key in ("tok_image", "tok_image_hsc", "tok_spectrum_desi", "tok_spectrum_sdss")
    or (key in CODES and key != "tok_z")
)
"""What albireo-mini reads. Redshift, ra and dec are no inputs: they cannot leak into an embedding."""

OUTPUTS = (
    "tok_image",
    "tok_spectrum_desi",
    "tok_spectrum_sdss",
    "tok_xp_bp",
    "tok_xp_rp",
    *(f"tok_flux_{band}" for band in ("g", "r", "i", "z", "w1", "w2")),
    *(f"flux_{band}_sdss" for band in "ugriz"),
    *(f"flux_{band}_2mass" for band in "jhk"),
    *(f"tok_mag_{band}" for band in "grizy"),
    *(f"tok_flux_{band}_gaia" for band in ("g", "bp", "rp")),
    "tok_z",
)
"""What its decoder learns to predict."""

TRANSFORMER: dict[str, Any] = {
    "domains_in": list(INPUTS),
    "domains_out": list(OUTPUTS),
    "dim": 192,
    "encoder_depth": 7,
    "decoder_depth": 2,
    "num_heads": 6,
    "mlp_ratio": 4.0,
    "qkv_bias": False,
    "proj_bias": False,
    "mlp_bias": False,
    "norm_bias": False,
    "act_layer": "SiLU",
    "gated_mlp": True,
    "qk_norm": True,
    "decoder_attention": WITHIN,
    "training_domain": "simulated sky of Albireo, Gaia XP stars, SDSS and deep-field photometry",
}

IMAGE: dict[str, Any] = {
    "quantizer_levels": [8, 5, 5, 5],
    "hidden_dims": 128,
    "multisurvey_projection_dims": 16,
    "n_compressions": 4,
    "num_consecutive": 1,
    "embedding_dim": 4,
    "range_compression_factor": 0.01,
    "mult_factor": 10.0,
}

SPECTRUM: dict[str, Any] = {
    "encoder_depths": [1, 2, 2, 1],
    "encoder_dims": [32, 64, 128, 128],
    "decoder_depths": [1, 1, 1, 1],
    "decoder_dims": [128, 64, 32, 2],
    "lambda_min": 3500.0,
    "resolution": 0.8,
    "num_pixels": 8704,
    "latent_channels": 128,
    "embedding_dim": 10,
    "clip_ivar": None,
    "clip_flux": None,
    "input_scaling": 0.2,
    "normalization_range": [-1, 5],
    "codebook_size": 1024,
    "dim": 10,
    "preprocessing": ALBIREO_1,
}


def codec_config(key: str) -> dict[str, Any]:
    """The configuration of the codec of a modality."""
    row = MODALITIES[key]
    if row.kind == "image":
        return IMAGE
    if row.kind == "spectrum":
        return SPECTRUM
    size = CODES[key]
    if key == "tok_z":
        return {"modality": row.codec, "codebook_size": size, "range": [0.0, Z_MAX]}
    if row.kind == "coefficients":
        return {"modality": row.codec, "codebook_size": size, "reservoir_size": size, "num_quantizers": row.shape[0],
                "compression_fns": ["arcsinh"], "relative_to_first": True}  # fmt: skip
    scalar = {"modality": row.codec, "codebook_size": size, "reservoir_size": size}
    return scalar | {"min_log_value": -6.0} if key in LOG_KEYS or key.endswith(("_sdss", "_2mass")) else scalar
