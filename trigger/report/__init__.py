# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``moodle-fleet report``: what a fleet did, and why, as one page that needs nothing else."""

from __future__ import annotations

import argparse
import datetime
import time
from pathlib import Path

DEFAULT_DAYS = 14
_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 604800}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the page to write")
    parser.add_argument("--ledger", type=Path, metavar="FILE", help="instead of the fleet's own ledger")
    parser.add_argument("--since", type=moment, metavar="TIME",
                        help=f"ISO 8601, or how long ago: 90m, 12h, 7d ({DEFAULT_DAYS}d before the end)")
    parser.add_argument("--until", type=moment, metavar="TIME", help="the same (now; with --ledger its last check)")
    parser.add_argument("--logs", type=Path, action="append", default=[], metavar="PATH",
                        help="the log server's folder of tenants, or HAProxy's log: slowest and busiest tenants; may be repeated")
    parser.add_argument("--price", type=float, metavar="P", help="price of a node-hour (costs.node_hour of the fleet file)")


def moment(text: str) -> float:
    """Unix time of what was written on the command line. Without a zone it is this machine's local time."""
    unit = _UNITS.get(text[-1:].lower())
    try:
        if unit is not None:
            return time.time() - float(text[:-1]) * unit
        return datetime.datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r}: give a time such as 2026-12-01T07:30, or how long ago: 12h, 7d") from None
