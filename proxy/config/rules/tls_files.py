"""Rules about certificates and keys: the files exist, load, match and are valid now."""

from __future__ import annotations

import ssl
import time
from itertools import pairwise
from pathlib import Path

from proxy.config.certificates import Certificate, read_chain
from proxy.config.problems import Key
from proxy.config.rules.findings import Findings
from proxy.core.clock import iso_utc

#: Seconds before a certificate expires from which on `check` warns.
EXPIRES_SOON = 30 * 86400.0


def check_certificate(key: Key, cert: Path, private: Path, found: Findings) -> None:
    """A listener's certificate and key can be loaded."""
    readable = _readable((*key, "cert"), cert, found)
    if not (_readable((*key, "key"), private, found) and readable):
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # An empty passphrase: OpenSSL must never ask for one on the terminal.
        context.load_cert_chain(cert, private, password="")
        _in_time((*key, "cert"), read_chain(cert), time.time(), found)
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or ""
        if reason == "KEY_VALUES_MISMATCH":
            found.problem((*key, "key"), f"the private key of {cert}", "another one's")
        elif "BEGIN CERTIFICATE" not in _text(cert):
            found.problem((*key, "cert"), "a PEM certificate", f"none in {cert}")
        elif "ENCRYPTED" in _text(private):
            found.problem((*key, "key"), "a key without a passphrase", f"{private} encrypted")
        elif "PRIVATE KEY-----" not in _text(private):
            found.problem((*key, "key"), "a PEM private key", f"none in {private}")
        else:
            text = reason.replace("_", " ").lower() or str(error)
            found.problem(key, "a certificate and key that OpenSSL can load", text)


def _in_time(key: Key, chain: list[Certificate], now: float, found: Findings) -> None:
    """Warn of certificates that are not valid now, and of broken chains: clients refuse both."""
    for number, one in enumerate(chain, 1):
        which = "the certificate" if number == 1 else f"certificate {number} of the chain"
        ends = iso_utc(one.ends)[:10]
        if one.ends <= now:
            found.warn(key, f"{which} has expired ({ends}): clients refuse it")
        elif one.begins > now:
            found.warn(key, f"{which} is not valid before {iso_utc(one.begins)[:10]}")
        elif one.ends - now < EXPIRES_SOON:
            days = int((one.ends - now) // 86400)
            found.warn(key, f"{which} expires in {days} days ({ends})")
    for number, (one, issuer) in enumerate(pairwise(chain), 2):
        if one.issuer != issuer.subject:
            found.warn(key, f"certificate {number} did not issue the one before it")


def check_authorities(key: Key, file: Path, found: Findings) -> None:
    """The file has certificates of authorities."""
    if not _readable(key, file, found):
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=file)
    except (ssl.SSLError, ValueError):
        found.problem(key, "PEM certificates of authorities", f"none in {file}")


def _readable(key: Key, file: Path, found: Findings) -> bool:
    try:
        with file.open("rb") as stream:
            stream.read(1)
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        found.problem(key, "a readable file", f"{str(file)!r}: {reason}")
        return False
    return True


def _text(file: Path) -> str:
    with file.open("rb") as stream:
        return stream.read(1024 * 1024).decode("latin-1")
