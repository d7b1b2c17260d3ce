"""The update benchmark compares what it says, and notices a side that computes something else. No assertion here looks at a clock."""

import json

import pytest
import torch

from adaback_lite import trainer
from adaback_lite.evaluate import make_prefix
from adaback_lite.grpo import policy_loss
from adaback_lite.packing import packed_logprobs
from adaback_lite.policy import clone_trained
from tests.benchmarks import update
from tests.helpers import PAD, ragged_prefixes, ragged_rollouts, slow_logprobs, small_model

SETTING = {"shots", "share", "groups", "tokens", "seconds", "memory", "times_less", "largest_difference"}
FIELDS = {"claim", "least", "settings", "work", "repeats", "policy", "memory_method", "machine"}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return update.Work(str(update.tiny_folder(tmp_path_factory.mktemp("tiny"))), shots=0, share=0.5, groups=1, G=4)


@pytest.fixture(scope="module")
def built(work):
    """(state, group, pad)."""
    state, tokenizer = update.build(work)
    return state, update.build_groups(work, state.model, tokenizer)[0], tokenizer.pad_token_id


@pytest.mark.parametrize("suffix_only", [False, True])
@pytest.mark.parametrize("shown", [0, 4])
def test_plain_is_the_slow_way(suffix_only, shown):
    model, prefixes = small_model(), ragged_prefixes(shown=(shown,))
    tokens, mask = ragged_rollouts(prefixes)
    logp, _ = update.plain_logprobs(model, prefixes, tokens, mask, PAD, suffix_only=suffix_only)
    slow, _ = slow_logprobs(model, prefixes, tokens, mask)
    torch.testing.assert_close(logp.double(), slow, rtol=1e-5, atol=2e-6)


def test_varied_rollouts():
    rest = list(range(100, 140))
    tokens, mask = update.varied(rest, 8, 1000, 7, ("a",))
    assert tokens.shape == mask.shape == (1, 8, 41)
    written = [tokens[0, g, mask[0, g]].tolist() for g in range(8)]
    assert len({tuple(w) for w in written}) == 8 and {w[-1] for w in written} == {7}
    lengths = [len(w) - 1 for w in written]
    assert lengths[0] == 40 and min(lengths) >= 30 and len(set(lengths)) > 1
    for w in written:
        assert sum(a != b for a, b in zip(w[:-1], rest)) == (len(w) - 1) // 8  # by this seed no token was replaced by itself
    again, other = update.varied(rest, 8, 1000, 7, ("a",))[0], update.varied(rest, 8, 1000, 7, ("b",))[0]
    assert torch.equal(tokens, again) and not torch.equal(tokens, other)
    assert update.varied([5], 8, 1000, 7, ("a",))[0].shape == (1, 8, 2)


def test_a_group_is_a_problem_cut_at_the_share(work, built):
    state, group, _ = built
    _, tokenizer = update.build_policy(update.config_for(work))
    task = update.build_task(update.config_for(work), tokenizer, 8192)
    sample, (rollout,) = task.train[0], group.tokens[:, 0]
    shown = len(group.prefix.ids) - len(task.prompt_ids(sample)[0])
    rationale = task.rationale_ids(sample)
    assert abs(shown - 0.5 * len(rationale)) <= 1 and len(rollout) == len(rationale) - shown + 1
    assert group.prefix == make_prefix(task, sample, shown) and group.source == sample.source
    same = rollout[:-1] == torch.tensor(rationale[shown:])
    assert 0.8 < same.float().mean() < 1
    assert group.advantage.shape == (1, 4) and group.weights.sum() == pytest.approx(1)


def test_sides_agree_and_read_what_is_claimed(built):
    state, group, pad = built
    P, (_, G, S) = len(group.prefix.ids), group.tokens.shape
    result = update.compare(state.model, group, pad)
    assert {side: (r["read"], r["logits"]) for side, r in result.items()} == {
        "ours": (P + G * (S - 1), int(group.mask.sum())),
        "plain": (G * (P + S), G * (P + S)),
        "plain_suffix_logits": (G * (P + S), G * (S + 1)),
    }
    assert result["plain"]["difference"] == {"logp": 0, "loss": 0, "gradient": 0}
    assert 0 < result["ours"]["difference"]["gradient"] < 1e-3


def wrong_gradient(*args):
    """Right values, but nothing flows back from the first token of each rollout."""
    logp, entropy = packed_logprobs(*args)
    return torch.cat([logp[..., :1].detach(), logp[..., 1:]], dim=2), entropy


def wrong_logprobs(*args):
    return packed_logprobs(*args, temperature=1.05)


@pytest.mark.parametrize(("wrong", "what"), [(wrong_gradient, "The gradient of base_model"), (wrong_logprobs, "The logp of")])
def test_a_wrong_side_is_noticed(built, monkeypatch, wrong, what):
    state, group, pad = built
    monkeypatch.setitem(update.SIDES, "ours", wrong)
    with pytest.raises(update.Disagreement, match=f"{what}.* side 'ours'"):
        update.compare(state.model, group, pad)


def test_an_update_is_the_trainers_with_one_function_changed(work, built, monkeypatch):
    state, group, pad = built
    before, called, gradients = clone_trained(state.model), [], {}
    for side, function in list(update.SIDES.items()):
        monkeypatch.setitem(update.SIDES, side, lambda *args, side=side, function=function: called.append(side) or function(*args))
    for side in update.SIDES:
        loss, norm = update.update(side, state, update.config_for(work), group, pad)
        gradients[side] = torch.cat([p.grad.flatten() for p in state.model.parameters() if p.requires_grad]).clone()
        assert loss == pytest.approx(-float((group.weights * group.advantage[..., None]).sum()), abs=1e-5)  # all ratios are 1
        assert float(gradients[side].norm()) == pytest.approx(min(norm, 1), rel=1e-4) and norm > 0
    assert called == list(update.SIDES) and trainer.packed_logprobs is packed_logprobs
    for side in update.PEERS:
        torch.testing.assert_close(gradients[side], gradients["ours"], rtol=1e-3, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in clone_trained(state.model).items()), "the policy must stay the same over all updates"


