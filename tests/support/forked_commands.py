"""The process that :mod:`tests.support.fork_server` forks commands from; a program, and no module to import.

It imports one command once, and then forks a child for every request that comes by its socket. A child has the
arguments, environment, folder and output of the request, a session of its own, and runs to the end as if it had been
started as a program; what it returned is told by the request's pipe. Nothing but imports happens before a fork: there
is one thread, and no connection, file or random number to inherit.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import sys
from collections.abc import Callable

REQUEST_BYTES = 2**18
FILES = 4  # of a request: standard input, output and error, and the pipe that its end is told by


def children_of(connection: socket.socket) -> dict[str, object]:
    """Fork a child for each request until nobody asks any more; returns in the children only, with the request."""
    running: dict[int, tuple[int, int]] = {}  # by the descriptor that watches a child: its id, and its pipe
    watched = select.poll()
    watched.register(connection, select.POLLIN)
    while True:
        for descriptor, _ in watched.poll():
            if descriptor != connection.fileno():
                watched.unregister(descriptor)
                process, pipe = running.pop(descriptor)
                status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
                os.close(descriptor)
                tell(pipe, b"%d" % status)
                continue
            data, files, _, _ = socket.recv_fds(connection, REQUEST_BYTES, FILES)
            if not data:  # the tests are over; whoever still runs is theirs to end
                os._exit(0)
            require_one_thread()
            process = os.fork()
            if process == 0:
                for watching, (_, pipe) in running.items():
                    os.close(watching)
                    os.close(pipe)
                connection.close()
                return become(json.loads(data), files)
            for file in files[:3]:
                os.close(file)
            watching = os.pidfd_open(process)
            running[watching] = process, files[3]
            watched.register(watching, select.POLLIN)
            connection.send(b"%d" % process)


def become(request: dict[str, object], files: list[int]) -> dict[str, object]:
    """Let this child be what a program would find itself to be."""
    os.setsid()
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
    for file in files:
        os.close(file)
    os.chdir(str(request["folder"]))
    os.environ.clear()
    os.environ.update(request["environment"])  # type: ignore[call-overload]
    sys.argv = list(request["words"])  # type: ignore[call-overload]
    random.seed()
    if "tempfile" in sys.modules:
        sys.modules["tempfile"].tempdir = None  # of this environment, when it is asked for
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    return request


def require_one_thread() -> None:
    """A lock that another thread holds at the fork would be held for ever in the child."""
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    if threads != 1:
        raise SystemExit(f"an import has left {threads} threads: nothing can be forked from here")


def tell(pipe: int, status: bytes) -> None:
    """Say how a child ended, unless nobody listens any more."""
    try:
        os.write(pipe, status)
    except BrokenPipeError:
        pass
    finally:
        os.close(pipe)


def serve(descriptor: str, entry: str, *preloaded: str) -> Callable[[], None]:
    """Import, then fork; the entry point, in each child."""
    module, _, name = entry.partition(":")
    main: Callable[[], None] = getattr(importlib.import_module(module), name)
    for each in preloaded:
        importlib.import_module(each)
    gc.freeze()  # else the first collection of a child copies all of it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    children_of(socket.socket(fileno=int(descriptor)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return main


if __name__ == "__main__":
    sys.exit(serve(*sys.argv[1:])())  # type: ignore[func-returns-value]
