"""Reading the configuration: a file, the environment over it, every problem at once.

A problem is told where a person can mend it: by the key in the file, or by the variable of the
environment that gave the value.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from syncd.config.settings import RelaySettings, Settings
from syncd.config.validation import contradictions
from syncd.core.decode import Path, Problem, decode
from syncd.core.errors import ConfigurationError
from syncd.core.findings import Finding, finding, key_path
from syncd.core.tree import TreeError, parse_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_FILE = "/etc/syncd/syncd.yaml"
DEFAULT_RELAY_FILE = "/etc/syncd/relay.yaml"


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
        given: What the command line says of the section `relay`; it wins over the file.
        environ: As for `load`; a vault config there is none of a relay's business.

    Raises:
        ConfigurationError: Every problem found, with file and key path.
    """
    path = config_file(file, environ, DEFAULT_RELAY_FILE)
    tree = _read(path)
    written = "vault_config" in tree
    tree, problems, origins = _overlay(tree, environ)
    if not written:
        tree.pop("vault_config", None)
    for key, value in given.items():
        _put(tree, ["relay"], key, value)
    settings, found = decode(tree, RelaySettings, contradictions)
    problems += found
    if settings is None or problems:
        source = path or ("command line" if given else "environment")
        raise ConfigurationError([_finding(problem, source, origins) for problem in problems])
    return settings


def examine(
    file: str | None, environ: Mapping[str, str] = os.environ
) -> tuple[Settings | None, list[Finding]]:
    """Reads as much of the configuration as can be read, for a linter that goes on after an error.

    Args:
        file: As for `load`.
        environ: As for `load`.

    Returns:
        The configuration, and every problem; with a problem, only the sections `vault_config` and
        `watch`, so far as they can be read; None when not even the vault config is known.
    """
    path = config_file(file, environ)
    try:
        written, findings = _read(path), []
    except ConfigurationError as error:
        written, findings = {}, list(error.findings)
    tree, problems, origins = _overlay(written, environ)
    if findings and "vault_config" not in tree:
        return None, findings
    settings, found = decode(tree, Settings, contradictions)
    problems += found
    findings += [_finding(problem, path or "environment", origins) for problem in problems]
    return (_salvage(tree) if findings else settings), findings


def config_file(
    file: str | None, environ: Mapping[str, str] = os.environ, default: str | None = None
) -> str | None:
    """The configuration file in use, or None for the environment alone; arguments as for `load`."""
    path = file or environ.get("SYNCD_CONFIG") or None
    default = default or DEFAULT_FILE
    return default if path is None and os.path.exists(default) else path


def _salvage(tree: dict[str, Any]) -> Settings | None:
    vault_config = tree.get("vault_config")
    attempts = [
        decode({"vault_config": vault_config, "watch": tree.get("watch", {})}, Settings)[0],
        decode({"vault_config": vault_config}, Settings)[0],
    ]
    return next(filter(None, attempts), None)


def _read(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        with open(path, "rb") as file:
            documents = parse_yaml(file.read())
    except OSError as error:
        hint = "give its path by -c or $SYNCD_CONFIG, readable for this user"
        raise ConfigurationError(
            [_problem("config-unreadable", path, f"cannot be read: {error.strerror}", hint)]
        ) from None
    except TreeError as error:
        hint = "mend the YAML there"
        raise ConfigurationError([_problem("config-malformed", path, str(error), hint)]) from None
    if len(documents) > 1:
        hint = "leave one document, without ---"
        raise ConfigurationError(
            [_problem("config-malformed", path, "holds several documents", hint)]
        )
    tree = documents[0] if documents else None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        hint = "start with vault_config: /path"
        raise ConfigurationError([_problem("config-malformed", path, "is not a mapping", hint)])
    return tree


def _problem(code: str, source: str, message: str, hint: str) -> Finding:
    return finding(code, source, "", message, hint)


def _finding(problem: Problem, source: str, origins: Mapping[Path, str]) -> Finding:
    """Names the variable instead of the key where the environment is what must be mended."""
    where, hint = key_path(*problem.path), problem.hint
    if (where, problem.message) == ("vault_config", "is missing"):
        hint = "set vault_config in the file or BOX_VAULT_CONFIG in the environment"
    for length in range(len(problem.path), 0, -1):
        variable = origins.get(problem.path[:length])
        if variable is not None:
            source, where = "environment", variable
            break
    return finding("config-invalid", source, where, problem.message, hint)


_PLAIN_TWINS = {
    "SYNCD_STATE_DIR": ("state_dir",),
    "SYNCD_INSTANCE": ("instance",),
    "SYNCD_SOCKET": ("api", "socket"),
    "SYNCD_LISTEN": ("api", "listen"),
    "SYNCD_LOG_LEVEL": ("log", "level"),
    "SYNCD_LOG_FORMAT": ("log", "format"),
}


def _overlay(
    tree: dict[str, Any], environ: Mapping[str, str]
) -> tuple[dict[str, Any], list[Problem], dict[Path, str]]:
    """Lays the environment's twins over the file's tree, leaving malformed sections to `decode`.

    Returns:
        The tree, problems of the environment itself, and which variable gave which key.
    """
    problems: list[Problem] = []
    origins: dict[Path, str] = {}
    for variable in ("AIDBOX_VAULT_CONFIG", "BOX_VAULT_CONFIG"):
        if environ.get(variable):
            tree["vault_config"] = environ[variable]
            origins["vault_config",] = variable
    for variable, (*sections, key) in _PLAIN_TWINS.items():
        if environ.get(variable):
            _put(tree, sections, key, environ[variable])
            origins[*sections, key] = variable
    if environ.get("SYNCD_WATCH_ROOTS"):
        _put(tree, ["watch"], "roots", [r for r in environ["SYNCD_WATCH_ROOTS"].split(":") if r])
        origins["watch", "roots"] = "SYNCD_WATCH_ROOTS"
    url, key_file = environ.get("SYNCD_WEBHOOK_URL"), environ.get("SYNCD_WEBHOOK_SIGNING_KEY_FILE")
    if url:
        webhook = {"name": "webhook", "kind": "webhook", "url": url}
        others = tree.get("consumers") or []
        if isinstance(others, list):
            kept = [c for c in others if not (isinstance(c, dict) and c.get("name") == "webhook")]
            tree["consumers"] = [*kept, webhook]
            origins["consumers", len(kept), "url"] = "SYNCD_WEBHOOK_URL"
            if key_file:
                webhook["signing_key_file"] = key_file
                place = "SYNCD_WEBHOOK_SIGNING_KEY_FILE"
                origins["consumers", len(kept), "signing_key_file"] = place
    elif key_file:
        variable = "SYNCD_WEBHOOK_SIGNING_KEY_FILE"
        problems.append(Problem((variable,), "signs nothing", "set SYNCD_WEBHOOK_URL too"))
        origins[variable,] = variable
    return tree, problems, origins


def _put(tree: dict[str, Any], sections: list[str], key: str, value: object) -> None:
    for section in sections:
        inner = tree.get(section)
        if inner is None:
            inner = tree[section] = {}
        if not isinstance(inner, dict):
            return
        tree = inner
    tree[key] = value
