"""The container files, parsed: no Docker runs here. What can be run without it is run: the health check."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from albireo.service.settings import GRPC_PORT, PREFIX, Settings
from albireo.service.tls import Tls
from tests.service.certificates import make_certificates

SETTINGS = {PREFIX + name.upper() for name in Settings.model_fields}
TARGETS = ("cpu", "cuda")

Instruction = tuple[str, str]


@pytest.fixture(scope="module")
def stages(root: Path) -> dict[str, list[Instruction]]:
    """Stage -> its instructions, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", (root / "Dockerfile").read_text())
    found: dict[str, list[Instruction]] = {}
    name = ""
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            if word == "FROM":
                name = rest.split(" AS ")[1]
                found[name] = []
            found[name].append((word, rest.strip()))
    return found


def only(stage: list[Instruction], word: str) -> list[str]:
    return [rest for name, rest in stage if name == word]


def variables(stage: list[Instruction]) -> dict[str, str]:
    return dict(pair.split("=", 1) for rest in only(stage, "ENV") for pair in rest.split())


@pytest.fixture(scope="module")
def compose(root: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((root / "docker-compose.yml").read_text()))


@pytest.fixture(scope="module")
def gpu(root: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((root / "deploy/gpu.yml").read_text()))


def laid_over(base: Any, over: Any) -> Any:
    """Two files as Docker Compose merges them: mappings by key, lists one after the other, else the latter."""
    if isinstance(base, dict) and isinstance(over, dict):
        both = {name: laid_over(base[name], over[name]) for name in base.keys() & over.keys()}
        return {**base, **over, **both}
    return [*base, *over] if isinstance(base, list) and isinstance(over, list) else over


@pytest.fixture(params=["cpu", "gpu"])
def project(request: pytest.FixtureRequest, compose: dict[str, Any], gpu: dict[str, Any]) -> dict[str, Any]:
    """What Docker Compose is given on a machine without a GPU, and on one with."""
    return compose if request.param == "cpu" else dict(laid_over(compose, gpu))


def test_both_targets_are_there(stages: dict[str, list[Instruction]]) -> None:
    assert set(TARGETS) < set(stages)


