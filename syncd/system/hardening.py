"""Protecting the memory of the process, which holds secrets for a moment.

A daemon that reads secrets has them, and its own credentials, in its memory. Without any bug in
syncd they could leave it in two ways: in a core dump, and through another process of the same user
that reads the memory (`/proc/PID/mem`, ptrace(2)). Both are prevented here: `PR_SET_DUMPABLE` 0
gives `/proc/PID` to root and refuses ptrace without `CAP_SYS_PTRACE` (prctl(2), ptrace(2) "Ptrace
access mode checking"), and a core limit of 0 applies even where a `core_pattern` would pipe the
dump to a program (core(5)).

It is best effort: where a kernel refuses, the daemon logs that and runs.
"""

from __future__ import annotations

import ctypes
import os
import resource

_PR_SET_DUMPABLE = 4  # include/uapi/linux/prctl.h


def harden() -> list[str]:
    """Makes this process neither dumpable nor readable for its own user's other processes.

    Returns:
        What was refused, one line each; empty if nothing was.
    """
    refused = []
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError) as error:
        refused.append(f"cannot set the limit of core dumps to 0: {error}")
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except AttributeError:
        refused.append("cannot make the process undumpable: this system has no prctl")
    else:
        if prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
            reason = os.strerror(ctypes.get_errno())
            refused.append(f"cannot make the process undumpable: {reason}")
    return refused
