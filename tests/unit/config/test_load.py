"""syncd.config.settings and syncd.config.load: every problem at once, with its key path."""

from __future__ import annotations

import json
import os
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings as tuned, strategies as st

from syncd.config import load as configuration, settings
from syncd.config.load import examine, examine_any, load, load_relay
from syncd.config.settings import (
    Aidbox,
    BasicAuth,
    RelaySettings,
    RelaySource,
    Settings,
    Webhook,
    credential_files,
    grant,
)
from syncd.config.validation import check_section
from syncd.core.decode import schema
from syncd.core.errors import ConfigurationError
from syncd.core.model import Scope
from syncd.core.yaml_text import parse_yaml

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTRACT = """
vault_config: /etc/aidbox/vault-config.json
state_dir: /var/lib/syncd
watch:
  roots: [/run/vault-secrets]
  settle: 50ms
  rescan_interval: 60s
  mode: auto
  max_secret_size: 1MiB
consumers:
  - name: aidbox-hook
    kind: webhook
    url: http://127.0.0.1:8080/secret-events
    socket: /run/aidbox/events.sock
    signing_key_file: /etc/syncd/webhook.key
    headers: {X-Env: prod}
    basic_auth: {username: syncd, password_file: /run/vault-secrets/syncd}
    ca_file: /etc/ssl/internal-ca.pem
    timeout: 10s
    max_batch: 1
    scope: [{resource_type: Client}, {resource_type: AidboxTopicDestination, id: kafka}]
  - name: aidbox
    kind: aidbox
    urls: [http://127.0.0.1:8080]
    client_id: syncd
    client_secret_file: /run/vault-secrets/syncd-client
    actions: [drop_cache]
api:
  socket: /run/syncd/syncd.sock
  socket_mode: "0660"
  subscribers:
    - {name: aidbox, uid: 1000, scope: [{resource_type: Client}]}
  listen: 127.0.0.1:9753
provision:
  - manifest: /etc/syncd/secret-provider-class.yaml
    target: /run/vault-secrets
    interval: 30s
    owner: root
    group: aidbox
    auth: {method: approle, role_id_file: /etc/syncd/role-id, secret_id_file: /etc/syncd/secret-id}
log: {level: info, format: auto}
"""
MINIMUM = {"BOX_VAULT_CONFIG": "/vc.json"}
HOOK = "{name: a, kind: webhook, url: 'http://x'}"


@pytest.fixture(autouse=True)
def no_default_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This machine's own configuration is not ours."""
    monkeypatch.setattr(configuration, "DEFAULT_FILE", str(tmp_path / "default.yaml"))


def problems_in(
    text: str, tmp_path: Path, environ: dict[str, str] | None = None
) -> list[tuple[str, str]]:
    """Place and message of every problem of a configuration file."""
    file = tmp_path / "syncd.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as raised:
        load(str(file), MINIMUM if environ is None else environ)
    return [(found.where, found.message) for found in raised.value.findings]


class TestGood:
    def test_the_contract_example_is_accepted(self, tmp_path: Path) -> None:
        """What the contract shows is decoded, defaults and all, and fits the schema."""
        file = tmp_path / "syncd.yaml"
        file.write_text(CONTRACT)
        loaded = load(str(file), {})
        assert loaded.watch.settle == 0.05
        assert loaded.watch.max_secret_size == 1 << 20
        assert loaded.api.socket_mode == 0o660
        hook, aidbox = loaded.consumers
        assert isinstance(hook, Webhook)
        assert isinstance(aidbox, Aidbox)
        assert aidbox.actions == ("drop_cache",)
        assert hook.basic_auth == BasicAuth(
            username="syncd", password_file="/run/vault-secrets/syncd"
        )
        jsonschema.validate(parse_yaml(CONTRACT.encode())[0], schema(Settings))

    def test_the_environment_alone_is_enough(self) -> None:
        """The vault config and one consumer are a complete configuration."""
        environ = MINIMUM | {
            "SYNCD_WEBHOOK_URL": "https://x/y",
            "SYNCD_WEBHOOK_SIGNING_KEY_FILE": "/key",
        }
        assert load(None, environ) == Settings(
            vault_config="/vc.json",
            consumers=(Webhook(name="webhook", url="https://x/y", signing_key_file="/key"),),
        )

    def test_an_empty_file_says_nothing(self, tmp_path: Path) -> None:
        """A file with nothing but comments leaves it to the environment."""
        file = tmp_path / "syncd.yaml"
        file.write_text("# nothing\n")
        assert load(str(file), MINIMUM) == Settings(vault_config="/vc.json")


