"""Azure's clouds: addresses of their vaults and of their login.

Sources: go-autorest `autorest/azure/environments.go` (names, suffixes, and the file of a custom
cloud), the Azure provider's "Custom Azure Environments" page.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

import msgspec

from syncd.core.errors import RefusedError
from syncd.system.errnos import reason, remedy
from syncd.system.files import read_file

_LARGEST: Final = 1 << 20


class Cloud(msgspec.Struct, frozen=True):
    """One cloud.

    Attributes:
        vault_suffix: Domain of the vaults' host names.
        authority: URL of Microsoft Entra ID, without a trailing slash.
    """

    vault_suffix: str
    authority: str

    def vault_url(self, name: str) -> str:
        """The URL of a vault."""
        return f"https://{name}.{self.vault_suffix}"

    @property
    def scope(self) -> str:
        """The scope of a token for the cloud's vaults."""
        return f"https://{self.vault_suffix}/.default"


_CLOUDS: Final = {
    "AzurePublicCloud": Cloud("vault.azure.net", "https://login.microsoftonline.com"),
    "AzureUSGovernmentCloud": Cloud("vault.usgovcloudapi.net", "https://login.microsoftonline.us"),
    "AzureChinaCloud": Cloud("vault.azure.cn", "https://login.chinacloudapi.cn"),
    "AzureGermanCloud": Cloud("vault.microsoftazure.de", "https://login.microsoftonline.de"),
}


class _Environment(msgspec.Struct, frozen=True, rename="camel"):
    active_directory_endpoint: str
    key_vault_dns_suffix: str = msgspec.field(name="keyVaultDNSSuffix")


def find_cloud(name: str, environment_file: str | None) -> Cloud:
    """Finds the cloud that a manifest names.

    Blocks where there is a file: for worker threads.

    Args:
        name: `cloudName`, in its usual spelling.
        environment_file: Describes a custom cloud, or None.

    Raises:
        RefusedError: The file cannot be used.
    """
    if environment_file is None:
        return _CLOUDS[name]
    try:
        text, _ = read_file(environment_file, _LARGEST)
        written = msgspec.json.decode(text, type=_Environment)
    except OSError as error:
        correction = "set cloudEnvFileName to the file that describes the cloud"
        raise RefusedError(
            f"cannot read {environment_file}: {reason(error)}",
            remedy(error, path=correction, access="let syncd's user read it"),
        ) from None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass
    else:
        authority = written.active_directory_endpoint.rstrip("/")
        suffix = written.key_vault_dns_suffix.strip(".")
        if urlsplit(authority).scheme == "https" and urlsplit(authority).hostname and suffix:
            return Cloud(suffix, authority)
    raise RefusedError(
        f"cannot use {environment_file}: it is not JSON with activeDirectoryEndpoint (https://…)"
        " and keyVaultDNSSuffix",
        "correct the file, or set cloudEnvFileName to the right one",
    )
