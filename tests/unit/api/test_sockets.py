"""syncd.api.sockets: why an address cannot be listened on."""

from __future__ import annotations

import errno
import os
import socket
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import pytest

from syncd.api.sockets import make_tcp, make_unix
from syncd.core.errors import ConfigurationError, ListenError, SyncdError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


ANY = "127.0.0.1:9753"


def refuse(number: int) -> Callable[..., NoReturn]:
    def call(*_: object, **_named: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("listen", ["unix", "tcp"])
def test_no_descriptor_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listen: str
) -> None:
    """The limit is named, and neither the path nor the address is blamed."""
    monkeypatch.setattr(socket, "socket", refuse(errno.EMFILE))
    path = str(tmp_path / "s.sock")
    make = {"unix": partial(make_unix, path, 0o600, None), "tcp": partial(make_tcp, ANY)}[listen]
    with pytest.raises(ListenError, match="Too many open files; raise syncd's limit of open files"):
        make()


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EADDRINUSE, "Address already in use; free the address"),
        (errno.EADDRNOTAVAIL, "write an address of this machine"),
        (errno.EACCES, "Permission denied; use a port above 1023"),
        (errno.ENOBUFS, "free memory"),
    ],
)
def test_an_address_that_is_refused(
    monkeypatch: pytest.MonkeyPatch, number: int, says: str
) -> None:
    """Each reason has its own remedy."""
    monkeypatch.setattr(socket.socket, "bind", refuse(number))
    with pytest.raises(ListenError, match=says):
        make_tcp(ANY)


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        (socket.EAI_NONAME, ConfigurationError, "has no address"),
        (socket.EAI_AGAIN, ListenError, "the resolver does not answer"),
    ],
)
def test_a_host_that_cannot_be_resolved(
    monkeypatch: pytest.MonkeyPatch, code: int, kind: type[SyncdError], says: str
) -> None:
    """Only the resolver's "no such name" is an error of the configuration."""

    def resolve(*_: object, **_named: object) -> NoReturn:
        raise socket.gaierror(code, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(kind, match=says):
        make_tcp("host:1")


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EAGAIN, "another process listens there"),  # its backlog is full
        (errno.EACCES, "Permission denied; set api.socket"),
        (errno.EIO, "Input/output error; check the disk"),
    ],
)
def test_a_socket_that_cannot_be_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, says: str
) -> None:
    """A process that listens is claimed only where one does."""
    path = str(tmp_path / "s.sock")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
    monkeypatch.setattr(socket.socket, "connect", refuse(number))
    with pytest.raises(ListenError, match=says):
        make_unix(path, 0o600, None)


@pytest.mark.parametrize(
    ("number", "kind", "says"),
    [
        (errno.EPERM, ConfigurationError, "make syncd's user a member of the group"),
        (errno.EINVAL, ConfigurationError, "the user namespace of syncd does not map 0"),
        (errno.EROFS, ListenError, "Read-only file system; mount the file system read-write"),
    ],
)
def test_a_group_that_cannot_own_the_socket(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[SyncdError],
    says: str,
) -> None:
    """Membership is only one of the reasons."""
    monkeypatch.setattr(os, "chown", refuse(number))
    with pytest.raises(kind, match=says):
        make_unix(str(tmp_path / "s.sock"), 0o600, "0")
    assert os.listdir(tmp_path) == []