class TestEnvironment:
    def test_every_twin_wins_over_the_file(self, tmp_path: Path) -> None:
        """Each variable replaces its key, and creates sections that are not there."""
        file = tmp_path / "syncd.yaml"
        file.write_text("vault_config: /f\nstate_dir: /f\nwatch: {roots: [/f]}\nlog: {level: info}")
        environ = {
            "BOX_VAULT_CONFIG": "/new",
            "AIDBOX_VAULT_CONFIG": "/old",
            "SYNCD_STATE_DIR": "/state",
            "SYNCD_WATCH_ROOTS": "/a::/b:",
            "SYNCD_SOCKET": "/s.sock",
            "SYNCD_LISTEN": "[::1]:80",
            "SYNCD_LOG_LEVEL": "debug",
            "SYNCD_LOG_FORMAT": "json",
        }
        loaded = load(str(file), environ)
        assert (loaded.vault_config, loaded.state_dir) == ("/new", "/state")
        assert loaded.watch.roots == ("/a", "/b")
        assert (loaded.api.socket, loaded.api.listen) == ("/s.sock", "[::1]:80")
        assert (loaded.log.level, loaded.log.format) == ("debug", "json")

    def test_the_older_name_of_the_vault_config_still_works(self) -> None:
        """`AIDBOX_VAULT_CONFIG` counts where `BOX_VAULT_CONFIG` is not set."""
        assert load(None, {"AIDBOX_VAULT_CONFIG": "/old"}).vault_config == "/old"

    def test_no_socket(self, tmp_path: Path) -> None:
        """Nothing in the place of an address turns it off, as for `listen`; half a path is none."""
        text = "vault_config: /v\napi: {socket: '', listen: ''}\ncredentials: {socket: ''}\n"
        path = tmp_path / "syncd.yaml"
        path.write_text(text)
        assert load(str(path), {}).api.socket == ""
        path.write_text(text.replace("socket: ''", "socket: run/x", 1))
        with pytest.raises(ConfigurationError, match=r"api\.socket: .* must be an absolute path"):
            load(str(path), {})

    def test_an_empty_variable_is_none(self) -> None:
        """What a template left empty is as if it were not set."""
        empty = {"SYNCD_CONFIG": "", "SYNCD_LOG_LEVEL": "", "SYNCD_WATCH_ROOTS": ""}
        assert load(None, MINIMUM | empty) == Settings(vault_config="/vc.json")

    def test_the_webhook_replaces_the_one_of_its_name(self, tmp_path: Path) -> None:
        """Other consumers of the file stay."""
        file = tmp_path / "syncd.yaml"
        file.write_text(f"consumers: [{HOOK}, {HOOK.replace('name: a', 'name: webhook')}]")
        loaded = load(str(file), MINIMUM | {"SYNCD_WEBHOOK_URL": "http://new"})
        assert [(c.name, getattr(c, "url", None)) for c in loaded.consumers] == [
            ("a", "http://x"),
            ("webhook", "http://new"),
        ]

    def test_a_wrong_variable_is_named_itself(self, tmp_path: Path) -> None:
        """Whoever set it looks for the variable, not for a key."""
        file = tmp_path / "syncd.yaml"
        file.write_text("log: {level: info}")
        environ = {
            "BOX_VAULT_CONFIG": "relative",
            "SYNCD_LOG_LEVEL": "loud",
            "SYNCD_WATCH_ROOTS": "/a:b",
            "SYNCD_WEBHOOK_URL": "ftp://x",
        }
        with pytest.raises(ConfigurationError) as raised:
            load(str(file), environ)
        findings = raised.value.findings
        assert {found.source for found in findings} == {"environment"}
        assert {found.where for found in findings} == environ.keys()

    def test_a_signing_key_without_a_url_signs_nothing(self) -> None:
        """Half of a consumer is a mistake."""
        with pytest.raises(ConfigurationError) as raised:
            load(None, MINIMUM | {"SYNCD_WEBHOOK_SIGNING_KEY_FILE": "/key"})
        (found,) = raised.value.findings
        assert (found.source, found.where) == ("environment", "SYNCD_WEBHOOK_SIGNING_KEY_FILE")

    def test_malformed_sections_are_left_to_the_decoder(self, tmp_path: Path) -> None:
        """A section of the wrong type is reported, not overlaid."""
        environ = MINIMUM | {"SYNCD_LOG_LEVEL": "info", "SYNCD_WEBHOOK_URL": "http://x"}
        found = problems_in("log: 3\nconsumers: x", tmp_path, environ)
        assert [where for where, _ in found] == ["log", "consumers"]


