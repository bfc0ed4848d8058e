"""A manifest of `provider: azure`: its parameters and objects, decoded. Pure.

Source: Azure/secrets-store-csi-driver-provider-azure 1.8, `pkg/provider`. Where syncd is stricter:
names are checked against Key Vault's rule, an invalid permission is an error (upstream: mode 0),
what would fail at the first mount fails now, and what only a cluster has is refused with a reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import msgspec

from syncd.core.decode import Text, decode
from syncd.core.payload import DEFAULT_MODE, ENCODINGS
from syncd.core.tree import Node, Scalar, TreeError, parse_yaml
from syncd.provision.manifest import Path, check_paths, go_bool, octal_permission, without_unknown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from syncd.core.findings import Finding
    from syncd.provision.manifest import Manifest, Report

Kind = Literal["secret", "key", "cert"]
KINDS: Final = ("secret", "key", "cert")
FORMATS: Final = ("pem", "pfx")
DEFAULT_CLOUD: Final = "AzurePublicCloud"
CUSTOM_CLOUD: Final = "AzureStackCloud"
LONGEST_HISTORY: Final = 1000

_OBJECTS: Path = ("spec", "parameters", "objects")
_PARAMETERS: Final = (
    "keyvaultName",
    "tenantID",
    "tenantId",
    "cloudName",
    "cloudEnvFileName",
    "useVMManagedIdentity",
    "userAssignedIdentityID",
    "clientID",
    "usePodIdentity",
    "useAzureTokenProxy",
    "objects",
)
_KEYS: Final = (
    "objectName",
    "objectAlias",
    "objectType",
    "objectVersion",
    "objectVersionHistory",
    "objectFormat",
    "objectEncoding",
    "filePermission",
)
_CLUSTER_ONLY: Final = {
    "usePodIdentity": "is for pods in a cluster; use useVMManagedIdentity",
    "useAzureTokenProxy": "is a proxy of AKS; use useVMManagedIdentity or auth",
}
_CLOUDS: Final = (
    DEFAULT_CLOUD,
    "AzureUSGovernmentCloud",
    "AzureChinaCloud",
    "AzureGermanCloud",
    CUSTOM_CLOUD,
)


@dataclass(frozen=True, slots=True)
class AzureObject:
    """One object of a vault, and the file or files that are made of it.

    Attributes:
        path: The file, relative to the target; a directory where `history` asks for several.
        name: The object's name in the vault.
        kind: `secret`, `key` (its public part) or `cert` (without its key).
        version: Which version; empty for the newest.
        history: How many versions, from `version` back; 0 for one file.
        pfx: Whether a PKCS#12 stays one (`objectFormat: pfx`), else it becomes PEM.
        encoding: How a secret's value is decoded: one of `syncd.core.payload.ENCODINGS`.
        mode: Permission bits of the file.
    """

    path: str
    name: str
    kind: Kind
    version: str
    history: int
    pfx: bool
    encoding: str
    mode: int

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that it makes; with a history, as many as there may be."""
        if not self.history:
            return (self.path,)
        return tuple(f"{self.path}/{index}" for index in range(self.history))


