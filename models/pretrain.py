r"""Makes a checkpoint from observations in shards: train the codecs, tokenize, pre-train, write the folder.

    albireo simulate SKY --objects 14000 --seed 20261126 --shard-size 1000 --workers 2
    albireo simulate PHOTOMETRY --photometry --objects 50000 --seed 20261129 --shard-size 5000 --workers 2
    python -m albireo.models.spectrum_pairs PAIRS --objects 8000 --workers 2
    python -m benchmarks.real_sky REAL
    python -m albireo.models.pretrain --state STATE --out OUT --pairs PAIRS --data SKY=0.4 --data PHOTOMETRY=0.2 \
      --data REAL/...=0.4

`--data FOLDER=SHARE` may be repeated: each folder holds shards (`observations/shards.py`), and SHARE is its part of the
steps. Every stage resumes from `--state` after a stop, and skips what is done. Run it under `nice -n 19`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
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
    spectrum_loss,
    train_codec,
)
from albireo.models.cpu import fast_bf16
from albireo.models.first_weights import code_features, is_number, untrained
from albireo.models.masking import Budget, Split, split
from albireo.models.muon import Muon
from albireo.models.shard_tokens import Data, Object, load_tokens, read, tokenize
from albireo.models.spectrum_pairs import load
from albireo.models.stages import Progress, load_state, save_state
from albireo.models.transformer import WITHIN, Packed, Queries, Rows, Transformer
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Coefficients, Image, Scalar
from albireo.tokenizers.bank import TokenizerBank, as_row, build, open_codec
from albireo.tokenizers.checkpoint import CONFIG, WEIGHTS
from albireo.tokenizers.image import ImageTokenizer
from albireo.tokenizers.quantizers import LinearQuantizer
from albireo.tokenizers.scalar import CoefficientsTokenizer, ScalarTokenizer
from albireo.tokenizers.spectrum import SpectrumTokenizer
from albireo.tokenizers.weights import save

REDSHIFT_WEIGHT = 8.0

READ = 1.0
"""Weight of what `Readers` say."""
READ_KEY = "read"

HARDENED = 0.6
"""From this part of its way on a sign quantizer's latents all pass as signs (see codec_training.spectrum_loss)."""

MIN_CODES = 32
"""Fewest codes that a trained codec uses on 64 objects; a collapsed one uses a handful."""

BLUR = 1 / 256
"""Standard deviation of what is asked for of a number, as a share of its codebook: neighbouring codes mean about the
same, and with thousands of objects a code by itself is too rare to be learnt."""

HELD = 0.04
"""Share of each folder's objects, its last ones, that validate."""

DECAY = 0.3
"""Weight decay of matrices. With 0.05 the first block soon wrote 30 times as much as it read (docs/log.md), and what
tokens say of themselves was lost in it."""


@dataclass(frozen=True)
class Recipe:
    """Everything but the data that decides the weights."""

    seed: int = 20261126
    codec_objects: int = 6000
    image: Schedule = Schedule(steps=1500, batch=32, rate=2e-3)
    spectrum: Schedule = Schedule(steps=1500, batch=32, rate=1.5e-3)
    image_again: Schedule = Schedule(steps=200, batch=32, rate=1e-3)
    spectrum_again: Schedule = Schedule(steps=900, batch=32, rate=1e-3)
    transformer: Schedule = Schedule(steps=4_000, batch=32, rate=3e-3, warm_up=200)
    budget: Budget = Budget()


# ---------------------------------------------------------------------- codecs


