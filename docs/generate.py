"""Writes the pages of docs/ that come from tables in the code, and the tree in README.md. `make docs` calls it.

PAGES   file name -> the function that gives its content
readme  README.md with its tree made anew
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from albireo.observations.errors import CODES, AlbireoError
from albireo.observations.modalities import MODALITIES, Modality
from albireo.observations.reading import FORMATS
from albireo.service.problems import GRPC_STATUS, STATUS
from albireo.service.reading_flags import FLAGS
from albireo.service.settings import PREFIX, Settings
from albireo.tokenizers.checkpoint import MINI, Checkpoint

HERE = Path(__file__).parent
ROOT = HERE.parent

TREE = (
    *("Makefile", "pyproject.toml", "constraints.txt", "Dockerfile", ".dockerignore", "docker-compose.yml", ".ci"),
    *("observations", "tokenizers", "models", "index", "service", "deploy", "docs", "benchmarks", "examples"),
    *("CHANGELOG.md", "LICENSE"),
)
"""Files and folders of the tree, in reading order."""

NOTES = {
    "pyproject.toml": "the package, its dependencies with a reason each, settings of the tools",
    "Dockerfile": "the images `cpu` and `cuda`",
    "docker-compose.yml": "the service, tokenizer workers and Redis on one machine",
    ".ci/run": "what must pass, from a clean clone",
    "deploy/triton/models": "a model repository: the same models in processes of Triton's",
    "deploy/grafana-dashboard.json": "what operators look at: load, latency, queues, errors",
    "deploy/README.md": "how to run it in containers",
    "docs/aion.md": "AION-1: what is done as in the released package, what is not, and why",
    "docs/architecture.md": "folders, the way of a request, what is promised",
    "docs/benchmarks.md": "beside the released package: how it is measured, and the figures",
    "docs/client.md": "the Python client: what it takes, what it gives, what it tries again",
    "docs/conventions.md": "axes, units, decisions, QA flags",
    "docs/errors.md": "classes and codes of errors (generated)",
    "docs/formats.md": "the files that are read, the options of reading (generated)",
    "docs/grpc.md": "the gRPC door: Python, grpcurl, streams, errors, limits",
    "docs/heads.md": "heads: fitting them on your labels, what their numbers and flags mean, the file",
    "docs/install.md": "the environment, torch, the extras",
    "docs/log.md": "experiments and what came of them",
    "docs/modalities.md": "the table of modalities (generated)",
    "docs/roofline.png": "the encoder's cases under the ceilings of the machine they were measured on",
    "docs/science": "pictures of docs/science.md",
    "docs/settings.md": "environment variables of the service (generated)",
    "CHANGELOG.md": "what changed, by version",
    "LICENSE": "MIT",
    "models/albireo-mini": "the checkpoint in the package",
    "service/protos/albireo/v1": "messages and services of the gRPC door; what is generated from them",
    "service/protos/inference": "the same of the Open Inference Protocol",
    "observations/samples": "simulated sample files, for the demo",
    "observations/simulation/stars.npz": "continua of stars by their parameters, fitted to real Gaia XP spectra",
    "tests": "by folder; tests/house holds this house up",
}
"""What cannot say itself what it is."""

NOT_SHOWN = frozenset({"py.typed", "__pycache__"})
TREE_BEGIN, TREE_END = "<!-- tree: written by make docs from the first line of each file -->\n", "<!-- end of tree -->"

WRITTEN = "<!-- Written by docs/generate.py (make docs) from the tables in the code: change those. -->\n\n"


def errors() -> str:
    """The tree and the statuses of its classes; the codes and the statuses that they come with."""
    statuses = [
        (f"`{kind.__name__}`", str(status), f"`{_grpc(kind)}`", _summary(kind)) for kind, status in STATUS.items()
    ]
    raised = _raised()
    codes = []
    for code, meaning in CODES.items():
        found = sorted(raised[code])
        http, grpc = (", ".join(dict.fromkeys(one[i] for one in found)) or "-" for i in (0, 1))
        codes.append((f"`{code}`", http, grpc, meaning))
    return (
        "# Errors\n\n"
        "Every error has a machine `code`, a `message`, and, where they are known, the `file`, the `field` and a "
        "`fix`. Over HTTP it is a problem document (RFC 9457, `application/problem+json`). The class decides the HTTP "
        "and the gRPC status; programs should look at the code.\n\n"
        "A status answers a request as a whole. What is wrong with one object is told in its item, with the same code, "
        "and the others are answered: over HTTP with 200 while one object is good, and 422 when none is; over gRPC "
        "with `OK` always ([grpc.md](grpc.md)). With the option `on_error` at `fail` the first bad object that is "
        "found answers the whole request: 422, `INVALID_ARGUMENT`.\n\n"
        + _table(("class", "HTTP status", "gRPC status", "meaning"), statuses)
        + "\n## Codes\n\n"
        "The statuses are those of a request that fails with this code as a whole.\n\n"
        + _table(("code", "HTTP", "gRPC", "meaning"), codes)
    )


def _grpc(kind: type[AlbireoError]) -> str:
    return next(GRPC_STATUS[one] for one in kind.__mro__ if one in GRPC_STATUS)


def _raised() -> dict[str, set[tuple[str, str]]]:
    """Code -> (HTTP status, gRPC status) of the classes that it is raised with, anywhere in our code."""
    kinds = {kind.__name__: kind for kind in STATUS}
    found: dict[str, set[tuple[str, str]]] = {code: set() for code in CODES}
    found["method_not_allowed"] = {("405", "-")}  # by the framework, before anything of ours is asked
    for folder in ("observations", "tokenizers", "models", "index", "service"):
        for path in sorted((ROOT / folder).glob("*.py")):
            for name, code in _made(ast.parse(path.read_text())):
                if name in kinds and code in found:
                    found[code].add((str(STATUS[kinds[name]]), _grpc(kinds[name])))
    return found


def _made(tree: ast.AST, base: str = "") -> Iterator[tuple[str, str]]:
    """(class, first argument) of every call that has one; of super().__init__ the class is the `base` around it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            yield getattr(node.func, "id", base), str(node.args[0].value)
        inner = getattr(node.bases[0], "id", "") if isinstance(node, ast.ClassDef) and node.bases else base
        yield from _made(node, inner)


