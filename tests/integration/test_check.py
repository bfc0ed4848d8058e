"""`syncd check`: the real command over a real mount."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support.waiting import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CANARY = "hunter2-canary"
CLIENT = {"resource_type": "Client"}


def syncd_check(
    *arguments: str, environ: dict[str, str] | None = None, within: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Runs the command in an environment of its own."""
    return subprocess.run(
        [*within, sys.executable, "-m", "syncd", "check", *arguments],
        env={"PATH": os.environ["PATH"], **(environ or {})},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A directory of plain files, one of them with each mistake."""
    directory = tmp_path / "plain"
    directory.mkdir()
    for name, content, mode in (
        ("good", CANARY, 0o600),
        ("newline", CANARY + "\n", 0o600),
        ("open", CANARY, 0o644),
        ("empty", "", 0o600),
        ("stray", CANARY, 0o600),
        ("big", "x" * ((1 << 20) + 1), 0o600),
    ):
        (directory / name).write_text(content)
        (directory / name).chmod(mode)
    os.mkfifo(directory / "fifo")
    (directory / "directory").mkdir()
    (directory / "dangling").symlink_to("nothing")
    (directory / "loop").symlink_to("loop")
    (directory / "escape").symlink_to("/etc/hostname")
    (directory / "alias").symlink_to("good")
    return directory


def vault_config(tmp_path: Path, entries: Mapping[str, object]) -> dict[str, str]:
    """Writes a vault config; gives the environment that names it."""
    path = tmp_path / "vault-config.json"
    path.write_text(json.dumps({"secret": entries}).replace('"twice!"', '"twice"'))
    return {"BOX_VAULT_CONFIG": str(path)}


def test_every_mistake_is_named_in_text_and_in_json(tmp_path: Path, plain: Path) -> None:
    """A vault config and mount with every mistake: all are named, no value is shown, exit 1."""
    entries: dict[str, object] = {
        name: {"path": str(plain / name), "scope": CLIENT}
        for name in [*os.listdir(plain), "missing"]
        if name != "stray"
    }
    good = str(plain / "good")
    entries |= {
        "same": {"path": good, "scope": CLIENT},
        "list": {"path": good, "scope": ["Client/my-client", "TokenIntrospector"]},
        "unknown": {"path": good, "scope": {"resource_type": "Clinet", "id": "a/b"}},
        "relative": {"path": "run/a", "scope": CLIENT},
        "dots": {"path": f"{plain}/../a", "scope": CLIENT},
        "number": {"path": 1, "scope": {"resourceType": "Client"}},
        "nobody": {"path": good, "scope": [""]},
        "twice": {"path": good, "scope": CLIENT},
        "twice!": {"path": good, "scope": CLIENT},
        "line\n": {"path": "/a\x00", "scope": CLIENT},
    }
    environ = vault_config(tmp_path, entries)
    text, document = (syncd_check("--format", kind, environ=environ) for kind in ("text", "json"))
    assert (text.returncode, document.returncode) == (1, 1)
    assert CANARY not in text.stdout + text.stderr + document.stdout + document.stderr
    report = json.loads(document.stdout)
    codes = {found["code"] for found in report["findings"]}
    assert codes == {
        *("file-unmapped", "key-missing", "key-unknown", "name-duplicate", "name-invalid"),
        *("path-invalid", "path-not-absolute", "path-not-normalized", "path-shared"),
        *("resource-type-unknown", "scope-id-unusual", "scope-invalid", "scope-list"),
        *("secret-empty", "secret-link-dangling", "secret-link-loop", "secret-missing"),
        *("secret-newline", "secret-not-a-file", "secret-outside-roots", "secret-too-large"),
        *("secret-world-readable", "type-wrong"),
    }
    *lines, summary = text.stdout.splitlines()
    assert len(lines) == len(report["findings"])
    assert all(any(f"[{code}]" in line for line in lines) for code in codes)
    numbers = report["summary"]
    assert summary == f"{numbers['errors']} errors, {numbers['warnings']} warnings"


def test_exit_codes(tmp_path: Path, plain: Path) -> None:
    """0 without errors, 1 with errors or strict warnings, 2 when an input cannot be read."""
    good = {"a": {"path": str(plain / "newline"), "scope": CLIENT}}
    environ = vault_config(tmp_path, good)
    assert syncd_check(environ=environ).returncode == 0
    assert syncd_check("--strict", environ=environ).returncode == 1
    assert syncd_check("-c", str(tmp_path / "none"), environ=environ).returncode == 2
    (tmp_path / "vault-config.json").write_text("{")
    assert syncd_check(environ=environ).returncode == 2


def test_a_vault_config_over_its_limit_is_one_error_everywhere(tmp_path: Path) -> None:
    """`check`, `wait` and the daemon refuse it with the same words, and none reads it."""
    environ = vault_config(tmp_path, {})
    environ["SYNCD_STATE_DIR"] = str(tmp_path / "state")
    os.truncate(environ["BOX_VAULT_CONFIG"], (32 << 20) + 1)
    expected = (
        f"{environ['BOX_VAULT_CONFIG']}: cannot be read: larger than 32 MiB; set vault_config or"
        " BOX_VAULT_CONFIG to the JSON file that Aidbox reads [vault-config-unreadable]"
    )
    for command, code in ((["check"], 2), (["wait", "--timeout", "0"], 1), (["run"], 2)):
        done = subprocess.run(
            [sys.executable, "-m", "syncd", *command],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, **environ},
            check=False,
        )
        assert expected in done.stdout + done.stderr
        assert done.returncode == code, command


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare(1)")
def test_a_bind_mount_of_one_file(tmp_path: Path, plain: Path) -> None:
    """It is found in the mount table, and so is that its source is gone, and what hides it."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("may not make a mount namespace here")
    path = str(plain / "good")
    environ = vault_config(tmp_path, {"a": {"path": path, "scope": CLIENT}})
    mount = ("unshare", "-m", "sh", "-c", f'mount --bind {path} {path} && exec "$@"', "sh")
    done = syncd_check("--format", "json", environ=environ, within=mount)
    found = {found["code"]: found["where"] for found in json.loads(done.stdout)["findings"]}
    assert found["mount-frozen"] == "$.secret.a.path"
    assert done.returncode == 0
    script = 'mount --bind "$1" "$2" && mv "$3" "$1" && shift 3 && exec "$@"'
    (plain / "new").write_text(CANARY)
    (plain / "target").touch(0o600)
    source, target, new = (str(plain / name) for name in ("good", "target", "new"))
    environ = vault_config(tmp_path, {"a": {"path": target, "scope": CLIENT}})
    within = ("unshare", "-m", "sh", "-c", script, "sh", source, target, new)
    done = syncd_check(environ=environ, within=within)
    assert f"the source of the mount {target} was removed" in done.stdout
    script = 'mount --bind "$1" "$1" && mount --rbind "$2" "$3" && shift 3 && exec "$@"'
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "target").touch(0o600)
    within = (
        "unshare",
        "-m",
        "sh",
        "-c",
        script,
        "sh",
        target,
        str(tmp_path / "other"),
        str(plain),
    )
    done = syncd_check(environ=environ, within=within)
    assert "mount-frozen" not in done.stdout


