"""Segmentation maps: the released codec's tokens and reconstructions, on weights that use its codes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from aion.codecs.scalar_field import ScalarFieldCodec
from aion.modalities import LegacySurveySegmentationMap
from numpy.typing import NDArray

from albireo.observations.errors import BadCheckpoint, BadInput
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import SegmentationMap
from albireo.observations.segmentation import segmentation_map_of
from albireo.tokenizers.bank import build, open_codec
from albireo.tokenizers.segmentation import SegmentationTokenizer

ROW = MODALITIES["tok_segmap"]
N = 50
SHAPES = {
    "aion": {"encoder_output_dim": 32, "embedding_dim": 4, "res_hidden_dims": 8},
    "other": {"encoder_output_dim": 24, "decoder_input_dim": 16, "embedding_dim": 4, "res_hidden_dims": 8,
              "num_downsamples": 2, "num_res_layers": 1, "output_activation_extension": 0.1},
}  # fmt: skip


def field(i: int) -> NDArray[np.float32]:
    """Map number i, extremes included: background, one class everywhere, noise, or discs of objects."""
    if i < 2:
        return np.full((96, 96), float(i), np.float32)
    rng = np.random.default_rng(i)
    if i % 3 == 0:
        return rng.random((96, 96)).astype(np.float32)
    out = np.zeros((96, 96), np.float32)
    y, x = np.mgrid[:96, :96]
    for _ in range(int(rng.integers(1, 15))):
        at, radius = rng.uniform(0, 96, 2), rng.uniform(2, 25)
        out[np.hypot(y - at[0], x - at[1]) < radius] = rng.integers(1, 6) / 5
    return out


def given(i: int) -> SegmentationMap:
    return SegmentationMap(field(i), 0.262)


@pytest.fixture(scope="module")
def codec_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[ScalarFieldCodec, Path]]:
    """Makes one of the released codec's class, saved by its own `save_pretrained`."""

    def make(**config: object) -> tuple[ScalarFieldCodec, Path]:
        torch.manual_seed(5)
        codec = ScalarFieldCodec(**config)
        with torch.no_grad():
            for name, tensor in codec.state_dict().items():
                if name.endswith(("running_mean", "net.2.bias")):
                    tensor.normal_(std=0.3)
                if name.endswith(("running_var", "net.2.weight")):
                    tensor.uniform_(0.5, 2.0)
                if name.startswith("ema."):
                    tensor.fill_(7)
            for module, factor in ((codec.encoder, 1.6), (codec.decoder, 1.6)):
                for parameter in module.parameters():
                    parameter.mul_(factor)
            # Latents of zero mean and some width over the inputs, so that most codes are used.
            h = codec.eval().encoder(torch.stack([torch.tensor(field(i)) for i in range(N)])[:, None])
            latent = codec.encode_proj(h)
            mean, std = latent.mean(dim=(0, 2, 3)), latent.std(dim=(0, 2, 3))
            codec.encode_proj.weight.mul_((1.5 / std)[:, None, None, None])
            codec.encode_proj.bias.copy_((codec.encode_proj.bias - mean) * 1.5 / std)
        folder = tmp_path_factory.mktemp("codec")
        codec.save_pretrained(folder, LegacySurveySegmentationMap)
        return codec.eval(), folder / "codecs" / ROW.codec

    return make


def opened(folder: Path) -> SegmentationTokenizer:
    config = json.loads((folder / "config.json").read_text())
    tokenizer = open_codec(ROW, config, folder / "model.safetensors", torch.device("cpu")).eval()
    assert isinstance(tokenizer, SegmentationTokenizer)
    return tokenizer


