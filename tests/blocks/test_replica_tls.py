"""The authority of a fleet, the certificates of its replicas and the keys of its releases."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from pydantic import SecretStr, ValidationError

from blocks.errors import Refused
from blocks.replica_tls import (
    AUTHORITY_LIFE,
    CERTIFICATE_LIFE,
    SERVER_NAME,
    Authority,
    context_trusting,
    new_authority,
    new_identity,
    release_key,
)
from tests.servers import serving_context

NOW = datetime.now(UTC)
AUTHORITY = new_authority(NOW)


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """Over memory: no port, no clock of our own."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server, server_hostname=name)
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    for turn in (asking, answering, asking, answering):
        try:
            turn.do_handshake()
        except ssl.SSLWantReadError:
            continue


def test_a_replica_is_known_by_its_authority(tmp_path: Path) -> None:
    """The handshake needs the fixed name and says nothing of an address."""
    server = serving_context(new_identity(AUTHORITY, NOW), tmp_path)
    handshake(server, context_trusting(AUTHORITY.certificate), SERVER_NAME)


def test_another_authoritys_replica_is_a_stranger(tmp_path: Path) -> None:
    """Two fleets do not vouch for each other."""
    server = serving_context(new_identity(new_authority(NOW), NOW), tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        handshake(server, context_trusting(AUTHORITY.certificate), SERVER_NAME)


def test_another_name_is_a_stranger(tmp_path: Path) -> None:
    """The name is verified and not only sent."""
    server = serving_context(new_identity(AUTHORITY, NOW), tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(server, context_trusting(AUTHORITY.certificate), "127.0.0.1.example")


def test_an_old_certificate_is_a_strangers(tmp_path: Path) -> None:
    """A certificate that has run out no longer proves anything."""
    then = NOW - CERTIFICATE_LIFE - timedelta(hours=2)
    server = serving_context(new_identity(AUTHORITY, then), tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate has expired"):
        handshake(server, context_trusting(AUTHORITY.certificate), SERVER_NAME)


def test_a_strict_client_takes_the_chain(tmp_path: Path) -> None:
    """RFC 5280 to the letter, as Python 3.13 has it by default."""
    client = context_trusting(AUTHORITY.certificate)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    handshake(serving_context(new_identity(AUTHORITY, NOW), tmp_path), client, SERVER_NAME)


def test_the_authority_can_vouch_for_replicas_only() -> None:
    """Whoever trusts it for more than it is for loses nothing: other names are outside its constraints."""
    certificate = x509.load_pem_x509_certificate(AUTHORITY.certificate.encode())
    constraints = certificate.extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical
    assert constraints.value.permitted_subtrees == [x509.DNSName(SERVER_NAME)]
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0


def test_each_launch_has_a_key_of_its_own() -> None:
    """What is taken from one node is worth nothing at another."""
    one, two = new_identity(AUTHORITY, NOW), new_identity(AUTHORITY, NOW)
    assert one.private_key != two.private_key


def test_no_certificate_outlives_its_authority() -> None:
    """Close to the authority's end they are short, and after it there are none."""
    late = NOW + AUTHORITY_LIFE - timedelta(days=1)
    certificate = x509.load_pem_x509_certificate(new_identity(AUTHORITY, late).certificate.encode())
    authority = x509.load_pem_x509_certificate(AUTHORITY.certificate.encode())
    assert certificate.not_valid_after_utc <= authority.not_valid_after_utc
    with pytest.raises(Refused, match=r"ran out on .*; make a new one"):
        new_identity(AUTHORITY, late + timedelta(days=1))


def test_a_releases_key_is_the_same_at_each_retry() -> None:
    """It comes from the release's id and the authority's secret: another of either gives another key."""
    key = release_key(AUTHORITY, "chat-1a2b3c4d")
    assert key == release_key(AUTHORITY, "chat-1a2b3c4d")
    assert len({key, release_key(AUTHORITY, "chat-1a2b3c4e"), release_key(new_authority(NOW), "chat-1a2b3c4d")}) == 3
    assert len(key) == 64


def test_a_releases_key_is_the_one_that_it_always_was() -> None:
    """HMAC-SHA256, hexadecimal: replicas that run were started with it."""
    fixed = AUTHORITY.model_copy(update={"secret": SecretStr("of the fleet")})
    assert release_key(fixed, "chat-1a2b3c4d") == "f89d143badd2632509b3bd508e2b147f3b55e26d1a56d9954c2b72df3c0f850d"


def test_replicas_of_an_old_authority_are_known_beside_those_of_its_heir(tmp_path: Path) -> None:
    """While both run, the heir's certificate stands before the old one; keys of releases stay what they were."""
    new = new_authority(NOW)
    both = Authority(
        certificate=new.certificate + AUTHORITY.certificate, private_key=new.private_key, secret=AUTHORITY.secret
    )
    for authority in (AUTHORITY, both):
        server = serving_context(new_identity(authority, NOW), tmp_path)
        handshake(server, context_trusting(both.certificate), SERVER_NAME)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(
            serving_context(new_identity(both, NOW), tmp_path), context_trusting(AUTHORITY.certificate), SERVER_NAME
        )
    assert release_key(both, "chat-1a2b3c4d") == release_key(AUTHORITY, "chat-1a2b3c4d")


def test_halves_of_two_authorities_are_refused() -> None:
    """A certificate with another's key would sign what nobody can verify."""
    halves = {
        "certificate": new_authority(NOW).certificate,
        "private_key": AUTHORITY.private_key.get_secret_value(),
        "secret": "of the fleet",
    }
    with pytest.raises(ValidationError, match="do not belong together") as raised:
        Authority.model_validate(halves)
    assert "PRIVATE KEY" not in str(raised.value)


def test_no_secret_is_shown() -> None:
    """Whoever prints an authority or an identity prints no key."""
    identity = new_identity(AUTHORITY, NOW)
    shown = repr(AUTHORITY) + repr(identity)
    for secret in (AUTHORITY.private_key, AUTHORITY.secret, identity.private_key):
        assert secret.get_secret_value() not in shown
    assert "PRIVATE KEY" not in shown
