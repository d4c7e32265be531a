"""Errors as gRPC tells them: a status by the table of problems.py, and details of google.rpc.

abort      ends a call with an error
status_of  the google.rpc.Status of an error: its code, where it was, how to mend it, when to try again
"""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from albireo.observations.errors import AlbireoError, BadInput, Busy, Late, Unavailable
from albireo.service.problems import RETRY_AFTER, grpc_status_of

MAX_BYTES = {"message": 500, "file": 300, "field": 300, "fix": 1500}
"""Bytes of an error's parts in the status of a call: clients refuse trailers of more than 8 kB."""


async def abort(context: Any, error: AlbireoError, request_id: str) -> NoReturn:
    """End a call with the gRPC status of an error and its details: code, field, when to try again."""
    status = rpc_status.to_status(status_of(error, request_id))
    await context.abort(status.code, status.details, (("x-request-id", request_id), *status.trailing_metadata))
    raise AssertionError("abort always raises")


def status_of(error: AlbireoError, request_id: str) -> status_pb2.Status:
    """The google.rpc.Status of an error."""
    code = getattr(grpc.StatusCode, grpc_status_of(error))
    about = {"message": error.message, "file": error.file, "field": error.field, "fix": error.fix}
    told = {key: _short(value, MAX_BYTES[key]) for key, value in about.items() if value is not None}
    status = status_pb2.Status(code=code.value[0], message=told.pop("message"))
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.code, domain="albireo", metadata=told),
        error_details_pb2.RequestInfo(request_id=request_id),
    ]
    if isinstance(error, BadInput):
        violation = error_details_pb2.BadRequest.FieldViolation(field=told.get("field", ""), description=status.message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, Unavailable) and not isinstance(error, Late):
        wait = error_details_pb2.RetryInfo()
        seconds = error.retry_after if isinstance(error, Busy) else float(RETRY_AFTER)
        wait.retry_delay.FromMilliseconds(round(seconds * 1e3))
        details.append(wait)
    for detail in details:
        status.details.add().Pack(detail)
    return status


def _short(text: str, max_bytes: int) -> str:
    """A text as far as it fits, and then how long it was."""
    content = text.encode()
    fits = content[:max_bytes].decode(errors="ignore")
    return text if len(content) <= max_bytes else f"{fits} ... ({len(text)} characters)"
