"""A run that learns nothing says why: plain words, from its events alone.

Reward near 0, loss 0 and no error is what users of every GRPO library report. Each rule below looks at the last `WINDOW` steps;
the thresholds are our choice. The trainer asks after every step and logs each kind once.
"""

from dataclasses import dataclass

WINDOW = 20


@dataclass(frozen=True)
class Diagnosis:
    """What is seen, and what usually helps."""

    kind: str
    text: str
    advice: str


def diagnose(steps: list[dict]) -> list[Diagnosis]:
    """Everything the last WINDOW "step" events show to be wrong; nothing before there are that many."""
    if len(steps) < WINDOW:
        return []
    last = steps[-WINDOW:]
    mean = {key: sum(s[key] for s in last) / WINDOW for key in ("mean_reward", "mean_rho", "grad_groups", "entropy", "cut", "unparseable")}
    found = []
    if mean["grad_groups"] < 0.02 and mean["mean_reward"] < 0.05:
        found.append(Diagnosis(
            "no_reward",
            f"In the last {WINDOW} steps {mean['grad_groups']:.1%} of the groups had rewards that differ, and the mean reward is {mean['mean_reward']:.3f}: nothing is learnt, because hardly any rollout is ever right.",
            "Show part of the rationale (--method adaback), start from a better base or an SFT stage, or take an easier task.",
        ))  # fmt: skip
    elif mean["grad_groups"] < 0.05 and mean["mean_reward"] < 0.8:
        found.append(Diagnosis(
            "no_gradient",
            f"In the last {WINDOW} steps only {mean['grad_groups']:.1%} of the groups had rewards that differ, at a mean reward of {mean['mean_reward']:.2f}: samples are either always right or always wrong as they are shown.",
            "Sample more rollouts a group, lower the learning rate or add grpo.entropy so that rollouts differ; for AdaBack try curriculum.recovery 0.05.",
        ))  # fmt: skip
    early = sum(s["entropy"] for s in steps[:5]) / len(steps[:5])
    # Low entropy alone is no illness: a policy that has found one good way is sure of itself, and learns on while groups differ.
    if mean["entropy"] < 0.1 * early and mean["mean_reward"] < 0.6 and mean["grad_groups"] < 0.1:
        found.append(Diagnosis(
            "entropy_collapsed",
            f"The entropy of the policy fell from {early:.3f} to {mean['entropy']:.3f} nats a token while the mean reward is only {mean['mean_reward']:.2f}: the rollouts of a group are nearly equal, and {mean['grad_groups']:.0%} of the groups carry a gradient.",
            "Lower grpo.lr (by 3 to 10 times), add grpo.entropy 0.003 or grpo.kl 0.01, and start again: a collapsed policy seldom recovers.",
        ))  # fmt: skip
    if mean["cut"] > 0.5:
        found.append(Diagnosis(
            "cut_at_limit",
            f"{mean['cut']:.0%} of the outputs reach the length limit without an end token, so they cannot be right.",
            "Check that the base has learnt to end its outputs (policy.base copy, or an SFT stage); a format reward helps a little.",
        ))  # fmt: skip
    if mean["unparseable"] - mean["cut"] > 0.5:
        found.append(Diagnosis(
            "unparseable",
            f"{mean['unparseable'] - mean['cut']:.0%} of the outputs end, but not in the form the task asks for.",
            "Train the form first (an SFT stage, or a base that knows it), or set task.format_reward 0.1.",
        ))  # fmt: skip
    if len(steps) >= 5 * WINDOW and last[0].get("high"):
        before = steps[-5 * WINDOW : -4 * WINDOW]
        drop = sum(s["mean_rho"] for s in before) / WINDOW - mean["mean_rho"]
        if mean["mean_rho"] > 0.15 and drop < 0.01:
            found.append(Diagnosis(
                "rho_stuck",
                f"The mean revealed share has not fallen for {4 * WINDOW} steps; it stands at {mean['mean_rho']:.2f}.",
                "If reward is low, luck may have pulled intervals below what samples need (raise curriculum.tau, or curriculum.recovery 0.05); if few groups have a gradient, see grpo.lr and grpo.entropy.",
            ))  # fmt: skip
    return found
