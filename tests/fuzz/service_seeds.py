"""What changes of requests, messages, answers, heads, checkpoints and files of the service begin with."""

from __future__ import annotations

import base64
import functools
import gzip
import json
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.mutation import Parts

IMAGE, SPECTRUM = "image.legacysurvey", "spectrum.sdss"


def text(value: Any) -> bytes:
    return json.dumps(value).encode()


@functools.cache
def cutout() -> bytes:
    from tests.observations import test_images as t

    return t.cutout(t.cube((4, 96, 96)), t.stated(BANDS="griz", OBJECT="a")).content


def heads() -> Sequence[Parts]:
    from albireo.models.head_fitting import Plan
    from tests.models.toys import toys

    some = toys(80, seed=1)
    plans = [
        Plan("regression", ("t",), pooling="mean", units={"t": "K"}, epochs=2),
        Plan("classification", ("kind",), pooling="attentive", epochs=2, queries=2),
        Plan("redshift", ("redshift",), pooling="mean_per_modality", epochs=2),
    ]
    out = []
    with tempfile.TemporaryDirectory() as folder:
        for plan in plans:
            path = Path(folder) / "head.safetensors"
            some.fit(plan).save(path)
            out.append((path.read_bytes(),))
    return out


CHECKPOINT = (
    "config.json", "model.safetensors", "codecs/FLUX_G/config.json", "codecs/FLUX_G/model.safetensors",
    "codecs/gaia_xp_bp/config.json", "recipe.json", "known_answer.json", "albireo-manifest.json",
)  # fmt: skip
"""Files of a folder, in the order of the parts of an input; a part that is empty is no file."""


def checkpoints() -> Sequence[Parts]:
    """albireo-mini with two modalities and no numbers in its transformer: only headers of that are looked at."""
    from albireo.observations.modalities import MODALITIES
    from albireo.tokenizers.checkpoint import MINI, Checkpoint

    mini = Checkpoint(MINI)
    config = mini.config | {"domains_in": ["tok_flux_g"], "domains_out": ["tok_flux_g"]}
    kept = {name: shape for name, shape in mini.shapes.items() if ".tok_flux_g." in name}
    header = text({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in kept.items()})
    codec = MINI / "codecs" / MODALITIES["tok_flux_g"].codec
    recipe = json.loads((MINI / "recipe.json").read_text())
    recipe = {**recipe, "tokens": {}, "heads": {}, "embeddings": dict(list(recipe["embeddings"].items())[:1])}
    facts = {"size": len(header) + 8, "sha256": "0" * 64}
    manifest = {"repository": "a/b", "revision": "0" * 40, "codecs_from": ["a/b", "0" * 40], "license": None}
    files = [
        text(config),
        struct.pack("<Q", len(header)) + header,
        (codec / "config.json").read_bytes(),
        (codec / "model.safetensors").read_bytes(),
        b"",
        text(recipe),
        (MINI / "known_answer.json").read_bytes(),
    ]
    return [(*files, b""), (*files, text({**manifest, "files": {"model.safetensors": facts}}))]


def keys() -> Sequence[Parts]:
    from albireo.service.keys import Key, Quota, entry

    one, two = Key("pipeline", "ab" * 32, "write", Quota(60, 1000, burst=5)), Key("a.b", "cd" * 32, "admin")
    table = {"keys": {key.name: {"sha256": key.sha256, "role": key.role, "tokens_per_day": 5} for key in (one, two)}}
    toml = "\n\n".join(map(entry, (one, two)))
    return [(b"toml", toml.encode()), (b"json", text(table)), (b"toml", b"# none\n[keys]\n")]


def payloads() -> Sequence[Parts]:
    from albireo.observations.errors import BadInput
    from albireo.observations.sky import simulate
    from albireo.service.payload_bytes import pack
    from albireo.service.remote_tokens import packed_result
    from tests.observations.test_shards import everything

    (one,) = simulate(1, np.random.default_rng(1))
    values = {type(value).__name__: value for part in (one, everything()) for value in part.data.values()}
    results = [(np.arange(4), ("cropped",)), BadInput("damaged_file", "why", field="flux")]
    return [*((b"payload", pack(value)) for value in values.values()),
            *((b"result", packed_result(result)) for result in results)]  # fmt: skip