def modalities() -> str:
    """What can be told apart, and what of it the shipped checkpoint reads."""
    mini = Checkpoint(MINI).inputs
    rows = [
        (
            f"`{row.name}`",
            f"`{row.key}`",
            row.kind,
            row.unit or "-",
            _shape(row),
            "yes" if row.aion else "no",
            str(mini[row.key].n_tokens) if row.key in mini else "-",
        )
        for row in MODALITIES.values()
    ]
    head = ("name", "token key", "kind", "unit as tokenized", "shape", "AION-1", "tokens in albireo-mini")
    return (
        "# Modalities\n\n"
        "Both names are accepted wherever a modality is named. A checkpoint reads some of them: its own configuration "
        "and weights say which, and how many tokens each costs. `-` in the last column: the checkpoint in the package "
        "does not read it (`modality_not_in_checkpoint`). Redshift, ra and dec are metadata, and become tokens only "
        "when asked for by name.\n\n" + _table(head, rows)
    )


def formats() -> str:
    """What files are recognised, and what a reader may be told."""
    rows = [(f"`{row.name}`", row.description) for row in FORMATS]
    flags = [
        (f"`{flag.name}`", f"`read.{flag.field}`", f"`{flag.field}`", _choices(flag.help, flag.choices))
        for flag in FLAGS
    ]
    return (
        "# Formats\n\n"
        "A format is told by content, never by the file's name, in this order:\n\n"
        + _table(("format", "what it is"), rows)
        + "\n## What files do not say\n\n"
        "Nothing is guessed: what a file does not say and a number depends on must be given, or is an error that names "
        "the option. A statement that contradicts the file is an error too.\n\n"
        "Over HTTP it is said in the `options` of a JSON request, or as a query parameter with a body of any form: "
        "`POST /v1/embed?survey=legacysurvey`. What both say, JSON decides; `read` of one input goes before both.\n\n"
        + _table(("command line", "JSON `options`", "query parameter", "meaning"), flags)
    )


def settings() -> str:
    """The environment variables of the service."""
    rows = []
    for name, info in Settings.model_fields.items():
        rows.append((f"`{PREFIX}{name.upper()}`", _default(info.default), info.description or ""))
    return (
        "# Settings\n\n"
        "Read once from the environment when a command starts. A variable that begins with "
        f"`{PREFIX}` and is not in this list is refused, so that a misspelt one is never overlooked.\n\n"
        + _table(("variable", "default", "meaning"), rows)
    )


PAGES: dict[str, Callable[[], str]] = {
    "errors.md": errors,
    "modalities.md": modalities,
    "formats.md": formats,
    "settings.md": settings,
}


def page(name: str) -> str:
    """The whole content of a page."""
    return WRITTEN + PAGES[name]()


def readme(text: str) -> str:
    """The text of README.md with its tree made anew."""
    before, _, rest = text.partition(TREE_BEGIN)
    _, _, after = rest.partition(TREE_END)
    return f"{before}{TREE_BEGIN}\n```\n{tree()}```\n\n{TREE_END}{after}"


def tree() -> str:
    """One line a file: its path and the first sentence that it says of itself."""
    paths = [path for name in TREE for path in _files(ROOT / name)]
    lines = [(path.relative_to(ROOT).as_posix(), _comment(path)) for path in paths]
    lines.append(("tests", NOTES["tests"]))
    width = max(len(name) for name, _ in lines)
    return "".join(f"{name:{width}}  {comment}\n" for name, comment in lines)


def _files(path: Path) -> list[Path]:
    if path.is_file() or path.relative_to(ROOT).as_posix() in NOTES:
        return [path]
    inside = sorted(path.iterdir(), key=lambda p: (p.is_dir(), p.name)) if path.is_dir() else []
    return [file for child in inside if child.name not in NOT_SHOWN for file in _files(child)]


def _comment(path: Path) -> str:
    """The first sentence of a docstring, of a comment at the top, or the title of a page."""
    note = NOTES.get(path.relative_to(ROOT).as_posix())
    if note is not None:
        return note
    text = path.read_text()
    if path.suffix == ".py":
        first = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    else:
        first = next((line.lstrip("# ") for line in text.splitlines() if line.startswith("# ")), "")
    return first.partition(". ")[0].rstrip(".")


def _summary(kind: type[AlbireoError]) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0].replace("`code`", "code")


def _shape(row: Modality) -> str:
    if row.kind == "scalar":
        return "one number"
    shape = " x ".join("any" if n is None else str(n) for n in row.shape)
    bands = f" ({', '.join(row.bands)})" if row.bands else ""
    scale = f", {row.pixel_scale} arcsec per pixel" if row.pixel_scale else ""
    return shape + bands + scale


def _choices(text: str, choices: Sequence[str]) -> str:
    return f"{text}: {', '.join(choices)}" if choices else text


def _default(value: object) -> str:
    return "none" if value is None else f"`{value}`"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


if __name__ == "__main__":
    for name in PAGES:
        (HERE / name).write_text(page(name))
        print(f"docs/{name}")
    page_of_all = ROOT / "README.md"
    page_of_all.write_text(readme(page_of_all.read_text()))
    print("README.md")
