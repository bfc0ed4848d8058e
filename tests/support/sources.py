"""What systems and clusters are made of: the tools, the wheels and the sources of this checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import pytest
from support.machine import cache, step

if TYPE_CHECKING:
    from pathlib import Path

ROOT: Final = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


def need(where: str, *tools: str) -> None:
    """Skips, with the reason, where tools are missing; fails where they could be installed.

    Args:
        where: The script that installs them.
        tools: Commands.
    """
    bin_ = os.path.dirname(sys.executable)
    path = f"{bin_}:{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [tool for tool in tools if shutil.which(tool, path=path) is None]
    if os.geteuid() != 0:
        pytest.skip("only root can boot a machine, build an image, run it")
    if not missing:
        return
    if shutil.which("apt-get") is not None:
        pytest.fail(f"{', '.join(missing)} could be installed here: see {where}")
    pytest.skip(f"{', '.join(missing)} cannot be installed here: there is no apt-get")


def wheels(python: str = "3.11") -> str:
    """A directory with the wheels of requirements.lock for the Debian tree's Python."""
    with open(f"{ROOT}/requirements.lock", "rb") as file:
        lock = file.read()
    directory = f"{cache()}/wheels-{python}-{sha256(lock).hexdigest()[:16]}"
    if os.path.isdir(directory):
        step(f"the wheels are in the cache: {directory}")
        return directory
    step("downloading the wheels of requirements.lock")
    making = f"{directory}.{os.getpid()}"
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"]
    command += ["--only-binary", ":all:", "--implementation", "cp", "--python-version", python]
    command += ["--require-hashes", "-r", f"{ROOT}/requirements.lock", "-d", making]
    subprocess.run(command, check=True)
    os.rename(making, directory)
    return directory


def make_release(directory: Path) -> None:
    """Makes a repository with one commit, and a release of it."""
    copy_checkout(str(directory))
    author = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    git = ("git", *author, "-c", "init.defaultBranch=main")
    origin = "https://user:CANARY-5ecre7@git.example.org/syncd.git"
    for command in (
        ("init", "-q"),
        ("add", "-A"),
        ("commit", "-q", "-m", "A release"),
        ("remote", "add", "origin", origin),
    ):
        subprocess.run([*git, *command], cwd=directory, check=True)
    step("make dist")
    run(directory, "make dist")


def run(directory: Path, script: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a shell where a release is made, with its tools on the PATH."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=directory,
        env={**os.environ, "PATH": f"{directory}/.cache/release/bin:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def copy_checkout(target: str) -> None:
    """Copies what a user has after `git clone`: every file that git knows or would know."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in filter(None, listed):
        if os.path.exists(f"{ROOT}/{name}"):
            os.makedirs(os.path.dirname(f"{target}/{name}"), exist_ok=True)
            shutil.copy2(f"{ROOT}/{name}", f"{target}/{name}")
