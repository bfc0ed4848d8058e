"""Service units of systemd, read from their files: who runs a program, and with what.

The files are read rather than asked for by `systemctl`, so that a unit can be judged before systemd
has loaded it, and where systemd does not run. The search path, drop-ins and their order are those
of systemd.unit(5), "Unit File Load Path"; the syntax is that of systemd.syntax(7); credentials are
found as systemd.exec(5), `LoadCredential=`, describes.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

import msgspec

from syncd.system.files import read_file

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVICE: Final = "syncd.service"
"""The unit that `make install` and the packages bring."""

CREDENTIALS: Final = "/run/credentials"
"""Where systemd puts the credentials of a unit: `/run/credentials/UNIT/NAME`."""

_PATHS: Final = (
    "/etc/systemd/system",
    "/run/systemd/system",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)
_STORES: Final = ("/etc", "/run", "/usr/local/lib", "/usr/lib")
_LARGEST: Final = 1 << 20
_LOADS: Final = ("LoadCredential", "LoadCredentialEncrypted")
_SETS: Final = ("SetCredential", "SetCredentialEncrypted")


class Credential(msgspec.Struct, frozen=True):
    """A credential that a unit gets.

    Attributes:
        path: Where its content is: an absolute path; None where the unit has it by value, or
            nothing was found.
        encrypted: Whether only systemd can read it.
        given: Whether the unit holds the value itself.
        wanted: Where a file is looked for, or None.
    """

    path: str | None
    encrypted: bool = False
    given: bool = False
    wanted: str | None = None


class Unit(msgspec.Struct, frozen=True):
    """A service unit with its drop-ins.

    Attributes:
        name: Its name, such as `syncd.service`.
        path: Its own file.
        root: The directory that stands for `/`.
        settings: The values of `[Service]` by key, in order; an empty one starts again.
    """

    name: str
    path: str
    root: str
    settings: Mapping[str, tuple[str, ...]]

    def last(self, key: str) -> str | None:
        """The value of a key that has one value, or None."""
        values = self.settings.get(key)
        return values[-1] if values else None

    def words(self, key: str) -> list[str]:
        """All words of a key that has a list."""
        return [word for value in self.settings.get(key, ()) for word in _split(value)]

    @property
    def environment(self) -> dict[str, str]:
        """The variables that the unit sets, files over keys."""
        found = dict(word.partition("=")[::2] for word in self.words("Environment"))
        for name in self.settings.get("EnvironmentFile", ()):
            found |= _variables(self.root + name.removeprefix("-"))
        return found

    @property
    def arguments(self) -> list[str]:
        """The words of the last `ExecStart=`."""
        return _split(self.last("ExecStart") or "")

    def credential(self, name: str) -> Credential | None:
        """A credential by its name, or None where the unit does not get it."""
        for key in _LOADS:
            for value in self.settings.get(key, ()):
                ident, _, source = value.partition(":")
                if ident == name:
                    return self._find(source or ident, encrypted=key.endswith("Encrypted"))
        if name in self.credentials:
            return Credential(None, given=True)
        patterns = (value.partition(":")[0] for value in self.settings.get("ImportCredential", ()))
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            return self._find(name, encrypted=False)
        return None

    @property
    def credentials(self) -> list[str]:
        """The names of the credentials that it gets."""
        values = (value for key in (*_LOADS, *_SETS) for value in self.settings.get(key, ()))
        return [value.partition(":")[0] for value in values]

    def _find(self, source: str, *, encrypted: bool) -> Credential:
        if source.startswith("/"):
            return Credential(self.root + source, encrypted)
        suffixes = (".encrypted",) if encrypted else ("", ".encrypted")
        for suffix in suffixes:
            for store in _STORES:
                path = f"{self.root}{store}/credstore{suffix}/{source}"
                if os.path.lexists(path):
                    return Credential(path, bool(suffix))
        received = f"{self.root}{CREDENTIALS}/@system/{source}"
        if os.path.lexists(received):  # of the machine, such as one that its hypervisor passed
            return Credential(received)
        return Credential(None, wanted=f"/etc/credstore{suffixes[0]}/{source}")


def read_unit(name: str, root: str = "") -> Unit | None:
    """Reads a service unit and its drop-ins; None where there is no such unit, or it is masked.

    Args:
        name: The unit, with or without `.service`.
        root: A directory that stands for `/`.

    Raises:
        OSError: A file of the unit cannot be read.
    """
    if "." not in name:
        name += ".service"
    prefix, at, instance = name.removesuffix(".service").partition("@")
    template = f"{prefix}@.service" if at else None
    files = [
        f"{root}{directory}/{known}" for known in (name, template) if known for directory in _PATHS
    ]
    path = next(filter(os.path.lexists, files), None)
    if path is None or os.path.realpath(path) == "/dev/null":
        return None
    settings: dict[str, tuple[str, ...]] = {}
    names = (name, template, "service") if template else (name, "service")
    for file in (path, *_drop_ins(root, names)):
        for key, value in _service(read_file(file, _LARGEST)[0].decode(errors="replace")):
            expanded = _expand(value, name, prefix, instance)
            settings[key] = (*settings.get(key, ()), expanded) if expanded else ()
    return Unit(name, path, root, settings)


def _drop_ins(root: str, names: tuple[str, ...]) -> list[str]:
    """The drop-ins, by file name; the first directory of the search path wins."""
    found: dict[str, str] = {}
    for directory in _PATHS:
        for name in names:
            try:
                files = os.listdir(f"{root}{directory}/{name}.d")
            except OSError:
                continue
            for file in files:
                if file.endswith(".conf"):
                    found.setdefault(file, f"{root}{directory}/{name}.d/{file}")
    return [path for _, path in sorted(found.items()) if os.path.realpath(path) != "/dev/null"]


def _service(text: str) -> Iterator[tuple[str, str]]:
    """The keys and values of `[Service]`."""
    section, held = "", ""
    for written in text.replace("\0", "\n").splitlines():  # as systemd's read_line()
        if written.lstrip().startswith(("#", ";")):
            continue
        if written.endswith("\\"):
            held += written[:-1] + " "
            continue
        line, held = (held + written).strip(), ""
        if line.startswith("[") and line.endswith("]"):
            section = line
        elif section == "[Service]" and "=" in line:
            key, _, value = line.partition("=")
            yield key.strip(), value.strip()


def _expand(value: str, name: str, prefix: str, instance: str) -> str:
    for specifier, meaning in (("%n", name), ("%p", prefix), ("%N", name[:-8]), ("%i", instance)):
        value = value.replace(specifier, meaning)
    return value.replace("%%", "%")


def _split(value: str) -> list[str]:
    try:
        return shlex.split(value)
    except ValueError:  # a quote that does not end
        return value.split()


def _variables(path: str) -> dict[str, str]:
    try:
        text = read_file(path, _LARGEST)[0].decode(errors="replace")
    except OSError:
        return {}
    lines = (line.strip() for line in text.splitlines())
    pairs = (line.partition("=") for line in lines if line[:1] not in ("", "#", ";"))
    return {key.strip(): " ".join(_split(value)) for key, equals, value in pairs if equals}
