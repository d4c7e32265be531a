"""Examples of the OpenAPI document: what is sent, what is answered, and how the binary forms lie."""

from __future__ import annotations

from typing import Any

from albireo.service import reply_formats as formats

_SPACE = "albireo-mini@0123456789ab:albireo-1"
_PHOTOMETRY = {
    "modality": "photometry",
    "values": {"FLUX_G": 12.5, "FLUX_G_unit": "nanomaggy", "FLUX_R": 18.25, "FLUX_R_unit": "nanomaggy"},
    "read": {"survey": "legacysurvey"},
}
_ITEM = {"id": "ls-dr10-1", "inputs": [_PHOTOMETRY], "meta": {"ra": 190.045, "dec": 62.883}}

REQUESTS: dict[str, dict[str, Any]] = {
    "EmbedRequest": {"items": [_ITEM], "options": {"pooling": "mean"}},
    "TokenizeRequest": {"items": [_ITEM]},
    "DetokenizeRequest": {"items": [{"id": "ls-dr10-1", "tokens": {"legacysurvey.flux_r": [217]}}]},
    "PredictOne": {"items": [_ITEM]},
    "PredictRequest": {"heads": ["tok_z"], "items": [_ITEM], "options": {"density": False}},
    "GenerateRequest": {
        "items": [_ITEM],
        "options": {"target": "legacysurvey.flux_r", "from": ["legacysurvey.flux_g"], "draws": 2, "seed": 1},
    },
    "ObjectsRequest": {"items": [_ITEM]},
    "SearchRequest": {"query": {"inputs": [_PHOTOMETRY]}, "k": 5},
    "CollectionRequest": {"metric": "cosine"},
}
"""Model of a request -> an example of it."""

_NUMERICS = {"dtype": "float32", "compute": "float32", "device": "cpu", "tokens": "float32"}
_REQUEST_ID = "0f8fad5bd9cb469fa16570867728950e"
_TIMINGS = {"parse": 0.4, "tokenize": 0.3, "queue": 0.1, "encode": 2.1, "serialize": 0.2}
_ENVELOPE = {
    "space": f"{_SPACE}:mean",
    "model": "albireo-mini",
    **_NUMERICS,
    "dim": 4,
    "timings_ms": _TIMINGS,
    "usage": {"tokens": 2},
    "request_id": _REQUEST_ID,
}
_TOKEN_ENVELOPE = {
    "model": "albireo-mini",
    "checkpoint": "0123456789ab:albireo-1",
    **_NUMERICS,
    "timings_ms": {"parse": 0.4, "tokenize": 0.3, "queue": 0.1, "serialize": 0.2},
    "usage": {"tokens": 2},
    "request_id": _REQUEST_ID,
}
_USED = ["legacysurvey.flux_g", "legacysurvey.flux_r"]
_OBJECT = {"id": "ls-dr10-1", "file": "items.0.inputs.0.ecsv", "ra": 190.045, "dec": 62.883}
_GOOD = {**_OBJECT, "status": "ok", "n_tokens": 2, "qa_flags": [], "warnings": [], "error": None}
_QUANTISER = {"key": "tok_flux_r", "codec": "5d1c", "n_tokens": 1, "vocabulary": 512, "grid": [1, 1], "dtype": "uint16"}
_DECODED = {
    "key": "tok_flux_r",
    "unit": "nanomaggy",
    "axes": ["number"],
    "bands": [],
    "wavelength": None,
    "pixel_scale": None,
    "codec": "5d1c",
}
_HEAD = {
    "name": "tok_z",
    "origin": "built in",
    "version": "",
    "task": "redshift",
    "targets": ["redshift"],
    "units": [""],
    "classes": [],
    "space": f"{_SPACE}:tokens",
}
_SAID = {
    "numbers": [
        {"name": "redshift", "unit": "", "value": 0.31, "intervals": [{"level": 0.68, "low": 0.28, "high": 0.35}]}
    ],
    "class": None,
    "classes": {},
    "density": {"mean": 0.32, "std": 0.04, "mode": 0.31, "probability": None},
    "flags": [],
    "typicality": None,
    "error": None,
}
_HIT = {
    "id": "ls-dr10-7", "score": 0.991, "ra": 190.1, "dec": 62.9, "modalities": ["image.legacysurvey"], "metadata": {}
}  # fmt: skip

