"""A toy engine, and small files of real formats, for the tests of the doors."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from fastapi.testclient import TestClient

from albireo.index.collection import Collections
from albireo.models.engine import Embedding, Numerics, Pooling, Tokens
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Coefficients, Image, Observation, Payload, Scalar, Spectrum
from albireo.service.app import create_app
from albireo.service.core import Core
from albireo.service.readiness import Readiness
from albireo.service.settings import Settings
from albireo.service.shelf import Shelf
from albireo.tokenizers.checkpoint import TokenSpec

DIM = 16


class ToyEngine:
    """An Engine whose vectors are drawn from hashes of the numbers.

    `shift` turns its answers wrong, `crash` makes it fail, a closed `gate` makes it hang.
    It reads Legacy Survey images, SDSS spectra and g, r fluxes, and refuses fluxes over 1e6. It predicts images, SDSS
    spectra, r fluxes and redshifts: logits from hashes of what is given, numbers that are the tokens themselves.
    """

    name = "toy"
    dim = DIM
    numerics = Numerics()
    inputs: Mapping[str, TokenSpec] = {
        "tok_image": TokenSpec(4, 1000),
        "tok_spectrum_sdss": TokenSpec(3, 1000),
        "tok_flux_g": TokenSpec(1, 1000),
        "tok_flux_r": TokenSpec(1, 1000),
    }

    outputs: Mapping[str, TokenSpec] = {
        "tok_image": TokenSpec(4, 1000),
        "tok_spectrum_sdss": TokenSpec(3, 1000),
        "tok_flux_r": TokenSpec(1, 1000),
        "tok_z": TokenSpec(1, 17),
    }

    def __init__(self) -> None:
        self.given: list[Tokens] = []
        self.shift = 0.0
        self.crash = False
        self.gate = threading.Event()
        self.gate.set()

    def space(self, pooling: Pooling, normalize: bool = False) -> str:
        return f"toy@0123456789ab:{pooling}" + ":l2" * normalize

    def tokenize(
        self, observations: Sequence[Observation], kinds: Collection[str] | None = None
    ) -> list[Tokens | AlbireoError]:
        out: list[Tokens | AlbireoError] = []
        for observation in observations:
            lacking = observation.data.keys() - self.inputs.keys()
            assert not lacking, lacking
            numbers = {
                key: _numbers(payload)
                for key, payload in observation.data.items()
                if kinds is None or MODALITIES[key].kind in kinds
            }
            if any(np.nanmax(np.abs(values)) > 1e6 for values in numbers.values()):
                out.append(BadInput("value_out_of_range", "brighter than 1e6", field="flux"))
            else:
                ids = {key: _ids(values, self.inputs[key].n_tokens) for key, values in numbers.items()}
                out.append(Tokens(ids, flags=("toy",)))
        return out

    def codec(self, key: str) -> str:
        return "toy-codec"

    def grid(self, key: str) -> tuple[int, int]:
        specs = {**self.inputs, **self.outputs}
        return (2, 2) if key == "tok_image" else (specs[key].n_tokens, 1)

    def object_flags(self, observation: Observation) -> tuple[str, ...]:
        return ()

    def embed(self, tokens: Sequence[Tokens], pooling: Pooling | Sequence[Pooling] = "mean") -> list[Embedding]:
        assert self.gate.wait(30)
        if self.crash:
            raise RuntimeError("secret path")
        poolings = [pooling] * len(tokens) if isinstance(pooling, str) else pooling
        return [self._embed(entry, how) for entry, how in zip(tokens, poolings, strict=True)]

    def embed_each(
        self, tokens: Sequence[Tokens], pooling: Pooling | Sequence[Pooling] = "mean"
    ) -> list[Embedding | AlbireoError]:
        return list(self.embed(tokens, pooling))

    def _embed(self, tokens: Tokens, pooling: Pooling) -> Embedding:
        per_token = {
            key: np.stack([np.random.default_rng([int(i), at]).normal(size=DIM) for at, i in enumerate(ids)])
            for key, ids in ((key, tokens.ids[key]) for key in MODALITIES if key in tokens.ids)
        }
        if pooling == "tokens":
            names = tuple(key for key, rows in per_token.items() for _ in rows)
            values = np.concatenate(list(per_token.values()))
        elif pooling == "mean_per_modality":
            names = tuple(per_token)
            values = np.stack([rows.mean(axis=0) for rows in per_token.values()])
        else:
            names = tuple(per_token)
            values = np.concatenate(list(per_token.values())).mean(axis=0)
        return Embedding(pooling, (values + self.shift).astype(np.float32), names, tokens.n_tokens)

    def logits(
        self,
        tokens: Sequence[Tokens],
        targets: Sequence[str] | Sequence[Mapping[str, np.ndarray]],
        attention: str | None = None,
    ) -> list[dict[str, np.ndarray]]:
        """Of the hash of what is given and not masked; `given` keeps it."""
        self.given += tokens
        asked = [t if isinstance(t, Mapping) else {t: np.arange(self.outputs[t].n_tokens)} for t in targets]
        asked = asked if len(asked) == len(tokens) else asked * len(tokens)
        out = []
        for one, wanted in zip(tokens, asked, strict=True):
            digest = hashlib.sha256()
            for key in sorted(one.ids):
                keep = ~one.mask[key] if key in one.mask else np.ones(len(one.ids[key]), bool)
                digest.update(key.encode() + one.ids[key][keep].astype("<i8").tobytes())
            seed = int.from_bytes(digest.digest()[:8], "big")
            out.append(
                {
                    key: np.stack(
                        [
                            np.random.default_rng([seed, i]).normal(size=self.outputs[key].vocab_size)
                            for i in at.tolist()
                        ]
                    ).astype(np.float32)
                    for key, at in wanted.items()
                }
            )
        return out

    def values(self, key: str, ids: np.ndarray, **target: object) -> np.ndarray:
        if key == "tok_z":
            return (ids / 15).astype(np.float32)
        if key == "tok_image":
            pixels = np.kron(ids.reshape(-1, 1, 2, 2), np.ones((1, 4, 48, 48)))
            return pixels.astype(np.float32)
        return (
            ids[:, 1:].repeat(10, axis=1).astype(np.float32) if key == "tok_spectrum_sdss" else ids.astype(np.float32)
        )

    def n_codes(self, key: str) -> int:
        return 16 if key == "tok_z" else 1000

    def wavelength(self, key: str) -> np.ndarray:
        return np.linspace(4000, 6000, 20, dtype=np.float32) if key == "tok_spectrum_sdss" else np.zeros(0, np.float32)

    def positions(self, key: str, region: Sequence[float]) -> np.ndarray:
        """Quarters of an image of 96 pixels; two halves of a spectrum from 4000 to 6000 A, after its normalisation."""
        if key == "tok_image":
            x0, y0, x1, y1 = region
            return np.array([y0 < y + 48 and y1 > y and x0 < x + 48 and x1 > x for y in (0, 48) for x in (0, 48)])
        low, high = region
        return np.array([False, low < 5000 and high > 4000, low < 6000 and high > 5000])


class TellingEngine(ToyEngine):
    """A ToyEngine whose states tell the numbers, so that there is something to learn.

    `passes` counts objects whose states were asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def tokenize(
        self, observations: Sequence[Observation], kinds: Collection[str] | None = None
    ) -> list[Tokens | AlbireoError]:
        out = super().tokenize(observations, kinds)
        for i, observation in enumerate(observations):
            if all(isinstance(payload, Scalar) for payload in observation.data.values()) and isinstance(out[i], Tokens):
                scaled = {key: np.rint(40 * _numbers(payload)) for key, payload in observation.data.items()}
                out[i] = Tokens({key: values.astype(np.int64).clip(0, 999) for key, values in scaled.items()})
        return out

    def _embed(self, tokens: Tokens, pooling: Pooling) -> Embedding:
        if pooling != "tokens":
            return super()._embed(tokens, pooling)
        self.passes += 1
        directions = np.random.default_rng(1).normal(size=(len(MODALITIES), 2, DIM))
        rows = [
            base + along * (i / 400 - 1)
            for key, (base, along) in zip(MODALITIES, directions, strict=True)
            for i in tokens.ids.get(key, ())
        ]
        names = tuple(key for key in MODALITIES for _ in tokens.ids.get(key, ()))
        return Embedding(pooling, np.array(rows, np.float32), names, tokens.n_tokens)


