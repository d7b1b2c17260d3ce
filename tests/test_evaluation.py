"""Evaluations go on where they were, several seeds, and runs compared in pairs on the same problems."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import adaback_lite as ab
from adaback_lite import evaluation
from adaback_lite.errors import UserError
from adaback_lite.evaluate import pass_at_k, wilson
from adaback_lite.evaluation import KINDS, compare_runs, evaluate_run, mcnemar, paired_interval, problem_noise
from adaback_lite.runs import Run, load_run
from adaback_lite.tasks import Sample, Verdict
from tests.crash import CONTEXT
from tests.helpers import ragged_prefixes, small_config

# Right, wrong and unparseable outputs all occur; 8 samples in 32 rows make 8 batches, the last of 2 problems.
POLICY = {
    "method": "sft",
    "task.length": 7,
    "task.degree": 1,
    "task.n_train": 30,
    "task.n_test": 30,
    "trainer.sft_lrs": (0.03,),
    "trainer.sft_max_steps": 60,
    "trainer.sft_eval_every": 20,
    "trainer.rollout_rows": 32,
}
SAMPLES, BATCHES = 8, 8


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Run:
    return ab.train(small_config(tmp_path_factory.mktemp("evaluation") / "run", **POLICY), progress=False)


@pytest.fixture(scope="module")
def undisturbed(trained, tmp_path_factory) -> tuple[dict, bytes]:
    """The result, and the file's bytes."""
    run = copy_of(trained, tmp_path_factory.mktemp("undisturbed") / "run")
    result = evaluate_run(run, [1, 4], SAMPLES)
    assert all(result[kind] > 0 for kind in ("right", "wrong", "unparseable"))  # or the tests below would see too little
    return result, only_file(run).read_bytes()


@pytest.fixture
def run(trained, tmp_path) -> Run:
    """A run to spoil."""
    return copy_of(trained, tmp_path / "run")


def copy_of(run: Run, folder: Path) -> Run:
    shutil.copytree(run.folder, folder)
    shutil.rmtree(folder / "evaluations", ignore_errors=True)
    return load_run(folder)


def only_file(run: Run) -> Path:
    (path,) = (run.folder / "evaluations").iterdir()
    return path


def same_but_for_the_folder(a: dict, b: dict) -> bool:
    return {**a, "run": ""} == {**b, "run": ""}


# ---------------------------------------------------------------- what is sampled


def test_noise_belongs_to_the_problem():
    a, b = Sample(3, "01=", "", ""), Sample(4, "01=", "", "")
    first = problem_noise(0, a, 2, 5)
    assert first.shape == (2, 5) and ((first >= 0) & (first < 1)).all()
    assert torch.equal(problem_noise(0, a, 6, 5)[:2], first)  # more samples are the same ones and more
    others = [(1, a), (0, b), (0, Sample(3, "01=", "", "", "gsm8k/test/3")), (0, Sample(3, "00=", "", ""))]
    assert not any(torch.equal(first, problem_noise(seed, problem, 2, 5)) for seed, problem in others)


def test_batches_do_not_change_what_is_sampled(run, undisturbed):
    """One batch of 30 problems, and batches of one, give what batches of 4 give; and so do the problems without those after them."""
    result, lines = undisturbed
    kinds = by_place(lines)
    config = run.folder / "config.yaml"
    for rows in (8, 1000):
        config.write_text(config.read_text().replace("rollout_rows: 32", f"rollout_rows: {rows}"))
        assert same_but_for_the_folder(evaluate_run(run, [1, 4], SAMPLES), result)
        shutil.rmtree(run.folder / "evaluations")
        config.write_text(config.read_text().replace(f"rollout_rows: {rows}", "rollout_rows: 32"))
    evaluate_run(run, [1], SAMPLES, n=7)
    assert by_place(only_file(run).read_bytes()) == {i: kinds[i] for i in range(7)}


def by_place(lines: bytes) -> dict[int, tuple]:
    records = [json.loads(line) for line in lines.splitlines()[1:]]
    return {r["place"]: (r["id"], r["kinds"], r["tokens"]) for r in records}


