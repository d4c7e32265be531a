"""Random checkpoints in AION-1's shapes: made and saved by the released package, opened by it, or written without it.

make          a checkpoint folder of the package, made once in a work folder
their_model   the package's transformer of a folder
their_codecs  the package's codecs of a folder, by token key
write_large   a transformer too large to be built in memory, as the package would have saved it
"""

from __future__ import annotations

import json
import shutil
import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from aion.codecs.base import Codec
from aion.codecs.config import MODALITY_CODEC_MAPPING
from aion.codecs.image import ImageCodec
from aion.codecs.scalar import LogScalarCodec
from aion.codecs.spectrum import SpectrumCodec
from aion.model import AION
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor
from torch.overrides import TorchFunctionMode

from albireo.observations.observation import Image, Payload, Scalar, Spectrum
from albireo.observations.sky import simulate
from albireo.tokenizers.checkpoint import CONFIG, WEIGHTS
from albireo.tokenizers.hub import SIZES

IMAGE, DESI, SDSS = "tok_image", "tok_spectrum_desi", "tok_spectrum_sdss"
PHOTOMETRY = tuple(f"tok_flux_{band}" for band in ("g", "r", "i", "z", "w1", "w2", "w3", "w4"))
DOMAINS = (IMAGE, DESI, SDSS, *PHOTOMETRY)

CLASSES: dict[str, Any] = {cls.token_key: cls for cls in MODALITY_CODEC_MAPPING if cls.token_key}
"""Token key -> the package's modality class."""

RESERVOIR = 20_000
SEED = 1


@dataclass(frozen=True)
class Shape:
    """Sizes of a checkpoint: changes to the configuration of the transformer, and of the two networks of codecs."""

    name: str
    transformer: Mapping[str, Any] = field(default_factory=dict)
    image: Mapping[str, Any] = field(default_factory=dict)
    spectrum: Mapping[str, Any] = field(default_factory=dict)


BASE = Shape(
    "aion-base",
    # One block in the decoder: embedding never reads it, and the package holds all of it.
    {**SIZES["aion-base"].config, "decoder_depth": 1},
    {},
    {"encoder_dims": (96, 192, 384, 512), "decoder_dims": (384, 192, 96, 2)},
)
QUICK = Shape(
    "quick",
    {**SIZES["aion-base"].config, "dim": 64, "num_heads": 4, "encoder_depth": 2, "decoder_depth": 1},
    {"hidden_dims": 16, "num_consecutive": 1},
    {"encoder_dims": (8, 8, 16, 16), "decoder_dims": (16, 8, 8, 2), "latent_channels": 16,
     "encoder_depths": (1, 1, 1, 1), "decoder_depths": (1, 1, 1, 1)},
)  # fmt: skip
"""Of the same layout, small enough to try the benchmarks themselves."""


def make(work: Path, shape: Shape) -> Path:
    """The folder of a random checkpoint of this shape in `work`, saved by the package's own `save_pretrained`."""
    folder = work / f"{shape.name}-random"
    if folder.exists():
        return folder
    draft = work / f"{folder.name}.partial"
    shutil.rmtree(draft, ignore_errors=True)
    torch.manual_seed(SEED)
    save_codecs(draft, shape)
    AION({"domains_in": list(DOMAINS), "domains_out": ["tok_z"], **shape.transformer}).save_pretrained(draft)
    draft.rename(folder)
    return folder


def save_codecs(folder: Path, shape: Shape) -> None:
    """Codecs of DOMAINS with drawn weights; their codes differ from object to object."""
    image = ImageCodec(quantizer_levels=[7, 5, 5, 5, 5], **shape.image).eval()
    spectrum = SpectrumCodec(embedding_dim=10, **shape.spectrum).eval()
    sky = list(simulate(6, np.random.default_rng(SEED)))
    _liven(image, image.pre_quant_proj, IMAGE, [o.data[IMAGE] for o in sky])
    _liven(spectrum, spectrum.quant_conv, DESI, [o.data[DESI] for o in sky if DESI in o.data])
    image.save_pretrained(folder, CLASSES[IMAGE])
    spectrum.save_pretrained(folder, CLASSES[DESI])
    generator = torch.Generator().manual_seed(SEED)
    for key in PHOTOMETRY:
        scalar = LogScalarCodec(CLASSES[key].name, 1024, RESERVOIR)
        scalar._quantizer._update_reservoirs(torch.exp(2 + 2.5 * torch.randn(RESERVOIR, generator=generator)))
        scalar.save_pretrained(folder, CLASSES[key])