def _numbers(payload: Payload) -> np.ndarray:
    if isinstance(payload, Image | Spectrum):
        return payload.flux
    if isinstance(payload, Coefficients):
        return payload.values
    assert isinstance(payload, Scalar)
    return np.array([payload.value], np.float32)


def _ids(values: np.ndarray, n: int) -> np.ndarray:
    digest = hashlib.sha256(np.ascontiguousarray(values, "<f4").tobytes()).digest()
    return np.frombuffer(digest, "<u4")[:n].astype(np.int64) % 1000


@pytest.fixture
def engine() -> ToyEngine:
    return ToyEngine()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_folder=tmp_path / "data", model=str(tmp_path), max_body_bytes=4 << 20, max_items=50)


@pytest.fixture
def core(engine: ToyEngine, settings: Settings) -> Iterator[Core]:
    shelf = Shelf({"own": settings.data_folder / "heads", "shipped": Path(settings.model) / "heads"})
    made = Core(lambda: engine, lambda: Collections(settings.collections_file), shelf=lambda: shelf)
    yield made
    made.close()


@pytest.fixture
def client(core: Core, settings: Settings) -> Iterator[TestClient]:
    readiness = Readiness(core, settings.data_folder, fresh_seconds=0.0, wait_seconds=20.0)
    with TestClient(create_app(core, settings, readiness), raise_server_exceptions=False) as made:
        yield made


