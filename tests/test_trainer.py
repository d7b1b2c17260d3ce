"""One training step against the slow obvious one; what must not matter does not; a trajectory kept as a snapshot."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import adaback_lite as ab
from adaback_lite.curricula import Curriculum, tokens_shown
from adaback_lite.errors import UserError
from adaback_lite.policy import clone_trained
from adaback_lite.sft import batch_ids
from adaback_lite.trainer import build_policy, build_task, checked_rho, microbatches, new_state, rl_step
from tests.helpers import EOS, gradients, slow_logprobs, small_config, taught_config
from tests.language import CHATML, byte_model, byte_tokenizer, saved


def fresh(config, double=True):
    """(state, task, tokenizer) before the first step, with plain gradient descent: Adam would blow rounding up where a gradient is nearly 0."""
    model, tokenizer = build_policy(config)
    task = build_task(config, tokenizer)
    state = new_state(config, model.double() if double else model, task)
    if state.reference is not None:
        state.reference.double()
    state.optimizer = torch.optim.SGD(model.parameters(), lr=config.grpo.lr)
    return state, task, tokenizer


def weights_of(model):
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def stepped(config, steps=1):
    """(events, parameters) after some steps from fresh."""
    state, task, tokenizer = fresh(config)
    events = [rl_step(state, config, task, tokenizer) for _ in range(steps)]
    return events, weights_of(state.model)


class Recorder:
    """What one rl_step sampled and judged, caught on its way."""

    def __init__(self, monkeypatch):
        import adaback_lite.trainer as trainer

        def keep(name):
            original = getattr(trainer, name)

            def call(*args, **kwargs):
                self.__dict__[name] = original(*args, **kwargs)
                self.__dict__[f"{name}_args"] = args
                return self.__dict__[name]

            monkeypatch.setattr(trainer, name, call)

        keep("sample_rollouts")
        keep("judge")


BIG = {"grpo.lr": 1.0, "grpo.max_grad_norm": 1e6, "trainer.batch_size": 12, "grpo.group_size": 8}  # one plain gradient step, unclipped


def slow_step(state, config, prefixes, rollouts, rewards, reference=None):
    """The parameters after `grpo.passes` steps of gradient descent on GRPO's loss as its papers write it: a loop over rollouts, each a full sequence, no group left out."""
    g = config.grpo
    B, G = rewards.shape
    mean, std = rewards.mean(1, keepdim=True), rewards.std(1, keepdim=True, correction=0)
    advantage = (rewards - mean) / (std + 1e-6) if g.scale_std else rewards - mean
    old = torch.no_grad()(slow_logprobs)(state.model, prefixes, rollouts.tokens, rollouts.mask, g.temperature)[0]
    kept = torch.no_grad()(slow_logprobs)(reference, prefixes, rollouts.tokens, rollouts.mask, g.temperature)[0] if reference is not None else None
    losses = []
    for _ in range(g.passes):
        logp, entropy = slow_logprobs(state.model, prefixes, rollouts.tokens, rollouts.mask, g.temperature)
        total, tokens = 0.0, int(rollouts.mask.sum())
        for b in range(B):
            for r in range(G):
                n = int(rollouts.mask[b, r].sum())
                ratio = (logp[b, r, :n] - old[b, r, :n]).exp()
                gain = torch.minimum(ratio * advantage[b, r], ratio.clamp(1 - g.clip_low, 1 + g.clip_high) * advantage[b, r])
                each = -gain - g.entropy * entropy[b, r, :n]
                if kept is not None:
                    d = kept[b, r, :n] - logp[b, r, :n]
                    each = each + g.kl * (d.exp() - d - 1)
                per_rollout = {"grpo": each.sum() / n / (B * G), "dapo": each.sum() / tokens, "dr_grpo": each.sum() / rollouts.mask.shape[2] / (B * G)}
                total = total + per_rollout[g.norm]
        losses.append(float(total.detach()))
        grad, at = gradients(state.model, total), 0
        with torch.no_grad():
            for p in state.model.parameters():
                p -= g.lr * grad[at : at + p.numel()].view_as(p)
                at += p.numel()
    return losses, weights_of(state.model)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"grpo.norm": "dapo", "grpo.scale_std": False},
        {"grpo.norm": "dr_grpo", "grpo.temperature": 0.7, "policy.positions": "sequential"},
        {"grpo.passes": 3, "grpo.norm": "dapo"},
        {"grpo.passes": 2, "grpo.clip_low": 0.01, "grpo.clip_high": 0.02},
        {"grpo.kl": 0.5, "grpo.norm": "dapo"},
        {"grpo.kl": 0.3, "grpo.entropy": 0.05, "grpo.passes": 2, "grpo.lr": 0.03},
    ],
    ids=lambda s: " ".join(f"{k.split('.')[1]}={v}" for k, v in s.items()) or "grpo",
)
def test_a_step_equals_the_slow_obvious_step(monkeypatch, settings):
    config = taught_config(**BIG | {"trainer.update_tokens": 150} | settings)
    state, task, tokenizer = fresh(config)
    if config.grpo.kl:  # a reference that differs, or the first pass's KL would be 0
        with torch.no_grad():
            for i, p in enumerate(state.reference.parameters()):
                p.mul_(1.5 + 0.1 * (i % 3))
    twin, before = fresh(config)[0], weights_of(state.model)
    seen = Recorder(monkeypatch)
    event = rl_step(state, config, task, tokenizer)
    rewards = torch.tensor([[v.right + 0.1 * (v.kind != "unparseable") for v in group] for group in seen.judge.verdicts], dtype=torch.float64)
    assert 0 < event["grad_groups"] < 1  # groups with and without gradient
    losses, after = slow_step(twin, config, seen.sample_rollouts_args[1], seen.sample_rollouts, rewards, state.reference)
    assert (after - before).abs().max() > 1e-3  # the step is no small thing
    torch.testing.assert_close(weights_of(state.model) - before, after - before, rtol=1e-3, atol=2e-6)  # advantages and log-probabilities are in single precision
    assert event["loss"] == pytest.approx(losses[0], abs=1e-6)
    if settings.keys() <= {"grpo.passes", "grpo.clip_low", "grpo.clip_high"}:
        assert event["loss"] == pytest.approx(0, abs=1e-6)  # the first pass: advantages sum to 0