class TestWhichFile:
    def test_the_command_line_wins_then_the_variable_then_the_default(self, tmp_path: Path) -> None:
        """Three places, in this order."""
        for name in ("line", "variable", "default"):
            (tmp_path / f"{name}.yaml").write_text(f"vault_config: /{name}")
        environ = {"SYNCD_CONFIG": str(tmp_path / "variable.yaml")}
        assert load(str(tmp_path / "line.yaml"), environ).vault_config == "/line"
        assert load(None, environ).vault_config == "/variable"
        assert load(None, {}).vault_config == "/default"

    @pytest.mark.parametrize(
        ("text", "code", "message"),
        [
            (None, "config-unreadable", "cannot be read: No such file or directory"),
            ("a: [", "config-malformed", "not valid YAML at line 1"),
            ("a: 1\n---\nb: 1", "config-malformed", "holds several documents"),
            ("[]", "config-malformed", "is not a mapping"),
            ("#" * ((1 << 20) + 1), "config-unreadable", "cannot be read: larger than 1 MiB"),
        ],
    )
    def test_one_that_is_no_configuration_says_why(
        self, tmp_path: Path, text: str | None, code: str, message: str
    ) -> None:
        """A file that was asked for must be there and be a mapping."""
        file = tmp_path / "syncd.yaml"
        if text is not None:
            file.write_text(text)
        with pytest.raises(ConfigurationError) as raised:
            load(str(file), MINIMUM)
        (found,) = raised.value.findings
        assert (found.code, found.source) == (code, str(file))
        assert message in found.message

    def test_the_remedy_for_a_wrong_path_names_what_gave_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The option, the variable, or neither; permissions only where they are missing."""
        absent = str(tmp_path / "absent.yaml")
        directory = tmp_path / "directory.yaml"
        directory.mkdir()
        monkeypatch.setattr(configuration, "DEFAULT_FILE", str(directory))
        for file, environ, hint in (
            (absent, {"SYNCD_CONFIG": "/other"}, "correct the path after -c"),
            (None, {"SYNCD_CONFIG": absent}, "correct $SYNCD_CONFIG"),
            (None, {}, "give another path by -c or $SYNCD_CONFIG"),
        ):
            with pytest.raises(ConfigurationError) as raised:
                load(file, environ)
            (found,) = raised.value.findings
            assert (found.code, found.hint) == ("config-unreadable", hint)

    def test_a_relays_file_has_the_same_limit(self, tmp_path: Path) -> None:
        """It is refused, not cut off: what its end says would be lost."""
        file = tmp_path / "relay.yaml"
        file.write_text("#" * ((1 << 20) + 1))
        with pytest.raises(
            ConfigurationError, match=r"larger than 1 MiB; correct the path after -c \["
        ):
            load_relay(str(file), {}, {})

    @pytest.mark.timeout(10)
    def test_a_pipe_that_the_user_gave_is_read_once(self) -> None:
        """`-c <(…)` and `-c /dev/stdin`; at a reload, an empty pipe is not an empty file."""
        with piped("vault_config: /v") as path:
            assert load(path, {}) == Settings(vault_config="/v")
            with pytest.raises(ConfigurationError, match="the pipe is empty; use a file"):
                load(path, MINIMUM)
        assert load(os.devnull, MINIMUM) == Settings(vault_config="/vc.json")

    @pytest.mark.timeout(10)
    def test_a_pipe_has_the_same_limit(self) -> None:
        """It is refused, not cut off."""
        with (
            piped("#" * ((1 << 20) + 1)) as path,
            pytest.raises(ConfigurationError, match="larger than 1 MiB"),
        ):
            load(path, MINIMUM)

    @pytest.mark.timeout(10)
    def test_a_pipe_in_the_default_place_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The user did not give it: the daemon does not wait for a writer."""
        fifo = tmp_path / "fifo.yaml"
        os.mkfifo(fifo)
        monkeypatch.setattr(configuration, "DEFAULT_FILE", str(fifo))
        with pytest.raises(ConfigurationError, match="not a regular file"):
            load(None, MINIMUM)


