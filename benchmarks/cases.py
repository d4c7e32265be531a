"""The cases: the same work for Albireo and for the released package, each side opened only when it is wanted.

Encoder cases embed objects whose tokens are at hand: ours by `TorchEngine.embed` with packing and pooling, the
package by `AION.encode` and the mean over tokens. The README of the package encodes a batch whose objects have all
the same modalities; so a mixed stream, used as the README says, is one call per object, and second, by hand, one call
per batch of up to 8 objects with the same modalities. Tokenizer cases give payloads; ours go one at a time by design.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from albireo.models.engine import Tokens
from albireo.models.torch_engine import DTYPES, TorchEngine
from albireo.observations.observation import Payload
from albireo.observations.sky import simulate
from albireo.tokenizers.bank import TokenizerBank
from albireo.tokenizers.checkpoint import Checkpoint
from benchmarks.checkpoints import DESI, IMAGE, PHOTOMETRY, as_theirs, their_codecs, their_model
from benchmarks.cost import BlockGemm, flop, passes_of, traffic
from benchmarks.measuring import bandwidth

OURS = "ours"
GROUP = 8
"""Objects that are put together by hand for the package."""

STREAM_KINDS = (PHOTOMETRY, (*PHOTOMETRY, IMAGE), (*PHOTOMETRY, IMAGE, DESI))
ENCODER = {
    "image": (IMAGE,),
    "spectrum": (DESI,),
    "photometry": PHOTOMETRY,
    "everything": (IMAGE, DESI, *PHOTOMETRY),
}
TOKENIZER = {"image-tokenizer": IMAGE, "spectrum-tokenizer": DESI}

Call = Callable[[int], object]
"""One run of a side, given the number of the round."""


@dataclass(frozen=True)
class Options:
    """How cases are run.

    folder  the checkpoint
    dtype   what our transformer is kept in; what our tokenizers compute in where they are the case
    rivals  what the package's transformer is kept and computed in
    batch   objects of a call, where the case has no number of its own
    stream  objects of the mixed stream
    files   files of a round, end to end
    work    where files are written
    """

    folder: Path
    dtype: str = "float32"
    rivals: tuple[str, ...] = ("float32",)
    batch: int = 1
    stream: int = 24
    files: int = 14
    work: Path = Path()


@dataclass
class Case:
    """One comparison.

    objects   that one run of a side handles
    sides     name -> opens the side: reads what it needs and gives what is timed
    before    what is made ready before a round, given its number
    between   what is measured after each round, in the same run
    facts     what else is known when all is measured, given the median seconds of our side
    """

    objects: int
    sides: Mapping[str, Callable[[], Call]]
    before: Call = lambda number: None
    between: Callable[[], object] = lambda: None
    facts: Callable[[float], dict[str, Any]] = lambda seconds: {}


def short(dtype: str) -> str:
    return {"float32": "fp32", "bfloat16": "bf16"}[dtype]


# Encoder


def stream(count: int, seed: int = 0) -> list[tuple[str, ...]]:
    """Modalities of the objects of a mixed stream: a third photometry, a third with an image, a third everything."""
    return [STREAM_KINDS[i % len(STREAM_KINDS)] for i in np.random.default_rng(seed).permutation(count)]


def draw_tokens(folder: Path, objects: Sequence[tuple[str, ...]], seed: int = 0) -> list[Tokens]:
    """Random tokens of objects with these modalities; the time does not depend on which."""
    inputs, rng = Checkpoint(folder).inputs, np.random.default_rng(seed)
    return [
        Tokens({key: rng.integers(0, inputs[key].vocab_size, inputs[key].n_tokens) for key in keys}) for keys in objects
    ]


def encoder_case(name: str, options: Options) -> Case:
    """One of ENCODER, or "mixed"."""
    mixed = name == "mixed"
    tokens = draw_tokens(options.folder, stream(options.stream) if mixed else [ENCODER[name]] * options.batch)
    engine = cache(lambda: TorchEngine.open(options.folder, dtype=options.dtype))
    passes = cache(lambda: passes_of(engine(), tokens))
    gemm = cache(lambda: BlockGemm(engine(), passes()))

    def ours() -> Call:
        opened = engine()
        return lambda number: opened.embed(tokens)

    def theirs(dtype: str, size: int) -> Callable[[], Call]:
        batches = [_batch(group) for group in _alike(tokens, size)]

        def open_side() -> Call:
            model = their_model(options.folder, DTYPES[dtype])
            return lambda number: [_encode(model, batch) for batch in batches]

        return open_side

    sides = {OURS: ours}
    for dtype in options.rivals:
        name_of = f"package {short(dtype)}"
        if mixed:
            sides |= {f"{name_of}, one by one": theirs(dtype, 1), f"{name_of}, grouped": theirs(dtype, GROUP)}
        else:
            sides[name_of] = theirs(dtype, options.batch)

    def known(seconds: float) -> dict[str, Any]:
        config, numerics = engine().transformer.config, engine().numerics
        work, rate = flop(config, passes()), float(np.median(gemm().rates))
        reached = work / seconds / 1e9
        widths = DTYPES[numerics.dtype].itemsize, DTYPES[numerics.compute].itemsize
        return {
            "dtype": options.dtype,
            "compute": numerics.compute,
            "tokens": sum(one.n_tokens for one in tokens),
            "flop": work,
            "bytes": traffic(config, passes(), *widths),
            "gflops": reached,
            "gemm_gflops": rate,
            "gemm_share": reached / rate,
            "memory_gb_per_second": bandwidth(),
        }

    return Case(len(tokens), sides, between=lambda: gemm().measure(), facts=known)


def _alike(tokens: Sequence[Tokens], size: int) -> Iterable[list[Tokens]]:
    """Batches of up to `size` objects with the same modalities, in the order of the first of each."""
    by_kind: dict[frozenset[str], list[Tokens]] = {}
    for one in tokens:
        by_kind.setdefault(frozenset(one.ids), []).append(one)
    for alike in by_kind.values():
        left = iter(alike)
        while batch := list(islice(left, size)):
            yield batch


def _batch(tokens: Sequence[Tokens]) -> dict[str, Tensor]:
    return {key: torch.from_numpy(np.stack([one.ids[key] for one in tokens])) for key in tokens[0].ids}


@torch.inference_mode()
def _encode(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean embedding (B, D) by the package; left at its default it would keep 256 tokens and drop the others."""
    count = sum(ids.shape[1] for ids in batch.values())
    mean: Tensor = model.encode(dict(batch), num_encoder_tokens=count).mean(dim=1)
    return mean


