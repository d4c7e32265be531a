"""Memory while a checkpoint is opened: the weights that are kept, and hardly anything beside them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from aion.codecs.scalar import GridScalarCodec
from aion.modalities import Z
from aion.model import AION

MOST = 1.15
"""Anonymous memory while loading over the bytes of the weights kept."""

PROGRAM = """
import json, os, sys
import numpy as np
import torch
from pathlib import Path
from safetensors.torch import load_file
from benchmarks.measuring import PeakAnonymous
from benchmarks.xlarge import kept_bytes
from albireo.models.engine import Tokens
from albireo.models.torch_engine import TorchEngine
folder = Path(sys.argv[1])

def opened(dtype):
    with PeakAnonymous() as anonymous:
        engine = TorchEngine.open(folder, dtype=dtype)
    return anonymous.peak / kept_bytes(engine)

def with_decoder(dtype):
    with PeakAnonymous() as anonymous:
        engine = TorchEngine.open(folder, dtype=dtype)
        engine.logits([Tokens({"tok_z": np.array([3])})], ["tok_z"])
    return anonymous.peak / kept_bytes(engine)

def at_once(dtype):
    with PeakAnonymous() as anonymous:
        read = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
        kept = {name: tensor.to(getattr(torch, dtype)) for name, tensor in read.items()}
    return anonymous.peak / sum(tensor.nbytes for tensor in kept.values())

torch.set_num_threads(1)
for name in sys.argv[2:]:
    if os.fork() == 0:
        what, dtype = name.split()
        print(json.dumps({name: globals()[what](dtype)}), flush=True)
        os._exit(0)
    _, status = os.wait()
    assert status == 0, name
"""

CASES = ("opened float32", "opened bfloat16", "with_decoder float32", "at_once bfloat16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 47 million parameters, as the package saves it: the encoder is 150 MB of float32."""
    path = tmp_path_factory.mktemp("memory") / "checkpoint"
    torch.manual_seed(1)
    biases = dict.fromkeys(("qkv_bias", "proj_bias", "mlp_bias", "norm_bias"), False)
    depths = {"dim": 512, "encoder_depth": 12, "decoder_depth": 2, "num_heads": 8}
    block = {"act_layer": "SiLU", "gated_mlp": True, "qk_norm": True}
    AION({"domains_in": ["tok_z"], "domains_out": ["tok_z"], **depths, **block, **biases}).save_pretrained(path)
    GridScalarCodec("Z", 1024).save_pretrained(path, Z)
    return path


@pytest.fixture(scope="module")
def ratios(folder: Path) -> dict[str, float]:
    """Peak of anonymous memory over the bytes kept, each in a process of its own; all are forked from one."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), *CASES],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = {}
    for line in done.stdout.splitlines():
        found |= json.loads(line)
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_opening_holds_little_more_than_the_weights(ratios: dict[str, float], dtype: str) -> None:
    """Tensor by tensor from the file's pages, also where the type they are kept in is another."""
    assert 0.9 < ratios[f"opened {dtype}"] <= MOST


def test_so_does_reading_the_decoder_too(ratios: dict[str, float]) -> None:
    """In float32, where computing the logits that ask for it widens no weights."""
    assert 0.9 < ratios["with_decoder float32"] <= MOST


def test_reading_all_at_once_is_seen(ratios: dict[str, float]) -> None:
    """What the ratio is without that care: float32 and bfloat16 of everything, three times as much."""
    assert ratios["at_once bfloat16"] > 2
