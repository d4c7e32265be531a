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

PREAMBLE = """
import json, sys
import numpy as np
import torch
from pathlib import Path
from benchmarks.measuring import PeakAnonymous
from benchmarks.xlarge import kept_bytes
from albireo.models.engine import Tokens
from albireo.models.torch_engine import TorchEngine
folder, dtype = Path(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
"""

OPEN = """
with PeakAnonymous() as anonymous:
    engine = TorchEngine.open(folder, dtype=dtype)
print(json.dumps([anonymous.peak, kept_bytes(engine)]))
"""

WITH_DECODER = """
with PeakAnonymous() as anonymous:
    engine = TorchEngine.open(folder, dtype=dtype)
    engine.logits([Tokens({"tok_z": np.array([3])})], ["tok_z"])
print(json.dumps([anonymous.peak, kept_bytes(engine)]))
"""

AT_ONCE = """
from safetensors.torch import load_file
with PeakAnonymous() as anonymous:
    read = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    kept = {name: tensor.to(getattr(torch, dtype)) for name, tensor in read.items()}
print(json.dumps([anonymous.peak, sum(tensor.nbytes for tensor in kept.values())]))
"""


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


def ratio(program: str, folder: Path, dtype: str) -> float:
    """Peak of anonymous memory over the bytes kept, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + program, str(folder), dtype],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peak, kept = json.loads(done.stdout)
    return float(peak / kept)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_opening_holds_little_more_than_the_weights(folder: Path, dtype: str) -> None:
    """Tensor by tensor from the file's pages, also where the type they are kept in is another."""
    assert 0.9 < ratio(OPEN, folder, dtype) <= MOST


def test_so_does_reading_the_decoder_too(folder: Path) -> None:
    """In float32, where computing the logits that ask for it widens no weights."""
    assert 0.9 < ratio(WITH_DECODER, folder, "float32") <= MOST


def test_reading_all_at_once_is_seen(folder: Path) -> None:
    """What the ratio is without that care: float32 and bfloat16 of everything, three times as much."""
    assert ratio(AT_ONCE, folder, "bfloat16") > 2
