"""syncd.lint.check: one run names every mistake in configuration, vault config and mount."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest
import trustme
from support.pem import certificate, private_key
from support.world import CANARY, World

from syncd.config.settings import Settings
from syncd.core.findings import CODES, Finding
from syncd.core.model import Entry, Scope
from syncd.core.mountinfo import Mount
from syncd.lint import files
from syncd.lint.check import run_checks
from syncd.lint.files import check_files
from syncd.lint.render import as_json, as_text, exit_code
from syncd.mount.snapshot import Snapshot
from syncd.mount.verdict import unreadable
from syncd.system.files import read_file

GENERATION = "..2026_11_23_20_40_28.123456789"
_ELSEWHERE = (
    *("credential-", "grant-", "listen-", "manifest-", "provision-", "subscriber"),
    *("address-unknown", "command-", "consumer-unreachable", "group-foreign"),
    *("scope-unmatched", "state-unusable", "unit-unusable", "user-unknown"),
    *("kubernetes-unusable", "replicas-unlisted", "rollout-unknown"),
    "value-uninterpolated",
    *("aidbox-", "destination-", "entry-", "reference-", "secret-stored"),
)


class Place(World):
    """A world and a directory of plain files, each without a mistake at first.

    Files hold the canary, so that whatever quotes a secret is noticed.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.plain = directory / "plain"
        self.plain.mkdir()
        self.entries: dict[str, object] = {}

    def add(self, name: str, content: bytes = CANARY) -> str:
        """Adds a file to the mount."""
        self.publish({name: content})
        return f"{self.mount}/{name}"

    def write(self, name: str, content: bytes = CANARY, mode: int = 0o600) -> str:
        """Adds a plain file."""
        file = self.plain / name
        file.write_bytes(content)
        file.chmod(mode)
        return str(file)

    def enter(self, path: str, name: str | None = None, scope: object = None) -> str:
        """Adds an entry to the vault config; gives its place."""
        name = name or f"e{len(self.entries)}"
        scope = scope or {"resource_type": "Client"}
        self.entries[name] = {"path": path, "scope": scope}
        return f"$.secret.{name}.path"

    def check(self, config: str | None = None) -> list[Finding]:
        """Writes the vault config and checks everything."""
        if not os.path.exists(self.vault_config):
            self.write_vault_config(json.dumps({"secret": self.entries}))
        if config is None:
            return run_checks(None, {"BOX_VAULT_CONFIG": self.vault_config})
        with open(self.config, "w") as file:
            file.write(f"vault_config: {self.vault_config}\n{config}")
        return run_checks(self.config, {})

    def told(self, config: str | None = None) -> list[tuple[str, str]]:
        """Codes and places of all findings."""
        return [(found.code, found.where or found.source) for found in self.check(config)]