_COLLECTION = {
    "name": "ls-dr10", "space": f"{_SPACE}:mean", "dim": 192, "metric": "cosine", "count": 200_000
}  # fmt: skip
_MODEL = {
    "id": "albireo-mini@0123456789ab",
    "name": "albireo-mini",
    "state": "loaded",
    "fingerprint": "0123456789ab",
    "spaces": {"mean": f"{_SPACE}:mean"},
    "dim": 192,
    **_NUMERICS,
    "inputs": {"legacysurvey.flux_r": 1},
    "outputs": {"legacysurvey.flux_r": 1},
    "heads": ["tok_z"],
    "seconds_to_drain": 0.0,
}

ANSWERS: dict[str, dict[str, Any]] = {
    "EmbedReply": {
        **_ENVELOPE,
        "items": [
            {
                **_GOOD,
                "embedding": [0.1, -0.2, 0.3, 0.4],
                "shape": [4],
                "rows": None,
                "modalities_used": _USED,
                "cache": "miss",
            },
        ],
    },
    "PredictReply": {
        **_ENVELOPE,
        "heads": {"tok_z": _HEAD},
        "items": [{**_GOOD, "predictions": {"tok_z": _SAID}, "modalities_used": _USED}],
    },
    "TokenizeReply": {
        **_TOKEN_ENVELOPE,
        "quantisers": {"legacysurvey.flux_r": _QUANTISER},
        "items": [{**_GOOD, "tokens": {"legacysurvey.flux_r": [217]}}],
    },
    "DetokenizeReply": {
        **_TOKEN_ENVELOPE,
        "modalities": {
            "legacysurvey.flux_r": _DECODED,
        },
        "items": [
            {
                "id": "ls-dr10-1",
                "status": "ok",
                "values": {"legacysurvey.flux_r": {"shape": [1], "values": [18.3]}},
                "error": None,
            }
        ],
    },
    "GenerateReply": {
        **_TOKEN_ENVELOPE,
        "timings_ms": {"parse": 0.4, "generate": 5.1},
        "target": {
            **_DECODED,
            "modality": "legacysurvey.flux_r",
            "axes": ["draw", "number"],
            "shape": [1],
        },
        "known": {"mask": None, "keep": None, "from": ["legacysurvey.flux_g"]},
        "sampling": {
            "rounds": 8,
            "schedule": "cosine",
            "temperature": 1.0,
            "cooling": "constant",
            "top_k": 0,
            "top_p": 0.0,
            "guidance": 1.0,
            "draws": 2,
            "seed": 1,
        },
        "items": [
            {
                **_GOOD,
                "tokens": [[217], [224]],
                "values": {"shape": [2, 1], "values": [[18.3], [20.1]]},
                "modalities_used": ["legacysurvey.flux_g"],
            }
        ],
    },
    "SearchReply": {
        "collection": "ls-dr10",
        "space": f"{_SPACE}:mean",
        "model": "albireo-mini",
        "metric": "cosine",
        "exact": True,
        "k": 1,
        "results": [{"query": None, "k_returned": 1, "short_reason": None, "hits": [_HIT]}],
        "timings_ms": {"parse": 0.1, "search": 0.9, "serialize": 0.1, "total": 1.2},
        "request_id": _REQUEST_ID,
    },
    "ObjectsReply": {
        "collection": "ls-dr10",
        "space": f"{_SPACE}:mean",
        "model": "albireo-mini",
        "indexed": 1,
        "count": 1,
        "items": [{**_GOOD, "embedding": None, "shape": None, "rows": None, "modalities_used": _USED, "cache": "miss"}],
        "timings_ms": _TIMINGS,
        "request_id": _REQUEST_ID,
    },
    "ValidateReply": {
        "model": "albireo-mini",
        "files": [
            {
                "file": "spec-0266-51630-0053.fits",
                "format": "sdss_spec",
                "recognised": True,
                "n_objects": 1,
                "n_failed": 0,
                "companion_of": None,
                "error": None,
            }
        ],
        "items": [
            {
                "id": "sdss-266-51630-53",
                "file": "spec-0266-51630-0053.fits",
                "status": "ok",
                "usable": True,
                "ra": 146.7,
                "dec": -1.0,
                "detected": {
                    "format": "sdss_spec",
                    "modalities": [
                        {"modality": "spectrum.sdss", "unit": "1e-17 erg / (s cm2 Angstrom)", "n_tokens": 273}
                    ],
                    "extras": {},
                    "n_tokens": 273,
                },
                "metadata": {"redshift": 0.1},
                "qa_flags": ["masked_pixels"],
                "warnings": [],
                "errors": [],
            }
        ],
        "timings_ms": {"parse": 12.5},
        "usage": {"tokens": 273},
        "request_id": _REQUEST_ID,
    },
    "HeadsReply": {
        "heads": [{**_HEAD, "fits": True, "card": None}],
        "errors": [],
        "model": "albireo-mini",
        "request_id": _REQUEST_ID,
    },
    "CollectionReply": _COLLECTION,
    "CollectionsReply": {"collections": [_COLLECTION], "request_id": _REQUEST_ID},
    "ModelReply": _MODEL,
    "ModelsReply": {"models": [_MODEL], "request_id": _REQUEST_ID},
    "ModalitiesReply": {
        "model": "albireo-mini",
        "modalities": [
            {
                "modality": "legacysurvey.flux_r",
                "key": "tok_flux_r",
                "kind": "scalar",
                "survey": "legacysurvey",
                "unit": "nanomaggy",
                "bands": [],
                "shape": [],
                "pixel_scale": None,
                "aion": True,
                "read": True,
                "predicted": True,
                "quantiser": _QUANTISER,
            }
        ],
        "request_id": _REQUEST_ID,
    },
    "FormatsReply": {
        "formats": [{"name": "fits_image", "description": "FITS image: cube, one HDU per band, or one band"}],
        "bodies": ["application/json", "multipart/form-data", "application/fits"],
        "answers": {"embed": list(formats.EMBEDDINGS)},
        "options": {"survey": "whose data it is: legacysurvey, hsc, sdss, desi, gaia, ..."},
        "request_id": _REQUEST_ID,
    },
    "LimitsReply": {
        "limits": {"max_body_bytes": 268435456, "max_items": 10000, "deadline_seconds": 60.0},
        "request_id": _REQUEST_ID,
    },
    "InfoReply": {
        "name": "albireo",
        "version": "0.1.0",
        "model": "albireo-mini",
        "dim": 192,
        "spaces": {"mean": f"{_SPACE}:mean"},
        "modalities": [{"modality": "legacysurvey.flux_r", "unit": "nanomaggy", "n_tokens": 1}],
        "formats": [{"name": "fits_image", "description": "FITS image: cube, one HDU per band, or one band"}],
        "limits": {"max_body_bytes": 268435456, "max_items": 10000},
        "request_id": _REQUEST_ID,
    },
    "LiveReply": {"status": "alive"},
    "StartedReply": {"status": "started"},
    "ReadyReply": {
        "status": "ready",
        "capabilities": {"embed": {"ok": True}, "search": {"ok": True}},
        "request_id": _REQUEST_ID,
    },
    "Problem": {
        "type": "/docs/errors#unit_missing",
        "title": "a number without a unit",
        "status": 422,
        "detail": "column 'flux_g' has no unit: a magnitude or a flux?",
        "code": "unit_missing",
        "field": "flux_g",
        "fix": "state unit, e.g. mag, nanomaggy or uJy",
        "request_id": _REQUEST_ID,
    },
}
"""Model of an answer -> an example of it."""