def test_gradient_norm_is_cut_and_reported_uncut():
    (event,), moved = stepped(taught_config(**BIG | {"grpo.max_grad_norm": 1e-3}))
    (whole,), _ = stepped(taught_config(**BIG))
    before = weights_of(fresh(taught_config(**BIG))[0].model)
    assert event["grad_norm"] == pytest.approx(whole["grad_norm"]) and whole["grad_norm"] > 1e-2
    assert float((moved - before).norm()) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("settings", [{}, {"grpo.passes": 2, "grpo.norm": "dapo"}, {"grpo.kl": 0.1, "grpo.entropy": 0.01}], ids=["plain", "two passes", "kl and entropy"])
def test_microbatches_and_chunks_change_nothing(settings):
    events, whole = stepped(taught_config(**BIG | settings | {"grpo.lr": 0.1}), steps=3)
    for name, value in (("trainer.update_tokens", 1), ("trainer.update_tokens", 200), ("trainer.rollout_rows", 1), ("trainer.rollout_rows", 20)):
        other_events, other = stepped(taught_config(**BIG | settings | {"grpo.lr": 0.1, name: value}), steps=3)
        torch.testing.assert_close(other, whole, rtol=0, atol=1e-6)
        for a, b in zip(events, other_events):
            assert {k: a[k] for k in ("ids", "rho", "reward", "shown")} == {k: b[k] for k in ("ids", "rho", "reward", "shown")}
            assert (a["loss"], a["grad_norm"]) == pytest.approx((b["loss"], b["grad_norm"]), abs=1e-5)


def test_groups_with_equal_rewards_are_never_run(monkeypatch):
    import adaback_lite.trainer as trainer

    config, groups = taught_config(**BIG), []
    original = trainer.packed_logprobs

    def count(model, prefixes, *args):
        groups.append(len(prefixes))
        return original(model, prefixes, *args)

    monkeypatch.setattr(trainer, "packed_logprobs", count)
    state, task, tokenizer = fresh(config)
    event = rl_step(state, config, task, tokenizer)
    assert sum(groups) == round(event["grad_groups"] * config.trainer.batch_size) < config.trainer.batch_size


