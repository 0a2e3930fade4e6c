"""TLS: what is spoken through it, and certificates that change while it serves."""

import ssl
from pathlib import Path

import pytest
import trio
import trustme

from backendai_mgr.api.limits import Limits
from backendai_mgr.api.server.tls import CertificateError, load_certificate, server_context

from .test_server import HELLO, connect, greeted, hello, running


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def issue(authority: trustme.CA, folder: Path, name: str) -> tuple[Path, Path]:
    """Certificate and key as files."""
    certificate = authority.issue_cert("127.0.0.1", "localhost", common_name=name)
    folder.mkdir(exist_ok=True)
    files = folder / "cert.pem", folder / "key.pem"
    files[0].write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    files[1].write_bytes(certificate.private_key_pem.bytes())
    return files


def trusting(authority: trustme.CA, *protocols: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


async def shaken(port, context):
    """A TLS connection, and the subject of the certificate that the server showed."""
    stream = trio.SSLStream(await connect(port), context, server_hostname="localhost", https_compatible=True)
    await stream.do_handshake()
    subject = dict(pair for (pair,) in stream.getpeercert()["subject"])
    return stream, subject["commonName"]


@pytest.mark.parametrize(
    ("offered", "agreed"),
    [(("h2", "http/1.1"), "h2"), (("http/1.1",), "http/1.1"), (("http/1.1", "h2"), "h2"), ((), None)],
)
async def test_what_is_spoken_is_agreed_on(authority, tmp_path, offered, agreed):
    async with running(hello, tls=server_context(*issue(authority, tmp_path, "one"))) as port:
        stream, _ = await shaken(port, trusting(authority, *offered))
        assert stream.selected_alpn_protocol() == agreed
        if agreed != "h2":
            await greeted(stream)
        await trio.aclose_forcefully(stream)


async def test_a_new_certificate_counts_from_the_next_handshake_on(authority, tmp_path):
    first, second = issue(authority, tmp_path / "1", "first"), issue(authority, tmp_path / "2", "second")
    context, trust = server_context(*first), trusting(authority, "http/1.1")
    async with running(hello, tls=context) as port:
        old, name = await shaken(port, trust)
        assert name == "first"
        load_certificate(context, *second)
        new, name = await shaken(port, trust)
        assert name == "second"
        for stream in (old, new):
            await greeted(stream)
            await trio.aclose_forcefully(stream)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda cert, key: cert.write_text("nothing"), "cannot be used"),
        (lambda cert, key: key.unlink(), "No such file"),
        (lambda cert, key: key.write_bytes(trustme.CA().issue_cert("x").private_key_pem.bytes()), "mismatch"),
    ],
)
async def test_files_that_do_not_fit_leave_the_old_certificate(authority, tmp_path, spoil, words):
    context = server_context(*issue(authority, tmp_path / "1", "first"))
    files = issue(authority, tmp_path / "2", "second")
    spoil(*files)
    with pytest.raises(CertificateError, match=words):
        load_certificate(context, *files)
    async with running(hello, tls=context) as port:
        stream, name = await shaken(port, trusting(authority, "http/1.1"))
        await trio.aclose_forcefully(stream)
    assert name == "first"


@pytest.mark.parametrize("noise", [HELLO, b"\x16\x03\x01\xff\xff" + b"\0" * 100, b""])
async def test_what_is_not_tls_ends_in_time(authority, tmp_path, noise):
    tls = server_context(*issue(authority, tmp_path, "one"))
    async with running(hello, Limits(head_seconds=0.3), tls=tls) as port:
        async with await connect(port) as stream:
            if noise:
                await stream.send_all(noise)
            while await stream.receive_some(65536):
                pass
        stream, _ = await shaken(port, trusting(authority, "http/1.1"))
        await trio.aclose_forcefully(stream)
