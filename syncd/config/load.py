"""Loading the configuration: a file, the environment over it, every problem at once.

A problem is reported where it can be corrected: at the key in the file, or at the variable or the
option that the value came from.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any, Final

import msgspec

from syncd.config.settings import RelaySettings, Settings
from syncd.config.validation import check_section
from syncd.core.decode import Path, Problem, decode
from syncd.core.errors import ConfigurationError
from syncd.core.findings import Finding, finding, key_path
from syncd.core.placeholders import correction, unfilled
from syncd.core.text import encodable
from syncd.core.tree import TreeError
from syncd.core.yaml_text import parse_yaml
from syncd.system.errnos import reason, remedy
from syncd.system.files import read_file

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_FILE = "/etc/syncd/syncd.yaml"
DEFAULT_RELAY_FILE = "/etc/syncd/relay.yaml"

MAX_SIZE: Final = 1 << 20
"""Bytes of a configuration file, at most."""

_Origins = dict[Path, tuple[str, str]]
"""Where a value comes from if not from the file: a source and a name in it, by key path."""


def load(file: str | None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Reads the configuration.

    Args:
        file: Path from the command line; else `$SYNCD_CONFIG`, else `/etc/syncd/syncd.yaml` if it
            exists, else the environment alone.
        environ: The environment; it wins over the file where both are set.

    Raises:
        ConfigurationError: Every problem found, with file and key path.
    """
    settings, findings = examine(file, environ)
    if settings is None or findings:
        raise ConfigurationError(findings)
    return settings


def load_relay(
    file: str | None, given: Mapping[str, Any], environ: Mapping[str, str] = os.environ
) -> RelaySettings:
    """Reads the configuration of a relay.

    Args:
        file: As for `load`, but that the default is `/etc/syncd/relay.yaml`.
        given: Keys of the section `relay` from the command line; they win over the file.
        environ: As for `load`; `BOX_VAULT_CONFIG` and `SYNCD_WATCH_ROOTS` are ignored.

    Raises:
        ConfigurationError: Every problem found, with file and key path.
    """
    place = _locate(file, environ, DEFAULT_RELAY_FILE)
    tree = {} if place is None else place.read()
    problems, origins = _overlay(tree, environ, _RELAY_TWINS)
    for key, value in given.items():
        _put(tree, ("relay", key), value)
        origins["relay", key] = ("command line", _OPTIONS[key])
        if not all(map(_is_utf8, value if isinstance(value, list) else [value])):
            problems.append(Problem(("relay", key), *_NOT_UTF8))
    settings, found = decode(tree, RelaySettings, check_section)
    problems += found
    if settings is None or problems:
        source = "command line" if place is None else place.path
        raise ConfigurationError([_finding(problem, source, origins, tree) for problem in problems])
    return settings


def examine(
    file: str | None, environ: Mapping[str, str] = os.environ
) -> tuple[Settings | None, list[Finding]]:
    """Reads as much of the configuration as can be read, for a linter that goes on after an error.

    The arguments are those of `load`.

    Returns:
        The configuration, and every problem; with a problem, only the sections `vault_config` and
        `watch`, so far as they can be read; None when not even the vault config is known.
    """
    place, tree, findings = _read(file, environ)
    return _examine(place, tree, findings, environ)


def examine_any(
    file: str | None, environ: Mapping[str, str] = os.environ
) -> tuple[Settings | RelaySettings | None, list[Finding]]:
    """As `examine`, for the configuration of a relay as well: one with the section `relay`."""
    place, tree, findings = _read(file, environ)
    if findings or "relay" not in tree or "vault_config" in tree:
        return _examine(place, tree, findings, environ)
    problems, origins = _overlay(tree, environ, _RELAY_TWINS)
    settings, found = decode(tree, RelaySettings, check_section)
    source = "environment" if place is None else place.path
    return settings, [_finding(problem, source, origins, tree) for problem in problems + found]


def _read(
    file: str | None, environ: Mapping[str, str]
) -> tuple[_Place | None, dict[str, Any], list[Finding]]:
    place = _locate(file, environ, DEFAULT_FILE)
    try:
        return place, {} if place is None else place.read(), []
    except ConfigurationError as error:
        return place, {}, list(error.findings)


