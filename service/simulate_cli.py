"""`albireo simulate`: an honest sky to train on and to test with, as shards on disk."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from albireo.service.commands import Json
from albireo.service.printing import print_json, progress_bar


def simulate(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the folder of the shards", show_default=False)],
    *,
    objects: Annotated[int, typer.Option("--objects", "-n", min=1, help="how many")] = 1000,
    kind: Annotated[
        Literal["galaxies", "stars", "quasars", "mix"], typer.Option("--kind", help="of what; mix is 62:20:18")
    ] = "mix",
    seed: Annotated[int, typer.Option("--seed", min=0, help="the same seed gives the same sky")] = 1,
    shard_size: Annotated[int, typer.Option("--shard-size", min=1, help="objects in a file")] = 500,
    workers: Annotated[int, typer.Option("--workers", min=1, help="processes")] = 1,
    photometry: Annotated[
        bool, typer.Option("--photometry", help="photometry alone, of more surveys: no images, no spectra; faster")
    ] = False,
    page: Annotated[bool, typer.Option("--page/--no-page", help="draw samples.png and population.png")] = True,
    json_output: Json = False,
) -> int:
    """Simulate a sky with known truth.

    Galaxies, stars and quasars with spectra, images and photometry as surveys would have them, in Parquet that
    every command here reads. Stopped and called again it goes on, and the bytes are the same as in one go. Labels
    are in labels.parquet and in the objects' metadata, never among what a model reads. Needs the extra `train`.

    \b
    Examples:
      albireo simulate sky --objects 20000 --seed 1 --workers 2
      albireo simulate test --objects 500 --kind galaxies --seed 2
      albireo simulate many --objects 50000 --photometry --workers 2
      albireo validate sky/mix-00000.parquet
    """
    from albireo.observations.simulation.production import Order, produce

    order = Order(objects, kind, seed, shard_size, photometry=photometry)
    began = time.monotonic()
    with progress_bar("simulating", objects) as progress:
        manifest = produce(out, order, workers, progress)
    seconds = time.monotonic() - began
    pictures: list[Path] = []
    if page:
        from albireo.service.simulation_pictures import draw_page

        pictures = draw_page(out)
    answer = {
        "manifest": str(manifest),
        "objects": objects,
        "shards": len(list(order.shards())),
        "seconds": round(seconds, 1),
        "pictures": [str(path) for path in pictures],
    }
    if json_output:
        print_json(answer)
        return 0
    print(f"{objects} objects in {answer['shards']} files of {out}, {objects / max(seconds, 1e-3):.1f} per second")
    for path in pictures:
        print(f"look at {path}")
    print(f"Next: albireo validate {out / next(iter(order.shards()))[0]}")
    return 0
