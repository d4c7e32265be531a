"""Segmentation maps and catalogs of any length through the whole encoder, beside the released package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from aion.codecs.catalog import CatalogCodec
from aion.codecs.scalar_field import ScalarFieldCodec
from aion.modalities import LegacySurveyCatalog, LegacySurveySegmentationMap
from aion.model import AION

from albireo.models.engine import Tokens
from albireo.models.torch_engine import TorchEngine
from albireo.observations.catalogs import catalog_of
from albireo.observations.errors import AlbireoError
from albireo.observations.observation import Observation, SegmentationMap

CONFIG = {
    "domains_in": ["tok_segmap", "catalog"], "domains_out": ["tok_segmap"], "dim": 32, "encoder_depth": 2,
    "decoder_depth": 1, "num_heads": 4, "mlp_ratio": 4.0, "qkv_bias": False, "proj_bias": False, "mlp_bias": False,
    "norm_bias": False, "act_layer": "SiLU", "gated_mlp": True, "qk_norm": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[AION, TorchEngine]:
    folder: Path = tmp_path_factory.mktemp("aion-random")
    torch.manual_seed(4)
    maps = ScalarFieldCodec(encoder_output_dim=32, embedding_dim=4, res_hidden_dims=8)
    with torch.no_grad():
        # At the default initialisation all objects look alike, and agreement would prove nothing.
        maps.encode_proj.weight.mul_(40)
    maps.save_pretrained(folder, LegacySurveySegmentationMap)
    catalogs = CatalogCodec()
    for name in ("SHAPE_E1", "SHAPE_E2", "SHAPE_R"):
        catalogs.quantizer.quantizers[name]._reservoir = torch.rand(100_000)
        catalogs.quantizer.quantizers[name]._generate_index_to_val()
    catalogs.save_pretrained(folder, LegacySurveyCatalog)
    model = AION(CONFIG)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(100 if "token_emb" in name else 4)
    model.save_pretrained(folder)
    return model.eval(), TorchEngine.open(folder)


def observation(n: int) -> Observation:
    """A map and a catalog of n objects, or a map alone if n is 0."""
    rng = np.random.default_rng(n)
    field = (rng.integers(0, 6, (12, 12)) / 5).repeat(8, 0).repeat(8, 1).astype(np.float32)
    data = {"tok_segmap": SegmentationMap(field, 0.262)}
    if n:
        columns = [*rng.integers(0, 96, (2, n)).astype(float), *rng.uniform(0, 1, (3, n))]
        data["catalog"] = catalog_of(columns)[0]  # type: ignore[assignment]
    return Observation(str(n), data)


def tokens_of(engine: TorchEngine, lengths: tuple[int, ...]) -> list[Tokens]:
    found = engine.tokenize([observation(n) for n in lengths])
    failed = [tokens for tokens in found if isinstance(tokens, AlbireoError)]
    assert not failed, failed
    return [tokens for tokens in found if isinstance(tokens, Tokens)]


def test_states_of_catalogs_of_any_length_are_those_of_the_released_package(pair: tuple[AION, TorchEngine]) -> None:
    model, engine = pair
    given = tokens_of(engine, (1, 4, 10, 0))
    assert [tokens.n_tokens for tokens in given] == [149, 164, 194, 144]
    together = engine.embed(given, "tokens")
    means, errors = [], []
    for tokens, ours in zip(given, together, strict=True):
        ids = {key: torch.tensor(values)[None] for key, values in tokens.ids.items()}
        with torch.inference_mode():
            states = model.encode(ids, num_encoder_tokens=tokens.n_tokens)[0].numpy()
        # Theirs are in the order of the dictionary, which is the table's here.
        errors.append(np.sqrt(((ours.values - states) ** 2).sum(axis=1)).max())
        means.append(states.mean(axis=0))
    spread = np.sqrt(((means - np.mean(means, axis=0)) ** 2).sum(axis=1).mean())
    assert max(errors) < 1e-4 * spread
    unit = np.stack(means) / np.linalg.norm(means, axis=1, keepdims=True)
    cosine = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    assert cosine.mean() < 0.9, "objects that look alike prove nothing"


def test_a_catalog_that_is_too_long_fails_alone(pair: tuple[AION, TorchEngine]) -> None:
    _, engine = pair
    good, bad = engine.tokenize([observation(10), observation(11)])
    assert isinstance(good, Tokens)
    assert isinstance(bad, AlbireoError)
    assert bad.code == "too_many_tokens"
