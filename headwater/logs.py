"""Structured logs on stderr: readable lines on a terminal, one JSON object a line elsewhere."""

import contextlib
import logging
import sys

import structlog


class _Logger(structlog.WriteLogger):
    """Loses lines that cannot be written (a full disk, a reader that is gone): the program goes on.

    Writes each at once with its end: ranks share a stderr, and print() would let another one's line in between.
    """

    def msg(self, message: str) -> None:
        with contextlib.suppress(OSError):
            super().msg(message)

    log = debug = info = warn = warning = fatal = failure = err = error = critical = exception = msg


def configure_logging(level: str) -> None:
    """Set up structlog for this process. `level`: debug, info, warning or error."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
    ]
    if sys.stderr.isatty():
        # Plain tracebacks: rich ones print every local variable, prompts included.
        shared.append(structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback))
    else:
        shared += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=shared,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        # Looked up at each line: a program that has its stderr replaced, as tests do, must not write to the old one.
        logger_factory=lambda *_: _Logger(sys.stderr),
    )
