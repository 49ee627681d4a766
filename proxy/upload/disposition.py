"""Header values of multipart forms: read strictly, written in one canonical way.

Rules:
1. What can be read in two ways is refused: a parameter twice, text outside a parameter, a quote
   that does not end. Parsers differ there, and the app's must find what we found.
2. Both escapes of the field are understood, `\\"` (RFC 2183) and `%22` (the HTML standard); only
   the latter is written.
3. `filename*` (RFC 8187) must not be in a form (RFC 7578 §4.2), yet old clients send it for names
   that are not ASCII: it is read, and written as a plain `filename`.
4. A file name keeps letters, digits and a few marks of any script. Its last extension is that of
   the detected family.
"""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote_to_bytes

from proxy.upload.families import Family

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(
    rf';[ \t]*({_WORD})=(?:({_WORD})|"((?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[ -\x7e])*)")[ \t]*'
)
_MEDIA_TYPE = re.compile(rf"[ \t]*({_WORD})(?:/({_WORD}))?[ \t]*")
# RFC 2046 §5.1.1: 1 to 70 of these, the last one no space
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_MAX_STEM = 100


def parse_value(value: str) -> tuple[str, dict[str, str]]:
    """`form-data; name="a"` as (`form-data`, {`name`: `a`}): lower-case value and parameter names,
    quoted pairs undone. Raises `ValueError` with half a sentence that says what is wrong."""
    match = _MEDIA_TYPE.match(value)
    if match is None:
        raise ValueError("a header value cannot be read")
    kind = value[: match.end()].strip().lower()
    parameters: dict[str, str] = {}
    at = match.end()
    while at < len(value):
        parameter = _PARAMETER.match(value, at)
        if parameter is None:
            if value[at:].strip(" \t") == ";":  # harmless, and some clients end with it
                break
            raise ValueError("a header parameter cannot be read")
        name = parameter[1].lower()
        if name in parameters:
            raise ValueError(f"parameter {name} is there twice")
        parameters[name] = parameter[2] if parameter[2] is not None else _unescape(parameter[3])
        at = parameter.end()
    return kind, parameters


def _unescape(quoted: str) -> str:
    # Only \" and \\ are escapes in practice: browsers of old sent C:\path\file.mp3 unescaped.
    return re.sub(r'\\(["\\])', r"\1", quoted)


def parse_boundary(content_type: str) -> bytes:
    """The boundary of a `multipart/form-data` field value. Raises `ValueError` as above."""
    kind, parameters = parse_value(content_type)
    if kind != "multipart/form-data":
        raise ValueError(f"the body is {kind}, not multipart/form-data")
    boundary = parameters.get("boundary")
    if boundary is None:
        raise ValueError("the boundary is missing")
    if not _BOUNDARY.fullmatch(boundary):
        raise ValueError("the boundary is not 1 to 70 of the characters that RFC 2046 allows")
    return boundary.encode()


def decode(value: str) -> str:
    """A header value that was read as ISO-8859-1, as what it most probably is."""
    raw = value.encode("latin-1")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return value


def file_name(parameters: dict[str, str]) -> str | None:
    """The name that the client gave, or None where the part is no file."""
    extended = parameters.get("filename*")
    if extended is None:
        return parameters.get("filename")
    charset, _, rest = extended.partition("'")
    _, quote, encoded = rest.partition("'")
    if not quote or charset.lower() not in ("utf-8", "iso-8859-1"):
        raise ValueError("filename* is not in the form of RFC 8187")
    return unquote_to_bytes(encoded).decode(charset, "replace")


def safe_file_name(given: str, family: Family) -> str:
    """A name that no shell, path, header or log takes amiss: rule 4."""
    base = unicodedata.normalize("NFC", given.replace("\\", "/").rsplit("/", 1)[-1])
    base = base.replace("%22", "_").replace("%0D", "_").replace("%0A", "_")
    clean = "".join(char if _kept(char) else "_" for char in base)
    stem, dot, extension = clean.rpartition(".")
    suffix = (dot + extension).lower()
    if not dot or len(suffix) > 6:
        stem = clean
    stem = stem.strip(". -_")[:_MAX_STEM].strip() or "audio"
    return stem + (suffix if suffix in family.extensions else family.extensions[0])


def _kept(char: str) -> bool:
    # letters, marks that letters carry, numbers
    return char in "._-() " or unicodedata.category(char)[0] in "LMN"


def write_disposition(name: str, filename: str | None = None) -> bytes:
    """The one `Content-Disposition` line, with its line end; UTF-8 as the HTML standard writes."""
    line = f'Content-Disposition: form-data; name="{_escape(name)}"'
    if filename is not None:
        line += f'; filename="{_escape(filename)}"'
    return line.encode() + b"\r\n"


def _escape(text: str) -> str:
    return text.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
