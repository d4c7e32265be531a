"""The caches: tokens are those that the engine makes, whatever was changed is made anew, and no trouble is an error."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from albireo.models.engine import Embedding, Tokens
from albireo.models.torch_engine import TorchEngine
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Convention, Image, Observation, Payload, Scalar, SegmentationMap, Spectrum
from albireo.observations.sky import simulate
from albireo.service.embedding_cache import ENTRY_BYTES, CachedEmbeddings, EmbeddingCache
from albireo.service.token_cache import FILE, CachedTokens, Kept, TokenCache, _packed, _unpacked, key_of
from albireo.tokenizers.checkpoint import MINI, Checkpoint
from tests.service.conftest import ToyEngine

LIMIT = 1 << 20


@pytest.fixture(scope="module")
def sky() -> list[Observation]:
    """Objects with images, spectra and photometry."""
    return list(simulate(3, np.random.default_rng(5)))


@pytest.fixture(scope="module")
def mini() -> TorchEngine:
    return TorchEngine.open(MINI)


@pytest.fixture
def cache(tmp_path: Path) -> TokenCache:
    return TokenCache(tmp_path / "cache", LIMIT)


class CountingEngine(ToyEngine):
    """Counts payloads that it tokenized, by their key; `faint` objects have a flag of their own."""

    def __init__(self, name: str = "toy-codec") -> None:
        super().__init__()
        self.seen: dict[str, int] = {}
        self.codec_name = name

    def codec(self, key: str) -> str:
        return f"{self.codec_name} {key}"

    def object_flags(self, observation: Observation) -> tuple[str, ...]:
        return ("faint",) if observation.metadata.get("faint") else ()

    def tokenize(self, observations: Sequence[Observation], kinds: Any = None) -> list[Tokens | AlbireoError]:
        for one in observations:
            for key in one.data:
                if kinds is None or MODALITIES[key].kind in kinds:
                    self.seen[key] = self.seen.get(key, 0) + 1
        out: list[Tokens | AlbireoError] = []
        for one, result in zip(observations, super().tokenize(observations, kinds), strict=True):
            if isinstance(result, Tokens):
                ids = {key: result.ids[key] for key in MODALITIES if key in result.ids}
                first = next(key for key in MODALITIES if key in one.data)
                of_object = self.object_flags(one) if first in ids else ()
                result = Tokens(ids, flags=(*of_object, *(f"of_{key}" for key in ids)))
            out.append(result)
        return out


def readable(observation: Observation, engine: Any) -> Observation:
    return replace(observation, data={key: p for key, p in observation.data.items() if key in engine.inputs})


def same(one: Tokens | AlbireoError, other: Tokens | AlbireoError) -> bool:
    if isinstance(one, AlbireoError) or isinstance(other, AlbireoError):
        return isinstance(one, AlbireoError) and isinstance(other, AlbireoError) and str(one) == str(other)
    return (
        one.flags == other.flags
        and list(one.ids) == list(other.ids)
        and all(np.array_equal(one.ids[key], other.ids[key]) and one.ids[key].dtype == np.int64 for key in one.ids)
    )


# What a key is of


def other_value(value: Any, at: int) -> Any:
    """A value of the same type that differs, in an array by one bit."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "U":
        return np.append(value, "x")
    if isinstance(value, np.ndarray):
        changed = value.copy()
        flat = changed.reshape(-1).view(np.uint8)
        flat[at % len(flat)] ^= 1
        return changed
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return float(np.nextafter(value, np.inf)) if np.isfinite(value) else 0.0
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, tuple):
        return (*value, *value[:1]) if value else (Convention("s", "b", "AB", "psf", False),)
    if isinstance(value, Convention):
        return replace(value, extinction_corrected=not value.extinction_corrected)
    assert value is None
    return 1.0


@pytest.fixture(scope="module")
def payloads(sky: list[Observation]) -> dict[str, Payload]:
    field = SegmentationMap(np.zeros((96, 96), np.float32), 0.262)
    return {key: payload for one in sky for key, payload in one.data.items()} | {"tok_segmap": field}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_change_of_a_payload_changes_the_key(payloads: dict[str, Payload], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(payloads)))
    payload = payloads[key]
    field = data.draw(st.sampled_from([one.name for one in fields(payload)]))
    value = getattr(payload, field)
    at = data.draw(st.integers(0, value.nbytes - 1)) if isinstance(value, np.ndarray) and value.nbytes else 0
    changed = replace(payload, **{field: other_value(value, at)})
    assert key_of(key, changed, "codec") != key_of(key, payload, "codec")
    assert key_of(key, replace(payload), "codec") == key_of(key, payload, "codec")


def test_a_key_is_of_modality_and_codec_too(payloads: dict[str, Payload]) -> None:
    payload = payloads["tok_image"]
    keys = {key_of(key, payload, codec) for key in ("tok_image", "tok_image_hsc") for codec in ("a", "b")}
    assert len(keys) == 4


