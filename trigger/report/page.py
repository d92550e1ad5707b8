# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One HTML page from plain data: style, script and data in it, and a policy that lets the browser run and load nothing else."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent


def page(data: Mapping[str, Any]) -> str:
    """The page. ``data`` needs ``title``; names and texts in it may hold anything: they are data, never markup."""
    style = (_FOLDER / "report.css").read_text(encoding="utf-8")
    script = "\n".join((_FOLDER / name).read_text(encoding="utf-8") for name in ("charts.js", "report.js"))
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    body = (_FOLDER / "report.html").read_text(encoding="utf-8")
    values = {
        "@title@": html.escape(str(data["title"])), "@policy@": html.escape(policy), "@style@": style, "@script@": script,
        "@data@": _embedded(data),
    }
    # In one pass, so that data which hold such a mark are not filled in again.
    return re.sub("@(?:title|policy|style|script|data)@", lambda mark: values[mark[0]], body)


def _embedded(data: Mapping[str, Any]) -> str:
    """JSON that cannot end its script element, whatever names are in it."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