_ROWS = "one row an object (a vector, a neighbour); what failed has a row with status, error_code, error_message, "
_ROWS += "error_field and error_fix; what computed it is in"

LAYOUTS: dict[str, str] = {
    formats.RAW: "u32, little-endian: length of the header; the header, JSON: what the JSON answer says, without the "
    "numbers; then all numbers, little-endian, row by row. `shape` of an item says how many of them are its own, null "
    "none. Python: `n = int.from_bytes(body[:4], 'little'); header = json.loads(body[4:4 + n]); numbers = "
    "np.frombuffer(body, header['numbers']['dtype'], offset=4 + n).reshape(header['numbers']['shape'])`",
    formats.NPY: "the array (N, D) of float32, (N, M, D) where pooling gives M rows; 406 if an object failed, because "
    "it has no place for that. Python: `np.load(io.BytesIO(body))`",
    formats.NPZ: "arrays without pickles, one element a row: ids, status, vectors, ..; errors are the numbers of the "
    "rows that failed, error_code, error_message, .. say why. Python: `np.load(io.BytesIO(body))['vectors']`",
    formats.ARROW: f"{_ROWS} the metadata of the schema. Python: `pyarrow.ipc.open_stream(body).read_all()`",
    formats.PARQUET: f"{_ROWS} the metadata of the schema. Python: `pyarrow.parquet.read_table(io.BytesIO(body))`",
    formats.FITS: f"{_ROWS} the header of the binary table. Python: `astropy.table.Table.read(io.BytesIO(body), "
    "format='fits')`",
    formats.VOTABLE: f"{_ROWS} INFO elements; numbers are BINARY2, or text with `Accept: {formats.VOTABLE};"
    "serialization=tabledata`. Python: `astropy.table.Table.read(io.BytesIO(body), format='votable')`",
    formats.CSV: f"{_ROWS} the last columns; an array is a column for each of its numbers, NAME_0, NAME_1, ..",
}
"""Media type of an answer -> what it looks like."""

