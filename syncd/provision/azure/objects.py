"""A manifest of `provider: azure`: its parameters and objects, decoded. Pure.

Source: Azure/secrets-store-csi-driver-provider-azure 1.8, `pkg/provider`. Where syncd is stricter:
names are checked against Key Vault's rule, an invalid permission is an error (upstream: mode 0),
what would fail at the first mount is an error at the start, and what works in a cluster only is
refused, unless the configuration's `auth` decides. As upstream, white space around every value is
dropped.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import msgspec

from syncd.core.decode import Text, decode
from syncd.core.payload import DEFAULT_MODE, ENCODINGS
from syncd.core.tree import Node, Scalar
from syncd.provision.manifest import (
    Path,
    check_paths,
    check_permission,
    go_bool,
    octal_permission,
    parse_block,
    without_unknown,
)
from syncd.provision.yaml_v3 import resolve

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

_PARAMETERS_PATH: Path = ("spec", "parameters")
_OBJECTS: Path = (*_PARAMETERS_PATH, "objects")
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
CLUSTER_ONLY: Final = {
    "usePodIdentity": 'set useVMManagedIdentity: "true" instead',
    "useAzureTokenProxy": 'set useVMManagedIdentity: "true" instead, or auth in the configuration',
}
_CLOUDS: Final = (
    DEFAULT_CLOUD,
    "AzureUSGovernmentCloud",
    "AzureChinaCloud",
    "AzureGermanCloud",
    CUSTOM_CLOUD,
)
_CLOUD_ALIASES: Final = {
    "AZURECLOUD": DEFAULT_CLOUD,
    "AZUREUSGOVERNMENT": "AzureUSGovernmentCloud",
}
"""As `az cloud list` names them; go-autorest knows them too."""


class AzureObject(msgspec.Struct, frozen=True):
    """One object of a vault, and the file or files that it is written to.

    Attributes:
        path: The file, relative to the target; a directory where `history` asks for several.
        name: The object's name in the vault.
        kind: `secret`, `key` (its public part) or `cert` (without its key).
        version: Which version; empty for the newest.
        history: How many versions, from `version` back; 0 for one file.
        pfx: Whether a PKCS#12 is written as it is (`objectFormat: pfx`) instead of as PEM.
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
        """The files that are written; with a history, as many as there can be."""
        if not self.history:
            return (self.path,)
        return tuple(f"{self.path}/{index}" for index in range(self.history))