@pytest.fixture
def world(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_world_without_mistakes_has_no_findings(world: Place) -> None:
    """A CSI mount with nested paths and a private plain file are fine."""
    world.enter(world.add("a"))
    world.enter(world.add("db/password"))
    world.enter(world.write("b"))
    assert world.check() == []


class TestFiles:
    def test_each_file_that_cannot_be_used_says_why(self, world: Place) -> None:
        """Every way in which a path does not lead to a usable file has its own code."""
        plain = world.plain
        os.mkfifo(plain / "fifo")
        (plain / "directory").mkdir()
        (plain / "dangling").symlink_to("nothing")
        (plain / "loop").symlink_to("loop")
        (plain / "escape").symlink_to("/etc/hostname")
        big = world.write("big", b"x" * (1 << 20) + b"x")
        expected = [
            ("secret-missing", world.enter(str(plain / "none"))),
            ("secret-missing", world.enter(str(Path(world.mount) / "none"))),
            ("secret-not-a-file", world.enter(str(plain / "fifo"))),
            ("secret-not-a-file", world.enter(str(plain / "directory"))),
            ("secret-link-dangling", world.enter(str(plain / "dangling"))),
            ("secret-link-loop", world.enter(str(plain / "loop"))),
            ("secret-outside-roots", world.enter(str(plain / "escape"))),
            ("secret-too-large", world.enter(big)),
            ("secret-not-a-file", world.enter("/dev/null", "device")),
        ]
        roots = f"watch: {{roots: [{world.plain}, {world.mount}, /dev]}}"
        told = [item for item in world.told(roots) if item[0] != "file-unmapped"]
        assert sorted(told) == sorted(expected)

    def test_permissions_on_a_mount_are_its_publishers(self, world: Place) -> None:
        """A CSI mount's files belong to root, and a `chmod` would not last: the class decides."""
        found = [world.add("a"), world.add("db/password"), world.write("b")]
        denied = unreadable("secret-unreadable", "is not readable for uid 65532")
        names = [str(number) for number in range(len(found))]
        entries = {
            name: Entry(name, path, (Scope("Client"),))
            for name, path in zip(names, found, strict=True)
        }
        snapshot = Snapshot(observations=dict.fromkeys(names, denied))
        settings = Settings(vault_config=world.vault_config)
        hints = [item.hint for item in check_files(settings, entries, snapshot)]
        for hint in hints[:2]:
            assert "filePermission" in hint
            assert "chmod" not in hint
        assert hints[2] == "let syncd's user read the file and enter its directories"

    def test_a_path_outside_the_configured_roots_is_told(self, world: Place) -> None:
        """A root that is configured is a limit."""
        place = world.enter(world.write("a"))
        roots = f"watch: {{roots: [{world.mount}]}}"
        assert world.told(roots) == [("secret-outside-roots", place)]

    def test_a_mount_that_cannot_be_opened_is_the_subject_of_the_message(
        self, world: Place
    ) -> None:
        """The path of one of its secrets is in the finding's place, and not blamed."""
        (world.plain / "loop").symlink_to("loop")
        root = world.plain / "loop"
        world.enter(str(root / "a"))
        (found,) = world.check(f"watch: {{roots: [{root}]}}")
        assert found.code == "secret-link-loop"
        assert found.message == f"the mount {root} is a loop of symlinks"

    def test_a_mount_that_does_not_exist_is_named_once(self, world: Place) -> None:
        """The message begins with the mount, without the path of the secret before it."""
        root = world.plain / "gone"
        world.enter(str(root / "a"))
        (found,) = world.check(f"watch: {{roots: [{root}]}}")
        assert found.message == f"the mount {root} does not exist"

    def test_a_file_that_may_not_be_read_is_told(
        self, world: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A refusal by the kernel is told; root is refused nothing, so the refusal is staged."""
        from syncd.system import beneath

        def refuse(_directory: int, _path: str) -> int:
            raise PermissionError(13, "Permission denied")

        place = world.enter(world.write("a"))
        monkeypatch.setattr(beneath, "open_file", refuse)
        assert world.told() == [("secret-unreadable", place)]

    def test_a_trailing_newline_is_told_in_either_layout(self, world: Place) -> None:
        """Nobody knows whether Aidbox trims."""
        first = world.enter(world.add("a", b"x\n"))
        second = world.enter(world.write("b", b"x\n"))
        assert sorted(world.told()) == [("secret-newline", first), ("secret-newline", second)]

    def test_an_empty_file_is_told_once_in_either_layout(self, world: Place) -> None:
        """An empty secret is hardly meant."""
        first = world.enter(world.add("a", b""))
        second = world.enter(world.write("b", b""))
        assert sorted(world.told()) == [("secret-empty", first), ("secret-empty", second)]

    def test_a_world_readable_file_is_told_outside_a_csi_mount_only(self, world: Place) -> None:
        """The CSI driver writes 0644 into a mount that others do not see."""
        world.enter(world.add("a"))
        place = world.enter(world.write("b", mode=0o644))
        assert world.told() == [("secret-world-readable", place)]


class TestMount:
    def test_two_names_on_one_file_are_told_however_they_get_there(self, world: Place) -> None:
        """Equal paths, and paths that a symlink makes equal, are one file."""
        path = world.write("a")
        (world.plain / "alias").symlink_to("a")
        world.enter(path)
        equal = world.enter(path)
        linked = world.enter(str(world.plain / "alias"))
        assert world.told() == [("path-shared", equal), ("path-shared", linked)]

    def test_files_that_no_entry_names_are_told(self, world: Place) -> None:
        """Unmapped files are found in both layouts and in subdirectories."""
        world.enter(world.add("a"))
        world.enter(world.write("b"))
        (world.plain / "sub").mkdir()
        unmapped = [world.add("stray"), world.add("db/stray")]
        unmapped += [world.write("stray"), world.write("sub/stray")]
        assert sorted(world.told()) == sorted(("file-unmapped", path) for path in unmapped)

    def test_files_that_syncd_itself_uses_are_mapped(self, world: Place) -> None:
        """A consumer's password and the vault config may lie in the mount."""
        world.enter(world.add("a"))
        password = world.add("syncd")
        auth = f"{{username: u, password_file: {password}}}"
        consumer = f"{{name: a, kind: webhook, url: 'https://x', basic_auth: {auth}}}"
        assert world.check(f"consumers: [{consumer}]") == []

    def test_whatever_the_configuration_names_is_mapped(self, world: Place) -> None:
        """Credentials, sockets, manifests and their certificates, also beside a mistake."""
        plain = world.plain
        world.enter(world.write("a"))
        for name in ("token", "key", "role", "manifest.yaml", "ca.pem", "client.pem", "client.key"):
            world.write(name, b"x")
        (plain / "state").mkdir()
        world.write("state/ledger.sqlite3")
        parameters = {
            "vaultAddress": "https://vault",
            "vaultCACertPath": f"{plain}/ca.pem",
            "vaultTLSClientCertPath": f"{plain}/client.pem",
            "vaultTLSClientKeyPath": f"{plain}/client.key",
            "objects": "- {objectName: o, secretPath: s, secretKey: k}",
        }
        manifest = {
            "apiVersion": "secrets-store.csi.x-k8s.io/v1",
            "kind": "SecretProviderClass",
            "metadata": {"name": "m"},
            "spec": {"provider": "vault", "parameters": parameters},
        }
        world.write("manifest.yaml", json.dumps(manifest).encode())
        auth = {"method": "approle", "role_id_file": f"{plain}/role"}
        hook = {"kind": "webhook", "url": "http://127.0.0.1", "socket": f"{plain}/receiver.sock"}
        config: dict[str, object] = {
            "state_dir": f"{plain}/state",
            "consumers": [{"name": "a", "bearer_token_file": f"{plain}/token", **hook}],
            "provision": [{"manifest": f"{plain}/manifest.yaml", "target": "/run/x", "auth": auth}],
        }
        environ = {
            "SYNCD_WEBHOOK_URL": "http://127.0.0.1",
            "SYNCD_WEBHOOK_SIGNING_KEY_FILE": f"{plain}/key",
            "BOX_VAULT_CONFIG": world.vault_config,
        }
        world.check()  # writes the vault config
        with socket.socket(socket.AF_UNIX) as receiver:
            receiver.bind(f"{plain}/receiver.sock")
            for more in ({}, {"log": {"level": "loud"}}):
                Path(world.config).write_text(json.dumps({**config, **more}))
                codes = [item.code for item in run_checks(world.config, environ)]
                assert ("config-invalid" in codes) is bool(more)
                assert "file-unmapped" not in codes

    def test_many_unmapped_files_are_summed_up(self, world: Place) -> None:
        """A root as wide as a home directory does not flood the terminal."""
        world.enter(world.write("a"))
        for number in range(30):
            world.write(f"stray{number}")
        findings = world.check()
        assert len(findings) == 21
        assert "and 10 more files" in findings[-1].message

    def test_a_mount_that_does_not_follow_a_publisher_is_told(
        self, world: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A subPath mount of a secret, or of the vault config, is found in the mount table."""
        path = world.write("a")
        place = world.enter(path)
        frozen = (Mount("/", "/"), Mount(f"/{GENERATION}/a", path, id=1, parent=0))
        monkeypatch.setattr(files, "mounts", lambda: frozen)
        assert world.told() == [("mount-frozen", place)]
        frozen = (Mount("/", "/"), Mount("/vc.json", world.vault_config, id=1, parent=0))
        assert world.told() == [("mount-frozen", world.vault_config)]

    @pytest.mark.parametrize(
        ("root", "claim"),
        [
            ("/a", "a file renamed into its place does not show"),
            (f"/{GENERATION}/a", "does not show later ones"),
            ("/a//deleted", "was removed, so it shows no new file"),
        ],
    )
    def test_a_frozen_mount_is_claimed_to_be_no_more_than_it_is(
        self, world: Place, monkeypatch: pytest.MonkeyPatch, root: str, claim: str
    ) -> None:
        """A file that is written in place does show in a mount of the file."""
        path = world.write("a")
        world.enter(path)
        monkeypatch.setattr(files, "mounts", lambda: (Mount(root, path),))
        (found,) = world.check()
        assert claim in found.message
        assert "never" not in f"{found.message} {found.hint}"


class TestCredentials:
    def test_every_credential_that_cannot_be_used_is_told(self, world: Place) -> None:
        """Each file is read as it will be for use; a wrong one is named by its key path."""
        world.enter(world.add("a"))
        wrong, empty = world.write("wrong"), world.write("empty", b"")
        config = f"""
consumers:
  - name: a
    kind: webhook
    url: https://x
    signing_key_file: {wrong}
    basic_auth: {{username: u, password_file: {empty}}}
    ca_file: {wrong}
    client_cert: {wrong}
    client_key: {wrong}
  - {{name: b, kind: webhook, url: "https://x", bearer_token_file: {world.plain}/none}}
"""
        assert world.told(config) == [
            ("credential-malformed", "consumers[0].signing_key_file"),
            ("credential-unreadable", "consumers[0].basic_auth.password_file"),
            ("credential-malformed", "consumers[0].ca_file"),
            ("credential-malformed", "consumers[0].client_cert"),
            ("credential-unreadable", "consumers[1].bearer_token_file"),
        ]

    def test_good_credentials_are_not_remarked_upon(self, world: Place) -> None:
        """A well-formed key, token, CA and client certificate pass."""
        world.enter(world.add("a"))
        authority = trustme.CA()
        client = authority.issue_cert("syncd.example")
        ca = world.write("ca", authority.cert_pem.bytes())
        cert = world.write("cert", client.cert_chain_pems[0].bytes())
        key = world.write("key", client.private_key_pem.bytes())
        signing, token = world.write("signing", b"whsec_" + b"QUJD" * 8), world.write("token")
        config = f"""
consumers:
  - name: a
    kind: webhook
    url: https://x
    signing_key_file: {signing}
    bearer_token_file: {token}
    ca_file: {ca}
    client_cert: {cert}
    client_key: {key}
"""
        assert world.check(config) == []


class TestInputs:
    @pytest.mark.parametrize("text", ["", "{", "\udcff"])
    def test_a_vault_config_that_is_not_json_stops_the_check(self, world: Place, text: str) -> None:
        """There is nothing to go on with, and that is exit code 2."""
        Path(world.vault_config).write_bytes(text.encode(errors="surrogateescape"))
        findings = world.check()
        assert [found.code for found in findings] == ["vault-config-malformed"]
        assert exit_code(findings, strict=False) == 2

    @pytest.mark.parametrize("kind", ["missing", "directory", "fifo"])
    def test_a_vault_config_that_cannot_be_read_stops_the_check(
        self, world: Place, kind: str
    ) -> None:
        """A FIFO is not waited for."""
        path = str(world.plain / "x")
        if kind == "directory":
            os.mkdir(path)
        elif kind == "fifo":
            os.mkfifo(path)
        findings = run_checks(None, {"BOX_VAULT_CONFIG": path})
        assert [found.code for found in findings] == ["vault-config-unreadable"]
        assert exit_code(findings, strict=False) == 2

    def test_a_vault_config_of_absurd_size_is_not_read(self, world: Place) -> None:
        """A sparse terabyte does not end up in memory."""
        with open(world.vault_config, "wb") as file:
            file.truncate(1 << 40)
        assert world.told() == [("vault-config-unreadable", world.vault_config)]

    def test_a_configuration_that_cannot_be_read_is_exit_code_2(self, world: Place) -> None:
        """Missing or malformed, with nothing else known, that is all there is to tell."""
        for text, code in ((None, "config-unreadable"), ("a: [", "config-malformed")):
            if text:
                Path(world.config).write_text(text)
            findings = run_checks(world.config, {})
            assert [found.code for found in findings] == [code]
            assert exit_code(findings, strict=False) == 2

    def test_the_check_goes_on_after_errors_in_the_configuration(self, world: Place) -> None:
        """A wrong key does not hide what is wrong with the vault config and its files."""
        place = world.enter(str(world.plain / "none"))
        told = world.told("log: {level: loud}\nwatch: {settle: 1x}")
        assert told == [
            ("config-invalid", "log.level"),
            ("config-invalid", "watch.settle"),
            ("secret-missing", place),
        ]

    def test_without_a_vault_config_there_is_nothing_more_to_check(self) -> None:
        """The missing key is an error like others."""
        findings = run_checks(None, {"SYNCD_CONFIG": "/dev/null"})
        assert [(found.code, found.where) for found in findings] == [
            ("config-invalid", "vault_config")
        ]
        assert exit_code(findings, strict=False) == 1


def test_a_grant_of_no_secret(world: Place) -> None:
    """A unit's credential that the vault config has no secret for is an error."""
    world.write("a", b"x", 0o600)
    world.enter(str(world.plain / "a"), "a")
    grants = ", ".join(
        f"{{unit: x.service, credential: {name}, secret: {name}}}" for name in ("a", "b")
    )
    found = [
        item
        for item in world.check(
            f"credentials: {{grants: [{grants}]}}\nwatch: {{roots: [{world.plain}]}}"
        )
        if item.code == "grant-unknown"
    ]
    assert [(item.where, item.is_error) for item in found] == [
        ("credentials.grants[1].secret", True)
    ]


def test_a_rollout_for_no_secret(world: Place) -> None:
    """A mistyped name would roll nothing out, and nobody would notice."""
    world.write("client-secret", b"x", 0o600)
    world.enter(str(world.plain / "client-secret"), "client-secret")
    consumer = (
        "{name: box, kind: aidbox, urls: [http://box], client_id: c, client_secret_file: /c,"
        " actions: [rollout], rollout: {name: aidbox, secrets: [client-secret, client-secrets]}}"
    )
    key = "fingerprint_key_file: /key"
    (found,) = [
        item
        for item in world.check(f"{key}\nconsumers: [{consumer}]")
        if item.code == "rollout-unknown"
    ]
    assert (found.where, found.is_error) == ("consumers[0].rollout.secrets[1]", True)
    assert "client-secret" in found.hint


def test_a_subscriber_with_the_uid_of_unmapped_users(world: Place) -> None:
    """Wherever the check runs, the daemon may run in a user namespace."""
    world.write("a", b"x", 0o600)
    world.enter(str(world.plain / "a"), "a")
    entries = "{name: app, uid: 1000}, {name: other, uid: 65534}"
    (found,) = world.check(f"api: {{socket: /run/x.sock, subscribers: [{entries}]}}")
    assert (found.code, found.where) == ("subscriber-unmapped", "api.subscribers[1].uid")
    assert not found.is_error


def test_every_mistake_is_named_in_one_run(world: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vault config and a mount with all mistakes at once hide none of them, nor show a value."""
    plain = world.plain
    for name, mode in (("a", 0o644), ("b", 0o600), ("frozen", 0o600), ("stray", 0o600)):
        world.write(name, CANARY + b"\n", mode)
    world.write("empty", b"")
    os.mkfifo(plain / "fifo")
    (plain / "dangling").symlink_to("nothing")
    (plain / "loop").symlink_to("loop")
    (plain / "escape").symlink_to("/etc/hostname")
    world.write("big", b"x" * (1 << 20) + b"x")
    monkeypatch.setattr(files, "mounts", lambda: (Mount("/x", str(plain / "frozen")),))
    for name in ("b", "frozen", "empty", "fifo", "dangling", "loop", "escape", "big", "missing"):
        world.enter(str(plain / name), name)
    contents = {
        "expired": certificate(not_after=1e9),
        "expiring": certificate(not_after=time.time() + 86400.0),
        "crt": certificate(0),
        "key": private_key(1),
        "damaged": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    }
    for name, content in contents.items():
        world.write(name, content, 0o600)
        id_ = "idp" if name in ("crt", "key") else name
        world.enter(str(plain / name), name, {"resource_type": "IdentityProvider", "id": id_})
    world.enter(str(plain / "b"), "same")
    world.enter(str(plain / "a"), "list", ["Client/c", "TokenIntrospector"])
    world.enter(str(plain / "b"), "type", {"resource_type": "client", "id": "Client/x"})
    world.enter("relative", "relative")
    world.enter(f"{plain}/../a", "dots")
    world.enter(f"{plain}/\0", "nul")
    world.entries |= {"": {}, "none": None, "typo": {"path": 1, "scope": {"resourceType": "x"}}}
    world.enter(str(plain / "b"), "nobody", [""])
    world.enter(str(plain / "${NAME}"), "unfilled")
    text = json.dumps({"secret": world.entries})
    text = text.replace('{"secret": {', '{"secret": {"same": 0, ').replace(
        '"path": 1', '"path": 1, "path": 2'
    )
    world.write_vault_config(text)
    extra = f"watch: {{extra: [{{name: b, path: {plain}/other}}]}}"
    findings = world.check(f"consumers: [{{name: a, kind: webhook, url: x}}]\n{extra}")
    expected = {code for code in CODES if not code.startswith(_ELSEWHERE)} - {
        "config-malformed",
        "config-unreadable",
        "vault-config-empty",
        "vault-config-malformed",
        "vault-config-unreadable",
        "secret-unreadable",
        "mount-unreadable",
        "resource-short",
        "watch-rescan-only",
    }
    assert {found.code for found in findings} == expected
    documents = as_text(findings), as_json(findings)
    for code in expected:
        assert all(code in document for document in documents)
    assert CANARY.decode() not in "".join(documents)
    assert exit_code(findings, strict=False) == 1


@pytest.mark.parametrize("vault_config", [None, "{"])
def test_a_manifest_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vault_config: str | None
) -> None:
    """So that all findings are about one content; its own are reported once."""
    place = Place(tmp_path)
    read = []

    def count(path: str, limit: int) -> tuple[bytes, os.stat_result]:
        read.append(path)
        return read_file(path, limit)

    monkeypatch.setattr("syncd.provision.plan.read_file", count)
    manifest = place.write("manifest.yaml", b"kind: Deployment\n")
    if vault_config is not None:
        place.write_vault_config(vault_config)
    found = place.check(f"provision: [{{manifest: {manifest}, target: /run/x}}]")
    assert read == [manifest]
    assert [item.code for item in found if item.source == manifest].count("manifest-malformed") == 1