# Tokenizers


def tokenizer_case(name: str, options: Options) -> Case:
    """One of TOKENIZER, on the simulated sky; in bfloat16 it is our reduced mode beside the package's float32."""
    key = TOKENIZER[name]
    sky = simulate(8 * options.batch + 8, np.random.default_rng(2))
    payloads: list[Payload] = [o.data[key] for o in sky if key in o.data][: options.batch]
    answers: dict[str, Tensor] = {}

    def ours() -> Call:
        bank = TokenizerBank.open(Checkpoint(options.folder), dtype=DTYPES[options.dtype])
        return lambda number: answers.update(ours=bank[key].encode(payloads))

    def theirs() -> Call:
        codec = their_codecs(options.folder)[key]

        @torch.inference_mode()
        def run(number: int) -> None:
            # From the same arrays as ours, each time: the image codec writes into the tensor that it is given.
            answers["theirs"] = codec.encode(as_theirs(key, payloads))

        return run

    def known(seconds: float) -> dict[str, Any]:
        same = (answers["ours"] == answers["theirs"]).double().mean().item()
        codes = len(answers["ours"].unique())
        return {"dtype": options.dtype, "compute": options.dtype, "identical_tokens": same, "codes": codes}

    return Case(options.batch, {OURS: ours, "package fp32": theirs}, facts=known)
