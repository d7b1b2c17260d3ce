"""What each kind of policy takes: bytes counted by hand, quality the slow way, memory that a process really used; and the small layer's arithmetic."""

import functools
import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from bitsandbytes import functional
from bitsandbytes.nn import Linear4bit
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import adaback_lite as ab
from adaback_lite import footprint as fp
from adaback_lite import results
from adaback_lite.build import build_policy, build_task
from adaback_lite.config import make_config
from adaback_lite.evaluate import make_prefix
from adaback_lite.policy import keep_gradients
from adaback_lite.sampler import MergedCopy
from adaback_lite.sft import held_out_loss
from tests.helpers import PAD, slow_logprobs, small_config
from tests.language import stir, wide

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the highest memory in /proc")
SIZES = {"problems": 4, "groups": 2, "group_size": 3, "written": 5, "repeats": 2, "threads": 1}


def parity(**changes) -> dict:
    """Settings that make the small 4-bit-able model of tests/language.py on parity the thing that is measured."""
    shared = {"policy.name": wide(), "task.name": "parity", "task.shots": 0, "task.length": 6, "policy.lora_rank": 0}
    return {**shared, **changes}


def settings(kind: str) -> dict:
    return {**fp.settings_of(kind, parity(), 4, 2, 3), "policy.device": "cpu"}


@functools.cache
def found(kind: str) -> dict:
    return {"kind": kind, **fp.measure(settings(kind), **SIZES)}


@pytest.fixture
def here(monkeypatch):
    """Measure in this process, and count how often."""
    asked = []

    def in_this_process(kind, options):
        asked.append(kind)
        return fp.measure(**options)

    monkeypatch.setattr(fp, "in_a_process", in_this_process)
    return asked


# ---------------------------------------------------------------- bytes

LINEAR = 2 * (64 * 64 * 2 + 32 * 64 * 2 + 3 * 64 * 256)  # numbers in the linear layers of wide(): q and o, k and v (2 of 4 heads), and the three of the MLP
OTHER = 2 * 6 * 64 + 5 * 64  # embeddings and head of 6 tokens; norms
ADAPTER = 2 * 16 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 256))  # A and B at rank 16


def test_bytes_of_dense_weights_are_transformers_own_count():
    model = build_policy(make_config(settings("float32")))[0]
    assert fp.weight_bytes(model) == model.get_memory_footprint()
    assert fp.weight_bytes(model, model) == model.get_memory_footprint()
    half = build_policy(make_config(settings("bfloat16")))[0]
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    assert fp.weight_bytes(model) - buffers == 4 * (LINEAR + OTHER) == 2 * 2 * (LINEAR + OTHER)
    assert 2 * (LINEAR + OTHER) <= fp.weight_bytes(half) <= 2 * (LINEAR + OTHER) + buffers


