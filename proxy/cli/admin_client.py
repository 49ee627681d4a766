"""HTTP to the admin API of a running proxy, for the command line."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit

from proxy.core.text import printable

DEFAULT_ADMIN = "http://127.0.0.1:9901"
_LONGEST_ANSWER = 64 * 1024 * 1024


class AdminError(Exception):
    """The admin API could not be reached, or refused: one line for the user."""


class Client:
    """HTTP to the admin API, one connection per call.

    `timeout` is in seconds. The proxy settings of the environment are ignored.
    """

    def __init__(self, url: str, token: str = "", timeout: float = 30.0) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise AdminError(f"--admin: expected a URL such as {DEFAULT_ADMIN}, found {url!r}")
        self._shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._base = parts.path.rstrip("/")
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._connect: Callable[[], http.client.HTTPConnection] = lambda: kind(
            str(parts.hostname), port, timeout=timeout
        )
        if not token.isascii() or not token.isprintable():
            raise AdminError("the token has characters that are not allowed in a header")
        self._fields = {"Accept": "application/json"}
        if token:
            self._fields["Authorization"] = f"Bearer {token}"

    def send(self, method: str, path: str, document: object = None) -> tuple[int, bytes]:
        """Status and body of one exchange. Raises `AdminError` without a response."""
        body = None if document is None else json.dumps(document).encode()
        fields = self._fields | ({"Content-Type": "application/json"} if body else {})
        connection = self._connect()
        try:
            connection.request(method, self._base + path, body, fields)
            response = connection.getresponse()
            return response.status, response.read(_LONGEST_ANSWER)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise AdminError(
                f"no admin API at {self._shown} ({printable(reason).lower()}); "
                "is the proxy running? another address: --admin URL"
            ) from None
        finally:
            connection.close()

    def call(self, method: str, path: str, document: object = None) -> Any:
        """The JSON response of a successful call. Raises `AdminError` with the API's own
        message."""
        status, body = self.send(method, path, document)
        try:
            answer = json.loads(body) if body else None
        except (ValueError, RecursionError):
            answer = body
        if 200 <= status < 300 and not isinstance(answer, bytes):
            return answer
        detail = answer.get("detail") if isinstance(answer, dict) else None
        if status == 401:
            raise AdminError(
                "the admin API does not know this token: see admin.token in the proxy's config"
                if "Authorization" in self._fields
                else "the admin API needs a token: give --token or set ADMIN_TOKEN"
            )
        if detail:
            raise AdminError(printable(str(detail)))
        if status == 404:
            raise AdminError(f"{self._shown}{path} is not there (404): not known to this proxy")
        raise AdminError(f"{self._shown}{path} answers {status}: {one_line(body)}")


def segment(text: str) -> str:
    """`text` as one segment of a URL's path; dot segments would be resolved."""
    return quote(text, safe="") if text not in (".", "..") else text.replace(".", "%2E")


def one_line(body: bytes) -> str:
    """The beginning of a response, safe for a terminal."""
    return printable(" ".join(body.decode(errors="replace").split())[:200]) or "nothing"