@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_and_reconstructions_are_those_of_the_released_codec(
    shape: str, codec_file: Callable[..., tuple[ScalarFieldCodec, Path]]
) -> None:
    codec, folder = codec_file(**SHAPES[shape])
    tokenizer = opened(folder)
    assert tokenizer.grid[0] * tokenizer.grid[1] == tokenizer.n_tokens
    assert tokenizer.vocab_size == codec.quantizer.codebook_size == 1000
    with torch.inference_mode():
        theirs = torch.cat(
            [codec.encode(LegacySurveySegmentationMap(torch.tensor(field(i))[None])) for i in range(N)]
        ).long()
        ours = tokenizer.encode([given(i) for i in range(N)])
        assert torch.equal(ours, theirs)
        assert len(theirs.unique()) >= 500, "codes that nothing uses are not compared"
        tokens = theirs[:10]
        reconstructed = codec.decode(tokens).field
    torch.testing.assert_close(tokenizer.decode(tokens), reconstructed, rtol=0, atol=1e-5)
    assert float(reconstructed.std()) > 0.05


def test_the_moving_average_in_a_file_has_no_influence(
    codec_file: Callable[..., tuple[ScalarFieldCodec, Path]],
) -> None:
    _, plain = codec_file(**SHAPES["aion"])
    _, averaged = codec_file(**SHAPES["aion"], ema_model_weights=True)
    maps = [given(i) for i in range(5)]
    assert torch.equal(opened(plain).encode(maps), opened(averaged).encode(maps))
    assert all(not name.startswith("ema") for name in opened(averaged).state_dict())


def tokenizer_of(**changes: object) -> SegmentationTokenizer:
    tokenizer = build(ROW, {**SHAPES["aion"], **changes}).eval()
    assert isinstance(tokenizer, SegmentationTokenizer)
    return tokenizer


def test_tokens_do_not_depend_on_the_batch_and_maps_are_not_modified() -> None:
    torch.manual_seed(0)
    tokenizer = tokenizer_of()
    maps = [given(i) for i in range(6)]
    before = [one.field.copy() for one in maps]
    together = tokenizer.encode(maps)
    assert together.shape == (6, 144)
    assert torch.equal(together, torch.cat([tokenizer.encode([one]) for one in maps]))
    for one, copy in zip(maps, before, strict=True):
        np.testing.assert_array_equal(one.field, copy)
    with pytest.raises(ValueError, match="not \\(B, 144\\)"):
        tokenizer.decode(together[:, :100])


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        (field(2)[:, :80], "shape_mismatch"),
        (field(2) - 0.1, "value_out_of_range"),
        (field(2) * 5, "value_out_of_range"),
        (np.where(field(2) > 0, np.nan, 0).astype(np.float32), "not_finite"),
    ],
)
def test_a_map_without_meaning_is_refused(changed: NDArray[np.float32], code: str) -> None:
    with pytest.raises(BadInput) as caught:
        tokenizer_of().check(dataclasses.replace(given(2), field=changed))
    assert caught.value.code == code


@pytest.mark.parametrize("changes", [{"variational": True}, {"embedding_dim": 5}, {"embedding_dim": None}])
def test_configurations_that_the_released_codec_cannot_run_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(BadCheckpoint):
        tokenizer_of(**changes)


def test_larger_maps_are_cut_where_the_released_codec_cuts_them(
    codec_file: Callable[..., tuple[ScalarFieldCodec, Path]],
) -> None:
    codec, folder = codec_file(**SHAPES["aion"])
    large = np.zeros((161, 130), np.float32)
    large[30:110, 20:90] = field(7)[:80, :70]
    cut, flags = segmentation_map_of(large, 0.262)
    assert flags == ("cropped",)
    assert cut.kept_fraction == pytest.approx(96 * 96 / (161 * 130))
    with torch.inference_mode():
        theirs = codec.encode(LegacySurveySegmentationMap(torch.tensor(large)[None])).long()
    assert torch.equal(opened(folder).encode([cut]), theirs)
    for wrong, scale, code in (
        (large.astype(np.int16), 0.262, "value_out_of_range"),
        (large[:90], 0.262, "image_too_small"),
        (large, 0.168, "pixel_scale"),
        (large[None], 0.262, "shape_mismatch"),
    ):
        with pytest.raises(BadInput) as caught:
            segmentation_map_of(wrong, scale)
        assert caught.value.code == code
