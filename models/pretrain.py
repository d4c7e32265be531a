"""Makes a checkpoint from nothing but a seed: simulate, train the codecs, tokenize, pre-train, write the folder.

    python -m albireo.models.pretrain --state FOLDER --out FOLDER/albireo-mini

Every stage resumes from `--state` after a stop, and skips what is done. Run it under `nice -n 19`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from albireo.models import mini
from albireo.models.codec_training import (
    Schedule,
    image_arrays,
    image_loss,
    spectrum_arrays,
    spectrum_loss,
    train_codec,
)
from albireo.models.cpu import fast_bf16
from albireo.models.masking import Budget, Split, split
from albireo.models.stages import Progress, load_state, save_state
from albireo.models.transformer import WITHIN, Packed, Queries, Transformer, TransformerConfig
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Image, Observation, Scalar, Spectrum
from albireo.observations.sky import simulate
from albireo.tokenizers.bank import TokenizerBank, as_row, build
from albireo.tokenizers.base import Tokenizer
from albireo.tokenizers.checkpoint import CONFIG, WEIGHTS, TokenSpec
from albireo.tokenizers.image import ImageTokenizer
from albireo.tokenizers.quantizers import LinearQuantizer
from albireo.tokenizers.scalar import CoefficientsTokenizer, ScalarTokenizer
from albireo.tokenizers.spectrum import SpectrumTokenizer
from albireo.tokenizers.weights import save

REDSHIFT_WEIGHT = 4.0

MIN_CODES = 32
"""Fewest codes that a trained codec uses on 64 objects; a collapsed one uses a handful."""

SHARD = 500
"""Objects per shard: the unit of simulation and of resuming it."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights."""

    seed: int = 20261123
    codec_objects: int = 3000
    objects: int = 6_000
    image: Schedule = Schedule(steps=1500, batch=32, rate=2e-3)
    spectrum: Schedule = Schedule(steps=800, batch=32, rate=1.5e-3)
    transformer: Schedule = Schedule(steps=1100, batch=32, rate=2e-3)
    budget: Budget = Budget(inputs=80, targets=20)


def shard(recipe: Recipe, index: int) -> Iterator[Observation]:
    """Observations of one shard: a function of the seed and the index alone."""
    return simulate(SHARD, np.random.default_rng([recipe.seed, index]), start=index * SHARD)


def train_codecs(recipe: Recipe, state: Path) -> TokenizerBank:
    """Auto-encoders and scalar codebooks, fitted to the first `codec_objects` objects."""
    done = state / "codecs.done"
    torch.manual_seed(recipe.seed)
    image = build(MODALITIES["tok_image"], mini.IMAGE)
    spectrum = build(MODALITIES["tok_spectrum_desi"], mini.SPECTRUM)
    assert isinstance(image, ImageTokenizer)
    assert isinstance(spectrum, SpectrumTokenizer)
    scalars = {
        key: build(MODALITIES[key], mini.codec_config(key))
        for key in (*mini.INPUTS, "tok_z")
        if MODALITIES[key].kind == "scalar"
    }
    if not done.exists():
        images, spectra, values = _codec_sample(recipe)
        for key, tokenizer in scalars.items():
            assert isinstance(tokenizer, ScalarTokenizer | CoefficientsTokenizer)
            if key != "tok_z":
                assert not isinstance(tokenizer.quantizer, LinearQuantizer)
                tokenizer.quantizer.fit(torch.tensor(values[key]))
                save_file({k: v.numpy() for k, v in tokenizer.state_dict().items()}, state / f"{key}.safetensors")
        train_codec("image", image, image_loss, image_arrays(image, images), recipe.image, state, recipe.seed)
        arrays = [spectrum_arrays(spectrum, spectra)]
        train_codec("spectrum", spectrum, spectrum_loss, arrays, recipe.spectrum, state, recipe.seed)
        legacy = [one for one in images if one.bands == MODALITIES["tok_image"].bands]
        for kind, tokens in (("image", image.encode(legacy[:64])), ("spectrum", spectrum.encode(spectra[:64]))):
            used = len(tokens[:, 1:].unique())
            if used < MIN_CODES:
                raise RuntimeError(f"the {kind} codec collapsed: {used} codes in use; lower its rate")
        done.touch()
    for name, module in (("image", image), ("spectrum", spectrum)):
        load_state(state / f"{name}.pt.safetensors", module, torch.optim.AdamW(module.parameters()))
    for key, tokenizer in scalars.items():
        if key != "tok_z":
            tensors = load_file(state / f"{key}.safetensors")
            tokenizer.load_state_dict({name: torch.as_tensor(value) for name, value in tensors.items()})
    halved(image)
    halved(spectrum)
    return TokenizerBank(
        scalars
        | {key: as_row(image, MODALITIES[key]) for key in ("tok_image", "tok_image_hsc")}
        | {key: as_row(spectrum, MODALITIES[key]) for key in ("tok_spectrum_desi", "tok_spectrum_sdss")}
    )


