# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Seeds faults into the scaling core and the check, one at a time, and runs the tests: each must be caught.

A fault is a piece of text and its replacement in one file; a piece that is no longer there fails the run, so the list
keeps up with the code.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import report, say

ROOT = Path(__file__).resolve().parents[2]
CORE = "plugins/module_utils/_scaling"
TESTS = "tests/unit/plugins/module_utils"
TIMEOUT = 300
# The quick tests first: most faults never reach the slow ones.
STAGES = (
    [f"{TESTS}/_scaling/test_{name}.py" for name in ("decide", "plan", "metrics", "policy", "forecast", "growth", "events", "tiers")],
    [f"{TESTS}/_scaling/test_capacity.py"],
    [f"{TESTS}/_scaling/test_simulate.py", f"{TESTS}/test_check.py", f"{TESTS}/test_ledger.py"],
    [f"{TESTS}/_scaling/test_histories.py"],
)

FAULTS: tuple[tuple[str, str, str], ...] = (
    # policy
    (f"{CORE}/policy.py", "if in_below >= out_above:", "if in_below > out_above + 1:"),
    (f"{CORE}/policy.py", "if low > high:", "if low > high + 10:"),
    (f"{CORE}/policy.py", "target * (1 + band)", "target * (1 + band + band)"),
    # metrics
    (f"{CORE}/metrics.py", "if age > policy.stale_after:", "if age > 10 * policy.stale_after:"),
    (f"{CORE}/metrics.py", "not math.isfinite(value) or value < 0", "value < 0"),
    (f"{CORE}/metrics.py", "current.started != previous.started or current.requests", "current.requests"),
    (f"{CORE}/metrics.py", "missing = sorted((before & running)", "missing = sorted((before & set())"),
    (f"{CORE}/metrics.py", "present if current.waiting > 0 else 0.0", "0.0"),
    (f"{CORE}/metrics.py", "(mean - previous.mean_seconds * kept) / (1.0 - kept)", "mean"),
    (f"{CORE}/metrics.py", 'if m.state == "starting")', 'if m.state == "none")'),
    (f"{CORE}/metrics.py", "trusted=not faults,", "trusted=usable,"),
    (f"{CORE}/metrics.py", "and load >= last.load / 2", ""),
    # recommenders
    (f"{CORE}/recommend.py", "policy.scale_in_below <= busy <= policy.scale_out_above", "policy.scale_in_below <= busy <= 1"),
    (f"{CORE}/recommend.py", "wanted = max(wanted, size)\n        return Wish", "return Wish"),
    (f"{CORE}/recommend.py", "begin <= now < end", "begin <= now <= end"),
    (f"{CORE}/recommend.py", "day = first_day - datetime.timedelta(days=1)", "day = first_day"),
    (f"{CORE}/recommend.py", "workers * policy.target) - 1e-9", "workers) - 1e-9"),
    (f"{CORE}/recommend.py", 'policy.forecast in ("off", "recommend") or', ""),
    (f"{CORE}/recommend.py", "seen.days < ENOUGH_DAYS", "False"),
    (f"{CORE}/recommend.py", 'if policy.trend == "off" or', "if"),
    (f"{CORE}/forecast.py", "if begin < until and", "if"),
    (f"{CORE}/recommend.py", "if size < wanted and load <=", "if False and load <="),
    (f"{CORE}/recommend.py", 'policy.trend == "growth" and rise is None and', "rise is None and"),
    (f"{CORE}/recommend.py", "known[-1] < self.sample.taken", "True"),
    (f"{CORE}/recommend.py", "return swings * self.history.swing *", "return 0 *"),
    (f"{CORE}/recommend.py", "horizon = min(lead, rise.seconds)", "horizon = lead"),
    (f"{CORE}/recommend.py", "if rise.level <= known else ahead", ""),
    (f"{CORE}/recommend.py", "seen.points and not _only_told(policy, seen)", "seen.points"),
    (f"{CORE}/recommend.py", "loads = [nodes * situation.workers * policy.target for nodes in floors]", "loads = []"),
    (f"{CORE}/recommend.py", "(MOST if back else 1.0)", "1.0"),
    (f"{CORE}/recommend.py", "(MOST if back else 1.0)", "MOST"),
    (f"{CORE}/plan.py", "survey.unseen or survey.serving < policy.min_nodes:\n        return 0.0", "survey.unseen:\n        return 0.0"),
    (f"{CORE}/plan.py", "min(launch_seconds - PATIENCE, policy.launch_timeout)", "launch_seconds"),
    (f"{CORE}/recommend.py", "wanted = situation.at_limit(ahead + spare)", "wanted = situation.at_limit(ahead)"),
    (f"{CORE}/recommend.py", "min(wanted, max(size, situation.at_limit(ahead + situation.spare(ahead, SWINGS_FLAT))))", "wanted"),
    (f"{CORE}/recommend.py", "max(wanted, situation.at_limit(load + spare))", "wanted"),
    # growth
    (f"{CORE}/growth.py", "if not sample.trusted:", "if False:"),
    (f"{CORE}/growth.py", "(sample.taken - sample.seconds / 2) // MINUTE", "sample.taken // MINUTE"),
    (f"{CORE}/growth.py", "if one[0] >= since", "if True"),
    (f"{CORE}/growth.py", "(load * count + sample.load) / (count + 1)", "sample.load"),
    (f"{CORE}/growth.py", "root = math.sqrt(max(1.0, (before + after) / 2))", "root = 1.0"),
    (f"{CORE}/growth.py", "if len(rows) >= FEWEST:", "if len(rows) >= 2:"),
    (f"{CORE}/growth.py", "median([abs(change - usual) for change in ordered])", "max([abs(change - usual) for change in ordered])"),
    (f"{CORE}/growth.py", "usual = median(ordered)", "usual = 0.0"),
    (f"{CORE}/growth.py", "<= (SURE * noise) ** 2:", "<= (1.5 * SURE * noise) ** 2:"),
    (f"{CORE}/growth.py", "self._changes[0][0] <= begin - LOOKBACK + 2 * STEP:", "False:"),
    (f"{CORE}/growth.py", "while len(self._kept) > 2 and", "while len(self._kept) > 1 and"),
    (f"{CORE}/growth.py", "if low > high:", "if False:"),
    (f"{CORE}/growth.py", "slope <= SURE * noise / math.sqrt(spread)", "slope <= 0"),
    (f"{CORE}/growth.py", "if when <= -LINE_SECONDS:", "if False:"),
    (f"{CORE}/growth.py", "if row[0] <= begin - STEP]", "]"),
    (f"{CORE}/growth.py", "count, loads = weight - 1.0, (weight - 1.0) * minutes[-1][1]", "count, loads = 0.0, 0.0"),
    (f"{CORE}/growth.py", "self._steps / max(1, readings - 1) / root", "0.0"),
    (f"{CORE}/recommend.py", "1 / readings - 1 / max(readings, MINUTE / max(1.0, self.sample.seconds))", "1 / readings"),
    (f"{CORE}/tiers.py", "percent = min(minutes)", "percent = max(minutes)"),
    (f"{CORE}/tiers.py", "or one.share > found[one.name].share:", "or False:"),
    # forecast
    (f"{CORE}/forecast.py", "return sorted(values)[(len(values) - 1) // 2]", "return sorted(values)[len(values) // 2]"),
    (f"{CORE}/forecast.py", "for begin, loads in said.items() if len(loads) > 1)", "for begin, loads in said.items() if loads)"),
    (f"{CORE}/forecast.py", "min(hour, max(last, min(hour, 1.0)))", "sum(ratios) / len(ratios)"),
    (f"{CORE}/forecast.py", "min(hour, max(last, min(hour, 1.0)))", "min(hour, last)"),
    (f"{CORE}/forecast.py", "return min(MOST, max(LEAST, ratio))", "return ratio"),
    (f"{CORE}/forecast.py", " - here) for week", ") for week"),
    (f"{CORE}/recommend.py", "min([seen.hour, *[load for _begin, load in seen.points]])", "min([load for _begin, load in seen.points])"),
    (f"{CORE}/recommend.py", "min([seen.hour, *[load for _begin, load in seen.points]])", "seen.hour"),
    (f"{CORE}/recommend.py", "most, expected = max(lately)", "most, expected = lately[-1]"),
    (f"{CORE}/recommend.py", " and expected - most > situation.spare(expected, SURE)", ""),
    (f"{CORE}/recommend.py", "if not situation.sample.trusted or len(lately) < AWAY_MINUTES:", "if len(lately) < AWAY_MINUTES:"),
    (f"{CORE}/forecast.py", "sorted(measured[:LAUNCHES])", "sorted(measured)"),
    (f"{CORE}/forecast.py", "slot_of(present + SLOT + reach(lead))", "slot_of(present + lead)"),
    (f"{CORE}/policy.py", '"trend": Setting(\n        "choice", "scale_out"', '"trend": Setting(\n        "choice", "growth"'),
    (f"{CORE}/policy.py", 'min(60.0, values["cooldown_in"])', "60.0"),
    (f"{CORE}/plan.py", "later = bool(image) and (part or launch_seconds > PATIENCE)", "later = False"),
    (f"{CORE}/plan.py", "later = bool(image) and (part or launch_seconds > PATIENCE)", "later = bool(image) and launch_seconds > PATIENCE"),
    (f"{CORE}/plan.py", 'view.phase != "building" or view.node is None', "view.node is None"),
    (f"{CORE}/policy.py", "return max(1, size // 4) if", "return size // 4 if"),
    (f"{CORE}/policy.py", "return self.step_in(size) if isinstance(self.max_draining, str) else", "return self.step_in(size) if False else"),
    (f"{CORE}/policy.py", "if value is False and setting.kind", "if False and setting.kind"),
    # decide
    (f"{CORE}/decide.py", "max([wish.desired for wish in wishes if not wish.advice]", "min([wish.desired for wish in wishes if not wish.advice]"),
    (f"{CORE}/decide.py", "for wish in wishes if not wish.advice]", "for wish in wishes]"),
    (f"{CORE}/decide.py", "history.recommended[0][0] > now - policy.scale_in_window:", "False:"),
    (f"{CORE}/decide.py", "    if present < before:", "    if present > before:"),
    (f"{CORE}/decide.py", "<= max(1, chain.size // 4)", "<= chain.size"),
    (f"{CORE}/decide.py", "history.highest(now - policy.patience)", "history.highest(0.0)"),
    (f"{CORE}/decide.py", "max(policy.min_nodes, situation.at_limit(load))", "situation.at_limit(load)"),
    (f"{CORE}/decide.py", "least = chain.size - policy.step_in(chain.size)", "least = 0"),
    (f"{CORE}/decide.py", "math.floor(chain.size * policy.max_step_out)", "math.floor(chain.size * 100)"),
    (f"{CORE}/decide.py", "max(held, default=", "min(held, default="),
    (f"{CORE}/decide.py", "if passed < policy.cooldown_out:", "if passed <= policy.cooldown_out:"),
    (f"{CORE}/decide.py", "if not pause.until or pause.until > now}", "}"),
    (f"{CORE}/decide.py", "if sick > policy.halt_sick_count and", "if"),
    (f"{CORE}/decide.py", "chain.set(max(chain.size, floor), \"saturated\"", "chain.set(chain.size, \"saturated\""),
    (f"{CORE}/decide.py", "    if chain.desired < policy.min_nodes:", "    if chain.desired < policy.min_nodes - 1:"),
    (f"{CORE}/decide.py", "    elif chain.desired > policy.max_nodes:", "    elif chain.desired > policy.max_nodes + 1:"),
    # simulate
    (f"{CORE}/simulate.py", "if count > size or size", "if size"),
    (f"{CORE}/simulate.py", "held < end - policy.scale_in_window", "False"),
    (f"{CORE}/simulate.py", "history, size, end, ahead", "history, size, first, ahead"),
    (f"{CORE}/simulate.py", "    if not BY_THE_CLOCK.isdisjoint(codes):\n        return now\n", ""),
    (f"{CORE}/simulate.py", "        _foreseen(ahead, now, lead),\n", ""),
    (f"{CORE}/simulate.py", "idle_until(policy, seen, measured) - SAME", "math.inf"),
    (f"{CORE}/simulate.py", "clock.until(previous, lead)", "math.inf"),
    (f"{CORE}/simulate.py", "if memory.minutes.swing(now - SAME) != history.swing:", "if False:"),
    (f"{CORE}/simulate.py", "if wish.floor or wish.advice", "if wish.advice"),
    (f"{CORE}/recommend.py", "while day <= last_day:", "while day < last_day:"),
    # survey
    (f"{CORE}/survey.py", "if age > policy.launch_timeout:", "if age >= policy.launch_timeout * 2:"),
    (f"{CORE}/survey.py", "if member.since > policy.sick_grace:", "if member.since >= policy.sick_grace:"),
    (f"{CORE}/survey.py", "if self.retiring or self.notice:\n            return False", "if self.notice:\n            return False"),
    (f"{CORE}/survey.py", "seen = max(intent.seen, seen)", "pass"),
    (f"{CORE}/survey.py", "if max(intent.created, intent.asked) < settled:", "if True:"),
    (f"{CORE}/survey.py", "if max(intent.created, intent.asked) < settled:", "if intent.created < settled:"),
    (f"{CORE}/survey.py", "visible(intent, nodes) + intent.gone", "visible(intent, nodes)"),
    (f"{CORE}/survey.py", "+ self.coming\n\n    @cached_property\n    def existing", "\n\n    @cached_property\n    def existing"),
    # plan
    (f"{CORE}/plan.py", "count = min(decision.desired - survey.size, room)", "count = decision.desired - survey.size"),
    (f"{CORE}/plan.py", "token=intent.token", "token=token"),
    (f"{CORE}/plan.py", "    if survey.serving < needed:\n", "    if False:\n"),
    (f"{CORE}/plan.py", "survey.serving - max(policy.min_nodes, decision.desired),", "surplus,"),
    (f"{CORE}/plan.py", "policy.draining(survey.size) - under_way,", "policy.draining(survey.size),"),
    (f"{CORE}/plan.py", "if survey.serving < policy.min_nodes and not _last_chance(view, survey, now):", "if False:"),
    (f"{CORE}/plan.py", "and not view.protected and not view.held]", "and not view.held]"),
    (f"{CORE}/plan.py", "if not view.retiring and not view.held]", "if not view.retiring]"),
    (f"{CORE}/plan.py", "if member.state in SERVING and view.name not in ghosts", "if False and view.name not in ghosts"),
    (f"{CORE}/plan.py", "return (ages.get(node.release, 0.0), -zones", "return (0.0, -zones"),
    (f"{CORE}/plan.py", "-zones[node.zone], view.busy", "zones[node.zone], view.busy"),
    (f"{CORE}/plan.py", "    if decision.frozen:", "    if False:"),
    (f"{CORE}/plan.py", "begun = max(begun, now - view.member.since)", "pass"),
    (f"{CORE}/plan.py", "if doubt and _missing(view):\n            continue", "if False:\n            continue"),
    (f"{CORE}/plan.py", "view.member.lacking and not view.retiring", "not view.retiring"),
    (f"{CORE}/plan.py", "for view in survey.of(\"in_service\"):\n        # A balancer", "for view in ():\n        # A balancer"),
    (f"{CORE}/plan.py", "steps.sort(key=lambda step: ACTIONS.index(step.action))", "steps.reverse()"),
    # announced losses
    (f"{CORE}/survey.py", "if self.retiring or self.notice:", "if self.retiring:"),
    (f"{CORE}/plan.py", "if spare >= 0 or leaves > 0 or _last_chance(view, survey, now):", "if spare >= 0 or leaves > 0:"),
    (f"{CORE}/plan.py", "if spare >= 0 or leaves > 0 or _last_chance(view, survey, now):", "if True:"),
    (f"{CORE}/plan.py", "return min(deadline, view.notice) if view.notice else deadline", "return deadline"),
    (f"{CORE}/survey.py", "or view.held or view.notice\n            or view.member", "or view.held\n            or view.member"),
    (f"{CORE}/replay.py", '("size", "sick", "announced")', '("size", "sick")'),
    (f"{CORE}/decide.py", "Situation(policy, sample, history, size, now", "Situation(policy, sample, history, survey.size, now"),
    (f"{CORE}/decide.py", "return max(survey.size, min(survey.size + survey.announced, last))", "return survey.size"),
    # what is known ahead
    (f"{CORE}/recommend.py", "lead = situation.launch_seconds + EVENTS_AHEAD", "lead = situation.launch_seconds"),
    (f"{CORE}/recommend.py", "if one.begin <= point < one.end)", "if point < one.end)"),
    (f"{CORE}/recommend.py", "and not any(one.ends for one in there)", ""),
    (f"{CORE}/recommend.py", "if added < 1.0:", "if False:"),
    (f"{CORE}/recommend.py", "base = max([one.base for one in there])", "base = 0.0"),
    (f"{CORE}/recommend.py", "floor=not advice, advice=advice", "advice=advice"),
    (f"{CORE}/decide.py", "policy.max_step_out), floor)", "policy.max_step_out))"),
    (f"{CORE}/events.py", "self.closes - self.opens <= EXAM_SECONDS", "True"),
    (f"{CORE}/events.py", "max(each, HABITS[kind].requests) if bound else each", "each"),
    (f"{CORE}/events.py", "each, bound = seen[0] / together", "each, bound = seen[0] / came"),
    (f"{CORE}/events.py", "busiest - median(calm)", "busiest"),
    (f"{CORE}/events.py", "if came is not None and at + habit.after <= now:", "if came is not None:"),
    (f"{CORE}/events.py", "ordered[math.ceil(QUANTILE * len(ordered)) - 1]", "ordered[-1]"),
    (f"{CORE}/events.py", "one.requests > 0 and not one.waiting", "one.requests > 0"),
    (f"{CORE}/capacity.py", "if solved is None or min(solved) < 0 or", "if solved is None or"),
    (f"{CORE}/capacity.py", "points.append((one.requests / one.seconds / one.up,", "points.append((one.load / one.up,"),
    (f"{CORE}/capacity.py", "busy = min(low, curve.peak)", "busy = low"),
    (f"{CORE}/tiers.py", "if not -5.0 <= now - taken <= FRESH:", "if False:"),
    (f"{CORE}/tiers.py", "taken - float(since) >= STANDING and", ""),
    (f"{CORE}/tiers.py", "    if full < servers:", "    if False:"),
    (f"{CORE}/tiers.py", 'now["up"] < before["up"]', "False"),
    (f"{CORE}/tiers.py", 'if now["keeps"] and now["most"]:', 'if now["most"]:'),
    # the check and the ledger
    ("plugins/module_utils/_check.py", "codes & (BLIND - LATE if current.members_fresh else BLIND):\n        members", "codes & frozenset():\n        members"),
    ("plugins/module_utils/_check.py", "    if not cloud_known:\n        return", "    if False:\n        return"),
    ("plugins/module_utils/_check.py", 'ledger.finish(outcome.check, sources.clock(), "failed", f"', 'str(f"'),
    ("plugins/module_utils/_check.py", "leaving=leaving, ghosts=history.ghosts,", "ghosts=history.ghosts,"),
    ("plugins/module_utils/_check.py", "launch_seconds=lead if measured else 0.0,", "launch_seconds=lead,"),
    ("plugins/module_utils/_check.py", "    if record:\n        keep", "    if True:\n        keep"),
    ("plugins/module_utils/_check.py", "if name not in present and seen >= since", "if False"),
    ("plugins/module_utils/_ledger.py", "if plan and plans != mark:", "if False:"),
    ("plugins/module_utils/_ledger.py", "AND seen < ?", "AND seen <> ?"),
    ("plugins/module_utils/_ledger.py", ' and not store.rows("SELECT token FROM intents WHERE token = ?", step.token)', ""),
    ("plugins/module_utils/_check.py", "    if saturated:\n        data", "    if False:\n        data"),
    ("plugins/module_utils/_check.py", "    if seen.announced:\n        data", "    if False:\n        data"),
    ("plugins/module_utils/_check.py", "    if manual is not None:\n        data", "    if False:\n        data"),
    ("plugins/module_utils/_ledger.py", "if sample.trusted and sample.seconds > 0:", "if sample.seconds > 0:"),
    ("plugins/module_utils/_ledger.py", "/ (seconds + ?), seconds", "/ (seconds * ?), seconds"),
    ("plugins/module_utils/_ledger_reader.py", "if joined == name and end > row", "if joined == name and end < 2 * row"),
    ("plugins/module_utils/_ledger.py", "and not step.since for step", "for step"),
)