def test_the_file_by_hand(run):
    """Its header and its records, held against the task and a verifier."""
    evaluate_run(run, [1], 2, "val", 3, [7])
    path = only_file(run)
    header, *records = [json.loads(line) for line in path.read_text().splitlines()]
    assert path.name.startswith("done-00000000-val-n3-samples2-seed7-")
    assert (header["split"], header["n"], header["samples"], header["seed"], header["temperature"], header["checkpoint"]) == ("val", 3, 2, 7, 1.0, "done-00000000")
    assert sorted(r["place"] for r in records) == [0, 1, 2] and [r["id"] for r in records] == [r["place"] for r in records]
    for r in records:
        assert len(r["kinds"]) == len(r["tokens"]) == 2 and set(r["kinds"]) <= set(KINDS)
        assert all(1 <= t <= 15 for t in r["tokens"])
        assert all(t == 15 for kind, t in zip(r["kinds"], r["tokens"]) if kind in ("right", "wrong"))  # 14 bits and the end


def test_counts_and_pass_at_k_from_verdicts_known_by_heart(run, monkeypatch):
    """3 of 5 outputs right for each problem: pass@2 is 1 - (2 * 1) / (5 * 4)."""
    group = [Verdict("right")] * 3 + [Verdict("unparseable"), Verdict("timeout")]
    monkeypatch.setattr(evaluation, "judge", lambda task, tokenizer, samples, shown, rollouts: types.SimpleNamespace(verdicts=[group] * len(samples)))
    result = evaluate_run(run, [2, 1], 5, "val")
    assert list(result["pass_at_k"]) == ["1", "2"]
    assert result["pass_at_k"]["1"]["value"] == pytest.approx(0.6) and result["pass_at_k"]["2"]["value"] == pytest.approx(0.9)
    assert (result["n"], result["right"], result["wrong"], result["unparseable"], result["timeout"]) == (4, 12, 0, 4, 4)


def test_it_finds_what_training_found_where_noise_plays_no_part(tmp_path):
    """Nearly greedy, the trainer's own look at the test inputs and an evaluation must agree, whatever the noise: same policy, same inputs, nothing shown."""
    run = ab.train(small_config(tmp_path / "run", **{**POLICY, "trainer.sft_max_steps": 40, "grpo.temperature": 0.002}), progress=False)
    result = evaluate_run(run)
    assert 0 < result["right"] < 30 and result["right"] == run.summary["test_right"]


def test_batches_are_by_length_and_results_in_order(run, monkeypatch):
    prefixes = ragged_prefixes(shown=(0, 9, 3, 9, 4, 1, 0))
    seen = []

    def batch(model, tokenizer, task, places, *rest):
        seen.append(list(places))
        return {i: {"event": "problem", "place": i, "kinds": ["right"] * 16, "tokens": [1] * 16} for i in places}

    monkeypatch.setattr(evaluation, "evaluate_batch", batch)
    header = {"event": "evaluation", "checkpoint": "c", "split": "test", "n": 7, "samples": 16, "seed": 0, "share": 0.0}
    records = evaluation.complete(run, header, None, None, None, [None] * 7, [0] * 7, prefixes, False)
    assert seen == [[1, 3], [4, 2], [5, 0], [6]]  # 32 rows hold 2 problems of 16 samples
    assert [r["place"] for r in records] == list(range(7))


def test_several_seeds(run):
    """Each seed's value is what that seed alone gives; then their mean, lowest and highest; counts are over all."""
    alone = [evaluate_run(run, [1, 4], 4, seeds=[seed]) for seed in (0, 1, 5)]
    together = evaluate_run(run, [1, 4], 4, seeds=[0, 1, 5])
    for k in ("1", "4"):
        values = [r["pass_at_k"][k]["value"] for r in alone]
        found = together["pass_at_k"][k]
        assert len(set(values)) == 3 and found["by_seed"] == values
        assert (found["lowest"], found["highest"]) == (min(values), max(values)) and found["value"] == pytest.approx(sum(values) / 3)
        assert found["ci95"][0] < found["value"] < found["ci95"][1]
    assert all(together[kind] == sum(r[kind] for r in alone) for kind in (*KINDS, "tokens"))
    assert together["seeds"] == [0, 1, 5] and len(list((run.folder / "evaluations").iterdir())) == 3
    assert evaluate_run(run, [1, 4], 4) == alone[0]  # without seeds it is the run's own, 0


