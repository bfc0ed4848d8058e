"""syncd.core.payload: what a provider hands over."""

from __future__ import annotations

import pytest

from syncd.core.payload import File, Payload, decode_value, path_problem


class TestFile:
    def test_shows_no_content(self) -> None:
        """Neither a file nor a payload shows a secret."""
        assert "hunter2" not in repr(Payload((File("a", b"hunter2"),)))

    @pytest.mark.parametrize(
        ("volatile", "ours", "theirs", "same"),
        [
            ((), b"a", b"a", True),
            ((), b"a", b"b", False),
            ((), b'{"id": 1}', b'{"id": 2}', False),
            (("id",), b'{"id": 1, "v": 3}', b'{"id": 2, "v": 3}', True),
            (("id",), b'{"id": 1, "v": 3}', b'{"v": 3}', True),
            (("id",), b'{"id": 1, "v": 3}', b'{"id": 1, "v": 4}', False),
            (("id",), b"[1]", b"[2]", False),
            (("id",), b"{}", b"not JSON", False),
            (("id",), b"{}", b"[" * 100_000, False),
        ],
    )
    def test_compares_by_what_is_meant(
        self, volatile: tuple[str, ...], ours: bytes, theirs: bytes, same: bool
    ) -> None:
        """Keys that differ on every read are no difference; anything else is."""
        file = File("a", ours, volatile=frozenset(volatile))
        assert file.same_content(theirs) is same


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("db/password", None),
        ("a" * 255, None),
        ("", "is empty"),
        ("a\nb", "printed"),
        ("a\ud800", "not valid Unicode"),
        ("/a", "not relative"),
        ("é" * 2049, "longer than 4096 bytes"),
        ("a/" + "é" * 128, "longer than 255 bytes"),
        ("a/../b", "leaves the target"),
        ("..data", "reserved"),
        (".", "the target itself"),
        ("a//b", "not clean"),
        ("./a", "not clean"),
        ("a/", "not clean"),
    ],
)
def test_a_path_stays_inside_the_target(path: str, problem: str | None) -> None:
    """What the AtomicWriter would refuse, or a line could not show, is told."""
    found = path_problem(path)
    assert found is None if problem is None else problem in (found or "")


@pytest.mark.parametrize(
    ("encoding", "value", "expected"),
    [
        ("utf-8", b"aGk=", b"aGk="),
        ("base64", b"aGk=", b"hi"),
        ("base64", b"aG\r\nk=\n", b"hi"),
        ("hex", b"6869", b"hi"),
    ],
)
def test_values_are_decoded(encoding: str, value: bytes, expected: bytes) -> None:
    """As Go decodes them."""
    assert decode_value(value, encoding) == expected


@pytest.mark.parametrize(("encoding", "value"), [("base64", b"a b="), ("hex", b"6")])
def test_values_that_are_not_encoded_so(encoding: str, value: bytes) -> None:
    """Are refused, not guessed at."""
    with pytest.raises(ValueError):  # noqa: PT011 - the caller words it
        decode_value(value, encoding)
