"""The Open Inference Protocol, whichever door it comes through: which models there are, and what becomes of a request.

Models       the table: by name, ready or not, described
infer        requests -> answers
InferAnswer  what a door sends back

Shared memory, sequences and classification are refused by name, and so is every parameter that nothing here reads.
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from albireo.observations.errors import AlbireoError, BadInput, NotFound, TooLarge
from albireo.service.core import Core
from albireo.service.oip_models import (
    Encoder,
    HeadModel,
    InferRequest,
    Job,
    Model,
    Tokenizer,
    head_name,
    tokenizer_name,
)
from albireo.service.oip_tensors import Array, Tensor, TensorSpec, Value
from albireo.service.tickets import Ticket
from albireo.service.watch import tally

VERSION = "1"
"""Of every model: what it is, its answers and its metadata say by the embedding space."""

EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository_index", "parameters", "schedule_policy")

REFUSED = {
    "shared_memory_region": "shared memory",
    "shared_memory_byte_size": "shared memory",
    "shared_memory_offset": "shared memory",
    "sequence_id": "sequences",
    "sequence_start": "sequences",
    "sequence_end": "sequences",
    "classification": "classification",
}
"""Parameter -> the extension that it belongs to, which is not served."""

SCHEDULING = frozenset({"priority", "timeout"})


@dataclass(frozen=True)
class InferAnswer:
    """The outputs of one request, in the order in which they were asked for."""

    model: str
    id: str
    outputs: tuple[Tensor, ...]
    parameters: Mapping[str, Value]
    version: str = VERSION


class Models:
    """The models of a core. Heads come and go with their files."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._made: dict[tuple[str, str], Model] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """The encoder, the tokenizers, the heads."""
        tokenizers = [tokenizer_name(self.core, key) for key in self.core.inputs]
        return [self.core.described.name, *tokenizers, *map(head_name, self.core.shelf.names())]

    def get(self, name: str, wanted: str = "") -> Model:
        """The model of a name. NotFound if there is none, or none of this version."""
        if wanted not in ("", VERSION):
            raise NotFound("model_unknown", f"no version {wanted!r}", field=name, fix=f"leave it out, or {VERSION}")
        known = self.names()
        if name not in known:
            near = difflib.get_close_matches(name, known, 3) or [known[0]]
            fix = f"there is {', '.join(near)}; POST /v2/repository/index lists all"
            raise NotFound("model_unknown", f"no model is called {name!r}", field="model", fix=fix)
        if name.startswith(head_name("")):
            shelved = self.core.shelf.open(name.removeprefix(head_name("")))
            made = self._once(name, shelved.version, lambda: HeadModel(self.core, shelved))
        elif name == self.core.described.name:
            made = self._once(name, "", lambda: Encoder(self.core))
        else:
            key = next(key for key in self.core.inputs if tokenizer_name(self.core, key) == name)
            made = self._once(name, "", lambda: Tokenizer(self.core, key))
        return made

    def unready(self, name: str, wanted: str = "") -> AlbireoError | None:
        """Why a model cannot be asked with this engine; None if it can. NotFound as `get`."""
        try:
            self.get(name, wanted).check(self.core)
        except NotFound:
            raise
        except AlbireoError as error:
            return error
        return None

    def index(self) -> Iterator[dict[str, str]]:
        """Name, version, state and reason of every model."""
        for name in self.names():
            error = self.unready(name)
            state = "UNAVAILABLE" if error else "READY"
            yield {"name": name, "version": VERSION, "state": state, "reason": error.message if error else ""}

    def _once(self, name: str, which: str, make: Callable[[], Model]) -> Model:
        with self._lock:
            if (name, which) not in self._made:
                self._made = {at: model for at, model in self._made.items() if at[0] != name}
                self._made[name, which] = make()
            return self._made[name, which]


def server_metadata() -> dict[str, Any]:
    """Of the server, as the protocol has it."""
    return {"name": "albireo", "version": version("albireo"), "extensions": list(EXTENSIONS)}


def model_metadata(model: Model) -> dict[str, Any]:
    """Of a model, as the protocol has it; `properties` say what tensors cannot, `parameter.<name>` among them."""
    return {
        "name": model.name,
        "versions": [VERSION],
        "platform": model.platform,
        "inputs": [_described(spec) for spec in model.inputs],
        "outputs": [_described(spec) for spec in model.outputs],
        "properties": {**model.properties, **{f"parameter.{name}": does for name, does in model.options.items()}},
    }


def model_config(model: Model, max_rows: int) -> dict[str, Any]:
    """Of a model, in the words of Triton's model configuration: shapes without the axis of rows."""

    def tensors(specs: Sequence[TensorSpec], optional: bool) -> list[dict[str, Any]]:
        return [
            {"name": spec.name, "data_type": _data_type(spec.datatype), "dims": list(spec.shape[1:])}
            | ({"optional": True} if optional and spec.optional else {})
            for spec in specs
        ]

    return {
        "name": model.name,
        "platform": model.platform,
        "max_batch_size": max_rows,
        "input": tensors(model.inputs, optional=True),
        "output": tensors(model.outputs, optional=False),
    }


def schedule(ticket: Ticket, parameters: Mapping[str, Value]) -> None:
    """Narrow a ticket by the parameters of scheduling. BadInput if they are no whole numbers.

    timeout   microseconds, 0 = any
    priority  0 and 1 are interactive, larger numbers bulk
    """
    numbers: dict[str, int] = {}
    for name in SCHEDULING:
        stated = parameters.get(name, 0)
        if not isinstance(stated, int) or isinstance(stated, bool) or stated < 0:
            raise BadInput("option_invalid", f"{name} {stated!r}", field=name, fix="a whole number, 0 or more")
        numbers[name] = stated
    ticket.narrow(numbers["timeout"] / 1e3 or None, "bulk" if numbers["priority"] > 1 else None)
    ticket.check()


