"""The limits and the access control of the server."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address

from rank_k.errors import InputError
from rank_k.option_values import number, whole_number
from rank_k.options import option


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits per request and for all requests together. Times are in seconds.

    Attributes:
        max_concurrent: The maximum number of running requests.
        queue: The maximum number of waiting requests. A single client may have at most half of them.
        per_client: The maximum number of running requests of one client.
        max_documents: The maximum number of documents of a request.
        max_characters: The maximum total number of characters of the query and all documents of a request.
        max_body: The maximum number of bytes of a request body.
        deadline: The time after which a request without its own deadline returns its best ranking so far. None: no
            limit.
        shutdown_timeout: How long running requests may continue when the server stops.
        connections: The maximum number of open connections.
        head_seconds: How long the headers of a request may take to arrive.
        body_seconds: How long the body of a request may take to arrive.
        stall_seconds: How long a client may leave a response unread.
    """

    max_concurrent: int = 16
    queue: int = option(64, "maximum number of waiting requests", whole_number(1))
    per_client: int = option(8, "maximum number of running requests of one client", whole_number(1))
    max_documents: int = option(1000, "maximum number of documents per request", whole_number(1))
    max_characters: int = option(
        4_000_000, "maximum total number of characters of the query and all documents of a request", whole_number(1)
    )
    max_body: int = option(16 * 2**20, "maximum size of a request body", whole_number(1), metavar="BYTES")
    deadline: float | None = option(
        None,
        "return the best ranking so far after S seconds, unless the request has its own deadline",
        number(exclusive=True),
        metavar="S",
    )
    shutdown_timeout: float = option(
        30.0,
        "when the server stops, let running requests continue for at most S seconds",
        number(exclusive=True),
        metavar="S",
    )
    connections: int = 1000
    head_seconds: float = 10.0
    body_seconds: float = 60.0
    stall_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class AccessConfig:
    """Who may use the server.

    Attributes:
        host: The address on which the server listens.
        keys: The accepted client keys. If empty, no key is required.
        hosts: Names that the Host header may have, in addition to `host` and the loopback names.
        origins: Origins of pages that may use the server, such as `https://app.example.com`, in addition to its own.
    """

    host: str = "127.0.0.1"
    keys: tuple[str, ...] = ()
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()

    @property
    def open_to_all(self) -> bool:
        """Whether clients on other machines can use the server without a key."""
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
    """Return the name in a Host header without the port, brackets and a final dot."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    name = name.rpartition(":")[0] if name.count(":") == 1 else name
    return name.removesuffix(".")


_ORIGIN = re.compile(r"(?!http://.*:80$|https://.*:443$)[a-z][a-z0-9+.-]*://[\w.:\[\]-]+", re.ASCII)
"""An origin as browsers send it: without a path or a default port. `null` is excluded, because any page can send it."""


def check_access(access: AccessConfig, *, insecure: bool) -> None:
    """Check the access configuration.

    Args:
        access: The configuration.
        insecure: Whether the operator has confirmed that clients on other machines may use the server without a key.

    Raises:
        InputError: If other machines could use the server without a key, or if a name or an origin is invalid.
    """
    if not (is_loopback(access.host) or access.keys or insecure):
        raise InputError(
            f"everyone who can reach {access.host} could use your model",
            "require a key with --client-key-env NAME, or confirm with --insecure",
        )
    if "*" in access.hosts or "*" in access.origins:
        raise InputError("--allow-host and --allow-origin do not accept wildcards", "list each name")
    for name in access.hosts:
        if not name or "/" in name or host_name(name) != name.lower().removesuffix("."):
            raise InputError(f"--allow-host {name} is not a host name", "give a name such as rerank.example.com")
    for origin in access.origins:
        if not _ORIGIN.fullmatch(origin.lower().rstrip("/")):
            raise InputError(
                f"--allow-origin {origin} is not an origin", "give an origin such as https://app.example.com"
            )
