# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""AWS's wire formats, as far as the test server reads and writes them itself."""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

# IAM's prefix where it differs from the name with which a request is signed.
_PREFIXES = {"monitoring": "cloudwatch"}


class Reader:
    """Service, action and parameters of a request. REST services have their method and path as action."""

    def __init__(self, environ: Mapping[str, Any], body: bytes):
        scope = re.search(r"Credential=[^/]+/\d+/[^/]+/([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
        name = scope.group(1) if scope else ""
        self.service = _PREFIXES.get(name, name)
        self.parameters: dict[str, str] = {}
        self.action = ""
        self.kind = "rest"
        target = environ.get("HTTP_X_AMZ_TARGET", "")
        path = environ.get("PATH_INFO", "")
        if "/operation/" in path:
            self.kind, self.action = "cbor", path.rpartition("/")[2]
        elif target:
            self.kind, self.action = "json", target.rpartition(".")[2]
            self.parameters = {key: json.dumps(value) for key, value in json.loads(body or b"{}").items()}
        elif environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded"):
            self.parameters = dict(urllib.parse.parse_qsl(body.decode(), keep_blank_values=True))
            self.action = self.parameters.pop("Action", "")
            self.parameters.pop("Version", None)
            self.kind = "ec2" if self.service == "ec2" else "query"
        elif self.service:
            self.action = f"{environ.get('REQUEST_METHOD')} {re.sub(r'[a-z]+-[0-9a-f]{8,}', '*', path)}"


@dataclass(frozen=True)
class Answer:
    """An answer; ``code`` is the error code, empty for none."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes
    code: str = ""

    def send(self, start: Callable[..., Any]) -> Iterable[bytes]:
        headers = [(key, value) for key, value in self.headers if key.lower() not in ("content-length", "connection")]
        start(self.status, [*headers, ("Content-Length", str(len(self.body)))])
        return [self.body]


def error(request: Reader, code: str, status: int) -> Answer:
    """An error as the request's protocol writes it."""
    text = f"{code}: made by the test server"
    line = f"{status} {'Error' if status >= 500 else 'Bad Request'}"
    if request.kind == "ec2":
        body = f"<Response><Errors><Error><Code>{code}</Code><Message>{text}</Message></Error></Errors><RequestID>1</RequestID></Response>"
        return Answer(line, [("Content-Type", "text/xml")], body.encode(), code)
    if request.kind == "query":
        body = f"<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{text}</Message></Error><RequestId>1</RequestId></ErrorResponse>"
        return Answer(line, [("Content-Type", "text/xml")], body.encode(), code)
    if request.kind == "cbor":
        headers = [("Content-Type", "application/cbor"), ("smithy-protocol", "rpc-v2-cbor")]
        return Answer(line, headers, _cbor({"__type": code, "message": text}), code)
    body = json.dumps({"__type": code, "message": text})
    return Answer(line, [("Content-Type", "application/x-amz-json-1.1"), ("x-amzn-ErrorType", code)], body.encode(), code)


def _cbor(values: Mapping[str, str]) -> bytes:
    """A small map of short texts in CBOR."""
    parts = [bytes([0xA0 + len(values)])]
    for one in (text for pair in values.items() for text in pair):
        raw = one.encode()
        parts.append((bytes([0x60 + len(raw)]) if len(raw) < 24 else bytes([0x78, len(raw)])) + raw)
    return b"".join(parts)


def strip(content: bytes) -> ElementTree.Element:
    """The tree of an answer without namespaces."""
    tree = ElementTree.fromstring(content)
    for element in tree.iter():
        element.tag = element.tag.rpartition("}")[2]
    return tree


def items(tree: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    """The items of every list of this name."""
    return [item for found in tree.iter(name) for item in found]


def to_xml(tree: ElementTree.Element, namespace: str) -> bytes:
    """The tree as an answer."""
    tree.set("xmlns", namespace)
    return ElementTree.tostring(tree, encoding="utf-8", xml_declaration=True)
