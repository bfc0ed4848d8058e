"""Callers try everything on the Unix socket: others are served, and memory is bounded."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import select
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from support.faults import SOAK, Books, descriptors, expected, hook, is_root, memory, scaled
from support.subscriber import ask
from support.waiting import DEADLINE, wait_until
from support.world import CANARY, World, secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.world import DaemonProcess

GRANTED, STRANGER, OTHER = 4242, 4343, 4444
CONNECTIONS = 10_000
MOST_GROWTH = 32 * 1024
"""KiB of resident memory that all connections together may cost."""
needs_root = pytest.mark.skipif(not is_root(), reason="only root can become another user")


@pytest.fixture
def world(books: Books) -> Iterator[World]:
    with World() as world:
        os.chmod(world.directory, 0o755)
        world.publish(a=secret("0"))
        world.map("a")
        world.configure(
            consumers=[hook(books)],
            api={
                "socket": path(world),
                "socket_mode": "0666",
                "subscribers": [{"name": f"u{uid}", "uid": uid} for uid in (GRANTED, OTHER)],
            },
        )
        yield world


def path(world: World) -> str:
    return f"{world.directory}/syncd.sock"


CALLER = """
import os, socket, sys, time
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
started = time.monotonic()
one = socket.socket(socket.AF_UNIX)
one.connect(sys.argv[1])
one.sendall(b"GET /v1/secrets HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
while chunk := one.recv(65536):
    print(chunk.decode(), end="")
print(time.monotonic() - started, file=sys.stderr)
"""


class Check:
    """Others are served and a rotation arrives, whatever goes on; the memory that it costs."""

    def __init__(self, world: World, books: Books, daemon: DaemonProcess) -> None:
        self._world, self._books, self._daemon = world, books, daemon
        books.start_from(expected(world))
        self.served()
        self._before = memory(daemon.pid)
        self.worst = 0.0

    def served(self) -> None:
        """Asks as another user, who is granted what it asks for."""
        done = subprocess.run(
            [sys.executable, "-c", CALLER, path(self._world), str(OTHER)],
            capture_output=True,
            check=False,
            timeout=DEADLINE,
        )
        assert done.stdout.startswith(b"HTTP/1.1 200 "), done
        assert CANARY not in done.stdout
        self.worst = float(done.stderr)

    def rotated(self, mark: str) -> None:
        self._world.publish(a=secret(mark))
        self._books.wait_for_state(expected(self._world))

    @property
    def growth(self) -> int:
        """KiB."""
        return max(0, memory(self._daemon.pid) - self._before)


def exchange(world: World, request: bytes, *, ends: bool) -> bytes:
    """Sends bytes, and an end if so wanted; the first line of the answer, if there is one."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(DEADLINE)
        caller.connect(path(world))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            caller.sendall(request)
            if ends:
                caller.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            return caller.recv(65536).partition(b"\r\n")[0]
        return b""


MALFORMED = [
    b"",
    b"\r\n" * 1000,
    b"GET\r\n\r\n",
    b"GET /v1/secrets\r\n\r\n",
    b"GET /v1/secrets HTTP/9.9\r\nHost: x\r\n\r\n",
    b"GET /v1/secrets HTTP/1.1\r\n\r\n",
    b"GET /v1/secrets HTTP/1.1\nHost: x\n\n",
    b"GET /v1/secrets HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    b"GET /v1/secrets HTTP/1.1\r\nHost : x\r\n\r\n",
    b"GET /v1/secrets HTTP/1.1\r\n Host: x\r\n\r\n",
    b"GET /v1/\x00secrets HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/secrets?secret=%00%ff HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://169.254.169.254/ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /v1/refresh HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/refresh HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\nx",
    b"POST /v1/refresh HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    b"POST /v1/refresh HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/refresh HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\nx",
    b"POST /v1/refresh HTTP/1.1\r\nHost: x\r\nContent-Length: 1048576\r\n\r\n" + b"x" * 1048576,
    b"GET /v1/events HTTP/1.1\r\nHost: x\r\nLast-Event-ID: " + b"9" * 5000 + b"\r\n\r\n",
    b"GET /v1/events?after=" + b"-" * 8000 + b"&follow=false HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500,
    b"GET /" + b"x" * (1 << 20) + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
    b"GET / HTTP/1.1\r\nX: " + b"y" * (8 << 20) + b"\r\n\r\n",
]


@needs_root
def test_malformed_requests(world: World, books: Books, count: Callable[[str], None]) -> None:
    """Junk, huge headers and mutated requests are refused or ignored: no error of the server's."""
    rng = random.Random(9)
    mutants = []
    for _ in range(scaled(300, 30_000)):
        request = bytearray(rng.choice(MALFORMED)[:2000] or b"GET / HTTP/1.1\r\n\r\n")
        for _ in range(rng.randrange(1, 8)):
            request[rng.randrange(len(request))] = rng.randrange(256)
        mutants.append(bytes(request[: rng.randrange(1, len(request) + 1)]))
    answers: dict[str, int] = {}
    with world.daemon() as daemon:
        check = Check(world, books, daemon)
        with ThreadPoolExecutor(len(MALFORMED)) as pool:  # some wait for the server's patience
            lines = list(pool.map(lambda one: exchange(world, one, ends=False), MALFORMED))
        for line in [*lines, *(exchange(world, one, ends=True) for one in mutants)]:
            status = line.split(b" ")[1].decode() if line else "none"
            answers[status] = answers.get(status, 0) + 1
        check.served()
        check.rotated("after")
        growth, failed = check.growth, len(daemon.logged("api.failed"))
    counts = ", ".join(f"{number} {status}" for status, number in sorted(answers.items()))
    count(
        f"requests {len(MALFORMED) + len(mutants)}: {counts}; failures of the server {failed}, "
        f"memory +{growth} KiB"
    )
    assert failed == 0, daemon.logged("api.failed")
    assert not any(status.startswith("5") for status in answers)
    assert answers["400"] > 10
    assert growth < MOST_GROWTH


CROWD = """
import os, resource, socket, sys, time
uid = int(sys.argv[5])
os.setgroups([])
os.setgid(uid)
os.setuid(uid)
path, count, seconds, request = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
request = request.encode()
crowd = []
until = float("inf")
def join():
    while True:
        one = socket.socket(socket.AF_UNIX)
        try:
            one.connect(path)  # waits while the backlog is full
        except PermissionError:  # denied for a minute, for connecting too often
            if time.monotonic() > until:
                return one
            one.close()
            time.sleep(0.1)
            continue
        one.setblocking(False)
        return one
while len(crowd) < count:
    crowd.append(join())
print("here", flush=True)
until = time.monotonic() + seconds
turn = lost = 0
while time.monotonic() < until:
    for number, one in enumerate(crowd):
        try:
            if turn < len(request):
                one.send(request[turn:turn + 1])
            while one.recv(4096):
                pass
            raise ConnectionError
        except BlockingIOError:
            pass
        except OSError:  # thrown out: comes again
            lost += 1
            one.close()
            crowd[number] = join()
        if time.monotonic() > until:
            break
    turn += 1
    time.sleep(0.01)
print(lost, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def crowd(
    world: World, number: int, uid: int, request: str, seconds: float
) -> Iterator[subprocess.Popen[str]]:
    """Another user's process that connects so many times, and again when it is thrown out."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < number + 100:
        pytest.skip(f"the hard limit of open files, {hard}, is too low for {number} connections")
    process = subprocess.Popen(
        [
            *("prlimit", f"--nofile={number + 100}:", "--", sys.executable, "-c", CROWD),
            *(path(world), str(number), str(seconds), request, str(uid)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        yield process
    finally:
        process.kill()
        process.communicate()


SILENT, LORIS = "", "GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n"
CROWDS = [
    pytest.param(GRANTED, LORIS, id="granted-loris"),
    pytest.param(STRANGER, SILENT, id="stranger-silent"),
    *(
        [
            pytest.param(GRANTED, SILENT, id="granted-silent"),
            pytest.param(STRANGER, LORIS, id="stranger-loris"),
        ]
        if SOAK
        else []
    ),
]


@needs_root
@pytest.mark.parametrize(("uid", "request_"), CROWDS)
def test_ten_thousand_connections(
    world: World, books: Books, count: Callable[[str], None], uid: int, request_: str
) -> None:
    """One user's connections, silent or a byte at a time, cost little and block no other user."""
    with world.daemon() as daemon:
        check = Check(world, books, daemon)
        idle = descriptors(daemon.pid)
        worst, turns = 0.0, 0
        with crowd(world, CONNECTIONS, uid, request_, scaled(1, 60)) as process:
            assert process.stdout is not None
            while not select.select([process.stdout], [], [], 0)[0]:
                check.served()
                worst = max(worst, check.worst)
                check.rotated(f"{turns}")
                turns += 1
            disconnected = process.stdout.readline()
            growth, most = check.growth, descriptors(daemon.pid) - idle
        wait_until(
            lambda: descriptors(daemon.pid) <= idle + 2,
            lambda: f"{descriptors(daemon.pid) - idle} descriptors are left",
        )
        problems = len(daemon.logged("secret.problem"))
    count(
        f"connections {CONNECTIONS}, disconnected {disconnected.strip()} times, kept {most} at the "
        f"end, memory +{growth} KiB, others served {turns} of {turns}, "
        f"{worst * 1000:.0f} ms at worst, rotations lost 0 of {turns}, problems {problems}"
    )
    assert growth < MOST_GROWTH
    assert problems == 0


@needs_root
def test_wrong_user(world: World, books: Books, count: Callable[[str], None]) -> None:
    """Whatever a user asks for that is not granted anything, the answer is 403 and no name."""
    paths = ["/v1/secrets", "/v1/status", "/v1/events", "/v1/refresh", "/", "/metrics", "/v1/x"]
    refused = 0
    with world.daemon():
        for target in paths:
            for method in ("GET", "POST", "HEAD", "DELETE", "OPTIONS"):
                done = subprocess.run(
                    [
                        *(
                            "curl",
                            "-sS",
                            "--max-time",
                            f"{DEADLINE}",
                            "-X",
                            method,
                            "-w",
                            "\n%{http_code}",
                        ),
                        *(["--head"] if method == "HEAD" else []),
                        *("--unix-socket", path(world), f"http://syncd{target}"),
                    ],
                    user=STRANGER,
                    group=STRANGER,
                    extra_groups=[],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                body, _, status = done.stdout.rpartition("\n")
                assert '"a"' not in body
                refused += status == "403"
        assert ask(path(world), "/v1/secrets")[0] == 200
    total = len(paths) * 5
    count(f"refused {refused} of {total} requests of a user without a grant")
    assert refused == total


def status_of(world: World, uid: int) -> tuple[str, str]:
    """The status line and the whole of the answer to a user."""
    done = subprocess.run(
        [sys.executable, "-c", CALLER, path(world), str(uid)],
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE,
    )
    return done.stdout.splitlines()[0].split()[1], done.stdout


@needs_root
@pytest.mark.parametrize(
    "namespace", [["unshare", "--user", "--map-root-user"], ["unshare", "--user"]]
)
def test_users_outside_the_user_namespace(world: World, namespace: list[str]) -> None:
    """They all have one uid, which gets nothing: neither by an entry nor as the daemon's own."""
    entries = [{"name": "nobody", "uid": 65534}, {"name": "app", "uid": GRANTED}]
    api = {"socket": path(world), "socket_mode": "0666", "subscribers": entries}
    world.configure(api=api)
    with world.daemon(wrapper=namespace) as daemon:
        root = status_of(world, 0)
        for uid in (GRANTED, STRANGER, 65534):
            status, answer = status_of(world, uid)
            assert status == "403"
            assert "not mapped into the user namespace" in answer
            assert "api.subscribers" not in answer
        assert root[0] == ("200" if "--map-root-user" in namespace else "403")
        denied = daemon.wait_for("api.denied", uid=65534)
        assert "api.subscribers" not in str(denied)
        assert "one user namespace" in denied["hint"]


WHOLE_NAMESPACE = """
import ctypes, os, sys
CLONE_NEWUSER, EVERY = 0x10000000, "0 0 4294967295"
moved, move = os.pipe()
if not (helper := os.fork()):  # it stays outside: only from there may all be mapped
    os.read(moved, 1)
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{os.getppid()}/{name}", "w") as file:
            file.write(EVERY)
    os._exit(0)
assert ctypes.CDLL(None).unshare(CLONE_NEWUSER) == 0
os.write(move, b"x")
assert os.waitpid(helper, 0)[1] == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


@needs_root
def test_a_user_namespace_that_maps_everyone(world: World) -> None:
    """There, as without a namespace, 65534 is the user nobody and can have an entry."""
    api = {"socket": path(world), "socket_mode": "0666"}
    world.configure(api={**api, "subscribers": [{"name": "nobody", "uid": 65534}]})
    for wrapper in ([], [sys.executable, "-c", WHOLE_NAMESPACE]):
        with world.daemon(wrapper=wrapper):
            assert status_of(world, 65534)[0] == "200"
            assert status_of(world, STRANGER)[0] == "403"


DEAF = """
import os, resource, socket, sys
uid = int(sys.argv[3])
os.setgroups([])
os.setgid(uid)
os.setuid(uid)
request = sys.argv[4].encode()
held = []
for number in range(int(sys.argv[2])):
    one = socket.socket(socket.AF_UNIX)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    one.connect(sys.argv[1])
    try:
        one.sendall(request.replace(b"NUMBER", b"%d" % number))
    except OSError:
        pass
    held.append(one)
print("here", flush=True)
sys.stdin.read()
"""
EVERYTHING = "GET /v1/secrets HTTP/1.1\r\nHost: x\r\n\r\n"
RESETS = (
    "GET /v1/events?resource=Client&secret=sNUMBER HTTP/1.1\r\nHost: x\r\n"
    "Last-Event-ID: gone-1\r\n\r\n"
)


@needs_root
@pytest.mark.parametrize("request_", [EVERYTHING, EVERYTHING * 20, RESETS], ids=range(3))
def test_a_user_who_does_not_read(
    world: World, books: Books, count: Callable[[str], None], request_: str
) -> None:
    """All of a granted user's connections cost a few MiB; others are served; SIGTERM is obeyed."""
    names = [f"s{number:04}" for number in range(1000)]
    world.publish({name: secret("0") for name in names})
    world.map(*names, "a")
    with world.daemon() as daemon:
        check = Check(world, books, daemon)
        deaf = subprocess.Popen(
            [sys.executable, "-c", DEAF, path(world), "400", str(GRANTED), request_],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert deaf.stdout is not None
            assert deaf.stdout.readline() == "here\n"
            for number in range(5):
                check.served()
                check.rotated(str(number))
                assert ask(path(world), "/v1/status")[0] == 200
            growth = check.growth
            assert daemon.stop() == 0
        finally:
            deaf.kill()
            deaf.communicate()
    count(f"a user with 400 connections that reads nothing: memory +{growth} KiB")
    assert growth < MOST_GROWTH // 2


CHURN = """
import os, socket, sys
uid = int(sys.argv[2])
os.setgroups([])
os.setgid(uid)
os.setuid(uid)
print("here", flush=True)
while True:
    one = socket.socket(socket.AF_UNIX)
    one.setblocking(False)
    one.connect_ex(sys.argv[1])
    one.close()
"""


@needs_root
@pytest.mark.parametrize("uid", [STRANGER, GRANTED])
def test_a_user_who_connects_in_a_loop(
    world: World, books: Books, count: Callable[[str], None], uid: int
) -> None:
    """Connecting and closing as fast as it can, a user makes no call of another user fail."""
    with world.daemon() as daemon:
        check = Check(world, books, daemon)
        looping = subprocess.Popen(
            [sys.executable, "-c", CHURN, path(world), str(uid)],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert looping.stdout is not None
            assert looping.stdout.readline() == "here\n"
            answered = sum(ask(path(world), "/v1/status")[0] == 200 for _ in range(100))
            check.served()
            check.rotated("after")
        finally:
            looping.kill()
            looping.communicate()
        growth = check.growth
    count(f"root's calls beside a user who connects in a loop: {answered} of 100 answered")
    assert answered == 100
    assert growth < MOST_GROWTH
