"""syncd.core.errors: what the caller can do about it."""

from __future__ import annotations

from syncd.core.errors import ConfigurationError, SyncdError, TemporaryError
from syncd.core.findings import finding


def test_a_configuration_error_tells_every_finding_on_its_own_line() -> None:
    """All that must be mended is in the message, one line each, in order."""
    findings = [
        finding("config-invalid", "syncd.yaml", where, "is wrong", "fix it") for where in "ab"
    ]
    error = ConfigurationError(findings)
    assert error.findings == tuple(findings)
    assert str(error).splitlines() == [
        "syncd.yaml: a: is wrong; fix it [config-invalid]",
        "syncd.yaml: b: is wrong; fix it [config-invalid]",
    ]
    assert isinstance(error, SyncdError)


def test_a_temporary_error_may_say_how_long_to_wait() -> None:
    """The other side's wish is kept; without one there is none."""
    assert TemporaryError("busy", retry_after=3.0).retry_after == 3.0
    assert TemporaryError("busy").retry_after is None


def test_a_message_is_shown_in_one_line_for_each_problem() -> None:
    """Whatever the names in it hold: not even a line separator begins another line."""
    hostile = "a\nb\u2028c\x1b[2J"
    assert SyncdError(f"cannot read {hostile}", "fix it").lines == (
        r"cannot read a\nb\u2028c\x1b[2J; fix it",
    )
    error = ConfigurationError([finding("config-invalid", hostile, "", "m", "h")] * 2)
    assert error.lines == (r"a\nb\u2028c\x1b[2J: m; h [config-invalid]",) * 2


def test_an_error_may_stand_for_a_status() -> None:
    """That of the answer; without one there is none."""
    assert TemporaryError("busy").status is None
    assert TemporaryError("busy").answered(503).status == 503
