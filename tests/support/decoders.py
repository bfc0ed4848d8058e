"""What must hold for every input of the three decoders, for hypothesis and atheris alike.

Each function takes bytes as a hostile author may write them, and fails by an exception: a
traceback, a finding that is no line, or a path that leads out of where it must stay.
"""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

from syncd.config.load import examine, load
from syncd.config.settings import Watch
from syncd.core.decode import Size
from syncd.core.errors import ConfigurationError
from syncd.core.findings import CODES
from syncd.core.model import State
from syncd.core.vault_config import decode_vault_config
from syncd.mount.read import Reader
from syncd.provision.manifest import decode_manifests
from syncd.provision.vault.objects import decode_vault

if TYPE_CHECKING:
    from collections.abc import Iterable

    from syncd.core.findings import Finding

INSIDE, OUTSIDE = b"inside", b"outside"


class Mount:
    """A root with files inside and outside, and links of every kind that lead out."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="syncd-fuzz-")
        self.root = f"{os.path.realpath(self._directory.name)}/root"
        outside = f"{self.root}-outside"
        for directory, content in ((f"{self.root}/sub", INSIDE), (outside, OUTSIDE)):
            os.makedirs(directory)
            for name in ("a", "b"):
                with open(f"{directory}/{name}", "wb") as file:
                    file.write(content)
        for name, target in (
            ("a", "sub/a"),
            ("out", outside),
            ("up", ".."),
            ("beside", "../root-outside"),
            ("file", f"{outside}/a"),
            ("magic", "/proc/self/root"),
            ("loop", "loop"),
        ):
            os.symlink(target, f"{self.root}/{name}")
        watch = Watch(roots=(self.root,), max_secret_size=Size(1000))
        self.reader = Reader(b"k" * 32, watch, settle=0.0, grace=0.0)

    def check(self, text: bytes) -> int:
        """Reads what a vault config names; how many secrets were found, all of them inside."""
        config, _ = decode_vault_config(text, "vault-config.json")
        if config is None:
            return 0
        snapshot = self.reader.scan(config)
        found = 0
        for name, seen in snapshot.observations.items():
            if seen.state is State.PRESENT:
                found += 1
                assert seen.version == self.reader.fingerprint(name, INSIDE), "read from outside"
                real = os.path.realpath(config[name].path)
                assert real.startswith(f"{self.root}/"), "accepted from outside"
        return found

    def close(self) -> None:
        self._directory.cleanup()


def vault_config(text: bytes) -> None:
    """A vault config has errors, or entries with plain absolute paths."""
    config, findings = decode_vault_config(text, "vault-config.json")
    are_lines(findings)
    assert (config is None) == any(found.is_error for found in findings)
    for name, entry in (config or {}).items():
        assert name == entry.name != ""
        assert entry.path.startswith("/")
        assert "\0" not in entry.path
        assert {"", ".", ".."}.isdisjoint(entry.path[1:].split("/"))
        assert entry.scopes
        entry.path.encode()


def manifest(text: bytes) -> None:
    """A manifest has errors, or objects whose files stay in the target, with plain modes."""
    manifests, findings = decode_manifests(text, "manifest.yaml")
    are_lines(findings)
    for one in manifests:
        if one.provider == "azure":
            continue
        vault, findings = decode_vault(one)
        are_lines(findings)
        assert (vault is None) == any(found.is_error for found in findings)
        paths = vault.paths if vault else ()
        for path in paths:
            real = os.path.normpath(f"/target/{path}")
            assert real == f"/target/{path}", "leaves the target"
            assert not path.startswith("..")
            assert "\0" not in path
            path.encode()
        for item in vault.objects if vault else ():
            assert 0 <= item.mode <= 0o777
        assert len(set(paths)) == len(paths)


def configuration(text: bytes) -> None:
    """A configuration has findings, or is one; files that it names have absolute paths."""
    with tempfile.NamedTemporaryFile(prefix="syncd-fuzz-") as file:
        file.write(text)
        file.flush()
        settings, findings = examine(file.name, {})
        are_lines(findings)
        refusal = None
        try:
            loaded = load(file.name, {})
        except ConfigurationError as error:
            refusal = str(error)
    assert (refusal is None) == (not findings)
    if refusal is not None:
        assert all(line.isprintable() for line in refusal.split("\n"))
        return
    assert loaded == settings
    for path in (loaded.vault_config, loaded.state_dir, *loaded.watch.roots):
        assert path.startswith("/")


def are_lines(findings: Iterable[Finding]) -> None:
    for found in findings:
        assert found.code in CODES
        assert str(found).isprintable()
        assert found.message
        assert found.hint


DECODERS = {"vault_config": vault_config, "manifest": manifest, "configuration": configuration}