@pytest.fixture
def image() -> Callable[..., bytes]:
    """Makes a FITS cutout of the Legacy Survey: four bands, 96 pixels, nanomaggies; other noise for each seed."""

    def make(id: str, seed: int = 0, size: int = 96, level: float = 1.0, **cards: object) -> bytes:
        y, x = np.mgrid[:size, :size] - size / 2
        flux = level * np.exp(-(x**2 + y**2) / 60.0) * np.array([1, 2, 3, 4])[:, None, None]
        flux = flux + np.random.default_rng(seed).normal(0, 0.01, (4, size, size))
        hdu = fits.PrimaryHDU(flux.astype(">f4"))
        known = {"OBJECT": id, "SURVEY": "LegacySurvey", "BANDS": "griz", "BUNIT": "nanomaggy", "PIXSCALE": 0.262}
        for card, value in (known | {"RA": 150.1, "DEC": 2.2} | cards).items():
            if value is not None:
                hdu.header[card] = value
        stream = io.BytesIO()
        fits.HDUList([hdu]).writeto(stream)
        return stream.getvalue()

    return make


@pytest.fixture
def spectrum() -> Callable[..., bytes]:
    """Makes an SDSS spec file: COADD table of log10 vacuum wavelengths, SPECOBJ with class and redshift."""

    def make(fiber: int, seed: int = 0, masked: int = 5) -> bytes:
        n = 1000
        rng = np.random.default_rng(seed)
        ivar = np.full(n, 4.0, np.float32)
        and_mask = np.zeros(n, np.int32)
        and_mask[:masked] = 1 << 20
        columns = {
            "flux": ("E", (3 + rng.normal(0, 0.5, n)).astype(np.float32)),
            "loglam": ("E", (3.58 + 1e-4 * np.arange(n)).astype(np.float32)),
            "ivar": ("E", ivar),
            "and_mask": ("J", and_mask),
            "or_mask": ("J", and_mask),
            "wdisp": ("E", ivar),
            "sky": ("E", ivar),
            "model": ("E", ivar),
        }
        table = fits.BinTableHDU.from_columns(
            [fits.Column(name, form, array=values) for name, (form, values) in columns.items()], name="COADD"
        )
        about = fits.BinTableHDU.from_columns(
            [
                fits.Column("CLASS", "6A", array=["GALAXY"]),
                fits.Column("Z", "E", array=np.array([0.1], np.float32)),
                fits.Column("PLUG_RA", "D", array=[146.7]),
                fits.Column("PLUG_DEC", "D", array=[-1.0]),
                fits.Column("ZWARNING", "J", array=np.array([0])),
            ],
            name="SPECOBJ",
        )
        primary = fits.PrimaryHDU()
        cards = {"TELESCOP": "SDSS 2.5-M", "PLATEID": 266, "MJD": 51630, "FIBERID": fiber}
        for card, value in (cards | {"BUNIT": "1E-17 erg/cm^2/s/Ang", "VACUUM": True}).items():
            primary.header[card] = value
        stream = io.BytesIO()
        fits.HDUList([primary, table, about]).writeto(stream)
        return stream.getvalue()

    return make


JPEG = b"\xff\xd8\xff\xe0" + bytes(100)


@pytest.fixture
def jpeg() -> bytes:
    return JPEG