def test_more_problems_than_the_run_has(run):
    """Drawn on from the same stream."""
    own = evaluate_run(run, [1], 1)
    assert own["n"] == 30
    evaluate_run(run, [1], 1, n=33)
    files = {json.loads(p.read_text().splitlines()[0])["n"]: by_place(p.read_bytes()) for p in (run.folder / "evaluations").iterdir()}
    assert {i: files[33][i] for i in range(30)} == files[30] and sorted(files[33]) == list(range(33))


def test_more_problems_of_a_task_that_is_no_stream(run, monkeypatch):
    """It is built anew with more; where it has no more, the sentence says how many there are."""

    def build(config, tokenizer, context):
        return types.SimpleNamespace(test=[Sample(i, "", "", "") for i in range(min(config.task.n_test, 40))])

    monkeypatch.setattr(evaluation, "build_task", build)
    model = types.SimpleNamespace(config=types.SimpleNamespace())
    assert [len(evaluation.problems_of(run.config, model, None, "test", n)[1]) for n in (None, 10, 30, 35, 40)] == [30, 10, 30, 35, 40]
    with pytest.raises(UserError, match="--n is 41, but the test split of task parity has only 40 problems; lower --n."):
        evaluation.problems_of(run.config, model, None, "test", 41)


# ---------------------------------------------------------------- stopped, killed, torn


