"""What is read of certificate files, and what `check` warns of."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from proxy.config.certificates import ends_of, read_chain
from proxy.config.load import load
from proxy.core.clock import SystemClock
from proxy.server.handshake_failures import REASONS, HandshakeFailures, reason_of

CONFIG = """\
listeners:
  front:
    bind: 127.0.0.1:8443
    tls: {{cert: {file}, key: {file}}}
    routes: [{{name: all, path: "/{{rest:*}}", upstream: app}}]
upstreams:
  app: {{targets: [http://127.0.0.1:8005]}}
"""


def pair(folder: Path, ends: datetime, *, begins: datetime | None = None, chain: str = "") -> Path:
    """A certificate and key in one file, `chain` after them."""
    issued = trustme.CA().issue_cert("localhost", not_before=begins, not_after=ends)
    file = folder / "pair.pem"
    file.write_text(issued.private_key_and_cert_chain_pem.bytes().decode() + chain)
    return file


@pytest.mark.parametrize("year", [2031, 2049, 2050, 2107])
def test_the_end_is_read_in_both_notations(tmp_path: Path, year: int) -> None:
    """Years until 2049 have two digits in a certificate, later ones four."""
    ends = datetime(year, 3, 4, 5, 6, 7, tzinfo=UTC)
    file = pair(tmp_path, ends)
    first, *_ = read_chain(file)
    assert first.ends == ends.timestamp()
    assert first.begins < first.ends


def test_what_is_no_certificate(tmp_path: Path) -> None:
    """Cut short or made up, it is said to be none; nothing else is raised."""
    file = pair(tmp_path, datetime(2031, 1, 1, tzinfo=UTC))
    der = ssl.PEM_cert_to_DER_cert(file.read_text()[file.read_text().index("-----BEGIN CERT") :])
    for size in range(0, len(der), 7):
        file.write_text(ssl.DER_cert_to_PEM_cert(der[:size]))
        try:
            read_chain(file)
        except ValueError:
            assert ends_of(file) is None
    file.write_text("nothing")
    assert read_chain(file) == []
    assert ends_of(file) is None
    assert ends_of(tmp_path / "gone") is None


@pytest.mark.parametrize(
    ("days", "warned"),
    [(-3, "the certificate has expired ("), (20, "the certificate expires in "), (31, None)],
)
def test_check_warns_of_the_end(tmp_path: Path, days: int, warned: str | None) -> None:
    """Expired, or with less than 30 days; a config with it is valid all the same."""
    now = datetime.now(UTC)
    file = pair(tmp_path, now + timedelta(days=days, hours=1), begins=now - timedelta(days=90))
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(file=file))
    warned_of = [warning.text for warning in load(config).warnings if "tls.cert" in str(warning)]
    assert [warned] == [text[: len(warned)] for text in warned_of] if warned else warned_of == []


def test_check_warns_of_what_is_not_yet_valid_and_of_a_broken_chain(tmp_path: Path) -> None:
    """A clock that is wrong somewhere; an intermediate certificate of somebody else."""
    now = datetime.now(UTC)
    other = trustme.CA().cert_pem.bytes().decode()
    begins, ends = now + timedelta(days=2), now + timedelta(days=90)
    file = pair(tmp_path, ends, begins=begins, chain=other)
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(file=file))
    warned_of = " | ".join(warning.text for warning in load(config).warnings)
    assert "the certificate is not valid before" in warned_of
    assert "certificate 2 did not issue the one before it" in warned_of


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ssl.SSLError(1, "[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca"), "certificate"),
        (ssl.SSLError(1, "[SSL: SSLV3_ALERT_CERTIFICATE_EXPIRED] expired"), "certificate"),
        (ssl.SSLError(1, "[SSL: UNSUPPORTED_PROTOCOL] unsupported protocol"), "version"),
        (ssl.SSLError(1, "[SSL: NO_SHARED_CIPHER] no shared cipher"), "cipher"),
        (ssl.SSLError(1, "[SSL: HTTP_REQUEST] http request"), "not_tls"),
        (ssl.SSLError(1, "[SSL: SOMETHING_NEW] new"), "other"),
        (ConnectionAbortedError("SSL handshake is taking longer than 10 seconds"), "timeout"),
        (TimeoutError(), "timeout"),
        (ConnectionResetError(), "left"),
        (asyncio.CancelledError(), "gave_way"),
        (OSError(5, "strange"), "other"),
    ],
)
def test_reasons_of_failed_handshakes(error: BaseException, reason: str) -> None:
    """One of a few words, whatever OpenSSL says."""
    assert reason_of(error) == reason
    assert reason in REASONS


def test_failed_handshakes_are_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand of a kind are one line, those that only leave none; all are counted."""

    class Clock(SystemClock):
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    failures, counts = HandshakeFailures(clock), dict[str, int]()
    refused = ssl.SSLError(1, "[SSL: TLSV1_ALERT_UNKNOWN_CA] x")
    for _ in range(1000):
        failures.note("front", counts, "192.0.2.1", refused)
        failures.note("front", counts, "192.0.2.1", ConnectionResetError())
    assert counts == {"certificate": 1000, "left": 1000}
    clock.now += 61.0
    failures.note("front", counts, "192.0.2.1", refused)
    lines = [record.__dict__ for record in caplog.records]
    assert [(line["reason"], line["failures"]) for line in lines] == [
        ("certificate", 1),
        ("certificate", 1000),
    ]