def test_gradient_of_an_update_by_hand(work, built):
    """Against the loss written out: so that not all sides are wrong alike."""
    state, group, pad = built
    update.update("ours", state, update.config_for(work), group, pad)
    trained = [p for p in state.model.parameters() if p.requires_grad]
    got = torch.cat([p.grad.flatten() for p in trained])
    logp = slow_logprobs(state.model, [group.prefix], group.tokens, group.mask)[0].float()
    slow = torch.cat([g.flatten() for g in torch.autograd.grad(policy_loss(logp, logp.detach(), group.advantage, group.weights), trained)])
    torch.testing.assert_close(got, slow / slow.norm().clamp(min=1), rtol=1e-3, atol=1e-5)


def test_memory_of_an_update_holds_its_logits(work):
    """Log-probabilities of all tokens are there at once, as are a good many activations."""
    longer = update.Work(**{**update.asdict(work), "shots": 1, "G": 8})
    measured = update.measure_memory("plain", longer)
    assert measured["start_mb"] > 100 and measured["peak_mb"] > 8 * 900 * 261 * 4 / 2**20


@pytest.mark.slow
def test_report(work):
    """Each number is where it should be, and ratios are the peer's over ours."""
    megabytes = {"ours": 10.0, "plain": 45.0, "plain_suffix_logits": 25.0}
    asked = []

    def memory(side, work):
        asked.append((work.share, side))
        return {"start_mb": 100.0, "peak_mb": megabytes[side]}

    works = [update.Work(**{**update.asdict(work), "share": share}) for share in (0.5, 0.9)]
    result = update.benchmark(works, 2, memory)
    assert asked == [(share, side) for share in (0.5, 0.9) for side in update.SIDES]
    assert result.keys() == FIELDS and result["repeats"] == 2 and result["work"] == {"model": work.model, "quantize": "none", "dtype": "auto", "groups": 1, "G": 4}
    assert result["policy"]["trained_parameters"] > 0 and result["machine"]["versions"].keys() >= {"torch", "transformers", "peft"}
    for s in result["settings"]:
        assert s.keys() == SETTING and s["times_less"]["plain"]["memory"] == 4.5 and s["times_less"]["plain_suffix_logits"]["memory"] == 2.5
        assert all(len(s["seconds"][side]["values"]) == 2 and s["seconds"][side]["median"] > 0 for side in update.SIDES)
        (group,) = s["groups"]
        assert s["tokens"]["ours"]["logits"] == sum(group["suffix_tokens"]) and max(group["suffix_tokens"]) == group["suffix_tokens"][0]
    assert result["least"]["memory"] == 4.5 and result["least"]["seconds"] == min(s["times_less"]["plain"]["seconds"] for s in result["settings"])
    assert json.loads(json.dumps(result)) == result
    table = update.table(result)
    assert table.row_count == 6 and list(table.columns[5].cells) == ["10.0", "45.0", "25.0"] * 2


def test_times_are_means_over_groups_and_ratios_of_medians(built, work):
    _, group, _ = built
    one = {side: {"read": n, "logits": 1, "difference": {"logp": 0.0, "loss": 0.0, "gradient": 0.0}} for side, n in zip(update.SIDES, (10, 40, 40))}
    two = {side: {**one[side], "read": n} for side, n in zip(update.SIDES, (30, 60, 60))}
    seconds = {"ours": [1.0, 2.0, 9.0], "plain": [6.0, 5.0, 27.0], "plain_suffix_logits": [4.0, 4.0, 4.0]}
    result = update.report(work, [group, group], [one, two], seconds, None)
    assert result["times_less"]["plain"] == {"seconds": 3.0, "seconds_lowest_and_highest": [2.5, 6.0], "memory": None, "tokens_read": 2.5}
    assert result["times_less"]["plain_suffix_logits"]["seconds"] == 2.0 and result["tokens"]["ours"]["read"] == 20


def test_a_mistake_is_said_in_one_sentence(capsys):
    assert update.main(["--model", "no/such/model", "--groups", "0"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "task.n_train" in err


@pytest.mark.slow
def test_whole_benchmark(tmp_path, capsys):
    out = tmp_path / "results" / "update.json"
    argv = ["--model", "tiny", "--quantize", "nf4", "--shots", "1", "--shares", "0.9", "--groups", "1", "--repeats", "1", "--threads", "1", "--out", str(out)]
    assert update.main(argv) == 0
    printed, result = capsys.readouterr().out, json.loads(out.read_text())
    assert "plain suffix logits" in printed and "1 shown, 0.9 revealed" in printed
    assert result.keys() == FIELDS | {"commit", "command"} and result["command"] == " ".join(["python -m tests.benchmarks.update", *argv])
    (s,) = result["settings"]
    logits = s["tokens"]["plain"]["logits"] * 261 * 4 / 2**20
    assert s["memory"]["plain"]["peak_mb"] > 2 * logits, "logits and their log_softmax are there at once"
    assert s["memory"]["plain"]["peak_mb"] > 2 * s["memory"]["ours"]["peak_mb"] > 0 and s["tokens"]["plain"]["read"] > 5 * s["tokens"]["ours"]["read"]