def test_arrays_are_told_by_shape_type_and_order() -> None:
    numbers = np.arange(12, dtype=np.float32)
    spectrum = Spectrum(np.arange(12.0), numbers, numbers, np.zeros(12, bool), "", "")
    variants = [
        spectrum,
        replace(spectrum, flux=numbers.reshape(3, 4)),
        replace(spectrum, flux=numbers.reshape(4, 3)),
        replace(spectrum, flux=numbers.astype(np.float64)),
        replace(spectrum, flux=numbers.view(np.int32)),
        replace(spectrum, flux=-numbers),
    ]
    assert len({key_of("tok_spectrum_sdss", one, "") for one in variants}) == len(variants)
    strided = np.repeat(numbers, 2)[::2]
    big_endian = numbers.astype(">f4")
    for equal in (strided, big_endian):
        assert key_of("tok_spectrum_sdss", replace(spectrum, flux=equal), "") == key_of(
            "tok_spectrum_sdss", spectrum, ""
        )


@given(
    ids=st.lists(st.integers(0, 2**40), max_size=50) | st.lists(st.integers(0, 70_000), max_size=50),
    flags=st.lists(st.sampled_from(["flux_clipped", "blank_image", "low_coverage"]), unique=True),
)
def test_packing(ids: list[int], flags: list[str]) -> None:
    kept = Kept(np.array(ids, np.int64), tuple(flags))
    back = _unpacked(_packed(kept))
    np.testing.assert_array_equal(back.ids, kept.ids)
    assert (back.ids.dtype, back.flags) == (np.int64, kept.flags)


def test_an_image_is_1_2_kilobytes() -> None:
    assert len(_packed(Kept(np.full(576, 9999), ("masked_pixels",)))) < 1200


# An engine with a cache


def test_the_same_tokens_and_flags_as_without(mini: TorchEngine, cache: TokenCache, sky: list[Observation]) -> None:
    """Of a real checkpoint, for whole objects and for parts of them as the pipeline asks."""
    objects = [readable(one, mini) for one in sky[:2]]
    bright = {key: Scalar(1e9, p.unit) if isinstance(p, Scalar) else p for key, p in objects[0].data.items()}
    objects.append(replace(objects[0], data=bright))  # whose images and spectra are those of the first
    kept = sum(MODALITIES[key].kind in ("image", "spectrum") for one in objects for key in one.data)
    cached = CachedTokens(mini, cache)
    plain = mini.tokenize(objects)
    assert all(map(same, plain, cached.tokenize(objects)))
    looked_up = cache.counts.misses
    assert 0 < looked_up < kept
    assert all(map(same, plain, cached.tokenize(objects)))
    assert (cache.counts.hits, cache.counts.misses) == (looked_up, looked_up)
    assert any(len(one.flags) > 3 for one in plain if isinstance(one, Tokens))
    parts = [cached.tokenize(objects[2:], kinds)[0] for kinds in ({"image"}, {"spectrum"}, {"scalar"})]
    assert cache.counts.misses == looked_up
    wholes = [one for one in parts if isinstance(one, Tokens)]
    ids = {key: found for one in wholes for key, found in one.ids.items()}
    flags = tuple(dict.fromkeys(flag for one in wholes for flag in one.flags))
    assert same(plain[2], Tokens({key: ids[key] for key in MODALITIES if key in ids}, flags=flags))


def test_a_hit_needs_no_pixels(cache: TokenCache, sky: list[Observation]) -> None:
    engine = CountingEngine()
    objects = [readable(one, engine) for one in sky]
    plain = CountingEngine().tokenize(objects)
    first = CachedTokens(engine, cache).tokenize(objects)
    networks = {key: n for key, n in engine.seen.items() if MODALITIES[key].kind in ("image", "spectrum")}
    assert networks == {key: sum(key in one.data for one in objects) for key in networks}
    again = CountingEngine()
    second = CachedTokens(again, cache).tokenize(objects)
    assert not networks.keys() & again.seen.keys()
    assert all(map(same, plain, first))
    assert all(map(same, plain, second))
    other_codec = CountingEngine("another")
    CachedTokens(other_codec, cache).tokenize(objects)
    assert networks.items() <= other_codec.seen.items()


def test_flags_of_the_object_are_never_kept(cache: TokenCache, sky: list[Observation]) -> None:
    engine = CountingEngine()
    cached = CachedTokens(engine, cache)
    plain = readable(sky[0], engine)
    faint = replace(plain, metadata={"faint": True})
    for one in (faint, plain, faint):
        (with_cache,), (without,) = cached.tokenize([one]), engine.tokenize([one])
        assert same(with_cache, without)
    (part,) = cached.tokenize([faint], {"scalar"})
    assert isinstance(part, Tokens)
    assert "faint" not in part.flags  # it comes with the first kind, which is the image's


