"""What fleet, gateway and replicas know each other by: one authority, a certificate a launch, a key a release."""

import hashlib
import hmac
import secrets
import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pydantic import BaseModel, Field, SecretStr, model_validator

from blocks.cleaning import mask_from_now_on
from blocks.errors import Refused

SERVER_NAME = "replica.skyferry.internal"
"""What each replica's certificate says, wherever it runs: who verifies looks for this and for no address."""

AUTHORITY_LIFE = timedelta(days=3650)
CERTIFICATE_LIFE = timedelta(days=365)
"""Nothing renews it: a replica that lives longer is taken out by the gateway as if it were dead."""
SLOW_CLOCKS = timedelta(hours=1)
"""So far may a clock be behind and the certificate hold already."""


class Authority(BaseModel, frozen=True, hide_input_in_errors=True):
    """What a fleet signs with; the gateway gets `certificate` of it and nothing else."""

    certificate: str = Field(
        title="Certificate",
        description="The authority's own certificate, in PEM, and after it that of an older one still to be trusted.",
    )
    private_key: SecretStr = Field(
        title="Private key", description="The authority's private key, in PEM, with which certificates are signed."
    )
    secret: SecretStr = Field(
        title="Secret", description="What the keys of releases are made from; a change locks out replicas that run."
    )

    @model_validator(mode="after")
    def _is_a_pair(self) -> Self:
        if (
            _load(self.private_key).public_key()
            != x509.load_pem_x509_certificate(self.certificate.encode()).public_key()
        ):
            raise ValueError("certificate and private_key do not belong together; give both of one new_authority()")
        return self


@dataclass(frozen=True)
class Identity:
    """What one replica proves itself with, in PEM."""

    certificate: str
    private_key: SecretStr


def new_authority(now: datetime) -> Authority:
    """Made once for a fleet and its gateway. It can vouch for replicas and for nothing else, even if it is stolen."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Skyferry replicas")])
    certificate = (
        _draft(name, key.public_key(), now, AUTHORITY_LIFE)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.NameConstraints([x509.DNSName(SERVER_NAME)], None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(
        certificate=_pem(certificate), private_key=_secret_pem(key), secret=SecretStr(secrets.token_hex(32))
    )


def new_identity(authority: Authority, now: datetime) -> Identity:
    """For one launch; Refused once the authority has run out."""
    issuer = x509.load_pem_x509_certificate(authority.certificate.encode())
    if now >= issuer.not_valid_after_utc:
        raise Refused(
            f"the fleet's authority ran out on {issuer.not_valid_after_utc:%Y-%m-%d}; make a new one, "
            f"and give it to the fleet and its gateway"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _draft(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SERVER_NAME)]),
            key.public_key(),
            now,
            min(CERTIFICATE_LIFE, issuer.not_valid_after_utc - now),
        )
        .issuer_name(issuer.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            ),
            critical=False,
        )
        .sign(_load(authority.private_key), hashes.SHA256())
    )
    return Identity(_pem(certificate), _secret_pem(key))


def release_key(authority: Authority, release: str) -> str:
    """The API key of a release's replicas: HMAC-SHA256 of its id: nothing is kept, and a retry finds the same."""
    return key_from(authority.secret.get_secret_value(), release)


def key_from(secret: str, release: str) -> str:
    key = hmac.new(secret.encode(), release.encode(), hashlib.sha256).hexdigest()
    mask_from_now_on(key)
    return key


def context_trusting(certificate: str) -> ssl.SSLContext:
    """For a client that gives `SERVER_NAME` as the server's name: it takes this authority's replicas and no others."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=certificate)
    return context


def _draft(name: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SLOW_CLOCKS)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _load(pem: SecretStr) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem.get_secret_value().encode(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("private_key is of another kind than new_authority() makes")  # noqa: TRY004 - pydantic's error
    return key


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _secret_pem(key: ec.EllipticCurvePrivateKey) -> SecretStr:
    return SecretStr(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
    )
