"""What happens around every gRPC call: ids, errors, places, deadlines, health, reflection, the end."""

from __future__ import annotations

import datetime
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi.testclient import TestClient
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from albireo.observations import errors
from albireo.observations.errors import AlbireoError, BadInput, Busy, NoKey
from albireo.service.app import create_app
from albireo.service.core import Core
from albireo.service.grpc_calls import key_of, operation_of
from albireo.service.grpc_door import SERVICES, Door
from albireo.service.grpc_health import Health
from albireo.service.problems import GRPC_STATUS, STATUS, Malformed, WrongContentType
from albireo.service.protos.albireo.v1 import albireo_pb2 as pb
from albireo.service.readiness import Readiness
from albireo.service.settings import Settings
from tests.service.conftest import ToyEngine
from tests.service.grpc_doors import Served, detail, embedded, of_file, of_fluxes, on_loop, served
from tests.service.make_protos import PROTOS

NAMES = ("albireo.v1.Embedding", "albireo.v1.Heads", "albireo.v1.Search")


@pytest.fixture
def door(core: Core, settings: Settings) -> Iterator[Served]:
    with served(core, settings) as made:
        yield made


def eventually(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:
        time.sleep(0.01)
    return true()


def refusal(call: Callable[[], object]) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


# --- ids and errors -------------------------------------------------------------------------------------------------


def test_request_ids(door: Served) -> None:
    embed = door.embedding.Embed
    answer, call = embed.with_call(embedded(of_fluxes("a")), metadata=(("x-request-id", "night-7"),))
    assert (answer.envelope.request_id, dict(call.trailing_metadata())["x-request-id"]) == ("night-7", "night-7")
    answer, call = embed.with_call(embedded(of_fluxes("a")), metadata=(("x-request-id", "a line, more"),))
    assert answer.envelope.request_id == dict(call.trailing_metadata())["x-request-id"]
    assert answer.envelope.request_id.isalnum()
    stream = door.embedding.EmbedStream(iter([of_fluxes("a")]), metadata=(("x-request-id", "night-9"),))
    assert dict(stream.initial_metadata())["x-request-id"] == "night-9"
    assert len(list(stream)) == 1
    error = refusal(lambda: embed(embedded(), metadata=(("x-request-id", "night-8"),)))
    assert dict(error.trailing_metadata())["x-request-id"] == "night-8"
    assert detail(error, "RequestInfo").request_id == "night-8"


def raised(kind: type[AlbireoError]) -> AlbireoError:
    more = {"retry_after": 7.5} if kind is Busy else {}
    return kind("internal", "what happened", file="a.fits", field="items.0", fix="do this", **more)  # type: ignore[arg-type]


STATUSES = {
    AlbireoError: grpc.StatusCode.INTERNAL,
    BadInput: grpc.StatusCode.INVALID_ARGUMENT,
    Malformed: grpc.StatusCode.INVALID_ARGUMENT,
    WrongContentType: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UnknownFormat: grpc.StatusCode.INVALID_ARGUMENT,
    errors.TooLarge: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.Conflict: grpc.StatusCode.FAILED_PRECONDITION,
    errors.BadCheckpoint: grpc.StatusCode.INTERNAL,
    errors.Denied: grpc.StatusCode.PERMISSION_DENIED,
    errors.NoKey: grpc.StatusCode.UNAUTHENTICATED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Busy: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Full: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Late: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Gone: grpc.StatusCode.CANCELLED,
}


def test_every_class_of_errors_has_a_status() -> None:
    assert {kind for kind in STATUS if kind.__module__ == errors.__name__} <= STATUSES.keys()
    assert all(hasattr(grpc.StatusCode, name) for name in GRPC_STATUS.values())


class Raises:
    """Access that refuses all calls with one error."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.asked: list[tuple[str | None, str]] = []

    def check(self, key: str | None, operation: str) -> None:
        self.asked.append((key, operation))
        raise self.error


@pytest.mark.parametrize("kind", STATUSES)
def test_errors_and_their_details(core: Core, settings: Settings, kind: type[AlbireoError]) -> None:
    with served(core, settings, access=Raises(raised(kind))) as door:
        error = refusal(lambda: door.embedding.Embed(embedded(of_fluxes("a"))))
    assert (error.code(), error.details()) == (STATUSES[kind], "what happened")
    about = detail(error, "ErrorInfo")
    assert (about.reason, about.domain) == ("internal", "albireo")
    assert dict(about.metadata) == {"file": "a.fits", "field": "items.0", "fix": "do this"}
    violated, again = detail(error, "BadRequest"), detail(error, "RetryInfo")
    assert (violated is not None) == issubclass(kind, BadInput)
    if violated is not None:
        assert violated.field_violations[0].field == "items.0"
    assert (again is not None) == (issubclass(kind, errors.Unavailable) and kind is not errors.Late)
    if again is not None:
        assert again.retry_delay.ToMilliseconds() == (7500 if kind is Busy else 5000)


def test_a_defect_tells_nothing(core: Core, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    with served(core, settings, access=Raises(RuntimeError("secret path"))) as door:
        error = refusal(lambda: door.embedding.Embed(embedded(of_fluxes("a"))))
    assert error.code() == grpc.StatusCode.INTERNAL
    assert "secret" not in str(rpc_status.from_call(error))
    assert "secret path" in caplog.text


def test_an_engine_that_fails_fails_the_objects(door: Served, engine: ToyEngine) -> None:
    engine.crash = True
    (item,) = door.embedding.Embed(embedded(of_fluxes("a"))).items
    assert (item.status, item.error.code) == ("error", "internal")
    assert "secret" not in str(item)
    engine.crash = False
    assert door.embedding.Embed(embedded(of_fluxes("a"))).items[0].status == "ok"


def test_long_messages_still_arrive(core: Core, settings: Settings) -> None:
    """A status with more than 8 kB of metadata would be lost on the way."""
    long = BadInput("request_invalid", "é" * 20_000, file="f" * 9000, field="x" * 9000, fix="y" * 9000)
    with served(core, settings, access=Raises(long)) as door:
        error = refusal(lambda: door.embedding.Embed(embedded()))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert detail(error, "ErrorInfo").reason == "request_invalid"
    assert "20000 characters" in error.details()
    assert error.details().startswith("é" * 200)


def test_keys_are_asked_of_every_call_but_health(core: Core, settings: Settings) -> None:
    access = Raises(NoKey("key_missing", "no key"))
    with served(core, settings, access=access) as door:
        refusal(lambda: door.search.Get(pb.GetRequest(collection="sky"), metadata=(("authorization", "Bearer abc"),)))
        refusal(lambda: list(door.embedding.EmbedStream(iter([]), metadata=(("x-api-key", "k"),))))
        refusal(lambda: door.heads.ListHeads(pb.ListHeadsRequest()))
        assert health(door, "").status == health_pb2.HealthCheckResponse.SERVING
    assert access.asked == [("abc", "get"), ("k", "embed_stream"), (None, "list_heads")]


def test_names_of_operations_and_keys() -> None:
    assert operation_of("/albireo.v1.Search/SearchBatch") == "search_batch"
    assert key_of({"authorization": "bearer  k "}) == "k"
    assert key_of({"authorization": "Basic k"}) is None
    assert key_of({"x-api-key": b"k"}) == "k"


# --- places, deadlines ----------------------------------------------------------------------------------------------


def test_a_call_is_refused_before_its_message_is_read(
    core: Core, settings: Settings, image: Callable[..., bytes]
) -> None:
    one = settings.model_copy(update={"max_requests": 1})
    with served(core, one) as door:
        place = door.admission.enter()
        error = refusal(lambda: door.embedding.Embed(embedded(of_file(image("a"))), timeout=10))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert detail(error, "RetryInfo").retry_delay.ToMilliseconds() >= 1000
        assert door.heads.ListHeads(pb.ListHeadsRequest()).model == "toy"
        assert health(door, "").status == health_pb2.HealthCheckResponse.SERVING
        place.leave(False)
        assert door.embedding.Embed(embedded(of_file(image("a")))).items[0].status == "ok"
    text = door.telemetry.metrics.exposition("")[0].decode()
    assert 'albireo_requests_total{door="grpc",operation="embed",status="RESOURCE_EXHAUSTED"} 1.0' in text
    assert 'albireo_requests_total{door="grpc",operation="embed",status="OK"} 1.0' in text
    assert 'albireo_requests_refused_total{code="overloaded"} 1.0' in text
    received = next(line for line in text.splitlines() if line.startswith('albireo_received_bytes_total{door="grpc"}'))
    assert len(image("a")) < float(received.split()[1]) < 2 * len(image("a"))
    assert (door.admission.requests, door.admission.bytes) == (0, 0)


def test_messages_over_the_limit(core: Core, settings: Settings) -> None:
    small = settings.model_copy(update={"grpc_max_message_bytes": 1 << 20})
    with served(core, small) as door:
        for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            request = embedded(of_file(bytes(2 << 20)))
            error = refusal(lambda r=request, c=compression: door.embedding.Embed(r, compression=c))  # type: ignore[misc]
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert eventually(lambda: door.admission.requests == 0)


def test_the_deadline_of_the_client(door: Served, engine: ToyEngine) -> None:
    engine.gate.clear()
    error = refusal(lambda: door.embedding.Embed(embedded(of_fluxes("a")), timeout=0.3))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert eventually(lambda: door.admission.requests == 0)
    engine.gate.set()
    assert door.embedding.Embed(embedded(of_fluxes("a")), timeout=10).items[0].status == "ok"


def test_the_deadline_of_the_service(core: Core, settings: Settings, engine: ToyEngine) -> None:
    with served(core, settings.model_copy(update={"deadline_seconds": 0.3})) as door:
        engine.gate.clear()
        error = refusal(lambda: door.embedding.Embed(embedded(of_fluxes("a")), timeout=20))
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert detail(error, "ErrorInfo").reason == "deadline_exceeded"
        engine.gate.set()


def test_a_call_that_is_cancelled_computes_nothing(door: Served, engine: ToyEngine) -> None:
    door.embedding.Embed(embedded(of_fluxes("first")))
    engine.gate.clear()
    calls = [door.embedding.Embed.future(embedded(of_fluxes(str(n)))) for n in range(6)]
    pipeline = door.core.pipeline
    assert pipeline is not None
    assert eventually(lambda: door.admission.requests == 6 and pipeline.encoding.waiting > 0)
    for call in calls:
        call.cancel()
    assert eventually(lambda: door.admission.requests == 0 and pipeline.encoding.waiting == 0)
    engine.gate.set()
    assert door.embedding.Embed(embedded(of_fluxes("a")), timeout=10).items[0].status == "ok"


# --- health, reflection ---------------------------------------------------------------------------------------------


def health(door: Served, service: str) -> health_pb2.HealthCheckResponse:
    return health_pb2_grpc.HealthStub(door.channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=20)


def test_health_by_service(door: Served, engine: ToyEngine) -> None:
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    assert {health(door, name).status for name in ("", *NAMES)} == {serving}
    engine.shift = 1.0  # its answers are wrong now
    assert [health(door, name).status for name in ("", *NAMES)] == [not_serving, not_serving, not_serving, serving]
    error = refusal(lambda: health(door, "albireo.v1.Nothing"))
    assert error.code() == grpc.StatusCode.NOT_FOUND


async def closing(health: Health) -> None:
    health.close()


def test_watching_health(core: Core, settings: Settings, engine: ToyEngine) -> None:
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    with served(core, settings) as door:
        door.door.health.every = 0.05
        request = health_pb2.HealthCheckRequest(service="albireo.v1.Embedding")
        watching = health_pb2_grpc.HealthStub(door.channel).Watch(request, timeout=20)
        assert next(watching).status == serving
        engine.shift = 1.0
        assert next(watching).status == not_serving
        engine.shift = 0.0
        assert next(watching).status == serving
        on_loop(closing(door.door.health))
        assert [one.status for one in watching] == [not_serving]


def test_reflection_by_a_stock_client(door: Served) -> None:
    """A client that knows nothing finds the services, and calls one."""
    database = ProtoReflectionDescriptorDatabase(door.channel)
    assert {*NAMES, "grpc.health.v1.Health"} <= set(database.get_services())
    pool = DescriptorPool(database)
    for service in SERVICES:
        assert pool.FindServiceByName(service.name).methods
    method = pool.FindMethodByName("albireo.v1.Embedding.Embed")
    request = GetMessageClass(method.input_type)()
    given = request.items.add(id="a").inputs.add()  # type: ignore[attr-defined]
    given.scalars["flux_g"] = 12.0
    given.units["flux_g"] = "nanomaggy"
    given.read.survey, given.read.system, given.read.kind, given.read.extinction_corrected = (
        "legacysurvey", "AB", "model", False,
    )  # fmt: skip
    call = door.channel.unary_unary(
        "/albireo.v1.Embedding/Embed",
        lambda one: one.SerializeToString(),
        GetMessageClass(method.output_type).FromString,
    )
    assert call(request).items[0].status == "ok"


def test_there_is_no_such_method(door: Served) -> None:
    call = door.channel.unary_unary("/albireo.v1.Embedding/Nothing")
    assert refusal(lambda: call(b"")).code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_message_that_is_none(door: Served) -> None:
    call = door.channel.unary_unary("/albireo.v1.Embedding/Embed")
    error = refusal(lambda: call(b"\xff\xff\xff"))
    assert error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INVALID_ARGUMENT)
    assert eventually(lambda: door.admission.requests == 0)
    assert door.embedding.Embed(embedded(of_fluxes("a"))).items[0].status == "ok"


# --- the end --------------------------------------------------------------------------------------------------------


def test_the_end_answers_what_was_let_in(core: Core, settings: Settings, engine: ToyEngine) -> None:
    with served(core, settings) as door:
        engine.gate.clear()
        inside = door.embedding.Embed.future(embedded(of_fluxes("a")), timeout=20)
        assert eventually(lambda: door.admission.requests == 1)
        door.admission.close()
        error = refusal(lambda: door.embedding.Embed(embedded(of_fluxes("b")), timeout=10))
        assert (error.code(), detail(error, "ErrorInfo").reason) == (grpc.StatusCode.UNAVAILABLE, "not_ready")
        ended = threading.Thread(target=lambda: on_loop(door.door.close(15.0)))
        ended.start()
        time.sleep(0.1)
        engine.gate.set()
        assert inside.result().items[0].status == "ok"
        ended.join(10)
        assert not ended.is_alive()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_the_app_opens_the_door_if_it_has_a_port(core: Core, settings: Settings) -> None:
    port = free_port()
    readiness = Readiness(core, settings.data_folder)
    with TestClient(create_app(core, settings.model_copy(update={"grpc_port": port}), readiness)) as client:
        assert client.get("/livez").status_code == 200
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            status = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20).status
        assert status == health_pb2.HealthCheckResponse.SERVING
    with socket.socket() as one:
        one.bind(("127.0.0.1", port))  # it is closed with the app


def test_only_the_door_imports_grpc() -> None:
    """And only where it is opened: everything else starts without it."""
    heavy = re.compile(r"^(?:from|import) (?:grpc|google|albireo\.service\.(?:grpc_|oip_grpc|protos)).*", re.MULTILINE)
    for path in sorted(PROTOS.parent.glob("*.py")):
        if not path.name.startswith(("grpc_", "oip_grpc")):
            assert heavy.findall(path.read_text()) == [], path.name


def test_a_port_that_is_taken(door: Served, settings: Settings) -> None:
    with pytest.raises(BadInput) as caught:
        on_loop(
            Door.open(
                door.core, settings, Readiness(door.core, settings.data_folder), door.admission, door.telemetry,
                port=door.door.port,
            )
        )  # fmt: skip
    assert (caught.value.code, caught.value.field) == ("option_invalid", "ALBIREO_GRPC_PORT")


def certificate(name: str) -> tuple[bytes, bytes]:
    """A certificate of a host that signs itself, and its key, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return made.public_bytes(serialization.Encoding.PEM), key.private_bytes(serialization.Encoding.PEM, *private)


def test_with_a_certificate(core: Core, settings: Settings, tmp_path: Path) -> None:
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    for path, content in zip((chain, key), certificate("localhost"), strict=True):
        path.write_bytes(content)
    with served(core, settings, certificate=(chain, key)) as door:
        credentials = grpc.ssl_channel_credentials(chain.read_bytes())
        with grpc.secure_channel(f"localhost:{door.door.port}", credentials) as channel:
            request = health_pb2.HealthCheckRequest()
            status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=20, wait_for_ready=True).status
        assert status == health_pb2.HealthCheckResponse.SERVING
        plain = refusal(lambda: door.embedding.Embed(embedded(of_fluxes("a")), timeout=5))
        assert plain.code() == grpc.StatusCode.UNAVAILABLE
