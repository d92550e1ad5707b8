# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

from ansible_collections.elearning.moodle_fleet.plugins.filter.scale_activities import scale_activities

STOPPED = {"stdout": '{"idle": 100, "tasks": 20, "stop": 400, "left": 0, "stopped": true}'}


def one(**more):
    """The single activity of a run."""
    result = scale_activities({"now": 20.0, "began": 10.0, **more})
    assert len(result["activities"]) == 1
    return result["activities"][0], result["problems"]


def leave(step, **more):
    return one(leave=[step], drained=[{"members": [{"name": "w1", "error": "", "seconds": 2.5, "ended_by_deadline": False}]}], **more)[0]


def test_nothing_to_do_is_nothing_done():
    assert scale_activities({"now": 1.0, "began": 1.0}) == {"activities": [], "problems": []}


def test_a_join_is_as_good_as_the_worst_balancer():
    good = {"members": [{"name": "w1", "error": "", "seconds": 1.0}]}
    bad = {"members": [{"name": "w1", "error": "not warm", "seconds": 9.0}]}
    activity, problems = one(members=[{"name": "w1"}], joined=[good, bad])
    assert activity["status"] == "failed"
    assert activity["seconds"] == 9.0
    assert problems == ["join w1: not warm"]


def test_a_balancer_that_did_not_answer_is_a_failure():
    activity, _problems = one(members=[{"name": "w1"}], joined=[{}])
    assert activity["status"] == "failed"
    activity, _problems = one(forget=["w1"], forgotten=[{"msg": "no socket"}])
    assert (activity["status"], activity["note"]) == ("failed", "no socket")


def test_a_launch_that_gave_no_nodes_has_failed():
    activity, problems = one(launched=[{"step": {"token": "abc"}, "msg": "no address left"}], launch_ended=11.5)
    assert (activity["node"], activity["status"], activity["seconds"]) == ("abc", "failed", 1.5)
    assert problems == ["launch abc: no address left"]


def test_a_node_that_left_in_order():
    step = {"action": "drain", "node": "w1"}
    activity = leave(step, stopped={"w1": STOPPED}, confirmed={"w1": {"seconds": 0.3}}, gone=["w1"])
    assert activity["status"] == "done"
    assert activity["seconds"] == 10.0
    assert activity["steps"] == {"requests": 2.5, "idle": 0.1, "tasks": 0.02, "stop": 0.4, "logs": 0.3}


def test_the_time_of_a_drain_counts_from_its_begin_in_an_earlier_check():
    activity = leave({"action": "retire", "node": "w1", "since": 5.0}, dead=["w1"], gone=["w1"])
    assert activity["seconds"] == 15.0


def test_a_node_that_is_not_gone_goes_on():
    activity = leave({"action": "drain", "node": "w1"}, stopped={"w1": STOPPED}, confirmed={"w1": {"seconds": 30.0, "msg": "no mark"}})
    assert activity["status"] == "running"
    assert "log server" in activity["note"]


def test_what_the_deadline_cut_is_said():
    activity = leave({"action": "retire", "node": "w1", "forced": True}, overdue=["w1"], gone=["w1"])
    assert activity["status"] == "deadline"


def test_a_deadline_with_nothing_left_is_no_loss():
    step = {"action": "retire", "node": "w1", "forced": True}
    activity = leave(step, overdue=["w1"], gone=["w1"], stopped={"w1": STOPPED}, confirmed={"w1": {"seconds": 0.3}})
    assert activity["status"] == "done"
