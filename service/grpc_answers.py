"""What the core's verbs return, as messages of albireo.v1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from google.protobuf.struct_pb2 import Struct

from albireo.index.collection import Collection, Hit, StoredObject
from albireo.models.engine import Engine
from albireo.models.heads import Answer
from albireo.observations.errors import AlbireoError
from albireo.observations.modalities import MODALITIES
from albireo.service.core import Embedded, Outcome
from albireo.service.grpc_calls import Call
from albireo.service.grpc_messages import tensor
from albireo.service.predictions import Answers, Predicted, Prediction, as_data
from albireo.service.protos.albireo.v1 import albireo_pb2 as pb
from albireo.service.shelf import Shelved
from albireo.service.watch import EMBEDS


def struct(data: Mapping[str, Any]) -> Struct:
    """Plain data as a Struct."""
    made = Struct()
    made.update(dict(data))
    return made


def trouble(error: AlbireoError) -> pb.Trouble:
    return pb.Trouble(**error.as_dict())


def pos(ra: float | None, dec: float | None) -> pb.SkyPos | None:
    return None if ra is None or dec is None else pb.SkyPos(ra=ra, dec=dec)


def item_result(outcome: Outcome, item: int | None, space: str, with_embedding: bool = True) -> pb.ItemResult:
    """What became of one object, which came in item number `item`."""
    embedding = outcome.embedding
    result = pb.ItemResult(
        item=item,
        n_tokens=embedding.n_tokens if embedding else 0,
        cache=outcome.cache or "",
        **about(outcome),
        modalities_used=outcome.modalities,
    )
    if embedding is not None and with_embedding:
        result.embedding.CopyFrom(tensor(embedding.values))
        result.space = space
        if embedding.pooling != "mean":
            result.rows.extend(MODALITIES[key].name for key in embedding.modalities)
    return result


def ack(outcome: Outcome, row: int) -> pb.Ack:
    """What became of one object of row number `row`: without an error it is on disk."""
    return pb.Ack(
        row=row,
        durable=outcome.error is None,
        n_tokens=outcome.embedding.n_tokens if outcome.embedding else 0,
        modalities_used=outcome.modalities,
        **{name: value for name, value in about(outcome).items() if name != "pos"},
    )


def stored_ack(id: str, error: AlbireoError | None, row: int) -> pb.Ack:
    """The same of an object that came with its vector."""
    return pb.Ack(
        row=row,
        id=id,
        status="error" if error else "ok",
        durable=error is None,
        error=trouble(error) if error else None,
    )


def about(outcome: Outcome) -> dict[str, Any]:
    """What results of every kind say of an object."""
    subject = outcome.subject
    seen = subject.observation
    return {
        "id": subject.id,
        "file": subject.file or "",
        "status": outcome.status,
        "qa_flags": outcome.flags,
        "warnings": [trouble(warning) for warning in outcome.warnings],
        "error": trouble(outcome.error) if outcome.error else None,
        "pos": pos(seen.ra, seen.dec) if seen else None,
    }


def envelope(done: Embedded | Predicted, engine: Engine, call: Call) -> pb.Envelope:
    """What is said of all objects of a request together."""
    return pb.Envelope(
        space=done.space,
        model=engine.name,
        dim=engine.dim,
        numerics=pb.Numerics(**asdict(done.numerics)),
        tokens=done.n_tokens,
        n_failed=done.n_failed,
        timings_ms=call.tally.timings.milliseconds(*EMBEDS),
        request_id=call.request_id,
    )


def validated(
    understood: Mapping[str, Any], items: Sequence[int | None], model: str, request_id: str
) -> pb.ValidateResponse:
    """The answer of the verb validate."""
    return pb.ValidateResponse(
        model=model,
        files=[
            pb.FileReport(
                **{name: value for name, value in row.items() if value is not None and name != "error"},
                error=pb.Trouble(**row["error"]) if row["error"] else None,
            )
            for row in understood["files"]
        ],
        items=[
            pb.ValidatedItem(
                item=item,
                id=row["id"],
                file=row["file"] or "",
                status=row["status"],
                usable=row["usable"],
                pos=pos(row["ra"], row["dec"]),
                detected=struct(row["detected"]) if row["detected"] else None,
                metadata=struct(row["metadata"]),
                qa_flags=row["qa_flags"],
                warnings=[pb.Trouble(**one) for one in row["warnings"]],
                errors=[pb.Trouble(**one) for one in row["errors"]],
            )
            for item, row in zip(items, understood["items"], strict=True)
        ],
        tokens=understood["usage"]["tokens"],
        request_id=request_id,
    )


def prediction(one: Prediction[Answers], item: int | None, density: bool) -> pb.Prediction:
    """What heads say of one object; `density` also gives the probabilities of cells."""
    answers = one.answer or {}
    refused = any(isinstance(answer, AlbireoError) for answer in answers.values())
    return pb.Prediction(
        item=item,
        answers={name: _answer(answer, density) for name, answer in answers.items()},
        modalities_used=one.modalities,
        n_tokens=one.n_tokens,
        **about(one.outcome) | ({"status": "degraded"} if refused else {}),
    )


def _answer(answer: Answer | AlbireoError, density: bool) -> pb.Answer:
    if isinstance(answer, AlbireoError):
        return pb.Answer(error=trouble(answer))
    data = as_data(answer, with_density=False)
    known = answer.density
    return pb.Answer(
        numbers=[
            pb.Number(**{**number, "intervals": [pb.Interval(**one) for one in number["intervals"]]})
            for number in data["numbers"]
        ],
        most_probable=data["class"] or "",
        classes=data["classes"],
        density=pb.Density(
            **data["density"],
            probability=tensor(np.asarray(known.probability, np.float64)) if density else None,
        )
        if known is not None
        else None,
        flags=data["flags"],
        typicality=data["typicality"],
    )


def head(shelved: Shelved, space: str, edges: np.ndarray[Any, Any] | None = None, **more: Any) -> pb.Head:
    """Which head it is; `edges` of its cells where they are wanted."""
    return pb.Head(
        **shelved.identity(space), edges=None if edges is None else tensor(np.asarray(edges, np.float64)), **more
    )


def heads(predicted: Predicted, engine: Engine, density: bool) -> dict[str, pb.Head]:
    """The heads that were asked."""
    return {
        name: head(one, predicted.space, one.edges(engine) if density else None)
        for name, one in predicted.heads.items()
    }


def hit(found: Hit) -> pb.Hit:
    return pb.Hit(
        id=found.id,
        score=found.score,
        pos=pos(found.ra, found.dec),
        modalities=found.modalities,
        metadata=struct(found.metadata),
    )


def stored(kept: StoredObject, space: str) -> pb.StoredObject:
    return pb.StoredObject(
        id=kept.id,
        vector=pb.Vector(values=tensor(np.asarray(kept.vector, np.float32)), space=space),
        pos=pos(kept.ra, kept.dec),
        metadata=struct(kept.metadata),
        modalities=kept.modalities,
    )


def collection(one: Collection) -> pb.Collection:
    return pb.Collection(name=one.name, space=one.space, dim=one.dim, metric=one.metric, count=one.count)