def evaluate_and_die(folder: str, batches: int, torn: bool) -> None:
    """In a process of its own: SIGKILL while the batch after so many is sampled, or in the middle of writing it."""
    torch.set_num_threads(1)
    left = [batches]

    def die():
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    if torn:

        class Torn:
            def __init__(self, *args, **kwargs):
                self.file = open(*args, **kwargs)  # noqa: SIM115

            def __enter__(self):
                return self

            def __exit__(self, *_):
                self.file.close()

            def __getattr__(self, name):
                return getattr(self.file, name)

            def write(self, data):
                if left[0] == 0:
                    self.file.write(data[: 2 * len(data) // 3])
                if not data.startswith(b'{"event": "evaluation"'):
                    die()
                return self.file.write(data)

        evaluation.open = Torn
    else:
        plain = evaluation.judge
        evaluation.judge = lambda *args: (die(), plain(*args))[1]
    evaluate_run(load_run(folder), [1, 4], SAMPLES)


@pytest.mark.parametrize(("batches", "torn"), [(0, False), (3, False), (7, False), (2, True), (7, True)])
def test_killed_and_gone_on_is_undisturbed(run, undisturbed, batches, torn):
    process = CONTEXT.Process(target=evaluate_and_die, args=(str(run.folder), batches, torn))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    left = only_file(run).read_bytes()
    assert left.count(b"\n") >= 1 + 4 * batches and left == undisturbed[1][: len(left)] and len(left) < len(undisturbed[1])
    assert left.endswith(b"\n") != torn
    sampled = []
    with pytest.MonkeyPatch.context() as patch:
        plain = evaluation.evaluate_batch
        patch.setattr(evaluation, "evaluate_batch", lambda *args: (sampled.append(args[3]), plain(*args))[1])
        if torn:
            with pytest.warns(UserWarning, match="the last line is torn"):
                result = evaluate_run(run, [1, 4], SAMPLES)
        else:
            result = evaluate_run(run, [1, 4], SAMPLES)
    assert len(sampled) == BATCHES - batches  # what was done is not done again
    assert only_file(run).read_bytes() == undisturbed[1] and same_but_for_the_folder(result, undisturbed[0])


@pytest.mark.filterwarnings("ignore:.*the last line is torn")
def test_cut_anywhere_it_goes_on_to_the_same_bytes(run, undisturbed):
    """At the start, in the header, at and around line ends, one byte before the end."""
    result, whole = undisturbed
    evaluate_run(run, [1], SAMPLES)
    path, ends = only_file(run), [i + 1 for i, c in enumerate(whole) if c == ord("\n")]
    for size in (0, ends[0] - 1, ends[0], ends[0] + 1, ends[3] + 20, ends[4], len(whole) - 1):
        path.write_bytes(whole[:size])
        assert same_but_for_the_folder(evaluate_run(run, [1, 4], SAMPLES), result)
        assert path.read_bytes() == whole


def test_a_complete_evaluation_is_only_read(run, undisturbed, monkeypatch):
    evaluate_run(run, [1], SAMPLES)
    monkeypatch.setattr(evaluation, "evaluate_batch", None)
    assert same_but_for_the_folder(evaluate_run(run, [4, 1], SAMPLES), undisturbed[0])
    assert only_file(run).read_bytes() == undisturbed[1]


def test_ctrl_c_keeps_what_was_done(command, run, undisturbed, monkeypatch):
    plain, calls = evaluation.evaluate_batch, itertools.count()

    def batch(*args):
        if next(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(*args)

    monkeypatch.setattr(evaluation, "evaluate_batch", batch)
    words = ("eval", run.folder, "--k", 1, 4, "--samples", SAMPLES, "--json")
    status, out, err = command(*words)
    assert (status, out) == (130, "") and err.endswith("Stopped; what was sampled is kept, and the same command goes on from there.\n")
    assert only_file(run).read_bytes().count(b"\n") == 1 + 3 * 4
    status, out, err = command(*words)
    assert status == 0 and same_but_for_the_folder(json.loads(out), undisturbed[0]) and next(calls) == 1 + BATCHES
    assert "12/30" in err  # the progress line goes on too


def test_another_checkpoint_has_a_file_of_its_own(tiny):
    run = ab.train(tiny, progress=False)
    first = evaluate_run(run)
    before = only_file(run).read_bytes()
    run = ab.train({**tiny, "trainer.max_steps": 3}, resume=True, progress=False)
    second = evaluate_run(run)
    assert (first["step"], second["step"]) == (2, 3)
    assert [p.name[:11] for p in sorted((run.folder / "evaluations").iterdir())] == ["rl-00000002", "rl-00000003"]
    assert sorted((run.folder / "evaluations").iterdir())[0].read_bytes() == before


def test_a_policy_that_differs_at_the_same_step_has_a_file_of_its_own(tiny, tmp_path):
    """The name holds a digest of the weights: two runs of the same length never share one."""
    sft = {**tiny, "method": "sft", "trainer.sft_max_steps": 1, "trainer.sft_eval_every": 1}
    runs = [ab.train({**sft, "trainer.sft_lrs": (lr,), "out": tmp_path / str(lr)}, progress=False) for lr in (1e-3, 2e-3)]
    for run in runs:
        evaluate_run(run)
    a, b = (only_file(run).name for run in runs)
    assert a != b and a.rpartition("-")[0] == b.rpartition("-")[0]


# ---------------------------------------------------------------- refusals


def test_foreign_and_damaged_files_are_refused(run):
    evaluate_run(run, [1], 1)
    path = only_file(run)
    header, first, *rest = path.read_text().splitlines(keepends=True)
    for lines in (
        [header.replace('"samples": 1', '"samples": 2'), first, *rest],
        [first, *rest],
        [header, first.replace('"place": 0', '"place": 30'), *rest],
        [header, first.replace('"kinds": [', '"kinds": ["right", '), *rest],
    ):
        path.write_text("".join(lines))
        with pytest.raises(UserError, match=r"holds another evaluation than its name says; delete it and evaluate again\."):
            evaluate_run(run, [1], 1)
        assert path.read_text() == "".join(lines)
    path.write_text(header + "nonsense\n" + first)
    with pytest.raises(UserError, match=r"is damaged at line 2; delete it and evaluate again\.$"):
        evaluate_run(run, [1], 1)


def test_two_processes_do_not_write_one_file(run):
    evaluate_run(run, [1], 1)
    code = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, str(only_file(run))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="is being written by another process; wait for it, or stop it."):
            evaluate_run(run, [1], 1)
        process.stdin.close()
    assert evaluate_run(run, [1], 1)["n"] == 30


def test_a_folder_that_cannot_be_written(run):
    (run.folder / "evaluations").write_text("a file")
    with pytest.raises(UserError, match=r"evaluations.*cannot be written \(.*\); mend that and give the same command again"):
        evaluate_run(run)


def test_a_disk_that_is_full_loses_nothing(run, undisturbed, monkeypatch):
    """A write that comes out short is said in a sentence; its half line is dropped when the evaluation goes on."""

    class Full:
        def __init__(self, *args, **kwargs):
            self.file = open(*args, **kwargs)  # noqa: SIM115
            self.room = 2000

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            written = self.file.write(data[: self.room])
            self.room -= written
            return written

    monkeypatch.setattr(evaluation, "open", Full, raising=False)
    with pytest.raises(UserError, match="cannot be written .No space left on device."):
        evaluate_run(run, [1], SAMPLES)
    monkeypatch.undo()
    assert only_file(run).stat().st_size == 2000
    with pytest.warns(UserWarning, match="torn"):
        evaluate_run(run, [1], SAMPLES)
    assert only_file(run).read_bytes() == undisturbed[1]


def test_out_of_memory_is_a_sentence_and_other_errors_are_not(run, monkeypatch):
    def fail(message):
        def sample_rollouts(*args):
            raise RuntimeError(message)

        monkeypatch.setattr(evaluation, "sample_rollouts", sample_rollouts)

    fail("CUDA out of memory. Tried to allocate 2 GiB")
    with pytest.raises(UserError, match=r"Out of memory with trainer.rollout_rows 32; lower it in .*config.yaml"):
        evaluate_run(run)
    fail("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        evaluate_run(run)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("eval", "FOLDER", "--seeds", 1, 1), ("--seeds names a seed twice",)),
        (("eval", "FOLDER", "--seeds", "one"), ("--seeds", "'one'")),
        (("eval", "FOLDER", "none"), ("no run in none",)),
        (("compare", "FOLDER"), ("required: B",)),
        (("compare", "FOLDER", "none"), ("no run in none",)),
        (("compare", "FOLDER", "FOLDER", "FOLDER"), ("one word too many",)),
        (("compare", "FOLDER", "FOLDER", "--k", 0), ("--k is 0",)),
        (("compare", "FOLDER", "FOLDER", "--k", 4, "--samples", 2), ("pass@4", "--samples")),
        (("compare", "FOLDER", "FOLDER", "--split", "train"), ("--split", "test or val")),
        (("compare", "FOLDER", "FOLDER", "--n", 0), ("--n is 0",)),
        (("compare", "FOLDER", "FOLDER", "--n", 1000), ("task.length is 7", "no more")),
        (("compare", "FOLDER", "FOLDER", "--jsno"), ("'--jsno'", "'--json'")),
        (("comapre", "FOLDER"), ("'compare'",)),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(command, run, tmp_path, monkeypatch, words, parts):
    monkeypatch.chdir(tmp_path)
    status, out, err = command(*(run.folder if word == "FOLDER" else word for word in words))
    assert (status, out) == (2, "") and err.startswith("adaback: ") and err.count("\n") == 1 and all(part in err for part in parts), err
    assert not (run.folder / "evaluations").exists()


# ---------------------------------------------------------------- numbers of a comparison


@pytest.mark.parametrize(
    ("a_only", "b_only", "p"),
    [(0, 0, 1), (0, 1, 1), (1, 0, 1), (0, 5, 2 / 32), (1, 5, 2 * (1 + 6) / 64), (3, 3, 1), (2, 8, 2 * (1 + 10 + 45) / 1024), (10, 0, 2 / 1024)],
)
def test_mcnemar_by_hand(a_only, b_only, p):
    assert mcnemar(a_only, b_only) == pytest.approx(p, abs=1e-15)


@given(st.integers(0, 9), st.integers(0, 9))
def test_mcnemar_is_the_share_of_all_coin_throws_at_least_as_uneven(a, b):
    n = min(a + b, 12)
    a, b = min(a, n), n - min(a, n)
    throws = [abs(2 * sum(coins) - n) >= abs(a - b) for coins in itertools.product((0, 1), repeat=n)]
    assert mcnemar(a, b) == pytest.approx(sum(throws) / len(throws), abs=1e-12)


def test_mcnemar_of_many_does_not_overflow():
    assert mcnemar(1000, 1200) == pytest.approx(2.2e-5, rel=0.05)  # the normal approximation with continuity gives z = 199 / sqrt(2200) = 4.243
    assert mcnemar(0, 3000) == 0.0


def test_paired_interval_has_the_textbooks_width():
    """For n differences with standard deviation s it is close to the mean +- 1.96 s / sqrt(n)."""
    differences = [-1.0] * 20 + [0.0] * 300 + [1.0] * 80
    s = np.std(differences)
    assert paired_interval(differences) == pytest.approx([0.15 - 1.96 * s / 20, 0.15 + 1.96 * s / 20], abs=0.005)
    assert paired_interval(differences) == paired_interval(differences)


def test_paired_interval_covers_the_truth_as_often_as_it_says():
    """200 samples of 100 problems with a true difference of 0.1: 95 % of the intervals should hold it (2.2 standard errors below at least)."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        d = rng.choice([-1.0, 0.0, 1.0], size=100, p=[0.1, 0.7, 0.2])
        low, high = paired_interval(d.tolist(), draws=400)
        held += low <= 0.1 <= high
    assert 0.95 - 2.2 * (0.95 * 0.05 / 200) ** 0.5 <= held / 200 < 1


@settings(max_examples=20)
@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), min_size=1, max_size=30))
def test_paired_interval_turns_round_with_the_sides(differences):
    low, high = paired_interval(differences)
    assert -1 <= low <= sum(differences) / len(differences) + 1e-9 <= high + 2e-9 <= 1 + 3e-9
    assert paired_interval([-d for d in differences]) == pytest.approx([-high, -low])


def test_paired_interval_of_equal_differences_is_not_a_point():
    """Of 100 problems none differs: up to 3.7 % of all may, to either side (Wilson's upper end for 0 of 100)."""
    margin = wilson(0, 100)[1]
    assert margin == pytest.approx(0.037, abs=1e-4)
    assert paired_interval([0.0] * 100) == [-margin, margin]
    assert paired_interval([1.0] * 100) == [1 - margin, 1.0]


# ---------------------------------------------------------------- two runs


def evaluated(run: Run, kinds: list[list[str]], **request) -> Run:
    """A run whose evaluation found these kinds, problem by problem: really evaluated, then what it found replaced."""
    evaluate_run(run, [1], len(kinds[0]), n=len(kinds), **request)
    path = only_file(run)
    header, *records = [json.loads(line) for line in path.read_text().splitlines()]
    for r in records:
        r["kinds"] = kinds[r["place"]]
    path.write_text("".join(json.dumps(r) + "\n" for r in [header, *records]))
    return run


R, W, U, T = ["right"], ["wrong"], ["unparseable"], ["timeout"]


@pytest.fixture
def pair(trained, tmp_path) -> tuple[Run, Run]:
    return copy_of(trained, tmp_path / "a"), copy_of(trained, tmp_path / "b")


def test_compare_by_hand(pair, command):
    """Of 8 problems 2 are right in both; A alone has 1, B alone 3: a difference of 2 in 8, and p = 2 (1 + 4) / 2^4."""
    a = evaluated(pair[0], [R, R, R, W, W, U, W, T])
    b = evaluated(pair[1], [R, R, W, R, R, R, W, W])
    r = compare_runs(a, b, n=8)
    assert (r["n"], r["a"]["value"], r["b"]["value"], r["difference"]) == (8, 3 / 8, 5 / 8, 0.25)
    assert (r["a_only"], r["b_only"], r["mcnemar_p"]) == (1, 3, 0.625)
    assert r["ci95"] == paired_interval([0, 0, -1, 1, 1, 1, 0, 0])
    assert [r["a"]["runs"][0][kind] for kind in KINDS] == [3, 3, 1, 1] and [r["b"]["runs"][0][kind] for kind in KINDS] == [5, 3, 0, 0]
    low, high = (100 * q for q in r["ci95"])
    assert low < 0 < high
    assert r["sentences"] == [
        f"{b.folder} is right on 25.0 points more problems than {a.folder} (95 % interval {low:.1f} to {high:.1f}; 8 problems; McNemar p = 0.62).",
        "The interval includes 0: these problems do not tell the two apart.",
        "One training run on each side; training with another seed may give another difference.",
    ]
    back = compare_runs(b, a, n=8)
    assert back["difference"] == -0.25 and back["ci95"] == pytest.approx([-q for q in reversed(r["ci95"])]) and back["mcnemar_p"] == r["mcnemar_p"]
    assert f"{a.folder} is right on 25.0 points fewer problems than {b.folder} (95 % interval {low:.1f} to {high:.1f};" in back["sentences"][0]

    status, out, err = command("compare", a.folder, b.folder, "--n", 8, "--json")
    assert status == 0 and json.loads(out) == r
    status, out, err = command("compare", a.folder, b.folder, "--n", 8)
    assert status == 0 and all(sentence in out for sentence in r["sentences"])
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert [row[2] for row in rows] == ["0.3750", "0.6250"]
    assert [row[4:8] for row in rows] == [["0.3750", "0.3750", "0.1250", "0.1250"], ["0.6250", "0.3750", "0.0000", "0.0000"]]


def test_compare_tells_a_clear_difference(pair):
    r = compare_runs(evaluated(pair[0], [R] * 5 + [W] * 25), evaluated(pair[1], [R] * 30), n=30)
    assert r["ci95"][0] > 0.5 and r["mcnemar_p"] == 2 / 2**25 and "McNemar p < 0.001" in r["sentences"][0]
    assert not any("includes 0" in sentence for sentence in r["sentences"])


def test_compare_of_a_run_with_itself(run, command):
    r = compare_runs(run, run)
    assert r["difference"] == 0 and r["mcnemar_p"] == 1 and (r["a_only"], r["b_only"]) == (0, 0)
    assert r["sentences"][0].startswith(f"{run.folder} is right on as many problems as {run.folder} (95 % interval -11.4 to 11.4; 30 problems; McNemar p = 1)")


def test_compare_of_pass_at_k_by_hand(pair):
    """pass@2 from 1, 2, 0 right in 3: 2/3, 1, 0. Several outputs a problem leave nothing for McNemar to count."""
    a = evaluated(pair[0], [R + W + W, R + R + W, W + W + W])
    b = evaluated(pair[1], [R + R + R, R + W + U, R + W + T])
    r = compare_runs(a, b, k=2, samples=3, n=3)
    assert [pass_at_k(3, right, 2) for right in (1, 2, 0, 3)] == pytest.approx([2 / 3, 1, 0, 1])
    assert r["a"]["value"] == pytest.approx((2 / 3 + 1 + 0) / 3) and r["b"]["value"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    assert r["difference"] == pytest.approx((1 / 3 - 1 / 3 + 2 / 3) / 3) and "mcnemar_p" not in r
    assert r["sentences"][0].startswith(f"pass@2 of {b.folder} is 22.2 points higher than that of {a.folder} (95 % interval ") and "3 outputs each" in r["sentences"][0]
    assert "is 22.2 points lower than" in compare_runs(b, a, k=2, samples=3, n=3)["sentences"][0]


def test_several_runs_on_a_side_count_with_their_mean_for_each_problem(trained, tmp_path):
    """A is right on problem 0 in both its runs, on problem 1 in one of them: (1 + 1/2 + 0) / 3. B, one run, is right on all."""
    first = evaluated(copy_of(trained, tmp_path / "many" / "seed-0"), [R, W, W])
    second = evaluated(copy_of(trained, tmp_path / "many" / "seed-1"), [R, R, W])
    b = evaluated(copy_of(trained, tmp_path / "b"), [R, R, R])
    r = compare_runs(tmp_path / "many", b, n=3)
    assert r["a"]["value"] == pytest.approx(0.5) and (r["a"]["lowest"], r["a"]["highest"]) == pytest.approx((1 / 3, 2 / 3))
    assert r["difference"] == pytest.approx(0.5) and r["ci95"] == paired_interval([0.0, 0.5, 1.0]) and r["n"] == 3 and "mcnemar_p" not in r
    many = tmp_path / "many"
    assert f"2 training runs of {many}, 1 of {b.folder}; the interval is over problems, not over training seeds." in r["sentences"]
    assert f"{b.folder} is 50.0 points higher than that of {many}" in r["sentences"][0]
    assert compare_runs([first, second.folder], str(b.folder), n=3) == r


def test_seeds_with_problems_of_their_own(command, tiny, tmp_path):
    """In parity each training seed has its own inputs: seed 0 is held against seed 0, and all inputs count."""
    for name in ("a", "b"):
        for seed in (0, 1):
            ab.train({**tiny, "seed": seed, "grpo.lr": 1e-3 if name == "a" else 2e-3, "out": tmp_path / name / f"seed-{seed}"}, progress=False)
    status, out, err = command("compare", tmp_path / "a", tmp_path / "b", "--seeds", 0, 1, "--json")
    r = json.loads(out)
    inputs = {(i, s.prompt) for seed in (0, 1) for i, s in enumerate(parity_test(load_run(tmp_path / "a" / f"seed-{seed}")))}
    assert status == 0 and r["n"] == len(inputs) > 4 and [len(r[side]["runs"]) for side in "ab"] == [2, 2]
    assert r["sentences"][-1] == "Every problem was sampled with 2 seeds and counts with its mean."
    # One side lacks a seed: other problems, and nothing is sampled to find that out.
    shutil.rmtree(tmp_path / "b" / "seed-1")
    shutil.rmtree(tmp_path / "a" / "seed-0" / "evaluations")
    status, out, err = command("compare", tmp_path / "a", tmp_path / "b")
    said = f"adaback: The test problems differ ({r['n'] - 4} are in {tmp_path}/a/seed-0 and 1 more alone, 0 in {tmp_path}/b/seed-0 alone); compare runs"
    assert (status, out) == (2, "") and err.startswith(said) and err.count("\n") == 1
    assert not (tmp_path / "a" / "seed-0" / "evaluations").exists()


def parity_test(run: Run) -> list[Sample]:
    from adaback_lite.build import build_policy, build_task

    return build_task(run.config, build_policy(run.config)[1]).test


@pytest.mark.parametrize("other", [Sample(1, "01=", "", "", "s"), Sample(0, "00=", "", "", "s"), Sample(0, "01=", "", "", "t")])
def test_problems_match_by_id_prompt_and_source(monkeypatch, other):
    split = {"a": [Sample(0, "01=", "", "", "s")], "b": [Sample(0, "01=", "x", "y", "s")]}
    monkeypatch.setattr(evaluation, "build_policy", lambda config: (None, None))
    monkeypatch.setattr(evaluation, "problems_of", lambda config, model, tokenizer, name, n: (None, split[config]))
    runs = {side: [types.SimpleNamespace(config=side, folder=side)] for side in "ab"}
    evaluation.check_same_problems(runs, "test", None)
    split["b"] = [other]
    with pytest.raises(UserError, match=r"The test problems differ \(1 are in a alone, 1 in b alone\)"):
        evaluation.check_same_problems(runs, "test", None)


# ---------------------------------------------------------------- tables


def cells(out: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]


def test_eval_of_one_run_prints_all_four_kinds_and_each_seed(command, pair):
    run = evaluated(pair[0], [R, R, W, U, T])
    status, out, err = command("eval", run.folder, "--n", 5)
    assert status == 0 and f"{run.folder}, step 0: 5 test problems, 1 output each" in out
    low, high = wilson(2, 5)
    assert cells(out) == [
        ["pass@1", "0.4000", f"{low:.4f} to {high:.4f}"],
        ["right", "0.4000", "2 of 5 outputs"],
        ["wrong", "0.2000", "1 of 5 outputs"],
        ["unparseable", "0.2000", "1 of 5 outputs"],
        ["timeout", "0.2000", "1 of 5 outputs"],
    ]
    status, out, err = command("eval", run.folder, "--n", 5, "--seeds", 0, 3)
    first, second = (evaluate_run(run, n=5, seeds=[seed])["pass_at_k"]["1"]["value"] for seed in (0, 3))
    assert first == 0.4 and cells(out)[0][3:] == ["0.4000", f"{second:.4f}"] and "5 test problems, 1 output each, with each of 2 seeds" in out
    assert f"pass@1 goes from {min(first, second):.4f} to {max(first, second):.4f} over the seeds." in out


def test_eval_of_several_runs_gives_their_mean(command, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # a narrower table folds the folders' names
    many = tmp_path / "many"
    evaluated(copy_of(trained, many / "seed-0"), [R, W, W, T])
    evaluated(copy_of(trained, many / "seed-1"), [R, R, R, W])
    status, out, err = command("eval", many, "--n", 4)
    rows = cells(out)
    assert status == 0 and [row[0] for row in rows] == [str(many / "seed-0"), str(many / "seed-1"), "mean", "lowest", "highest"]
    assert [row[2] for row in rows] == ["0.2500", "0.7500", "0.5000", "0.2500", "0.7500"]
    assert rows[0][4:8] == ["0.2500", "0.5000", "0.0000", "0.2500"]
    result = json.loads(command("eval", many / "seed-0", many / "seed-1", "--n", 4, "--json")[1])
    assert result["pass_at_k"] == {"1": {"mean": 0.5, "lowest": 0.25, "highest": 0.75}} and [r["right"] for r in result["runs"]] == [1, 3]


def test_quiet_shows_no_progress(command, run):
    assert command("eval", run.folder, "--quiet")[2] == ""
    assert command("eval", run.folder)[2] == ""  # it was complete
    assert "/30" in command("eval", run.folder, "--seeds", 9)[2]