def test_what_cannot_be_tokenized(mini: TorchEngine, cache: TokenCache, sky: list[Observation]) -> None:
    """The engine's own errors, the first in the table's order, and the other objects untouched."""
    good = replace(sky[0], data={key: sky[0].data[key] for key in ("tok_image", "tok_flux_g")})
    image = good.data["tok_image"]
    assert isinstance(image, Image)
    blank = replace(good, data={**good.data, "tok_image": replace(image, flux=image.flux * np.nan)})
    small = replace(good, data={**good.data, "tok_image": replace(image, flux=image.flux[:, :50])})
    also = replace(blank, data={**blank.data, "tok_flux_g": Scalar(1.0, "jansky")})
    empty = replace(good, data={})
    lacking = replace(good, data={**good.data, "tok_segmap": SegmentationMap(np.zeros((96, 96), np.float32), 0.262)})
    good = replace(good, data={"tok_flux_g": good.data["tok_flux_g"]})
    objects = [good, blank, small, also, empty, lacking, good]
    cached = CachedTokens(mini, cache)
    plain = mini.tokenize(objects)
    assert [isinstance(one, AlbireoError) for one in plain] == [False, True, True, True, True, True, False]
    for _ in range(2):
        assert all(map(same, plain, cached.tokenize(objects)))


def test_numbers_alone_do_not_touch_the_cache(cache: TokenCache, sky: list[Observation]) -> None:
    engine = CountingEngine()
    numbers = [replace(one, data={"tok_flux_g": Scalar(2.0, "nanomaggy")}) for one in sky]
    assert len(CachedTokens(engine, cache).tokenize(numbers)) == 3
    assert (cache.counts.hits, cache.counts.misses) == (0, 0)