def train_codecs(
    recipe: Recipe, data: Sequence[Data], pairs: Sequence[Path], state: Path, before: Path | None = None
) -> TokenizerBank:
    """Codebooks and the image codec, fitted to the first `codec_objects` objects of every folder, those that validate
    left out, and the spectrum codec, fitted to the shards `pairs`.

    The auto-encoders go on from those of the checkpoint `before`, by the shorter schedules, where they are built alike.
    """
    done = state / "codecs.done"
    torch.manual_seed(recipe.seed)
    (image, image_again), (spectrum, spectrum_again) = (
        _auto_encoder(key, before) for key in ("tok_image", "tok_spectrum_desi")
    )
    assert isinstance(image, ImageTokenizer)
    assert isinstance(spectrum, SpectrumTokenizer)
    numbers = {key: build(MODALITIES[key], mini.codec_config(key)) for key in (*mini.INPUTS, "tok_z") if is_number(key)}
    if not done.exists():
        images, values = _codec_sample(recipe, data)
        for key, tokenizer in numbers.items():
            assert isinstance(tokenizer, ScalarTokenizer | CoefficientsTokenizer)
            sample = np.array(values[key], np.float32) if key in values else None
            if isinstance(tokenizer, CoefficientsTokenizer):
                assert sample is not None
                tokenizer.fit(sample)
            elif not isinstance(tokenizer.quantizer, LinearQuantizer):
                tokenizer.quantizer.fit(torch.as_tensor(sample))
            save_file({k: v.numpy() for k, v in tokenizer.state_dict().items()}, state / f"{key}.safetensors")
        schedule = recipe.image_again if image_again else recipe.image
        train_codec("image", image, image_loss, image_arrays(image, images), schedule, state, recipe.seed)
        schedule, begun = (recipe.spectrum_again, HARDENED) if spectrum_again else (recipe.spectrum, 0.0)
        arrays = load(pairs)
        train_codec("spectrum", spectrum, spectrum_loss, arrays, schedule, state, recipe.seed, begun)
        legacy = [one for one in images if one.bands == MODALITIES["tok_image"].bands]
        with torch.no_grad():
            codes = {"image": image.encode(legacy[:64]), "spectrum": spectrum.quantizer.encode(
                spectrum.latents(arrays[0][:64].float()))}  # fmt: skip
        for kind, tokens in codes.items():
            used = len(tokens.unique())
            if used < MIN_CODES:
                raise RuntimeError(f"the {kind} codec collapsed: {used} codes in use; lower its rate")
        done.touch()
    for name, module in (("image", image), ("spectrum", spectrum)):
        load_state(state / f"{name}.pt.safetensors", module, torch.optim.AdamW(module.parameters()))
    for key, tokenizer in numbers.items():
        tensors = load_file(state / f"{key}.safetensors")
        tokenizer.load_state_dict({name: torch.as_tensor(value) for name, value in tensors.items()})
    halved(image)
    halved(spectrum)
    return TokenizerBank(
        numbers
        | {key: as_row(image, MODALITIES[key]) for key in ("tok_image", "tok_image_hsc")}
        | {key: as_row(spectrum, MODALITIES[key]) for key in ("tok_spectrum_desi", "tok_spectrum_sdss")}
    )


def _auto_encoder(key: str, before: Path | None) -> tuple[Any, bool]:
    """The codec to be trained, and whether it has been before."""
    config = mini.codec_config(key)
    if before is not None:
        folder = before / "codecs" / MODALITIES[key].codec
        if json.loads((folder / CONFIG).read_text()) == config:
            tokenizer = open_codec(MODALITIES[key], config, folder / WEIGHTS, torch.device("cpu"))
            tokenizer.read_rest()
            return tokenizer.train().requires_grad_(True), True
    return build(MODALITIES[key], config), False


