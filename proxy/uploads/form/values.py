"""Header values of multipart forms: what clients write, read in one way and written in one way.

Rules:
1. What decides about the structure of a form is read strictly: a parameter twice, text outside a
   parameter, a field name with escapes that parsers end in different places. The app's parser must
   find the fields that we found. A file name decides nothing, since it is written anew: it is read
   as generously as clients are careless.
2. A field name goes upstream as its bytes came: whether `\\"` (RFC 2183) or `%22` (the HTML
   standard) stands for a quote is between the client and the app.
3. `filename*` (RFC 8187) must not be in a form (RFC 7578 §4.2), yet clients send it for names that
   are not ASCII: it is read, and written as a plain `filename`.
4. A file name keeps letters, digits and a few marks of any script. Its last extension is that of
   the detected family.
5. A text part keeps a `Content-Type` that is one of text. `application/octet-stream` would make it
   a file for some parsers (busboy), a `name` in it for others.
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
# An unquoted name with blanks, a quote that nobody has escaped: only as the last parameter.
_CARELESS_FILENAME = re.compile(r";[ \t]*filename=([^;]*)", re.IGNORECASE)
# Clients do not quote what is no token: `boundary====1700000000===`
_BARE_BOUNDARY = re.compile(r';[ \t]*boundary=([^\s;,"\\]+)[ \t]*(?=;|\Z)', re.IGNORECASE)
_MEDIA_TYPE = re.compile(rf"[ \t]*({_WORD})(?:/({_WORD}))?[ \t]*(?=;|\Z)")
# Beyond RFC 2046 §5.1.1, which has fewer characters and 70 of them: what servers take (Django and
# Werkzeug: 201 printable ones). The last one is no space.
_BOUNDARY = re.compile(r"[ !#-:<-\[\]-~]{0,199}[!#-:<-\[\]-~]")
_TEXT_TYPE = re.compile(
    r"text/.+|application/(.+\+)?(json|xml|yaml)"
    r"|application/(x-yaml|x-ndjson|graphql|x-www-form-urlencoded)"
)
#: In these a field name in ASCII can be nothing else, and a quote ends where it does for us.
_ASCII_BASED = re.compile(r"utf-?8|us-ascii|iso-8859-15?|windows-125[0-8]", re.IGNORECASE)
#: What clients name in `filename*`; decoders for all are part of Python.
_CHARSETS = re.compile(
    r"utf-?8|us-ascii|iso-8859-(1[013-6]?|[2-9])|windows-125[0-8]|gbk|gb2312|gb18030|big5|shift[_-]jis"
    r"|euc-(jp|kr)|koi8-[ru]|utf-16(le|be)?",
    re.IGNORECASE,
)
_MAX_STEM = 100


class FormType(NamedTuple):
    """What the request's `Content-Type` says of the form. `charset`: that of names and values where
    the client names one and it changes nothing of what stands between them."""

    boundary: bytes
    charset: str | None


def parse_value(value: str) -> tuple[str, dict[str, str]]:
    """`form-data; name="a"` as (`form-data`, {`name`: `a`}): lower-case value and parameter names,
    values as they stand between the quotes (`unescape`). Raises `ValueError` with half a sentence
    that says what is wrong."""
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
        elif value[at:].strip(" \t") == ";":  # harmless, and some clients end with it
            break
        else:
            raise ValueError("a header parameter cannot be read")
        if name in parameters:
            raise ValueError(f"parameter {name} is there twice")
        parameters[name] = text
    return kind, parameters


def unescape(quoted: str) -> str:
    """What stands between quotes, as it is meant."""
    # Only \" and \\ are escapes in practice: browsers of old sent C:\path\file.mp3 unescaped.
    return re.sub(r'\\(["\\])', r"\1", quoted)


def parse_form_type(content_type: str) -> FormType:
    """A `multipart/form-data` field value. Raises `ValueError` as above."""
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
    """A header value that was read as ISO-8859-1, as what it most probably is."""
    raw = value.encode("latin-1")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return value


def field_name(parameters: dict[str, str]) -> str:
    """The name of a part, as it stands between its quotes. Raises `ValueError` where there is none,
    or where parsers end or read it in different ways."""
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
    """The `Content-Type` of a text part as it goes upstream; None for none (rule 5)."""
    try:
        kind, parameters = parse_value(value)
    except ValueError:
        return None
    if not _TEXT_TYPE.fullmatch(kind):
        return None
    charset = parameters.get("charset", "")
    return (f"{kind}; charset={charset}" if re.fullmatch(_WORD, charset) else kind).encode()


def file_name(parameters: dict[str, str]) -> str | None:
    """The name that the client gave, or None where the part is no file."""
    plain = parameters.get("filename")
    charset, _, rest = parameters.get("filename*", "").partition("'")
    _, quote, encoded = rest.partition("'")
    if quote and _CHARSETS.fullmatch(charset):
        return unquote_to_bytes(encoded.encode("latin-1")).decode(charset, "replace")
    if plain is None and "filename*" in parameters:  # in no form that is known: a file all the same
        return ""
    return None if plain is None else decode(unescape(plain))


def safe_file_name(given: str, extensions: Sequence[str], *, without: str = "audio") -> str:
    """A name that no shell, path, header or log takes amiss: rule 4. Of the `extensions` the first
    one replaces any other; `without` a name it is called so."""
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
    """The one `Content-Disposition` line, with its line end. `name` as from `field_name`, encoded;
    `filename` a safe one, or empty."""
    line = b'Content-Disposition: form-data; name="' + name + b'"'
    if filename is not None:
        line += b'; filename="' + filename.encode() + b'"'
    return line + b"\r\n"
