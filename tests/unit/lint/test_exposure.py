"""What others could read: clear text, open ports, open files; and what is exempt."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.documents import commands

from syncd.config.settings import (
    Aidbox,
    Api,
    BasicAuth,
    ConsumerSettings,
    Nats,
    Settings,
    Webhook,
)
from syncd.config.validation import check_section
from syncd.core.decode import decode
from syncd.core.yaml_text import parse_yaml
from syncd.lint.exposure import check_exposure
from syncd.provision.plan import plan_provision

ROOT = Path(__file__).parents[3]


def found(
    *consumers: ConsumerSettings, environ: dict[str, str] | None = None, **more: Any
) -> list[tuple[str, str, str]]:
    settings = Settings(vault_config="/v.json", state_dir="/nowhere", consumers=consumers, **more)
    findings = check_exposure(settings, "syncd.yaml", environ or {})
    return [(item.code, item.where, item.message) for item in findings]


def sent(*consumers: ConsumerSettings) -> list[tuple[str, str]]:
    """Key paths, and what is sent unencrypted."""
    return [
        (where, message.removeprefix("sends ").removesuffix(" over the network unencrypted"))
        for code, where, message in found(*consumers)
        if code == "credential-cleartext"
    ]


def webhook(url: str, **more: Any) -> Webhook:
    return Webhook(name="hook", url=url, **more)


def nats(*urls: str, **more: Any) -> Nats:
    return Nats(name="bus", urls=urls, **more)


BASIC = {"basic_auth": BasicAuth(username="u", password_file="/p")}
BEARER = {"bearer_token_file": "/t"}


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (BASIC, "the password of basic_auth"),
        (BEARER, "the token of bearer_token_file"),
        ({"headers": {"X-Env": "prod", "X-Api-Key": "k"}}, "the header X-Api-Key"),
        ({"headers": {"cookie": "c"}}, "the header cookie"),
        ({"url": "http://hooks.example.com/x?env=a&token=b"}, "the parameter token"),
        (
            {**BEARER, "headers": {"X-Auth": "k"}},
            "the token of bearer_token_file and the header X-Auth",
        ),
    ],
)
def test_credentials_of_a_webhook(options: dict[str, Any], what: str) -> None:
    """Over http to another machine; not over https, on loopback, or through a Unix socket."""
    options = {"url": "http://hooks.example.com/x", **options}
    assert sent(webhook(**options)) == [("consumers[0].url", what)]
    assert sent(webhook(**options, socket="/run/hook.sock")) == []
    for other in ("https://hooks.example.com", "http://127.0.0.1:8080", "http://[::1]:8080"):
        there = options["url"].replace("http://hooks.example.com", other)
        assert sent(webhook(**{**options, "url": there})) == []


@pytest.mark.parametrize(
    ("host", "exempt"),
    [
        ("localhost", True),
        ("LOCALHOST.", True),
        ("aidbox.localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("[::1]", True),
        ("[::ffff:127.0.0.1]", True),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("[::]", False),
        ("[fe80::1%25eth0]", False),
        ("localhost.example.com", False),
        ("127.0.0.1.example.com", False),
        ("aidbox", False),
    ],
)
def test_what_is_loopback(host: str, exempt: bool) -> None:
    """By its spelling: a name that might lead there is not."""
    assert bool(sent(webhook(f"http://{host}:9000/x", **BEARER))) != exempt


def test_events_alone_are_no_credential() -> None:
    """A webhook that is signed and sends no secret of its own is not reported."""
    assert sent(webhook("http://secret-events:9000/x", signing_key_file="/k")) == []


@pytest.mark.parametrize("actions", [("drop_cache",), ("drop_cache", "verify")])
def test_aidbox_without_tls(actions: tuple[Any, ...]) -> None:
    """The Client's secret always, and with `verify` the new values; for each replica."""
    urls = ("http://127.0.0.1:8080", "http://aidbox-1:8080", "https://aidbox-2")
    aidbox = Aidbox(
        name="a", urls=urls, client_id="syncd", client_secret_file="/s", actions=actions
    )
    what = "the Client's secret"
    if "verify" in actions:
        what += " and new values of secrets (verify)"
    assert sent(aidbox) == [("consumers[0].urls[1]", what)]


@pytest.mark.parametrize(
    "login",
    [
        {"user": "u", "password_file": "/p"},
        {"token_file": "/t"},
        {"nkey_seed_file": "/n"},
        {"credentials_file": "/c"},
    ],
)
def test_nats_with_a_login(login: dict[str, str]) -> None:
    """Unless the connection insists on TLS, by its scheme or by a certificate."""
    urls = ("nats://n1:4222", "nats://127.0.0.1:4222")
    assert sent(nats(*urls, **login)) == [("consumers[0].urls[0]", "the login")]
    assert sent(nats(*urls)) == []
    assert sent(nats("tls://n1:4222", **login)) == []
    assert sent(nats(*urls, "tls://n2:4222", **login)) == []
    assert sent(nats(*urls, ca_file="/ca", **login)) == []