def oip() -> Sequence[Parts]:
    """Door and model, length of the header, and a body."""
    from albireo.service.protos.inference import open_inference_pb2 as messages

    ids = {"name": "tok_image", "shape": [2, 4], "datatype": "INT64", "data": [1, 2, 3, 4, 5, 6, 7, 8]}
    asked = {"inputs": [ids], "outputs": [{"name": "embedding"}], "parameters": {"pooling": "mean"}, "id": "1"}
    fluxes = [{"name": "value", "shape": [2, 1], "datatype": "FP64", "data": [[1.5], [2.5]]}]
    image = {"name": "flux", "shape": [1, 4, 96, 96], "datatype": "FP32", "parameters": {"binary_data_size": 147456}}
    head = text({"inputs": [image], "parameters": {"bands": "DES-G,DES-R,DES-I,DES-Z", "pixel_scale": 0.262}})
    n = 20
    pixels = [{"name": name, "shape": [1, n], "datatype": "FP32", "data": [float(k + 1) for k in range(n)]}
              for name in ("flux", "ivar", "wavelength")]  # fmt: skip
    parameters = {"pooling": messages.InferParameter(string_param="mean")}
    raw = messages.ModelInferRequest(model_name="toy", parameters=parameters)
    raw.inputs.add(name="tok_flux_g", datatype="INT64", shape=[2, 1])
    raw.raw_input_contents.append(np.arange(2).tobytes())
    listed = messages.ModelInferRequest(model_name="toy-tokenizer-legacysurvey.flux_g")
    one = listed.inputs.add(name="value", datatype="FP64", shape=[1, 1])
    one.contents.fp64_contents.append(1.5)

    def rest(model: str, body: bytes, length: int | None = None) -> Parts:
        return text({"door": "rest", "model": model, "length": None if length is None else str(length)}), body

    return [
        rest("toy", text(asked)),
        rest("toy-tokenizer-legacysurvey.flux_g", text({"inputs": fluxes, "parameters": {"unit": "nanomaggy"}})),
        rest("toy-tokenizer-image.legacysurvey", head + np.ones((1, 4, 96, 96), "<f4").tobytes(), len(head)),
        rest("toy-tokenizer-spectrum.sdss", text({"inputs": pixels})),
        (text({"door": "grpc"}), raw.SerializeToString()),
        (text({"door": "grpc"}), listed.SerializeToString()),
    ]


def grpc() -> Sequence[Parts]:
    """The name of a message, and one."""
    from albireo.service.grpc_messages import tensor
    from albireo.service.protos.albireo.v1 import albireo_pb2 as pb

    flux = np.ones((4, 96, 96), np.float32)
    read = pb.ReadOptions(survey="legacysurvey", bands=["g", "r", "i", "z"], unit="nanomaggy", pixel_scale=0.262)
    file = pb.Item(id="a", inputs=[pb.Input(modality=IMAGE, format="fits", file=cutout())])
    image = pb.Item(id="b", inputs=[pb.Input(modality=IMAGE, tensor=tensor(flux), read=read)])
    scalars = pb.Item(id="c", inputs=[pb.Input(scalars={"flux_g": 1.5}, units={"flux_g": "nanomaggy"}, read=read)])
    arrays = {"wavelength": np.arange(4000.0, 4040), "flux": np.ones(40), "ivar": np.ones(40)}
    spectrum = pb.Input(modality="spectrum.desi", units={"flux": "1e-17 erg/(s cm2 Angstrom)"})
    for name, values in arrays.items():
        spectrum.arrays.by_name[name].CopyFrom(tensor(values))
    labelled = pb.Item(id="d", inputs=[spectrum])
    labelled.labels.update({"redshift": 0.5, "class": "GALAXY"})
    labelled.pos.ra, labelled.pos.dec = 150.0, 2.0
    ids = pb.TokensOfOne(id="a", tokens={IMAGE: tensor(np.arange(4, dtype=np.uint16))})
    prior = pb.PredictRequest(items=[scalars])
    prior.options.prior_cells.edges.CopyFrom(tensor(np.array([0.0, 1.0, 2.0])))
    prior.options.prior_cells.n.CopyFrom(tensor(np.array([1.0, 2.0])))
    vector = pb.Vector(values=tensor(np.ones(16, np.float32)), space="toy@0123456789ab:mean")
    requests = [
        pb.EmbedRequest(items=[file, scalars]),
        pb.EmbedRequest(items=[image, labelled]),
        pb.EmbedRequest(files=[pb.File(name="a.fits", content=cutout())], options=pb.EmbedOptions(join=True)),
        pb.TokenizeRequest(items=[scalars]),
        pb.DetokenizeRequest(items=[ids]),
        prior,
        vector,
    ]
    return [(type(one).__name__.encode(), one.SerializeToString()) for one in requests]


