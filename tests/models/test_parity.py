"""Against the released package `polymathic-aion`: random weights, saved by its own `save_pretrained`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from aion import modalities as theirs
from aion.codecs.image import ImageCodec
from aion.codecs.scalar import GridScalarCodec, LogScalarCodec, MultiScalarCodec, ScalarCodec
from aion.codecs.spectrum import SpectrumCodec
from aion.model import AION

from albireo.models.engine import Tokens
from albireo.models.torch_engine import TorchEngine
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Coefficients, Convention, Image, Observation, Payload, Scalar, Spectrum

KEYS = ("tok_image", "tok_image_hsc", "tok_spectrum_desi", "tok_spectrum_sdss", "tok_xp_bp", "tok_flux_g", "tok_ebv",
        "tok_z")  # fmt: skip
N = 12
RNG = np.random.default_rng(20261123)


def config(**changes: object) -> dict[str, object]:
    base: dict[str, object] = {
        "domains_in": list(KEYS), "domains_out": ["tok_z", "tok_spectrum_desi", "tok_image"], "dim": 64,
        "encoder_depth": 2, "decoder_depth": 2, "num_heads": 4, "mlp_ratio": 4.0, "qkv_bias": False,
        "proj_bias": False, "mlp_bias": False, "norm_bias": False, "act_layer": "SiLU", "gated_mlp": True,
        "qk_norm": True,
    }  # fmt: skip
    return base | changes


def scaled(module: torch.nn.Module, factor: float) -> torch.nn.Module:
    """Larger weights: at the default initialisation all objects look alike, and agreement would prove nothing."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1 and "grn" not in name:
                parameter.mul_(20 * factor if "token_emb" in name else factor)
            if "grn" in name:
                parameter.normal_(std=0.3)
            if "to_k" in name or ".net.4.net." in name:
                parameter.normal_(std=0.5)
    return module.eval()


def fit(codec: torch.nn.Module, sample: torch.Tensor) -> torch.nn.Module:
    """Fill the reservoir of one of their scalar codecs."""
    codec._quantizer._update_reservoirs(sample)
    return codec.eval()


@pytest.fixture(scope="module")
def codecs() -> dict[type, torch.nn.Module]:
    torch.manual_seed(7)
    g = torch.Generator().manual_seed(1)
    multi = MultiScalarCodec("bp_coefficients", ["arcsinh"], ["sinh"], 1024, 2000, 55)
    return {
        theirs.Image: scaled(ImageCodec([7, 5, 5, 5, 5], hidden_dims=32, num_consecutive=1), 2.0),
        theirs.Spectrum: scaled(
            SpectrumCodec(
                encoder_dims=(8, 16, 16, 32), decoder_dims=(16, 16, 8, 2), latent_channels=32, embedding_dim=10
            ),
            8.0,
        ),
        theirs.GaiaXpBp: fit(multi, torch.randn(2000, 55, generator=g) * 30),
        theirs.LegacySurveyFluxG: fit(
            LogScalarCodec("FLUX_G", 1024, 5000), torch.exp(torch.randn(5000, generator=g) * 2)
        ),
        theirs.LegacySurveyEBV: fit(ScalarCodec("EBV", 1024, 5000), torch.rand(5000, generator=g) * 0.3),
        theirs.Z: GridScalarCodec("Z", 1024).eval(),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, codecs: dict[type, torch.nn.Module]) -> Path:
    path = tmp_path_factory.mktemp("aion-random")
    for modality, codec in codecs.items():
        codec.save_pretrained(path, modality)
    return path


@pytest.fixture(
    scope="module",
    params=[
        pytest.param({}, id="aion"),
        pytest.param({"gated_mlp": False, "act_layer": "GELU", "qk_norm": False, "qkv_bias": True, "proj_bias": True,
                      "mlp_bias": True, "norm_bias": True}, id="plain-with-biases"),
        pytest.param({"dim": 32, "num_heads": 2, "encoder_depth": 3, "decoder_depth": 1, "num_register_tokens": 2},
                     id="registers"),
    ],
)  # fmt: skip
def pair(request: pytest.FixtureRequest, folder: Path) -> tuple[AION, TorchEngine]:
    torch.manual_seed(3)
    model = AION(config(**request.param))
    scaled(model, 2.0)
    model.save_pretrained(folder)
    return model, TorchEngine.open(folder)


def wavelength(key: str) -> np.ndarray:
    if key == "tok_spectrum_desi":
        return np.float32(3600 + 0.8 * np.arange(7781)).astype(np.float64)
    return (10 ** (3.58 + 1e-4 * np.arange(3850))).astype(np.float32).astype(np.float64)


def payload(key: str, i: int) -> Payload:
    """Input number i of a modality, extremes included."""
    row, rng = MODALITIES[key], np.random.default_rng([i, len(key)])
    if row.kind == "image":
        bands = row.bands if i % 3 else row.bands[:2]
        flux = rng.normal(0, 10.0 ** rng.uniform(-2, 3), (len(bands), 96, 96)).astype(np.float32)
        flux *= 63.0 if row.survey == "hsc" else 1.0
        convention = tuple(Convention(row.survey, band, "AB", "model", False) for band in bands)
        return Image(flux, bands, row.pixel_scale or 0, row.unit, 22.5, np.zeros(flux.shape, bool), convention)
    if row.kind == "spectrum":
        grid = wavelength(key)
        flux = (10 ** rng.uniform(-1, 3) * (1 + rng.normal(0, 1, len(grid)))).astype(np.float32)
        ivar = rng.uniform(0, 200, len(grid)).astype(np.float32)
        return Spectrum(grid, flux, ivar, rng.random(len(grid)) < 0.05, row.unit, "heliocentric")
    if row.kind == "coefficients":
        return Coefficients(rng.normal(0, 60, 55).astype(np.float32), row.unit)
    value = {"tok_flux_g": -1.0 if i == 0 else 10.0 ** rng.uniform(-1, 1.5), "tok_ebv": rng.uniform(0, 0.5),
             "tok_z": rng.uniform(-0.1, 1.5)}[key]  # fmt: skip
    return Scalar(float(np.float32(value)), row.unit)


