# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Every password of a fleet is derived from one secret, so that only one has to be kept and rotated."""

from __future__ import annotations

import base64
import hashlib
import hmac
import string

MINIMUM_LENGTH = 32


def derive(secret: str, purpose: str, name: str, generation: int = 1) -> str:
    """Return the password for ``name`` (a tenant, or the fleet) and ``purpose``.

    The same input always gives the same 30 characters; nothing about the secret or about another
    password can be read from them. There is always an upper and a lower case letter, a digit and
    one of ``-_``, as Moodle's password policy asks, and the first character is a letter, so that no
    program takes the password for an option.
    """
    if not isinstance(secret, str) or len(secret) < MINIMUM_LENGTH:
        raise ValueError(
            f"moodle_fleet_secret has to be text of at least {MINIMUM_LENGTH} characters;"
            " make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(48))'"
        )
    for part, value in (("purpose", purpose), ("name", name)):
        if not value or ":" in value:
            raise ValueError(f"{part} {value!r} must be neither empty nor contain ':'")
    generation = int(generation)
    if generation < 1:
        raise ValueError(f"generation {generation} must be 1 or more")
    message = f"{purpose}:{name}:{generation}".encode()
    digest = hmac.new(secret.encode(), message, hashlib.sha256).digest()
    body = base64.urlsafe_b64encode(digest).decode()[:26]
    return (
        string.ascii_uppercase[digest[28] % 26]
        + body
        + string.ascii_lowercase[digest[29] % 26]
        + string.digits[digest[30] % 10]
        + "-_"[digest[31] % 2]
    )