def http() -> Sequence[Parts]:
    """Path and headers, and a body."""
    flux = {"values": {"flux_g": 12.3, "flux_g_unit": "nanomaggy"}}
    item = {"id": "a", "inputs": [flux], "meta": {"ra": 150.1, "dec": 2.2, "labels": {"class": "STAR"}}}
    curve = {"table": {"mjd": [1.0, 2.0], "band": ["g", "r"], "flux": [1.0, None]}, "units": {"flux": "nJy"}}
    image = {"b64": base64.b64encode(cutout()[:5760]).decode(), "format": "fits", "modality": IMAGE}
    read = {"survey": "legacysurvey", "columns": {"id": "name"}, "at": [150.0, 2.0], "bands": ["g", "r"]}
    embed = {"items": [item, {"inputs": [curve, image]}], "options": {"pooling": "tokens", "read": read}}
    stored = {"id": "x", "vector": [0.5] * 16, "ra": 1.0, "dec": 2.0, "metadata": {"a": [1]}, "modalities": [IMAGE]}
    space = "toy@0123456789ab:mean"
    search = {"query": {"vector": {"values": [0.5] * 16, "space": space}}, "k": 3}
    tokens = {"items": [{"id": "a", "tokens": {IMAGE: [1, 2, 3, 4]}}], "options": {"encoding": "base64"}}

    def request(path: str, body: bytes, kind: str = "application/json", **headers: str) -> Parts:
        return text({"path": path, "headers": {"Content-Type": kind, **headers}}), body

    def form(*parts: tuple[str, str, bytes]) -> bytes:
        out = b""
        for name, filename, content in parts:
            named = f'; filename="{filename}"' if filename else ""
            out += f'--x\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + content + b"\r\n"
        return out + b"--x--\r\n"

    named = text({"items": [{"id": "a", "inputs": [{"ref": "part:f"}]}]})
    multipart = "multipart/form-data; boundary=x"
    return [
        request("/v1/embed", text(embed)),
        request("/v1/validate", text(embed)),
        request("/v1/tokenize?join=true", text({"items": [item]})),
        request("/v1/detokenize", text(tokens)),
        request("/v1/predict/tok_z", text({"items": [item], "options": {}})),
        request("/v1/collections/c/objects", text({"objects": [stored], "space": space})),
        request("/v1/collections/c/search", text(search)),
        request("/v1/embed?pooling=mean&survey=legacysurvey", cutout(), "application/fits"),
        request("/v1/embed", form(("request", "", named), ("f", "a.fits", cutout())), multipart),
        request("/v1/validate", form(("f", "a.csv", b"id,flux_g\na,1\n"), ("g", "b.csv", b"x")), multipart),
        request("/v1/embed", gzip.compress(text({"items": [item]}), 1, mtime=0), **{"Content-Encoding": "gzip"}),
        request("/v1/embed", text({"items": [item]}), Accept="application/x-npz"),
    ]


