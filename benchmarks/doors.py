"""What the doors cost: server CPU of an object over HTTP and gRPC, beside the same verbs called in-process.

    python -m benchmarks.doors [--rounds 15] [--case full] [--json]
    python -m benchmarks.doors --crowd [--checkpoint FOLDER]     64 clients at a time, one object each

Client and server share the machine's cores, so what counts is the CPU time of the server's process (user and system,
all threads), not the time that passes. In-process stands for a process that reads the same bytes by the same readers
and embeds them by the same engine, its pipeline of threads included: what a door adds is protocol, parsing of the
request and writing of the answer.

    full        16 objects with image, spectrum and photometry: FITS and ECSV parts; JSON, npy, Arrow, FITS, raw answers
    photometry  1,000 objects in one Arrow stream
    alone       one object with photometry on an idle server: what passes for the client beyond the in-process call

The crowd is answered by the service and by a plain FastAPI endpoint that reads the same body and calls the same engine,
one request at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np

from albireo.observations.observation import Observation, Scalar
from albireo.observations.options import ReadOptions
from albireo.observations.sky import group, simulate
from albireo.observations.sky_files import write_cutout, write_photometry, write_sdss
from albireo.observations.source import Source
from albireo.service.inputs import Gatherer, Part
from albireo.service.schemas import EmbedRequest
from albireo.tokenizers.checkpoint import MINI
from benchmarks.measuring import ROUNDS, VOID_EXIT, gemm_rate, ratio, steady

FULL, MANY = 16, 1000
CLIENTS = 64
STATED = ReadOptions(survey="legacysurvey", release="dr10", system="AB", kind="model", extinction_corrected=False)
ANSWERS = {
    "JSON": "application/json",
    "npy": "application/x-npy",
    "Arrow": "application/vnd.apache.arrow.stream",
    "FITS": "application/fits",
    "raw": "application/vnd.albireo.raw",
}
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Files:
    """The objects of a request: the parts of its body by name, and the JSON that says which belong together."""

    parts: dict[str, tuple[str, bytes]]
    request: dict[str, Any]

    def gatherer(self) -> Gatherer:
        return Gatherer([Part(name, file, Source(file, content)) for name, (file, content) in self.parts.items()],
                        ReadOptions())  # fmt: skip

    def post(self, client: httpx.Client, accept: str) -> bytes:
        """The service's answer."""
        files = [(name, (file, content)) for name, (file, content) in self.parts.items()]
        answer = client.post(
            "/v1/embed",
            files=[("request", (None, json.dumps(self.request), "application/json")), *files],
            headers={"Accept": accept},
        )
        assert answer.status_code == 200, answer.text
        return answer.content


def full_objects(folder: Path) -> Files:
    """FULL objects, each as three files of its surveys."""
    sky = [
        one for one in simulate(200, np.random.default_rng(1)) if {"tok_image", "tok_spectrum_sdss"} <= one.data.keys()
    ]
    parts: dict[str, tuple[str, bytes]] = {}
    items = []
    for n, one in enumerate(sky[:FULL]):
        mine = {"image": "cutout.fits", "spectrum": "spec.fits", "photometry": "photometry.ecsv"}
        write_cutout(one, folder / mine["image"])
        write_sdss(one, folder / mine["spectrum"])
        write_photometry([one], folder / mine["photometry"])
        names = {f"{kind}{n}": (f"{n}-{file}", (folder / file).read_bytes()) for kind, file in mine.items()}
        parts |= names
        items.append({"id": str(n), "inputs": [{"ref": f"part:{name}"} for name in names]})
    return Files(parts, {"items": items, "options": {"encoding": "base64"}})


def photometry(n: int, seed: int = 2) -> list[Observation]:
    """Objects with Legacy Survey photometry only."""
    return [
        replace(
            one,
            data={key: p for key, p in one.data.items() if group(key) == "photometry" and key.startswith("tok_flux")},
        )
        for one in simulate(n, np.random.default_rng(seed))
    ]