def halved(module: nn.Module) -> None:
    """Round the weights to float16, as the file holds them, so that training sees the numbers that will be shipped."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.half().float())


def _codec_sample(recipe: Recipe) -> tuple[list[Image], list[Spectrum], dict[str, list[float]]]:
    images: list[Image] = []
    spectra: list[Spectrum] = []
    values: dict[str, list[float]] = {key: [] for key in mini.INPUTS}
    progress = Progress("simulate for codecs", recipe.codec_objects, 0, Path(os.devnull))
    for index in range(recipe.codec_objects // SHARD):
        for observation in shard(recipe, index):
            for key, payload in observation.data.items():
                if isinstance(payload, Image):
                    images.append(payload)
                elif isinstance(payload, Spectrum):
                    spectra.append(payload)
                elif isinstance(payload, Scalar) and key in values:
                    values[key].append(payload.value)
        progress.update((index + 1) * SHARD)
    return images, spectra, values


def tokenize(recipe: Recipe, bank: TokenizerBank, state: Path) -> list[Path]:
    """Shards of tokens: one safetensors file each, key -> (objects that have it), key.ids -> their tokens."""
    folder = state / "tokens"
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{index:04d}.safetensors" for index in range(recipe.objects // SHARD)]
    progress = Progress("tokenize", len(paths), sum(path.exists() for path in paths), Path(os.devnull))
    for index, path in enumerate(paths):
        if path.exists():
            continue
        rows: dict[str, list[int]] = {}
        ids: dict[str, list[NDArray[np.int64]]] = {}
        for row, observation in enumerate(shard(recipe, index)):
            data = dict(observation.data)
            data["tok_z"] = Scalar(float(observation.metadata["redshift"]), "")
            for key, payload in data.items():
                if key in bank:
                    rows.setdefault(key, []).append(row)
                    ids.setdefault(key, []).append(bank[key].encode([payload])[0].numpy())
        tensors = {key: np.array(rows[key], np.int32) for key in rows}
        tensors |= {f"{key}.ids": np.stack(ids[key]).astype(np.int32) for key in ids}
        part = path.with_suffix(".part")
        save_file(tensors, part)
        os.replace(part, path)
        progress.update(sum(done.exists() for done in paths))
    return paths


def load_tokens(paths: Sequence[Path]) -> list[dict[str, NDArray[np.int32]]]:
    """Tokens of every object, by key."""
    objects: list[dict[str, NDArray[np.int32]]] = []
    for path in paths:
        tensors = load_file(path)
        batch: list[dict[str, NDArray[np.int32]]] = [{} for _ in range(SHARD)]
        for key in tensors:
            if not key.endswith(".ids"):
                for row, ids in zip(tensors[key], tensors[f"{key}.ids"], strict=True):
                    batch[row][key] = ids
        objects += batch
    return objects


def batch_loss(
    model: Transformer, objects: Sequence[Mapping[str, NDArray[np.int32]]], splits: Sequence[Split]
) -> Tensor:
    """Cross entropy, averaged over the tokens of a modality and then over modalities, of a batch.

    Redshift counts REDSHIFT_WEIGHT times: it is the one target that every modality has a part of.
    """
    pairs = list(zip(objects, splits, strict=True))
    shown = [(key, ids[key][at], at) for ids, one in pairs for key, at in one.shown.items()]
    asked = [(key, ids[key][at], at) for ids, one in pairs for key, at in one.asked.items()]
    packed = Packed(
        _rows([codes + model.codes.first[key] for key, codes, _ in shown]),
        _rows([at + model.places.first[key] for key, _, at in shown]),
        tuple(sum(map(len, one.shown.values())) for one in splits),
    )
    queries = Queries(
        _rows([at + model.target_places.first[key] for key, _, at in asked]),
        tuple(sum(map(len, one.asked.values())) for one in splits),
        tuple(len(at) for _, _, at in asked),
    )
    states = model.decode(model.encode(packed), packed.lengths, queries, WITHIN).split(queries.lengths_per_modality)
    losses, weights = [], []
    for key in model.target_codes.sizes:
        of_key = [i for i, (name, _, _) in enumerate(asked) if name == key]
        if of_key:
            wanted = _rows([asked[i][1] for i in of_key])
            losses.append(F.cross_entropy(model.logits(key, torch.cat([states[i] for i in of_key])).float(), wanted))
            weights.append(REDSHIFT_WEIGHT if key == "tok_z" else 1.0)
    return (torch.stack(losses) * torch.tensor(weights)).sum() / sum(weights)


def _rows(parts: Sequence[NDArray[np.integer]]) -> Tensor:
    return torch.as_tensor(np.concatenate(parts).astype(np.int64))


def untrained(bank: TokenizerBank, seed: int) -> Transformer:
    """The transformer before its first step.

    Token tables begin as random smooth functions of what their codes stand for (a scalar's place in its codebook, an
    image's latent values, a spectrum's sign bits), as large as the position embeddings: with AION-1's 0.02 the places
    drown the values, and some thousand steps only learn how often each code occurs.
    """
    specs = {key: TokenSpec(tokenizer.n_tokens, tokenizer.vocab_size) for key, tokenizer in bank.items()}
    model = Transformer(
        TransformerConfig.from_json(mini.TRANSFORMER),
        {key: specs[key] for key in MODALITIES if key in mini.INPUTS},
        {key: specs[key] for key in MODALITIES if key in mini.OUTPUTS},
    )
    generator = torch.Generator().manual_seed(seed)
    model.initialise({key: tokenizer.grid for key, tokenizer in bank.items()}, generator)
    with torch.no_grad():
        for key in model.codes.sizes:
            features = _code_features(bank[key])
            table = features @ torch.randn(features.shape[1], model.config.dim, generator=generator)
            model.token_emb[model.codes[key]] = table / table.std()
        model.mod_emb[: len(model.codes.sizes)].normal_(std=0.5, generator=generator)
    return model


def _code_features(tokenizer: Tokenizer[Any]) -> Tensor:
    """What each code stands for, as numbers (vocab_size, F)."""
    codes = torch.arange(tokenizer.vocab_size)
    if isinstance(tokenizer, ImageTokenizer | SpectrumTokenizer):
        return tokenizer.quantizer.decode(codes[None])[0].T
    place = codes / (len(codes) - 1)
    return torch.stack([torch.cos(math.pi * k * place) / k for k in range(1, 9)], dim=1)


def pretrain(recipe: Recipe, bank: TokenizerBank, paths: Sequence[Path], state: Path) -> Transformer:
    """Masked modelling of the token shards; the last shard validates."""
    objects = load_tokens(paths)
    train, held = objects[:-SHARD], objects[-SHARD:]
    model = untrained(bank, recipe.seed)
    schedule = recipe.transformer
    decayed = [p for n, p in model.named_parameters() if p.ndim == 2 and "emb" not in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "emb" not in n)]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=schedule.rate, betas=(0.9, 0.95))
    path = state / "transformer.pt.safetensors"
    step = load_state(path, model, optimiser)
    progress = Progress("pretrain", schedule.steps, step, state / "transformer.csv")
    while step < schedule.steps:
        rng = np.random.default_rng([recipe.seed, 1, step])
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate * schedule.factor(step)
        batch = [train[i] for i in rng.integers(0, len(train), schedule.batch)]
        loss = _loss(model, batch, recipe.budget, rng)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        extra = {}
        if step % 250 == 0 or step == schedule.steps:
            with torch.no_grad():
                fixed = np.random.default_rng(recipe.seed)
                parts = [held[i : i + schedule.batch] for i in range(0, len(held), schedule.batch)]
                extra["validation"] = float(np.mean([_loss(model, p, recipe.budget, fixed).item() for p in parts]))
            save_state(path, model, optimiser, step)
        progress.update(step, loss=loss.item(), **extra)
    return model


def _loss(
    model: Transformer, batch: Sequence[Mapping[str, NDArray[np.int32]]], budget: Budget, rng: np.random.Generator
) -> Tensor:
    inputs, outputs = list(model.codes.sizes), list(model.target_codes.sizes)
    drawn = budget.draw(rng)
    splits = [split(ids, inputs, outputs, drawn, rng) for ids in batch]
    # Master weights stay in float32: pure bf16 loses small updates.
    with torch.autocast("cpu", torch.bfloat16, enabled=fast_bf16()):
        return batch_loss(model, batch, splits)


def write(bank: TokenizerBank, model: Transformer, out: Path) -> None:
    """The checkpoint folder, in AION-1's layout: weights in float16, positions and codebooks in float32."""
    _write_part(out, mini.TRANSFORMER, model.published(), {name for name in model.published() if "pos_emb" in name})
    for key, tokenizer in bank.items():
        if key in mini.INPUTS or key in mini.OUTPUTS:
            exact = {name for name, _ in tokenizer.named_buffers()}
            folder = out / "codecs" / MODALITIES[key].codec
            _write_part(folder, mini.codec_config(key), tokenizer.state_dict(), exact)


def _write_part(folder: Path, config: Mapping[str, object], tensors: Mapping[str, Tensor], exact: set[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    save({name: value if name in exact else value.half() for name, value in tensors.items()}, folder / WEIGHTS)


def main() -> None:
    """Command line: see the module's first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True, help="folder of resumable state, outside the checkout")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="of the sky and of the weights")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.state.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(seed=args.seed)
    bank = train_codecs(recipe, args.state)
    model = pretrain(recipe, bank, tokenize(recipe, bank, args.state), args.state)
    write(bank, model, args.out)
    print(f"wrote {args.out}; look at it with: albireo validate FILES --model {args.out}")


if __name__ == "__main__":
    main()