def copy(target: Path) -> None:
    """The parts that the tests need."""
    for name in ("plugins/module_utils", "tests/unit", "trigger"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))


def caught(where: Path) -> str:
    """The first failing test, or nothing when all stages pass."""
    environment = {**os.environ, "PYTHONPATH": str(where.parents[2]), "PYTHONDONTWRITEBYTECODE": "1"}
    for stage in STAGES:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "--tb=no", "-p", "no:cacheprovider", *stage]
        try:
            run = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        except subprocess.TimeoutExpired:
            return "ran out of time"
        if run.returncode not in (0, 5):
            found = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
            return found[0].split("::")[-1][:80] if found else "could not run"
    return ""


def main(_fleet: object, _given: argparse.Namespace) -> None:
    """The benchmark `mutations`."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "ansible_collections" / "elearning" / "moodle_fleet"
        copy(where)
        for number, (name, old, new) in enumerate(FAULTS, 1):
            path = where / name
            original = path.read_text(encoding="utf-8")
            if old not in original:
                raise SystemExit(f"{name} has no {old!r} any more: adapt the fault")
            path.write_text(original.replace(old, new, 1), encoding="utf-8")
            test = caught(where)
            path.write_text(original, encoding="utf-8")
            rows.append({"file": Path(name).name, "fault in": old.split("\n")[0][:50], "caught by": test or "NOBODY"})
            say(f"  {number} of {len(FAULTS)}: {test or 'NOBODY'}")
    missed = sum(row["caught by"] == "NOBODY" for row in rows)
    report("mutations", "Seeded faults and the test that catches each", rows, [f"{len(rows)} faults, {missed} of them not caught."])
    if missed:
        raise SystemExit(1)