def tokens() -> Sequence[Parts]:
    """What it is, and its bytes."""
    from albireo.service.client_tokens import TokenTable
    from albireo.service.table_bytes import archive_bytes

    ids = np.arange(8, dtype=np.uint16).reshape(2, 4)
    whole = {f"tokens.{IMAGE}": ids, f"codec.{IMAGE}": np.array("toy-codec"), "ids": np.array(["a", "b"])}
    flat = {f"tokens.{IMAGE}": ids.ravel(), f"lengths.{IMAGE}": np.array([4, 4]), f"objects.{IMAGE}": np.array([0, 1])}
    body = {"items": [{"id": "a", "tokens": {IMAGE: [1, 2, 3, 4], "tok_flux_g": [5]}}], "codecs": {IMAGE: "toy-codec"}}
    out: list[Parts] = [(b"npz", archive_bytes(whole)), (b"npz", archive_bytes(flat)), (b"json", text(body))]
    table = TokenTable(
        {"id": ["a"], "status": ["ok"]}, meta={"quantisers": {IMAGE: {"dtype": "uint16", "codec": "toy-codec"}}}
    )
    cells = np.empty(1, object)
    cells[0] = {IMAGE: np.arange(4, dtype=np.uint16)}
    table["tokens"] = cells
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("ecsv", "parquet", "fits"):
            path = Path(folder) / f"t.{kind}"
            table.write(path)
            out.append((kind.encode(), path.read_bytes()))
    return out


def client() -> Sequence[Parts]:
    """What it is, and its bytes: options, or an answer of a service by its content type."""
    options = {"survey": "legacysurvey", "bands": ["g", "r"], "at": [150.0, 2.0], "columns": {"id": "n"}, "unit": "nJy"}
    numbers = {"numbers": {"dtype": "<f4"}, "items": [{"shape": [4], "id": "a"}, {"shape": None, "id": "b"}]}
    arrays = [{"dtype": "<u2", "shape": [2, 4], "lengths": None, "objects": [0, 1], "modality": IMAGE}]
    raw = "application/vnd.albireo.raw"

    def headed(header: Any, content: bytes) -> bytes:
        return len(text(header)).to_bytes(4, "little") + text(header) + content

    answer = {"items": [{"id": "a", "status": "ok", "embedding": [1.0]}], "space": "x", "request_id": "1"}
    problem = {"code": "damaged_file", "detail": "why", "status": 422, "file": "a", "field": "b", "fix": "c"}
    return [
        (b"options", text(options)),
        (b"200 " + raw.encode(), headed(numbers, np.ones(4, "<f4").tobytes())),
        (b"200 " + raw.encode(), headed({"items": [{}, {}], "arrays": arrays}, np.ones(8, "<u2").tobytes())),
        (b"200 application/json", text(answer)),
        (b"422 application/problem+json", text(problem)),
    ]


def storage() -> Sequence[Parts]:
    """What it is, and the bytes of an SQLite file."""
    from albireo.index.byte_cache import SMALLEST, ByteCache
    from albireo.index.collection import Collections, StoredObject

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        collections = Collections(place / "c.sqlite")
        one = collections.create("c", "toy@0123456789ab:mean", 4)
        rng = np.random.default_rng(1)
        vectors = rng.normal(size=(20, 4)).astype(np.float32)
        one.upsert([StoredObject(f"o{k}", v, 1.0 * k, 2.0, {"k": k}, (IMAGE,)) for k, v in enumerate(vectors)])
        collections.close()
        cache = ByteCache(place / "b.sqlite", SMALLEST)
        cache.put({bytes([k]) * 32: bytes(50 + k) for k in range(20)})
        cache.close()
        return [(b"collections", (place / "c.sqlite").read_bytes()), (b"cache", (place / "b.sqlite").read_bytes())]