def test_a_step_without_any_gradient_leaves_the_model_alone():
    config = small_config(**BIG | {"task.format_reward": 0.0, "method": "rl"})  # random weights and nothing shown: no reward
    (event,), after = stepped(config)
    assert event["grad_groups"] == 0 and event["loss"] == 0 and event["grad_norm"] == 0
    assert torch.equal(after, weights_of(fresh(config)[0].model))


def test_changing_the_revealed_part_changes_no_mask_and_no_weight(monkeypatch):
    """The update gets the written tokens alone; what was shown stands in the prefix and nowhere else."""
    config = taught_config(**BIG | {"method": "constant", "curriculum.rho": 0.7})
    state, task, tokenizer = fresh(config)
    seen = Recorder(monkeypatch)
    event = rl_step(state, config, task, tokenizer)
    assert set(event["shown"]) == {8}  # floor(0.7 * 12)
    for prefix, i in zip(seen.sample_rollouts_args[1], event["ids"]):
        sample = task.train[i]
        assert prefix.ids == task.prompt_ids(sample)[0] + task.rationale_ids(sample)[:8]
        assert prefix.max_new == 5
    assert seen.sample_rollouts.tokens.shape == (12, 8, 5)
    written = seen.sample_rollouts
    for b, g in np.ndindex(12, 8):
        n = int(written.mask[b, g].sum())
        text = seen.judge.outputs[b][g]
        assert tokenizer.convert_tokens_to_ids(list(task.train[event["ids"][b]].rationale[:8])) == tokenizer(text)["input_ids"][:8]
        assert written.ended[b, g] == (written.tokens[b, g, n - 1] == EOS)


def test_group_rewards_are_exact_shares():
    """7 right of 10 must reach a tau of 0.7, which it does not in single precision."""
    state, task, tokenizer = fresh(config := taught_config(**BIG | {"grpo.group_size": 10, "method": "constant", "curriculum.rho": 1.0, "task.format_reward": 0.0}))
    told = []
    state.curriculum.update = lambda ids, rho, reward: told.extend(reward.tolist())
    for _ in range(4):
        rl_step(state, config, task, tokenizer)
    assert {round(r * 10) for r in told} - {0, 5, 10}
    assert all(r == round(r * 10) / 10 for r in told)


@pytest.mark.parametrize(("limit", "G"), [(1, 4), (60, 4), (200, 2), (10**6, 8)])
def test_microbatches_hold_every_group_once_within_the_limit(limit, G):
    rng = np.random.default_rng(0)
    P, S = rng.integers(7, 40, 50).tolist(), rng.integers(1, 20, 50).tolist()
    batches = microbatches(P, S, G, limit)
    assert sorted(b for batch in batches for b in batch) == list(range(50))
    padded = [len(b) * (max(P[i] for i in b) + G * (max(S[i] for i in b) - 1)) for b in batches]
    assert all(n <= limit or len(b) == 1 for n, b in zip(padded, batches))
    assert limit > 1000 or len(batches) > 1
    assert microbatches([], [], G, limit) == []


def test_event_counts_what_happened(monkeypatch):
    config = taught_config(**BIG)
    state, task, tokenizer = fresh(config)
    seen, tokens = Recorder(monkeypatch), 0
    for step in range(2):
        low, high = state.curriculum.rho_min.copy(), state.curriculum.rho_max.copy()
        event = rl_step(state, config, task, tokenizer)
        tokens += int(seen.sample_rollouts.mask.sum())
        assert (event["step"], event["rollouts"], event["generated_tokens"]) == (step + 1, (step + 1) * 96, tokens)
        assert event["ids"] == batch_ids(20, 12, config.seed, step).tolist()
        assert event["shown"] == [tokens_shown(r, task.step_ends(task.train[i])) for r, i in zip(event["rho"], event["ids"])]
        assert event["cut"] == pytest.approx(1 - seen.sample_rollouts.ended.float().mean().item())
        verdicts = [v for group in seen.judge.verdicts for v in group]
        assert event["unparseable"] == pytest.approx(sum(v.kind == "unparseable" for v in verdicts) / 96)
        assert event["mean_reward"] == pytest.approx(sum(v.right + 0.1 * (v.kind != "unparseable") for v in verdicts) / 96, abs=1e-6)
        assert event["mean_rho"] == pytest.approx(np.mean(event["rho"]), abs=1e-4)
        assert event["low"] == state.curriculum.rho_min[event["ids"]].round(4).tolist()
        assert event["high"] == state.curriculum.rho_max[event["ids"]].round(4).tolist()
        assert (state.curriculum.rho_max <= high).all() and not (np.array_equal(low, state.curriculum.rho_min) and np.array_equal(high, state.curriculum.rho_max))