@torch.no_grad()
def _liven(codec: Any, last: Any, key: str, sample: Iterable[Payload]) -> None:
    """Draw every weight (as initialised some gates are shut), then set the last layer before the quantizer so that
    each latent has mean 0 and deviation 1 over a sample: or all objects would have the same few codes."""
    for name, parameter in codec.named_parameters():
        if parameter.ndim >= 2 and "grn" not in name:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        else:
            parameter.normal_(mean=float(name.endswith("weight")), std=0.2)
    seen: list[Tensor] = []
    with last.register_forward_hook(lambda _, given, out: seen.append(out.movedim(1, -1).flatten(0, -2))):
        for payload in sample:
            codec.encode(as_theirs(key, [payload]))
    latents = torch.cat(seen)
    scale, mean = 1 / latents.std(dim=0), latents.mean(dim=0)
    last.weight.mul_(scale.reshape(-1, *[1] * (last.weight.ndim - 1)))
    last.bias.sub_(mean).mul_(scale)


def their_model(folder: Path, dtype: torch.dtype = torch.float32) -> AION:
    with redirect_stdout(sys.stderr):  # It prints while it loads.
        return AION.from_pretrained(folder).eval().to(dtype)


def their_codecs(folder: Path) -> dict[str, Codec]:
    """Token key -> codec. One codec serves all surveys of its kind, as in the package's own manager.

    The package finds `codecs/<name>/config.json` on a hub only, never in a folder: each codec is opened in its own.
    """
    inherited: Any = PyTorchModelHubMixin.from_pretrained
    classes = {CLASSES[key].name: MODALITY_CODEC_MAPPING[CLASSES[key]] for key in DOMAINS}
    with redirect_stdout(sys.stderr):
        by_name = {name: inherited.__func__(cls, folder / "codecs" / name) for name, cls in classes.items()}
    return {key: by_name[CLASSES[key].name].eval() for key in DOMAINS}


def as_theirs(key: str, payloads: Iterable[Any]) -> Any:
    """Payloads of equal length as one batch of the package's modality class; arrays are copies."""
    given, kind = list(payloads), CLASSES[key]

    def batch(arrays: Iterable[Any], dtype: type = np.float32) -> Tensor:
        return torch.from_numpy(np.stack([np.asarray(array, dtype) for array in arrays]))

    first = given[0]
    if isinstance(first, Image):
        return kind(flux=batch(p.flux for p in given), bands=list(first.bands))
    if isinstance(first, Spectrum):
        return kind(
            flux=batch(p.flux for p in given),
            ivar=batch(p.ivar for p in given),
            mask=batch((p.mask for p in given), bool),
            wavelength=batch(p.wavelength for p in given),
        )
    assert isinstance(first, Scalar)
    return kind(value=batch(p.value for p in given))


# Large ones


class _Countable(TorchFunctionMode):
    """While it builds, the package reads the numbers of a `linspace`, which have to exist for that."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {}) | ({"device": "cpu"} if func is torch.linspace else {})
        return func(*args, **kwargs)


def tensors_of(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that the package's `save_pretrained` writes, by its own model on the meta device.

    A modality embedding that encoder and decoder share is written once, under the decoder's name.
    """
    with torch.device("meta"), _Countable():
        model = AION(dict(config))
    names: dict[int, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        if id(tensor) not in names:
            names[id(tensor)] = name
            shapes[name] = tuple(tensor.shape)
    return shapes


def write_large(folder: Path, config: Mapping[str, Any], progress: Callable[[int], None] = lambda done: None) -> int:
    """Write a transformer of random float32 weights tensor by tensor; returns its size in bytes.

    `progress` is told the bytes written so far.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shapes = tensors_of(config)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    rng = np.random.default_rng(SEED)
    draft = folder / f"{WEIGHTS}.partial"
    with draft.open("wb") as file:
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        file.write(struct.pack("<Q", len(text)) + text)
        done = 0
        for name, shape in shapes.items():
            values = rng.standard_normal(shape, np.float32) * np.float32(0.02)
            file.write((values + 1 if "norm" in name and name.endswith("weight") else values).tobytes())
            done += values.nbytes
            progress(done)
    draft.rename(folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(dict(config), indent=2))
    return end
