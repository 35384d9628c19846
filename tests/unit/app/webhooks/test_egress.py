"""Guarded HTTP: what is refused before anything is connected to, and what a hostile receiver can do to the rest."""

import asyncio
import datetime
import ipaddress
import ssl
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from app.webhooks import egress
from app.webhooks.egress import NotSent, UrlRefused, is_public, parse_target, post, resolve_by_system
from tests.webhook_receiver import CANARY, Receiver, Request, receiving

NONE: frozenset[str] = frozenset()
LOOPBACK = frozenset({"127.0.0.1"})
NAME = "hooks.example"
PRIVATE = [
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",  # noqa: S104  (To be refused.)
    "10.1.2.3",
    "100.64.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:8.8.8.8",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::808:808",
    "64:ff9b:1::7f00:1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:808:808::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "2606:4700::1111%eth0",
    "fec0::1",
    "ff02::1",
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700::1111", "2a00:1450:4001::200e"]


class Resolver:
    """Answers each question with the next of its answers, and counts them."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    def __call__(self, host: str, port: int) -> Sequence[str]:
        """Return the next answer; the last one for ever."""
        self.asked.append((host, port))
        return self.answers[min(len(self.asked), len(self.answers)) - 1]


def send(
    url: str,
    *,
    private_hosts: frozenset[str] = LOOPBACK,
    timeout_s: float = 10,
    resolve: egress.Resolve = resolve_by_system,
) -> int:
    """Post a small body."""
    sending = post(
        url,
        b'{"id": 1}',
        {"webhook-id": "evt_1"},
        private_hosts=private_hosts,
        timeout_s=timeout_s,
        resolve=resolve,
    )
    return asyncio.run(sending)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver that answers 200."""
    with receiving() as receiver:
        yield receiver


class TestIsPublic:
    @pytest.mark.parametrize("address", PRIVATE)
    def test_private_special_or_standing_for_another(self, address: str) -> None:
        assert not is_public(address)

    @pytest.mark.parametrize("address", PUBLIC)
    def test_public(self, address: str) -> None:
        assert is_public(address)

    @pytest.mark.parametrize("text", ["", "hooks.example", "0x7f.1", "127.1", "017700000001", "8.8.8.8 "])
    def test_no_address(self, text: str) -> None:
        assert not is_public(text)


class TestParseTarget:
    @pytest.mark.parametrize(
        "url",
        [
            "http://hooks.example/x",
            "ftp://hooks.example/x",
            "file:///etc/passwd",
            "gopher://hooks.example:70/x",
            "https:///x",
            "https://",
            "hooks.example",
            "",
            "https://user:pa55@hooks.example/",
            "https://hooks.example@127.0.0.1/",
            "https://hooks.example/#x",
            "https://hooks.example\\@127.0.0.1/",
            "https://hooks.example/\r\nHost: other",
            "https://hooks.example/ x",
            "https://hooks.example:0/",
            "https://hooks.example:99999/",
            "https://hooks.example:x/",
            "https://[::1/",
            "https://hooks..example/",
            "https://-hooks.example/",
            "https://hooks.example%2f/",
            "https://hööks.example/",
            "https://①②⑦.0.0.1/",
            "https://0x7f.1/",
            "https://0x7f000001/",
            "https://127.1/",
            "https://2130706433/",
            "https://0177.0.0.1/",
            "https://127.0.0.1./",
            "https://0x/",
            "https://hooks.example/" + "x" * 2048,
            *(f"https://[{each}]/" if ":" in each else f"https://{each}/" for each in PRIVATE),
        ],
    )
    def test_refused_without_asking_any_name_server(self, url: str) -> None:
        with pytest.raises(UrlRefused):
            parse_target(url, NONE)

    @pytest.mark.parametrize("url", ["http://hooks.example/", "https://10.1.2.3/", "https://[::1]/"])
    def test_refusal_names_what_an_operator_may_allow(self, url: str) -> None:
        with pytest.raises(UrlRefused, match="TETHER_WEBHOOK_PRIVATE_HOSTS"):
            parse_target(url, NONE)

    def test_parts_are_kept(self) -> None:
        target = parse_target("https://Hooks.Example:8443/a%20b?c=d", NONE)
        assert (target.host, target.port, target.path) == ("hooks.example", 8443, "/a%20b?c=d")
        assert target.netloc == "Hooks.Example:8443"
        assert parse_target("https://hooks.example", NONE).path == "/"
        assert parse_target("https://[2606:4700::1111]/", NONE).host == "2606:4700::1111"

    @pytest.mark.parametrize("host", ["127.0.0.1", "hooks.internal", "::1"])
    def test_operator_may_allow_a_host(self, host: str) -> None:
        url = f"http://[{host}]:80/" if ":" in host else f"http://{host}:80/"
        assert parse_target(url, frozenset({host})).host == host
        with pytest.raises(UrlRefused):
            parse_target(url, frozenset({"other.internal"}))

    def test_what_is_allowed_is_that_host_and_not_one_that_looks_like_it(self) -> None:
        for url in ("http://127.0.0.1.example/", "http://x.127.0.0.1/", "http://127.1/", "http://0x7f.1/"):
            with pytest.raises(UrlRefused):
                parse_target(url, LOOPBACK)


class TestAddresses:
    @pytest.mark.parametrize("address", PRIVATE)
    def test_name_with_such_an_address_is_refused_before_the_connection(
        self, address: str, receiver: Receiver
    ) -> None:
        url = f"https://{NAME}:{receiver.server_port}/"
        # Not a word of what the name resolves to: that would be a map of our network.
        words = "^the host has an address that is not of the public internet; nothing was sent; where it is meant, the operator"
        with pytest.raises(NotSent, match=words):
            send(url, private_hosts=NONE, resolve=Resolver([address]))
        assert receiver.connections == 0

    def test_one_such_address_among_good_ones_is_enough(self, receiver: Receiver) -> None:
        resolver = Resolver([*PUBLIC, "127.0.0.1"])
        with pytest.raises(NotSent, match="public internet"):
            send(f"https://{NAME}:{receiver.server_port}/", private_hosts=NONE, resolve=resolver)
        assert receiver.connections == 0

    def test_name_that_resolves_otherwise_a_moment_later_gains_nothing(self, receiver: Receiver) -> None:
        # The first answer is where the connection goes, and nobody is asked a second time.
        resolver = Resolver(["127.0.0.1"], ["127.0.0.2"])
        url = f"http://{NAME}:{receiver.server_port}/hook"
        assert send(url, private_hosts=frozenset({NAME}), resolve=resolver) == 200
        assert resolver.asked == [(NAME, receiver.server_port)]
        # And when the name is asked for again, at the next attempt, the answer is checked again.
        rebinding = Resolver(["8.8.8.8"], ["127.0.0.1"])
        rebinding("", 0)
        with pytest.raises(NotSent, match="public internet"):
            send(f"https://{NAME}:{receiver.server_port}/", private_hosts=NONE, resolve=rebinding)
        assert receiver.connections == 1

    def test_host_header_and_body_arrive(self, receiver: Receiver) -> None:
        url = f"http://{NAME}:{receiver.server_port}/hook?a=b"
        assert send(url, private_hosts=frozenset({NAME}), resolve=Resolver(["127.0.0.1"])) == 200
        (got,) = receiver.received
        assert (got.path, got.body) == ("/hook?a=b", b'{"id": 1}')
        assert got.headers["host"] == f"{NAME}:{receiver.server_port}"
        assert got.headers["webhook-id"] == "evt_1"

    def test_next_address_is_tried_where_one_cannot_be_connected_to(self, receiver: Receiver) -> None:
        resolver = Resolver(["127.0.0.2", "127.0.0.1"])
        url = f"http://{NAME}:{receiver.server_port}/"
        assert send(url, private_hosts=frozenset({NAME}), resolve=resolver) == 200
        assert receiver.connections == 1

    def test_unknown_and_empty_names_say_so(self) -> None:
        def unknown(host: str, port: int) -> list[str]:
            raise OSError("secret of the resolver")

        with pytest.raises(NotSent, match=r"^the host's name cannot be resolved$"):
            send(f"https://{NAME}/", resolve=unknown)
        with pytest.raises(NotSent, match="has no address"):
            send(f"https://{NAME}/", resolve=Resolver([]))

    def test_resolver_that_hangs_ends_with_the_time(self) -> None:
        def hang(host: str, port: int) -> list[str]:
            time.sleep(0.5)
            return ["8.8.8.8"]

        with pytest.raises(NotSent, match=r"no reply within 0\.1 s"):
            send(f"https://{NAME}/", timeout_s=0.1, resolve=hang)

    def test_system_resolver_unmasks_unusual_forms(self) -> None:
        # What the parser lets through by mistake, this and `is_public` would still catch.
        for text in ("0x7f.1", "2130706433", "127.1"):
            assert resolve_by_system(text, 443) == ["127.0.0.1"]


class TestReplies:
    @pytest.mark.parametrize("status", [200, 204, 302, 404, 500])
    def test_status_is_returned_as_it_is(self, status: int) -> None:
        with (
            receiving() as other,
            receiving(lambda request: request.reply(status, Location=other.url)) as receiver,
        ):
            assert send(receiver.url) == status
            assert other.connections == 0, "a redirect was followed"

    def test_endless_body_is_not_read(self) -> None:
        def flood(request: Request) -> None:
            request.reply()
            for _ in range(10_000):
                request.wfile.write(bytes(1 << 20))

        with receiving(flood) as receiver:
            started = time.monotonic()
            assert send(receiver.url) == 200
            assert time.monotonic() - started < 5

    def test_endless_headers_end_the_attempt(self) -> None:
        def flood(request: Request) -> None:
            request.send_response(200)
            request.flush_headers()
            for number in range(100_000):
                request.wfile.write(f"x-{number}: {CANARY}\r\n".encode() * 10)

        with receiving(flood) as receiver, pytest.raises(NotSent, match="connection failed") as found:
            send(receiver.url)
        assert CANARY not in str(found.value)

    def test_drip_wins_no_time(self) -> None:
        def drip(request: Request) -> None:
            for byte in b"HTTP/1.1 200 OK\r\n" + b"x-pad: 1\r\n" * 50:
                request.wfile.write(bytes([byte]))
                time.sleep(0.05)

        with receiving(drip) as receiver:
            started = time.monotonic()
            with pytest.raises(NotSent, match=r"no reply within 0\.3 s"):
                send(receiver.url, timeout_s=0.3)
            assert time.monotonic() - started < 2

    @pytest.mark.parametrize("junk", [b"", CANARY.encode() + b"\r\n\r\n", b"HTTP/1.1 999999 x\r\n\r\n"])
    def test_junk_is_an_error_that_repeats_none_of_it(self, junk: bytes) -> None:
        with (
            receiving(lambda request: request.wfile.write(junk)) as receiver,
            pytest.raises(NotSent, match="connection failed") as found,
        ):
            send(receiver.url)
        assert CANARY not in str(found.value)

    def test_nobody_listens(self) -> None:
        with receiving() as receiver:
            url = receiver.url
        with pytest.raises(NotSent, match=r"connection failed \(ConnectError\)"):
            send(url)

    def test_proxies_of_the_environment_are_not_used(
        self, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with receiving() as proxy:
            for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
                monkeypatch.setenv(name, proxy.url.partition("/hook")[0])
            assert send(receiver.url) == 200
            assert proxy.connections == 0


def certify(folder: Path, name: str) -> tuple[Path, ssl.SSLContext, list[str | None]]:
    """Return a certificate of a name, a server's context that has it, and the list of the names that are asked for."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    alternative: x509.GeneralName
    try:
        alternative = x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        alternative = x509.DNSName(name)
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    public = folder / "certificate.pem"
    public.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = folder / "key.pem"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    asked: list[str | None] = []
    context.sni_callback = lambda _socket, asked_for, _context: asked.append(asked_for)
    return public, context, asked


class TestTls:
    @pytest.fixture(autouse=True)
    def fresh_certificates(self) -> Iterator[None]:
        """Have the machine's certificates read anew."""
        egress._certificates.cache_clear()
        yield
        egress._certificates.cache_clear()

    def test_name_is_kept_in_tls_though_the_address_is_connected_to(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        public, context, asked = certify(tmp_path, NAME)
        monkeypatch.setenv("SSL_CERT_FILE", str(public))
        with receiving(context=context) as receiver:
            url = f"https://{NAME}:{receiver.server_port}/"
            assert send(url, private_hosts=frozenset({NAME}), resolve=Resolver(["127.0.0.1"])) == 200
            assert receiver.received[0].headers["host"] == f"{NAME}:{receiver.server_port}"
        assert asked == [NAME]

    def test_certificate_of_an_address_counts_for_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        public, context, _ = certify(tmp_path, "127.0.0.1")
        monkeypatch.setenv("SSL_CERT_FILE", str(public))
        with receiving(context=context) as receiver:
            assert send(receiver.url) == 200

    def test_certificate_of_another_name_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        public, context, _ = certify(tmp_path, "other.example")
        monkeypatch.setenv("SSL_CERT_FILE", str(public))
        with receiving(context=context) as receiver:
            url = f"https://{NAME}:{receiver.server_port}/"
            with pytest.raises(NotSent, match="its certificate is not valid for this host"):
                send(url, private_hosts=frozenset({NAME}), resolve=Resolver(["127.0.0.1"]))
            assert receiver.received == []

    def test_certificate_that_nobody_vouches_for_is_refused(self, tmp_path: Path) -> None:
        _, context, _ = certify(tmp_path, NAME)
        with receiving(context=context) as receiver:
            url = f"https://{NAME}:{receiver.server_port}/"
            with pytest.raises(NotSent, match="its certificate is not valid for this host"):
                send(url, private_hosts=frozenset({NAME}), resolve=Resolver(["127.0.0.1"]))