BODIES: dict[str, str] = {
    "application/fits": "a FITS file of any kind that is read (`/v1/formats`)",
    "image/fits": "the same",
    "application/vnd.apache.arrow.stream": "an Arrow IPC stream: the columns of any table that is read, units as "
    "metadata `unit` of a field, the survey as metadata `survey` of the schema",
    "application/vnd.apache.arrow.file": "the same as an Arrow IPC file (Feather)",
    "application/vnd.apache.parquet": "the same as Parquet",
    "application/x-npz": "a NumPy archive of images, spectra, maps or catalogs; of tokens for /v1/detokenize",
    "application/x-votable+xml": "a VOTable",
    "text/csv": "a table with a header",
    "application/avro": "alerts of ZTF or LSST",
    "application/octet-stream": "any file that is read: its content tells the format",
}
"""Content type of a body that is a file -> what is meant."""

TABLE_TEXT = "id,ra,dec,FLUX_G,FLUX_R\nls-dr10-1,190.045,62.883,12.5,18.25\n"
"""A body that is text, for `?survey=legacysurvey`."""

CSV_ANSWERS = {
    "EmbedReply": "id,ra,dec,embedding_0,embedding_1,n_tokens,status,space,model\n"
    f'"ls-dr10-1",190.045,62.883,0.1,-0.2,2,"ok","{_SPACE}:mean","albireo-mini"\n',
    "PredictReply": "id,ra,dec,tok_z,tok_z_low68,tok_z_high68,status,space,model\n"
    f'"ls-dr10-1",190.045,62.883,0.31,0.28,0.35,"ok","{_SPACE}:tokens","albireo-mini"\n',
    "SearchReply": "query,query_id,rank,id,ra,dec,score,status,space,model\n"
    f'0,"ls-dr10-1",1,"ls-dr10-7",190.1,62.9,0.991,"ok","{_SPACE}:mean","albireo-mini"\n',
}
"""Model of an answer -> a part of what it is as CSV."""
