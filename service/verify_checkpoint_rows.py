"""What can be asked of the files and codecs of a checkpoint: the layout, sizes and vocabularies of AION-1, numbers that
its released code gives, and laws that every codec keeps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import inf, prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from albireo.models.engine import Tokens
from albireo.observations.modalities import AION_KEYS, FLUX_DENSITY, MODALITIES
from albireo.observations.observation import Coefficients, Observation, Payload, Scalar, Spectrum
from albireo.service.verify_checkpoint import Check, Evidence, Measured, NotPossible
from albireo.tokenizers.checkpoint import TokenSpec
from albireo.tokenizers.hub import SIZES
from albireo.tokenizers.scalar import CoefficientsTokenizer

if TYPE_CHECKING:
    from albireo.models.torch_engine import TorchEngine

FILES, CODECS = "files", "codecs"

PACKAGE = "polymathic-aion 0.0.2"
PAPER = "arXiv 2510.17960"

BY_KIND = {
    "image": TokenSpec(576, 4375),
    "spectrum": TokenSpec(273, 1024),
    "coefficients": TokenSpec(55, 1024),
    "segmentation": TokenSpec(144, 1000),
    "catalog": TokenSpec(50, 3468),
    "scalar": TokenSpec(1, 1024),
}
"""Kind of modality -> tokens of an object and rows of the table of tokens, in AION-1; a redshift has one row more."""

ROUNDED = 0.15
"""The paper rounds its numbers of parameters: 300 M, 800 M, 3.1 B."""

GRID_CODES = {-0.2: 0, 0.0: 0, 0.1: 103, 0.5: 512, 0.999: 1022, 1.0: 1023, 1.7: 1023}
GRID_VALUES = {103: 0.1006843, 512: 0.5004888, 1023: 1.0}
"""Redshift -> code, and code -> redshift, of 1024 values from 0 to 1."""

NORM_CODES = {0.1: 178, 1.0: 222, 10.0: 349, 100.0: 513}
"""Mean flux -> first token of a spectrum: 1024 values of log10(flux + 1) from -1 to 5."""

SPIKE_NORM = 304
"""The first token of `spiked`."""

LIMITS: dict[str, tuple[float, float]] = {
    "tok_z": (0, 20),
    "tok_ra": (0, 360),
    "tok_dec": (-90, 90),
    "tok_ebv": (0, 10),
    "tok_shape_e1": (-1, 1),
    "tok_shape_e2": (-1, 1),
    "tok_shape11": (0, inf),
    "tok_shape22": (0, inf),
    **dict.fromkeys((f"tok_mag_{band}" for band in "grizy"), (0, 60)),
    **dict.fromkeys((f"tok_a_{band}" for band in "grizy"), (0, 20)),
}
"""Token key -> what the quantity can be at all, in its unit: a codec in the place of another would leave it."""

TRIED = 64
"""Codes of a codebook that are tried."""

SHOWN = 3
ROUNDING = 1e-5
"""Relative: float32 logarithms there and back."""


# Files


def opens(evidence: Evidence) -> Measured:
    checkpoint = evidence.checkpoint
    parameters = sum(prod(shape) for shape in checkpoint.shapes.values())
    depths = f"{checkpoint.config.get('encoder_depth')} + {checkpoint.config.get('decoder_depth')} blocks"
    return Measured(True, f"width {checkpoint.dim}, {depths}, {parameters / 1e6:.1f} M parameters")


def bytes_of_the_hub(evidence: Evidence) -> Measured:
    manifest = evidence.checkpoint.manifest
    if manifest is None:
        raise NotPossible("the folder has no manifest: it was not pulled from a hub")
    return _problems(manifest.check(evidence.folder))


def tensors(evidence: Evidence) -> Measured:
    from albireo.models.verification import check  # torch takes seconds to load

    return _problems(check(evidence.checkpoint))


def _problems(results: Iterable[tuple[str, str | None]]) -> Measured:
    listed = list(results)
    wrong = [f"{path} {problem}" for path, problem in listed if problem is not None]
    return Measured(not wrong, _some(wrong) if wrong else f"{len(listed)} files, nothing wrong", float(len(wrong)))


def modalities(evidence: Evidence) -> Measured:
    there = set(evidence.checkpoint.readable)
    missing = [key for key in AION_KEYS if key not in there]
    more = sorted(there - set(AION_KEYS))
    text = f"{len(there & set(AION_KEYS))} of {len(AION_KEYS)}"
    text += f"; not {_some(missing)}" * bool(missing) + f"; and {_some(more)}" * bool(more)
    # The paper counts 39 modalities, the released code has 40 keys: one may be missing.
    return Measured(len(missing) <= 1 and not more, text)


def vocabularies(evidence: Evidence) -> Measured:
    wrong = []
    for key, spec in evidence.checkpoint.readable.items():
        wanted = BY_KIND[MODALITIES[key].kind]
        rows = wanted.vocab_size + (key == "tok_z")
        if (spec.n_tokens, spec.vocab_size) != (wanted.n_tokens, rows):
            wrong.append(f"{key} {spec.n_tokens} of {spec.vocab_size} instead of {wanted.n_tokens} of {rows}")
    return Measured(not wrong, _some(wrong) if wrong else "all as expected")


def size(evidence: Evidence) -> Measured:
    checkpoint = evidence.checkpoint
    config, parameters = checkpoint.config, sum(prod(shape) for shape in checkpoint.shapes.values())
    alike = [one for one in SIZES.values() if all(config.get(k, v) == v for k, v in one.config.items())]
    if not alike:
        named = checkpoint.manifest.repository if checkpoint.manifest else ""
        if named in {one.repository for one in SIZES.values()}:
            return Measured(False, f"the configuration is not that of {named}")
        raise NotPossible(f"the configuration is of no published size (width {checkpoint.dim})")
    (known,) = alike
    off = parameters / known.parameters - 1
    expected = f"{known.parameters / 1e6:,.0f} M parameters within {ROUNDED:.0%} ({known.repository})"
    return Measured(abs(off) <= ROUNDED, f"{parameters / 1e6:,.1f} M, {off:+.1%}", float(parameters), expected)


def codecs_are_here(evidence: Evidence) -> Measured:
    checkpoint = evidence.checkpoint
    missing = [key for key in checkpoint.readable if key not in checkpoint.inputs]
    if missing and all(key in checkpoint.inputs.elsewhere for key in missing):
        raise NotPossible(f"not pulled: {_some(missing)}")
    return Measured(not missing, f"none of {_some(missing)}" if missing else f"{len(checkpoint.inputs)}, of each")


def network_opens(evidence: Evidence) -> Measured:
    engine = evidence.engine
    return Measured(True, f"space {engine.space('mean')}")


# Codecs: what the released code gives


def codes(evidence: Evidence) -> Measured:
    engine = evidence.engine
    numbers = {key: (engine.n_codes(key), BY_KIND[MODALITIES[key].kind].vocab_size) for key in engine.inputs}
    wrong = [f"{key} {found} instead of {wanted}" for key, (found, wanted) in numbers.items() if found != wanted]
    return Measured(not wrong, _some(wrong) if wrong else "all as expected")


def redshift_grid(evidence: Evidence) -> Measured:
    found = [int(ids[0]) for ids in _of_numbers(evidence.engine, "tok_z", list(GRID_CODES))]
    values = evidence.engine.values("tok_z", np.array([list(GRID_VALUES)]).T)[:, 0]
    text = f"codes {' '.join(map(str, found))}; values {' '.join(f'{one:.7g}' for one in values)}"
    return Measured(found == [*GRID_CODES.values()] and np.allclose(values, [*GRID_VALUES.values()], atol=1e-6), text)


def norms_of_spectra(evidence: Evidence) -> Measured:
    key = _first_of(evidence, "spectrum")
    n = 2000
    level = [np.full(n, value * (n + 1) / n) for value in NORM_CODES]
    grid, flux, mask = spiked()
    plain = 4000 + 0.8 * np.arange(n, dtype=np.float64)
    given = [_spectrum(key, plain, one, np.zeros(n, bool)) for one in level]
    tokens = _tokens(evidence.engine, [{key: one} for one in (*given, _spectrum(key, grid, flux, mask))])
    found = [int(one.ids[key][0]) for one in tokens]
    return Measured(found == [*NORM_CODES.values(), SPIKE_NORM], " ".join(map(str, found)))


def spiked() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Wavelengths in Angstrom, flux and mask of a spectrum on DESI's grid; masked pixels, one a spike of 10,000."""
    grid: NDArray[np.float64] = 3600 + 0.8 * np.arange(7781, dtype=np.float64)
    flux: NDArray[np.float64] = 5 + 2 * np.sin((grid - 3600) / 500)
    flux[150] = 1e4
    mask = np.zeros(len(grid), bool)
    mask[100:200] = True
    return grid, flux, mask