@contextmanager
def piped(text: str) -> Iterator[str]:
    """The path of a pipe that a thread fills with a text."""
    reader, writer = os.pipe()

    def feed() -> None:
        with suppress(BrokenPipeError), open(writer, "w") as file:
            file.write(text)

    feeding = threading.Thread(target=feed)
    feeding.start()
    try:
        yield f"/dev/fd/{reader}"
    finally:
        os.close(reader)
        feeding.join()


class TestProblems:
    def test_a_bad_name_does_not_hide_a_bad_url(self, tmp_path: Path) -> None:
        """All problems of a section come at once, and those between sections too."""
        broken = "{name: 'a b', kind: webhook, url: ftp://x, timeout: 0, client_cert: /c}"
        text = f"consumers: [{HOOK}, {broken}, {HOOK}, {{kind: webhok}}]\nlog: {{level: inf}}"
        assert problems_in(text, tmp_path) == [
            (
                "consumers[1].name",
                "is a string, but must be a name of letters, digits, ., _ and -, 63 at most",
            ),
            ("consumers[1].url", "is not an http or https URL"),
            ("consumers[1].client_key", "is missing"),
            ("consumers[1].timeout", "must be above zero"),
            ("consumers[3].kind", "must be one of aidbox, exec, nats, webhook"),
            ("log.level", "must be one of debug, error, info, warning"),
            ("consumers[2].name", "is used twice"),
        ]

    def test_all_are_reported_at_once_with_their_key_paths(self, tmp_path: Path) -> None:
        """Unknown keys, wrong types and contradictions of one file come in one report."""
        text = f"""
vault_config: relative
wach: 1
watch: {{rescan_interval: 0, mood: auto}}
consumers: [{HOOK}, {{name: a, kind: webhook, url: ftp://x, zzz: 1}}, {{name: "b\\n", kind: x}}]
api: {{listen: nowhere, socket_mode: 0660}}
log: {{level: loud}}
"""
        places = [where for where, _ in problems_in(text, tmp_path, {})]
        assert places == [
            "vault_config",
            "wach",
            "watch.mood",
            "watch.rescan_interval",
            "consumers[1].zzz",
            "consumers[1].url",
            "consumers[2].kind",
            "api.socket_mode",
            "api.listen",
            "log.level",
            "consumers[1].name",
        ]

    def test_a_missing_vault_config_says_both_ways_to_set_it(self, tmp_path: Path) -> None:
        """The one key without a default."""
        with pytest.raises(ConfigurationError, match="BOX_VAULT_CONFIG"):
            load(None, {})

    def test_subscribers_have_a_uid_of_their_own(self, tmp_path: Path) -> None:
        """Two entries for one uid would leave open which one counts."""
        twice = "[{name: a, uid: 7}, {name: b, uid: 7}]"
        assert problems_in(f"api: {{subscribers: {twice}}}", tmp_path) == [
            ("api.subscribers[1].uid", "is used twice")
        ]

    @pytest.mark.parametrize("account", ["4294967295", "99999999999", "a\\0b", ""])
    def test_accounts_can_exist(self, tmp_path: Path, account: str) -> None:
        """A number that the kernel does not have, or no name at all, is not looked up later."""
        places = ("provision[0].owner", "provision[0].group", "api.socket_group")
        entry = f'manifest: /m, target: /t, owner: "{account}", group: "{account}"'
        text = f'provision: [{{{entry}}}]\napi: {{socket_group: "{account}"}}'
        found = problems_in(text, tmp_path)
        assert sorted(where for where, _ in found) == sorted(places)
        assert all("account" in why or "4294967294" in why for _, why in found)

    def test_a_uid_can_exist(self, tmp_path: Path) -> None:
        """The kernel's largest number bounds it; one more means none."""
        text = "api: {subscribers: [{name: a, uid: 4294967294}, {name: b, uid: 4294967295}]}"
        assert [where for where, _ in problems_in(text, tmp_path)] == ["api.subscribers[1].uid"]

    def test_names_are_used_once(self, tmp_path: Path) -> None:
        """Two consumers of one name would share a mailbox."""
        assert problems_in(f"consumers: [{HOOK}, {HOOK}]", tmp_path) == [
            ("consumers[1].name", "is used twice")
        ]

    @pytest.mark.parametrize("name", ["", "-a", "a b", "a\\n", "é", "a" * 64])
    def test_names_are_plain(self, tmp_path: Path, name: str) -> None:
        """A name stands in metrics, logs and the ledger."""
        text = f'consumers: [{{name: "{name}", kind: webhook, url: "http://x"}}]'
        ((where, message),) = problems_in(text, tmp_path)
        assert where == "consumers[0].name"
        assert "a name of letters" in message

    @pytest.mark.parametrize(
        "url",
        [
            *("", "x", "ftp://x", "http://", "http://x:0", "http://x:99999"),
            *("http://[x", "http://a b/", "http://x\\n/"),
        ],
    )
    def test_urls_are_http(self, tmp_path: Path, url: str) -> None:
        """Anything but a usable http or https URL is refused."""
        text = f'consumers: [{{name: a, kind: webhook, url: "{url}"}}]'
        ((where, message),) = problems_in(text, tmp_path)
        assert (where, message) == ("consumers[0].url", "is not an http or https URL")

    @pytest.mark.parametrize("url", ["http://user@x/", "https://user:hunter2@x/"])
    def test_urls_hold_no_credentials(self, tmp_path: Path, url: str) -> None:
        """A password belongs into a file, and not into the message either."""
        found = problems_in(f"consumers: [{{name: a, kind: webhook, url: '{url}'}}]", tmp_path)
        assert found == [("consumers[0].url", "holds credentials")]

    @pytest.mark.parametrize(
        ("more", "where", "message"),
        [
            (
                "basic_auth: {username: u, password_file: /p}, bearer_token_file: /t",
                "bearer_token_file",
                "contradicts basic_auth",
            ),
            ("client_cert: /c", "client_key", "is missing"),
            ("client_key: /c", "client_cert", "is missing"),
            ("timeout: 0", "timeout", "must be above zero"),
            ("headers: {Host: x}", "headers.Host", "is set by syncd itself"),
            ("headers: {webhook-id: x}", "headers.webhook-id", "is set by syncd itself"),
            ("headers: {'a b': x}", "headers.a b", "is not a valid HTTP header"),
            ('headers: {a: "x\\r\\ny"}', "headers.a", "is not a valid HTTP header"),
            ("headers: {a: é}", "headers.a", "is not a valid HTTP header"),
            ("max_batch: 0", "max_batch", "must be an integer from 1 to 1000"),
            ("max_batch: 1001", "max_batch", "must be an integer from 1 to 1000"),
            ("socket: events.sock", "socket", "must be an absolute path"),
            ("scope: [{id: x}]", "scope[0].resource_type", "is missing"),
        ],
    )
    def test_contradictions_of_a_webhook(
        self, tmp_path: Path, more: str, where: str, message: str
    ) -> None:
        """What a webhook must not say, each at its key."""
        found = problems_in(f"consumers: [{HOOK[:-1]}, {more}}}]", tmp_path)
        assert len(found) == 1
        assert found[0][0] == f"consumers[0].{where}"
        assert message in found[0][1]

    @pytest.mark.parametrize(
        ("changed", "where", "message"),
        [
            ("urls: []", "urls", "is empty"),
            ("actions: []", "actions", "is empty"),
            (
                "actions: [restart]",
                "actions[0]",
                "must be one of audit_event, drop_cache, recreate_destinations, rollout, verify",
            ),
            ("urls: [x]", "urls[0]", "is not an http or https URL"),
            ("urls: ['http://u:hunter2@x']", "urls[0]", "holds credentials"),
            ("urls: ['http://x?a=b']", "urls[0]", "has a query or a fragment"),
            ("urls: ['http://x', 'http://x']", "urls[1]", "is written twice"),
            ("resolve: some", "resolve", "must be one of all, one"),
            ("client_id: ''", "client_id", "is not the id of a Client"),
            ("client_id: 'a:b'", "client_id", "is not the id of a Client"),
            (
                "grant_type: password",
                "grant_type",
                "must be one of basic, client_credentials",
            ),
            ("client_cert: /c", "client_key", "is missing"),
            ("timeout: 0", "timeout", "must be above zero"),
            ("verify_timeout: 0", "verify_timeout", "must be above zero"),
            ("recreate: {drain_timeout: 0}", "recreate.drain_timeout", "must be above zero"),
            ("recreate: {sleep: 1}", "recreate.sleep", "unknown key"),
            ("actions: [rollout]", "rollout", "is missing, and actions has rollout"),
            ("rollout: {name: x}", "rollout", "is not used by any of actions"),
            ("audit_url: http://x", "audit_url", "is not used by any of actions"),
            ("audit_bearer_token_file: /t", "audit_bearer_token_file", "without audit_url"),
            ("types: []", "types", "is empty"),
            ("types: [changes]", "types[0]", "must be one of"),
        ],
    )
    def test_contradictions_of_aidbox(
        self, tmp_path: Path, changed: str, where: str, message: str
    ) -> None:
        """Each at its own key."""
        options = {
            "name": "a",
            "kind": "aidbox",
            "urls": "['http://x/base']",
            "client_id": "c",
            "client_secret_file": "/s",
            "actions": "[drop_cache]",
        }
        key, _, value = changed.partition(": ")
        written = ", ".join(f"{k}: {v}" for k, v in {**options, key: value}.items())
        ((found, said),) = problems_in(f"consumers: [{{{written}}}]", tmp_path)
        assert found == f"consumers[0].{where}"
        assert message in said

    def test_versions_that_installations_compare(self, tmp_path: Path) -> None:
        """Without one key every pod would begin a rollout of its own."""
        consumer = (
            "{name: a, kind: aidbox, urls: ['http://x'], client_id: c, client_secret_file: /s,"
            " actions: [rollout], rollout: {name: aidbox, secrets: [password]}}"
        )
        ((where, said),) = problems_in(f"consumers: [{consumer}]", tmp_path)
        assert where == "consumers[0].rollout.secrets"
        assert said.startswith("needs fingerprint_key_file")

    @pytest.mark.parametrize(
        ("server", "message"),
        [("x", "is not an http or https URL"), ("https://u:p@x", "holds credentials")],
    )
    def test_an_api_server_that_is_none(self, tmp_path: Path, server: str, message: str) -> None:
        """At its key."""
        ((where, said),) = problems_in(f"kubernetes: {{server: '{server}'}}", tmp_path)
        assert (where, said) == ("kubernetes.server", message)

    @pytest.mark.parametrize("action", ["verify", "recreate_destinations"])
    def test_actions_that_a_relay_cannot_do(self, action: str) -> None:
        """They need the mount, or the changes of one installation."""
        consumer = Aidbox(
            name="a",
            urls=("http://x",),
            client_id="c",
            client_secret_file="/s",
            actions=(action,),  # type: ignore[arg-type]
        )
        relay = RelaySource(urls=("nats://x",), subject="syncd.>")
        settings = RelaySettings(relay=relay, consumers=(consumer,))
        (problem,) = check_section(settings, ())
        assert problem.path == ("consumers", 0, "actions")
        assert problem.message == f"{action} is not possible in a relay"

    def test_values_leave_only_from_roots_that_are_named(self, tmp_path: Path) -> None:
        """Derived roots come from the vault config, so its writer could name any file."""
        aidbox = (
            "{name: a, kind: aidbox, urls: ['http://x'], client_id: c, client_secret_file: /s,"
            " actions: [verify]}"
        )
        grant = "{unit: a.service, credential: a, secret: a}"
        for text, sender in (
            (f"consumers: [{aidbox}]", "consumers[0].actions"),
            (f"credentials: {{grants: [{grant}]}}", "credentials.grants"),
        ):
            ((where, said),) = problems_in(text, tmp_path)
            assert where == "watch.roots"
            assert said == f"is required, because {sender} let values of secrets out"
            (tmp_path / "good.yaml").write_text(f"{text}\nwatch: {{roots: [/run/vault-secrets]}}")
            assert load(str(tmp_path / "good.yaml"), MINIMUM).watch.roots == ("/run/vault-secrets",)

    @pytest.mark.parametrize("listen", ["x", ":80", "x:", "x:0", "x:65536", "x:-1", "x:²"])
    def test_listen_is_host_and_port(self, tmp_path: Path, listen: str) -> None:
        """Probes and metrics need both."""
        assert problems_in(f"api: {{listen: '{listen}'}}", tmp_path) == [
            ("api.listen", "is not host:port")
        ]


