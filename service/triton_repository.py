"""Writes a model repository for NVIDIA Triton's Python backend: `python -m albireo.service.triton_repository OUT`.

config  the config.pbtxt of one model
write   the repository of a checkpoint
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from albireo.observations.modalities import MODALITIES
from albireo.service.core import Core
from albireo.service.oip import VERSION, Models, model_config
from albireo.service.oip_models import Encoder, Model, tokenizer_name
from albireo.service.settings import read_settings

MAX_ROWS = 64
"""Rows that Triton's batcher puts together at most."""

QUEUE_MICROSECONDS = 2_000
"""How long it waits for more of them."""

CODE = '''"""One of Albireo's models in a process of Triton's; which one, config.pbtxt says."""

from albireo.service.triton_backend import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def config(model: Model, checkpoint: str, gpu: bool = False) -> str:
    """The config.pbtxt of a model.

    Triton gives every output to a client that asks for none, and so the encoder's has `embedding` only: the others are
    no tensors where the rows differ in their modalities.
    """
    about = model_config(model, MAX_ROWS)
    outputs = [one for one in about["output"] if not isinstance(model, Encoder) or one["name"] == "embedding"]
    lines = [
        f"# {model.platform}; written by python -m albireo.service.triton_repository",
        f"name: {_text(model.name)}",
        'backend: "python"',
        f"max_batch_size: {MAX_ROWS}",
        f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_MICROSECONDS} }}",
        f"instance_group [ {{ kind: {'KIND_GPU' if gpu else 'KIND_CPU'} count: 1 }} ]",
        f'parameters {{ key: "model" value {{ string_value: {_text(checkpoint)} }} }}',
        *(f"input {_tensor(one)}" for one in about["input"]),
        *(f"output {_tensor(one)}" for one in outputs),
    ]
    return "\n".join(lines) + "\n"


def write(out: Path, core: Core, checkpoint: str, names: Iterable[str] | None = None, gpu: bool = False) -> list[str]:
    """Write models of a core under `out`; their names.

    checkpoint  that of the core, as Triton's processes will find it: by name or folder
    names       which ones; default: the encoder, the heads, and the tokenizers of more than single numbers
    """
    models = Models(core)
    scalars = {tokenizer_name(core, key) for key in core.inputs if MODALITIES[key].kind == "scalar"}
    wanted = [name for name in models.names() if name not in scalars] if names is None else list(names)
    for name in wanted:
        folder = out / name / VERSION
        folder.mkdir(parents=True, exist_ok=True)
        (folder.parent / "config.pbtxt").write_text(config(models.get(name), checkpoint, gpu))
        (folder / "model.py").write_text(CODE)
    return wanted


def _tensor(one: dict[str, Any]) -> str:
    optional = " optional: true" if one.get("optional") else ""
    return f"{{ name: {_text(one['name'])} data_type: {one['data_type']} dims: {one['dims']}{optional} }}"


def _text(value: str) -> str:
    return json.dumps(value)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a model repository for NVIDIA Triton.")
    parser.add_argument("out", type=Path, help="folder of the repository")
    parser.add_argument("--model", default="albireo-mini", help="the checkpoint, by name or folder")
    parser.add_argument("--gpu", action="store_true", help="instances on GPUs")
    parser.add_argument("--only", nargs="+", help="names of models, as the service lists them")
    options = parser.parse_args()
    core = Core.local(read_settings().model_copy(update={"model": options.model}))
    for name in write(options.out, core, options.model, options.only, options.gpu):
        print(options.out / name)


if __name__ == "__main__":
    main()
