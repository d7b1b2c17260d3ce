"""What the policy wrote, kept for people to look at."""

import json

import pytest

import adaback_lite as ab
from adaback_lite.config import override
from adaback_lite.control import Control
from adaback_lite.outputs import FILE, find_visit
from tests.helpers import small_config, taught_config


def lines(folder):
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return ab.train(taught_config(tmp_path_factory.mktemp("outputs") / "run", **{"trainer.max_steps": 6}), progress=False)


def test_every_visit_of_every_step_is_there_and_agrees_with_the_events(run):
    steps = [e for e in run.events if e["event"] == "step"]
    records = lines(run.folder)
    assert [r["step"] for r in records] == [e["step"] for e in steps]
    G = run.config.grpo.group_size
    for record, event in zip(records, steps):
        assert record["ids"] == event["ids"]
        for b, mean in enumerate(event["reward"]):
            assert len(record["outputs"][b]) == G
            assert sum(record["rewards"][b]) / G == pytest.approx(mean, abs=1e-3)
            assert record["revealed"][b] == event["shown"][b]  # in parity a token is a character


def test_a_visit_is_what_the_verifier_says_again(run):
    from adaback_lite.build import build_policy, build_task

    _, tokenizer = build_policy(run.config)
    task = build_task(run.config, tokenizer)
    for event in (e for e in run.events if e["event"] == "step"):
        for i in event["ids"]:
            visit = run.outputs(i, event["step"])
            sample = task.train[i]
            assert (visit.step, visit.id, visit.prompt, visit.rationale) == (event["step"], i, sample.prompt, sample.rationale)
            for output, kind, first_wrong, why in zip(visit.outputs, visit.kinds, visit.first_wrong, visit.why):
                assert output.startswith(sample.rationale[: visit.revealed])
                if why != "cut at the length limit":
                    verdict = task.verify(sample, output)
                    assert (verdict.kind, verdict.step, verdict.why) == (kind, first_wrong, why)


def test_the_last_visit_up_to_a_step(run):
    visits = {}
    for record in lines(run.folder):
        for i in record["ids"]:
            visits.setdefault(i, []).append(record["step"])
    i, steps = max(visits.items(), key=lambda item: len(item[1]))
    assert len(steps) > 1
    assert run.outputs(i).step == steps[-1] and run.outputs(i, steps[-1] - 1).step == steps[-2]


def test_unknown_samples_and_missing_or_damaged_files_say_so(run, tmp_path):
    with pytest.raises(ab.UserError, match="keeps no outputs of sample 999: it has not been visited"):
        run.outputs(999)
    first = lines(run.folder)[0]["step"]
    with pytest.raises(ab.UserError, match=f"up to step {first - 1}"):
        run.outputs(lines(run.folder)[0]["ids"][0], first - 1)
    with pytest.raises(ab.UserError, match="trainer.keep_outputs 1"):
        find_visit(tmp_path, 0)
    (tmp_path / FILE).write_bytes(b"nonsense\n")
    with pytest.raises(ab.UserError, match="is damaged; delete it"):
        find_visit(tmp_path, 0)


def test_a_line_that_is_being_written_is_left_out(run, tmp_path):
    whole = (run.folder / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[:-20])
    last = lines(run.folder)[-1]
    with_earlier = next((i for i in last["ids"] if any(i in r["ids"] for r in lines(run.folder)[:-1])), None)
    assert with_earlier is not None
    assert find_visit(tmp_path, with_earlier).step < last["step"]


@pytest.mark.parametrize(("every", "expected"), [(0, None), (1, [1, 2, 3, 4, 5, 6]), (4, [4])])
def test_what_is_kept(tmp_path, every, expected):
    run = ab.train(small_config(tmp_path / "run", **{"trainer.max_steps": 6, "trainer.keep_outputs": every}), progress=False)
    assert expected == ([r["step"] for r in lines(run.folder)] if (run.folder / FILE).exists() else None)


def test_outputs_are_cut_back_with_the_log(tmp_path):
    """Stopped, then thrown back to an older checkpoint: no step is there twice, and what is there is what an undisturbed run wrote."""
    settings = {"trainer.max_steps": 8, "trainer.checkpoint_every": 3}
    whole = ab.train(taught_config(tmp_path / "whole", **settings), progress=False)
    config = taught_config(tmp_path / "run", **settings)
    with pytest.raises(KeyboardInterrupt):
        ab.train(config, progress=False, control=Control(stop_at=5))
    newest = ab.Run(config.out).checkpoints()[0]
    (newest / "state.json").write_text("{")
    with pytest.warns(UserWarning, match="damaged checkpoint"):
        ab.train(config, resume=True, progress=False)
    assert (tmp_path / "run" / FILE).read_bytes() == (whole.folder / FILE).read_bytes()


def test_outputs_survive_a_resume_that_keeps_none(tmp_path):
    config = taught_config(tmp_path / "run", **{"trainer.max_steps": 8})
    for keep, stop in ((1, 3), (0, 5)):
        with pytest.raises(KeyboardInterrupt):
            ab.train(override(config, {"trainer.keep_outputs": keep}), resume=(tmp_path / "run").exists(), progress=False, control=Control(stop_at=stop))
    ab.train(config, resume=True, progress=False)
    assert [r["step"] for r in lines(tmp_path / "run")] == [1, 2, 3, 6, 7, 8]


def test_a_run_goes_on_when_its_outputs_were_deleted(tmp_path):
    config = taught_config(tmp_path / "run", **{"trainer.max_steps": 6})
    with pytest.raises(KeyboardInterrupt):
        ab.train(config, progress=False, control=Control(stop_at=4))
    (tmp_path / "run" / FILE).unlink()
    ab.train(config, resume=True, progress=False)
    assert [r["step"] for r in lines(tmp_path / "run")] == [5, 6]
