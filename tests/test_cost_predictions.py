"""What the model of cost says of GPUs: memory by hand, and the table that notebook 08 shows."""

import pytest

from adaback_lite import UserError
from adaback_lite.cost import PARTS, SHAPES, Work, step_cost
from adaback_lite.cost_predictions import GPU, gpus_needed, machine_of, memory, predictions

from .test_cost import TOY, TOY_WORK


def test_memory_by_hand():
    m = memory(TOY_WORK, TOY)
    assert (m.weights, m.trained, m.cache) == (2 * 60, 14 * 60, 2 * 4 * (5 + 2 * 2))
    kept = 7 * 2 + 4 * 4 + 4 * 3
    assert m.update == 7 * kept * 2 + 4 * 5 * 12 and m.total == 120 + 840 + m.update
    lora = memory(TOY_WORK, TOY, lora_rank=1, checkpointing=True, way="padded")
    assert (lora.weights, lora.trained, lora.cache) == (2 * 60, 16 * 31, 2 * 4 * 2 * (5 + 2))
    assert memory(TOY_WORK, TOY, lora_rank=1).weights == 2 * (60 + 34)  # ours samples from a merged copy
    assert lora.update == 14 * (2 + kept) * 2 + 6 * 5 * 12


def test_predictions():
    rows = predictions(reveals=(0.0, 0.75), groups=(4, 16))
    assert len(rows) == 3 * 2 * 2 * 2 * 2
    assert {(r["model"], r["trained"]): r["gpus"] for r in rows} == {
        ("llama-3.2-1b", "adapter"): 1,
        ("llama-3.2-1b", "all weights"): 1,
        ("llama-3.1-8b", "adapter"): 1,
        ("llama-3.1-8b", "all weights"): 4,
        ("llama-3.1-70b", "adapter"): 8,
        ("llama-3.1-70b", "all weights"): 32,
    }
    for packed, padded in zip(rows[::2], rows[1::2]):
        assert (packed["way"], padded["way"]) == ("packed", "padded") and (packed["memory_gb"] <= padded["memory_gb"] or packed["trained"] == "adapter")
        assert all(packed[k] <= padded[k] for k in (*PARTS, "seconds")) and packed["seconds"] == pytest.approx(sum(packed[p] for p in PARTS))
        assert padded["memory_gb"] <= packed["gpus"] * 72
    by_hand = next(r for r in rows if r["trained"] == "all weights" and r["reveal"] == 0 and r["group"] == 4)
    machine = machine_of(GPU())
    assert by_hand["decode"] == step_cost(Work(group=4), SHAPES["llama-3.2-1b"], machine).decode.seconds and machine.flops == 989e12 / 2 and machine.bandwidth == 0.8 * 3.35e12


def test_gpus_are_a_power_of_two_that_holds_it():
    need = memory(TOY_WORK, TOY)
    for n, room in ((1, 1.0), (2, 1.9), (4, 2.1), (4, 4.0), (8, 4.1)):
        assert gpus_needed(need, GPU(memory=need.total / room / 0.9 * (1 + 1e-12))) == n


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"models": ("gpt-5",)}, "There is no shape of a model 'gpt-5'; there are: tiny"),
        ({"reveals": (1.5,)}, "Work's setting 'reveal' is 1.5, but it should be less than or equal to 1."),
        ({"promts": 3}, "Work has no setting 'promts'; it has: prompts"),
    ],
)
def test_mistakes(given, sentence):
    with pytest.raises(UserError) as error:
        predictions(**given)
    assert str(error.value).startswith(sentence)