class TestExamine:
    def test_keeps_what_a_linter_can_go_on_with(self, tmp_path: Path) -> None:
        """With a problem elsewhere, the vault config and the watch section are still known."""
        file = tmp_path / "syncd.yaml"
        file.write_text("vault_config: /a\nwatch: {roots: [/r]}\nlog: 1")
        loaded, findings = examine(str(file), {})
        assert [found.where for found in findings] == ["log"]
        assert loaded is not None
        assert (loaded.vault_config, loaded.watch.roots) == ("/a", ("/r",))

    def test_goes_on_with_the_environment_after_an_unreadable_file(self) -> None:
        """The variable alone may name the vault config."""
        loaded, findings = examine("/none", MINIMUM)
        assert [found.code for found in findings] == ["config-unreadable"]
        assert loaded == Settings(vault_config="/vc.json")


@pytest.mark.parametrize(
    "url", ["http://${HOST}/x", "http://$HOST:1", "http://{{host}}", "http://a<b>"]
)
def test_a_host_with_characters_that_no_host_has(url: str, tmp_path: Path) -> None:
    """A placeholder that nobody filled in is not a host, and is named."""
    consumer = f"consumers: [{{name: a, kind: webhook, url: '{url}'}}]"
    ((where, message),) = problems_in(consumer, tmp_path)
    assert where == "consumers[0].url"
    assert message.startswith("is not an http or https URL")
    assert message.endswith(": it holds a placeholder, which syncd does not replace") is (
        "${" not in url and "<" not in url
    )


