"""What both clients share: where they ask, and how objects become requests. Nothing is sent here."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from albireo.observations.errors import AlbireoError, Late, TooLarge, Unavailable
from albireo.service.client_answers import Answered
from albireo.service.client_inputs import pieces
from albireo.service.client_requests import Batch, Limits, Request, batches, loaded, parted
from albireo.service.client_transport import Access, rebuilt
from albireo.service.client_verbs import Verb

Result = TypeVar("Result")


class Asking:
    """What both clients share: where they ask, and how objects become requests.

    url, token  default to the environment variables ALBIREO_URL and ALBIREO_TOKEN
    connect, read, total  seconds: see client_transport.Access
    priority, deadline    of every request: "bulk" waits for interactive ones; seconds until an answer is of no use
    progress    a bar on a terminal where objects need several requests
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        connect: float = 5.0,
        read: float = 300.0,
        total: float = 120.0,
        priority: str | None = None,
        deadline: float | None = None,
        progress: bool = True,
    ) -> None:
        self.access = Access.of(url, token, connect=connect, read=read, total=total)
        self.progress = progress
        self.limits: Limits | None = None
        stated = {"priority": priority, "deadline_ms": None if deadline is None else 1e3 * deadline}
        self._options = {name: value for name, value in stated.items() if value is not None}

    def plan(self, verb: Verb[Result], given: Any, limits: Limits) -> tuple[Verb[Result], list[Batch]]:
        verb, limits = verb.with_options(self._options), verb.within(limits)
        found = list(pieces(given, verb.reading, limits.objects, limits.bytes))
        lost = next((piece.error for piece in found if piece.error is not None), None)
        if verb.whole and lost is not None:
            raise lost
        return verb, verb.batched(batches(found, limits, verb.together))

    def payload(self, verb: Verb[Result], given: Any) -> list[Request]:
        """What would be sent, without sending anything."""
        verb, todo = self.plan(verb, given, self.limits or Limits())
        parts = [part for batch in todo for part in loaded(batch)]
        return [verb.request(batch, contents) for batch, contents in parts if batch.form != "error"]

    def bar(self, verb: Verb[Any], todo: Sequence[Batch]) -> AbstractContextManager[Any]:
        from albireo.service.printing import progress_bar  # rich is loaded for a bar only

        if not self.progress or len(todo) < 2:
            return nullcontext(lambda more: None)
        return progress_bar(verb.name, sum(batch.n for batch in todo))


def instead(verb: Verb[Any], batch: Batch, error: AlbireoError) -> list[Batch]:
    """What to send instead of a batch that was refused; raises what concerns the request as a whole."""
    if verb.whole and not isinstance(error, TooLarge | Late):
        raise error
    if verb.together and isinstance(error, TooLarge | Late):
        return [batch.failed(error)]
    smaller = parted(batch, error)
    if not smaller:
        raise error
    return smaller


def accepted(verb: Verb[Any], answer: Answered) -> Answered:
    """The answer; raises its first error where a bad object fails all."""
    bad = next((item for item in answer.items if item["status"] == "error"), None) if verb.whole else None
    if bad is not None:
        lost = next((piece.error for piece in answer.batch.pieces if piece.error is not None), None)
        raise lost or rebuilt(bad.get("error") or bad["errors"][0])
    return answer


def gone(answer: Answered) -> AlbireoError | None:
    """The error of a batch that found no service, after all attempts: the others need not try."""
    errors = (piece.error for piece in answer.batch.pieces)
    return next((e for e in errors if isinstance(e, Unavailable) and not isinstance(e, Late)), None)