def arrow_of(observations: list[Observation]) -> bytes:
    """Their fluxes as an Arrow stream."""
    import pyarrow as pa

    keys = [key for key in observations[0].data if isinstance(observations[0].data[key], Scalar)]
    columns = {"id": pa.array([one.id for one in observations])}
    for key in keys:
        values = [one.data[key].value if key in one.data else None for one in observations]  # type: ignore[union-attr]
        columns[key.removeprefix("tok_")] = pa.array(values, pa.float64())
    fields = [pa.field(name, column.type, metadata={"unit": "nanomaggy"} if name != "id" else None)
              for name, column in columns.items()]  # fmt: skip
    table = pa.table(columns, schema=pa.schema(fields))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def json_of(one: Observation) -> dict[str, Any]:
    """One object as the JSON item of a request."""
    values: dict[str, Any] = {}
    for key, payload in one.data.items():
        assert isinstance(payload, Scalar)
        values |= {key.removeprefix("tok_"): payload.value, f"{key.removeprefix('tok_')}_unit": payload.unit}
    read = {"survey": "legacysurvey", "release": "dr10", "system": "AB", "kind": "model", "extinction_corrected": False}
    return {"items": [{"id": one.id, "inputs": [{"modality": "photometry", "values": values, "read": read}]}]}


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@contextmanager
def served(checkpoint: Path, work: Path) -> Iterator[tuple[int, str, str]]:
    """`albireo serve` in a process of its own: pid, HTTP address, gRPC target."""
    ports = [free_port(), free_port()]
    environment = os.environ | {
        "ALBIREO_MODEL": str(checkpoint), "ALBIREO_DATA_FOLDER": str(work), "ALBIREO_GRPC_PORT": str(ports[1]),
    }  # fmt: skip
    command = [sys.executable, "-m", "albireo.service.cli", "serve", "--port", str(ports[0])]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{ports[0]}"
    try:
        until = time.monotonic() + 120
        while True:
            try:
                if httpx.get(f"{address}/readyz", timeout=10).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("the service did not become ready")
            time.sleep(0.2)
        yield process.pid, address, f"127.0.0.1:{ports[1]}"
    finally:
        process.terminate()
        process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def in_process(connection: Any, checkpoint: str, files: Files, arrow: bytes, alone: dict[str, Any]) -> None:
    """The other side, in a process of its own: does what it is told, and tells the CPU and the time it took."""
    from albireo.observations.reading import read_files
    from albireo.service.core import Core
    from albireo.service.settings import Settings
    from albireo.service.subjects import from_reports
    from albireo.service.tickets import Ticket
    from albireo.service.watch import UNWATCHED

    settings = Settings(model=checkpoint)
    served = Core.local(settings)
    served.staff(settings.staffing, UNWATCHED)
    core = served.on(Ticket())
    items = EmbedRequest.model_validate(files.request).items
    single = EmbedRequest.model_validate(alone).items

    def full() -> None:
        assert core.embed(files.gatherer().items(items)).n_failed == 0

    def many() -> None:
        assert core.embed(from_reports(read_files([Source("body", arrow)], STATED))).n_failed == 0

    def one() -> None:
        assert core.embed(Gatherer((), ReadOptions()).items(single)).n_failed == 0

    work = {"full": full, "photometry": many, "alone": one}
    for name, repeat in iter(connection.recv, None):
        began, before = time.perf_counter(), cpu_seconds(os.getpid())
        for _ in range(repeat):
            work[name]()
        connection.send((cpu_seconds(os.getpid()) - before, time.perf_counter() - began))


