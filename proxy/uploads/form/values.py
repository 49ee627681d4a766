"""Header values of multipart forms: parsed in one way, written in one way.

Rules:
1. What determines the structure of a form is parsed strictly, so that the app's parser finds the
   same fields: no repeated parameters, no text outside parameters, no escapes in field names that
   parsers end at different places. File names are rewritten, so they are parsed leniently.
2. A field name goes upstream byte by byte: whether `\\"` (RFC 2183) or `%22` (the HTML standard)
   means a quote is between the client and the app.
3. `filename*` (RFC 8187) is not allowed in a form (RFC 7578 §4.2), but clients send it for names
   that are not ASCII: it is accepted, and written as a plain `filename`.
4. A file name keeps letters, digits and a few marks of any script. Its extension fits the detected
   family.
5. A text part keeps a textual `Content-Type`. Some parsers (busboy) would take one with
   `application/octet-stream` for a file, others one with a `name` parameter.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = r'"((?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[ -\x7e])*)"'
_PARAMETER = re.compile(rf";[ \t]*({_WORD})=(?:({_WORD})|{_QUOTED})[ \t]*(?=;|\Z)")
# An unquoted name with spaces, or an unescaped quote: only as the last parameter.
_CARELESS_FILENAME = re.compile(r";[ \t]*filename=([^;]*)", re.IGNORECASE)
# Clients do not quote what is no token: `boundary====1700000000===`
_BARE_BOUNDARY = re.compile(r';[ \t]*boundary=([^\s;,"\\]+)[ \t]*(?=;|\Z)', re.IGNORECASE)
_MEDIA_TYPE = re.compile(rf"[ \t]*({_WORD})(?:/({_WORD}))?[ \t]*(?=;|\Z)")
# What servers accept (Django and Werkzeug: 201 printable characters), which is more than the 70 of
# RFC 2046 §5.1.1. The last one is no space.
_BOUNDARY = re.compile(r"[ !#-:<-\[\]-~]{0,199}[!#-:<-\[\]-~]")
_TEXT_TYPE = re.compile(
    r"text/.+|application/(.+\+)?(json|xml|yaml)"
    r"|application/(x-yaml|x-ndjson|graphql|x-www-form-urlencoded)"
)
#: Charsets in which ASCII bytes, quotes included, always mean the same characters.
_ASCII_BASED = re.compile(r"utf-?8|us-ascii|iso-8859-15?|windows-125[0-8]", re.IGNORECASE)
#: Charsets of `filename*` that clients send; Python can decode all of them.
_CHARSETS = re.compile(
    r"utf-?8|us-ascii|iso-8859-(1[013-6]?|[2-9])|windows-125[0-8]|gbk|gb2312|gb18030|big5|shift[_-]jis"
    r"|euc-(jp|kr)|koi8-[ru]|utf-16(le|be)?",
    re.IGNORECASE,
)
_MAX_STEM = 100


class FormType(NamedTuple):
    """The request's `Content-Type`. `charset`: that of names and values, if the client gives one
    that is based on ASCII."""

    boundary: bytes
    charset: str | None


def parse_value(value: str) -> tuple[str, dict[str, str]]:
    """`form-data; name="a"` as (`form-data`, {`name`: `a`}): lower-case value and parameter names,
    values as they stand between the quotes (`unescape`). Raises `ValueError`, whose message is half
    a sentence."""
    match = _MEDIA_TYPE.match(value)
    if match is None:
        raise ValueError("a header value cannot be read")
    kind = value[: match.end()].strip().lower()
    parameters: dict[str, str] = {}
    at = match.end()
    while at < len(value):
        parameter = _PARAMETER.match(value, at)
        if parameter is not None:
            name, text, at = parameter[1].lower(), parameter[2], parameter.end()
            text = parameter[3] if text is None else text
        elif (bare := _BARE_BOUNDARY.match(value, at)) is not None:
            name, text, at = "boundary", bare[1], bare.end()
        elif (careless := _CARELESS_FILENAME.fullmatch(value, at)) is not None:
            name, at = "filename", len(value)
            text = re.sub(r'^"|"$', "", careless[1].strip(" \t"))
        elif value[at:].strip(" \t") == ";":  # some clients end with one: harmless
            break
        else:
            raise ValueError("a header parameter cannot be read")
        if name in parameters:
            raise ValueError(f"parameter {name} is there twice")
        parameters[name] = text
    return kind, parameters


def unescape(quoted: str) -> str:
    """A quoted value without its escapes."""
    # Only \" and \\ are escapes in practice: old browsers sent C:\path\file.mp3 unescaped.
    return re.sub(r'\\(["\\])', r"\1", quoted)


def parse_form_type(content_type: str) -> FormType:
    """Parse a `multipart/form-data` field value. Raises `ValueError` like `parse_value`."""
    kind, parameters = parse_value(content_type)
    if kind != "multipart/form-data":
        raise ValueError(f"the body is {kind}, not multipart/form-data")
    boundary = parameters.get("boundary")
    if boundary is None:
        raise ValueError(
            "the boundary is missing (leave the Content-Type of a form to your HTTP library)"
        )
    if not _BOUNDARY.fullmatch(boundary):
        raise ValueError("the boundary is not 1 to 200 of the characters that servers take")
    charset = parameters.get("charset", "")
    return FormType(boundary.encode(), charset if _ASCII_BASED.fullmatch(charset) else None)


def decode(value: str) -> str:
    """Decode a header value that was read as ISO-8859-1: UTF-8 if it is valid UTF-8."""
    raw = value.encode("latin-1")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return value


def field_name(parameters: dict[str, str]) -> str:
    """The name of a part, as it stands between its quotes. Raises `ValueError` if there is none, or
    if parsers disagree on where it ends or how it reads."""
    name = parameters.get("name", "")
    if not name:
        raise ValueError("a part has no name")
    if any("*" in other and other != "filename*" for other in parameters):
        raise ValueError("a part has a parameter in the form of RFC 2231")
    plain = name.replace(r"\"", "")
    if "\\" in plain or (plain != name and ";" in name):
        raise ValueError("a part's name has escapes that can be read in two ways")
    return name


def text_type(value: str) -> bytes | None:
    """The `Content-Type` of a text part for the upstream, or None (rule 5)."""
    try:
        kind, parameters = parse_value(value)
    except ValueError:
        return None
    if not _TEXT_TYPE.fullmatch(kind):
        return None
    charset = parameters.get("charset", "")
    return (f"{kind}; charset={charset}" if re.fullmatch(_WORD, charset) else kind).encode()


def file_name(parameters: dict[str, str]) -> str | None:
    """The client's file name, or None if the part is no file."""
    plain = parameters.get("filename")
    charset, _, rest = parameters.get("filename*", "").partition("'")
    _, quote, encoded = rest.partition("'")
    if quote and _CHARSETS.fullmatch(charset):
        return unquote_to_bytes(encoded.encode("latin-1")).decode(charset, "replace")
    if plain is None and "filename*" in parameters:  # undecodable, but still a file
        return ""
    return None if plain is None else decode(unescape(plain))