def test_a_relay_is_recognised_by_its_section(tmp_path: Path) -> None:
    """For a linter that is given any configuration."""
    file = tmp_path / "c.yaml"
    file.write_text(json.dumps({"relay": {"urls": ["nats://a"], "subject": "s.>"}, "x": 1}))
    assert [found.where for found in examine_any(str(file), {})[1]] == ["x"]
    file.write_text(json.dumps({"relay": {"urls": ["nats://a"], "subject": "s.>"}}))
    assert isinstance(examine_any(str(file), {"BOX_VAULT_CONFIG": "/v"})[0], settings.RelaySettings)
    file.write_text(json.dumps({"relay": {}, "vault_config": "/v"}))
    assert [found.where for found in examine_any(str(file), {})[1]] == ["relay"]


def test_credential_files_are_all_files_that_syncd_reads_for_itself(tmp_path: Path) -> None:
    """Each with the key path that names it, wherever in the configuration."""
    file = tmp_path / "syncd.yaml"
    file.write_text(CONTRACT)
    assert credential_files(load(str(file), {})) == [
        ("consumers[0].signing_key_file", "/etc/syncd/webhook.key"),
        ("consumers[0].basic_auth.password_file", "/run/vault-secrets/syncd"),
        ("consumers[0].ca_file", "/etc/ssl/internal-ca.pem"),
        ("consumers[1].client_secret_file", "/run/vault-secrets/syncd-client"),
        ("provision[0].auth.role_id_file", "/etc/syncd/role-id"),
        ("provision[0].auth.secret_id_file", "/etc/syncd/secret-id"),
    ]


