"""Catalogs: the released codec's codes, moved to where the encoder's table has them, and nothing of its padding."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from aion.codecs.catalog import CatalogCodec
from aion.codecs.manager import CodecManager
from aion.fourm.modality_info import MODALITY_INFO
from aion.modalities import LegacySurveyCatalog
from aion.model import AION

from albireo.observations.catalogs import COLUMNS, PADDING, catalog_of, distances, in_order
from albireo.observations.errors import BadInput
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Catalog
from albireo.tokenizers.bank import open_codec
from albireo.tokenizers.catalog import RESERVED, CatalogTokenizer
from albireo.tokenizers.checkpoint import CATALOG_TOKENS, Checkpoint

ROW = MODALITIES["catalog"]
N = 300
SAVED = 20
"""Objects that the released codec's arrays have room for."""


def catalog(i: int, n: int | None = None) -> Catalog:
    """Catalog number i of 1 to 10 objects, extremes included, sorted."""
    rng = np.random.default_rng(i)
    n = n or int(rng.integers(1, 11))
    x, y = rng.integers(0, 96, (2, n)).astype(float)
    e1, e2 = rng.uniform(-1, 1, (2, n))
    r = 10 ** rng.uniform(-2, 1.5, n) * (rng.random(n) > 0.2)
    if i == 0:
        x[0], y[0], e1[0], e2[0], r[0] = 0, 95, -1, 1, 9998
    order = np.argsort(distances(x, y), kind="stable")
    made, flags = catalog_of([column[order].astype(np.float32) for column in (x, y, e1, e2, r)])
    assert not flags
    return made


def padded(given: Catalog) -> LegacySurveyCatalog:
    """The same for the released codec: whole numbers as int64, rows filled up with 9999."""

    def fill(values: np.ndarray) -> torch.Tensor:
        out = np.full(SAVED, PADDING, values.dtype)
        out[: len(values)] = values
        return torch.tensor(out)[None]

    return LegacySurveyCatalog(*(fill(v) for v in (given.x, given.y, given.e1, given.e2, given.r)))


@pytest.fixture(scope="module")
def codec() -> CatalogCodec:
    codec = CatalogCodec()
    g = torch.Generator().manual_seed(2)
    samples = {"SHAPE_E1": torch.rand(5000, generator=g) * 2 - 1, "SHAPE_E2": torch.rand(5000, generator=g) * 2 - 1,
               "SHAPE_R": 10 ** (torch.rand(5000, generator=g) * 3.5 - 2)}  # fmt: skip
    for name, sample in samples.items():
        quantizer = codec.quantizer.quantizers[name]
        quantizer._reservoir = sample.repeat(20)
        quantizer._generate_index_to_val()
    return codec.eval()