@dataclass(frozen=True, slots=True)
class AzureClass:
    """A SecretProviderClass of Azure Key Vault.

    Attributes:
        vault: `keyvaultName`.
        cloud: `cloudName`, in its usual spelling.
        environment_file: `cloudEnvFileName`, which describes a custom cloud, or None.
        tenant: `tenantID`, or empty.
        managed_identity: Whether the machine's identity is to be used.
        assigned_identity: Client id of the user-assigned one; empty for the system-assigned one.
        client_id: `clientID` of a workload identity, or empty.
        objects: What to fetch, in order.
    """

    vault: str
    cloud: str
    environment_file: str | None
    tenant: str
    managed_identity: bool
    assigned_identity: str
    client_id: str
    objects: tuple[AzureObject, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that it makes, relative to the target."""
        return tuple(path for item in self.objects for path in item.paths)


class _Object(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    object_name: Text = Text()
    object_alias: Text = Text()
    object_type: Text = Text()
    object_version: Text = Text()
    object_version_history: Text = Text()
    object_format: Text = Text()
    object_encoding: Text = Text()
    file_permission: Text = Text()


def decode_azure(manifest: Manifest) -> tuple[AzureClass | None, list[Finding]]:
    """Decodes the parameters of a manifest for Azure Key Vault.

    Returns:
        The class, or None when an error was found; and every finding, warnings among them.
    """
    report, parameters = manifest.report(), manifest.parameters
    for key in parameters:
        if key not in _PARAMETERS:
            report.unknown((*_OBJECTS[:2], key), _PARAMETERS)
    flags = {
        key: go_bool(parameters.get(key, ""), (*_OBJECTS[:2], key), report)
        for key in ("useVMManagedIdentity", *_CLUSTER_ONLY)
    }
    for key, reason in _CLUSTER_ONLY.items():
        if flags[key]:
            report.error((*_OBJECTS[:2], key), "does not work outside of a cluster", reason)
    vault = parameters.get("keyvaultName", "")
    if not re.fullmatch("[-A-Za-z0-9]{3,24}", vault):
        message = "is not the name of a Key Vault" if vault else "is missing"
        hint = "write its name alone: 3 to 24 letters, digits and -"
        report.error((*_OBJECTS[:2], "keyvaultName"), message, hint)
    cloud = _cloud(parameters.get("cloudName", ""), report)
    file = parameters.get("cloudEnvFileName", "")
    if cloud == CUSTOM_CLOUD and not file.startswith("/"):
        message = "is missing" if not file else "is not an absolute path"
        hint = f"{CUSTOM_CLOUD} needs the file that describes the cloud"
        report.error((*_OBJECTS[:2], "cloudEnvFileName"), message, hint)
    objects = _objects(parameters.get("objects", ""), report)
    managed = flags["useVMManagedIdentity"]
    _check_identity(parameters, report, managed=managed)
    if report.failed:
        return None, report.findings
    azure_class = AzureClass(
        vault=vault,
        cloud=cloud,
        environment_file=file if cloud == CUSTOM_CLOUD else None,
        tenant=parameters.get("tenantID") or parameters.get("tenantId", ""),
        managed_identity=managed,
        assigned_identity=parameters.get("userAssignedIdentityID", "") if managed else "",
        client_id=parameters.get("clientID", ""),
        objects=objects,
    )
    return azure_class, report.findings


def _check_identity(parameters: Mapping[str, str], report: Report, *, managed: bool) -> None:
    upper, lower = parameters.get("tenantID", ""), parameters.get("tenantId", "")
    if upper and lower and upper != lower:
        report.error((*_OBJECTS[:2], "tenantId"), "contradicts tenantID", "keep tenantID")
    if not managed and not re.fullmatch("[-.0-9A-Za-z]*", upper or lower):
        hint = "write the tenant's id or domain"
        report.error((*_OBJECTS[:2], "tenantID"), "is not a tenant", hint)
    if parameters.get("userAssignedIdentityID") and not managed:
        hint = 'set useVMManagedIdentity: "true", or remove it'
        where = (*_OBJECTS[:2], "userAssignedIdentityID")
        report.warn(where, "does nothing without useVMManagedIdentity", hint)
    if parameters.get("clientID") and managed:
        hint = "keep clientID for a workload identity, or useVMManagedIdentity"
        report.error((*_OBJECTS[:2], "clientID"), "contradicts useVMManagedIdentity", hint)


def _cloud(text: str, report: Report) -> str:
    """The usual spelling of a cloud's name, which go-autorest compares in capitals."""
    if not text:
        return DEFAULT_CLOUD
    found = {name.upper(): name for name in _CLOUDS}.get(text.upper())
    if found is None:
        hint = "use one of " + ", ".join(_CLOUDS)
        report.error((*_OBJECTS[:2], "cloudName"), "is not a known cloud", hint)
    return found or DEFAULT_CLOUD


def _objects(text: str, report: Report) -> tuple[AzureObject, ...]:
    tree = _parse(text, _OBJECTS, report)
    array = tree.get("array") if isinstance(tree, Node) else None
    if not isinstance(array, list) or not array:
        if not report.failed or tree is not None:
            hint = "write objects: | and below it array: with a - | block for each object"
            report.error(_OBJECTS, "names no object", hint)
        return ()
    assert isinstance(tree, Node)
    for key in tree:
        if key != "array":
            report.unknown((*_OBJECTS, key), ("array",))
    objects = []
    for index, element in enumerate(array):
        path = (*_OBJECTS, "array", index)
        if not isinstance(element, Scalar):
            report.error(path, "must be a string", "write - | and indent the object below it")
            continue
        inner = _parse(element, path, report)
        item = _object(inner, path, report) if inner is not None else None
        if item is not None:
            objects.append((path, item))
    named = [(path, name) for path, item in objects if item.path for name in item.paths]
    check_paths(named, report)
    return tuple(item for _, item in objects)


def _parse(text: str, path: Path, report: Report) -> Any:  # noqa: ANN401 - a tree
    """The one YAML document of a text; None, with a finding, where it is none."""
    try:
        documents = parse_yaml(text.encode("utf-8", "replace"), raw=True)
    except TreeError as error:
        report.error(path, str(error), "mend the YAML in that block")
        return None
    if len(documents) == 1:
        return documents[0]
    report.error(path, "is empty" if not documents else "holds several documents", "write one")
    return None


def _object(tree: Any, path: Path, report: Report) -> AzureObject | None:  # noqa: ANN401 - a tree
    tree = without_unknown(tree, path, _KEYS, report)
    fields, problems = decode(tree, _Object)
    report.problems(path, problems)
    if fields is None:
        return None
    if not re.fullmatch("[0-9A-Za-z-]{1,127}", fields.object_name):
        message = "is not the name of an object" if fields.object_name else "is missing"
        hint = "use 1 to 127 letters, digits and -, as Key Vault does"
        report.error((*path, "objectName"), message, hint)
    kind = fields.object_type
    if kind not in KINDS:
        message = "is not known" if kind else "is missing"
        report.error((*path, "objectType"), message, "use one of " + ", ".join(KINDS))
    if not re.fullmatch("[0-9A-Za-z]{0,64}", fields.object_version):
        hint = "write the version's id, or leave it out for the newest"
        report.error((*path, "objectVersion"), "is not a version", hint)
    format_ = _one_of(fields.object_format, "objectFormat", FORMATS, path, report)
    encoding = _one_of(fields.object_encoding, "objectEncoding", ENCODINGS, path, report)
    for key, used in (("objectFormat", format_ != "pem"), ("objectEncoding", encoding != "utf-8")):
        if used and kind in ("key", "cert"):
            hint = "remove it, or use objectType: secret"
            report.error((*path, key), "is for secrets only", hint)
    return AzureObject(
        path=str(fields.object_alias or fields.object_name),
        name=str(fields.object_name),
        kind=cast("Kind", str(kind)),
        version="" if fields.object_version == "latest" else str(fields.object_version),
        history=_history(fields.object_version_history, path, report),
        pfx=format_ == "pfx",
        encoding=encoding,
        mode=_mode(fields.file_permission, path, report),
    )


def _one_of(text: str, key: str, known: tuple[str, ...], path: Path, report: Report) -> str:
    """A choice, in small letters; the first one where nothing is written."""
    choice = text.lower() or known[0]
    if choice not in known:
        report.error((*path, key), "is not known", "use one of " + ", ".join(known))
    return choice


def _history(text: str, path: Path, report: Report) -> int:
    """How many versions; upstream makes a plain file for 0 and 1."""
    if not re.fullmatch("[0-9]{0,9}", text) or int(text or 0) > LONGEST_HISTORY:
        hint = "write how many versions to keep, such as 3"
        message = f"is not a number up to {LONGEST_HISTORY}"
        report.error((*path, "objectVersionHistory"), message, hint)
        return 0
    count = int(text or 0)
    return count if count > 1 else 0


def _mode(text: str, path: Path, report: Report) -> int:
    mode = octal_permission(text) if text else DEFAULT_MODE
    if mode is None:
        hint = "write it in octal, such as 0600"
        report.error((*path, "filePermission"), "is not a permission up to 0777", hint)
    return mode or DEFAULT_MODE