def test_bytes_in_4_bits_counted_by_hand():
    policy = build_policy(make_config(settings("NF4 + LoRA")))[0]
    buffers = sum(b.numel() * b.element_size() for b in policy.buffers())
    layers = [m for m in policy.modules() if isinstance(m, Linear4bit)]
    assert len(layers) == 14
    blocks = [m.weight.quant_state.shape.numel() // 64 for m in layers]
    scales = sum(n + 4 * -(-n // 256) + 4 for n in blocks)  # a byte a block, 4 for each 256 blocks, 4 for the mean
    assert fp.weight_bytes(policy) == LINEAR // 2 + scales + 4 * OTHER + 4 * ADAPTER + buffers
    assert fp.weight_bytes(policy) - policy.get_memory_footprint() == scales
    assert fp.weight_bytes(policy, MergedCopy(policy).model) - fp.weight_bytes(policy) == 4 * LINEAR  # the dense copy has linear layers of its own, nothing else
    assert fp.dense_size(policy) == LINEAR + OTHER


def test_own_memory_leaves_the_model_as_it_was_and_its_tied_weights_tied():
    model = build_policy(make_config(settings("NF4 + LoRA")))[0]
    ids = torch.tensor([[1, 3, 4, 5]])
    with torch.no_grad():
        before = model(ids).logits
        fp.own_memory(model)
        assert torch.equal(model(ids).logits, before)
    tied = torch.nn.ModuleList([torch.nn.Embedding(4, 2), torch.nn.Linear(2, 4, bias=False)])
    tied[1].weight = tied[0].weight
    fp.own_memory(tied)
    assert tied[1].weight is tied[0].weight


@linux
def test_the_peak_is_what_was_used_in_between():
    device = torch.device("cpu")
    assert fp.reset_peak(device)
    before = fp.peak(device)
    block = np.ones(25_000_000)  # 200 MB
    del block
    assert 195e6 < fp.peak(device) - before < 260e6
    assert fp.reset_peak(device)
    assert fp.peak(device) < before + 60e6
    assert fp.resident() <= fp.peak(device)


def test_where_memory_cannot_be_told_the_table_says_so(monkeypatch):
    monkeypatch.setattr(fp, "reset_peak", lambda device: False)
    monkeypatch.setattr(fp, "resident", lambda: None)
    table = fp.table_of([{"kind": "float32", **fp.measure(settings("float32"), **SIZES)}])
    assert table[["library_mb", "peak_sampling_mb", "peak_update_mb"]].isna().all(axis=None)
    assert fp.readable(table)["peak when training, MB"].tolist() == ["not told"]
    assert len(fp.draw(table).to_dict()["concat"]) == len(fp.PANELS) - 1


# ---------------------------------------------------------------- speed and quality


@pytest.mark.parametrize("kind", list(fp.KINDS))
def test_every_kind_is_measured(kind):
    row = found(kind)
    json.dumps(row)
    assert row["sampled_tokens"] == 2 * 3 * 5 and row["update_tokens"] == 2 * 3 * 5
    assert len(row["sampling_seconds"]) == len(row["update_seconds"]) == 2 and min(row["sampling_seconds"] + row["update_seconds"]) > 0
    assert row["trained"] == (ADAPTER if "LoRA" in kind else LINEAR + OTHER) and row["parameters"] == LINEAR + OTHER
    assert row["dtype"] == ("bfloat16" if kind == "bfloat16" else "float32")
    assert len(row["nats"]) == 4 and row["nats_tokens"] == [13] * 4


def test_quality_by_kind():
    """An adapter that is new changes nothing, not a bit; 4 bits do, and merging them changes no more than rounding."""
    rows = {kind: found(kind) for kind in fp.KINDS}
    assert rows["float32 + LoRA"]["nats"] == rows["float32"]["nats"]
    assert rows["NF4 + LoRA"]["nats"] != rows["float32"]["nats"]
    assert rows["NF4 + LoRA, merged"]["nats"] == pytest.approx(rows["NF4 + LoRA"]["nats"], rel=1e-4)
    table = fp.table_of(list(rows.values())).set_index("kind")
    assert table.nll_more["float32 + LoRA"] == table.nll_more_low["float32 + LoRA"] == 0
    assert table.weights_mb["NF4 + LoRA"] < table.weights_mb["float32 + LoRA"] < table.weights_mb["NF4 + LoRA, merged"] + table.weights_mb["NF4 + LoRA"]


def test_nats_are_the_slow_ones():
    config = small_config(**{"policy.name": wide(), "task.n_val": 4})
    model, tokenizer = build_policy(config)
    task = build_task(config, tokenizer)
    nats = fp.rationale_nats(model, task, task.val, PAD)
    for (value, tokens), s in zip(nats, task.val):
        written = torch.tensor(task.rationale_ids(s) + [2])[None, None]
        logp, _ = slow_logprobs(model, [make_prefix(task, s)], written, torch.ones_like(written, dtype=torch.bool))
        assert tokens == written.numel() and value == pytest.approx(-float(logp.detach().sum()), rel=1e-4)
    assert sum(n for n, _ in nats) / sum(t for _, t in nats) == pytest.approx(held_out_loss(model, task, PAD, 4096), rel=1e-5)


def test_timing_changes_no_weight_and_does_the_work():
    config = make_config(settings("NF4 + LoRA"))
    policy, tokenizer = build_policy(config)
    stir(policy)
    task = build_task(config, tokenizer)
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    seconds, tokens = fp.times_update(policy, config, task, 3, 5, 1, PAD)
    assert len(seconds) == 1 and tokens == 30
    assert all(torch.equal(p.detach(), before[n]) for n, p in policy.named_parameters())
    assert all(p.grad.abs().sum() > 0 for n, p in policy.named_parameters() if "lora_" in n)


def test_a_first_call_does_not_count():
    calls = []
    assert len(fp.times(lambda: calls.append(1), 3, torch.device("cpu"))) == 3
    assert len(calls) == 4


# ---------------------------------------------------------------- the table


def row(kind="float32", **changes) -> dict:
    shared = {"dtype": "float32", "device": "cpu", "threads": 1, "parameters": 200, "trained": 50, "weight_bytes": 2_000_000, "library_bytes": 1_000_000}
    peaks = {"peak_sampling_bytes": 4_000_000, "peak_update_bytes": 5_000_000}
    speeds = {"sampling_seconds": [1.0, 2.0, 4.0], "sampled_tokens": 8, "update_seconds": [3.0, 1.0, 2.0], "update_tokens": 6}
    about = {"asked": {"settings": {}, "problems": 2}, "machine": {"torch": "2.0", "cores": 2}}
    return {"kind": kind, **shared, **peaks, **speeds, "nats": [2.0, 6.0], "nats_tokens": [4, 4], **about, **changes}


def test_table_worked_by_hand():
    table = fp.table_of([row(), row("bfloat16", nats=[3.0, 7.0])])
    first, second = table.to_dict("records")
    assert (first["trained_percent"], first["weights_mb"], first["library_mb"], first["peak_sampling_mb"], first["peak_update_mb"]) == (25.0, 2.0, 1.0, 4.0, 5.0)
    assert (first["tokens_per_second"], first["tokens_per_second_low"], first["tokens_per_second_high"]) == (4.0, 2.0, 8.0)
    assert (first["update_seconds"], first["update_seconds_low"], first["update_seconds_high"]) == (2.0, 1.0, 3.0)
    assert (first["nll"], first["nll_more"], second["nll"], second["nll_more"]) == (1.0, 0.0, 1.25, 0.25)
    assert (second["nll_more_low"], second["nll_more_high"]) == (0.25, 0.25)  # both problems are worse by as much
    words = fp.readable(table)
    assert words.loc["bfloat16"].tolist() == ["50 (25 %)", "2", "1", "4", "5", "4 (2 to 8)", "2.0 (1.0 to 3.0)", "1.250", "+0.250"]
    assert len(fp.draw(table).to_dict()["concat"]) == len(fp.PANELS)


def test_comparisons_in_words():
    table = fp.table_of([row(), row("NF4 + LoRA", nats=[3.0, 7.0], weight_bytes=500_000, peak_update_bytes=None, sampled_tokens=4, update_seconds=[3.0])])
    assert fp.in_words(table) == ["NF4 + LoRA against float32: 0.25 times the weights, 0.50 times the tokens a second, 1.50 times the seconds an update, and +0.250 nats a token."]
    assert fp.in_words(table.head(1)) == []


def test_without_float32_there_is_nothing_to_compare_with():
    table = fp.table_of([row("bfloat16")])
    assert pd.isna(table.nll_more[0]) and fp.readable(table)["more than float32"].tolist() == ["not told"]


def test_interval_of_the_difference():
    more, low, high = fp.nll_more(row(nats=[2.0, 8.0]), row())  # worse by 0 and by 2 nats on 4 tokens each
    assert (more, low, high) == (0.25, 0.0, 0.5)  # a resample holds the second problem never, once or twice
    one = fp.nll_more(row(nats=[4.0, 6.0], nats_tokens=[12, 4]), row(nats_tokens=[12, 4]))
    assert one[0] == 2 / 16 and one[1:] == (0.0, pytest.approx(2 / 12))


# ---------------------------------------------------------------- resuming, saving, mistakes


@pytest.mark.slow
def test_what_was_measured_is_only_read_again(tmp_path, here):
    sizes = {**SIZES, "kinds": ["float32", "NF4 + LoRA"], "settings": parity()}
    first = fp.footprint(tmp_path, **sizes)
    assert here == ["float32", "NF4 + LoRA"] and first.kind.tolist() == here
    pd.testing.assert_frame_equal(fp.footprint(tmp_path, **sizes), first)
    assert len(here) == 2
    fp.footprint(tmp_path, **{**sizes, "kinds": ["NF4 + LoRA", "bfloat16"]})
    assert here[2:] == ["bfloat16"]
    other = fp.footprint(tmp_path, **{**sizes, "problems": 3, "kinds": ["float32"]})
    assert here[3:] == ["float32"] and other.problems.tolist() == [3]
    pd.testing.assert_frame_equal(fp.footprint(tmp_path, **sizes), first)


def test_another_machine_measures_anew(tmp_path, here, monkeypatch):
    sizes = {**SIZES, "kinds": ["float32"], "settings": parity()}
    fp.footprint(tmp_path, **sizes)
    monkeypatch.setattr(fp, "this_machine", lambda: {"cpu": "another"})
    fp.footprint(tmp_path, **sizes)
    assert len(here) == 2


def test_a_line_torn_by_a_kill_is_measured_again(tmp_path, here):
    sizes = {**SIZES, "kinds": ["float32", "bfloat16"], "settings": parity()}
    fp.footprint(tmp_path, **sizes)
    path = tmp_path / "rows.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:50])
    with pytest.warns(match="torn"):
        fp.footprint(tmp_path, **sizes)
    assert here[2:] == ["bfloat16"] and [json.loads(line)["kind"] for line in path.read_text().splitlines()] == ["float32", "bfloat16"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kinds": ["int8"]}, "kinds names 'int8'; choose from: float32; bfloat16;"),
        ({"kinds": []}, "kinds names 'nothing'"),
        ({"problems": 0}, "problems is 0, but it must be at least 1."),
        ({"group_size": 1}, "group_size is 1, but it must be at least 2."),
        ({"settings": {"task.nam": "parity"}}, "There is no setting 'task.nam'"),
    ],
)
def test_mistakes(tmp_path, here, changes, words):
    with pytest.raises(ab.UserError, match="^" + words.replace(".", r"\.")):
        fp.footprint(tmp_path / "out", **{**SIZES, "settings": parity(), **changes})
    assert here == [] and not (tmp_path / "out").exists()


def test_saved_as_the_results_are_read(tmp_path):
    about = {"command": "python -m adaback_lite.footprint", "commit": "0123456789abcdef", "date": "2026-01-02"}
    fp.save([row(), row("bfloat16")], about, tmp_path / "sub" / "footprint.json")
    table, facts = results.stored("footprint", tmp_path / "sub")
    pd.testing.assert_frame_equal(table, fp.table_of([row(), row("bfloat16")]), check_dtype=False)  # 25.0 is written as 25
    assert facts["machine"] == {"torch": "2.0", "cores": 2, "threads": 1} and facts["asked"] == {"problems": 2}
    assert "2026-01-02 with commit 01234567 on 2 cores, torch 2.0 by: python -m" in results.provenance("footprint", tmp_path / "sub")


@pytest.mark.slow
def test_in_processes_from_the_command_line(tmp_path, capsys, monkeypatch):
    """Really in processes of their own; the second call measures nothing."""
    monkeypatch.setattr(fp, "SETTINGS", {**parity(), "policy.device": "cpu"})
    argv = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "footprint.json"), "--model", wide(), "--task", "parity", "--kinds", "float32", "NF4 + LoRA"]
    argv += [part for name, value in SIZES.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    assert fp.main(argv) == 0
    assert capsys.readouterr().out.count("measured in") == 2
    table = results.stored("footprint", tmp_path).table
    assert table.kind.tolist() == ["float32", "NF4 + LoRA"]
    if sys.platform == "linux":
        assert (table.peak_update_mb >= table.peak_sampling_mb).all() and (table.peak_sampling_mb > table.library_mb).all()
        assert (table.peak_update_mb < 1500).all()  # the libraries and next to nothing, though this process is larger
    assert fp.main(argv) == 0 and "measured in" not in capsys.readouterr().out
    assert fp.main([*argv, "--task", "gsm8k", "--data", str(tmp_path / "none")]) == 2
    said = capsys.readouterr()
    assert "holds no file none; put it there" in said.err and said.err.count("\n") == 1


@pytest.mark.slow
def test_a_process_that_fails_is_told_in_one_sentence():
    with pytest.raises(ab.UserError, match="Measuring 'float32' ended with status 1 .*; leave that kind out, or set smaller"):
        fp.in_a_process("float32", {"no_such_argument": 1})


# ---------------------------------------------------------------- LoRA on a small layer

TARGET = np.random.default_rng(0).normal(size=(12, 16))


def test_best_of_rank_by_hand():
    m = np.diag([3.0, -2.0, 1.0])
    np.testing.assert_allclose(fp.best_of_rank(m, 2), np.diag([3.0, -2.0, 0.0]), atol=1e-12)
    np.testing.assert_allclose(fp.best_of_rank(m, 0), np.zeros((3, 3)))
    assert fp.relative_error(fp.best_of_rank(m, 1), m) == pytest.approx((5 / 14) ** 0.5)


@pytest.mark.parametrize("rank", [1, 3, 12])
def test_training_an_adapter_comes_near_the_best_of_its_rank_and_never_past_it(rank):
    product, errors = fp.fit_adapter(TARGET, rank)
    best = fp.relative_error(fp.best_of_rank(TARGET, rank), TARGET)
    assert errors[0] == 1.0 and len(errors) == 401
    assert np.linalg.matrix_rank(product, tol=1e-4) <= rank
    assert errors[-1] == pytest.approx(fp.relative_error(product, TARGET), abs=1e-5)
    assert min(errors) >= best - 1e-5 and errors[-1] < best + 0.02


def test_an_adapter_starts_at_nothing():
    product, errors = fp.fit_adapter(TARGET, 4, steps=0)
    assert (product == 0).all() and errors == [1.0]


# ---------------------------------------------------------------- NF4 on a small layer


@hypothesis_settings(max_examples=30)
@given(st.integers(0, 2**31 - 1), st.floats(1e-3, 1e3))
def test_nf4_is_the_nearest_level_times_the_largest_of_the_block(seed, scale):
    w = (np.random.default_rng(seed).normal(size=(8, 32)) * scale).astype(np.float32)
    levels, blocks = fp.nf4_levels(), w.reshape(-1, 64)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    slow = levels[np.abs(blocks[..., None] / largest[..., None] - levels).argmin(axis=-1)] * largest
    restored, bits = fp.to_nf4(w, double=False)
    np.testing.assert_allclose(restored.reshape(-1, 64), slow, rtol=1e-5, atol=1e-6 * scale)
    assert bits == 4 + 32 / 64


def test_levels_are_16_with_0_and_both_ends_among_them():
    levels = fp.nf4_levels()
    assert len(levels) == 16 and (np.diff(levels) > 0).all() and levels[0] == -1 and levels[-1] == 1 and 0 in levels


def test_bits_a_weight():
    w = np.random.default_rng(0).normal(size=(1024, 1024))
    assert fp.to_nf4(w, double=False)[1] == 4.5
    restored, bits = fp.to_nf4(w)
    assert bits == 4 + 8 / 64 + 32 / (64 * 256) + 32 / 1024**2
    assert f"{bits:.3f}" == "4.127"
    assert 0.08 < fp.relative_error(restored, w) < 0.1


def test_an_outlier_costs_its_own_block_alone():
    w = np.random.default_rng(0).normal(size=(16, 16))
    spoilt = w.copy()
    spoilt[5, 5] = 40.0  # in the second block, rows 4 to 7
    before, after = np.abs(fp.to_nf4(w, double=False)[0] - w), np.abs(fp.to_nf4(spoilt, double=False)[0] - spoilt)
    assert after[4:8].mean() > 4 * before[4:8].mean()
    np.testing.assert_array_equal(after[[*range(4), *range(8, 16)]], before[[*range(4), *range(8, 16)]])


def test_where_a_gradient_arrives():
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))

    def layer():
        made = Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
        made.load_state_dict({"weight": torch.randn(64, 64, generator=torch.Generator().manual_seed(1))})
        return made.to("cpu").eval()

    assert fp.gradient_arrives(torch.nn.Linear(64, 64), x)
    kept = layer()
    keep_gradients(kept)
    assert fp.gradient_arrives(kept, x)
    assert fp.gradient_arrives(layer(), x) == (not functional.has_avx512bf16())  # bitsandbytes' shortcut has no gradient


def test_pictures_and_levels():
    chart = fp.pictures({"a": np.array([[1.0, -2.0]]), "b": np.zeros((2, 2))}, "t").to_dict()
    assert [p["title"]["text"] for p in chart["concat"]] == ["a", "b"]
    assert [p["encoding"]["color"]["scale"]["domain"] for p in chart["concat"]] == [[-2, 2], [-2, 2]]  # one scale for all
    assert chart["concat"][0]["data"]["values"] == [{"row": 0, "column": 0, "value": 1.0}, {"row": 0, "column": 1, "value": -2.0}]
    layers = fp.levels_chart(np.random.default_rng(0).normal(size=(16, 16))).to_dict()["layer"]
    assert sum(bar["share"] for bar in layers[0]["data"]["values"]) == pytest.approx(1) and len(layers[1]["data"]["values"]) == 16
