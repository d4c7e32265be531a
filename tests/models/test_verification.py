"""Folders without a manifest: their tensors against their configuration, and finite."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from albireo.models.verification import check
from albireo.tokenizers.checkpoint import MINI, Checkpoint

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MINI, tmp_path / "mini"))


def wrong(folder: Path) -> dict[str, str]:
    return {path: problem for path, problem in check(Checkpoint(folder)) if problem is not None}


def change(path: Path, edit: Callable[[Tensors], object]) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def test_the_shipped_checkpoint_is_sound() -> None:
    every = dict(check(Checkpoint(MINI)))
    assert set(every.values()) == {None}
    assert {"model.safetensors", "codecs/image/model.safetensors", "codecs/EBV/model.safetensors"} <= set(every)
    assert len(every) == 1 + len({Checkpoint(MINI).codec_folder(key) for key in Checkpoint(MINI).inputs})


def test_tensors_that_are_missing_or_of_another_shape(folder: Path) -> None:
    change(folder / "model.safetensors", lambda tensors: tensors.pop("encoder.0.attn.qkv.weight"))
    change(folder / "codecs/EBV/model.safetensors", lambda t: t.update(extra=torch.zeros(3)))
    assert wrong(folder) == {
        "model.safetensors": "1 tensors are missing, unknown or of another shape: encoder.0.attn.qkv.weight",
        "codecs/EBV/model.safetensors": "1 tensors are missing, unknown or of another shape: extra",
    }


def test_a_configuration_of_another_model(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"encoder_depth": 8}))
    assert "encoder.7." in wrong(folder)["model.safetensors"]
    (folder / "config.json").write_text(json.dumps(config | {"num_heads": 0}))
    assert "no transformer" in wrong(folder)["model.safetensors"]


def test_numbers_that_are_not_finite(folder: Path) -> None:
    change(folder / "model.safetensors", lambda t: t["decoder.0.mlp.fc1.weight"].view(-1)[5:6].fill_(float("nan")))
    codec = folder / "codecs/spectrum/model.safetensors"
    change(codec, lambda t: max(t.values(), key=torch.Tensor.numel).view(-1)[:1].fill_(float("inf")))
    found = wrong(folder)
    assert set(found) == {"model.safetensors", "codecs/spectrum/model.safetensors"}
    assert found["model.safetensors"] == "1 tensors are not finite: decoder.0.mlp.fc1.weight"


def test_a_file_that_was_cut(folder: Path) -> None:
    path = folder / "codecs/image/model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert set(wrong(folder)) == {"codecs/image/model.safetensors"}
