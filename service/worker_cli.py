"""`albireo worker`: tokenizes images or spectra for services on this machine or another."""

from __future__ import annotations

import signal
from typing import Annotated, Literal

import typer

from albireo.observations.errors import BadInput
from albireo.service.commands import Json, Model, Preprocessing, settings_of
from albireo.service.printing import print_json


def worker(
    pool: Annotated[Literal["image", "spectrum"], typer.Argument(metavar="image|spectrum", help="what it tokenizes")],
    *,
    model: Model = None,
    preprocessing: Preprocessing = None,
    redis: Annotated[
        str | None, typer.Option("--redis", metavar="URL", help="where work comes from (ALBIREO_REDIS_URL)")
    ] = None,
    json_output: Json = False,
) -> int:
    """Tokenize images or spectra for services that share a Redis.

    Start as many as you like, on any machine, with the same model as the service; the service gives them work when it
    was started with ALBIREO_REMOTE_TOKENIZERS=image,spectrum. One that is killed loses nothing: another takes over.

    \b
    Examples:
      albireo worker image --redis redis://localhost:6379/0
      albireo worker spectrum --model aion-base
    """
    from albireo.models.torch_engine import use_threads
    from albireo.service.logs import configure, without_secrets
    from albireo.service.tokenizer_worker import Worker

    settings = settings_of(model, preprocessing=preprocessing, redis_url=redis)
    if settings.redis_url is None:
        raise BadInput(
            "option_invalid",
            "no Redis is named",
            field="--redis",
            fix="albireo worker image --redis redis://HOST:6379/0",
        )
    configure(settings.log_format, settings.log_level)
    use_threads(settings.threads)
    made = Worker(settings, pool)
    for end in (signal.SIGTERM, signal.SIGINT):
        signal.signal(end, lambda *_: made.stop())
    redis_url = without_secrets(settings.redis_url)
    line = {"pool": pool, "model": str(settings.model_folder), "redis": redis_url, "stream": made.stream}
    if json_output:
        print_json(line)
    else:
        print(f"Tokenizing {pool}s for {made.stream} on {redis_url}  (stop with Ctrl-C)", flush=True)
    made.run()
    return 0
