"""What the service does when it is asked for more than it can: goodput, latency, refusals, memory, and the time after.

    python -m benchmarks.overload [--seconds 120] [--times 5] [--json]

Full objects (image, spectrum, photometry; three files each), one a request, over HTTP from another process on the same
machine. First one request at a time, for what is normal; then as many a second as `--rates` of what CLIENTS at a time
get, for the peak; then `--times` the peak for `--seconds`; then one at a time again. Requests are sent when they are
due, whether or not others were answered. The service refuses what would wait longer than MAX_DELAY seconds for its
turn (ALBIREO_MAX_DELAY_SECONDS), and gives up what is not answered in DEADLINE.

    goodput    answers (200) a second from the first to the last second of the load, beside the peak, and beside what
               CLIENTS at a time get once all is over
    admitted   seconds from sending to the answer, of answers (200)
    refused    milliseconds in the server, of refusals (429): Server-Timing; and seconds for the client
    memory     resident memory of the server in the second and in the last quarter
    ready      /readyz once a second, while all this goes on
    after      seconds until one request at a time takes at most 1.5 times what is normal: the median of RUN answers
               in a row, from then on; and the share of single answers above that, before the load and from 5 s after it
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from albireo.tokenizers.checkpoint import MINI
from benchmarks.doors import full_objects, served
from benchmarks.measuring import VOID_EXIT, gemm_rate, steady

CLIENTS = 16
MAX_DELAY = 4.0
DEADLINE = 8.0
MOST_OPEN = 2000
"""Requests of the generator under way at a time; a bound on its sockets, far above what is reached."""

RUN = 5
"""Answers in a row whose median tells what a request takes."""

SLOW = 1.5
"""Times what is normal, from which an answer is slow."""

BOUNDARY = "albireo-overload"
TOTAL = re.compile(r"total;dur=([0-9.]+)")


@dataclass(frozen=True)
class Answer:
    """Of one request: when it was sent and answered (seconds of one clock), status, ms in the server, Retry-After."""

    sent: float
    answered: float
    status: int
    server_ms: float
    retry_after: str

    @property
    def seconds(self) -> float:
        return self.answered - self.sent


class Sender:
    """Sends ready-made requests over connections that are kept; as little work as can be, for it shares the cores."""

    def __init__(self, host: str, port: int, requests: Sequence[bytes]) -> None:
        self.host, self.port, self.requests = host, port, requests
        self._idle: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = deque()
        self._sent = 0

    async def send(self) -> Answer:
        """One more request, and its answer. Status 0: the connection broke."""
        self._sent += 1
        return await self.ask(self.requests[self._sent % len(self.requests)])

    async def ask(self, request: bytes) -> Answer:
        began = time.monotonic()
        for kept in (bool(self._idle), False):
            reader, writer = (
                self._idle.pop() if kept and self._idle else await asyncio.open_connection(self.host, self.port)
            )
            try:
                writer.write(request)
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                fields = {name.lower(): value.strip() for name, _, value in
                          (line.partition(":") for line in head.split("\r\n")[1:])}  # fmt: skip
                await reader.readexactly(int(fields.get("content-length", 0)))
            except (OSError, asyncio.IncompleteReadError):
                writer.close()
                if kept:
                    continue  # the server closed what was idle
                return Answer(began, time.monotonic(), 0, 0.0, "")
            if fields.get("connection", "").lower() == "close":
                writer.close()
            else:
                self._idle.append((reader, writer))
            total = TOTAL.search(fields.get("server-timing", ""))
            status = int(head.split(" ", 2)[1])
            return Answer(began, time.monotonic(), status, float(total[1]) if total else 0.0,
                          fields.get("retry-after", ""))  # fmt: skip
        raise AssertionError("the second try returns")

    async def one_by_one(self, seconds: float, clients: int = 1) -> list[Answer]:
        """So many clients for so long, each sending its next request when the last is answered."""
        answers: list[Answer] = []
        until = time.monotonic() + seconds

        async def client() -> None:
            while time.monotonic() < until:
                answers.append(await self.send())

        await asyncio.gather(*(client() for _ in range(clients)))
        return answers

    async def at_rate(self, rate: float, seconds: float) -> list[Answer]:
        """So many a second for so long, each sent when it is due."""
        tasks: list[asyncio.Task[Answer]] = []
        began = time.monotonic()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            if sum(not task.done() for task in tasks[-MOST_OPEN:]) >= MOST_OPEN:
                raise RuntimeError(f"{MOST_OPEN} requests are open")
            tasks.append(asyncio.ensure_future(self.send()))
        return list(await asyncio.gather(*tasks))


def goodput(answers: Sequence[Answer], seconds: float) -> float:
    """Answers (200) a second, from a tenth of the time on, while requests were sent."""
    began = min(answer.sent for answer in answers)
    good = [a for a in answers if a.status == 200 and 0.1 * seconds <= a.answered - began <= seconds]
    return len(good) / (0.9 * seconds)


def requests_of(host: str, port: int) -> list[bytes]:
    """A whole HTTP request for each object."""
    with tempfile.TemporaryDirectory() as folder:
        files = full_objects(Path(folder))
    out = []
    for item in files.request["items"]:
        names = [given["ref"].removeprefix("part:") for given in item["inputs"]]
        parts = [("request", "", json.dumps({"items": [item], "options": {"encoding": "base64"}}).encode())]
        parts += [(name, f'; filename="{files.parts[name][0]}"', files.parts[name][1]) for name in names]
        body = b"".join(
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"
            for name, file, content in parts
        ) + f"--{BOUNDARY}--\r\n".encode()  # fmt: skip
        head = (
            f"POST /v1/embed HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(body)}\r\n"
            f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
        )
        out.append(head.encode() + body)
    return out


def generate(connection: Any, port: int) -> None:
    """The generator, in a process of its own: does what it is told, and tells the answers."""
    sender = Sender("127.0.0.1", port, requests_of("127.0.0.1", port))

    async def work() -> None:
        loop = asyncio.get_running_loop()
        while (told := await loop.run_in_executor(None, connection.recv)) is not None:
            how, *arguments = told
            connection.send(await getattr(sender, how)(*arguments))

    asyncio.run(work())


async def looking(host: str, port: int, every: float, pid: int, looks: list[tuple[int, float, int]]) -> None:
    """Look at /readyz and at the server's memory: status, seconds it took, resident bytes."""
    request = f"GET /readyz HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
    sender = Sender(host, port, [])
    while True:
        answer = await sender.ask(request)
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        looks.append((answer.status, answer.seconds, resident))
        await asyncio.sleep(every)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All of it, with the figures of the page."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    os.environ |= {
        "ALBIREO_MAX_DELAY_SECONDS": str(MAX_DELAY), "ALBIREO_DEADLINE_SECONDS": str(DEADLINE),
    }  # fmt: skip
    results: dict[str, Any] = {"max_delay": MAX_DELAY, "deadline": DEADLINE}
    with tempfile.TemporaryDirectory() as work, served(args.checkpoint, Path(work)) as (pid, address, _):
        port = int(address.rpartition(":")[2])
        generator = context.Process(target=generate, args=(there, port), daemon=True)
        generator.start()

        async def told(how: str, *arguments: float) -> list[Answer]:
            here.send((how, *arguments))
            answers: list[Answer] = await asyncio.get_running_loop().run_in_executor(None, here.recv)
            print(f"{how}{arguments}: {dict(Counter(a.status for a in answers))}", file=sys.stderr)
            return answers

        async def whole() -> None:
            looks: list[tuple[int, float, int]] = []
            watching = asyncio.ensure_future(looking("127.0.0.1", port, 1.0, pid, looks))
            # Many processors are faster after a rest than under a load that lasts: all is measured in the latter.
            await told("one_by_one", args.warm_seconds, CLIENTS)
            await asyncio.sleep(MAX_DELAY)
            results["gemm_gflops"] = [gemm_rate()]
            await told("one_by_one", 5)
            alone = await told("one_by_one", 15)
            results["normal_s"] = normal = median(a.seconds for a in alone)
            many = goodput(await told("one_by_one", args.warm_seconds, CLIENTS), args.warm_seconds)
            results["peak"] = {"closed": many}
            for factor in args.rates:
                await asyncio.sleep(MAX_DELAY)
                answers = await told("at_rate", factor * many, args.warm_seconds)
                results["peak"][f"{factor:g}"] = goodput(answers, args.warm_seconds)
            peak = max(results["peak"].values())
            await asyncio.sleep(MAX_DELAY)
            first = len(looks)
            answers = await told("at_rate", args.times * peak, args.seconds)
            under = looks[first:]
            ended = max(a.sent for a in answers)
            after = await told("one_by_one", 15)
            watching.cancel()
            results.update(_told(answers, peak, args.seconds) | _looked(under))
            again = goodput(await told("one_by_one", args.warm_seconds, CLIENTS), args.warm_seconds)
            results["peak"]["closed, afterwards"] = again
            results["of_peak_afterwards"] = results["goodput"] / again
            late = [a for a in after if a.sent - ended > 5]
            results["after"] = {
                "normal_again_s": normal_again(after, ended, SLOW * normal),
                "median_s": median(a.seconds for a in late),
                "slow_share": {"before": slow_share(alone, normal), "after": slow_share(late, normal)},
            }

        asyncio.run(whole())
        results["gemm_gflops"].append(gemm_rate())
        here.send(None)
    return results


