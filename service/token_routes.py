"""The operations of the HTTP door on tokens, and what the service says of itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from albireo.models.engine import POOLINGS, Engine
from albireo.observations.errors import AlbireoError, NotFound
from albireo.observations.modalities import MODALITIES
from albireo.observations.reading import FORMATS
from albireo.observations.spaces import identity
from albireo.service import reply_formats as formats
from albireo.service import token_schemas as schemas
from albireo.service.bodies import FILE_TYPES, Received, receive
from albireo.service.core import MAX_NEIGHBOURS
from albireo.service.decoded_replies import detokenize_answer
from albireo.service.draws import MAX_ROUNDS
from albireo.service.problems import Malformed
from albireo.service.reading_flags import FLAGS
from albireo.service.replies import reply
from albireo.service.reply_formats import Form
from albireo.service.routes import Doors
from albireo.service.token_replies import given_of, quantiser_data, token_envelope, tokenize_answer
from albireo.service.token_verbs import Given, Quantiser, quantisers
from albireo.service.watch import tally

ANSWERS = {
    "embed": formats.EMBEDDINGS,
    "predict": formats.ROWS,
    "predict_one": formats.ROWS,
    "search": formats.ROWS,
    "tokenize": formats.TOKENS,
    "detokenize": formats.NUMBERS,
    "generate": formats.DRAWS,
}
"""Operations that answer in several formats -> those."""

NPZ_QUERY = frozenset({"filename", "model"})
"""Query parameters of tokens that come as an archive."""


class TokenDoors(Doors):
    """All handlers."""

    async def tokenize(self, request: Request) -> Response:
        """Token ids of the objects in files or items, by modality, and the quantisers that made them."""
        forms = formats.wanted(request, formats.TOKENS)
        received = await receive(request)
        return await self._work(self._tokenize, request, received, forms)

    async def detokenize(self, request: Request) -> Response:
        """The numbers that token ids stand for, with their units, wavelengths and bands. A bad object fails alone."""
        forms = formats.wanted(request, formats.NUMBERS)
        received = await receive(request)
        return await self._work(self._detokenize, request, received, forms)

    async def modalities(self, request: Request) -> Response:
        """Every modality: what it is physically, whether the model reads or predicts it, and its quantiser."""
        return await self._work(self._modalities, request)

    async def formats(self, request: Request) -> Response:
        """The files that are read, the types of a body, and the formats of answers."""
        return reply(
            schemas.FormatsReply(
                formats=[schemas.FormatReply(name=row.name, description=row.description) for row in FORMATS],
                bodies=["application/json", "multipart/form-data", *FILE_TYPES],
                answers={name: list(offered) for name, offered in ANSWERS.items()},
                options={flag.field: flag.help for flag in FLAGS},
                request_id=request.state.request_id,
            )
        )

    async def limits(self, request: Request) -> Response:
        """What one request may have, and how much is inside at a time."""
        settings = self.settings
        known = {
            "max_body_bytes": settings.max_body_bytes,
            "max_decompressed_bytes": settings.max_decompressed_bytes,
            "max_items": settings.max_items,
            "max_draws": settings.max_draws,
            "max_rounds": MAX_ROUNDS,
            "max_neighbours": MAX_NEIGHBOURS,
            "max_requests": settings.max_requests,
            "max_inflight_bytes": settings.max_inflight_bytes,
            "max_delay_seconds": settings.max_delay_seconds,
            "deadline_seconds": settings.deadline_seconds,
        }
        return reply(schemas.LimitsReply(limits=known, request_id=request.state.request_id))

    async def models(self, request: Request) -> Response:
        """The models that are loaded."""
        return await self._work(self._models, request)

    async def model(self, id: str, request: Request) -> Response:
        """One model, by its name or by name@fingerprint."""
        return await self._work(self._one_model, id)

    def _tokenize(self, request: Request, received: Received, forms: Sequence[Form]) -> Response:
        timings = tally().timings
        with timings.stage("parse"):
            body = received.body(schemas.TokenizeRequest)
            subjects = self._subjects(body)
        made = self._core(request, body.content.options).tokenize(subjects)
        with timings.stage("serialize"):
            engine, n_tokens = self.core.engine, sum(one.n_tokens for one in made)

            def common() -> dict[str, Any]:
                seconds = timings.seconds("parse", "tokenize", "queue", "serialize")
                return token_envelope(engine, request, {str(name): s for name, s in seconds.items()}, n_tokens)

            return tokenize_answer(forms[0], made, quantisers(engine), common, request)

    def _detokenize(self, request: Request, received: Received, forms: Sequence[Form]) -> Response:
        with tally().timings.stage("parse"):
            given, codecs, options = self._given(received)
            self._check_count(len(given))
        parsed = time.perf_counter()
        decoded = self._core(request, options).detokenize(given, codecs)
        parse = tally().timings.seconds("parse")["parse"]
        seconds = {"parse": parse, "decode": time.perf_counter() - parsed}
        with tally().timings.stage("serialize"):
            engine = self.core.engine
            n_tokens = sum(len(ids) for one, done in zip(given, decoded, strict=True) if not done.error
                           for ids in one.tokens.values())  # fmt: skip
            common = token_envelope(engine, request, seconds, n_tokens)
            return detokenize_answer(forms[0], engine, decoded, quantisers(engine), common, options.encoding, request)

    def _given(self, received: Received) -> tuple[list[Given], dict[str, str], schemas.DetokenizeOptions]:
        """Tokens of each object and their codecs, from JSON or from an archive."""
        if received.text is None and len(received.parts) == 1:
            query = received.request.query_params
            unknown = query.keys() - NPZ_QUERY
            if unknown:
                raise Malformed("request_invalid", "no such query parameter", field=min(unknown), fix="see /docs")
            self.core.check_model(query.get("model"))
            source = received.parts[0].source
            if isinstance(source, AlbireoError):
                raise source
            return (*given_of(source), schemas.DetokenizeOptions())
        content = received.body(schemas.DetokenizeRequest).content
        self.core.check_model(content.model)
        return [Given(item.id, item.tokens) for item in content.items], content.codecs, content.options

    def _modalities(self, request: Request) -> Response:
        engine = self.core.engine
        known = quantisers(engine)
        rows = [
            schemas.ModalityReply(
                modality=row.name,
                key=row.key,
                kind=row.kind,
                survey=row.survey,
                unit=row.unit,
                bands=list(row.bands),
                shape=list(row.shape),
                pixel_scale=row.pixel_scale,
                aion=row.aion,
                read=row.key in engine.inputs,
                predicted=row.key in engine.outputs,
                quantiser=_quantiser(known.get(row.key)),
            )
            for row in MODALITIES.values()
        ]
        return reply(schemas.ModalitiesReply(model=engine.name, modalities=rows, request_id=request.state.request_id))

    def _models(self, request: Request) -> Response:
        return reply(schemas.ModelsReply(models=[self._loaded()], request_id=request.state.request_id))

    def _one_model(self, id: str) -> Response:
        loaded = self._loaded()
        if id not in (loaded.id, loaded.name):
            raise NotFound("model_unknown", f"no model {id!r}", field="id", fix=f"loaded: {loaded.id}")
        return reply(loaded)

    def _loaded(self) -> schemas.ModelReply:
        engine = self.core.engine
        fingerprint = identity(engine.space("mean")).partition(":")[0]
        pipeline = self.core.pipeline
        return schemas.ModelReply(
            id=f"{engine.name}@{fingerprint}",
            name=engine.name,
            state="loaded",
            fingerprint=fingerprint,
            spaces={pooling: engine.space(pooling) for pooling in POOLINGS},
            dim=engine.dim,
            **asdict(engine.numerics),
            inputs=_costs(engine, "inputs"),
            outputs=_costs(engine, "outputs"),
            heads=self.core.shelf.names(),
            seconds_to_drain=0.0 if pipeline is None else pipeline.seconds_to_drain,
        )


def _costs(engine: Engine, which: str) -> dict[str, int]:
    """Public name -> tokens of one object."""
    return {MODALITIES[key].name: spec.n_tokens for key, spec in getattr(engine, which).items()}


def _quantiser(one: Quantiser | None) -> schemas.QuantiserReply | None:
    return None if one is None else schemas.QuantiserReply(**quantiser_data(one))