def halved(module: nn.Module) -> None:
    """Round the weights to float16, as the file holds them, so that training sees the numbers that will be shipped."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.half().float())


def _codec_sample(recipe: Recipe, data: Sequence[Data]) -> tuple[list[Image], dict[str, list[Any]]]:
    images: list[Image] = []
    values: dict[str, list[Any]] = {key: [] for key in mini.INPUTS}
    for source in data:
        count = 0
        for path in source.shards[: math.floor((1 - HELD) * len(source.shards)) or 1]:
            for observation in read(path):
                count += 1
                for key, payload in observation.data.items():
                    if isinstance(payload, Image):
                        images.append(payload)
                    elif isinstance(payload, Scalar) and key in values:
                        values[key].append(payload.value)
                    elif isinstance(payload, Coefficients) and key in values:
                        values[key].append(payload.values)
            if count >= recipe.codec_objects:
                break
    return images, values


# ---------------------------------------------------------------------- the transformer


class Readers(nn.Module):
    """Linear maps by which an object's numbers, shown or not, can be read off the mean of its states.

    That mean is the embedding that is searched and that small heads read. Masked modelling by itself asks nothing of
    it: it tells which tokens were shown before it tells what the object is (docs/log.md). Not a part of the checkpoint.

    numbers  key -> what each code stands for (V,)
    sizes    key -> tokens of an object; each has a map of its own
    """

    def __init__(self, numbers: Mapping[str, Tensor], sizes: Mapping[str, int], dim: int) -> None:
        super().__init__()
        # By numpy: a step looks up thousands of them, a few at a time.
        self.numbers = {key: values.numpy() for key, values in numbers.items()}
        self.rows = Rows({key: sizes[key] for key in numbers})
        self.read = nn.Linear(dim, self.rows.total)
        nn.init.zeros_(self.read.weight)
        nn.init.zeros_(self.read.bias)
        self.weights = torch.ones(self.rows.total)
        if "tok_z" in numbers:
            self.weights[self.rows["tok_z"]] = REDSHIFT_WEIGHT

    def loss(self, means: Tensor, objects: Sequence[Object], splits: Sequence[Split]) -> Tensor:
        """Mean over numbers, those shown and the others alike, of ln of the standard error. means (B, dim)."""
        true = np.zeros((len(objects), self.rows.total), np.float32)
        here, shown = np.zeros(true.shape, bool), np.zeros(true.shape, bool)
        for i, (ids, one) in enumerate(zip(objects, splits, strict=True)):
            for key in self.numbers.keys() & ids.keys():
                true[i, self.rows[key]] = self.numbers[key][ids[key]]
                here[i, self.rows[key]] = True
                if key in one.shown:
                    shown[i, self.rows.first[key] + one.shown[key]] = True
        squares = (self.read(means.float()) - torch.from_numpy(true)).square()
        losses = []
        for which in (torch.from_numpy(here & shown), torch.from_numpy(here & ~shown)):
            counts = which.sum(0)
            errors = 0.5 * ((squares * which).sum(0)[counts > 0] / counts[counts > 0] + 1e-5).log()
            weights = self.weights[counts > 0]
            losses += [(errors * weights).sum() / weights.sum()] if len(weights) else []
        return torch.stack(losses).mean() if losses else torch.zeros(())


def batch_loss(
    model: Transformer, objects: Sequence[Object], splits: Sequence[Split], readers: Readers | None = None
) -> dict[str, Tensor]:
    """Target key -> cross entropy, averaged over its tokens in a batch, with what is asked for blurred (see BLUR);
    READ_KEY -> what the readers say."""
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
    encoded = model.encode(packed)
    states = model.decode(encoded, packed.lengths, queries, WITHIN)
    starts = np.cumsum([0, *queries.lengths_per_modality])
    losses = {} if readers is None else {READ_KEY: readers.loss(_means(encoded, packed.lengths), objects, splits)}
    for key in model.target_codes.sizes:
        of_key = [i for i, (name, _, _) in enumerate(asked) if name == key]
        if of_key:
            at = _rows([np.arange(starts[i], starts[i + 1]) for i in of_key])
            losses[key] = _cross_entropy(key, model.logits(key, states[at]), _rows([asked[i][1] for i in of_key]))
    return losses


def total(losses: Mapping[str, Tensor]) -> Tensor:
    """Weighted mean over modalities, and what the readers say. Redshift counts REDSHIFT_WEIGHT times: every modality
    has a part of it."""
    weights = {key: REDSHIFT_WEIGHT if key == "tok_z" else 1.0 for key in losses if key != READ_KEY}
    mean = sum((weight * losses[key] for key, weight in weights.items()), torch.zeros(())) / sum(weights.values())
    return mean + READ * losses.get(READ_KEY, torch.zeros(()))


def _cross_entropy(key: str, logits: Tensor, wanted: Tensor) -> Tensor:
    if not is_number(key):
        return F.cross_entropy(logits.float(), wanted)
    target = _blurred(logits.shape[1], 1.0 if key == "tok_z" else BLUR * logits.shape[1])[wanted]
    return F.cross_entropy(logits.float(), target)


@cache
def _blurred(size: int, width: float) -> Tensor:
    """(size, size): in row k the probabilities of the codes that are asked for where k was measured."""
    codes = torch.arange(size, dtype=torch.float32)
    return torch.softmax(-0.5 * ((codes[:, None] - codes) / width) ** 2, dim=1)


def _means(states: Tensor, lengths: Sequence[int]) -> Tensor:
    """States of all objects, one after another (N, dim) -> the mean of each object's (B, dim)."""
    of = torch.repeat_interleave(torch.as_tensor(lengths))
    sums = states.new_zeros(len(lengths), states.shape[1], dtype=torch.float32).index_add(0, of, states.float())
    return sums / torch.as_tensor(lengths)[:, None]


