"""What the server allows: how much, how long, and from whom. Plain values; `InputError` for what cannot be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address

from rank_k.errors import InputError
from rank_k.option_values import number, whole_number
from rank_k.options import option


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one request and of all requests together, and timeouts in seconds.

    Attributes:
        max_concurrent: Requests that are worked on at once.
        queue: Further requests that may wait. No client holds more than half of these places.
        per_client: Requests of one client that are worked on at once.
        max_documents: Documents of a request.
        max_characters: Characters of a request's query and documents together.
        max_body: Bytes of a request's body.
        deadline: For requests that name no deadline themselves. None: no limit.
        shutdown_timeout: To finish running requests in when the server stops.
        connections: Connections that are open at once.
        head_seconds: For a request's headers to arrive.
        body_seconds: For a request's body to arrive.
        stall_seconds: For a client to read what is sent.
    """

    max_concurrent: int = 16
    queue: int = option(64, "maximum number of requests that wait", whole_number(1))
    per_client: int = option(8, "maximum number of requests of one client that are worked on at once", whole_number(1))
    max_documents: int = option(1000, "maximum number of documents of a request", whole_number(1))
    max_characters: int = option(4_000_000, "maximum length of query and documents together", whole_number(1))
    max_body: int = option(16 * 2**20, "maximum size of a request", whole_number(1), metavar="BYTES")
    deadline: float | None = option(
        None,
        "return the best ranking so far after S if a request has no deadline",
        number(exclusive=True),
        metavar="S",
    )
    shutdown_timeout: float = option(30.0, "finish running requests within S", number(exclusive=True), metavar="S")
    connections: int = 1000
    head_seconds: float = 10.0
    body_seconds: float = 60.0
    stall_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class AccessConfig:
    """Who may come in.

    `host`: the address listened on. `keys`: any one of them opens; none needed if there is none. `hosts`: names,
    beside the loopback ones and `host` itself, by which the server may be called. `origins`: pages that may call it,
    like `https://app.example.com`, beside those that it serves itself.
    """

    host: str = "127.0.0.1"
    keys: tuple[str, ...] = ()
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()

    @property
    def open_to_all(self) -> bool:
        """Whether anybody may come in, from anywhere."""
        return not (is_loopback(self.host) or self.keys)


LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def is_address(host: str) -> bool:
    """Return whether `host` is an IP address."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server that listens on `host`."""
    return host == "localhost" or (is_address(host) and ip_address(host).is_loopback)


def host_name(host: str) -> str:
    """The name in a Host header, without port, brackets and final dot."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    name = name.rpartition(":")[0] if name.count(":") == 1 else name
    return name.removesuffix(".")


_ORIGIN = re.compile(r"(?!http://.*:80$|https://.*:443$)[a-z][a-z0-9+.-]*://[\w.:\[\]-]+", re.ASCII)
"""As browsers send it: no path, no port that goes without saying, and not `null`, which any page may be."""


def check_access(access: AccessConfig, *, insecure: bool) -> None:
    """Raise `InputError` for a server that anybody could use without having been told to be one, and for names and
    origins that nobody can come by."""
    if not (is_loopback(access.host) or access.keys or insecure):
        raise InputError(
            f"anybody who reaches {access.host} could spend your model's time",
            "ask for a key with --client-key-env NAME, or say --insecure",
        )
    if "*" in access.hosts or "*" in access.origins:
        raise InputError("--allow-host and --allow-origin take no wildcards", "give each name")
    for name in access.hosts:
        if not name or "/" in name or host_name(name) != name.lower().removesuffix("."):
            raise InputError(f"--allow-host {name} is not a name alone", "write it like rerank.example.com")
    for origin in access.origins:
        if not _ORIGIN.fullmatch(origin.lower().rstrip("/")):
            raise InputError(f"--allow-origin {origin} names no origin", "write it like https://app.example.com")
