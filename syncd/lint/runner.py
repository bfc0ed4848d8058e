"""`syncd check`: who will run syncd, so that permissions are judged for that user.

Root may read everything, so what root finds readable says nothing of the service. And the files in
`/run/credentials/UNIT` exist only while the unit runs: what counts is where systemd will load them
from, which only root may read.
"""

from __future__ import annotations

import os
import pwd
import stat
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import msgspec

from syncd.config.settings import credential_files
from syncd.core.decode import did_you_mean
from syncd.core.errors import ConfigurationError, SyncdError
from syncd.core.findings import finding
from syncd.net.inspection import inspect
from syncd.system.accounts import group_id, user_id
from syncd.system.errnos import reason
from syncd.system.identity import FILE_CAPABILITIES, Identity
from syncd.system.units import CREDENTIALS, SERVICE, Unit, read_unit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from syncd.config.settings import RelaySettings, Settings
    from syncd.core.findings import Finding

_CONFIG_OPTIONS: Final = ("-c", "--config")


class Runner(msgspec.Struct, frozen=True):
    """Who will run syncd.

    Attributes:
        identity: The user to become; None for this one.
        unit: The unit whose user it is, or None.
        is_known: Whether syncd will run as this user, as far as anyone can say.
    """

    identity: Identity | None = None
    unit: Unit | None = None
    is_known: bool = True

    def __str__(self) -> str:
        """For people: the user, and the unit."""
        user = "root" if self.identity is None else self.identity.name
        return user if self.unit is None else f"{user} ({self.unit.name})"

    def environment(self, own: Mapping[str, str]) -> dict[str, str]:
        """The variables of the unit, and over them those of this process."""
        return {**(self.unit.environment if self.unit else {}), **own}

    def config(self, given: str | None, environ: Mapping[str, str]) -> str | None:
        """The configuration file: as given here, else as the unit's command line has it."""
        if given or environ.get("SYNCD_CONFIG") or self.unit is None:
            return given
        words = self.unit.arguments
        for word, following in pairwise([*words, ""]):
            if word in _CONFIG_OPTIONS:
                return following or None
            for start in ("--config=", "-c"):
                if word.startswith(start):
                    return word.removeprefix(start)
        return None


def find_runner(user: str | None = None, unit: str | None = None, *, root: str = "") -> Runner:
    """Who will run syncd: a user, a unit's user, or by default for root that of `syncd.service`.

    Args:
        user: By name or number.
        unit: The name of a service unit.
        root: A directory that stands for `/`, for units and credential stores.

    Raises:
        ConfigurationError: There is no such user or unit.
        SyncdError: Only root can check for another user.
    """
    if user is not None:
        return _privileged(Runner(_identity(user, "command line", "--as")))
    if unit is None and os.geteuid() != 0:
        return Runner(is_known=False)
    name = unit or SERVICE
    try:
        found = read_unit(name, root)
    except OSError as error:
        raise _unusable(
            "unit-unusable", name, "", f"cannot be read: {reason(error)}", "correct it"
        ) from None
    if found is None:
        if unit is None:
            return Runner()
        hint = "correct the name, or install the unit"
        raise _unusable("unit-unusable", "command line", "--unit", f"there is no unit {name}", hint)
    return _privileged(Runner(_identity_of(found), found))


def _privileged(runner: Runner) -> Runner:
    identity = runner.identity
    if identity is None or os.geteuid() == identity.uid:
        return Runner(None, runner.unit)
    if os.geteuid() != 0:
        raise SyncdError(
            f"cannot check for {identity.name}: only root can become another user",
            "run it with sudo",
        )
    return runner


def _identity_of(unit: Unit) -> Identity | None:
    user = unit.last("User")
    if unit.last("DynamicUser") in ("yes", "true", "1", "on"):
        hint = "check while the unit runs, with --as and the number of its user"
        raise _unusable("unit-unusable", unit.path, "DynamicUser", "its user is not known", hint)
    if user is None or user in ("root", "0"):
        return None
    capabilities = {
        word
        for word in map(str.lower, unit.words("AmbientCapabilities"))
        if word in FILE_CAPABILITIES
    }
    found = _identity(user, unit.path, "User", unit.last("Group"), capabilities)
    more = unit.words("SupplementaryGroups")
    groups = {*found.groups, *(_group(name, unit.path, "SupplementaryGroups") for name in more)}
    return msgspec.structs.replace(found, groups=tuple(sorted(groups)))


