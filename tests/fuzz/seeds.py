"""Files that changes begin with: small ones of every format, those of the sample set, and real ones if there are any.

Each function gives inputs, the options first. Real files are in the folder that `ALBIREO_TEST_DATA` names; nothing of
them is kept here. What the tests of a reader make is taken from them, so a new layout there is a seed here.
"""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.mutation import Parts

SAMPLES = Path(__file__).parents[2] / "observations" / "samples"

MOST = 800_000
"""Bytes of a real file that is a seed, at most: changes of small ones are many."""

LEGACY = {"survey": "legacysurvey"}
DENSITY = "1e-17 erg/(s cm2 Angstrom)"
SPECTRUM = {"survey": "desi", "unit": DENSITY, "medium": "vacuum", "frame": "barycentric"}


def given(*contents: bytes, **options: Any) -> Parts:
    """An input of files and what is said of them."""
    return (json.dumps(options).encode(), *contents)


def real(pattern: str, most: int = MOST) -> Iterator[bytes]:
    """Real files by a pattern, small ones."""
    folder = os.environ.get("ALBIREO_TEST_DATA")
    for path in sorted(Path(folder).glob(pattern)) if folder else ():
        if path.stat().st_size <= most:
            yield path.read_bytes()


def sample(name: str) -> bytes:
    return (SAMPLES / name).read_bytes()


def images() -> Sequence[Parts]:
    from astropy.io import fits

    from tests.observations import test_images as t

    cutout = t.cutout(t.cube(), t.stated()).content
    planes = [fits.ImageHDU(t.cube((100, 98)), t.header(t.stated((100, 98), FILTER=band))) for band in "grz"]
    mask = fits.ImageHDU(np.zeros((3, 96, 96), np.int16), name="MASK")
    with_mask = t.source(fits.PrimaryHDU(t.cube(), t.header(t.stated())), mask).content
    whole = (np.arange(3 * 96 * 96).reshape(3, 96, 96) % 1000).astype(np.int32)
    compressed = [
        t.source(fits.PrimaryHDU(), fits.CompImageHDU(whole, t.header(t.stated()), compression_type=kind)).content
        for kind in ("RICE_1", "GZIP_1", "GZIP_2", "HCOMPRESS_1", "PLIO_1", "NOCOMPRESS")
    ]
    pixels = fits.CompImageHDU(t.cube().astype(">f4"), t.header(t.stated()), quantize_level=4)
    mosaic = t.cutout(t.cube((3, 200, 200)), t.stated((200, 200))).content
    return [
        given(cutout),
        given(gzip.compress(cutout, 1, mtime=0)),
        given(t.source(fits.PrimaryHDU(), *planes).content),
        given(with_mask),
        *(given(one) for one in compressed),
        given(t.source(fits.PrimaryHDU(), pixels).content),
        given(mosaic, at=(150.0, 2.0)),
        given(mosaic, t.positions_csv().encode(), positions="f1"),
        given(cutout, at=(150.0, 2.0), resample=True, pixel_scale=0.262, bands=["g", "r", "z"], unit="nanomaggy"),
        given(sample("cutout-39627600000000001.fits.gz")),
        *(given(one, survey="legacysurvey") for one in real("raw/images/*.fits", 4 << 20)),
        given(b"\xff\xd8\xff\xe0" + bytes(100)),
    ]


def sdss() -> Sequence[Parts]:
    from astropy.io import fits

    from tests.observations import test_spectra as t

    row = {"PLATE": 266, "MJD": 51630, "FIBERID": 48, "PLUG_RA": 146.1, "PLUG_DEC": 0.6, "CLASS": "GALAXY", "Z": 0.25}
    row |= {"SUBCLASS": "STARFORMING", "Z_ERR": 0.001, "ZWARNING": 0, "SPECOBJID": "299622993229801472"}
    n = t.LENGTH
    primary = fits.PrimaryHDU(np.ones((3, n), np.float32))
    cards = {"TELESCOP": "SDSS 2.5-M", "COEFF0": 3.58, "COEFF1": 1e-4, "PLATEID": 266, "MJD": 51630, "BUNIT": t.BUNIT}
    primary.header.update(cards)
    columns = [
        fits.Column("OBJTYPE", "16A", array=["GALAXY", "SKY", "QSO"]),
        fits.Column("FIBERID", "J", array=[1, 2, 3]),
        fits.Column("RA", "D", array=[150.0, 151.0, 152.0]),
        fits.Column("DEC", "D", array=[1.0, 2.0, 3.0]),
    ]
    masks = (np.zeros((3, n), np.int32), np.zeros((3, n), np.int32))
    others = [fits.ImageHDU(values) for values in (np.ones((3, n)), *masks)]
    plate = t.source(primary, *others, fits.BinTableHDU.from_columns(columns)).content
    found = list(real("raw/sdss/*.fits"))
    return [
        given(t.spec(row=row).content),
        given(t.spec(case=str.upper, drop=("or_mask",)).content, unit=DENSITY, frame="heliocentric"),
        given(t.spspec().content),
        given(plate),
        given(sample("spec-39627600000000009.fits.gz")),
        *(given(one) for one in (*found[:2], *found[-1:])),
    ]