def normal_again(answers: Sequence[Answer], ended: float, bound: float) -> float:
    """Seconds after `ended` from which the median of RUN answers in a row is within the bound, and stays so."""
    took = [a.seconds if a.status == 200 else float("inf") for a in answers]
    slow = [n for n in range(RUN, len(took) + 1) if median(took[n - RUN : n]) > bound]
    return answers[slow[-1] - 1].answered - ended if slow else 0.0


def slow_share(answers: Sequence[Answer], normal: float) -> float:
    """Share of answers that took SLOW times what is normal, or were none."""
    return sum(a.status != 200 or a.seconds > SLOW * normal for a in answers) / len(answers)


def _told(answers: Sequence[Answer], peak: float, seconds: float) -> dict[str, Any]:
    admitted = [a.seconds for a in answers if a.status == 200]
    refused = [a.server_ms for a in answers if a.status == 429]
    good = goodput(answers, seconds)
    return {
        "statuses": {str(status): n for status, n in sorted(Counter(a.status for a in answers).items())},
        "goodput": good,
        "of_peak": good / peak,
        "admitted_s": _quantiles(admitted),
        "refused_ms": _quantiles(refused),
        "refused_s": _quantiles([a.seconds for a in answers if a.status == 429]),
        "refused_without_retry_after": sum(not a.retry_after for a in answers if a.status == 429),
    }