def test_a_scope_list_is_a_grant() -> None:
    """Without a list everything is granted, with an empty one nothing."""
    assert grant(None).sees([])
    assert not grant(()).sees([Scope("Client")])
    assert grant((settings.ScopeSettings(resource_type="Client"),)).sees([Scope("Client", "a")])


@tuned(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, len(CONTRACT)), st.sampled_from("{}[]:-,x\n 1'~&*!"))))
def test_a_mutated_configuration_is_loaded_or_refused(
    tmp_path: Path, mutations: list[tuple[int, str]]
) -> None:
    """However the file is bent, it is a configuration or a list of findings, one line each."""
    text = CONTRACT
    for place, character in mutations:
        text = text[:place] + character + text[place + 1 :]
    file = tmp_path / "syncd.yaml"
    file.write_text(text)
    loaded, findings = examine(str(file), {})
    assert loaded is not None or findings
    assert all(str(found).isprintable() for found in findings)
    if findings:
        with pytest.raises(ConfigurationError):
            load(str(file), {})


NATS = {"name": "bus", "kind": "nats", "urls": ["nats://h:4222"]}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, []),
        ({"urls": ["tls://a:4222", "nats://b"]}, []),
        ({"urls": []}, ["urls: is empty"]),
        ({"urls": ["http://h"]}, ["urls[0]: is not the URL"]),
        ({"urls": ["nats://h", "nats://h/path"]}, ["urls[1]: is not the URL"]),
        ({"urls": ["nats://h:x"]}, ["urls[0]: is not the URL"]),
        ({"urls": ["nats://u:p@h"]}, ["urls[0]: holds credentials"]),
        ({"user": "u"}, ["password_file: is missing"]),
        ({"password_file": "/p"}, ["user: is missing"]),
        (
            {"user": "u", "password_file": "/p", "token_file": "/t"},
            ["token_file: contradicts user"],
        ),
        ({"client_cert": "/c"}, ["client_key: is missing"]),
        ({"timeout": 0}, ["timeout: must be above zero"]),
        ({"subject": "a.<b>"}, ["subject: has an unknown placeholder"]),
        ({"subject": "a.>"}, ["subject: has a wildcard"]),
        ({"content_mode": "batch"}, ["content_mode: "]),
    ],
)
def test_a_consumer_of_kind_nats(
    tmp_path: Path, more: dict[str, object], expected: list[str]
) -> None:
    """Each problem is reported at its key."""
    file = tmp_path / "syncd.yaml"
    file.write_text(json.dumps({"vault_config": "/v", "consumers": [{**NATS, **more}]}))
    _, findings = examine(str(file), {})
    assert len(findings) == len(expected), findings
    assert all(
        f"consumers[0].{text}" in str(found) for found, text in zip(findings, expected, strict=True)
    )


