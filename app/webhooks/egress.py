"""HTTP to addresses that clients chose: guarded, so that nobody reaches through us what only we can reach.

A name is resolved once, every address that it has must be one of the public internet, and the connection goes to that
very address, with the name in the Host header and in TLS. So a name that resolves differently a moment later gains
nothing. No redirect is followed, no proxy of the environment used, no byte of a reply's body read.
"""

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from urllib.parse import SplitResult, urlsplit

import httpx

Resolve = Callable[[str, int], Sequence[str]]
"""Returns the addresses of a host; raises OSError where it has none."""

MAX_URL = 2048
EXCEPTION = "where it is meant, the operator names the host in TETHER_WEBHOOK_PRIVATE_HOSTS"
"""What can be done about an address that is refused."""
MAX_ADDRESSES = 4
"""Tried in turn while none can be connected to."""
UNICAST_6 = ipaddress.ip_network("2000::/3")
SPECIAL = tuple(
    map(
        ipaddress.ip_network,
        # The first three may stand for an address of the other version: 6to4, Teredo, and the relays of 6to4. The last is
        # for protocols, and Python's tables do not agree on it. What is mapped or translated otherwise
        # (::ffff:0:0/96, 64:ff9b::/96, 64:ff9b:1::/48) lies outside of 2000::/3.
        ("2002::/16", "2001::/32", "192.88.99.0/24", "192.0.0.0/24"),
    )
)
LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")


class UrlRefused(ValueError):
    """A URL is not one that is sent to; the text says why, and repeats nothing of what it resolves to."""


class NotSent(Exception):
    """An attempt ended without a reply; the text says why in words that may be shown."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a URL leads, as far as it says so itself."""

    scheme: str
    host: str
    port: int
    netloc: str
    path: str


def parse_target(url: str, private_hosts: frozenset[str]) -> Target:
    """Return where a URL leads. Raises UrlRefused for one that is never sent to, without asking any name server.

    `private_hosts` are the operator's exceptions: they may be spoken to without TLS and at private addresses.
    """
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").removesuffix("."), parts.port
    except ValueError:
        raise UrlRefused("it is not a URL") from None
    if len(url) > MAX_URL:
        raise UrlRefused(f"it is longer than {MAX_URL} characters")
    if not (url.isascii() and url.isprintable()) or " " in url or "\\" in url:
        raise UrlRefused("it has characters that a URL must have encoded")
    if "@" in parts.netloc or "#" in url:
        raise UrlRefused("it must have neither a user nor a fragment")
    allowed = host in private_hosts
    if parts.scheme != "https" and not (parts.scheme == "http" and allowed):
        raise UrlRefused(
            "it must begin with https://; http:// is for hosts that the operator names in"
            " TETHER_WEBHOOK_PRIVATE_HOSTS"
        )
    if not host or port == 0:
        raise UrlRefused("it names no host, or no port that can be connected to")
    address = _literal(host)
    if address is None and not all(LABEL.fullmatch(label) for label in host.split(".")):
        raise UrlRefused("its host is neither a name nor an address")
    if address is None and re.fullmatch(r"[0-9]+|0x[0-9a-f]*", host.rpartition(".")[2]):
        # 2130706433, 127.1, 0x7f.1 and 0177.0.0.1 are 127.0.0.1 to who wants them to be.
        raise UrlRefused("its host is an address in an unusual form; write it as four decimal numbers")
    if address is not None and not allowed and not is_public(str(address)):
        raise UrlRefused(f"its host is not an address of the public internet; {EXCEPTION}")
    return Target(
        scheme=parts.scheme,
        host=host,
        port=port or (443 if parts.scheme == "https" else 80),
        netloc=parts.netloc,
        path=_path(parts),
    )


def is_public(address: str) -> bool:
    """Say whether an address is a unicast one of the public internet, and stands for no other address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if parsed.version == 6 and (parsed.scope_id is not None or parsed not in UNICAST_6):
        return False
    if any(parsed in network for network in SPECIAL if network.version == parsed.version):
        return False
    return parsed.is_global and not (parsed.is_multicast or parsed.is_reserved)


def resolve_by_system(host: str, port: int) -> list[str]:
    """Return the addresses that the system's resolver knows of a host."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(each[4][0]) for each in found))


async def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    private_hosts: frozenset[str],
    timeout_s: float,
    resolve: Resolve = resolve_by_system,
) -> int:
    """Send bytes to a URL and return the status of the reply. Raises NotSent, within the time.

    One clock runs over everything: a receiver that sends a byte now and then wins no time with it.
    """
    try:
        target = parse_target(url, private_hosts)
    except UrlRefused as refused:
        raise NotSent(f"the URL was refused: {refused}") from None
    try:
        async with asyncio.timeout(timeout_s):
            addresses = await _find_addresses(target, private_hosts, resolve)
            async with httpx.AsyncClient(
                verify=_certificates(),
                timeout=None,  # noqa: S113
                trust_env=False,
                follow_redirects=False,
            ) as client:
                return await _send(client, target, addresses, body, headers)
    except TimeoutError:
        raise NotSent(f"there was no reply within {timeout_s:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        # By its kind alone: the text of such an error names addresses, and may repeat what a receiver sent.
        raise NotSent(f"the connection failed ({_kind(error)})") from None


async def _find_addresses(target: Target, private_hosts: frozenset[str], resolve: Resolve) -> list[str]:
    loop = asyncio.get_running_loop()
    try:
        # In a thread, because resolvers block. Literal addresses take the same way.
        found = list(await loop.run_in_executor(None, resolve, target.host, target.port))
    except (OSError, UnicodeError):
        raise NotSent("the host's name cannot be resolved") from None
    if target.host not in private_hosts and not all(map(is_public, found)):
        raise NotSent(
            f"the host has an address that is not of the public internet; nothing was sent; {EXCEPTION}"
        )
    if not found:
        raise NotSent("the host's name has no address")
    return found[:MAX_ADDRESSES]


async def _send(
    client: httpx.AsyncClient,
    target: Target,
    addresses: Sequence[str],
    body: bytes,
    headers: Mapping[str, str],
) -> int:
    for left, address in reversed(list(enumerate(reversed(addresses)))):
        literal = f"[{address}]" if ":" in address else address
        request = client.build_request(
            "POST",
            f"{target.scheme}://{literal}:{target.port}{target.path}",
            content=body,
            headers={"User-Agent": "tether", **headers, "Host": target.netloc},
            extensions={"sni_hostname": target.host},
        )
        try:
            response = await client.send(request, stream=True)
        except httpx.ConnectError:
            if left:
                continue
            raise
        await response.aclose()
        return response.status_code
    raise AssertionError("there is at least one address")


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _path(parts: SplitResult) -> str:
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _kind(error: Exception) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "its certificate is not valid for this host"
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__


@cache
def _certificates() -> ssl.SSLContext:
    # The machine's own, so that an operator's authority counts. Made once: it takes a while.
    return ssl.create_default_context()