def _looked(looks: Sequence[tuple[int, float, int]]) -> dict[str, Any]:
    quarter = len(looks) // 4
    resident = [look[2] / 2**20 for look in looks]
    return {
        "ready": {str(status): n for status, n in Counter(look[0] for look in looks).items()},
        "ready_s": _quantiles([look[1] for look in looks]),
        "resident_mib": [median(resident[quarter : 2 * quarter]), median(resident[-quarter:])],
    }


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    return {f"p{q}": float(np.quantile(values, q / 100)) for q in (50, 95, 99)} | {"max": max(values)}


def main() -> int:
    """Command line: see the module's first lines. Exit code 3: the machine was unsteady."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=MINI, help="default: the shipped albireo-mini")
    parser.add_argument("--seconds", type=float, default=120.0, help="of overload")
    parser.add_argument("--warm-seconds", type=float, default=20.0, help="of each load that looks for the peak")
    parser.add_argument("--times", type=float, default=5.0, help="the peak")
    parser.add_argument("--rates", type=float, nargs="*", default=[1.0, 1.3], help="tried for the peak")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of lines")
    args = parser.parse_args()
    results = measure(args)
    before, after = results["gemm_gflops"]
    if args.json:
        print(json.dumps(results, indent=2))
    else:
        for name, value in results.items():
            print(f"{name:28} {json.dumps(value)}")
        print("" if steady(before, after) else "VOID: the machine was unsteady")
    return 0 if steady(before, after) else VOID_EXIT


if __name__ == "__main__":
    sys.exit(main())