def grpc_call(target: str, files: Files) -> Callable[[], object]:
    """Embed of the same files over gRPC."""
    import grpc

    from albireo.service.protos.albireo.v1 import albireo_pb2, albireo_pb2_grpc

    channel = grpc.insecure_channel(target, options=[("grpc.max_receive_message_length", 1 << 28),
                                                     ("grpc.max_send_message_length", 1 << 28)])  # fmt: skip
    stub = albireo_pb2_grpc.EmbeddingStub(channel)
    items = []
    for item in files.request["items"]:
        names = [given["ref"].removeprefix("part:") for given in item["inputs"]]
        inputs = [albireo_pb2.Input(file=files.parts[name][1], filename=files.parts[name][0]) for name in names]
        items.append(albireo_pb2.Item(id=item["id"], inputs=inputs))
    request = albireo_pb2.EmbedRequest(items=items)
    return lambda: stub.Embed(request)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """CPU of an object by case and side, and ratios to in-process."""
    with tempfile.TemporaryDirectory() as folder:
        files = full_objects(Path(folder))
    arrow, one = arrow_of(photometry(MANY)), json_of(photometry(1)[0])
    here, there = multiprocessing.get_context("spawn").Pipe()
    other = multiprocessing.get_context("spawn").Process(
        target=in_process, args=(there, str(args.checkpoint), files, arrow, one), daemon=True
    )
    other.start()
    results: dict[str, Any] = {}

    def beside(case: str, repeat: int) -> tuple[float, float]:
        here.send((case, repeat))
        cpu, wall = here.recv()
        return cpu, wall

    with tempfile.TemporaryDirectory() as work, served(args.checkpoint, Path(work)) as (pid, address, target):
        client = httpx.Client(base_url=address, timeout=120)
        query = {
            "survey": "legacysurvey",
            "release": "dr10",
            "system": "AB",
            "kind": "model",
            "extinction_corrected": "false",
        }
        stream = {"Content-Type": ANSWERS["Arrow"], "Accept": ANSWERS["Arrow"]}

        def many() -> bytes:
            answer = client.post("/v1/embed", content=arrow, params=query, headers=stream)
            assert answer.status_code == 200, answer.text
            return answer.content

        sides: dict[str, dict[str, Callable[[], object]]] = {
            "full": {
                f"HTTP, {name}": lambda accept=accept: files.post(client, accept) for name, accept in ANSWERS.items()
            }
            | {"gRPC": grpc_call(target, files)},
            "photometry": {"HTTP, Arrow": many},
            "alone": {"HTTP, JSON": lambda: client.post("/v1/embed", json=one).raise_for_status()},
        }
        repeats = {"full": 1, "photometry": 2, "alone": 20}
        objects = {"full": FULL, "photometry": MANY, "alone": 1}
        beside("full", 2)
        results["gemm_gflops"] = [gemm_rate()]
        for case in args.case or sides:
            n, repeat = objects[case], repeats[case]
            cpu: dict[str, list[float]] = {name: [] for name in ("in-process", *sides[case])}
            wall: dict[str, list[float]] = {name: [] for name in cpu}
            beside(case, 2)
            for call in sides[case].values():
                call()
            for number in range(args.rounds):
                for name, call in sides[case].items():
                    before, began = cpu_seconds(pid), time.perf_counter()
                    for _ in range(repeat):
                        call()
                    wall[name].append((time.perf_counter() - began) / repeat / n)
                    cpu[name].append((cpu_seconds(pid) - before) / repeat / n)
                used, took = beside(case, repeat)
                cpu["in-process"].append(used / repeat / n)
                wall["in-process"].append(took / repeat / n)
                print(f"{case}: round {number + 1} of {args.rounds}", file=sys.stderr)
            results[case] = {
                name: {
                    "cpu_ms": 1e3 * median(cpu[name]),
                    "wall_ms": 1e3 * median(wall[name]),
                    "cpu_ratio": ratio(cpu[name], cpu["in-process"]),
                    "added_ms": 1e3 * (median(wall[name]) - median(wall["in-process"])) * n,
                }
                for name in cpu
            }
        results["gemm_gflops"].append(gemm_rate())
    here.send(None)
    return results


def plain(port: int, checkpoint: str) -> None:
    """The rival of the crowd: reads the same body and calls the same engine, one request at a time."""
    import threading

    import uvicorn
    from fastapi import FastAPI

    from albireo.service.core import Core
    from albireo.service.settings import Settings

    core, app, lock = Core.local(Settings(model=checkpoint)), FastAPI(), threading.Lock()

    @app.post("/v1/embed")
    def embed(request: EmbedRequest) -> dict[str, Any]:
        with lock:
            found = core.embed(Gatherer((), ReadOptions()).items(request.items))
        return {"items": [one.embedding.values.tolist() if one.embedding else None for one in found.outcomes]}

    @app.get("/readyz")
    def ready() -> dict[str, str]:
        return {"model": core.engine.name}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


