"""The log: one event per line, stable dotted names, never a value.

The first defence is that no code passes a value to the log. This module is the second: an
exception is logged as its class and the place it was raised, never its text, since the text of a
foreign library's exception can hold a response body; keys that name a secret's content are masked;
bytes and unknown objects are never rendered; and messages of other libraries, through the standard
`logging`, `warnings` or an uncaught exception, are reduced to their place.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

if "rich" not in sys.modules:
    # structlog imports rich where it is installed, for tracebacks that are never rendered here:
    # 6 MiB of a sidecar's memory
    sys.modules["rich"] = None  # type: ignore[assignment] # makes the import fail
    import structlog

    del sys.modules["rich"]
import structlog

from syncd.core.text import encodable, escape_json, visible

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from structlog.typing import EventDict, Processor, WrappedLogger

MASK: Final = "[redacted]"
_MASKED: Final = (
    "authorization",
    "body",
    "content",
    "credential",
    "password",
    "private",
    "secret_id",
    "signing_key",
    "token",
    "value",
)
_PLAIN: Final = (str, int, float, bool, type(None))
_NUMBERS: Final = frozenset((int, float, bool, type(None)))
_DEEPEST: Final = 8


class _Output:
    """What the log is written to; within `at_once`, lines are kept back to be written together."""

    def __init__(self) -> None:
        self.stream = sys.stderr
        # the collector may come while it is held, and what it destroys may log something
        self._lock = threading.RLock()
        self._kept: list[str] | None = None

    def write(self, line: str) -> None:
        with self._lock:
            if self._kept is None:
                self.stream.write(line)
            else:
                self._kept.append(line)

    def flush(self) -> None:
        if self._kept is None:
            self.stream.flush()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        with self._lock:
            kept = self._kept = []
        try:
            yield
        finally:
            with self._lock:
                self._kept = None
                if kept:
                    self.stream.write("".join(kept))
                    self.stream.flush()


_output: Final = _Output()
at_once: Final = _output.at_once
"""Writes the lines of a block together: a system call for each takes as long as making it. For the
event loop, without an `await` in the block."""


def configure(level: str, format_: str) -> None:
    """Configures structlog and the standard `logging`, both to standard error.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        format_: `json`, `console`, or `auto`: console on a terminal, JSON elsewhere.
    """
    threshold = logging.getLevelNamesMapping()[level.upper()]
    console = format_ == "console" or (format_ == "auto" and sys.stderr.isatty())
    processors: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        redact,
        *((_escape, _console()) if console else (_render_json,)),
    ]
    _output.stream = sys.stderr
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(_output),  # type: ignore[arg-type] # it needs no more
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Foreign()], level=max(threshold, logging.WARNING), force=True)
    logging.captureWarnings(capture=True)
    sys.excepthook = _report_crash
    sys.unraisablehook = _report_unraisable
    threading.excepthook = _report_thread


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Masks keys and values that must not be shown. A structlog processor."""
    problem = event.pop("exc_info", None)
    if problem is True:
        problem = sys.exc_info()
    if isinstance(problem, tuple):
        problem = problem[1]
    if isinstance(problem, BaseException):
        event["exception"] = describe(problem)
    return {
        key: value
        if (type(value) in _NUMBERS or (type(value) is str and value.isascii()))
        and not _must_be_masked(key)
        else _mask(key, value)  # nearly never
        for key, value in event.items()
    }


def describe(error: BaseException) -> str:
    """An exception without its text: class and place, innermost cause last."""
    parts: list[str] = []
    seen: BaseException | None = error
    while seen is not None and len(parts) < 5:  # noqa: PLR2004 - enough to find the place
        parts.append(f"{type(seen).__name__} at {_place(seen.__traceback__)}")
        inner = seen.exceptions[0] if isinstance(seen, BaseExceptionGroup) else None
        seen = inner or seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return " from ".join(parts)


def _place(traceback: TracebackType | None) -> str:
    if traceback is None:
        return "an unknown place"
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    code = traceback.tb_frame.f_code
    return f"{os.path.basename(code.co_filename)}:{traceback.tb_lineno}"


def _mask(key: str, value: object, depth: int = 0) -> object:
    if _must_be_masked(key):
        return MASK
    if isinstance(value, BaseException):
        return describe(value)
    if isinstance(value, _PLAIN):
        return encodable(value) if isinstance(value, str) else value
    if depth < _DEEPEST and isinstance(value, dict):
        return {_key(k): _mask(_key(k), item, depth + 1) for k, item in value.items()}
    if depth < _DEEPEST and isinstance(value, list | tuple | set | frozenset):
        return [_mask(key, item, depth + 1) for item in value]
    return f"[{type(value).__name__}]"


@lru_cache(maxsize=256)
def _must_be_masked(key: str) -> bool:
    return any(word in key.lower() for word in _MASKED)


def _key(key: object) -> str:
    legible = isinstance(key, str) and key.isascii() and key.isprintable()
    return str(key) if legible else f"[{type(key).__name__}]"


def _render_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    return escape_json(msgspec.json.encode(event)).decode()


def _escape(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Makes text visible, which structlog's renderer for terminals writes as it is."""
    return {key: visible(item) if isinstance(item, str) else item for key, item in event.items()}


def _console() -> Any:  # noqa: ANN401 - structlog's renderer; its module is loaded on a terminal only
    from structlog.dev import ConsoleRenderer, plain_traceback  # noqa: PLC0415

    return ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain_traceback)


class _Foreign(logging.Handler):
    """Reports that a library logged something, without its text."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().warning(
            "library.logged",
            logger=record.name,
            severity=record.levelname.lower(),
            place=f"{record.module}:{record.lineno}",
        )


def _report_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    if unraisable.exc_value is not None:
        structlog.get_logger().error("error.unraisable", exception=describe(unraisable.exc_value))


def _report_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        structlog.get_logger().error("error.in_thread", exception=describe(args.exc_value))


def _report_crash(
    _kind: type[BaseException], error: BaseException, _traceback: TracebackType | None
) -> None:
    if isinstance(error, KeyboardInterrupt):
        sys.exit(130)
    sys.stderr.write(f"syncd: internal error: {describe(error)}; please report it\n")
