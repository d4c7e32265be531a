"""`albireo models`: the models of this machine and of the hub."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from albireo.service.commands import Json, command
from albireo.service.printing import plural, print_json, progress_bar

if TYPE_CHECKING:
    from albireo.tokenizers.checkpoint import Checkpoint
    from albireo.tokenizers.fetching import Progress

models_app = typer.Typer(no_args_is_help=True, help="Models: those of this machine, and those of the hub.")

MANIFEST_CHECK = "the manifest"

Which = Annotated[
    str, typer.Argument(metavar="MODEL", help="a name that `albireo models ls` shows, or a folder", show_default=False)
]


@command(models_app, "pull")
def pull(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="aion-base, aion-large, aion-xlarge, or owner/name of the hub")
    ],
    *,
    modality: Annotated[
        list[str] | None,
        typer.Option("--modality", metavar="M", help="only what this modality needs (may be repeated)"),
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="branch, tag or commit; main by default")] = None,
    json_output: Json = False,
) -> int:
    """Fetch a model from the hub.

    Only safetensors and JSON, only what the modalities need, each file checked against its sha256. What is there
    is not fetched again, and what was interrupted goes on. Afterwards the model opens without a network. The token,
    the hub's address and the cache are those of huggingface_hub: HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME.

    \b
    Examples:
      albireo models pull aion-base
      albireo models pull aion-large --modality image.legacysurvey --modality spectrum.desi
      albireo models pull polymathic-ai/aion-base --revision main
    """
    from albireo.tokenizers import hub
    from albireo.tokenizers.checkpoint import Checkpoint

    with download_bar() as progress:
        folder = hub.pull(name, modality, revision=revision, progress=progress)
    about = description(Checkpoint(folder))
    if json_output:
        print_json(about)
    else:
        here = [row["modality"] for row in about["inputs"] if row["codec"] == "here"]
        print(f"{about['name']} at {about['revision']} reads {len(here)} of {len(about['inputs'])} modalities here")
        print(f"{folder}\nnext: albireo embed FILES -o embeddings.parquet --model {name}")
    return 0


@command(models_app, "ls")
def ls(*, json_output: Json = False) -> int:
    """List the models that have a name.

    The one in the package, AION-1's published sizes, and every model that was pulled.

    \b
    Examples:
      albireo models ls
      albireo models ls --json
    """
    rows = list(_known())
    if json_output:
        print_json({"models": rows})
        return 0
    for row in rows:
        size = f"{row['bytes'] / 1e6:.0f} MB" if row["bytes"] else ""
        shape = f"{row['parameters'] / 1e6:.0f} M parameters, width {row['dim']}, {row['encoder_depth']} + "
        shape += f"{row['decoder_depth']} blocks" + (f", reads {row['n_inputs']} modalities" if row["n_inputs"] else "")
        print(f"{row['name']:<28} {row['state']:<10} {size:>9}  {shape}")
        if row["revision"]:
            print(f"{'':<28} {row['repository']}@{row['revision']}")
    return 0


@command(models_app, "show")
def show(model: Which, *, json_output: Json = False) -> int:
    """Describe a model.

    Its shape, its modalities with what they cost, the identity of its embeddings, and where it is from.

    \b
    Examples:
      albireo models show albireo-mini
      albireo models show aion-base --json
      albireo models show ./my-checkpoint
    """
    from albireo.tokenizers.checkpoint import Checkpoint
    from albireo.tokenizers.hub import resolve

    about = description(Checkpoint(resolve(model)))
    if json_output:
        print_json(about)
    else:
        print("\n".join(_lines(about)))
    return 0


@command(models_app, "verify")
def verify(model: Which, *, json_output: Json = False) -> int:
    """Check every byte of a model.

    A pulled model against the sha256 of every file; another folder's tensors against its configuration, and for
    numbers that are not finite. Exit code 1 if a file is not what it should be.

    \b
    Examples:
      albireo models verify aion-base
      albireo models verify ./my-checkpoint
    """
    from albireo.tokenizers.hub import resolve

    folder = resolve(model)
    against, count, results = _checks(folder)
    files = []
    with progress_bar("verifying", count) as progress:
        for path, wrong in results:
            files.append({"file": path, "ok": wrong is None, "problem": wrong})
            progress(1)
    bad = [file for file in files if not file["ok"]]
    if json_output:
        print_json({"model": model, "folder": str(folder), "against": against, "ok": not bad, "files": files})
    else:
        for file in bad:
            print(f"{(folder / str(file['file'])).resolve()}: {file['problem']}")
        print(f"{plural(len(files), 'file')} checked against {against}: {len(bad) or 'nothing'} wrong")
        if bad and against == MANIFEST_CHECK:
            print(f"next: delete what is wrong, then albireo models pull {model}")
    return 1 if bad else 0


def description(checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything about a checkpoint that can be known without its network, as plain data."""
    manifest, config = checkpoint.manifest, checkpoint.config
    return {
        "name": checkpoint.name,
        "folder": str(checkpoint.folder),
        "repository": manifest.repository if manifest else None,
        "revision": manifest.revision if manifest else None,
        "codecs_from": "@".join(manifest.codecs_from) if manifest else None,
        "license": manifest.license if manifest else None,
        "readme": _readme(checkpoint),
        "dim": checkpoint.dim,
        "encoder_depth": config.get("encoder_depth"),
        "decoder_depth": config.get("decoder_depth"),
        "num_heads": config.get("num_heads"),
        "parameters": sum(prod(shape) for shape in checkpoint.shapes.values()),
        "dtypes": sorted(checkpoint.dtypes),
        "bytes": _size(checkpoint.folder),
        "fingerprint": checkpoint.fingerprint,
        "preprocessing": checkpoint.preprocessing,
        "space": checkpoint.space("mean"),
        "max_tokens": checkpoint.max_tokens,
        "inputs": list(_inputs(checkpoint)),
        "outputs": [_row(key, spec.n_tokens, spec.vocab_size) for key, spec in checkpoint.outputs.items()],
    }


