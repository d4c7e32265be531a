"""Logs: one line a record, as JSON or as text, with the request that it belongs to; and no secrets.

The standard library's logging does the work. `configure` is called once, by what starts a process.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from datetime import UTC, datetime
from typing import IO, Any, Literal

from albireo.service.watch import current

LogFormat = Literal["json", "text"]
LogLevel = Literal["debug", "info", "warning", "error"]

OURS = ("albireo", "uvicorn")
"""Loggers that are told at the level asked for; all others tell warnings and errors."""

TOLD = "albireo_told"
"""Attribute of an exception that stands in the log already."""

_SECRETS = re.compile(r"(://[^/\s:@\"']*:)[^@/\s\"']+(?=@)|(\b(?:bearer|basic)\s+)[\w.~+/=-]+", re.IGNORECASE)
"""Passwords in addresses, and what follows the scheme of an Authorization header."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}
"""Attributes that every record may have; the others are fields that somebody gave it."""


def configure(form: LogFormat | None = None, level: LogLevel = "info", stream: IO[str] | None = None) -> None:
    """Let the logs of this process go to `stream`, or to standard error.

    form  None = text on a terminal, else JSON
    """
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextLines() if (form or ("text" if stream.isatty() else "json")) == "text" else JsonLines())
    handler.addFilter(_with_request)
    handler.addFilter(_not_told)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))
    for name in OURS:
        logging.getLogger(name).setLevel(level.upper())
        for logger in _with_those_below(name):
            logger.handlers.clear()
            logger.propagate = True
    logging.captureWarnings(True)
    # Warnings are for who writes code, and those of readers may quote a file.
    logging.getLogger("py.warnings").setLevel(logging.WARNING if level == "debug" else logging.ERROR)
    threading.excepthook = _thread_failed


def _with_those_below(name: str) -> list[logging.Logger]:
    """A logger, and those below it, left to its level: an earlier uvicorn of the process may have set theirs."""
    below = [logging.getLogger(made) for made in list(logging.root.manager.loggerDict) if made.startswith(f"{name}.")]
    for logger in below:
        logger.setLevel(logging.NOTSET)
    return [logging.getLogger(name), *below]


_encoded = json.JSONEncoder(ensure_ascii=False, default=str).encode


class JsonLines(logging.Formatter):
    """A JSON object a line: time (UTC), level, logger, message, the fields of the record, and `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_secrets(record.getMessage()),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = without_secrets(self.formatException(record.exc_info))
        return _encoded(line)


class TextLines(logging.Formatter):
    """The same for people: `time LEVEL logger: message key=value ...`, and tracebacks below."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={_word(value)}" for name, value in _fields(record).items())
        message = without_secrets(record.getMessage()).strip().replace("\n", "\\n").replace("\r", "\\r")
        line = f"{_time(record)} {record.levelname:7} {record.name}: {message}{fields}"
        if record.exc_info:
            line += "\n" + without_secrets(self.formatException(record.exc_info))
        return line


def without_secrets(text: str) -> str:
    """The text with stars in the place of passwords and tokens."""
    return _SECRETS.sub(lambda found: (found[1] or found[2]) + "***", text)


def _with_request(record: logging.LogRecord) -> bool:
    """Tell the record which request it belongs to; called in the thread that logs."""
    request = current()
    if request is not None:
        record.request_id = request.request_id
        if trace_id := request.trace_id:
            record.trace_id = trace_id
    return True


def _not_told(record: logging.LogRecord) -> bool:
    """False for the server's own line on an exception that stands in the log already."""
    error = record.exc_info[1] if record.exc_info else None
    return not (record.name.startswith("uvicorn") and getattr(error, TOLD, False))


def _thread_failed(hook: threading.ExceptHookArgs) -> None:
    if hook.exc_value is not None and not isinstance(hook.exc_value, SystemExit):
        name = hook.thread.name if hook.thread else "?"
        told = (hook.exc_type, hook.exc_value, hook.exc_traceback)
        logging.getLogger("albireo").error("thread %s ended by an exception", name, exc_info=told)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _word(value: object) -> str:
    """A value as one word, or in quotes."""
    text = value if isinstance(value, str) else _encoded(value)
    return text if re.fullmatch(r"[^\s\"=]+", text) or not isinstance(value, str) else _encoded(text)