def safe_file_name(given: str, extensions: Sequence[str], *, without: str = "audio") -> str:
    """A name that is safe in shells, paths, headers and logs (rule 4). The first of the
    `extensions` replaces any other; `without` is the stem if the name has none."""
    base = unicodedata.normalize("NFC", given.replace("\\", "/").rsplit("/", 1)[-1])
    base = base.replace("%22", "_").replace("%0D", "_").replace("%0A", "_")
    clean = "".join(char if _kept(char) else "_" for char in base)
    stem, dot, extension = clean.rpartition(".")
    suffix = (dot + extension).lower()
    if not dot or len(suffix) > 6:
        stem = clean
    stem = stem.strip(". -_")[:_MAX_STEM].strip() or without
    return stem + (suffix if suffix in extensions else extensions[0])


def _kept(char: str) -> bool:
    # letters, marks that letters carry, numbers
    return char in "._-() " or unicodedata.category(char)[0] in "LMN"


def write_disposition(name: bytes, filename: str | None = None) -> bytes:
    """The `Content-Disposition` line, with its line end. `name`: as from `field_name`, encoded;
    `filename`: a safe one, or empty."""
    line = b'Content-Disposition: form-data; name="' + name + b'"'
    if filename is not None:
        line += b'; filename="' + filename.encode() + b'"'
    return line + b"\r\n"