class AzureClass(msgspec.Struct, frozen=True):
    """A SecretProviderClass of Azure Key Vault.

    Attributes:
        vault: `keyvaultName`.
        cloud: `cloudName`, in its usual spelling.
        environment_file: `cloudEnvFileName`, which describes a custom cloud, or None.
        tenant: `tenantID`, or empty.
        tenant_key: How the manifest spells that, for messages.
        managed_identity: Whether to log in by the machine's identity (`useVMManagedIdentity`).
        assigned_identity: Client id of the user-assigned one; empty for the system-assigned one.
        client_id: `clientID` of a workload identity, or empty.
        cluster_only: Which keys of `CLUSTER_ONLY` are true: errors, unless `auth` decides.
        objects: What to fetch, in order.
    """

    vault: str
    cloud: str
    environment_file: str | None
    tenant: str
    tenant_key: str
    managed_identity: bool
    assigned_identity: str
    client_id: str
    cluster_only: tuple[str, ...]
    objects: tuple[AzureObject, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that are written, relative to the target."""
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
        The class, or None where there is an error, and all findings.
    """
    report = manifest.report()
    parameters = {key: value.strip() for key, value in manifest.parameters.items()}
    report.unknown(_PARAMETERS_PATH, parameters, _PARAMETERS)
    flags = {
        key: go_bool(parameters.get(key, ""), (*_PARAMETERS_PATH, key), report)
        for key in ("useVMManagedIdentity", *CLUSTER_ONLY)
    }
    vault = parameters.get("keyvaultName", "")
    if not re.fullmatch("[-A-Za-z0-9]{3,24}", vault):
        message = "is not the name of a Key Vault" if vault else "is missing"
        hint = "write its name alone: 3 to 24 letters, digits and -"
        report.error((*_PARAMETERS_PATH, "keyvaultName"), message, hint)
    cloud = _cloud(parameters.get("cloudName", ""), report)
    file = parameters.get("cloudEnvFileName", "")
    if cloud == CUSTOM_CLOUD and not file.startswith("/"):
        message = "is missing" if not file else "is not an absolute path"
        hint = "set it to the JSON file that describes the cloud"
        report.error((*_PARAMETERS_PATH, "cloudEnvFileName"), message, hint)
    objects = _objects(parameters.get("objects"), report)
    managed = flags["useVMManagedIdentity"]
    _check_identity(parameters, report, managed=managed)
    if report.errors:
        return None, report.findings
    azure_class = AzureClass(
        vault=vault,
        cloud=cloud,
        environment_file=file if cloud == CUSTOM_CLOUD else None,
        tenant=parameters.get("tenantID") or parameters.get("tenantId", ""),
        tenant_key=_tenant_key(parameters),
        managed_identity=managed,
        assigned_identity=parameters.get("userAssignedIdentityID", "") if managed else "",
        client_id=parameters.get("clientID", ""),
        cluster_only=tuple(key for key in CLUSTER_ONLY if flags[key]),
        objects=objects,
    )
    return azure_class, report.findings


def _tenant_key(parameters: Mapping[str, str]) -> str:
    return (
        "tenantId" if parameters.get("tenantId") and not parameters.get("tenantID") else "tenantID"
    )


def _check_identity(parameters: Mapping[str, str], report: Report, *, managed: bool) -> None:
    upper, lower = parameters.get("tenantID", ""), parameters.get("tenantId", "")
    if upper and lower and upper != lower:
        message = "does nothing beside tenantID, which differs"
        report.warn((*_PARAMETERS_PATH, "tenantId"), message, "keep one of them")
    if not managed and not re.fullmatch("[-.0-9A-Za-z]*", upper or lower):
        hint = "write the tenant's id or domain"
        report.error((*_PARAMETERS_PATH, _tenant_key(parameters)), "is not a tenant", hint)
    if parameters.get("userAssignedIdentityID") and not managed:
        hint = 'set useVMManagedIdentity: "true", or remove it'
        where = (*_PARAMETERS_PATH, "userAssignedIdentityID")
        report.warn(where, "does nothing without useVMManagedIdentity", hint)
    if parameters.get("clientID") and managed:
        hint = "remove it: it is for a workload identity"
        message = "does nothing beside useVMManagedIdentity"
        report.warn((*_PARAMETERS_PATH, "clientID"), message, hint)


def _cloud(text: str, report: Report) -> str:
    """The usual spelling of a cloud's name; go-autorest ignores case."""
    if not text:
        return DEFAULT_CLOUD
    found = ({name.upper(): name for name in _CLOUDS} | _CLOUD_ALIASES).get(text.upper())
    if found is None:
        hint = "use one of " + ", ".join(_CLOUDS)
        report.error((*_PARAMETERS_PATH, "cloudName"), "is not a known cloud", hint)
    return found or DEFAULT_CLOUD


def _objects(text: str | None, report: Report) -> tuple[AzureObject, ...]:
    hint = "write objects: | and below it array: with a - | block for each object"
    tree = parse_block(text, _OBJECTS, hint, report)
    if tree is None:
        return ()
    array = tree.get("array") if isinstance(tree, Node) else None
    if not isinstance(array, list) or not array:
        report.error(_OBJECTS, "contains no objects", hint)
        return ()
    assert isinstance(tree, Node)
    report.unknown(_OBJECTS, tree, ("array",))
    objects = []
    for index, element in enumerate(array):
        path = (*_OBJECTS, "array", index)
        if not isinstance(element, Scalar):
            report.error(path, "must be a string", "write - | and indent the object below it")
            continue
        inner = parse_block(element, path, "write objectName: and objectType: below - |", report)
        item = _object(inner, path, report) if inner is not None else None
        if item is not None:
            objects.append((path, item))
    named = [(path, name) for path, item in objects if item.path for name in item.paths]
    check_paths(named, report)
    return tuple(item for _, item in objects)


def _object(tree: Any, path: Path, report: Report) -> AzureObject | None:  # noqa: ANN401 - a tree
    tree = without_unknown(tree, path, _Object, report)
    history = tree.get("objectVersionHistory") if isinstance(tree, Node) else None
    if isinstance(history, Scalar) and isinstance(number := resolve(history), int):
        tree["objectVersionHistory"] = str(number)  # such as `0x2`
    fields, problems = decode(tree, _Object)
    report.problems(path, problems)
    if fields is None:
        return None
    trimmed = {key: Text(value.strip()) for key, value in msgspec.structs.asdict(fields).items()}
    fields = msgspec.structs.replace(fields, **trimmed)
    if not re.fullmatch("[0-9A-Za-z-]{1,127}", fields.object_name):
        message = "is not the name of an object" if fields.object_name else "is missing"
        hint = "use 1 to 127 letters, digits and -, as Key Vault does"
        report.error((*path, "objectName"), message, hint)
    for field in msgspec.structs.fields(_Object):
        report.placeholders((*path, field.encode_name), getattr(fields, field.name))
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
    """A choice, in lower case; the first one is the default."""
    choice = text.lower() or known[0]
    if choice not in known:
        report.error((*path, key), "is not known", "use one of " + ", ".join(known))
    return choice


def _history(text: str, path: Path, report: Report) -> int:
    """How many versions; 0 for a plain file, which upstream writes for 0 and 1."""
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
    elif text:
        check_permission(mode, (*path, "filePermission"), report)
    return mode or DEFAULT_MODE
