"""What a process that runs the daemon does not load, and that it works when it is needed."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.request
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import TYPE_CHECKING

from support.receiver import Receiver
from support.tls import Authority
from support.waiting import DEADLINE
from support.world import World, secret

if TYPE_CHECKING:
    from support.daemon import DaemonProcess

LIBRARIES = {
    *("_distutils_hack", "rich"),  # a virtual environment's; what structlog looks for in vain
    *("aiofiles", "anyio", "click", "h11", "inotify_simple", "msgspec", "prometheus_client"),
    *("standardwebhooks", "starlette", "structlog", "uvicorn"),
    *("_yaml", "yaml", "typing_extensions"),
}
UNWANTED = {
    *("_ssl", "asyncio.sslproto", "ssl"),
    *("bz2", "configparser", "ctypes.util", "html", "logging.config", "lzma"),
    *("mimetypes", "multiprocessing", "shutil", "tempfile", "aiofiles.tempfile"),
    *("email.message", "email.utils", "http.client", "http.server", "importlib.metadata"),
    *("urllib.request", "wsgiref.simple_server"),
    *("uvicorn.main", "cryptography", "nats", "requests"),
    *("syncd.net.nats", "syncd.provision.factory", "syncd.provision.plan"),
}
WORKS_WITH_TLS = """
import sys
from syncd.system.lean_import import import_daemon_libraries, import_http_server
import_daemon_libraries()
import_http_server()
assert not {"_ssl", "_hashlib"} & sys.modules.keys()
import anyio, asyncio, hashlib, hmac
assert hashlib.sha256(b"abc").hexdigest().startswith("ba7816bf")
assert len(hmac.digest(b"key", b"content", hashlib.sha256)) == 32

async def main():
    import ssl
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(sys.argv[2], sys.argv[3])
    trusted = ssl.create_default_context(cafile=sys.argv[1])

    async def echo(reader, writer):
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=server_side)
    port = server.sockets[0].getsockname()[1]

    async def talk(reader, writer):
        writer.write(b"hello\\n")
        print((await reader.readline()).decode().strip())
        writer.close()

    await talk(*await asyncio.open_connection("127.0.0.1", port, ssl=trusted))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await writer.start_tls(trusted, server_hostname="127.0.0.1")
    await talk(reader, writer)
    async with await anyio.connect_tcp("127.0.0.1", port, ssl_context=trusted) as stream:
        await stream.send(b"hello\\n")
        print((await stream.receive()).decode().strip())
    server.close()

anyio.run(main)
from starlette.exceptions import HTTPException
print(HTTPException(404).detail)
import http.server, wsgiref.simple_server, prometheus_client, tempfile
assert issubclass(wsgiref.simple_server.WSGIServer, http.server.HTTPServer)
prometheus_client.start_http_server
"""


def imported(daemon: DaemonProcess) -> set[str]:
    """The modules that a process with `-X importtime` has imported so far."""
    lines = "".join(daemon.output).splitlines()
    return {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}


def test_a_sidecar_loads_no_more_than_it_uses_and_tls_when_it_is_configured() -> None:
    """With a webhook, probes, metrics and socket: no OpenSSL, no server that syncd never starts.

    A reload that configures TLS works as a start with it does.
    """
    with World() as world, Receiver() as plain:
        ours = Authority(Path(world.directory))
        world.map("app")
        world.publish(app=secret("1"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        api = {"socket": f"{world.directory}/s", "listen": f"127.0.0.1:{port}"}
        world.configure(consumers=[{"name": "hook", "kind": "webhook", "url": plain.url}], api=api)
        with world.daemon(PYTHONPROFILEIMPORTTIME="1") as daemon:
            world.publish(app=secret("2"))
            plain.wait(1)
            for page in ("readyz", "metrics"):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=DEADLINE).close()
            loaded = imported(daemon)
            assert loaded & UNWANTED == set()
            with open(f"/proc/{daemon.pid}/maps") as maps:
                assert "libcrypto" not in maps.read()
            used = {name.partition(".")[0] for name in loaded} & packages_distributions().keys()
            assert used - LIBRARIES - {"syncd"} == set()

            with Receiver(tls=ours.server()) as encrypted:
                consumer = {"name": "hook", "kind": "webhook", "url": encrypted.url}
                world.configure(consumers=[{**consumer, "ca_file": str(ours.file)}], api=api)
                daemon.signal(signal.SIGHUP)
                daemon.wait_for("daemon.reloaded")
                world.publish(app=secret("3"))
                encrypted.wait(1)
            assert "_ssl" in imported(daemon)


def test_what_was_left_out_works_when_it_is_used(tmp_path: Path) -> None:
    """TLS of asyncio and anyio, hashes, and other programs' imports."""
    ours = Authority(tmp_path)
    certificate, key = tmp_path / "server.pem", tmp_path / "server.key"
    ours.write_server(certificate, key)
    done = subprocess.run(
        [sys.executable, "-c", WORKS_WITH_TLS, ours.file, certificate, key],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["hello", "hello", "hello", "Not Found"]