def lamost() -> Sequence[Parts]:
    from astropy.io import fits

    from tests.observations import test_spectra as t

    n = t.LENGTH
    arrays = {"FLUX": "E", "IVAR": "E", "WAVELENGTH": "E", "ANDMASK": "J", "ORMASK": "J"}
    values = dict(zip(arrays, (np.ones(n), np.ones(n), 4000 + np.arange(n), np.zeros(n), np.zeros(n)), strict=True))
    columns = [fits.Column(name, f"{n}{form}", array=values[name][None]) for name, form in arrays.items()]
    primary = fits.PrimaryHDU()
    primary.header.update({"TELESCOP": "LAMOST", "VACUUM": True, "HELIO": True, "LMJD": 55862, "SPID": 6, "FIBERID": 5})
    table = t.source(primary, fits.BinTableHDU.from_columns(columns, name="COADD")).content
    image = t.lamost_image().content
    return [given(image), given(gzip.compress(image, 1, mtime=0)), given(table), given(table, medium="vacuum"),
            *(given(one) for one in list(real("raw/lamost/*.fits"))[:2])]  # fmt: skip


def desi() -> Sequence[Parts]:
    from tests.observations import test_desi as t

    pixels, table = t.cameras(3), t.fibermap(3)
    coadd = t.coadd(pixels, table).content
    redrock = t.redrock([t.BIG, t.BIG + 1]).content
    theirs = [next(real(f"raw/desi/{name}"), None) for name in ("coadd-4-*.fits", "redrock-4-*.fits")]
    return [
        given(coadd),
        given(coadd, redrock),
        given(redrock, coadd),
        given(redrock),
        given(t.coadd({"B": pixels["B"]}, None, unit=None).content, unit=DENSITY),
        given(sample("coadd-simulated.fits.gz"), sample("redrock-simulated.fits.gz")),
        *([given(*(one for one in theirs if one is not None))] if all(theirs) else []),
    ]


def plain_spectra() -> Sequence[Parts]:
    from tests.observations import test_plain_spectra as t

    short = t.table()[:60]
    return [
        *(given(t.save(short, kind).content, **SPECTRUM) for kind in ("csv", "ecsv", "fits")),
        given(t.save(t.table(), "fits").content, **SPECTRUM | {"medium": "air"}),
        given(b"loglam,flux,error\n" + b"".join(b"%.4f,%d,1\n" % (3.6 + k / 1e4, k) for k in range(60)), **SPECTRUM),
    ]


def gaia() -> Sequence[Parts]:
    from tests.observations import test_gaia as t

    return [
        given(t.csv_of([t.row(), t.row(source_id=t.BIG + 5)]).content),
        *(given(t.save(t.table(), kind).content) for kind in t.FORMATS),
        *(given(one, release="dr3") for one in real("raw/gaia/*")),
    ]


def snana() -> Sequence[Parts]:
    from tests.observations import test_snana as t

    head, phot = (one.content for one in t.pair())
    cards = {"MWEBV_APPLYFLAG": 1, "PHOTFLAG_DETECT": 4096}
    flagged = [one.content for one in t.pair(cards=cards, photflag=(4096, 0, 4097))]
    theirs = [next(real(f"raw/snana/*_{name}.FITS.gz"), None) for name in ("HEAD", "PHOT")]
    return [
        given(head, phot),
        given(phot, head),
        given(*flagged),
        given(head),
        given(t.TEXT.encode()),
        given(gzip.compress(t.TEXT.encode(), 1, mtime=0)),
        *(given(one) for one in list(real("raw/snana/*.txt"))[:3]),
        *([given(*(one for one in theirs if one is not None))] if all(theirs) else []),
    ]