def test_file_names_that_are_not_utf_8(tmp_path: Path) -> None:
    """Each format shows the name, in every locale, and is what it claims to be."""
    mount = tmp_path / "mount"
    mount.mkdir()
    (mount / "a").write_text(CANARY)
    (mount / "a").chmod(0o600)
    (mount / os.fsdecode(b"caf\xe9\n.pem")).touch()
    environ = vault_config(tmp_path, {"a": {"path": str(mount / "a"), "scope": CLIENT}})
    expected = {"text": r"caf\xe9\n.pem", "json": r"caf\\xe9\n.pem", "sarif": "caf%E9%0A.pem"}
    for locale in ("C.UTF-8", "C", "POSIX"):
        for kind, name in expected.items():
            done = syncd_check("--format", kind, environ={**environ, "LC_ALL": locale})
            assert (done.returncode, done.stderr) == (0, "")
            assert name in done.stdout
            if kind == "text":
                assert len(done.stdout.splitlines()) == 2
            else:
                json.loads(done.stdout)["findings" if kind == "json" else "runs"]


def test_a_path_in_the_environment_that_is_not_utf_8() -> None:
    """No event could name it; it is refused at the variable."""
    done = syncd_check(environ={"BOX_VAULT_CONFIG": os.fsdecode(b"/caf\xe9.json")})
    assert done.returncode == 2
    assert "environment: BOX_VAULT_CONFIG: is not UTF-8" in done.stdout