def grid_of_spectra(evidence: Evidence) -> Measured:
    grid = evidence.engine.wavelength(_first_of(evidence, "spectrum")).astype(np.float64)
    wanted = 3500 + 0.8 * np.arange(8704)
    same = grid.shape == wanted.shape and np.allclose(grid, wanted, atol=2e-3)
    return Measured(same, f"{len(grid)} pixels from {grid[0]:.1f} to {grid[-1]:.1f} Angstrom")


# Codecs: laws


def codebooks(evidence: Evidence) -> Measured:
    engine = evidence.engine
    wrong = []
    for key in _scalars(engine):
        book = codebook(engine, key)
        low, high = LIMITS.get(key, (-inf, inf))
        if not np.isfinite(book).all() or (np.diff(book) < 0).any():
            wrong.append(f"{key} does not increase")
        elif book[0] == book[-1]:
            wrong.append(f"{key} is {book[0]:g} everywhere")
        elif book[0] < low - ROUNDING or book[-1] > high + ROUNDING:
            wrong.append(f"{key} goes from {book[0]:g} to {book[-1]:g} {MODALITIES[key].unit}".rstrip())
    return Measured(not wrong, _some(wrong) if wrong else f"{len(_scalars(engine))} codebooks")


def numbers_return(evidence: Evidence) -> Measured:
    engine = evidence.engine
    keys = [key for key in engine.inputs if MODALITIES[key].kind in ("scalar", "coefficients")]
    exact = total = 0
    wrong = []
    for key in keys:
        tried = np.unique(np.linspace(0, engine.n_codes(key) - 1, TRIED).astype(np.int64))
        given = np.repeat(tried[:, None], engine.inputs[key].n_tokens, axis=1)
        values = engine.values(key, given)
        again = np.array(_of_numbers(engine, key, list(values)))
        returned = engine.values(key, again)
        same = (again == given) | np.isclose(returned, values, rtol=ROUNDING, atol=0)
        exact, total = exact + int(same.sum()), total + same.size
        # A float32 logarithm may round over the edge that a value stands on, into the next cell and no further. Where
        # the first coefficient did, those that are tokenized over it are over another number.
        near = np.abs(again - given) <= 1
        tokenizer = engine.bank[key]
        if isinstance(tokenizer, CoefficientsTokenizer) and tokenizer.relative:
            near[:, 1:] |= again[:, :1] != given[:, :1]
        if (~same & ~near).any():
            wrong.append(key)
    text = f"{exact} of {total} codes, the others the next one"
    return Measured(not wrong, f"{_some(wrong)} not; {text}" if wrong else text, exact / max(total, 1))