def _examine(
    place: _Place | None,
    tree: dict[str, Any],
    findings: list[Finding],
    environ: Mapping[str, str],
) -> tuple[Settings | None, list[Finding]]:
    problems, origins = _overlay(tree, environ, _TWINS)
    if findings and "vault_config" not in tree:
        return None, findings
    settings, found = decode(tree, Settings, check_section)
    problems += found
    source = "environment" if place is None else place.path
    findings += [_finding(problem, source, origins, tree) for problem in problems]
    return (_salvage(tree) if findings else settings), findings


def read_tree(file: str | None, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """What is written in the configuration, valid or not; empty where it cannot be read again.

    The arguments are those of `load`.
    """
    place, tree = _locate(file, environ, DEFAULT_FILE), {}
    if place is not None and os.path.isfile(place.path):
        try:
            tree = place.read()
        except ConfigurationError:
            return {}
    _overlay(tree, environ, _TWINS)
    return tree


def config_file(file: str | None, environ: Mapping[str, str] = os.environ) -> str | None:
    """The configuration file in use, or None for the environment alone; arguments as for `load`."""
    place = _locate(file, environ, DEFAULT_FILE)
    return None if place is None else place.path


class _Place(msgspec.Struct, frozen=True):
    """A configuration file.

    Attributes:
        path: Its path.
        correction: What to do where the path is wrong.
        given: Whether the user gave the path; it may then be a pipe, such as `<(…)` of a shell.
    """

    path: str
    correction: str
    given: bool = True

    def read(self) -> dict[str, Any]:
        try:
            content, status = read_file(self.path, MAX_SIZE, stream=self.given)
        except OSError as error:
            access = f"make the file readable for this user, or {self.correction}"
            hint = remedy(error, path=self.correction, access=access)
            message = f"cannot be read: {reason(error)}"
            raise self._error("config-unreadable", message, hint) from None
        if stat.S_ISFIFO(status.st_mode) and not content:
            # at a reload the content is gone: an empty configuration would drop every consumer
            hint = "use a file, so that it can be read again"
            raise self._error("config-unreadable", "cannot be read: the pipe is empty", hint)
        try:
            documents = parse_yaml(content)
        except TreeError as error:
            hint = correction(content, "fix the YAML at that line")
            raise self._error("config-malformed", str(error), hint) from None
        if len(documents) > 1:
            hint = "keep one document, without ---"
            raise self._error("config-malformed", "holds several documents", hint)
        tree = documents[0] if documents else None
        if not isinstance(tree, dict | None):
            raise self._error("config-malformed", "is not a mapping", "write key: value")
        return tree or {}

    def _error(self, code: str, message: str, hint: str) -> ConfigurationError:
        return ConfigurationError([finding(code, self.path, "", message, hint)])


def _locate(file: str | None, environ: Mapping[str, str], default: str) -> _Place | None:
    if file:
        return _Place(file, "correct the path after -c")
    if environ.get("SYNCD_CONFIG"):
        return _Place(environ["SYNCD_CONFIG"], "correct $SYNCD_CONFIG")
    try:
        os.stat(default)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        pass  # whether it exists is not known: reading it reports why
    return _Place(default, "give another path by -c or $SYNCD_CONFIG", given=False)


def _salvage(tree: dict[str, Any]) -> Settings | None:
    vault_config = {"vault_config": tree.get("vault_config")}
    settings, _ = decode({**vault_config, "watch": tree.get("watch", {})}, Settings)
    return settings or decode(vault_config, Settings)[0]


_OPTIONS: Final = {
    "urls": "--nats",
    "subject": "--subject",
    "stream": "--stream",
    "durable": "--durable",
    "credentials_file": "--credentials-file",
    "state_bucket": "--bucket",
}
"""The option of `syncd relay` for a key of the section `relay`."""

_ELSEWHERE: Final = {
    "vault_config": "set vault_config in the file or BOX_VAULT_CONFIG in the environment",
    "relay": "add relay, or give --nats and --subject",
    "relay.urls": "add urls, or give --nats",
    "relay.subject": "add subject, or give --subject",
}
"""Where to set a required key, if not only in the file."""


def _finding(problem: Problem, source: str, origins: _Origins, tree: Mapping[str, Any]) -> Finding:
    where, message, hint = key_path(*problem.path), problem.message, problem.hint
    code, placeholder = "config-invalid", unfilled(_value_at(problem.path, tree))
    if placeholder is not None and problem.path[-1] != "subject":  # which has places of its own
        code, hint = "value-uninterpolated", placeholder[1]
        message = f"{message}: it {placeholder[0]}"
    if message == "is missing":
        hint = _ELSEWHERE.get(where, hint)
    for length in range(len(problem.path), 0, -1):
        if problem.path[:length] in origins:
            source, where = origins[problem.path[:length]]
            break
    return finding(code, source, where, message, hint)


def _value_at(path: Path, tree: object) -> object:
    """What is written at a key path, or None."""
    for step in path:
        try:
            tree = tree[step]  # type: ignore[index]
        except (IndexError, KeyError, TypeError):
            return None
    return tree


_RELAY_TWINS: Final[Mapping[str, tuple[str, ...]]] = {
    "SYNCD_STATE_DIR": ("state_dir",),
    "SYNCD_INSTANCE": ("instance",),
    "SYNCD_SOCKET": ("api", "socket"),
    "SYNCD_LISTEN": ("api", "listen"),
    "SYNCD_LOG_LEVEL": ("log", "level"),
    "SYNCD_LOG_FORMAT": ("log", "format"),
}
"""The variables that set a key of a relay, too."""

_TWINS: Final[Mapping[str, tuple[str, ...]]] = {
    "AIDBOX_VAULT_CONFIG": ("vault_config",),
    "BOX_VAULT_CONFIG": ("vault_config",),  # wins over the older name
    "SYNCD_WATCH_ROOTS": ("watch", "roots"),
    **_RELAY_TWINS,
}
"""The variables that set a key."""


_WEBHOOK: Final = ("SYNCD_WEBHOOK_URL", "SYNCD_WEBHOOK_SIGNING_KEY_FILE")
"""The variables that make the consumer `webhook`."""

VARIABLES: Final = (*_TWINS, *_WEBHOOK)
"""The variables that set something."""

_NOT_UTF8: Final = ("is not UTF-8", "use a path that is")


def _is_utf8(value: str) -> bool:
    """Whether text of the environment or the command line fits into events, rows and answers."""
    return encodable(value) == value


def _overlay(
    tree: dict[str, Any], environ: Mapping[str, str], twins: Mapping[str, tuple[str, ...]]
) -> tuple[list[Problem], _Origins]:
    """Puts the values of the environment into the file's tree; leaves malformed sections alone.

    Returns:
        Problems of the environment itself, and where values come from.
    """
    problems: list[Problem] = []
    origins: _Origins = {}
    for variable in (*twins, *_WEBHOOK):
        if not _is_utf8(environ.get(variable, "")):
            problems.append(Problem((variable,), *_NOT_UTF8))
            origins[variable,] = ("environment", variable)
    for variable, path in twins.items():
        value = environ.get(variable)
        if value:
            roots = variable == "SYNCD_WATCH_ROOTS"
            _put(tree, path, list(filter(None, value.split(":"))) if roots else value)
            origins[path] = ("environment", variable)
    url, key_file = environ.get("SYNCD_WEBHOOK_URL"), environ.get("SYNCD_WEBHOOK_SIGNING_KEY_FILE")
    key_origin = ("environment", "SYNCD_WEBHOOK_SIGNING_KEY_FILE")
    if url:
        webhook = {"name": "webhook", "kind": "webhook", "url": url}
        others = tree.get("consumers") or []
        if isinstance(others, list):
            kept = [c for c in others if not (isinstance(c, dict) and c.get("name") == "webhook")]
            tree["consumers"] = [*kept, webhook]
            at = ("consumers", len(kept))
            origins[*at, "url"] = ("environment", "SYNCD_WEBHOOK_URL")
            if key_file:
                webhook["signing_key_file"] = key_file
                origins[*at, "signing_key_file"] = key_origin
    elif key_file:
        hint = "set SYNCD_WEBHOOK_URL too, or unset this variable"
        variable = key_origin[1]
        problems.append(Problem((variable,), "is set without SYNCD_WEBHOOK_URL", hint))
        origins[variable,] = key_origin
    return problems, origins


def _put(tree: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    *sections, key = path
    for section in sections:
        inner = tree.get(section)
        if inner is None:
            inner = tree[section] = {}
        if not isinstance(inner, dict):
            return
        tree = inner
    tree[key] = value