def _inputs(checkpoint: Checkpoint) -> Iterator[dict[str, Any]]:
    """What the encoder reads: `codec` is "here", "not pulled" (then `fix` gets it) or "none"."""
    for key in checkpoint.readable:
        spec, fix = checkpoint.readable[key], checkpoint.inputs.elsewhere.get(key)
        codec = "here" if key in checkpoint.inputs else "not pulled" if fix else "none"
        yield _row(key, spec.n_tokens, spec.vocab_size) | {"codec": codec, "fix": fix}


def _row(key: str, n_tokens: int, vocab_size: int) -> dict[str, Any]:
    from albireo.observations.modalities import MODALITIES

    return {"modality": MODALITIES[key].name, "token_key": key, "n_tokens": n_tokens, "vocab_size": vocab_size}


def _readme(checkpoint: Checkpoint) -> str | None:
    """What a folder says of itself; a pulled model has its page on the hub instead."""
    path = checkpoint.folder / "README.md"
    return str(path) if path.is_file() else None


def _size(folder: Path) -> int:
    """Bytes of a folder's files, each content once."""
    files = {file.resolve() for file in folder.rglob("*") if file.is_file()}
    return sum(file.stat().st_size for file in files)


def _lines(about: Mapping[str, Any]) -> Iterator[str]:
    origin = f"{about['repository']}@{about['revision']}" if about["repository"] else "a folder"
    yield f"{about['name']}: {origin}"
    yield f"  folder         {about['folder']} ({about['bytes'] / 1e6:.1f} MB)"
    if about["repository"] and not about["codecs_from"].startswith(about["repository"]):
        yield f"  codecs         {about['codecs_from']}"
    page = about["readme"] or (about["repository"] and f"the page of {about['repository']} on the hub")
    yield f"  license        {about['license'] or 'not stated'}" + (f", see {page}" if page else "")
    yield f"  width          {about['dim']}, {about['num_heads']} heads"
    yield f"  blocks         {about['encoder_depth']} encoder, {about['decoder_depth']} decoder"
    yield f"  parameters     {about['parameters']:,} as {', '.join(about['dtypes'])}"
    yield f"  fingerprint    {about['fingerprint']}"
    yield f"  preprocessing  {about['preprocessing']}"
    yield f"  space          {about['space']}"
    yield f"  reads          {plural(about['max_tokens'], 'token')} of an object that has everything"
    for row in about["inputs"]:
        state = "" if row["codec"] == "here" else f"  codec {row['codec']}" + (f": {row['fix']}" if row["fix"] else "")
        yield f"    {row['modality']:<34} {row['n_tokens']:>4} of {row['vocab_size']:<6}{state}".rstrip()
    yield "  predicts"
    for row in about["outputs"]:
        yield f"    {row['modality']:<34} {row['n_tokens']:>4} of {row['vocab_size']}"


def _known() -> Iterator[dict[str, Any]]:
    """Every model that has a name here: `state` is "shipped", "pulled" or "not pulled"."""
    from albireo.tokenizers.checkpoint import MINI, Checkpoint
    from albireo.tokenizers.hub import SIZES, pulled

    yield _entry(description(Checkpoint(MINI)), MINI.name, "shipped")
    short = {size.repository: name for name, size in SIZES.items()}
    here = pulled()
    for model in here:
        name = short.get(model.repository, model.repository)
        stated = name if "main" in model.names else f"{name}@{[*model.names, model.revision][0]}"
        yield _entry(description(Checkpoint(model.folder)), stated, "pulled")
    for name, size in SIZES.items():
        if size.repository not in {model.repository for model in here}:
            shape = {"dim": size.dim, "encoder_depth": size.depth, "decoder_depth": size.depth}
            rest = {"num_heads": size.heads, "parameters": size.parameters, "bytes": 0, "inputs": []}
            where = {"repository": size.repository, "revision": None, "folder": None}
            yield _entry({**where, **shape, **rest}, name, "not pulled")


def _entry(about: Mapping[str, Any], name: str, state: str) -> dict[str, Any]:
    kept = ("repository", "revision", "folder", "dim", "encoder_depth", "decoder_depth", "num_heads", "parameters")
    n_inputs = sum(row["codec"] == "here" for row in about["inputs"])
    return {"name": name, "state": state, "bytes": about["bytes"], "n_inputs": n_inputs} | {k: about[k] for k in kept}


def _checks(folder: Path) -> tuple[str, int, Iterator[tuple[str, str | None]]]:
    """(what the files are compared with, about how many, (file, None or what is wrong) one after another)."""
    from albireo.tokenizers.checkpoint import Checkpoint, Manifest

    manifest = Manifest.read(folder)
    if manifest is not None:
        return MANIFEST_CHECK, len(manifest.files), manifest.check(folder)
    from albireo.models.verification import check  # torch takes seconds to load

    checkpoint = Checkpoint(folder)
    return "the configuration", 1 + len({checkpoint.codec_folder(key) for key in checkpoint.inputs}), check(checkpoint)


@contextmanager
def download_bar() -> Iterator[Progress]:
    """A bar of bytes on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda file, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("asking the hub", total=None)
        yield lambda file, done, total: bar.update(task, description=file, completed=done, total=total)