def numbers_in_their_cells(evidence: Evidence) -> Measured:
    engine, inside, total = evidence.engine, 0, 0
    wrong: dict[str, None] = {}
    for key in _scalars(engine):
        book = codebook(engine, key)
        for one in evidence.objects:
            payload = one.data.get(key)
            if one.id not in evidence.tokens or not isinstance(payload, Scalar):
                continue
            code = int(evidence.tokens[one.id].ids[key][0])
            if 0 < code < len(book) - 1:  # the ends stand for everything beyond
                low, high = book[code - 1], book[code + 1]
                near = ROUNDING * abs(payload.value)
                good = low - near <= payload.value <= high + near
                inside, total = inside + good, total + 1
                wrong |= {} if good else {key: None}
    if not total:
        raise NotPossible("no object has a number inside a codebook")
    return Measured(not wrong, f"{inside} of {total}" + f"; not {_some(list(wrong))}" * bool(wrong), inside / total)


def objects_become_tokens(evidence: Evidence) -> Measured:
    engine, total = evidence.engine, len(evidence.objects)
    if not total:
        raise NotPossible("no bundled object has a modality that it reads")
    refused = [f"{name}: {one.code}" for name, one in evidence.outcomes.items() if not isinstance(one, Tokens)]
    outside = [
        f"{name}: {key}"
        for name, tokens in evidence.tokens.items()
        for key, ids in tokens.ids.items()
        if ids.min() < 0 or ids.max() >= engine.n_codes(key)
    ]
    n = sum(one.n_tokens for one in evidence.tokens.values())
    wrong = refused + outside
    return Measured(not wrong, f"{total - len(refused)} of {total}, {n} tokens" + f"; {_some(wrong)}" * bool(wrong))