@pytest.mark.parametrize("rho", [[0.1, 1.1], [-0.1, 0.5], [0.5], [[0.5, 0.5]], [np.nan, 0.5]])
def test_a_curriculums_wrong_answer_is_refused(rho):
    with pytest.raises(UserError, match="2 shares between 0 and 1"):
        checked_rho(rho, 2)


def test_a_loss_that_is_not_a_number_stops_before_the_step():
    config = taught_config(**BIG)
    state, task, tokenizer = fresh(config)
    state.optimizer.step = lambda: pytest.fail("the step was taken")
    head = state.model.get_output_embeddings()
    original = head.forward
    head.forward = lambda x: original(x) + (torch.nan if torch.is_grad_enabled() else 0.0)
    with pytest.raises(UserError, match=r"loss became nan.*grpo\.lr"):
        rl_step(state, config, task, tokenizer)


class HalfTheTime(Curriculum):
    """A user's own: the whole rationale on every second visit of a sample."""

    def __init__(self, n_samples, seed=0):
        super().__init__(n_samples, seed)
        self.visits = np.zeros(n_samples, dtype=np.int64)

    def reveal(self, sample_ids, step):
        self.visits[sample_ids] += 1
        return (self.visits[sample_ids] % 2).astype(float)

    def update(self, sample_ids, rho, reward):
        assert len(sample_ids) == len(rho) == len(reward)


def test_a_users_own_curriculum_trains(tmp_path):
    events = []
    run = ab.train(taught_config(tmp_path / "own", **{"trainer.max_steps": 4}), curriculum=HalfTheTime(20), progress=False, on_event=events.append)
    steps = [e for e in events if e["event"] == "step"]
    assert json.loads(json.dumps(events)) == run.events and len(steps) == 4
    assert {r for e in steps for r in e["rho"]} == {0.0, 1.0} and steps[0]["low"] is None


def test_a_run_stops_at_its_target_and_says_so(tmp_path):
    run = ab.train(taught_config(tmp_path / "a"), progress=False)
    assert run.summary["stopped_by"] == "max_steps" and run.summary["steps"] == 12
    assert [e["step"] for e in run.events if e["event"] == "eval"] == [0, 4, 8, 12]


@pytest.mark.parametrize(
    ("template", "settings"),
    [(None, {}), (CHATML, {"policy.lora_rank": 4, "task.shots": 1}), (CHATML, {"policy.lora_rank": 4, "policy.quantize": "nf4"})],
    ids=["plain, all weights", "chat, adapter", "chat, nf4"],
)
def test_word_problems_train_and_resume(tmp_path, settings, template):
    """A byte-level model knows nothing, so SFT comes first; stopped after two RL steps and resumed, the run is the uninterrupted one."""
    folder = saved(tmp_path / "model", byte_model(hidden_size=64, context=4000), byte_tokenizer(template))
    own = {
        "policy.name": str(folder), "task.name": "gsm-symbolic", "task.max_new": 24, "task.n_train": 12, "task.n_val": 2, "task.n_test": 3,
        "trainer.batch_size": 4, "trainer.sft_lrs": (0.01,), "trainer.sft_max_steps": 4, "trainer.sft_eval_every": 2, "trainer.checkpoint_every": 2, "grpo.entropy": 0.01,
    }  # fmt: skip

    def trained(name, steps, resume=False):
        return ab.train(small_config(tmp_path / name, **own, **settings, **{"method": "sft+adaback", "trainer.max_steps": steps}), resume=resume, progress=False)

    run, whole = trained("a", 2), trained("b", 4)
    start = run.events[0]
    assert start["samples"] == 12 and (start["val"], start["test"]) == (2, 3) and isinstance(start["dropped"], dict)
    assert start.get("sampling") == ("merged" if settings else None)
    assert run.events[-1]["event"] == "end" and run.summary["steps"] == 2
    run = trained("a", 4, resume=True)
    steps = [[{k: v for k, v in e.items() if k != "wall"} for e in r.events if e["event"] == "step"] for r in (run, whole)]
    assert steps[0] == steps[1] and len(steps[0]) == 4 and all(e["grad_norm"] > 0 for e in steps[0])
    weights = [clone_trained(r.load_policy()[0]) for r in (run, whole)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[1]) and weights[0].keys() == weights[1].keys()
    assert {k: v for k, v in run.summary.items() if k not in ("wall_seconds", "machine")} == {k: v for k, v in whole.summary.items() if k not in ("wall_seconds", "machine")}