def test_damage_is_made_again_and_told(
    cache: TokenCache, sky: list[Observation], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = CountingEngine()
    cached = CachedTokens(engine, cache)
    objects = [readable(one, engine) for one in sky]
    plain = cached.tokenize(objects)
    with sqlite3.connect(tmp_path / "cache" / FILE) as file:
        file.execute("UPDATE entries SET value = substr(value, 1, 3) || x'ff' || substr(value, 5)")
    engine.seen.clear()
    assert all(map(same, plain, cached.tokenize(objects)))
    assert cache.counts.damaged == engine.seen["tok_image"] + engine.seen.get("tok_spectrum_sdss", 0) > 0
    assert "damaged" in caplog.text
    engine.seen.clear()
    assert all(map(same, plain, cached.tokenize(objects)))
    assert "tok_image" not in engine.seen


def test_it_is_the_engine_for_everything_else(cache: TokenCache, sky: list[Observation]) -> None:
    engine = CountingEngine()
    cached = CachedTokens(engine, cache)
    assert (cached.name, cached.dim, cached.inputs, cached.outputs) == ("toy", 16, engine.inputs, engine.outputs)
    assert (cached.numerics, cached.space("mean")) == (engine.numerics, engine.space("mean"))
    tokens = [one for one in cached.tokenize([readable(sky[0], engine)]) if isinstance(one, Tokens)]
    np.testing.assert_array_equal(cached.embed(tokens)[0].values, engine.embed(tokens)[0].values)
    wanted = cached.logits(tokens, ["tok_z"])[0]["tok_z"]
    np.testing.assert_array_equal(wanted, engine.logits(tokens, ["tok_z"])[0]["tok_z"])
    ids = np.array([[1, 2, 3, 4]])
    np.testing.assert_array_equal(cached.values("tok_image", ids), engine.values("tok_image", ids))
    assert (cached.n_codes("tok_z"), len(cached.wavelength("tok_spectrum_sdss"))) == (16, 20)
    assert cached.positions("tok_image", (0, 0, 10, 10)).tolist() == [True, False, False, False]


# Codecs


def test_what_names_a_codec(mini: TorchEngine, tmp_path: Path) -> None:
    """Its files and its preprocessing, and not the encoder, the folder's name, or other codecs."""
    import json
    import shutil

    shutil.copytree(MINI, tmp_path / "other", ignore=shutil.ignore_patterns("heads"))
    other = Checkpoint(tmp_path / "other")
    fingerprints = {key: Checkpoint(MINI).codec_fingerprint(key) for key in ("tok_image", "tok_spectrum_sdss")}
    (tmp_path / "other" / "model.safetensors").write_bytes(
        (MINI / "model.safetensors").read_bytes().replace(b"\0\0\0\0\0\0\0\0", b"\0\0\0\1\0\0\0\0", 1)
    )
    assert {key: Checkpoint(other.folder).codec_fingerprint(key) for key in fingerprints} == fingerprints
    assert len(set(fingerprints.values())) == 2
    config = other.codec_folder("tok_image") / "config.json"
    changed = json.loads(config.read_text())
    config.write_text(json.dumps(changed | {"preprocessing": "aion-1"}, indent=9))
    told = Checkpoint(other.folder).codec_fingerprint("tok_image")
    assert (told == fingerprints["tok_image"]) == (changed.get("preprocessing", "aion-1") == "aion-1")
    assert Checkpoint(MINI, "aion-1").codec_fingerprint("tok_image") != Checkpoint(MINI, "albireo-1").codec_fingerprint(
        "tok_image"
    )
    weights = other.codec_folder("tok_spectrum_sdss") / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert Checkpoint(other.folder).codec_fingerprint("tok_spectrum_sdss") != fingerprints["tok_spectrum_sdss"]
    assert mini.codec("tok_image") == f"{fingerprints['tok_image']}:float32:cpu"


# Embeddings


class EncodingEngine(ToyEngine):
    def __init__(self) -> None:
        super().__init__()
        self.encoded = 0

    def embed_each(self, tokens: Sequence[Tokens], pooling: Any = "mean") -> list[Embedding | AlbireoError]:
        self.encoded += len(tokens)
        return [
            BadInput("nothing_to_embed", "no token is left") if not one.ids else self.embed([one], [how])[0]
            for one, how in zip(tokens, [pooling] * len(tokens) if isinstance(pooling, str) else pooling, strict=True)
        ]


def tokens_of(*numbers: int, mask: Mapping[str, Any] | None = None) -> Tokens:
    return Tokens({"tok_image": np.array(numbers)}, mask or {})


def test_embeddings_are_computed_once() -> None:
    engine = EncodingEngine()
    cached = CachedEmbeddings(engine, EmbeddingCache(1 << 20))
    given = [tokens_of(1, 2, 3, 4), Tokens({}), tokens_of(5, 6, 7, 8)]
    first = cached.embed_each(given)
    second = cached.embed_each([*given, tokens_of(9, 9, 9, 9)])
    assert engine.encoded == 5
    assert [getattr(one, "cached", None) for one in first] == [False, None, False]
    assert [getattr(one, "cached", None) for one in second] == [True, None, True, False]
    for i in (0, 2):
        assert isinstance(first[i], Embedding)
        np.testing.assert_array_equal(first[i].values, second[i].values)  # type: ignore[union-attr]
    assert isinstance(second[1], BadInput)


def test_what_makes_another_embedding() -> None:
    engine = EncodingEngine()
    cached = CachedEmbeddings(engine, EmbeddingCache(1 << 20))
    mask = {"tok_image": np.array([True, False, False, False])}
    variants = [tokens_of(1, 2, 3, 4), tokens_of(1, 2, 4, 3), tokens_of(1, 2, 3, 4, mask=mask),
                Tokens({"tok_spectrum_sdss": np.array([1, 2, 3, 4])})]  # fmt: skip
    for pooling in ("mean", "mean_per_modality", "tokens"):
        assert [one.cached for one in cached.embed(variants, pooling)] == [False] * 4  # type: ignore[arg-type]
    assert [one.cached for one in cached.embed(variants)] == [True] * 4
    assert [one.cached for one in cached.embed(variants[:2], ["mean_per_modality", "tokens"])] == [True, False]


@given(
    calls=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 40)), max_size=60),
    limit=st.integers(0, 10 * (ENTRY_BYTES + 160)),
)
def test_the_bound_of_memory_and_the_least_recently_used(calls: list[tuple[int, int]], limit: int) -> None:
    """Beside a slow obvious one: a list in the order of use."""
    cache, model = EmbeddingCache(limit), list[tuple[bytes, int]]()
    for name, length in calls:
        key = bytes([name])
        known = dict(model).get(key)
        found = cache.get(key)
        assert (found is None) == (known is None)
        if known is not None:
            model = [one for one in model if one[0] != key] + [(key, known)]
            continue
        cache.put(key, Embedding("mean", np.zeros(length, np.float32), (), 1))
        if 4 * length + ENTRY_BYTES <= limit:
            model.append((key, length))
            while sum(4 * n + ENTRY_BYTES for _, n in model) > limit:
                model.pop(0)
        assert len(cache) == len(model)
        assert cache.size == sum(4 * n + ENTRY_BYTES for _, n in model) <= limit


def test_what_is_kept_cannot_be_changed() -> None:
    batch = np.ones((3, 4), np.float32)
    cache = EmbeddingCache(1 << 20)
    cache.put(b"k", Embedding("mean", batch[0], (), 1))
    batch[:] = 7
    found = cache.get(b"k")
    assert found is not None
    assert found.values.tolist() == [1, 1, 1, 1]
    assert found.values.base is None
    with pytest.raises(ValueError, match="read-only"):
        found.values[0] = 2
