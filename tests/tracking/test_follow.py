"""Follow runs into a tracker that is a dictionary: each record once, whatever is killed, cut back, deleted or damaged."""

import json

import pytest
from made_runs import append, evaluation, failure, iteration, manifest, records, sheet

from flash_grpo.tracking.follow import Follower
from flash_grpo.tracking.pictures import read_pictures
from flash_grpo.tracking.points import flattened, read_points, read_run

AXES = {
    "x/iteration": 0,
    "x/device_seconds_with_evaluation": 1.5,
    "x/device_seconds": 0.0,
    "x/pflop": 0.0,
}


class Kept:
    """A tracker in memory. It outlives its followers; `rewrites`: it can make a run anew."""

    def __init__(self, rewrites=True):
        self.rewrites, self.points, self.pictures, self.ends, self.opened = rewrites, {}, {}, {}, []

    def open(self, run, spent):
        return _OfRun(self, run, spent)

    def spent(self, run):
        return [point.spent for point in self.points.get(run, [])]


class _OfRun:
    def __init__(self, kept, run, spent):
        self.kept, self.id, there = kept, run.id, kept.spent(run.id)
        kept.opened.append(run.name)
        if there != spent[: len(there)] and kept.rewrites:
            kept.points[self.id] = []
        self.points = kept.points.setdefault(self.id, [])
        self.held, self.shown = len(self.points), {picture.hash for picture in kept.pictures.get(self.id, [])}

    def record(self, points):
        assert points[0].position == len(self.points)
        self.points += points

    def show(self, pictures):
        self.kept.pictures.setdefault(self.id, []).extend(pictures)

    def end(self, status, why):
        self.kept.ends[self.id] = (status, why)


@pytest.fixture
def run(tmp_path):
    directory = tmp_path / "study" / "flash-seed3"
    manifest(directory)
    return directory


def follower(run, kept):
    warned = []
    made = Follower(run.parent, kept.open, warned.append)
    made.warned_lines = warned
    return made


def held(kept, run):
    return kept.points[read_run(run).id]


def test_every_number_of_a_record_has_a_name_of_its_own(run):
    append(run, [evaluation(0, 0.0), iteration(1, 2.0)])
    first, second = read_points(read_run(run))
    assert (first.position, first.kind, first.iteration, first.axes) == (0, "evaluation", 0, AXES)
    assert first.values["evaluation.prompt_rewards/000 a red circle"] == 0.0
    assert [name for name in first.values if "prompt_rewards/001" in name] == [
        "evaluation.prompt_rewards/001 a red circle a very long way from a blue square both of them"
    ]
    assert not [name for name in first.values if "reward_sem" in name or "diversity" in name]  # null
    assert (second.values["iteration/reward_mean"], second.values["iteration.cost/forward_evaluations"]) == (1.25, 100)
    assert (second.values["iteration.reward_parts/a b strange"], second.values["iteration.steps/01"]) == (1.0, 0.75)
    assert "iteration/loss" not in second.values
    assert second.time == read_run(run).began + 3.0 / 2  # 2 ranks
    lines = (run / "records.jsonl").read_text().splitlines()
    for point, line in zip((first, second), lines, strict=True):
        record = {key: value for key, value in json.loads(line).items() if key not in ("kind", "iteration")}
        assert sorted(point.values.values()) == sorted(value for _, value in flattened(record, "x"))


def test_records_are_sent_as_they_grow_and_once(run):
    kept = Kept()
    follow = follower(run, kept)
    for last in (1, 2, 5, 9):
        append(run, records(last)[len(records(last - 1)) if last in (1, 2) else len(read_points(read_run(run))) :])
        follow.look({run.name})
        assert held(kept, run) == read_points(read_run(run))
    follow.look({run.name})
    assert kept.opened == [run.name] and not kept.ends
    manifest(run, "completed")
    follow.look(set())
    assert held(kept, run) == read_points(read_run(run)) and len(held(kept, run)) == len(records(9))
    assert kept.ends == {read_run(run).id: ("completed", "")}
    follow.look(set())
    assert kept.opened == [run.name]  # a run that is over is not opened again


@pytest.mark.parametrize("rewrites", [True, False])
@pytest.mark.parametrize("looks_between", [True, False])
def test_a_killed_run_and_killed_followers_leave_neither_a_gap_nor_a_duplicate(run, rewrites, looks_between):
    kept = Kept(rewrites)
    saved = append(run, records(4))
    follower(run, kept).look({run.name})  # and is killed: nothing closes it
    append(run, records(7)[len(records(4)) :])
    with open(run / "records.jsonl", "a") as file:
        file.write('{"kind": "iteration", "iterat')  # the run is killed while it writes
    second = follower(run, kept)
    second.look({run.name})
    assert len(held(kept, run)) == len(records(7))
    append(run, [], length=saved)
    if looks_between:
        second.look({run.name})
    append(run, records(9, second=1.5, first=4))  # other times
    second.look({run.name})
    manifest(run, "completed")
    follower(run, kept).look(set())
    points = read_points(read_run(run))
    assert [(point.position, point.kind, point.iteration) for point in held(kept, run)] == [
        (point.position, point.kind, point.iteration) for point in points
    ]
    if rewrites:
        assert held(kept, run) == points
    else:  # the times of the first try stay
        rewards = [point.values["iteration/reward_mean"] for point in held(kept, run) if point.kind == "iteration"]
        assert rewards == [number + 0.25 for number in range(1, 10)]


