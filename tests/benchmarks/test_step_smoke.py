"""The step benchmark runs and reports what it says. No assertion here looks at a clock."""

import importlib.util
import json

import numpy as np
import pytest
import torch

from adaback_lite.rollout import sample_rollouts
from tests.benchmarks import step

SMALL = step.Size(prompts=4, group=3, tokens=12)
FIELDS = {
    "speedup_reveal_0", "speedup_reveal_075", "seconds_reveal_0", "seconds_reveal_075", "split", "split_reveal_075",
    "tokens_per_second", "peak_memory_mb", "peak_memory_mb_reveal_075", "peak_memory_method", "settings", "machine",
}  # fmt: skip
has_trl = importlib.util.find_spec("trl") is not None


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_hidden_tokens_have_the_mean_that_is_claimed():
    size = step.Size()
    assert (step.hidden_tokens(size, 0.0) == 32).all()
    hidden = step.hidden_tokens(size, 0.75)
    assert hidden.mean() == 8 and hidden.min() == 2 and hidden.max() == 14
    assert len(np.unique(hidden)) == 13


@pytest.mark.parametrize("reveal", [0.0, 0.75])
def test_ours_takes_a_step_of_exactly_the_work_that_is_claimed(reveal):
    ours = step.Ours(SMALL, reveal)
    before = {name: p.clone() for name, p in ours.state.model.named_parameters()}
    parts = ours.step()
    assert set(parts) == {"step", "rollout", "score", "update", "rest"}
    assert ours.state.generated_tokens == 3 * step.hidden_tokens(SMALL, reveal).sum()
    assert ours.grad_groups == [1.0], "a group without gradient would be skipped, and the step be too cheap"
    changed = {name for name, p in ours.state.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(before) - {"lm_head.bias"}


def test_special_tokens_are_never_drawn():
    model, tokenizer = step.make_model(), step.tiny_tokenizer()
    task = step.Task(tokenizer, SMALL)
    prefixes = [step.make_prefix(task, s) for s in task.train]
    rollouts = sample_rollouts(model, prefixes, torch.rand(4, 3, 12), tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert rollouts.mask.all() and not rollouts.ended.any() and (rollouts.tokens > 2).all()


def test_report_has_all_fields_without_trl():
    result = step.benchmark(SMALL, repeats=1, warmup=1, with_trl=False, memory=False)
    assert result.keys() >= FIELDS
    assert result["speedup_reveal_0"] is None and result["seconds_reveal_0"]["trl"] is None
    assert result["tokens_per_second"].keys() == {"ours", "generate"}
    assert result["machine"].keys() >= {"cpu", "cores", "threads", "versions"}
    json.dumps(result)


def test_without_trl_one_sentence_and_status_2(monkeypatch, capsys):
    monkeypatch.setattr(step.importlib.util, "find_spec", lambda name: None)
    assert step.main([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "pip install -e '.[trl]' -c constraints.txt" in err


@pytest.mark.slow
@pytest.mark.skipif(not has_trl, reason="TRL is not installed; pip install -e '.[trl]' -c constraints.txt")
def test_whole_benchmark(tmp_path, capsys):
    out = tmp_path / "results" / "step.json"
    assert step.main(["--repeats", "1", "--warmup", "1", "--prompts", "16", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1, "one line on stdout, whatever the libraries print"
    result, written = json.loads(printed), json.loads(out.read_text())
    assert result.keys() >= FIELDS
    assert {k: written[k] for k in result} == result and "python -m tests.benchmarks.step --repeats 1" in written["command"]
    assert result["settings"]["grad_groups"] == {"reveal_0": {"ours": 1.0, "trl": 1.0}, "reveal_075": {"ours": 1.0, "trl": 1.0}}
    assert result["split"]["trl"].keys() == {"step", "generate", "score", "update", "rest"}
    assert set(result["peak_memory_mb"]) == {"ours", "trl"}