@pytest.mark.parametrize(
    ("listen", "reported"),
    [
        ("", False),
        ("127.0.0.1:9753", False),
        ("[::1]:9753", False),
        ("localhost:9753", False),
        ("0.0.0.0:9753", True),
        ("[::]:9753", True),
        ("10.1.2.3:9753", True),
        ("node-1:9753", True),
    ],
)
def test_an_open_port(listen: str, reported: bool) -> None:
    """Beyond loopback; not in a pod, where the kubelet has to reach it."""
    api = Api(listen=listen)
    says = f"{listen} is not loopback, and probes and metrics have no authentication"
    expected = [("listen-exposed", "api.listen", says)] if reported else []
    assert found(api=api) == expected
    assert found(api=api, environ={"KUBERNETES_SERVICE_HOST": "10.96.0.1"}) == []
    where = [where for _, where, _ in found(api=api, environ={"SYNCD_LISTEN": listen})]
    assert where == (["SYNCD_LISTEN"] if reported else [])


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory that every user can get to."""
    for directory in (tmp_path, *tmp_path.parents[:-2]):
        directory.chmod(directory.stat().st_mode | 0o011)
    return tmp_path


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        (0o600, None),
        (0o640, None),
        (0o660, None),
        (0o644, "is readable for every user of this machine"),
        (0o604, "is readable for every user of this machine"),
        (0o646, "can be changed by every user of this machine"),
        (0o602, "can be changed by every user of this machine"),
    ],
)
def test_a_credential_file_that_others_can_read(place: Path, mode: int, says: str | None) -> None:
    """By its mode; the group is the operator's choice."""
    file = place / "token"
    file.write_text("t")
    file.chmod(mode)
    hook = webhook("https://h/x", bearer_token_file=str(file))
    expected = [("credential-exposed", "consumers[0].bearer_token_file", f"{file} {says}")]
    assert found(hook) == (expected if says else [])
    os.symlink(file, place / "link")
    linked = found(webhook("https://h/x", bearer_token_file=str(place / "link")))
    assert bool(linked) == bool(says)


def test_a_directory_that_others_cannot_enter_is_enough(place: Path) -> None:
    """At any height."""
    inner = place / "private" / "inner"
    inner.mkdir(parents=True)
    (inner / "token").write_text("t")
    (inner / "token").chmod(0o644)
    inner.chmod(0o755)
    hook = webhook("https://h/x", bearer_token_file=str(inner / "token"))
    (place / "private").chmod(0o755)
    assert len(found(hook)) == 1
    (place / "private").chmod(0o750)
    assert found(hook) == []


def test_what_is_no_secret_or_not_there_is_not_reported(place: Path) -> None:
    """CAs and certificates are public; a missing file is another finding."""
    for name in ("ca", "cert", "key"):
        (place / name).write_text("x")
        (place / name).chmod(0o644)
    files = {"ca_file": str(place / "ca"), "client_cert": str(place / "cert")}
    hook = webhook("https://h/x", **files, client_key=str(place / "key"))
    assert [where for _, where, _ in found(hook)] == ["consumers[0].client_key"]
    assert found(webhook("https://h/x", bearer_token_file=str(place / "none"))) == []


def test_a_file_of_a_csi_mount_is_the_mounts_business(place: Path) -> None:
    """Its files are 0644 by default, and so are service account tokens."""
    (place / "..2026").mkdir()
    (place / "..2026" / "token").write_text("t")
    os.symlink("..2026", place / "..data")
    os.symlink("..data/token", place / "token")
    assert found(webhook("https://h/x", bearer_token_file=str(place / "token"))) == []


def test_the_fingerprint_key(place: Path) -> None:
    """It is a credential, too."""
    (place / "fingerprint.key").write_bytes(b"k" * 32)
    (place / "fingerprint.key").chmod(0o644)
    settings = Settings(vault_config="/v.json", state_dir=str(place))
    (finding,) = check_exposure(settings, "syncd.yaml", {})
    assert (finding.code, finding.where) == ("credential-exposed", "state_dir")


def shipped() -> dict[str, tuple[str, dict[str, str]]]:
    """The configurations that come with syncd: their text, and the environment they are for."""
    base = (ROOT / "kubernetes/components/syncd/sidecar.yaml").read_text()
    pod = yaml.safe_load(base)["spec"]["template"]["spec"]
    environ = {item["name"]: item["value"] for item in pod["initContainers"][0]["env"]}
    # the kubelet sets this one in every container
    environ["KUBERNETES_SERVICE_HOST"] = "10.96.0.1"
    service = (ROOT / "systemd/syncd.yaml").read_text()
    (install,) = (text for text in commands("docs/install.md", "systemd") if "role_id_file" in text)
    return {
        "kubernetes": ((ROOT / "kubernetes/components/syncd/syncd.yaml").read_text(), environ),
        "systemd": (service, {}),
        # its examples are comments
        "systemd, all of it": (re.sub(r"(?m)^# ?(?=[a-z-]+:$|  )", "", service), {}),
        "aidbox": ((ROOT / "docs/examples/aidbox-syncd.yaml").read_text(), environ),
        "install": (re.findall(r"(?s)<<'EOF'\n(.*?)\nEOF", install)[-1], {}),
    }


@pytest.mark.parametrize("name", sorted(shipped()))
def test_nothing_shipped_is_exposed(name: str) -> None:
    """The configurations, and what the documentation tells to write."""
    text, environ = shipped()[name]
    (tree,) = parse_yaml(text.encode())
    if environ:
        tree["api"] = {**(tree.get("api") or {}), "listen": environ["SYNCD_LISTEN"]}
    settings, problems = decode(tree, Settings, check_section)
    assert settings is not None, problems
    assert check_exposure(settings, "syncd.yaml", environ) == []


@pytest.mark.parametrize("overlay", ["vault", "azure"])
def test_no_manifest_shipped_is_exposed(overlay: str) -> None:
    """Neither by its address nor by a permission."""
    path = ROOT / "kubernetes" / "overlays" / overlay / "secret-provider-class.yaml"
    auth: Any = {"method": "kubernetes"} if overlay == "vault" else {"method": "managed_identity"}
    tree = {
        "vault_config": "/v.json",
        "provision": [{"manifest": str(path), "target": "/run/x", "auth": auth}],
    }
    settings, problems = decode(tree, Settings, check_section)
    assert settings is not None, problems
    assert [item.code for item in plan_provision(settings.provision)[1]] == []
