# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A small schema for the fleet file: every problem names the key, the value and what to do.

ansible-core's ArgumentSpecValidator was tried first: it stops at a nested key's short name and leaves the value and the
remedy out, which is what an operator needs at night.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One mistake in the fleet file: where, what stands there, what to do."""

    key: str
    value: Any
    remedy: str

    def __str__(self) -> str:
        return f"{self.key}: {self.value!r}: {self.remedy}"


@dataclass(frozen=True)
class Field:
    """What one key may hold.

    ``kind`` is ``str``, ``int``, ``float`` (an int will do), ``bool``, ``list`` (of ``items``) or ``dict`` (of
    ``fields``; with ``fields`` None, of anything). ``check`` returns a remedy for a bad value, else None. ``help`` says what
    the key means, for the documentation.
    """

    kind: type
    default: Any = None
    required: bool = False
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    pattern: str = ""
    items: Field | None = None
    fields: Mapping[str, Field] | None = None
    check: Callable[[Any], str | None] | None = field(default=None, compare=False)
    help: str = field(default="", compare=False)


_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", list: "a list", dict: "a mapping"}


def unknown_key(key: str, value: Any, known: Iterable[str]) -> Problem:
    """The problem of a key nobody reads, with the nearest known name as remedy."""
    known = sorted(known)
    last = key.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(last, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"remove it; known keys here: {', '.join(known)}"
    return Problem(key, value, f"unknown key, {hint}")


def _has_kind(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int) and not isinstance(value, bool) or isinstance(value, float) and not math.isnan(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _check_scalar(key: str, value: Any, spec: Field) -> Iterable[Problem]:
    if spec.choices and value not in spec.choices:
        yield Problem(key, value, f"use one of: {', '.join(spec.choices)}")
    if spec.minimum is not None and value < spec.minimum:
        yield Problem(key, value, f"use at least {spec.minimum:g}")
    if spec.maximum is not None and value > spec.maximum:
        yield Problem(key, value, f"use at most {spec.maximum:g}")
    if spec.pattern and not re.fullmatch(spec.pattern, value):
        yield Problem(key, value, f"must match {spec.pattern}")


def apply(key: str, value: Any, spec: Field, problems: list[Problem]) -> Any:
    """Check ``value`` against ``spec``, add what is wrong to ``problems``, and return it with defaults filled in."""
    if not _has_kind(value, spec.kind):
        problems.append(Problem(key, value, f"must be {_NAMES[spec.kind]}"))
        return spec.default
    if spec.kind is dict and spec.fields is not None:
        value = apply_fields(key, value, spec.fields, problems)
    elif spec.kind is list and spec.items is not None:
        value = [apply(f"{key}[{i}]", item, spec.items, problems) for i, item in enumerate(value)]
    elif spec.kind not in (dict, list):
        problems.extend(_check_scalar(key, value, spec))
    if spec.check is not None and not any(problem.key.startswith(key) for problem in problems):
        remedy = spec.check(value)
        if remedy:
            problems.append(Problem(key, value, remedy))
    return value


def apply_fields(
    key: str, values: Mapping[str, Any], fields: Mapping[str, Field], problems: list[Problem]
) -> dict[str, Any]:
    """Check a mapping's keys and values; ``key`` is the path to it ("" at the top)."""
    prefix = f"{key}." if key else ""
    for name in values:
        if name not in fields:
            problems.append(unknown_key(f"{prefix}{name}", values[name], fields))
    result = {}
    for name, spec in fields.items():
        if name in values:
            result[name] = apply(prefix + name, values[name], spec, problems)
        elif spec.required:
            problems.append(Problem(prefix + name, None, f"is missing: give {_NAMES[spec.kind]}"))
        elif spec.kind is dict and spec.fields is not None and spec.default is None:
            result[name] = None
        else:
            result[name] = spec.default
    return result