def codebook(engine: TorchEngine, key: str) -> NDArray[np.float64]:
    """(n,) numbers that the codes of a scalar stand for, in its unit."""
    return engine.values(key, np.arange(engine.n_codes(key))[:, None])[:, 0].astype(np.float64)


def _scalars(engine: TorchEngine) -> list[str]:
    return [key for key in engine.inputs if MODALITIES[key].kind == "scalar"]


def _first_of(evidence: Evidence, kind: str) -> str:
    """A modality of a kind that is read."""
    for key in evidence.engine.inputs:
        if MODALITIES[key].kind == kind:
            return key
    raise NotPossible(f"it reads no {kind}")


def _of_numbers(
    engine: TorchEngine, key: str, values: Sequence[float | NDArray[np.float32]]
) -> list[NDArray[np.int64]]:
    """Tokens of numbers, or of vectors of coefficients."""
    if key not in engine.inputs:
        raise NotPossible(f"it does not read {MODALITIES[key].name}")
    row = MODALITIES[key]

    def payload(value: float | NDArray[np.float32]) -> Payload:
        if row.kind == "coefficients":
            return Coefficients(np.asarray(value, np.float32), row.unit)
        return Scalar(float(np.ravel(value)[0]), row.unit)

    return [one.ids[key] for one in _tokens(engine, [{key: payload(value)} for value in values])]


def _tokens(engine: TorchEngine, given: Sequence[dict[str, Payload]]) -> Iterator[Tokens]:
    """Tokens of made-up objects; raises what refuses one."""
    for result in engine.tokenize([Observation(str(i), data) for i, data in enumerate(given)]):
        if not isinstance(result, Tokens):
            raise result
        yield result


def _spectrum(key: str, grid: NDArray[np.float64], flux: NDArray[np.float64], mask: NDArray[np.bool_]) -> Spectrum:
    assert MODALITIES[key].unit == FLUX_DENSITY
    ivar = np.full(len(grid), 4.0, np.float32)
    return Spectrum(grid, flux.astype(np.float32), ivar, mask, FLUX_DENSITY, "heliocentric")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


REGISTRY = f"{PACKAGE}, its table of modalities"
RUN = f"{PACKAGE}, run"
LAW = "how every codec here and there is built"

ROWS = (
    Check(FILES, "layout", "config.json, model.safetensors, codecs/<name>/", f"{PACKAGE}, save_pretrained", opens),
    Check(FILES, "bytes", "size and sha256 of every file", "the hub, when it was pulled", bytes_of_the_hub),
    Check(FILES, "tensors", "those that the configurations ask for, all finite", "config.json of each", tensors),
    Check(FILES, "modalities", "the 40 token keys; the paper counts 39", REGISTRY, modalities, of_aion=True),
    Check(FILES, "vocabularies", "tokens and table rows of every key, e.g. 576 of 4375 of an image", REGISTRY,
          vocabularies, of_aion=True),
    Check(FILES, "size", "the parameters of a published size", PAPER, size, of_aion=True),
    Check(FILES, "codecs", "one for every modality that it reads", "its configuration", codecs_are_here),
    Check(FILES, "network", "opens", "its files", network_opens),
    Check(CODECS, "codes", "4375 of images, 1024 of spectra and numbers, 1000 of maps, 3468 of catalogs", REGISTRY,
          codes, of_aion=True),
    Check(CODECS, "redshift grid", "1024 values from 0 to 1: 0.1 is code 103, which is 0.1006843", RUN, redshift_grid,
          of_aion=True),
    Check(CODECS, "norm of spectra", "first tokens 178 222 349 513 of mean flux 0.1 to 100; 304 with a masked spike",
          RUN, norms_of_spectra, of_aion=True),
    Check(CODECS, "grid of spectra", "8704 pixels from 3500 to 10462.4 Angstrom", RUN, grid_of_spectra, of_aion=True),
    Check(CODECS, "codebooks", "increase, within what each quantity can be", "units of docs/modalities.md", codebooks),
    Check(CODECS, "numbers return", "encode(decode(code)) = code", LAW, numbers_return),
    Check(CODECS, "objects become tokens", "all bundled and simulated objects", "the samples are of AION-1's surveys",
          objects_become_tokens),
    Check(CODECS, "numbers in their cells", "a number lies between the neighbours of its code", LAW,
          numbers_in_their_cells),
)  # fmt: skip
"""In the order in which they are made."""
