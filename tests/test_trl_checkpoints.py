"""adaback_lite.trl_checkpoints: which of TRL's checkpoints are whole, and the policy in one. That a real run's is read stands in test_trl_train.py, beside the run."""

import json

import torch

from adaback_lite import make_config
from adaback_lite.build import build_policy
from adaback_lite.policy import trained_tensors
from adaback_lite.trl_checkpoints import curriculum_of, last_checkpoint, load_policy

from .conftest import TINY


def test_the_last_whole_checkpoint_is_found(tmp_path):
    def checkpoint(step_, processes=1, files=("rng_state.pth",), text=None):
        folder = tmp_path / f"checkpoint-{step_}"
        folder.mkdir()
        state = {"stateful_callbacks": {"CurriculumGRPO": {"args": {}, "attributes": {"facts": {"processes": processes}}}}}
        (folder / "trainer_state.json").write_text(json.dumps(state) if text is None else text)
        for name in files:
            (folder / name).touch()

    assert last_checkpoint(tmp_path) is None and last_checkpoint(tmp_path / "none") is None
    checkpoint(8)
    checkpoint(10, 2, ("rng_state_0.pth", "rng_state_1.pth"))
    checkpoint(100, 2, ("rng_state_0.pth",))  # the second process was killed before it had written
    checkpoint(101, text='{"global_st')
    (tmp_path / "checkpoint-102").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path) == last_checkpoint(tmp_path, before=11) == str(tmp_path / "checkpoint-10")
    assert last_checkpoint(tmp_path, before=10) == str(tmp_path / "checkpoint-8") and last_checkpoint(tmp_path, before=8) is None


def test_a_checkpoint_of_another_script_has_nothing_of_ours(tmp_path):
    assert curriculum_of(tmp_path) is None
    for text, found in (('{"global_step": 3}', {}), ('{"stateful_callbacks": {"Other": {}}}', {}), ("{", None)):
        (tmp_path / "trainer_state.json").write_text(text)
        assert curriculum_of(tmp_path) == found


def test_an_adapter_is_read_as_peft_wrote_it(tmp_path):
    """What TRL's save_model leaves with LoRA: peft's save_pretrained."""
    config = make_config({**TINY, "policy.lora_rank": 2, "policy.positions": "sequential"}, out=str(tmp_path))
    model, _ = build_policy(config)
    with torch.no_grad():
        for tensor in trained_tensors(model).values():
            tensor.normal_()
    checkpoint = tmp_path / "checkpoint-3"
    model.save_pretrained(checkpoint)
    (checkpoint / "rng_state.pth").touch()
    (checkpoint / "trainer_state.json").write_text(json.dumps({"stateful_callbacks": {"CurriculumGRPO": {"attributes": {"batches": 3, "facts": {"processes": 1}}}}}))
    read, _, state = load_policy(config, tmp_path)
    assert state["step"] == 3 and list(state["sha256"]) == ["adapter_model.safetensors"]
    assert all(torch.equal(a, b) for a, b in zip(trained_tensors(read).values(), trained_tensors(model).values(), strict=True))