async def crowd(address: str, bodies: list[dict[str, Any]], seconds: float) -> float:
    """Answers a second, CLIENTS clients each sending one object after the other."""
    done = 0
    until = time.perf_counter() + seconds
    limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as client:

        async def one(number: int) -> None:
            nonlocal done
            while time.perf_counter() < until:
                answer = await client.post("/v1/embed", json=bodies[number % len(bodies)])
                assert answer.status_code == 200, answer.text
                done += 1
                number += CLIENTS

        began = time.perf_counter()
        await asyncio.gather(*(one(number) for number in range(CLIENTS)))
        return done / (time.perf_counter() - began)


def measure_crowd(args: argparse.Namespace) -> dict[str, Any]:
    """Objects a second of both, in turn."""
    bodies = [json_of(one) for one in photometry(256, 5)]
    port = free_port()
    rival = multiprocessing.get_context("spawn").Process(target=plain, args=(port, str(args.checkpoint)), daemon=True)
    rival.start()
    results: dict[str, Any] = {}
    rates: dict[str, list[float]] = {"service": [], "plain": []}
    with tempfile.TemporaryDirectory() as work, served(args.checkpoint, Path(work)) as (_, address, _target):
        other = f"http://127.0.0.1:{port}"
        while True:
            try:
                httpx.get(f"{other}/readyz", timeout=60)
                break
            except httpx.HTTPError:
                time.sleep(0.2)
        for where in (address, other):
            asyncio.run(crowd(where, bodies, args.seconds))
        results["gemm_gflops"] = [gemm_rate()]
        for number in range(args.rounds):
            rates["service"].append(asyncio.run(crowd(address, bodies, args.seconds)))
            rates["plain"].append(asyncio.run(crowd(other, bodies, args.seconds)))
            print(
                f"crowd: round {number + 1}, {rates['service'][-1]:.1f} and {rates['plain'][-1]:.1f} a second",
                file=sys.stderr,
            )
        results["gemm_gflops"].append(gemm_rate())
    rival.terminate()
    results["crowd"] = {name: median(values) for name, values in rates.items()}
    results["crowd"]["ratio"] = ratio(rates["service"], rates["plain"])
    return results


def main() -> int:
    """Command line: see the module's first lines. Exit code 3: the machine was unsteady."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=MINI, help="default: the shipped albireo-mini")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--case", action="append", choices=["full", "photometry", "alone"], help="default: all")
    parser.add_argument("--crowd", action="store_true", help="64 clients at a time, beside a plain endpoint")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a round of the crowd")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results = measure_crowd(args) if args.crowd else measure(args)
    before, after = results["gemm_gflops"]
    if args.json:
        print(json.dumps(results, indent=2))
    else:
        for case, rows in results.items():
            if case == "gemm_gflops":
                continue
            if case == "crowd":
                told = rows["ratio"]
                print(f"{CLIENTS} clients: {rows['service']:.1f} objects/s, plain {rows['plain']:.1f}: "
                      f"{told['value']:.2f} ({told['low']:.2f} to {told['high']:.2f})")  # fmt: skip
                continue
            print(f"{case:14}{'CPU ms':>10}{'wall ms':>10}{'CPU ratio':>24}{'added ms':>10}")
            for name, row in rows.items():
                told = row["cpu_ratio"]
                between = f"{told['value']:.2f} ({told['low']:.2f} to {told['high']:.2f})"
                print(f"  {name:12}{row['cpu_ms']:10.3f}{row['wall_ms']:10.3f}{between:>24}{row['added_ms']:10.2f}")
        print("ms of an object; added: ms of a request, beyond in-process")
        print(f"GEMM probe {before:.0f} -> {after:.0f} GFLOP/s" + ("" if steady(before, after) else ": VOID"))
    return 0 if steady(before, after) else VOID_EXIT


if __name__ == "__main__":
    sys.exit(main())
