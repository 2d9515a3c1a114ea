"""Who is at the other end of a TLS connection, as libp2p has it: its certificate signs itself and carries a libp2p key.

Specification: https://github.com/libp2p/specs/blob/master/tls/tls.md
"""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
import datetime
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from libp2p.crypto.keys import PrivateKey
from libp2p.peer.id import ID

from ..noise_handshake import identity_key

__all__ = ["CertificateError", "Credentials", "make_credentials", "verify_certificate"]

EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")
_SIGNED_PREFIX = b"libp2p-tls-handshake:"
_MAX_CERTIFICATE_BYTES = 16 * 1024
_RSA_BITS = range(2048, 8193)
_MAX_RSA_EXPONENT_BITS = 32  # a long one makes verifying slow
# Other machines' clocks may be wrong, so the certificate is always valid; it lives as long as the process.
_NOT_BEFORE = datetime.datetime(1975, 1, 1)
_NOT_AFTER = datetime.datetime(4096, 1, 1)


class CertificateError(Exception):
    """A certificate that proves nobody to be anybody."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A certificate and its key."""

    certificate: x509.Certificate
    private_key: ec.EllipticCurvePrivateKey


def make_credentials(identity: PrivateKey) -> Credentials:
    """Make a certificate that says who we are, with a key of its own."""
    key = ec.generate_private_key(ec.SECP256R1())
    signature = identity.sign(_SIGNED_PREFIX + _key_info(key.public_key()))
    signed_key = _sequence(_octets(identity.get_public_key().serialize()) + _octets(signature))
    name = x509.Name([])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), _NOT_BEFORE, _NOT_AFTER)
        .add_extension(x509.UnrecognizedExtension(EXTENSION, signed_key), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Credentials(certificate, key)


def verify_certificate(chain: list[bytes], now: datetime.datetime) -> ID:
    """Find out from the other side's certificate who it is. That it has the certificate's key, TLS checks.

    :param chain: what it sent, as DER.
    :param now: in UTC.
    :raises CertificateError: it is not one certificate as libp2p wants it.
    """
    if len(chain) != 1 or len(chain[0]) > _MAX_CERTIFICATE_BYTES:
        raise CertificateError("The other side must send exactly one certificate.")
    try:
        certificate = x509.load_der_x509_certificate(chain[0])
        key = certificate.public_key()
        extensions = list(certificate.extensions)
        valid = certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc
    except Exception as exc:
        # The library raises whatever it likes about malformed certificates.
        raise CertificateError("The other side's certificate cannot be read.") from exc
    if not valid:
        raise CertificateError("The other side's certificate is not valid at this time; is the clock right?")
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size not in _RSA_BITS or key.public_numbers().e.bit_length() > _MAX_RSA_EXPONENT_BITS:
            raise CertificateError("The other side's certificate has an RSA key of a size that is not accepted.")
    elif not isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        raise CertificateError("The other side's certificate has a key of a kind that is not accepted.")
    signed_key: bytes | None = None
    for extension in extensions:
        if extension.oid == EXTENSION and isinstance(extension.value, x509.UnrecognizedExtension):
            signed_key = extension.value.value
        elif extension.critical and isinstance(extension.value, x509.UnrecognizedExtension):
            raise CertificateError("The other side's certificate demands what is not known here.")
    if signed_key is None:
        raise CertificateError("The other side's certificate carries no libp2p key.")
    encoded, signature = _take_signed_key(signed_key)
    try:
        certificate.verify_directly_issued_by(certificate)
    except Exception as exc:
        raise CertificateError("The other side's certificate is not signed by its own key.") from exc
    try:
        peer_key = identity_key(encoded)
        proven = peer_key.verify(_SIGNED_PREFIX + _key_info(key), signature)
    except Exception as exc:
        raise CertificateError("The libp2p key in the other side's certificate is not acceptable.") from exc
    if not proven:
        raise CertificateError("The libp2p key in the other side's certificate has not signed it.")
    return ID.from_pubkey(peer_key)


def _key_info(key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


# SignedKey ::= SEQUENCE { publicKey OCTET STRING, signature OCTET STRING }, in DER.
_SEQUENCE, _OCTET_STRING = 0x30, 0x04


def _sequence(content: bytes) -> bytes:
    return bytes([_SEQUENCE]) + _length(len(content)) + content


def _octets(content: bytes) -> bytes:
    return bytes([_OCTET_STRING]) + _length(len(content)) + content


def _length(length: int) -> bytes:
    if length < 0x80:
        return bytes([length])
    encoded = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(encoded)]) + encoded


def _take_signed_key(data: bytes) -> tuple[bytes, bytes]:
    content, rest = _take(data, _SEQUENCE)
    public_key, signature_part = _take(content, _OCTET_STRING)
    signature, nothing = _take(signature_part, _OCTET_STRING)
    if rest or nothing:
        raise CertificateError("The libp2p extension of the other side's certificate has something behind it.")
    return public_key, signature


def _take(data: bytes, tag: int) -> tuple[bytes, bytes]:
    """The content of the first element, and what follows it."""
    if len(data) < 2 or data[0] != tag:
        raise CertificateError("The libp2p extension of the other side's certificate cannot be read.")
    length, start = data[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[2:start], "big") if start <= 4 else len(data)
    content = data[start : start + length]
    if len(content) != length or data[1:start] != _length(length):
        raise CertificateError("The libp2p extension of the other side's certificate cannot be read.")
    return content, data[start + length :]
