"""Imports code that the config names: `package.module:Name`.

It is looked up on Python's path and then in the current directory, as by uvicorn and gunicorn. The
operator who writes the config could as well replace the program, so nothing is restricted here.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback

#: Files in a traceback that are not the imported module's.
_MACHINERY = ("<frozen ", importlib.__file__, __file__)


class CannotImport(Exception):
    """The object cannot be imported; the text says why."""


def load_object(name: str) -> object:
    """The object of that name. Raises `CannotImport`, whatever the module's own code raised."""
    module_name, _, path = name.partition(":")
    try:
        found: object = _import(module_name)
    except (Exception, SystemExit) as error:  # SystemExit: a script that runs when it is imported
        message = f"{name!r}: importing {module_name} failed with {type(error).__name__}: {error}"
        raise CannotImport(message + _where(module_name, error)) from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            near = difflib.get_close_matches(part, dir(found), n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise CannotImport(f"{name!r}: {module_name} has no {path}{hint}") from None
    return found


def _where(name: str, error: BaseException) -> str:
    """Where to look for the fault: the line that failed, or where the module was searched."""
    if isinstance(error, SyntaxError):
        return ""  # its message has the place
    if place := where_of(error):
        return place
    if isinstance(error, ModuleNotFoundError):
        return f" ({name} is looked up on Python's path, then in {os.getcwd()})"
    return ""


def where_of(error: BaseException) -> str:
    """` (FILE, line N)` of the code that raised the error, unless it is ours."""
    frames = traceback.extract_tb(error.__traceback__)
    code = [f for f in frames if not f.filename.startswith(_MACHINERY)]
    return f" ({code[-1].filename}, line {code[-1].lineno})" if code else ""


def _import(name: str) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        here = os.getcwd()
        if here in sys.path or not name.startswith(error.name or "?"):
            raise
    sys.path.append(here)  # at the end, so that it hides no installed module
    importlib.invalidate_caches()
    return importlib.import_module(name)
