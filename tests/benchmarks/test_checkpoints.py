"""Random checkpoints: what is written without the package is what the package writes."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch
from aion.model import AION
from safetensors.torch import load_file

from albireo.models.torch_engine import TorchEngine
from albireo.tokenizers.hub import SIZES
from benchmarks.cases import Options
from benchmarks.checkpoints import BASE, DOMAINS, QUICK, make, save_codecs, tensors_of, their_model, write_large
from benchmarks.xlarge import MOST_RATIO, config_of, measure, write

CONFIG: dict[str, Any] = {"domains_in": list(DOMAINS), "domains_out": ["tok_z", "tok_image"], **QUICK.transformer}


def header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        read: dict[str, Any] = json.loads(file.read(length))
    return read


def test_written_as_the_package_saves(tmp_path: Path) -> None:
    """Same names, types and shapes, what is shared once; both open it, and hold the same numbers."""
    AION(CONFIG).save_pretrained(tmp_path / "theirs")
    size = write_large(tmp_path / "ours", CONFIG)
    theirs, ours = (header(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    theirs.pop("__metadata__")
    assert ours.pop("__metadata__") == {"format": "pt"}
    assert {k: (v["dtype"], v["shape"]) for k, v in ours.items()} == {
        k: (v["dtype"], v["shape"]) for k, v in theirs.items()
    }
    assert size == sum(4 * torch.Size(entry["shape"]).numel() for entry in ours.values())
    assert json.loads((tmp_path / "ours/config.json").read_text()) == CONFIG
    stored = load_file(tmp_path / "ours/model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in stored.values())
    save_codecs(tmp_path / "ours", QUICK)
    name = "encoder.0.attn.qkv.weight"
    assert torch.equal(their_model(tmp_path / "ours").state_dict()[name], stored[name])
    assert torch.equal(TorchEngine.open(tmp_path / "ours").transformer.state_dict()[name], stored[name])


def test_xlarge_has_3_billion_parameters() -> None:
    """Counted on the package's own model without storage."""
    count = sum(torch.Size(shape).numel() for shape in tensors_of(config_of("aion-xlarge")).values())
    assert 2.8e9 < count < 3.4e9


def test_base_is_aion_base() -> None:
    assert BASE.transformer == {**SIZES["aion-base"].config, "decoder_depth": 1}
    assert (BASE.transformer["dim"], BASE.transformer["encoder_depth"], BASE.transformer["num_heads"]) == (768, 12, 12)


def test_made_once(options: Options) -> None:
    before = (options.folder / "model.safetensors").stat().st_mtime_ns
    assert make(options.work, QUICK) == options.folder
    assert (options.folder / "model.safetensors").stat().st_mtime_ns == before


def test_the_large_benchmark_runs(tmp_path: Path) -> None:
    folder = write(tmp_path, "quick")
    assert write(tmp_path, "quick") == folder
    record = measure(folder, "bfloat16", decoder=True)
    assert record["tokens"] == 857
    assert record["kept_bytes_with_decoder"] > record["kept_bytes"] > 100_000
    assert record["peak_bytes"] > record["kept_bytes"]
    assert record["dtype"] == "bfloat16"
    assert MOST_RATIO == 1.15