# The snapshot: six steps from the shipped base, two passes each, so that sampling, verifying, packing, loss, clipping, Adam and the curriculum all have their part.
SNAPSHOT = Path(__file__).parent / "snapshots" / "trajectory.json"
# Seed 1, because its first step has rewards: without them Adam makes a full step of a gradient that is nearly rounding error, and nothing after it can be compared.
TRAJECTORY = {
    "seed": 1,
    "trainer": {"threads": 1, "batch_size": 16},
    "grpo": {"norm": "dapo", "passes": 2, "entropy": 0.003, "lr": 2e-4},
    "task": {"n_train": 64, "n_val": 8, "n_test": 8},
}
KEYS = ("mean_reward", "mean_rho", "grad_groups", "entropy", "loss", "grad_norm")


def trajectory() -> list[dict]:
    config = ab.make_config(TRAJECTORY)
    model, tokenizer = build_policy(config)
    task = build_task(config, tokenizer)
    state = new_state(config, model, task)
    return [rl_step(state, config, task, tokenizer) for _ in range(6)]


def test_trajectory_is_the_one_that_was_kept():
    """`ADABACK_SNAPSHOT=write pytest tests/test_trainer.py` keeps a new one; look at the difference before you commit it.

    The tolerance. What comes from hashes and numpy alone (ids, what step 1 shows) is exact. The rest passes through matrix products, whose last bits
    differ between machines. Measured: without AVX, with another microbatch size, and with all weights off by 1e-6 of themselves, step 1 moves by at most
    3e-7 and no later step by more than 1e-5 in entropy or 6e-4 in grad_norm, and no token flips; weights off by 1e-4, far more than any machine, give
    4e-4 and 0.04. So step 1 is held to 1e-5, and the others to 1e-3 and 0.05. A flipped token (about 12,000 draws, each with a chance near 1e-6) may
    change one rollout's reward, 1/128 of mean_reward, and with it one group.
    """
    got = trajectory()
    rows = [{k: round(e[k], 7) for k in KEYS} | {k: e[k] for k in ("ids", "shown")} for e in got]
    if os.environ.get("ADABACK_SNAPSHOT") == "write":
        SNAPSHOT.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    kept = json.loads(SNAPSHOT.read_text())
    assert [r["ids"] for r in rows] == [r["ids"] for r in kept]
    assert rows[0]["shown"] == kept[0]["shown"]
    assert {k: rows[0][k] for k in KEYS} == pytest.approx({k: kept[0][k] for k in KEYS}, abs=1e-5)
    assert rows[0]["loss"] == pytest.approx(kept[0]["loss"], abs=1e-7) and kept[0]["mean_reward"] > 0
    tolerance = {"mean_reward": 1 / 128 + 1e-6, "mean_rho": 0.02, "grad_groups": 1 / 16 + 1e-6, "entropy": 1e-3, "loss": 1e-5, "grad_norm": 0.05}
    for now, then in zip(rows[1:], kept[1:], strict=True):
        for k in KEYS:
            assert now[k] == pytest.approx(then[k], abs=tolerance[k]), k
