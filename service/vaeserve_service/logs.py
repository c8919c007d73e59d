"""JSON lines on stderr, ours and our libraries' alike; those of a call name it and its trace."""

import logging
import sys
from collections.abc import Sequence
from typing import TextIO

import structlog
from structlog.types import EventDict, Processor, WrappedLogger

from vaeserve_service.call import CURRENT
from vaeserve_service.config import LogConfig


def configure(config: LogConfig, *, stream: TextIO | None = None) -> None:
    """Log to `stream`, or stderr, from the configured level up; libraries from warnings up."""
    stream = stream or sys.stderr
    level = logging.getLevelNamesMapping()[config.level.upper()]
    processors: Sequence[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _name_call,
    ]
    structlog.configure(
        processors=[*processors, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(stream),
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *processors],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)


def _name_call(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Add the id of the call that a line is about, and its trace, if it has one."""
    call = CURRENT.get()
    if call is not None:
        event["request_id"] = call.request_id
        trace_id, span_id = call.trace
        if trace_id:
            event.update(trace_id=trace_id, span_id=span_id)
    return event
