"""What both ordinary forwarders share: hop-by-hop fields and a JSON access log."""

from __future__ import annotations

import logging

from pythonjsonlogger.json import JsonFormatter

HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


def access_logger(path: str | None = None) -> logging.Logger:
    """The logger of access lines; `path` gives it its file, once."""
    logger = logging.getLogger("access")
    if path is not None:
        handler = logging.FileHandler(path)
        handler.setFormatter(
            JsonFormatter("{asctime}{levelname}{name}{message}", style="{", timestamp=True)
        )
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger


def facts(
    correlation_id: str,
    method: str,
    path: str,
    status: int,
    duration: float,
    bytes_out: int,
    client: str | None,
) -> dict[str, object]:
    """The extras of an access line; `duration` in seconds."""
    return {
        "correlation_id": correlation_id,
        "listener": "bench",
        "method": method,
        "path": path,
        "status": status,
        "duration_ms": round(duration * 1000, 3),
        "bytes_out": bytes_out,
        "client": client,
    }