def alerts() -> Sequence[Parts]:
    import fastavro

    from tests.observations import test_alerts as t

    made = []
    past = [t.detection(-2, 11), t.detection(-1, 12, mag=None)]
    records = [t.packet(), t.packet(*past, fp_hists=[t.forced(-3, 5), t.forced(-2, 11, -99999.0)])]
    for codec in ("null", "deflate"):
        out = io.BytesIO()
        fastavro.writer(out, t.SCHEMA, records, codec=codec, sync_marker=b"0123456789abcdef")
        made.append(given(out.getvalue()))
    bare = io.BytesIO()
    schema, record = t.sample(t.SAMPLES[-1])
    bare.write(b"\x00" + (900).to_bytes(4, "big"))
    fastavro.schemaless_writer(bare, schema, record)
    return [*made, *(given(path.read_bytes()) for path in (t.SAMPLES[0], *t.SAMPLES[-2:])), given(bare.getvalue()),
            *(given(one) for one in real("raw/ztf/*.avro"))]  # fmt: skip


def lightcurves() -> Sequence[Parts]:
    from tests.observations import test_lightcurves as t

    magnitudes = b"id,mjd,filter,mag,magerr\na,55001.0,r,20.1,0.1\na,55002.0,g,19.5,0.2\nb,55003.0,i,,\n"
    return [
        given(t.PLASTICC.encode()),
        given(t.PLASTICC.encode(), t.METADATA.encode()),
        given(t.METADATA.encode()),
        given(t.TABLE.encode(), extinction_corrected=True),
        given(magnitudes, survey="PS1", system="AB", extinction_corrected=False),
        given(magnitudes, survey="PS1", system="AB", columns={"mjd": "mjd", "band": "filter", "mag": "mag"}),
        *(given(one, extinction_corrected=False) for one in real("eval/*_lightcurves.parquet", 400_000)),
    ]


def archives() -> Sequence[Parts]:
    from tests.observations import test_catalogs as c
    from tests.observations import test_packed as t

    spectra = {name: value[:, :80] if np.ndim(value) == 2 else value[:80] if np.ndim(value) == 1 else value
               for name, value in t.spectra(2).items()}  # fmt: skip
    image = {"flux": t.pixels(3, 96, 96), "ra": 150.0, "dec": 2.0, **t.LEGACY}
    return [
        given(t.archive(image).content),
        given(t.archive({"flux": t.pixels(2, 3, 96, 96), "ids": ["a", "b"], **t.LEGACY}).content),
        given(t.archive({"image": t.pixels(4, 96, 96)}).content, bands=list("griz"), unit="nanomaggy",
              pixel_scale=0.262, **LEGACY),
        given(t.archive(spectra).content),
        given(t.archive({"flux": np.ones(50), "loglam": 3.6 + np.arange(50) / 1e4, "error": np.ones(50)}).content,
              **SPECTRUM),
        given(c.archive(segmentation_map=c.field(), pixel_scale=0.262), **LEGACY),
        given(c.archive(**c.CATALOGS, survey="legacysurvey")),
        given(c.archive(images=np.ones((2, 3, 96, 96), np.float32), **c.CATALOGS, **t.LEGACY)),
        *(given(one, survey="hsc", bands=list("grizy"), unit="uJy") for one in real("raw/images/*.npz")),
        *(given(one, bands=list("griz"), unit="nanomaggy", **LEGACY) for one in real("eval/piczl*.npz")),
    ]  # fmt: skip


def tables() -> Sequence[Parts]:
    from tests.observations import test_catalogs as c
    from tests.observations import test_tables as t

    gaia = b"source_id,ra,dec,parallax,parallax_error,phot_g_mean_flux\n4295806720,44.9,0.1,3.1,0.02,1500.5\n"
    hsc = b"object_id,g_cmodel_mag,g_cmodel_magsigma,a_g\n38553510571974720,21.5,0.01,0.08\n"
    asinh = b"objid,u,g,r,psfMag_r,redshift,err_g\n1237650795146051733,19.1,18.2,17.5,17.6,0.1,0.02\n"
    spaced = b'# a comment\nid;flux_g;flux_r\n"a ""b""";1.5;2.5\nb;nan;\n'
    return [
        given(t.LEGACY.encode()),
        given(t.LEGACY.encode(), tokens=["ra"], columns={"id": "objid"}),
        given(hsc),
        given(gaia),
        given(asinh, survey="sdss", unit="mag", kind="model"),
        given(spaced, **LEGACY),
        given(gzip.compress(gaia, 1, mtime=0)),
        given(c.ROWS.encode(), **LEGACY),
        given(c.ROWS.encode(), nearest=1, **LEGACY),
        given(sample("photometry.ecsv")),
        *(given(b"".join(one.splitlines(True)[:20]), **LEGACY) for one in real("eval/*_objects.csv")),
    ]