def infer(models: Models, request: InferRequest, ticket: Ticket, max_rows: int) -> InferAnswer:
    """The answer of one request. AlbireoError if it has none: a row that fails, fails it."""
    schedule(ticket, request.parameters)
    model = models.get(request.model, request.version)
    (answer,) = infer_all(models.core.on(ticket), model, [request], max_rows)
    if isinstance(answer, AlbireoError):
        raise answer
    return answer


def infer_all(
    core: Core, model: Model, requests: Sequence[InferRequest], max_rows: int
) -> list[InferAnswer | AlbireoError]:
    """The answers of several requests to one model; the rows of those with the same options are computed together."""
    model.check(core)
    timings = tally().timings
    jobs: list[Job | AlbireoError] = []
    for request in requests:
        with timings.stage("parse"):
            jobs.append(_job(model, request, max_rows))
    results: dict[int, list[Any]] = {}
    good = {n: job for n, job in enumerate(jobs) if isinstance(job, Job)}
    for options in dict.fromkeys(job.options for job in good.values()):
        rows = [(n, row) for n, job in good.items() if job.options == options for row in job.rows]
        for (n, _), result in zip(rows, model.compute(core, [row for _, row in rows], options), strict=True):
            results.setdefault(n, []).append(result)
    parameters: dict[str, Value] = dict(asdict(core.engine.numerics))
    out: list[InferAnswer | AlbireoError] = []
    for n, (request, job) in enumerate(zip(requests, jobs, strict=True)):
        if isinstance(job, AlbireoError):
            out.append(job)
            continue
        try:
            _check_rows(results[n])
            given = {tensor.name: tensor for tensor in model.write(job, results[n])}
            outputs = tuple(given[name] for name in job.outputs)
            timed = {f"{stage}_ms": ms for stage, ms in timings.milliseconds().items()}
            out.append(InferAnswer(model.name, request.id, outputs, parameters | timed))
        except AlbireoError as error:
            out.append(error)
    return out


def _job(model: Model, request: InferRequest, max_rows: int) -> Job | AlbireoError:
    """What a request asks of a model, every name, datatype, shape and row of it checked."""
    try:
        _check_parameters(model, request)
        job = model.read(request, _arrays(model, request, max_rows))
        tally().count(objects=len(job.rows))
        _check_rows(job.rows)
    except AlbireoError as error:
        return error
    return job


def _arrays(model: Model, request: InferRequest, max_rows: int) -> dict[str, Array]:
    specs = {spec.name: spec for spec in model.inputs}
    arrays: dict[str, Array] = {}
    for tensor in request.inputs:
        if tensor.name not in specs:
            known = ", ".join(specs)
            raise BadInput("request_invalid", f"{model.name} has no input {tensor.name!r}", field="inputs", fix=known)
        if tensor.name in arrays:
            raise BadInput("request_invalid", f"{tensor.name} is given twice", field="inputs")
        arrays[tensor.name] = specs[tensor.name].check(tensor)
    lacking = [spec.name for spec in model.inputs if not spec.optional and spec.name not in arrays]
    if lacking or not arrays:
        needed = ", ".join(lacking) or f"at least one of {', '.join(specs)}"
        raise BadInput("request_invalid", "an input is missing", field="inputs", fix=f"{model.name} needs {needed}")
    counts = {name: len(values) for name, values in arrays.items()}
    if len(set(counts.values())) > 1:
        raise BadInput("shape_mismatch", f"tensors of {sorted(set(counts.values()))} rows", field="inputs")
    n = next(iter(counts.values()))
    if n == 0:
        raise BadInput("request_invalid", "no row was sent", field="inputs", fix="send at least one object")
    if n > max_rows:
        raise TooLarge("too_large", f"{n} rows, the limit is {max_rows} a request", field="inputs", fix="send fewer")
    return arrays


def _check_parameters(model: Model, request: InferRequest) -> None:
    known = {*model.options, *SCHEDULING}
    refuse({name: value for name, value in request.parameters.items() if name not in known}, "parameters")
    names = [spec.name for spec in model.outputs]
    for name in request.outputs:
        if name not in names:
            raise BadInput(
                "request_invalid", f"{model.name} has no output {name!r}", field="outputs", fix=", ".join(names)
            )
    if len(set(request.outputs)) < len(request.outputs):
        raise BadInput("request_invalid", "an output is asked for twice", field="outputs")


def refuse(parameters: Mapping[str, Any], where: str) -> None:
    """BadInput for parameters that nothing here reads; those of an extension that is not served, by its name."""
    for name in parameters:
        told = f"the extension for {REFUSED[name]} is not served" if name in REFUSED else "no such parameter"
        fix = "send and ask for the tensors themselves" if name in REFUSED else "leave it out"
        raise BadInput("request_invalid", told, field=f"{where}: {name}", fix=fix)


def _check_rows(rows: Sequence[Any]) -> None:
    """The error of the first row that has one, with its number; the protocol has no status of a row."""
    bad = [i for i, row in enumerate(rows) if isinstance(row, AlbireoError)]
    if not bad:
        return
    first = rows[bad[0]]
    more = f" (and {len(bad) - 1} more of {len(rows)} rows)" if len(bad) > 1 else ""
    told = f"row {bad[0]}: {first.message}{more}"
    tally().count(failed=[rows[i].code for i in bad])
    raise type(first)(first.code, told, file=first.file, field=first.field, fix=first.fix)


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _data_type(datatype: str) -> str:
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