def test_a_relays_configuration(tmp_path: Path) -> None:
    """The command line wins over the file; variables about a mount are ignored."""
    file = tmp_path / "relay.yaml"
    file.write_text(json.dumps({"relay": {"urls": ["nats://a"], "subject": "s.>"}}))
    environ = {
        "BOX_VAULT_CONFIG": "/v",
        "SYNCD_WATCH_ROOTS": "/r",
        "SYNCD_INSTANCE": "here",
        "SYNCD_WEBHOOK_URL": "http://h",
    }
    found = load_relay(str(file), {"urls": ["nats://b"], "durable": "d"}, environ)
    assert (found.relay.urls, found.relay.subject, found.relay.durable) == (
        ("nats://b",),
        "s.>",
        "d",
    )
    assert (found.instance, found.state_dir) == ("here", "/var/lib/syncd-relay")
    assert [consumer.name for consumer in found.consumers] == ["webhook"]
    assert credential_files(found) == []


def test_a_relays_file_without_a_mount_is_blamed_for_its_own_keys(tmp_path: Path) -> None:
    """A key that a relay does not have is reported in the file, also if a variable has its name."""
    file = tmp_path / "relay.yaml"
    relay = {"urls": ["nats://a"], "subject": "s.>"}
    file.write_text(json.dumps({"vault_config": "/v", "relay": relay}))
    with pytest.raises(ConfigurationError) as raised:
        load_relay(str(file), {}, {"BOX_VAULT_CONFIG": "/v"})
    assert [(found.source, found.where) for found in raised.value.findings] == [
        (str(file), "vault_config")
    ]


@pytest.mark.parametrize("name", ["", "a b", "x" * 254, "naïve"])
def test_an_instance_is_part_of_a_uri(tmp_path: Path, name: str) -> None:
    """Visible ASCII, 253 characters at most."""
    file = tmp_path / "syncd.yaml"
    file.write_text(json.dumps({"vault_config": "/v", "instance": name}))
    _, findings = examine(str(file), {})
    assert ["instance" in str(found) for found in findings] == [True]


@pytest.mark.parametrize(
    "variable",
    ["BOX_VAULT_CONFIG", "SYNCD_SOCKET", "SYNCD_WEBHOOK_URL", "SYNCD_WEBHOOK_SIGNING_KEY_FILE"],
)
def test_a_variable_that_is_not_utf8_is_named(variable: str) -> None:
    """The environment may hold any bytes; no event, row or answer could hold them."""
    environ = {"BOX_VAULT_CONFIG": "/v.json", "SYNCD_WEBHOOK_URL": "http://h/"}
    _, findings = examine("/dev/null", {**environ, variable: "/caf\udce9"})
    assert (variable, "is not UTF-8") in [(item.where, item.message) for item in findings]


def test_an_option_of_a_relay_that_is_not_utf8_is_named() -> None:
    """Under the name of the option."""
    given = {"urls": ["nats://n"], "subject": "s.>", "credentials_file": "/caf\udce9"}
    with pytest.raises(ConfigurationError, match="--credentials-file: is not UTF-8; use a path"):
        load_relay("/dev/null", given, {})


def test_a_grant_for_a_unit_without_its_type(tmp_path: Path) -> None:
    """The remedy is the name with its type, not quotes."""
    file = tmp_path / "c.yaml"
    grant_ = {"unit": "my-app", "credential": "a/b", "secret": "s"}
    file.write_text(json.dumps({"vault_config": "/v", "credentials": {"grants": [grant_]}}))
    unit, credential, *_ = examine(str(file), {})[1]
    assert "such as .service" in unit.message
    assert unit.hint == "write it like my-app.service"
    assert credential.hint == "write it like client-secret"
