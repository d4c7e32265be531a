"""The operation of the HTTP door that draws what was not observed."""

from __future__ import annotations

import time
from collections.abc import Sequence

from fastapi import Request
from fastapi.responses import Response

from albireo.service import reply_formats as formats
from albireo.service.bodies import Received, receive
from albireo.service.draws import check_draws
from albireo.service.generation_replies import generate_answer
from albireo.service.generation_schemas import GenerateRequest
from albireo.service.reply_formats import Form
from albireo.service.token_replies import token_envelope
from albireo.service.token_routes import TokenDoors
from albireo.service.watch import tally


class GenerationDoors(TokenDoors):
    """All handlers."""

    async def generate(self, request: Request) -> Response:
        """Draws of a modality that was not observed, given what was. A bad object fails alone; 422 if none is good."""
        forms = formats.wanted(request, formats.DRAWS)
        received = await receive(request)
        return await self._work(self._generate, request, received, forms)

    def _generate(self, request: Request, received: Received, forms: Sequence[Form]) -> Response:
        began = time.perf_counter()
        body = received.body(GenerateRequest)
        options = body.content.options
        wanted, sampling = options.wanted, options.sampling
        subjects = self._subjects(body)
        check_draws(len(subjects), sampling, self.settings.max_draws)
        parsed = time.perf_counter()
        made = self._core(request, options).generate(subjects, wanted, sampling)
        seconds = {"parse": parsed - began, "generate": time.perf_counter() - parsed}
        with tally().timings.stage("serialize"):
            engine = self.core.engine
            common = token_envelope(engine, request, seconds, sum(one.n_tokens for one in made))
            return generate_answer(forms[0], engine, made, options, common, request)
