"""Typical mistakes, and what `syncd check` and `syncd run` say about each: none goes unnoticed.

A row is a configuration, a vault config or a mount with one mistake; the words that `check` must
say, which name the place and the remedy; and whether `run` refuses to start with the same words.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from support.world import World, secret

from syncd.config.load import load
from syncd.core.errors import ConfigurationError
from syncd.lint.check import run_checks
from syncd.lint.runner import Runner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOOK = {"name": "hook", "kind": "webhook", "url": "http://127.0.0.1:9000/events"}
NATS = {"name": "bus", "kind": "nats", "urls": ["nats://127.0.0.1:4222"]}
EXEC = {"name": "run", "kind": "exec"}
AIDBOX = {
    "name": "aidbox",
    "kind": "aidbox",
    "urls": ["http://127.0.0.1:8080"],
    "client_id": "syncd",
    "client_secret_file": "{mount}/a",
    "actions": ["drop_cache"],
}

Row = tuple[str, dict[str, Any] | str, tuple[str, ...], bool]


def hook(**more: Any) -> dict[str, Any]:
    return {"consumers": [{**HOOK, **more}]}


def nats(**more: Any) -> dict[str, Any]:
    return {"consumers": [{**NATS, **more}]}


def command(*words: str, **more: Any) -> dict[str, Any]:
    return {"consumers": [{**EXEC, "command": list(words), **more}]}


def aidbox(**more: Any) -> dict[str, Any]:
    return {"consumers": [{**AIDBOX, **more}]}


CONFIGURATIONS: list[Row] = [
    # what was written; the configuration; what is said; whether `run` refuses
    ("tab", "consumers:\n\t- name: x\n", ("line", "a tab; indent with spaces"), True),
    ("not a mapping", "- a\n- b\n", ("is not a mapping", "write key: value"), True),
    ("two documents", "a: 1\n---\nb: 2\n", ("several documents", "without ---"), True),
    ("open bracket", "consumers: [\n", ("not valid YAML", "fix the YAML"), True),
    ("unknown key", {"consumer": []}, ("consumer: unknown key", "did you mean consumers?"), True),
    ("unknown kind", hook(kind="webhok"), ("kind", "did you mean webhook?"), True),
    ("no kind", {"consumers": [{"name": "a"}]}, ("kind: is missing", "use one of"), True),
    (
        "consumer as mapping",
        {"consumers": HOOK},
        ("must be a list", "start each item with -"),
        True,
    ),
    ("name with a space", hook(name="my hook"), ("name", "letters, digits"), True),
    ("same name twice", {"consumers": [HOOK, HOOK]}, ("is used twice", "its own name"), True),
    ("url without scheme", hook(url="host:9000/x"), ("url", "write http://host:port/path"), True),
    ("url of another scheme", hook(url="ftp://host/x"), ("not an http or https URL",), True),
    (
        "placeholder in the host",
        hook(url="http://${EHR_HOST}/x"),
        ("url", "not an http", "it holds ${EHR_HOST}"),
        True,
    ),
    (
        "placeholder in a duration",
        hook(timeout="${TIMEOUT}"),
        ("timeout: is not a duration: it holds ${TIMEOUT}", "fill it in"),
        True,
    ),
    (
        "placeholder in a path",
        {"state_dir": "${STATE}/syncd"},
        ("state_dir", "it holds ${STATE}", "fill it in"),
        True,
    ),
    (
        "placeholder without quotes",
        "vault_config: {{ .Values.path }}\n",
        ("not valid YAML at line", "fill in its placeholders"),
        True,
    ),
    (
        "credentials in the url",
        hook(url="http://u:p@host/"),
        ("holds credentials", "basic_auth"),
        True,
    ),
    (
        "url without its key",
        {"consumers": [{"name": "a", "kind": "webhook"}]},
        ("url: is missing",),
        True,
    ),
    ("duration with a bad unit", hook(timeout="10sec"), ("10sec is not a duration",), True),
    ("timeout of zero", hook(timeout=0), ("timeout: must be above zero",), True),
    ("batch of zero", hook(max_batch=0), ("max_batch", "from 1"), True),
    ("batch in words", hook(max_batch="ten"), ("max_batch", "an integer"), True),
    (
        "own header",
        hook(headers={"Content-Type": "x"}),
        ("is set by syncd itself", "remove it"),
        True,
    ),
    ("header with a line end", hook(headers={"X-A": "a\nb"}), ("not a valid HTTP header",), True),
    (
        "two logins",
        hook(basic_auth={"username": "u", "password_file": "/p"}, bearer_token_file="/t"),
        ("contradicts basic_auth",),
        True,
    ),
    ("certificate without key", hook(client_cert="/c"), ("client_key: is missing",), True),
    ("relative path", hook(signing_key_file="webhook.key"), ("an absolute path",), True),
    ("scope as text", hook(scope=["Client/a"]), ("scope[0]", "must be a mapping"), True),
    ("scope without type", hook(scope=[{"id": "a"}]), ("resource_type: is missing",), True),
    ("no nats server", nats(urls=[]), ("urls: is empty", "nats://host:4222"), True),
    ("nats by http", nats(urls=["http://h"]), ("not the URL of a NATS server",), True),
    ("nats user alone", nats(user="u"), ("password_file: is missing",), True),
    ("nats wildcard", nats(subject="a.>"), ("subject: has a wildcard",), True),
    ("no command", command(), ("command: names no program",), True),
    ("relative command", command("bin/x"), ("command[0]: is a relative path",), True),
    ("command as text", {"consumers": [{**EXEC, "command": "true"}]}, ("command", "list"), True),
    ("command is away", command("/none"), ("/none does not exist", "correct the path"), False),
    ("unknown command", command("no-such"), ("no-such is not in /usr/local/sbin",), False),
    ("command is data", command("/etc/passwd"), ("/etc/passwd cannot be executed",), False),
    ("command directory", command("/usr/bin"), ("/usr/bin is not a file",), False),
    ("aidbox without actions", aidbox(actions=[]), ("actions: is empty", "drop_cache"), True),
    ("aidbox unknown action", aidbox(actions=["drop_cahce"]), ("did you mean drop_cache?",), True),
    ("aidbox url with query", aidbox(urls=["http://h/?a"]), ("has a query or a fragment",), True),
    ("verify without roots", aidbox(actions=["verify"]), ("watch.roots: is required",), True),
    (
        "listen as url",
        {"api": {"listen": "http://127.0.0.1:9753"}},
        ("api.listen", "an address and a port alone"),
        True,
    ),
    ("listen without port", {"api": {"listen": "127.0.0.1"}}, ("is not host:port",), True),
    ("port too large", {"api": {"listen": "127.0.0.1:99999"}}, ("is not host:port",), True),
    ("mode as number", {"api": {"socket_mode": 660}}, ("socket_mode", 'such as "0660"'), True),
    (
        "uid as name",
        {"api": {"subscribers": [{"name": "a", "uid": "aidbox"}]}},
        ("uid", "an integer"),
        True,
    ),
    (
        "uid twice",
        {"api": {"subscribers": [{"name": "a", "uid": 5}, {"name": "b", "uid": 5}]}},
        ("is used twice",),
        True,
    ),
    ("unknown log level", {"log": {"level": "warn"}}, ("log.level", "did you mean warning?"), True),
    ("unknown watch mode", {"watch": {"mode": "inotfy"}}, ("did you mean inotify?",), True),
    (
        "size with a bad unit",
        {"watch": {"max_secret_size": "1MB"}},
        ("not a size", "64KiB or 1MiB"),
        True,
    ),
    ("root as text", {"watch": {"roots": "/run"}}, ("must be a list",), True),
    ("interval of zero", {"watch": {"rescan_interval": 0}}, ("must be above zero",), True),
    (
        "grant without type",
        {"credentials": {"grants": [{"unit": "app", "credential": "c", "secret": "a"}]}},
        ("write it like my-app.service",),
        True,
    ),
    (
        "grant with a slash",
        {"credentials": {"grants": [{"unit": "a.service", "credential": "a/b", "secret": "a"}]}},
        ("write it like client-secret",),
        True,
    ),
    (
        "provision without target",
        {"provision": [{"manifest": "/m"}]},
        ("target: is missing",),
        True,
    ),
    (
        "unknown login",
        {"provision": [{"manifest": "/m", "target": "/t", "auth": {"method": "aprole"}}]},
        ("did you mean approle?",),
        True,
    ),
    # valid, and still wrong: `run` starts, `check` and the daemon's status say so
    (
        "missing key",
        hook(signing_key_file="/none/webhook.key"),
        ("signing_key_file", "/none/webhook.key"),
        False,
    ),
    (
        "malformed key",
        hook(signing_key_file="{mount}/a"),
        ("whsec_<base64>", "openssl rand"),
        False,
    ),
    ("unknown type", hook(scope=[{"resource_type": "Clinet"}]), ("did you mean Client?",), False),
    (
        "scope with the type in the id",
        hook(scope=[{"resource_type": "Client", "id": "Client/a"}]),
        ("write the id alone",),
        False,
    ),
    (
        "scope of nothing",
        hook(scope=[{"resource_type": "Client", "id": "other"}]),
        ("no entry of the vault config is for Client/other",),
        False,
    ),
    ("empty scope", hook(scope=[]), ("scope: is empty: hook gets nothing",), False),
    (
        "unknown host",
        hook(url="http://no-such-host.invalid/"),
        ("there is no host no-such-host.invalid",),
        False,
    ),
    ("no receiver socket", hook(socket="/none/sock"), ("there is no socket /none/sock",), False),
    (
        "placeholder in a header",
        hook(headers={"X-Token": "${TOKEN}"}),
        ("${TOKEN}, which syncd does not replace",),
        False,
    ),
    (
        "placeholder of a tutorial",
        hook(headers={"X-Token": "<ACCESS_TOKEN>"}),
        ("<ACCESS_TOKEN>, which syncd does not replace",),
        False,
    ),
    (
        "placeholder in the port",
        {"api": {"listen": "${HOST}:9753"}},
        ("api.listen: holds ${HOST}", "fill it in"),
        False,
    ),
    (
        "token in clear text",
        hook(url="http://192.0.2.1/", headers={"Authorization-X": "a"}),
        ("unencrypted", "use https"),
        False,
    ),
    (
        "subscribers without a socket",
        {"api": {"subscribers": [{"name": "a", "uid": 5}]}},
        ("api.socket is not", "set api.socket"),
        False,
    ),
    (
        "unknown group",
        {"api": {"socket": "{mount}/../s", "socket_group": "none-such"}},
        ("there is no group none-such",),
        False,
    ),
    (
        "address of another machine",
        {"api": {"listen": "192.0.2.1:9753"}},
        ("cannot listen on 192.0.2.1:9753",),
        False,
    ),
    ("open port", {"api": {"listen": "0.0.0.0:0"}}, ("is not host:port",), True),
    ("state on a file", {"state_dir": "{mount}/a/state"}, ("state_dir", "Not a directory"), False),
    (
        "grant of no secret",
        {
            "watch": {"roots": ["{mount}"]},
            "credentials": {"grants": [{"unit": "a.service", "credential": "c", "secret": "aa"}]},
        },
        ("aa is not in", "did you mean a?"),
        False,
    ),
    (
        "no manifest",
        {"provision": [{"manifest": "/none.yaml", "target": "/run/t"}]},
        ("/none.yaml: cannot be read",),
        False,
    ),
]


def bad_entry(world: World, path: str) -> None:
    world.map("a", paths={"b": path})


FILES: list[tuple[str, Callable[[World], object], tuple[str, ...]]] = [
    ("no vault config", lambda w: os.unlink(w.vault_config), ("cannot be read",)),
    ("trailing comma", lambda w: w.write_vault_config('{"secret": {},}'), ("line 1",)),
    ("no secret key", lambda w: w.write_vault_config("{}"), ("secret: is missing",)),
    ("misspelt key", lambda w: w.write_vault_config('{"secrets": {}}'), ("did you mean secret?",)),
    (
        "missing file",
        lambda w: bad_entry(w, f"{w.mount}/none"),
        ("there is no file", "create the file"),
    ),
    (
        "relative path of a secret",
        lambda w: bad_entry(w, "b"),
        ("is not absolute", "start it with /"),
    ),
    ("a directory", lambda w: bad_entry(w, w.mount), ("set path to a regular file",)),
    ("newline at the end", lambda w: w.publish(a=secret("x") + b"\n"), ("ends in a newline",)),
    ("empty file", lambda w: w.publish(a=b""), ("is empty", "write the secret")),
    ("unmapped file", lambda w: w.publish(stray=secret("x")), ("named by no entry",)),
]


@pytest.fixture
def world(tmp_path: object) -> Iterator[World]:
    with World() as world:
        world.publish(a=secret("0"))
        world.map("a")
        yield world


def said(world: World) -> str:
    return "\n".join(map(str, run_checks(world.config, {}, runner=Runner())))


def write(world: World, settings: dict[str, Any] | str) -> None:
    if isinstance(settings, str):
        text = f"vault_config: {world.vault_config}\n{settings}"
        text = settings if settings.startswith(("-", "a:")) else text
    else:
        base = {"vault_config": world.vault_config, "state_dir": world.state}
        text = yaml.safe_dump({**base, **settings}).replace("{mount}", world.mount)
    with open(world.config, "w") as file:
        file.write(text)


@pytest.mark.parametrize("row", CONFIGURATIONS, ids=[row[0] for row in CONFIGURATIONS])
def test_a_mistake_in_the_configuration(world: World, row: Row) -> None:
    """`check` names place and remedy; `run` refuses what is not valid with the same lines."""
    _, settings, words, refused = row
    write(world, settings)
    found = said(world)
    for word in words:
        assert word in found
    if not refused:
        load(world.config, {})
        return
    with pytest.raises(ConfigurationError) as raised:
        load(world.config, {})
    for line in raised.value.lines:
        assert line in found


@pytest.mark.parametrize("row", FILES, ids=[row[0] for row in FILES])
def test_a_mistake_in_the_files(
    world: World, row: tuple[str, Callable[[World], object], tuple[str, ...]]
) -> None:
    """Every one is named with its file."""
    _, change, words = row
    write(world, {})
    assert not said(world)
    change(world)
    found = said(world)
    for word in words:
        assert word in found


def test_there_are_enough_rows() -> None:
    """Sixty at least, each of its own."""
    names = [*(row[0] for row in CONFIGURATIONS), *(row[0] for row in FILES)]
    assert len(set(names)) >= 60
