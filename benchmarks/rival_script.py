"""The shortest sensible script on `polymathic-aion`: survey files in, a Parquet table of embeddings out.

What somebody would write who has the package, astropy and an afternoon. It knows the four formats of the benchmark
and nothing else: cameras of a DESI coadd are put one after another by wavelength instead of averaged where they
overlap, and units, masks and conventions are taken on trust. The objects of one file are one batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from aion import modalities as aion
from astropy.io import fits
from astropy.table import Table

FLUXES = {
    f"FLUX_{band}": getattr(aion, f"LegacySurveyFlux{band}") for band in ("G", "R", "I", "Z", "W1", "W2", "W3", "W4")
}


def floats(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array, np.float32))


def read(path: Path) -> tuple[list[str], list[Any]]:
    """Ids of the objects of a file, and their modalities as batches."""
    if path.suffix == ".ecsv":
        table = Table.read(path)
        return [str(name) for name in table["id"]], [
            kind(value=floats(table[flux])) for flux, kind in FLUXES.items() if flux in table.colnames
        ]
    with fits.open(path) as hdus:
        if "COADD" in hdus:
            rows = hdus["COADD"].data
            columns = (rows["flux"], rows["ivar"], 10 ** rows["loglam"])
            flux, ivar, wavelength = (floats(column)[None] for column in columns)
            mask = torch.from_numpy(rows["and_mask"] != 0)[None]
            return [hdus["SPECOBJ"].data["SPECOBJID"][0]], [
                aion.SDSSSpectrum(flux=flux, ivar=ivar, mask=mask, wavelength=wavelength)
            ]
        if "B_FLUX" in hdus:
            grid = np.concatenate([hdus[f"{camera}_WAVELENGTH"].data for camera in "BRZ"])
            order = np.argsort(grid, kind="stable")
            flux, ivar, bad = (
                np.concatenate([hdus[f"{camera}_{part}"].data for camera in "BRZ"], axis=1)[:, order]
                for part in ("FLUX", "IVAR", "MASK")
            )
            ids = [str(name) for name in hdus["FIBERMAP"].data["TARGETID"]]
            wavelength = floats(grid[order])[None].repeat(len(ids), 1)
            return ids, [
                aion.DESISpectrum(
                    flux=floats(flux), ivar=floats(ivar), mask=torch.from_numpy(bad != 0), wavelength=wavelength
                )
            ]
        flux = np.nan_to_num(hdus[0].data.astype(np.float32))
        bands = [f"DES-{band.upper()}" for band in hdus[0].header["BANDS"]]
        return [hdus[0].header["OBJID"]], [aion.LegacySurveyImage(flux=torch.from_numpy(flux)[None], bands=bands)]


@torch.inference_mode()
def embed_files(model: Any, codecs: Mapping[str, Any], paths: Sequence[Path], output: Path) -> int:
    """Embed every object of the files into a Parquet table; returns how many."""
    ids: list[str] = []
    vectors: list[np.ndarray] = []
    for path in paths:
        names, modalities = read(path)
        tokens = {m.token_key: codecs[m.token_key].encode(m).reshape(len(names), -1) for m in modalities}
        count = sum(one.shape[1] for one in tokens.values())
        ids += names
        vectors += list(model.encode(tokens, num_encoder_tokens=count).mean(dim=1).float().numpy())
    pq.write_table(pa.table({"id": ids, "embedding": [vector.tolist() for vector in vectors]}), output)
    return len(ids)