@pytest.fixture(scope="module")
def folder(codec: CatalogCodec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("aion-random")
    codec.save_pretrained(path, LegacySurveyCatalog)
    torch.manual_seed(0)
    config = {"domains_in": ["catalog", "tok_z"], "domains_out": ["tok_z"], "dim": 8, "encoder_depth": 1,
              "decoder_depth": 1, "num_heads": 1, "norm_bias": False, "gated_mlp": True,
              "act_layer": "SiLU"}  # fmt: skip
    AION(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> CatalogTokenizer:
    codec_folder = folder / "codecs" / ROW.codec
    config = json.loads((codec_folder / "config.json").read_text())
    tokenizer = open_codec(ROW, config, codec_folder / "model.safetensors", torch.device("cpu")).eval()
    assert isinstance(tokenizer, CatalogTokenizer)
    return tokenizer


def test_tokens_are_the_released_codes_plus_the_reserved_rows(codec: CatalogCodec, tokenizer: CatalogTokenizer) -> None:
    used: set[int] = set()
    for i in range(N):
        given = catalog(i)
        codes = codec.encode(padded(given))[0]
        codes = codes[codes != PADDING]
        used |= set(codes.tolist())
        assert len(codes) == 5 * given.n_objects
        assert torch.equal(tokenizer.encode([given]), codes[None] + RESERVED)
    assert len(used) >= codec.quantizer.codebook_size / 2, "codes that nothing uses are not compared"


def test_the_vocabulary_is_that_of_the_released_table(codec: CatalogCodec, tokenizer: CatalogTokenizer) -> None:
    info = MODALITY_INFO["catalog"]
    assert (info["vocab_offset"], info["codec_pad_id"]) == (RESERVED, PADDING)
    assert tokenizer.vocab_size == info["vocab_size"] == RESERVED + codec.quantizer.codebook_size == 3468
    assert tokenizer.n_tokens == info["max_tokens"] == CATALOG_TOKENS
    assert tokenizer.quantizer.offsets == codec.quantizer.offsets == [0, 96, 192, 1216, 2240]


def test_numbers_come_back_as_the_released_codec_gives_them(codec: CatalogCodec, tokenizer: CatalogTokenizer) -> None:
    for i in range(20):
        tokens = tokenizer.encode([catalog(i)])
        ours = tokenizer.decode(tokens)
        theirs = codec.decode(tokens - RESERVED)
        for k, name in enumerate(COLUMNS):
            torch.testing.assert_close(ours[..., k], getattr(theirs, name).float(), rtol=0, atol=0)
    np.testing.assert_array_equal(tokenizer.decode(tokenizer.encode([catalog(5)]))[0, :, 0], catalog(5).x)


def test_decoded_codes_are_encoded_to_themselves(tokenizer: CatalogTokenizer) -> None:
    rng = np.random.default_rng(1)
    codes = torch.tensor(rng.integers(0, [96, 96, 1024, 1024, 1024], (2000, 5)) + tokenizer.quantizer.offsets)
    assert torch.equal(tokenizer.quantizer.encode(tokenizer.quantizer.decode(codes)), codes)


def test_a_token_of_another_column_stands_for_no_number(tokenizer: CatalogTokenizer) -> None:
    """The released codec gives -1 there, which is also an ellipticity."""
    tokens = tokenizer.encode([catalog(3, 4)])
    for position, wrong in ((0, 3), (6, RESERVED), (8, RESERVED + 192)):
        changed = tokens.clone()
        changed[0, position] = wrong
        values = tokenizer.decode(changed).reshape(-1)
        assert torch.isnan(values[position])
        assert int(torch.isnan(values).sum()) == 1


def test_a_sequence_is_as_long_as_its_catalog(tokenizer: CatalogTokenizer) -> None:
    for n in (1, 7, 10):
        assert tokenizer.encode([catalog(4, n)]).shape == (1, 5 * n)
    with pytest.raises(BadInput) as caught:
        tokenizer.encode([catalog(4, 11)])
    assert caught.value.code == "too_many_tokens"
    assert "nearest=10" in str(caught.value)
    same = [catalog(4, 3), catalog(5, 3)]
    assert torch.equal(tokenizer.encode(same), torch.cat([tokenizer.encode([one]) for one in same]))
    for length in (0, 4, 55):
        with pytest.raises(ValueError, match="tokens have shape"):
            tokenizer.decode(torch.full((1, length), RESERVED))


def test_the_ten_nearest_are_kept_when_asked_for(tokenizer: CatalogTokenizer) -> None:
    many = catalog(8, 17)
    columns = [np.asarray(column, np.float64) for column in (many.x, many.y, many.e1, many.e2, many.r)]
    kept, flags = catalog_of(columns, nearest=10)
    assert flags == ("catalog_shortened",)
    np.testing.assert_array_equal(kept.x, many.x[:10])
    assert tokenizer.encode([kept]).shape == (1, 50)
    assert catalog_of(columns, nearest=17)[1] == ()


def test_objects_out_of_order_are_sorted_by_readers_and_refused_here(tokenizer: CatalogTokenizer) -> None:
    given = catalog(11, 8)
    columns = [np.asarray(column, np.float64) for column in (given.x, given.y, given.e1, given.e2, given.r)]
    sorted_again, flags = catalog_of([column[::-1] for column in columns])
    assert flags == ("catalog_sorted",)
    away = distances(sorted_again.x, sorted_again.y)
    assert (np.diff(away) >= 0).all()
    backwards = Catalog(*(column[::-1].copy() for column in (given.x, given.y, given.e1, given.e2, given.r)))
    with pytest.raises(BadInput) as caught:
        tokenizer.check(backwards)
    assert caught.value.code == "not_sorted"
    # Both were 10 pixels away, to the sky's precision; rounding to whole pixels put them in another order.
    assert in_order(distances(np.array([58, 57]), np.array([47, 47])))
    assert not in_order(distances(np.array([58, 56]), np.array([47, 47])))


@pytest.mark.parametrize(
    ("column", "value", "code"),
    [
        ("x", 96, "value_out_of_range"),
        ("y", -1, "value_out_of_range"),
        ("x", PADDING, "value_out_of_range"),
        ("e1", 1.5, "value_out_of_range"),
        ("r", -0.1, "value_out_of_range"),
        ("r", PADDING, "value_out_of_range"),
        ("e2", np.nan, "not_finite"),
    ],
)
def test_a_catalog_without_meaning_is_refused(
    tokenizer: CatalogTokenizer, column: str, value: float, code: str
) -> None:
    given = catalog(12, 3)
    changed = getattr(given, column).copy()
    changed[-1] = value
    with pytest.raises(BadInput) as caught:
        tokenizer.check(dataclasses.replace(given, **{column: changed}))
    assert caught.value.code == code


def test_ragged_fractional_and_empty_catalogs_are_refused(tokenizer: CatalogTokenizer) -> None:
    given = catalog(13, 3)
    for changes, code in (
        ({"r": given.r[:2]}, "shape_mismatch"),
        ({"x": given.x + 0.5}, "value_out_of_range"),
        ({name: getattr(given, name)[:0] for name in ("x", "y", "e1", "e2", "r")}, "value_missing"),
    ):
        with pytest.raises(BadInput) as caught:
            tokenizer.check(dataclasses.replace(given, **changes))
        assert caught.value.code == code


def test_a_checkpoint_of_the_released_package_reads_fifty_tokens_of_a_table_of_512(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    assert checkpoint.shapes["encoder_embeddings.catalog.pos_emb"][1] == 512
    assert (checkpoint.inputs["catalog"].n_tokens, checkpoint.inputs["catalog"].vocab_size) == (50, 3468)
    assert "catalog" not in checkpoint.outputs


def test_what_the_released_package_does_with_its_own_padded_codes(codec: CatalogCodec, folder: Path) -> None:
    """Why offset and padding are ours to apply: the package feeds 9999 to a table of 3468 rows."""
    model = AION.from_pretrained(folder).eval()
    codes = GivenCodec(codec).encode(padded(catalog(3)))
    assert (codes["catalog"] == PADDING).any()
    with pytest.raises(IndexError), torch.inference_mode():
        model.encode(codes)


class GivenCodec(CodecManager):
    """The package's manager with a codec that is at hand, instead of one that it would download."""

    def __init__(self, codec: CatalogCodec) -> None:
        super().__init__(device="cpu")
        self._codec = codec

    def _load_codec(self, modality: object) -> CatalogCodec:
        return self._codec