def _rows(parts: Sequence[NDArray[np.integer]]) -> Tensor:
    return torch.as_tensor(np.concatenate(parts).astype(np.int64))


@dataclass(frozen=True)
class Pool:
    """Objects of one folder: what is trained on, and what validates.

    share  of the steps, each of which is of one folder alone
    """

    share: float
    train: list[Object]
    held: list[Object]

    def batch(self, least: int) -> int:
        """Objects of a step: as many as have TOKENS, `least` or more. Small objects are cheap, and a relation between
        two magnitudes takes as many of them to be learnt as one between two spectra."""
        some = self.train[:: max(1, len(self.train) // 500)]
        mean = np.mean([sum(len(ids) for key, ids in one.items() if key in mini.INPUTS) for one in some])
        return int(np.clip(round(TOKENS / float(mean)), least, MOST))

    @classmethod
    def of(cls, share: float, objects: list[Object]) -> Pool:
        cut = len(objects) - max(1, round(HELD * len(objects)))
        return cls(share, objects[:cut], objects[cut:])


TOKENS, MOST = 2048, 128
"""Tokens that the objects of a step have, about, and the most objects of a step."""

VALIDATED = 256
"""Objects of each folder that validate during training."""


def pretrain(recipe: Recipe, bank: TokenizerBank, pools: Sequence[Pool], state: Path) -> Transformer:
    """Masked modelling of the tokens.

    Rows of the token table that stand for numbers stay as they begin, smooth. Each code is rare: trained, its row is
    off by 5 % of its length in a direction of its own, and that is as much as 0.02 mag (docs/log.md).
    """
    model = untrained(bank, recipe.seed)
    numbers = [key for key in model.codes.sizes if is_number(key)]
    held = torch.cat([torch.arange(model.codes[key].start, model.codes[key].stop) for key in numbers])
    readable = [key for key in bank if is_number(key)]
    readers = Readers(
        {key: code_features(bank[key])[0][:, 0] for key in readable},
        {key: bank[key].n_tokens for key in readable},
        model.config.dim,
    )
    schedule = recipe.transformer
    optimisers = _optimisers(model, schedule.rate)
    reading = torch.optim.AdamW(readers.parameters(), lr=schedule.rate, weight_decay=0.0)
    path, beside = state / "transformer.pt.safetensors", state / "readers.pt.safetensors"
    step = load_state(path, model, optimisers)
    load_state(beside, readers, reading)
    progress = Progress("pretrain", schedule.steps, step, state / "transformer.csv")
    shares, sizes = np.array([pool.share for pool in pools]), [pool.batch(schedule.batch) for pool in pools]
    while step < schedule.steps:
        rng = np.random.default_rng([recipe.seed, 1, step])
        for optimiser in (*optimisers, reading):
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate * schedule.factor(step)
        of = int(rng.choice(len(pools), p=shares / shares.sum()))
        batch = [pools[of].train[i] for i in rng.integers(len(pools[of].train), size=sizes[of])]
        loss = total(_losses(model, batch, recipe.budget, rng, readers))
        model.zero_grad(set_to_none=True)
        readers.zero_grad(set_to_none=True)
        loss.backward()
        assert model.token_emb.grad is not None
        model.token_emb.grad[held] = 0.0
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in (*optimisers, reading):
            optimiser.step()
        step += 1
        extra = {}
        if step % 500 == 0 or step == schedule.steps:
            save_state(beside, readers, reading, step)
            save_state(path, model, optimisers, step)
            extra = validate(model, pools, recipe, readers)
        progress.update(step, loss=loss.item(), **extra)
    return model


def _optimisers(model: Transformer, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW without decay for tables, norms and rows of logits."""
    inside = {n: p for n, p in model.named_parameters() if p.ndim == 2 and "emb" not in n and n != "to_logits"}
    others = [p for n, p in model.named_parameters() if n not in inside]
    parts: dict[Tensor, int] = {p: 3 if ".qkv." in n else 2 if ".kv." in n else 1 for n, p in inside.items()}
    return [
        Muon(inside.values(), lr=rate, weight_decay=DECAY, parts=parts),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


@torch.no_grad()
def validate(model: Transformer, pools: Sequence[Pool], recipe: Recipe, readers: Readers) -> dict[str, float]:
    """The loss of objects held out, averaged over folders by their shares, and each target's."""
    sums: dict[str, list[float]] = {}
    means = []
    for pool in pools:
        rng = np.random.default_rng(recipe.seed)
        held = pool.held[:VALIDATED]
        found = [
            _losses(model, held[i : i + recipe.transformer.batch], recipe.budget, rng, readers)
            for i in range(0, len(held), recipe.transformer.batch)
        ]
        means.append(float(np.mean([total(one).item() for one in found])))
        for one in found:
            for key, loss in one.items():
                sums.setdefault(key, []).append(loss.item())
    shares = np.array([pool.share for pool in pools])
    return {"validation": float(shares @ means / shares.sum())} | {key: float(np.mean(v)) for key, v in sums.items()}


def _losses(
    model: Transformer, batch: Sequence[Object], budget: Budget, rng: np.random.Generator, readers: Readers
) -> dict[str, Tensor]:
    inputs, outputs = list(model.codes.sizes), list(model.target_codes.sizes)
    drawn = budget.draw(rng)
    splits = [split(ids, inputs, outputs, drawn, rng) for ids in batch]
    # Equal lengths beside each other are computed together.
    order = sorted(range(len(batch)), key=lambda i: sum(map(len, splits[i].shown.values())))
    # Master weights stay in float32: pure bf16 loses small updates.
    with torch.autocast("cpu", torch.bfloat16, enabled=fast_bf16()):
        return batch_loss(model, [batch[i] for i in order], [splits[i] for i in order], readers)


# ---------------------------------------------------------------------- the folder


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
    parser.add_argument("--data", type=Data.of, action="append", required=True, metavar="FOLDER=SHARE")
    parser.add_argument("--pairs", type=Path, required=True, help="shards of models/spectrum_pairs.py")
    parser.add_argument("--codecs-from", type=Path, help="a checkpoint whose image and spectrum codecs to go on from")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="of the weights and of what is drawn")
    parser.add_argument("--steps", type=int, default=Recipe.transformer.steps, help="of the transformer")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.state.mkdir(parents=True, exist_ok=True)
    schedule = Schedule(**{**asdict(Recipe.transformer), "steps": args.steps})
    recipe = Recipe(seed=args.seed, transformer=schedule)
    bank = train_codecs(recipe, args.data, sorted(args.pairs.glob("*.safetensors")), args.state, args.codecs_from)
    paths = tokenize(args.data, bank, args.state)
    pools = [Pool.of(one.share, load_tokens(of)) for one, of in zip(args.data, paths, strict=True)]
    print("objects: " + ", ".join(f"{d.folder.name} {len(p.train)}" for d, p in zip(args.data, pools, strict=True)))
    model = pretrain(recipe, bank, pools, args.state)
    write(bank, model, args.out)
    print(f"wrote {args.out}; look at it with: albireo validate FILES --model {args.out}")


if __name__ == "__main__":
    main()
