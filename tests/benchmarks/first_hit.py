# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The first pages of a fresh node, against warm pages: what the warm-up and the compiled code in the image are worth."""

from __future__ import annotations

import argparse
from collections import defaultdict

from measure import median, percentile, report, say, wait_for
from nodes import Fleet, WebNode
from pages import PAGES, forwarded, page_paths
from site_client import Target, Visitor, health

# What a fresh node does not have: Moodle's local caches. And, as the recipe's opposite, no compiled code either.
FORGET_LOCAL = "rm -rf /var/cache/moodle-fleet/{tenant}/localcache/* /var/cache/moodle-fleet/{tenant}/localrequest/*"
CODE = "/var/cache/moodle-fleet/opcache"
FORGET_CODE = f"find {CODE} -mindepth 1 -delete"
IMAGE_CODE = f"{FORGET_CODE}; cp -a {CODE}.image/. {CODE}/"
HOW = {
    "cold: no compiled code, no warm-up": (FORGET_CODE, False),
    "compiled code of the image, no warm-up": (IMAGE_CODE, False),
    "the recipe: warmed up before joining": (IMAGE_CODE, True),
}


def start(node: WebNode, tenant: str, forget: str, warm: bool) -> None:
    """Bring PHP-FPM of the node into the state of a fresh node."""
    node.sh("systemctl stop php-fpm.service moodle-fleet-warmup.service; " + forget + "; " + FORGET_LOCAL.format(tenant=tenant))
    if warm:
        node.sh("systemctl start php-fpm.service")
        wait_for("the warm-up", lambda: health(node.address), 120)
    else:
        node.sh("systemctl mask --runtime --quiet moodle-fleet-warmup.service; systemctl start php-fpm.service;"
                " systemctl unmask --runtime --quiet moodle-fleet-warmup.service")
        wait_for("PHP-FPM", lambda: node.sh("test -S /run/php/moodle.sock && echo yes", check=False).strip())


def main(fleet: Fleet, given: argparse.Namespace) -> None:
    """The benchmark `first-hit`."""
    # The warm-up makes pages of the last tenant; this one the node has never seen.
    node, tenant = WebNode(fleet, 1), fleet.tenants[0]
    if len(fleet.tenants) < 2:
        raise SystemExit("first-hit needs two tenants: the warm-up makes pages of the last one")
    # Always a new one: an earlier benchmark may have left other compiled code behind.
    node.remove()
    node.start()
    node.sh(f"cp -a {CODE} {CODE}.image")
    paths = page_paths(fleet)
    target = Target("fresh node", node.address, tenant["host"], headers={**forwarded(fleet), "Host": f"{tenant['host']}:{fleet.port}"})

    def visitors() -> dict[str, Visitor]:
        """One session a page: it exists before the node is fresh, as a learner's session does."""
        result = {}
        for number, page in enumerate(paths):
            result[page] = Visitor(target)
            result[page].log_in(f"learner{number + 1}", tenant["learner_password"])
        return result

    with fleet.quiet():
        people = visitors()
        found: dict[tuple[str, str], list[float]] = defaultdict(list)
        warm: dict[str, list[float]] = defaultdict(list)
        for number in range(given.rounds):
            say(f"  round {number + 1} of {given.rounds} …")
            for how, (forget, warmed) in HOW.items():
                # Every page is once the very first.
                for page, path in paths.items():
                    start(node, tenant["name"], forget, warmed)
                    people[page].close()
                    status, _body, seconds = people[page].get(path, cookies=page != "login")
                    if status != 200:
                        raise SystemExit(f"{path} answered {status} on the fresh node")
                    found[how, page].append(seconds)
            node.restart_php()
            for page, path in paths.items():
                for _warming in range(12):
                    people[page].get(path, cookies=page != "login")
                warm[page] += [people[page].get(path, cookies=page != "login")[2] for _each in range(40)]
    rows = [{"node": "warm page, p50", **{page: 1000 * percentile(warm[page], 0.5) for page in PAGES}},
            {"node": "warm page, p95", **{page: 1000 * percentile(warm[page], 0.95) for page in PAGES}}]
    for how in HOW:
        rows.append({"node": how, **{page: 1000 * median(found[how, page]) for page in PAGES}})
    rows.append({"node": "the recipe / p95 of a warm page",
                 **{page: median(found[list(HOW)[-1], page]) / percentile(warm[page], 0.95) for page in PAGES}})
    report("first-hit", f"First hit on a fresh node in ms, {fleet.what} (medians of {given.rounds})", rows)