def test_a_failure_is_the_end_and_no_point(run):
    kept = Kept()
    saved = append(run, records(2))
    append(run, [failure(3)])
    manifest(run, "failed", reason="it broke")
    follow = follower(run, kept)
    follow.look(set())
    assert kept.ends[read_run(run).id] == ("failed", "it broke") and len(held(kept, run)) == 3
    append(run, records(3)[3:], length=saved)
    manifest(run, "completed")
    follow.look(set())
    assert kept.ends[read_run(run).id] == ("completed", "") and held(kept, run) == read_points(read_run(run))


def test_a_run_that_was_deleted_and_made_anew_is_another_run_and_one_that_moved_is_not(run, tmp_path):
    kept = Kept()
    append(run, records(2))
    follow = follower(run, kept)
    follow.look({run.name})
    first = read_run(run).id
    append(run, records(1, second=3.0), length=0)
    manifest(run, first="2026-11-27T11:00:00+0000")
    follow.look({run.name})
    second = read_run(run).id
    assert first != second and [len(kept.points[name]) for name in (first, second)] == [3, 2]
    (tmp_path / "copies").mkdir()
    moved = (run.parent).rename(tmp_path / "copies" / "study") / run.name
    assert read_run(moved).id == second


def test_damage_of_one_run_is_said_once_and_the_others_go_on(run):
    kept, other = Kept(), run.parent / "full-seed0"
    for directory in (run, other):
        append(directory, records(2))
    manifest(other)
    lines = (run / "records.jsonl").read_text().splitlines()
    (run / "records.jsonl").write_text("\n".join([lines[0], "{damaged", *lines[2:], ""]))
    broken = run.parent / "broken"
    broken.mkdir()
    (broken / "run.json").write_text("{")
    follow = follower(run, kept)
    follow.look({other.name})
    follow.look({other.name})
    assert len(kept.points) == 1 and held(kept, other) == read_points(read_run(other))
    assert len(follow.warned_lines) == 2 and all("the other runs are followed" in line for line in follow.warned_lines)
    assert "records.jsonl, line 2" in follow.warned_lines[1]
    (run / "records.jsonl").write_text("\n".join([*lines, ""]))
    follow.look({other.name})
    assert held(kept, run) == read_points(read_run(run))


def test_pictures_are_shown_once_when_they_are_whole(run):
    kept = Kept()
    append(run, records(4))
    sheet(run, "start", "red")
    whole = (run / "samples/start.png").read_bytes()
    (run / "samples/start.png").write_bytes(whole[: len(whole) // 2])
    sheet(run, "end", "blue")  # of an earlier, smaller budget
    follow = follower(run, kept)
    follow.look({run.name})
    name = read_run(run).id
    assert [picture.name for picture in kept.pictures[name]] == ["samples.start/00"]
    (run / "samples/start.png").write_bytes(whole)
    follow.look({run.name})
    manifest(run, "completed")
    follow.look(set())
    sheet(run, "start", "red")  # a kill, and the same again
    follower(run, kept).look(set())
    shown = [
        (picture.name, picture.suffix, picture.point.iteration, picture.caption) for picture in kept.pictures[name]
    ]
    assert shown == [
        ("samples.start/00", "gif", 0, "a red circle"),
        ("samples/start", "png", 0, ""),
        ("samples/end", "png", 4, ""),
        ("samples.end/00", "gif", 4, "a red circle"),
    ]
    assert {picture.size for picture in kept.pictures[name]} == {(40, 30), (16, 16)}


def test_a_tracker_that_begins_anew_is_shown_the_pictures_again(run):
    """TensorBoard's folder is written anew whenever it is opened, as when Slurm's bill comes in after a run's end."""
    kept = Kept()

    def forgetful(run, spent):
        kept.points.pop(run.id, None)
        kept.pictures.pop(run.id, None)
        return kept.open(run, spent)

    follow = Follower(run.parent, forgetful, print)
    append(run, records(4))
    sheet(run, "start", "red")
    sheet(run, "end", "blue")
    manifest(run, "completed")
    follow.look(set())
    manifest(run, "completed", reason="now with its bill")
    follow.look(set())
    assert len(kept.opened) == 2
    names = {"samples/start", "samples.start/00", "samples/end", "samples.end/00"}
    [shown] = kept.pictures.values()
    assert {picture.name for picture in shown} == names and len(shown) == 4
    assert held(kept, run) == read_points(read_run(run))


def test_pictures_wait_for_their_evaluation(run):
    sheet(run, "start", "red")
    assert read_pictures(read_run(run), read_points(read_run(run))) == []


def test_a_run_of_an_earlier_version_is_a_run(run):
    entry = json.loads((run / "run.json").read_text())
    for key in ("starts", "format", "bill", "traceback", "prompts_hash"):
        del entry[key]
    entry["config"] = {}
    (run / "run.json").write_text(json.dumps(entry))
    append(run, records(1))
    kept = Kept()
    follower(run, kept).look(set())
    assert (read_run(run).noise, read_run(run).began, len(held(kept, run))) == ("", 0.0, 2)