def columns() -> Sequence[Parts]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tests.observations import test_arrow as t

    wide = t.photometry(20)
    texts = pa.array(["GALAXY", "STAR", None] * 6 + ["QSO", "QSO"])
    more = wide.append_column("class", texts.dictionary_encode()).append_column("view", texts.cast(pa.string_view()))
    lists = wide.append_column("FLUX_I", pa.array([[1.0, 2.0]] * 20)).append_column("s", pa.array([{"a": 1}] * 20))
    plain = io.BytesIO()
    pq.write_table(
        more, plain, compression="none", use_dictionary=False, write_statistics=False, data_page_version="2.0"
    )
    packed = io.BytesIO()
    pq.write_table(lists, packed, compression="gzip", row_group_size=7)
    found = [
        t.parquet(wide),
        plain.getvalue(),
        packed.getvalue(),
        t.stream(wide),
        t.stream(more, rows=6),
        t.file(lists),
    ]
    return [
        *(given(one, **LEGACY) for one in found),
        *(given(t.stream(more, kind), **LEGACY) for kind in ("lz4", "zstd")),
        *(given(one, survey="sdss") for one in real("eval/photoz_*.parquet", 300_000)),
    ]


def votables() -> Sequence[Parts]:
    import warnings

    from tests.observations import test_row_spans as s
    from tests.observations import test_tables as t

    small = s.table(8)
    out = [given(t.table_bytes(small, form), **LEGACY) for form in ("votable", "fits")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for form in ("binary", "binary2"):
            stream = io.BytesIO()
            small.write(stream, format="votable", tabledata_format=form)
            out.append(given(stream.getvalue(), **LEGACY))
    return [*out, *(given(one) for one in real("raw/gaia/*.xml"))]


def shards() -> Sequence[Parts]:
    import tempfile

    import pyarrow.parquet as pq

    from albireo.observations.shards import write_shard
    from tests.observations import test_arrow as a
    from tests.observations import test_shards as t

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.parquet"
        write_shard([t.everything()], path, {"a": 1})
        whole, table = path.read_bytes(), pq.read_table(path)
        plain = io.BytesIO()
        pq.write_table(table, plain, compression="none", use_dictionary=False, write_statistics=False)
        write_shard(t.SKY[:2], path, {})
        sky = path.read_bytes()
    return [given(whole), given(plain.getvalue()), given(a.stream(table)), given(a.file(table)), given(sky)]


def bombs() -> Sequence[Parts]:
    from tests.service.bombs import BOMBS

    return [given(content) for content in (make() for make in BOMBS) if len(content) < 1 << 20]


def spans() -> Sequence[Parts]:
    import tempfile

    from tests.observations import test_row_spans as t

    out = []
    with tempfile.TemporaryDirectory() as folder:
        for form in t.FORMS:
            path = Path(folder) / form.__name__
            form(path)
            out.append(given(path.read_bytes(), survey="legacysurvey", release="dr10"))
    return out


def labels() -> Sequence[Parts]:
    """After the options, which are those of `Wanted`, a table."""
    import tempfile

    from tests.service.heads import write_objects

    with tempfile.TemporaryDirectory() as folder:
        texts = [
            write_objects(Path(folder) / f"t.{kind}", 12).read_bytes() for kind in ("ecsv", "csv", "fits", "parquet")
        ]
    wanted = [
        {"targets": ["mass", "size"], "task": "regression"},
        {"targets": ["kind"], "task": "classification", "group": "sky"},
        {"targets": ["z_spec"], "task": "redshift", "weights": "size", "missing": [-9.0]},
    ]
    return [(json.dumps(one).encode(), text) for one in wanted for text in texts]