def _identity(
    user: str,
    source: str,
    where: str,
    group: str | None = None,
    capabilities: set[str] | frozenset[str] = frozenset(),
) -> Identity:
    try:
        uid = user_id(user)
    except LookupError:
        hint = "correct the name, or create the user (systemd-sysusers for the packaged one)"
        raise _unusable("user-unknown", source, where, f"there is no user {user}", hint) from None
    gid, groups = uid, [uid]
    try:
        account = pwd.getpwuid(uid)
    except KeyError:
        pass  # a number without an account has no groups either
    else:
        gid = account.pw_gid
        groups = os.getgrouplist(account.pw_name, gid)
    if group is not None:
        gid = _group(group, source, "Group")
    return Identity(user, uid, gid, tuple(sorted({*groups, gid})), tuple(sorted(capabilities)))


def _group(name: str, source: str, where: str) -> int:
    try:
        return group_id(name)
    except LookupError:
        hint = "correct the name, or create the group"
        raise _unusable("user-unknown", source, where, f"there is no group {name}", hint) from None


def _unusable(code: str, source: str, where: str, message: str, hint: str) -> ConfigurationError:
    return ConfigurationError([finding(code, source, where, message, hint)])


def check_loaded(
    settings: Settings | RelaySettings, source: str, runner: Runner, *, root: str = ""
) -> dict[str, list[Finding]]:
    """Judges the files of `/run/credentials`, each by what systemd will load.

    Blocks. As root, before becoming the runner.

    Returns:
        The findings about each such file, by its path; none for one that is good.
    """
    found: dict[str, list[Finding]] = {}
    for where, path in credential_files(settings):
        if not path.startswith(f"{CREDENTIALS}/"):
            continue
        problem: _Problem | None
        if os.geteuid() != 0:
            if os.path.exists(path):
                continue  # it is there now, and this user may look
            problem = _not_for_this_user(path)
        else:
            problem = _load_problem(where, path, runner, root)
        found.setdefault(path, [])
        if problem is not None:
            code, message, hint = problem
            found[path].append(finding(code, source, where, message, hint))
    return found


_Problem = tuple[str, str, str]


def _not_for_this_user(path: str) -> _Problem:
    message = f"{path} exists only while its unit runs, and only root may look for its source"
    return "credential-unchecked", message, "check with sudo syncd check"


def _load_problem(where: str, path: str, runner: Runner, root: str) -> _Problem | None:
    unit_name, _, name = path.removeprefix(f"{CREDENTIALS}/").partition("/")
    if runner.unit is not None and unit_name != runner.unit.name:
        message = f"{path} is a credential of {unit_name}, and {runner.unit.name} cannot read it"
        return "credential-unreadable", message, f"write {CREDENTIALS}/{runner.unit.name}/{name}"
    try:
        unit = read_unit(unit_name, root)
    except OSError as error:
        message = f"{path} cannot exist: the unit {unit_name} cannot be read: {reason(error)}"
        return "credential-unreadable", message, "correct the unit"
    if unit is None:
        message = f"{path} cannot exist: there is no unit {unit_name}"
        return "credential-unreadable", message, "correct the unit in the path, or install the unit"
    return _source_problem(where, path, unit, name)


def _source_problem(where: str, path: str, unit: Unit, name: str) -> _Problem | None:
    credential = unit.credential(name)
    if credential is None:
        add = f"add LoadCredential={name} to it (systemctl edit {unit.name})"
        hint = did_you_mean(name, unit.credentials, add)
        return "credential-unreadable", f"{unit.name} loads no credential {name}", hint
    if credential.given:
        return None
    if credential.path is None:
        message = f"there is no credential {name} for {unit.name} to load"
        return "credential-unreadable", message, f"write it into {credential.wanted} (root, 0600)"
    return _content_problem(where, path, credential.path, encrypted=credential.encrypted)


def _content_problem(where: str, path: str, source: str, *, encrypted: bool) -> _Problem | None:
    try:
        kind = os.stat(source).st_mode
    except OSError as error:
        message = f"{path} cannot be loaded from {source}: {reason(error)}"
        return "credential-unreadable", message, f"write the credential into {source} (root, 0600)"
    if encrypted or stat.S_ISSOCK(kind):
        return None  # only systemd can read it, or another service sends it
    try:
        inspect(where.rpartition(".")[2], source)
    except SyncdError as error:
        return "credential-malformed", error.problem, error.remedy or f"correct {source}"
    return None
