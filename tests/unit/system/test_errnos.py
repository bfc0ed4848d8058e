"""syncd.system.errnos: each error number has a remedy that fits it, wherever it occurs."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from syncd.config.load import load
from syncd.core.errors import RefusedError, SyncdError, TemporaryError
from syncd.ledger.state_dir import StateDir
from syncd.mount.vault_config_file import read_vault_config
from syncd.net.credentials import CredentialFiles, Keyring
from syncd.net.tls import RotatingContext, Trust
from syncd.provision.azure.cloud import find_cloud
from syncd.provision.credential_file import read_bytes
from syncd.provision.plan import plan_provision
from syncd.system import errnos
from syncd.system.errnos import OTHERWISE, is_of_machine, reason, remedy
from syncd.system.files import UnsuitableError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OF_MACHINE = {
    errno.EMFILE: "LimitNOFILE=",
    errno.ENFILE: "fs.file-max",
    errno.ENOMEM: "free memory",
    errno.EIO: "check the disk",
    errno.ESTALE: "mount the file system again",
    errno.ENOTCONN: "mount the file system again",
    errno.EHOSTDOWN: "check the server",
    errno.ETIMEDOUT: "check the server",
    errno.ENOLCK: "supports locks",
}
PATH, ACCESS = "correct the path", "make it readable"


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_every_number(number: int) -> None:
    """The path and the permission are blamed for their own errors only."""
    error = OSError(number, "canary")
    found = remedy(error, path=PATH, access=ACCESS)
    assert (found == ACCESS) == (number in (errno.EACCES, errno.EPERM))
    path = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
    assert (found == PATH) == (number in (*path, errno.EEXIST))
    assert is_of_machine(error) == (found not in (PATH, ACCESS, OTHERWISE))
    assert reason(error) == os.strerror(number)


def test_errors_without_a_number_and_of_the_reader() -> None:
    """The reader's own say what is wrong with the file; an error without a number says little."""
    unsuitable = UnsuitableError(errno.EFBIG, "larger than 1 MiB")
    assert (reason(unsuitable), remedy(unsuitable, path=PATH, access=ACCESS)) == (
        "larger than 1 MiB",
        PATH,
    )
    assert (reason(OSError("canary")), remedy(OSError("canary"), path=PATH, access=ACCESS)) == (
        "unknown error",
        OTHERWISE,
    )
    assert not is_of_machine(unsuitable)


def _provision(path: str) -> None:
    from syncd.config.settings import Provision

    _, (found,) = plan_provision([Provision(manifest=path, target="/nowhere")])
    raise SyncdError(found.message, found.hint)


READERS: dict[str, Callable[[str], object]] = {
    "configuration": lambda path: load(path, {}),
    "vault config": read_vault_config,
    "manifest": _provision,
    "credential of a login": lambda path: read_bytes("token_file", path),
    "cloud": lambda path: find_cloud("AzurePublicCloud", path),
    "secret of a consumer": lambda path: Keyring(CredentialFiles(bearer_token=path)).read(),
    "certificate": lambda path: RotatingContext(Trust(ca_file=path)).current(),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("number", [*OF_MACHINE, errno.EACCES, errno.ENOENT])
def test_each_file_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str, number: int
) -> None:
    """A machine that fails is not taken for a file that is missing, or is not what it should be."""
    path = tmp_path / "file"
    path.write_text("x")
    opened, looked_at = os.open, os.stat

    def refuse(real: Callable[..., object]) -> Callable[..., object]:
        def call(name: object, *arguments: object, **named: object) -> object:
            if name == str(path):
                raise OSError(number, os.strerror(number))
            return real(name, *arguments, **named)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse(opened))
        if reader == "certificate":  # OpenSSL opens it
            patch.setattr(os, "stat", refuse(looked_at))
        with pytest.raises(SyncdError) as raised:
            READERS[reader](str(path))
    text = str(raised.value)
    assert os.strerror(number) in text
    if number in OF_MACHINE:
        assert OF_MACHINE[number] in text
        assert "readable for" not in text
        assert "correct" not in text
        assert " set " not in text
    elif number == errno.EACCES:
        assert "read" in text.rpartition("; ")[2]


def test_a_login_that_the_machine_prevents_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No person can correct that there is no descriptor; a missing file, one can."""
    with pytest.raises(RefusedError, match="No such file"):
        read_bytes("token_file", str(tmp_path / "missing"))

    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, "canary")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(TemporaryError, match="Too many open files; raise"):
        read_bytes("token_file", str(tmp_path / "missing"))


def test_the_default_configuration_that_cannot_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not taken for one that does not exist: its consumers would silently be missing."""
    from syncd.config import load as configuration

    default = str(tmp_path / "syncd.yaml")
    looked_at, opened = os.stat, os.open

    def refuse(real: Callable[..., object]) -> Callable[..., object]:
        def call(name: object, *arguments: object, **named: object) -> object:
            if name == default:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return real(name, *arguments, **named)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(configuration, "DEFAULT_FILE", default)
        patch.setattr(os, "stat", refuse(looked_at))
        patch.setattr(os, "open", refuse(opened))
        with pytest.raises(SyncdError, match="Stale file handle; mount the file system again"):
            load(None, {"BOX_VAULT_CONFIG": "/vault-config.json"})


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EAGAIN, "another syncd uses it; stop that syncd"),
        (errno.ENOLCK, "No locks available; use a file system that supports locks"),
        (errno.ENOSYS, "Function not implemented; use a file system that supports locks"),
        (errno.EOPNOTSUPP, "Operation not supported; use a file system that supports locks"),
        (errno.EIO, "Input/output error; check the disk"),
        (errno.ESTALE, "Stale file handle; mount the file system again"),
    ],
)
def test_a_state_directory_that_cannot_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, says: str
) -> None:
    """Only a lock that is held means another syncd."""

    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(SyncdError) as raised:
        StateDir.open(str(tmp_path))
    assert says in str(raised.value)
    assert errnos.OTHERWISE not in str(raised.value)
