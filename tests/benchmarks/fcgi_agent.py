# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs on a web node: takes {"script", "host", "body", "headers"} a line, sends it to PHP-FPM, prints its JSON answer."""

from __future__ import annotations

import json
import socket
import struct
import sys


def record(kind: int, data: bytes) -> bytes:
    return struct.pack("!BBHHBB", 1, kind, 1, len(data), 0, 0) + data


def pair(name: str, value: str) -> bytes:
    out = b""
    for text in (name, value):
        size = len(text.encode())
        out += struct.pack("!B", size) if size < 128 else struct.pack("!I", size | 0x80000000)
    return out + name.encode() + value.encode()


def request(job: dict) -> dict:
    body = json.dumps(job.get("body")).encode()
    parameters = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_FILENAME": job["script"],
        "SCRIPT_NAME": "/bench.php",
        "REQUEST_URI": "/bench.php",
        "QUERY_STRING": "",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "SERVER_PROTOCOL": "HTTP/1.1",
        # Moodle refuses servers that it does not know.
        "SERVER_SOFTWARE": "nginx",
        "SERVER_NAME": job["host"],
        "SERVER_PORT": "80",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": job["host"],
    }
    parameters.update({"HTTP_" + name.upper(): value for name, value in (job.get("headers") or {}).items()})
    message = record(1, struct.pack("!HB5x", 1, 0))
    message += record(4, b"".join(pair(*item) for item in parameters.items())) + record(4, b"")
    for start in range(0, len(body), 60000):
        message += record(5, body[start:start + 60000])
    message += record(5, b"")
    out = {6: b"", 7: b""}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(120)
        connection.connect("/run/php/moodle.sock")
        connection.sendall(message)
        stream = connection.makefile("rb")
        while True:
            header = stream.read(8)
            if not header:
                break
            _version, kind, _number, size, padding, _reserved = struct.unpack("!BBHHBB", header)
            data = stream.read(size + padding)[:size]
            if kind == 3:
                break
            out[kind] = out.get(kind, b"") + data
    content = out[6].partition(b"\r\n\r\n")[2]
    try:
        return json.loads(content)
    except ValueError:
        return {"error": repr((out[6][:60], content[-500:], out[7][:500]))}


for line in sys.stdin:
    print(json.dumps(request(json.loads(line))), flush=True)