def their_tokens(codecs: dict[type, torch.nn.Module], key: str, given: Payload) -> torch.Tensor:
    """The same object through the package."""
    t = torch.tensor
    with torch.no_grad():
        if isinstance(given, Image):
            kind = theirs.HSCImage if key == "tok_image_hsc" else theirs.LegacySurveyImage
            return codecs[theirs.Image].encode(kind(flux=t(given.flux)[None].clone(), bands=list(given.bands)))
        if isinstance(given, Spectrum):
            kind = theirs.DESISpectrum if key == "tok_spectrum_desi" else theirs.SDSSSpectrum
            return codecs[theirs.Spectrum].encode(
                kind(flux=t(given.flux)[None], ivar=t(given.ivar)[None], mask=t(given.mask)[None],
                     wavelength=t(given.wavelength.astype(np.float32))[None])
            )  # fmt: skip
        if isinstance(given, Coefficients):
            return codecs[theirs.GaiaXpBp].encode(theirs.GaiaXpBp(t(given.values)[None]))
        assert isinstance(given, Scalar)
        kind = {"tok_flux_g": theirs.LegacySurveyFluxG, "tok_ebv": theirs.LegacySurveyEBV, "tok_z": theirs.Z}[key]
        return codecs[kind].encode(kind(t([given.value], dtype=torch.float32)))[:, None]


def observation(i: int, keys: tuple[str, ...]) -> Observation:
    return Observation(f"object-{i}", {key: payload(key, i) for key in keys})


@pytest.mark.parametrize("key", KEYS)
def test_tokens_are_those_of_the_package(
    key: str, folder: Path, pair: tuple[AION, TorchEngine], codecs: dict[type, torch.nn.Module]
) -> None:
    engine, seen = pair[1], set()
    for i in range(N):
        (tokens,) = engine.tokenize([observation(i, (key,))])
        assert isinstance(tokens, Tokens), tokens
        expected = their_tokens(codecs, key, payload(key, i))[0].numpy()
        np.testing.assert_array_equal(tokens.ids[key], expected)
        seen |= set(expected.tolist())
    assert len(seen) >= 8, "the inputs do not exercise the codes"


@pytest.mark.parametrize("keys", [KEYS, KEYS[::-1], ("tok_image",), ("tok_ebv",), ("tok_z", "tok_spectrum_sdss")])
def test_states_and_logits_are_those_of_the_package(keys: tuple[str, ...], pair: tuple[AION, TorchEngine]) -> None:
    model, engine = pair
    tokens = [t for t in engine.tokenize([observation(i, keys) for i in range(4)]) if isinstance(t, Tokens)]
    assert len(tokens) == 4
    ordered = [key for key in MODALITIES if key in keys]
    ids = {key: torch.as_tensor(np.stack([t.ids[key] for t in tokens])) for key in ordered}
    length = sum(v.shape[1] for v in ids.values())
    with torch.no_grad():
        states = model.encode(ids, num_encoder_tokens=length).numpy()[:, -length:]
        logits = model(ids, target_modality=[theirs.LegacySurveyImage, theirs.Z, theirs.DESISpectrum])
    ours = np.stack([e.values for e in engine.embed(tokens, "tokens")])
    assert relative(ours, states) < 1e-4
    pooled = np.stack([e.values for e in engine.embed(tokens, "mean")])
    assert relative(pooled, states.mean(axis=1)) < 1e-4
    found = engine.logits(tokens, ["tok_image", "tok_z", "tok_spectrum_desi"])
    for key, expected in logits.items():
        assert relative(np.stack([row[key] for row in found]), expected.numpy()) < 1e-4


def relative(ours: np.ndarray, expected: np.ndarray) -> float:
    """Largest error over the rms distance of objects from their mean."""
    spread = np.sqrt(((expected - expected.mean(axis=0)) ** 2).mean())
    assert spread > 1e-3, "the objects look alike: the weights prove nothing"
    return float(np.abs(ours - expected).max() / spread)


def test_image_codec_of_the_package_mutates_and_ours_does_not(
    pair: tuple[AION, TorchEngine], codecs: dict[type, torch.nn.Module]
) -> None:
    """METHODS: the released codec divides the caller's HSC tensor in place, so its second answer differs."""
    given = observation(1, ("tok_image_hsc",))
    image = given.data["tok_image_hsc"]
    assert isinstance(image, Image)
    before = image.flux.copy()
    first, second = (pair[1].tokenize([given])[0] for _ in range(2))
    assert isinstance(first, Tokens)
    assert isinstance(second, Tokens)
    np.testing.assert_array_equal(image.flux, before)
    np.testing.assert_array_equal(first.ids["tok_image_hsc"], second.ids["tok_image_hsc"])
    tensor = torch.tensor(image.flux)[None]
    codec = codecs[theirs.Image]
    with torch.no_grad():
        one = codec.encode(theirs.HSCImage(flux=tensor, bands=list(image.bands)))
        two = codec.encode(theirs.HSCImage(flux=tensor, bands=list(image.bands)))
    assert not torch.equal(one, two)
