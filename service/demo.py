"""`albireo demo`: the real service, started, fed with files over HTTP, searched, and stopped again."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from albireo.observations.errors import NotFound, Unavailable
from albireo.observations.observation import Observation
from albireo.observations.options import ReadOptions
from albireo.service.files import expand, read_batches
from albireo.service.picture import Panel, draw
from albireo.service.subjects import join

SAMPLES = Path(__file__).parent.parent / "observations" / "samples"
"""Bundled observations: simulated, small."""

COLLECTION = "demo"
NEIGHBOURS = 5
MOST_NAMED = 4
"""Files named in one line of the table."""
START_SECONDS = 120.0
REQUEST_BYTES = 200 << 20
"""Files of one request, in bytes; the service's limit is larger."""


@dataclass(frozen=True)
class Service:
    """The service started for the demo, spoken to over HTTP."""

    address: str

    def call(self, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> tuple[int, Any]:
        """Status and JSON of one request; an error answer is an answer."""
        request = urllib.request.Request(
            self.address + path, data=body if method != "GET" else None, method=method, headers={"Content-Type": kind}
        )
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def send(self, path: str, files: Sequence[Path]) -> tuple[int, Any]:
        """POST files as one multipart body."""
        boundary = uuid.uuid4().hex
        body = b"".join(
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{_quoted(file.name)}"\r\n'
            f"Content-Type: application/octet-stream\r\n\r\n".encode()
            + file.read_bytes()
            + b"\r\n"
            for file in files
        )
        return self.call(
            "POST", path, body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
        )


def run_demo(given: Sequence[Path], out: Path, model: Path, as_json: bool) -> int:
    """The demo; 0 if a picture was drawn, whatever became of single files."""
    console = Console(stderr=as_json)
    samples = sorted(path for path in SAMPLES.glob("*") if path.is_file())
    theirs = expand(given) if given else []
    if not samples and not theirs:
        raise NotFound("file_not_found", "no sample observations are installed", file=str(SAMPLES), fix="give FILES")
    with _service(model, console) as service:
        info = service.call("GET", "/v1/info")[1]
        console.print(f"Model [bold]{info['model']}[/bold], {info['dim']} numbers an object")
        service.call("PUT", f"/v1/collections/{COLLECTION}", b"{}")
        rows, indexed = _send_all(service, [*samples, *theirs], console)
        first = next((row for row in indexed if row["path"] in theirs), indexed[0] if indexed else None)
        if first is None:
            console.print("[red]No file gave an embedding.[/red] What each needs is told above.")
            return 1
        query = {"query": {"id": first["id"]}, "k": NEIGHBOURS}
        status, answer = service.call("POST", f"/v1/collections/{COLLECTION}/search", json.dumps(query).encode())
        if status != 200:
            raise Unavailable("internal", f"the search answered {status}: {answer.get('detail')}")
    (result,) = answer["results"]
    observations = _observations([*samples, *theirs], {first["id"], *(hit["id"] for hit in result["hits"])})
    panels = [_panel(first["id"], None, observations)]
    panels += [_panel(hit["id"], hit["score"], observations) for hit in result["hits"]]
    n_objects = len({row["id"] for row in indexed})
    subtitle = f"{n_objects} objects embedded by {answer['model']}; the query and its {len(result['hits'])} nearest "
    subtitle += "neighbours by cosine similarity. Class and redshift were no input."
    draw(panels, out, f"Albireo: what is most like {first['id']}?", subtitle)
    console.print(f"\n[bold]{out}[/bold] shows {first['id']} beside its {len(result['hits'])} nearest neighbours.")
    console.print(
        f"Next: open {out}; then try your own files: [bold]albireo demo YOUR_FILES[/bold], "
        "or start the service: [bold]albireo serve[/bold]"
    )
    if as_json:
        print(json.dumps({"files": rows, "query": first["id"], "hits": result["hits"], "picture": str(out)}, indent=2))
    return 0


@contextmanager
def _service(model: Path, console: Console) -> Iterator[Service]:
    """`albireo serve` in a process of its own, on a free port, with an empty data folder; stopped at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="albireo-demo-") as data:
        log = Path(data) / "service.log"
        began = time.perf_counter()
        arguments = ["serve", "--port", str(port), "--host", "127.0.0.1", "--data", data, "--model", str(model)]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "albireo.service.cli", *arguments],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        service = Service(f"http://127.0.0.1:{port}")
        try:
            with console.status("starting the service ..."):
                _wait_ready(service, process, log)
            console.print(f"The service is ready after {time.perf_counter() - began:.1f} s at {service.address}")
            yield service
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_ready(service: Service, process: subprocess.Popen[bytes], log: Path) -> None:
    reason = "it does not answer"
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Unavailable(
                "not_ready", f"the service ended with code {process.returncode}: {log.read_text()[-2000:]}"
            )
        try:
            status, answer = service.call("GET", "/readyz")
            if status == 200:
                return
            reason = answer.get("detail", "")
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.2)
    raise Unavailable("not_ready", f"not ready after {START_SECONDS:.0f} s: {reason}")


def _send_all(service: Service, files: Sequence[Path], console: Console) -> tuple[list[dict[str, Any]], list[Any]]:
    """Validate and index all files, print how each was read; the rows, and the objects that are in the collection."""
    rows: list[dict[str, Any]] = []
    indexed: list[dict[str, Any]] = []
    with console.status("reading, embedding, indexing ...") as status:
        for path in files:
            if not path.is_file():
                rows.append({"file": str(path), "result": "file_not_found: there is no such file"})
        for group in _groups([path for path in files if path.is_file()]):
            status.update(f"reading, embedding, indexing {group[0].parent.name}/ ({len(group)} files) ...")
            understood = service.send("/v1/validate", group)[1]
            joined = str(group[0].parent == SAMPLES).lower()
            done = service.send(f"/v1/collections/{COLLECTION}/objects?join={joined}", group)[1]
            if "files" not in understood:
                rows += [{"file": path.name, "format": None, "result": understood.get("detail")} for path in group]
                continue
            answered = [item for item in done.get("items", []) if item["id"] is not None]
            # A good part of an object outweighs one that was refused beside it.
            results = {item["id"]: item for item in sorted(answered, key=lambda item: item["status"] != "error")}
            pending = iter(understood["items"])
            for path, file in zip(group, understood["files"], strict=True):
                objects = list(islice(pending, file["n_objects"] + (file["error"] is not None)))
                rows.append(_row(file, [(item, results.get(item["id"])) for item in objects]))
                known = (results.get(item["id"]) for item in objects)
                indexed += [{"id": r["id"], "path": path} for r in known if r is not None and r["status"] != "error"]
    console.print(_table(rows))
    return rows, indexed


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    """How each file was read; files with the same fate share a line."""
    fates: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        what = ", ".join(str(part) for part in (row.get("format"), row.get("what")) if part)
        fates.setdefault((what, str(row.get("result", ""))), []).append(row["file"])
    table = Table(title="How each file was read", title_justify="left", pad_edge=False, expand=False)
    for heading, share in (("file", 3), ("read as", 3), ("result", 4)):
        table.add_column(heading, overflow="fold", ratio=share)
    for (what, result), names in fates.items():
        told = (
            names if len(names) <= MOST_NAMED else [*names[: MOST_NAMED - 1], f"and {len(names) - MOST_NAMED + 1} more"]
        )
        table.add_row(*(escape(text) for text in ("\n".join(told), what, result)))
    return table


def _row(file: dict[str, Any], objects: Sequence[tuple[dict[str, Any], dict[str, Any] | None]]) -> dict[str, Any]:
    """One line of the table: what a file is, and what became of its objects."""
    row: dict[str, Any] = {"file": file["file"], "format": file["format"] or "?", "objects": file["n_objects"]}
    if file["companion_of"]:
        return row | {"result": f"read together with {file['companion_of']}"}
    if file["error"]:
        error = file["error"]
        return row | {"result": f"{error['code']}: {error['message']}", "error": error}
    seen = [m["modality"] for item, _ in objects if item["detected"] for m in item["detected"]["modalities"]]
    names = list(dict.fromkeys(seen))
    row["what"] = ", ".join(names) if len(names) <= MOST_NAMED else f"{', '.join(names[:2])} and {len(names) - 2} more"
    errors = [
        (item["errors"] or [result["error"] if result else {"code": "internal", "message": "no answer"}])[0]
        for item, result in objects
        if item["errors"] or result is None or result["error"]
    ]
    good = len(objects) - len(errors)
    if not errors:
        return row | {"result": "embedded" if good == 1 else f"{good} embedded"}
    told = "; ".join(dict.fromkeys(f"{e['code']}: {e['message']}" for e in errors[:2]))
    return row | {"result": (f"{good} embedded, {len(errors)} not: " if good else "") + told, "error": errors[0]}


def _groups(files: Sequence[Path]) -> Iterator[list[Path]]:
    """Files that go into one request: a folder, so that companions meet; one by one if it is too large."""
    for _, members in groupby(files, key=lambda path: path.parent):
        group = list(members)
        if sum(path.stat().st_size for path in group) <= REQUEST_BYTES:
            yield group
        else:
            yield from ([path] for path in group)


def _observations(files: Sequence[Path], ids: set[str]) -> dict[str, Observation]:
    """What was observed of some objects, for the picture: read from the same files."""
    wanted: dict[str, Observation] = {}
    for group in _groups([path for path in files if path.is_file()]):
        for batch in read_batches(group, ReadOptions()):
            for subject in join(batch.subjects):
                if subject.id in ids and subject.observation is not None:
                    wanted[str(subject.id)] = subject.observation
    return wanted


def _panel(id: str, score: float | None, observations: dict[str, Observation]) -> Panel:
    observation = observations.get(id)
    labels = observation.metadata if observation else {}
    parts = [str(labels["class"])] if labels.get("class") else []
    if isinstance(labels.get("redshift"), float):
        parts.append(f"z = {labels['redshift']:.3f}")
    return Panel(id, observation, score, ", ".join(parts) or "no label")


def _quoted(name: str) -> str:
    return name.replace("\\", "_").replace('"', "_").replace("\r", "_").replace("\n", "_")
