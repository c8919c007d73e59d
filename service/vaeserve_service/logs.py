"""Lines on stderr, ours and our libraries' alike, JSON unless a person reads them; those of a call name it."""

import contextlib
import logging
import sys
from collections.abc import Sequence
from typing import TextIO

import structlog
from structlog.dev import ConsoleRenderer, plain_traceback
from structlog.types import EventDict, Processor, WrappedLogger

from vaeserve_service.call import CURRENT
from vaeserve_service.config import LogConfig


def configure(config: LogConfig, *, stream: TextIO | None = None) -> None:
    """Log to `stream`, or stderr, from the configured level up; libraries from warnings up."""
    stream = stream or sys.stderr
    level = logging.getLevelNamesMapping()[config.level.upper()]
    text = config.format == "text" or (config.format == "auto" and stream.isatty())
    gathered: Sequence[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if text else "iso", utc=not text),
        _name_call,
    ]
    written: Sequence[Processor] = (
        [ConsoleRenderer(colors=stream.isatty(), exception_formatter=plain_traceback)]
        if text
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*gathered, *written],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Lines(stream),
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *gathered],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *written],
        )
    )
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_strangers)
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)


class _Lines(structlog.WriteLogger):
    """Writes lines, as far as they can be: a full disk or a reader who has gone ends neither a call nor the drain."""

    def msg(self, message: str) -> None:
        """Write a line, or lose it."""
        with contextlib.suppress(OSError, ValueError):  # the latter of a stream that is closed
            super().msg(message)

    debug = info = warning = error = critical = msg


def _is_no_strangers(record: logging.LogRecord) -> bool:
    """Leave out what gRPC says of a header that is no text: any stranger could fill the log with it."""
    return not str(record.msg).startswith("Invalid encoding")


def _name_call(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Add the id of the call that a line is about, and its trace, if it is part of one."""
    call = CURRENT.get()
    if call is not None:
        event["request_id"] = call.request_id
        trace_id, span_id = call.trace
        if trace_id:
            event.update(trace_id=trace_id, span_id=span_id)
    return event
