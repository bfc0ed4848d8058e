"""Executes a command for which some system calls fail: `sandbox.py ERRNO CALL… -- COMMAND…`.

A seccomp filter (seccomp(2)), as container runtimes and gVisor-like sandboxes put over a process.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_LOAD, _EQUALS, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000
_NUMBERS = {
    "x86_64": {"inotify_init": 253, "inotify_init1": 294, "openat2": 437, "prctl": 157},
    "aarch64": {"inotify_init1": 26, "openat2": 437, "prctl": 167},
}


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def deny(number: int, calls: list[str]) -> None:
    """Lets these system calls of this process and its successors fail with an error number."""
    known = _NUMBERS[os.uname().machine]
    code = struct.pack("HBBI", _LOAD, 0, 0, 0)
    for call in calls:
        if call in known:
            code += struct.pack("HBBI", _EQUALS, 0, 1, known[call])
            code += struct.pack("HBBI", _RETURN, 0, 0, _FAIL | number)
    code += struct.pack("HBBI", _RETURN, 0, 0, _ALLOW)
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Program(len(code) // 8, code)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "cannot install the filter")


if __name__ == "__main__":
    split = sys.argv.index("--")
    deny(getattr(errno, sys.argv[1]), sys.argv[2:split])
    os.execvp(sys.argv[split + 1], sys.argv[split + 1 :])