def test_only_instructions_of_docker(stages: dict[str, list[Instruction]]) -> None:
    known = {"FROM", "ARG", "RUN", "COPY", "ENV", "USER", "WORKDIR", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK"}
    assert {word for stage in stages.values() for word, _ in stage} <= known | {"CMD"}


@pytest.mark.parametrize("target", TARGETS)
def test_not_root(stages: dict[str, list[Instruction]], target: str) -> None:
    """The user is made, owns the data, and is switched to before the command."""
    (user,) = only(stages[target], "USER")
    assert user not in {"root", "0"}
    made = " ".join(only(stages[target], "RUN"))
    assert re.search(rf"useradd .*{user}", made)
    assert f"install -d -o {user} -g {user} /data" in made
    words = [word for word, _ in stages[target]]
    assert words.index("USER") > max(i for i, word in enumerate(words) if word in {"RUN", "COPY"})


@pytest.mark.parametrize("target", TARGETS)
def test_serves_on_its_volume(stages: dict[str, list[Instruction]], target: str) -> None:
    environment = variables(stages[target])
    assert {name for name in environment if name.startswith(PREFIX)} <= SETTINGS
    assert environment["ALBIREO_HOST"] == "0.0.0.0"
    assert environment["ALBIREO_GRPC_PORT"] == str(GRPC_PORT)
    assert [f"{environment['ALBIREO_PORT']} {environment['ALBIREO_GRPC_PORT']}"] == only(stages[target], "EXPOSE")
    assert [f"{environment['ALBIREO_DATA_FOLDER']} {environment['HF_HOME']}"] == only(stages[target], "VOLUME")
    assert [json.loads(rest) for rest in only(stages[target], "CMD")] == [["albireo", "serve"]]


def test_each_target_installs_its_own_faiss_and_what_traces_need(
    root: Path, pyproject: dict[str, Any], stages: dict[str, list[Instruction]]
) -> None:
    """The step that lists the requirements is run."""
    extras = pyproject["project"]["optional-dependencies"]
    for target, extra in (("cpu", "cpu"), ("cuda", "gpu")):
        steps = " ".join(only(stages[f"{target}-environment"], "RUN"))
        (program,) = re.findall(r'-c "([^"]+)" > requirements\.txt', steps)
        run = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
        wanted = [*pyproject["project"]["dependencies"], *extras[extra], *extras["otel"]]
        assert run.stdout.splitlines() == wanted
        assert f"--from={target}-environment /opt/albireo /opt/albireo" in " ".join(only(stages[target], "COPY"))


def test_every_source_of_a_copy_exists(root: Path, stages: dict[str, list[Instruction]]) -> None:
    """And is let into the context by .dockerignore."""
    let_in = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = set()
    for stage in stages.values():
        for rest in only(stage, "COPY"):
            if rest.startswith("--from="):
                assert rest.split()[0].removeprefix("--from=") in stages
            else:
                sources.update(rest.split()[:-1])
    assert all((root / source).exists() for source in sources), sources
    assert sources == let_in


def test_every_folder_is_copied(stages: dict[str, list[Instruction]], folders: list[str]) -> None:
    copied = {rest.split()[0] for rest in only(stages["wheel"], "COPY")}
    assert {folder.split("/")[0] for folder in folders} <= copied


@contextmanager
def answering(status: int, host: str = "127.0.0.1", tls: Tls | None = None) -> Iterator[int]:
    """The port of a server that answers /readyz with this status, and everything else with 404."""

    def ready(request: Request) -> Response:
        return Response(status_code=status)

    app = Starlette(routes=[Route("/readyz", ready)])
    options = tls.uvicorn() if tls else {}
    server = uvicorn.Server(uvicorn.Config(app, host=host, port=0, log_config=None, lifespan="off", **options))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    ends = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < ends
        time.sleep(0.02)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def checked(stages: dict[str, list[Instruction]]) -> list[str]:
    """The command of the health check, the same in both images, for the Python of the tests."""
    first, second = (only(stages[target], "HEALTHCHECK")[0].partition("CMD ")[2] for target in TARGETS)
    assert first == second
    command = json.loads(first)
    assert command[0] == "python"
    return [sys.executable, *command[1:]]


def said(command: list[str], folder: Path, port: int, **settings: object) -> tuple[int, str]:
    """How the health check ended, and what it said."""
    environment = {"ALBIREO_PORT": str(port), **{name: str(value) for name, value in settings.items()}}
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return run.returncode, (run.stdout + run.stderr).strip()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1"])
def test_the_health_check(checked: list[str], tmp_path: Path, host: str) -> None:
    with answering(200, host) as port:
        assert said(checked, tmp_path, port, ALBIREO_HOST=host) == (0, "ready")
    ended, told = said(checked, tmp_path, port, ALBIREO_HOST=host)  # Nobody is there any more.
    assert (ended, told.partition(":")[0]) == (1, "ConnectionRefusedError")


@pytest.mark.parametrize("status", [503, 404])
def test_the_health_check_of_what_is_not_ready(checked: list[str], tmp_path: Path, status: int) -> None:
    with answering(status) as port:
        assert said(checked, tmp_path, port) == (1, f"HTTPException: /readyz says {status}")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority and a certificate that it has signed, and in `other` the same of another authority."""
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "other").mkdir()
    make_certificates(folder)
    make_certificates(folder / "other")
    return folder


def test_the_health_check_with_tls(checked: list[str], tmp_path: Path, certificates: Path) -> None:
    """Nothing that the check trusts has signed the certificate, and it has no name of ours: that does not matter."""
    pair = (certificates / "server.pem", certificates / "server.key")
    set_so = dict(zip(("ALBIREO_TLS_CERTIFICATE", "ALBIREO_TLS_KEY"), pair, strict=True))
    with answering(200, tls=Tls(*pair)) as port:
        assert said(checked, tmp_path, port, **set_so) == (0, "ready")
        assert said(checked, tmp_path, port)[0] == 1, "without TLS"
    with answering(503, tls=Tls(*pair)) as port:
        assert said(checked, tmp_path, port, **set_so) == (1, "HTTPException: /readyz says 503")
    with answering(200) as port:
        assert said(checked, tmp_path, port, **set_so)[0] == 1, "TLS was wanted"


def test_the_health_check_where_clients_show_certificates(
    checked: list[str], tmp_path: Path, certificates: Path
) -> None:
    """It shows the service's own. Where that is of no use, the service counts as healthy while TLS answers."""
    pair = (certificates / "server.pem", certificates / "server.key")
    set_so = dict(zip(("ALBIREO_TLS_CERTIFICATE", "ALBIREO_TLS_KEY"), pair, strict=True))
    ours, other = certificates / "ca.pem", certificates / "other/ca.pem"
    with answering(200, tls=Tls(*pair, ours)) as port:
        assert said(checked, tmp_path, port, **set_so, ALBIREO_TLS_CLIENT_CA=ours) == (0, "ready")
    with answering(503, tls=Tls(*pair, ours)) as port:
        ended, told = said(checked, tmp_path, port, **set_so, ALBIREO_TLS_CLIENT_CA=ours)
        assert (ended, told) == (1, "HTTPException: /readyz says 503")
    with answering(200, tls=Tls(*pair, other)) as port:
        ended, told = said(checked, tmp_path, port, **set_so, ALBIREO_TLS_CLIENT_CA=other)
        assert (ended, told.partition(";")[0]) == (0, "alive")
    assert said(checked, tmp_path, port, **set_so, ALBIREO_TLS_CLIENT_CA=other)[0] == 1, "nobody is there any more"


def test_the_health_check_reads_settings(root: Path) -> None:
    """As they are called, and with their defaults."""
    text = (root / "service/healthcheck.py").read_text()
    assert set(re.findall(rf"{PREFIX}\w+", text)) <= SETTINGS
    defaults = dict(re.findall(r'get\("ALBIREO_(\w+)", "([^"]+)"\)', text))
    assert defaults == {"HOST": Settings().host, "PORT": str(Settings().port)}


def test_the_services(compose: dict[str, Any]) -> None:
    assert compose["services"].keys() == {"api", "tokenizer-image", "tokenizer-spectrum", "redis"}
    api = compose["services"]["api"]
    assert api["build"] == {"context": ".", "target": "cpu"}
    assert api["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert "healthcheck" in compose["services"]["redis"]


def test_the_workers_are_of_the_service(project: dict[str, Any]) -> None:
    """They have what they must have like it, none is bound to one place, and they are given work."""
    api = project["services"]["api"]
    workers = {name.removeprefix("tokenizer-"): one for name, one in project["services"].items() if "tokenizer" in name}
    assert sorted(api["environment"]["ALBIREO_REMOTE_TOKENIZERS"].split(",")) == sorted(workers)
    alike = project["x-alike"]
    assert {"ALBIREO_MODEL", "ALBIREO_PREPROCESSING", "ALBIREO_TOKENIZER_DTYPE", "ALBIREO_REDIS_URL"} <= alike.keys()
    assert alike.items() <= api["environment"].items()
    for pool, worker in workers.items():
        assert worker["command"] == ["albireo", "worker", pool]
        assert worker["environment"] == alike
        assert set(worker["volumes"]) <= set(api["volumes"]), "what was pulled is there for both"
        assert not {"ports", "container_name"} & worker.keys(), "there can be only one of it"


def test_every_image_of_ours_is_built_once(project: dict[str, Any], stages: dict[str, list[Instruction]]) -> None:
    """From the target that it is named after. Two services that build the same image at a time can fail."""
    services = project["services"].values()
    named = {one["image"] for one in services if one["image"].startswith("albireo:")}
    built = [(one["image"], one["build"]) for one in services if "build" in one]
    assert sorted(image for image, _ in built) == sorted(named)
    for image, build in built:
        assert build == {"context": ".", "target": image.removeprefix("albireo:")}
        assert build["target"] in stages


def test_the_workers_need_no_gpu(project: dict[str, Any]) -> None:
    for name, one in project["services"].items():
        if name.startswith("tokenizer"):
            assert one["image"] == "albireo:cpu"
            assert "deploy" not in one


def test_the_end_is_waited_for(project: dict[str, Any]) -> None:
    """Docker kills after the grace: what was let in is answered by then, and the rest is closed."""
    grace = project["services"]["api"]["stop_grace_period"]
    assert float(grace.removesuffix("s")) >= Settings().drain_seconds + 15


def test_volumes_are_declared_and_used(compose: dict[str, Any]) -> None:
    mounts = [mount.split(":") for service in compose["services"].values() for mount in service["volumes"]]
    assert {name for name, _ in mounts} == compose["volumes"].keys()
    api = compose["services"]["api"]
    assert api["environment"]["ALBIREO_DATA_FOLDER"] in {mount.split(":")[1] for mount in api["volumes"]}


def test_the_ports_agree_and_are_local(project: dict[str, Any], stages: dict[str, list[Instruction]]) -> None:
    """HTTP and gRPC listen on every address of the container, and are reached from this machine only."""
    api = project["services"]["api"]
    listening = [api["environment"][name] for name in ("ALBIREO_PORT", "ALBIREO_GRPC_PORT")]
    assert api["ports"] == [f"127.0.0.1:{port}:{port}" for port in listening]
    assert only(stages[api["build"]["target"]], "EXPOSE") == [" ".join(listening)]
    assert api["environment"]["ALBIREO_HOST"] == "0.0.0.0"


def test_every_variable_is_a_setting(project: dict[str, Any]) -> None:
    """And has a value that the settings accept; without one it comes from where Docker Compose is called."""
    named = project["services"]["api"]["environment"]
    assert named.keys() <= SETTINGS
    Settings(**{name.removeprefix(PREFIX).lower(): value for name, value in named.items() if value is not None})
    assert named["ALBIREO_REDIS_URL"].startswith("redis://redis:")


def test_the_gpu_is_laid_over(compose: dict[str, Any], gpu: dict[str, Any]) -> None:
    assert gpu["services"].keys() <= compose["services"].keys()
    assert gpu["services"]["api"]["build"] == {"target": "cuda"}
    devices = gpu["services"]["api"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
