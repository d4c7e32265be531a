"""Settings of the service: read once from the environment, typed, unknown keys refused.

Every field is the environment variable ALBIREO_<FIELD>, in capitals.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from albireo.observations.errors import BadInput
from albireo.tokenizers.checkpoint import MINI
from albireo.tokenizers.hub import resolve
from albireo.tokenizers.preprocessing import PreprocessingName

if TYPE_CHECKING:
    from albireo.service.pipeline import Staffing

PREFIX = "ALBIREO_"

NOT_SETTINGS = frozenset({"ALBIREO_TEST_DATA", "ALBIREO_STAR_DATA", "ALBIREO_URL", "ALBIREO_TOKEN"})
"""Variables with our prefix that belong to tests and evaluation, and to the Python client."""


GRPC_PORT = 8001
"""Where `albireo serve` listens for gRPC if nothing is said."""


class Settings(BaseSettings):
    """Where things are, and the limits of one request."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", protected_namespaces=())

    model: str = Field(
        default=MINI.name,
        description="name of a model (see `albireo models ls`), or a checkpoint folder",
    )
    preprocessing: PreprocessingName | None = Field(
        default=None, description="preprocessing of the tokenizers, instead of the model's own"
    )
    data_folder: Path = Field(
        default=Path("~/.local/share/albireo"),
        description="folder of the collections (collections.sqlite) and of your own heads (heads/)",
    )
    host: str = Field(default="127.0.0.1", description="address that `albireo serve` listens on")
    port: int = Field(default=8000, ge=1, le=65535, description="port that `albireo serve` listens on")
    grpc_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description=f"port that gRPC listens on, 0: none; `albireo serve` takes {GRPC_PORT} if nothing is said",
    )
    grpc_max_message_bytes: int = Field(
        default=64 << 20, gt=0, lt=1 << 31, description="largest message that is taken by gRPC, in bytes"
    )
    device: str = Field(default="cpu", description="torch device of the engine: cpu, cuda, cuda:1, ...")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="what the transformer's weights are kept in, and computed in where the processor can: float32 is "
        "exact, bfloat16 half the memory",
    )
    tokenizer_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="what the tokenizers' networks compute in, where the processor can: float32 gives AION-1's tokens, "
        "bfloat16 a few in a hundred others",
    )
    threads: int | None = Field(
        default=None, ge=1, description="threads of the network on a CPU; default: the cores granted to the process"
    )
    encoders: int | None = Field(
        default=None,
        ge=1,
        description="batches that the service encodes at a time; default: one for each thread of the network on a CPU, "
        "2 on a GPU (the next is prepared while one is computed)",
    )
    batch_tokens: int | None = Field(
        default=None,
        ge=1,
        description="tokens of a batch of the encoder, at least those of one object with everything; default: 4,096 on "
        "a CPU, 65,536 on a GPU",
    )
    batch_wait_ms: float = Field(
        default=0.0,
        ge=0,
        description="how long a batch that is not full waits for more when nothing is being computed; work gathers "
        "anyway while the last batch is computed",
    )
    image_workers: int = Field(default=1, ge=1, description="threads that tokenize images")
    spectrum_workers: int = Field(default=1, ge=1, description="threads that tokenize spectra")
    number_workers: int = Field(default=1, ge=1, description="threads that tokenize numbers: photometry, coefficients")
    deadline_seconds: float = Field(
        default=60.0, gt=0, description="after which a request is given up; it may ask for less by `deadline_ms`"
    )
    drain_seconds: float = Field(
        default=30.0,
        ge=1,
        description="that requests inside get to be answered when the service is told to end; the others get 503",
    )
    max_delay_seconds: float = Field(
        default=20.0, gt=0, description="a request that would wait longer for those before it is refused (429)"
    )
    max_requests: int = Field(default=256, ge=1, description="most requests inside at a time; others are refused (429)")
    max_inflight_bytes: int = Field(
        default=1 << 30, gt=0, description="most bytes of request bodies inside at a time; others are refused (429)"
    )
    max_body_bytes: int = Field(default=256 << 20, gt=0, description="largest request body, in bytes")
    max_decompressed_bytes: int = Field(
        default=1 << 30,
        gt=0,
        description="most bytes that the files of one request may take in memory together, once they are decompressed",
    )
    max_items: int = Field(default=10_000, gt=0, description="most objects in one request")
    max_draws: int = Field(
        default=1000, gt=0, description="most draws that one request may ask for, of all its objects together"
    )
    keys_file: Path | None = Field(
        default=None,
        description="TOML or JSON file of the hashes of the API keys (see `albireo keys new`), read again when it "
        "changes; none: everybody may do everything",
    )
    metrics_role: Literal["none", "read", "write", "admin"] = Field(
        default="none", description="role that a key needs to read /metrics, where keys are asked for"
    )
    tls_certificate: Path | None = Field(
        default=None, description="PEM file of the certificate of the service and those that signed it; none: no TLS"
    )
    tls_key: Path | None = Field(default=None, description="PEM file of the key of the certificate, not encrypted")
    tls_client_ca: Path | None = Field(
        default=None, description="PEM file of certificates: only clients with one that these have signed are served"
    )
    cors_origins: str = Field(
        default="",
        description="web pages that browsers may call the service from: https://host, several separated by commas, or "
        "*; none by default",
    )
    log_format: Literal["json", "text"] | None = Field(
        default=None,
        description="one JSON object a line, or text; default: text if standard error is a terminal, else json",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="from which level on the service logs; debug also logs health checks"
    )
    otlp_endpoint: str | None = Field(
        default=None,
        description="OpenTelemetry collector that traces are sent to by OTLP over HTTP, e.g. http://localhost:4318; "
        "needs the extra `otel`; none by default",
    )
    token_cache: Path | None = Field(
        default=None,
        description="folder that keeps the tokens of images, spectra and maps, so that what was tokenized once needs "
        "no pixels, also for another encoder with the same codecs; processes may share it; none by default",
    )
    token_cache_bytes: int = Field(
        default=4 << 30, ge=1 << 20, description="size of the token cache; the least recently used go first"
    )
    result_cache_bytes: int = Field(
        default=0,
        ge=0,
        description="memory of the service for embeddings that were computed already; the least recently used go first",
    )
    redis_url: str | None = Field(
        default=None,
        description="Redis that feeds tokenizer workers in other processes and counts quotas for several services; "
        "none by default",
    )
    remote_tokenizers: str = Field(
        default="",
        pattern="^((image|spectrum)(,(image|spectrum))?)?$",
        description="what `albireo worker` processes tokenize where there are any: image, spectrum or image,spectrum",
    )
    remote_parallel: int = Field(
        default=16, ge=1, description="objects of each of these that are given out to worker processes at a time"
    )
    worker_lease_seconds: float = Field(
        default=10.0, gt=0.1, description="a worker process that is silent for so long counts as dead"
    )

    @property
    def model_folder(self) -> Path:
        """The checkpoint folder of the model. NotFound if it is not on this machine."""
        return resolve(self.model)

    @property
    def staffing(self) -> Staffing:
        """How many threads of the service do what."""
        from albireo.models.cpu import available_cores  # these need what the command line does not
        from albireo.service.pipeline import Staffing

        on_cpu = self.device == "cpu"
        workers = {"image": self.image_workers, "spectrum": self.spectrum_workers, "numbers": self.number_workers}
        return Staffing(
            workers | dict.fromkeys(self.remote_pools, self.remote_parallel),
            self.encoders or ((self.threads or available_cores()) if on_cpu else 2),
            self.batch_tokens or (4_096 if on_cpu else 65_536),
            self.batch_wait_ms / 1e3,
        )

    @property
    def remote_pools(self) -> tuple[str, ...]:
        """Pools whose work is given to worker processes. BadInput option_invalid if there is no Redis to do it."""
        pools = tuple(filter(None, self.remote_tokenizers.split(",")))
        if pools and self.redis_url is None:
            raise BadInput(
                "option_invalid",
                "tokenizer workers in other processes are fed through Redis",
                field="ALBIREO_REMOTE_TOKENIZERS",
                fix="set ALBIREO_REDIS_URL",
            )
        return pools

    @property
    def collections_file(self) -> Path:
        """The SQLite file of all collections."""
        return self.data_folder.expanduser() / "collections.sqlite"

    @property
    def head_folders(self) -> dict[str, Path]:
        """Whose heads they are -> their folder, in the order in which a name is looked for."""
        return {"own": self.data_folder.expanduser() / "heads", "shipped": self.model_folder / "heads"}

    @property
    def states_folder(self) -> Path:
        """Token states that heads were fitted on, so that fitting again does not encode again."""
        return self.data_folder.expanduser() / "states"


def read_settings() -> Settings:
    """The settings of this process. BadInput option_invalid names the variable that is unknown or wrong."""
    known = {PREFIX + name.upper() for name in Settings.model_fields} | NOT_SETTINGS
    unknown = sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known)
    if unknown:
        raise BadInput(
            "option_invalid",
            f"there is no setting {unknown[0]}",
            field=unknown[0],
            fix="settings: " + ", ".join(sorted(known - NOT_SETTINGS)),
        )
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + str(first["loc"][0]).upper()
        raise BadInput("option_invalid", first["msg"], field=name, fix="see docs/settings.md") from error
