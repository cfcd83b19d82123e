"""The first code on a device: puts the agent into its cache, checks it, and starts it.

`STARTER` is the whole remote command, the same for every device and user; it has nothing in it that a shell would
read. It takes this file from standard input and runs it. This file needs nothing but the standard library of
Python 3.8. Its conversation: a line of JSON down (`python`: the interpreter to go on with, "" for this one; `agent`:
the SHA-256 of the agent; `length`, `packed`: its bytes, before and after compression), a line up (`have`), the packed
agent where it is not there, a line up (`ready`).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import stat
import sys
import zlib
from typing import Any, Callable

STARTER = (
    "import sys,hashlib as h;sys.version_info<(3,8) and sys.exit(98);i=sys.stdin.buffer;n,d=i.readline().split();"
    "s=i.read(int(n));exec(s) if h.sha256(s).hexdigest().encode()==d else sys.exit(97)"
)
AGENT_LIMIT = 16 << 20
KEPT_AGENTS = 4
NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)


def cache_folder() -> str:
    """The agent's own folder, for its user only. Raises `OSError` where it belongs to somebody else."""
    base = os.environ.get("HWPRUNE_CACHE")
    if not base:
        parent = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        base = os.path.join(parent, "hwprune")
    os.makedirs(base, mode=0o700, exist_ok=True)
    facts = os.lstat(base)
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
        raise OSError(f"{base} is not a folder of this user")
    if stat.S_IMODE(facts.st_mode) & 0o077:
        os.chmod(base, 0o700)
    return base


def intact(path: str, digest: str) -> bool:
    """Whether the agent lies there, unchanged, and could be changed by nobody else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | NOFOLLOW)
    except OSError:
        return False
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        private = facts.st_uid == os.getuid() and not stat.S_IMODE(facts.st_mode) & 0o022
        regular = stat.S_ISREG(facts.st_mode) and facts.st_size <= AGENT_LIMIT
        return private and regular and hashlib.sha256(file.read()).hexdigest() == digest


def store(path: str, data: bytes) -> None:
    """Put the agent into the cache in one step."""
    temporary = f"{path}.{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    os.replace(temporary, path)


def forget_others(folder: str, path: str) -> None:
    """Keep the agents used last."""
    agents = [os.path.join(folder, name) for name in os.listdir(folder) if name.startswith("agent-")]
    agents.sort(key=lambda item: os.stat(item).st_mtime, reverse=True)
    for old in [item for item in agents if item != path][KEPT_AGENTS - 1 :]:
        os.unlink(old)


def receive(order: dict[str, Any]) -> bytes:
    """The agent from standard input, unpacked. Raises `OSError` for anything but what was announced."""
    if not (0 < order["length"] <= AGENT_LIMIT and 0 < order["packed"] <= AGENT_LIMIT):
        raise OSError(f"an agent of {order['length']} bytes; {AGENT_LIMIT} are allowed")
    opener = zlib.decompressobj()
    try:
        data = opener.decompress(sys.stdin.buffer.read(order["packed"]), order["length"] + 1)
    except zlib.error as error:
        raise OSError(f"the agent does not unpack: {error}") from error
    if hashlib.sha256(data).hexdigest() != order["agent"]:
        raise OSError("the agent that arrived has another hash than announced")
    return data


def obtain(order: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> str:
    """The path of the agent in the cache, sent now where it is not there."""
    folder = cache_folder()
    path = os.path.join(folder, f"agent-{order['agent']}.zip")
    have = intact(path, order["agent"])
    say({"have": have, "python": platform.python_version(), "machine": platform.machine()})
    if not have:
        store(path, receive(order))
        forget_others(folder, path)
        if not intact(path, order["agent"]):
            raise OSError(f"{path} is not what was written to it")
    os.utime(path)
    say({"ready": True})
    return path


class NoInterpreter(Exception):
    """The interpreter of the device file does not start."""


def switch(python: str) -> None:
    """Go on with another interpreter in this process. Raises `NoInterpreter`."""
    try:
        os.execvp(python, [python, "-u", "-I", "-c", STARTER])
    except OSError as error:
        raise NoInterpreter(str(error.strerror)) from error


def main() -> None:
    """Start the agent. What it prints goes to standard error; the real standard output is the protocol's alone."""
    out = os.dup(1)
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        os.write(out, json.dumps({"hwprune": "bootstrap", **message}).encode() + b"\n")

    order = json.loads(sys.stdin.buffer.readline(4096))
    try:
        if order["python"]:
            os.dup2(out, 1)
            say({"switch": True})
            switch(order["python"])
        path = obtain(order, say)
    except NoInterpreter as error:
        say({"error": str(error), "python": order["python"]})
        sys.exit(96)
    except OSError as error:
        say({"error": str(error)})
        sys.exit(96)
    sys.path.insert(0, path)
    from hwprune.devices.agent.supervisor import main as supervise

    code = supervise(sys.stdin.buffer, out, os.path.dirname(path), path)
    os._exit(code)  # a thread still reads standard input, which an orderly end of the interpreter aborts at


if __name__ == "__main__":
    main()
