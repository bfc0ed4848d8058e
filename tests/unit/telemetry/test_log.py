"""The log: whatever carries a value, and however it gets there, the value does not show."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import logging
import os
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from support.hostile import HOSTILE, NOT_UTF8, assert_safe

from syncd.telemetry import log as telemetry

if TYPE_CHECKING:
    from collections.abc import Iterator

CANARY = "CANARY-5ecre7"


@pytest.fixture(params=["json", "console"])
def said(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """A configured log; afterwards everything is as it was."""
    hooks = sys.excepthook, sys.unraisablehook, threading.excepthook
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    telemetry.configure("debug", request.param)
    yield written
    logging.captureWarnings(capture=False)
    sys.excepthook, sys.unraisablehook, threading.excepthook = hooks
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(said: io.StringIO) -> list[str]:
    err = said.getvalue()
    assert CANARY not in err
    return err.splitlines()


def raise_chained() -> None:
    try:
        {"": ""}[CANARY]
    except KeyError as cause:
        raise ValueError(f"bad body {CANARY}") from cause


def raise_in_context() -> None:
    try:
        os.stat(f"/path/{CANARY}")
    except OSError:
        raise RuntimeError(CANARY)  # noqa: B904 - the implicit context is the point


def raise_group() -> None:
    inner = ExceptionGroup(CANARY, [ValueError(CANARY)])
    raise ExceptionGroup(CANARY, [inner, TypeError(CANARY)])


def raise_noted() -> None:
    error = ValueError(CANARY)
    error.add_note(CANARY)
    raise error


@pytest.mark.parametrize("act", [raise_chained, raise_in_context, raise_group, raise_noted])
def test_an_exception_shows_its_class_and_place_only(said: io.StringIO, act: Any) -> None:
    """Chained, implicit, grouped or with notes; as exc_info, as a value, as a crash."""
    logger = structlog.get_logger()
    try:
        act()
    except Exception as error:
        logger.exception("x.failed")
        logger.error("x.failed", exc_info=error)
        logger.critical("x.failed", exc_info=sys.exc_info())
        logger.error("x.failed", problem=error, several=[error], nested={"deep": {"er": error}})
        with contextlib.redirect_stderr(said):
            sys.excepthook(type(error), error, error.__traceback__)
        name = type(error).__name__
    logged = "\n".join(lines(said))
    assert logged.count(f"{name} at test_log.py:") >= 5


def test_values_of_telling_or_unknown_kinds_are_masked(
    said: io.StringIO,
) -> None:
    """Keys that name a content, bytes, objects, and keys of dicts that are no plain text."""

    class Holder:
        def __repr__(self) -> str:
            return CANARY

    canary = CANARY.encode()
    structlog.get_logger().info(
        "x.happened",
        password=CANARY,
        nested={"Authorization": CANARY, "list": [{"api_token": CANARY}], canary: 1},
        raw=canary,
        mutable=bytearray(canary),
        view=memoryview(canary),
        holder=Holder(),
        holders=(Holder(), {Holder()}),
        mapping={Holder(): 1},
    )
    (line,) = lines(said)
    assert "x.happened" in line


def test_what_is_plain_is_shown(said: io.StringIO) -> None:
    """Names, paths and numbers are what the log is for, even where they are no clean UTF-8."""
    circle: list[Any] = []
    circle.append(circle)
    structlog.get_logger().info(
        "x.happened", path="/m/\udcff", number=7, big=2**80, none=None, circle=circle, name="é"
    )
    (line,) = lines(said)
    assert "/m/" in line
    assert "7" in line


def test_json_is_one_object_a_line() -> None:
    """Level, time and event are there, whatever is in the fields."""
    text = telemetry._render_json(None, "info", {"event": "x", "path": "a\nb"})
    assert json.loads(text) == {"event": "x", "path": "a\nb"}
    assert "\n" not in text


def test_other_libraries_are_reduced_to_their_place(said: io.StringIO) -> None:
    """Values in arguments, in f-strings, in exceptions and in warnings do not come through."""
    foreign = logging.getLogger("foreign.library")
    foreign.error("body was %s", CANARY)
    foreign.warning(f"body was {CANARY}")
    foreign.info("not worth it")
    try:
        raise_chained()
    except ValueError:
        foreign.exception("failed with %(body)s", {"body": CANARY}, extra={"more": CANARY})
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn(f"deprecated: {CANARY}", DeprecationWarning, stacklevel=1)
    logged = lines(said)
    assert len(logged) == 4
    assert all("library.logged" in line for line in logged)
    assert "foreign.library" in logged[0]


def test_uncaught_exceptions_are_reduced_too(
    said: io.StringIO,
) -> None:
    """In a finalizer and in a thread, Python itself would print the text."""

    class Bad:
        def __del__(self) -> None:
            raise ValueError(CANARY)

    unraisable = sys.unraisablehook
    Bad()
    gc.collect()
    assert sys.unraisablehook is unraisable
    thread = threading.Thread(target=raise_chained)
    thread.start()
    thread.join()
    logged = "\n".join(lines(said))
    assert logged.index("error.unraisable") < logged.index("error.in_thread")
    assert logged.count("ValueError at test_log.py:") == 2


def test_the_level_is_a_threshold(said: io.StringIO) -> None:
    """Below it nothing is written."""
    telemetry.configure("error", "json")
    structlog.get_logger().warning("x.happened")
    logging.getLogger("foreign").warning("x")
    assert lines(said) == []


@pytest.mark.parametrize("kind", HOSTILE)
def test_text_of_others_stays_in_its_line(said: io.StringIO, kind: str) -> None:
    """On a terminal and in JSON: escaped, also inside of lists, and as a key."""
    name = HOSTILE[kind]
    structlog.get_logger().warning("test.name", path=name, paths=[name], of={name: 1, "a": name})
    structlog.get_logger().warning("test.bytes", path=NOT_UTF8)
    assert_safe(said.getvalue())
    assert len(said.getvalue().splitlines()) == 2


class Writes(io.StringIO):
    """Counts its writes."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def write(self, text: str) -> int:
        self.count += 1
        return super().write(text)


@pytest.mark.usefixtures("said")
def test_lines_of_a_block_are_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, with those of other threads, and also where the block fails."""
    written = Writes()
    monkeypatch.setattr(sys, "stderr", written)
    telemetry.configure("info", "json")
    log = structlog.get_logger()
    with contextlib.suppress(KeyError), telemetry.at_once():
        log.info("first")
        other = threading.Thread(target=log.info, args=("second",))
        other.start()
        other.join()
        log.info("third")
        assert written.count == 0
        raise KeyError
    assert written.count == 1
    found = [next(w for w in ("first", "second", "third") if w in line) for line in lines(written)]
    assert found == ["first", "second", "third"]
    log.info("fourth")
    assert "fourth" in written.getvalue()


@pytest.mark.usefixtures("said")
def test_what_is_destroyed_during_a_write_may_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector can come at any moment, and an error that it meets is a line of its own."""

    class Interrupted(Writes):
        def write(self, text: str) -> int:
            if not self.count:
                self.count += 1
                structlog.get_logger().info("inner")
            return super().write(text)

    written = Interrupted()
    monkeypatch.setattr(sys, "stderr", written)
    telemetry.configure("info", "json")
    with telemetry.at_once():
        structlog.get_logger().info("outer")
    assert ["inner" in line for line in lines(written)] == [True, False]
