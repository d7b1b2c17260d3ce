"""A word problem as tokens: the revealed prefix goes on with the assistant's turn, a cut changes no token, and the answer is never shown."""

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

import adaback_lite as ab
from adaback_lite.build import build_task
from adaback_lite.config import TaskSettings
from adaback_lite.curricula import tokens_shown
from adaback_lite.errors import UserError
from adaback_lite.evaluate import judge, make_prefix
from adaback_lite.rollout import Rollouts
from adaback_lite.tasks import Sample
from adaback_lite.tasks.gsm8k import load_gsm8k, strip_notes
from adaback_lite.tasks.text import TextTask, check_template, instruction, steps_of
from tests.helpers import small_config
from tests.language import CHATML, GSM8K, byte_model, byte_tokenizer, saved

CLIPS = Sample(0, "How many clips?", "48/2 = <<48/2=24>>24 in May.\n48+24 = <<48+24=72>>72 in all.\n#### 72", "72")
EGGS = Sample(1, "How many eggs?", "She has 9-2 = <<9-2=7>>7.\n#### 7", "7")
BOX = Sample(0, "What is x?", "We halve it.\nSo x is $\\boxed{\\frac{1}{2}}$, since it is half.", "\\frac{1}{2}")


def task_of(tokenizer=None, samples=(CLIPS, EGGS), name="gsm8k", **more) -> TextTask:
    settings = {k: more.pop(k) for k in list(more) if k in TaskSettings.model_fields}
    samples = list(samples)
    return TextTask(tokenizer or byte_tokenizer(CHATML), samples, samples[:1], samples[:1], TaskSettings(name=name, **settings), **more)


@pytest.fixture(scope="session")
def gsm8k() -> list[Sample]:
    """All 7,473 problems that are there; a missing file fails."""
    splits = load_gsm8k(str(GSM8K))
    samples = [s for split in splits.values() for s in split]
    assert len(samples) == 7473
    return samples


@pytest.fixture(scope="session")
def words(smollm2):
    """SmolLM2's tokenizer."""
    return AutoTokenizer.from_pretrained(smollm2)


# ---------------------------------------------------------------- prompts


def test_a_chat_prompt_by_hand():
    tokenizer = byte_tokenizer(CHATML)
    task = task_of(tokenizer, demonstrations=[EGGS])
    asked = "Solve it step by step, one step a line. End with a line that holds #### and the answer."
    ids, positions, start = task.prompt_ids(CLIPS)
    assert tokenizer.decode(ids) == (
        f"<|im_start|>user\nHow many eggs?\n\n{asked}<|im_end|>\n<|im_start|>assistant\nShe has 9-2 = 7.\n#### 7<|im_end|>\n"
        f"<|im_start|>user\nHow many clips?\n\n{asked}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert positions == list(range(len(ids))) and start == len(ids)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ids.count(end) == 3 and end not in ids[-len("<|im_start|>assistant\n") + 11 :]  # one turn is open, the last


def test_a_plain_prompt_by_hand():
    tokenizer = byte_tokenizer(frame="<bos> $A")
    ids = task_of(tokenizer, demonstrations=[EGGS]).prompt_ids(CLIPS)[0]
    assert tokenizer.decode(ids) == (
        "<bos>Solve it step by step, one step a line. End with a line that holds #### and the answer.\n\n"
        "Question: How many eggs?\n\nAnswer:\nShe has 9-2 = 7.\n#### 7\n\nQuestion: How many clips?\n\nAnswer:\n"
    )


@pytest.mark.parametrize(
    ("template", "frame", "times"),
    [
        (CHATML, "<bos> $A", 0),
        ("{{ bos_token }}" + CHATML, "<bos> $A", 1),  # template and tokenizer would both add one
        ("{{ bos_token }}" + CHATML, None, 1),
        (None, "<bos> $A", 1),
        (None, None, 0),
        (None, "<bos> $A <eos>", 1),
    ],
)
def test_never_two_bos_and_never_an_end_before_the_answer(template, frame, times):
    tokenizer = byte_tokenizer(template, frame)
    task = task_of(tokenizer)
    for k in (0, 5):
        ids = make_prefix(task, CLIPS, k).ids
        assert ids.count(tokenizer.bos_token_id) == times and (not times or ids[0] == tokenizer.bos_token_id)
        assert ids[-1] != tokenizer.eos_token_id
    assert tokenizer.bos_token_id not in task.rationale_ids(CLIPS) and tokenizer.eos_token_id not in task.rationale_ids(CLIPS)


def test_a_template_that_writes_todays_date_writes_always_the_same():
    """As Llama 3's does: resumed tomorrow, a run would have other prompts."""
    dated = "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y %H:%M:%S.%f') %}{% endif %}{{ date_string + '\n' }}" + CHATML
    tokenizer = byte_tokenizer(dated)
    assert tokenizer.decode(task_of(tokenizer).prompt_ids(CLIPS)[0]).startswith("26 Jul 2024\n<|im_start|>user")


@pytest.mark.parametrize(
    ("name", "base", "boxed", "has", "has_not"),
    [
        ("gsm8k", 10, False, ["step by step", "####"], ["base 7", "boxed", "one after the other"]),
        ("gsm8k-base7", 7, False, ["step by step", "####", "All numbers are written in base 7."], ["boxed"]),
        ("gsm-symbolic-tensor3", 10, False, ["one after the other", "####"], ["base 7", "boxed"]),
        ("math", 10, True, ["step by step", "\\boxed{}"], ["####"]),
    ],
)
def test_the_instruction_says_what_the_verifier_wants(name, base, boxed, has, has_not):
    text = instruction(name, base, boxed)
    assert all(h in text for h in has) and not any(h in text for h in has_not)


# ---------------------------------------------------------------- templates that cannot be used


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('no users here') }}", ["cannot be used (no users here)", "chat_template"]),
        ("{% for m in messages %}", ["cannot be used", "chat_template"]),  # no template at all
        (CHATML.replace("assistant\n' }}{% endif", "assistant\n<|im_end|>\n' }}{% endif"), ["no open assistant turn", "<|im_end|>"]),
        (CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif"), ["no open assistant turn", "<think>"]),
        (CHATML.replace("{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}", ""), ["no open assistant turn"]),
        (CHATML.replace("m['content']", "m['content'] | upper"), ["no open assistant turn"]),
        (CHATML.replace("'\n' + m['content']", "'\n' + ('<think>\n\n</think>\n' if m['role'] == 'assistant' else '') + m['content']"), ["no open assistant turn"]),
    ],
    ids=["raises", "no template", "closes", "thinks", "opens none", "changes words", "thinks before an answer"],
)
def test_templates_that_cannot_be_continued_are_refused(template, words):
    with pytest.raises(UserError) as error:
        task_of(byte_tokenizer(template))
    text = str(error.value)
    assert text.startswith("The model's chat template ") and "\n" not in text and all(w in text for w in words), text


def test_templates_that_can_are_not():
    check_template(byte_tokenizer(CHATML))
    check_template(byte_tokenizer("{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"))


# ---------------------------------------------------------------- rationales and cuts


def test_a_rationale_by_hand():
    """One token a byte, so that token counts are character counts."""
    task = task_of()
    text = "48/2 = 24 in May.\n48+24 = 72 in all.\n#### 72"
    assert task.text(CLIPS) == text and task.tokenizer.decode(task.rationale_ids(CLIPS)) == text
    assert task.step_ends(CLIPS) == [18, 37, 44]
    assert task.answer_tokens(CLIPS) == 2 and task.answer_tokens(EGGS) == 1
    with_notes = task_of(notes=True)
    assert with_notes.text(CLIPS) == CLIPS.rationale and with_notes.step_ends(CLIPS)[-1] == len(CLIPS.rationale)


@pytest.mark.parametrize("template", [CHATML, None])
def test_a_cut_changes_no_token(template):
    """Sampling and loss see the same ids wherever the cut is: the whole is always prompt + rationale."""
    task = task_of(byte_tokenizer(template))
    whole = task.prompt_ids(CLIPS)[0] + task.rationale_ids(CLIPS)
    for k in range(len(task.rationale_ids(CLIPS)) + 1):
        prefix = make_prefix(task, CLIPS, k)
        assert prefix.ids + task.rationale_ids(CLIPS)[k:] == whole
        assert prefix.positions == list(range(len(prefix.ids))) and prefix.next_position == len(prefix.ids)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=8))
def test_steps_put_together_are_the_text(lines):
    text = "\n".join(lines)
    steps = steps_of(text)
    assert "".join(steps) == text
    assert all(s.strip() for s in steps[1:]) and len(steps) <= max(len(text.splitlines()), 1)


def test_a_blank_line_belongs_to_the_step_before_it():
    assert steps_of("a\n\nb\n  \n\nc") == ["a\n\n", "b\n  \n\n", "c"]
    assert steps_of("\na\nb\n") == ["\n", "a\n", "b\n"]
    assert steps_of("a") == ["a"] and steps_of("") == []


def test_a_boxed_answer_is_hidden_from_its_box_on():
    task = task_of(samples=[BOX], name="math", boxed=True)
    hidden = "\\boxed{\\frac{1}{2}}$, since it is half."
    assert BOX.rationale.endswith(hidden) and task.answer_tokens(BOX) == len(hidden)
    twice = replace(BOX, rationale="First \\boxed{1}.\nNo: \\boxed{2}.")
    assert task_of(samples=[twice], name="math", boxed=True).answer_tokens(twice) == len("\\boxed{1}.\nNo: \\boxed{2}.")  # from the first on
    unboxed = replace(BOX, rationale="So x is a half", answer="1/2")  # DeepScaleR has some: the last character at least
    assert task_of(samples=[unboxed], name="deepscaler", boxed=True).answer_tokens(unboxed) == 1


def test_of_several_answers_the_last_is_hidden_and_the_steps_are_lines():
    both = Sample(0, "1. How many clips?\n2. How many eggs?", CLIPS.rationale + "\n" + EGGS.rationale, "72\n7")
    task = task_of(samples=[both], name="gsm8k-tensor2")
    assert task.answer_tokens(both) == 1 and len(task.step_ends(both)) == 5


def test_a_token_that_straddles_the_answers_start_is_hidden_whole():
    """Here ' 7' is one token, so showing '#### ' would show the 7."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(["<eos>", *alphabet, "Ġ7", "##", "####", "####Ġ7"])}
    for merges, hidden in (([("Ġ", "7")], 2), ([("Ġ", "7"), ("#", "#"), ("##", "##"), ("####", "Ġ7")], 2)):
        core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), decoders.ByteLevel()
        task = task_of(PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>"))
        ids = task.rationale_ids(CLIPS)
        assert task.answer_tokens(CLIPS) == hidden
        shown = task.tokenizer.decode(ids[:-hidden])
        assert "72" not in shown.rpartition("\n")[2] and shown + task.tokenizer.decode(ids[-hidden:]) == task.text(CLIPS)


def never_shows_the_answer(task, samples):
    """At rho = 1, whatever the unit: nothing of what stands behind '#### '. Returns tokens hidden and whether a line break ends each step but the last."""
    for s in samples:
        text, ids, ends = task.text(s), task.rationale_ids(s), task.step_ends(s)
        assert task.tokenizer.decode(ids) == text
        mark = text.rindex("#### ") + 5
        assert text[mark:] == s.answer
        hidden = task.answer_tokens(s)
        for unit in ("token", "step"):
            shown = task.tokenizer.decode(ids[: tokens_shown(1.0, ends, unit, max(1, hidden))])
            assert text.startswith(shown) and len(shown) <= mark, (s.source, shown)
        assert shown == text[: text.rindex("#### ")], s.source  # whole steps: all but the answer's line
        assert ends == sorted(set(ends)) and ends[-1] == len(ids)
        assert all(task.tokenizer.decode(ids[:end]).endswith("\n") for end in ends[:-1])
        assert len(ends) == text.count("\n") + 1 - len(re.findall(r"\n(?=[^\S\n]*\n)", text)), s.source


def test_no_part_of_an_answer_is_ever_shown(gsm8k):
    never_shows_the_answer(task_of(byte_tokenizer(CHATML), gsm8k[:1]), gsm8k[::150])


def test_the_cut_is_counted_in_tokens_and_the_answer_stays_hidden_in_a_step(tmp_path):
    """Through the trainer: rho = 1 shows everything but the answer."""
    folder = saved(tmp_path / "model", byte_model(), byte_tokenizer(CHATML))
    settings = {"task.name": "gsm-symbolic", "task.max_new": 16, "policy.name": str(folder), "method": "constant", "curriculum.rho": 1.0, "trainer.batch_size": 4}
    for unit in ("token", "step"):
        seen = []
        run = ab.train(small_config(tmp_path / unit, **settings, **{"curriculum.unit": unit, "trainer.max_steps": 2}), progress=False)
        task = build_task(run.config, byte_tokenizer(CHATML), 1024)
        for event in (e for e in run.events if e["event"] == "step"):
            for i, k in zip(event["ids"], event["shown"]):
                text = task.text(task.train[i])
                seen.append(k)
                assert task.tokenizer.decode(task.rationale_ids(task.train[i])[:k]) == (text[: text.rindex("#### ") + 5] if unit == "token" else text[: text.rindex("#### ")])
        assert len(seen) == 8


# ---------------------------------------------------------------- the real tokenizer on the real data


@pytest.mark.slow
def test_smollm2_on_all_of_gsm8k(gsm8k, words):
    """Line by line it is tokenised as whole: all of the 7,473 rationales but 4 (lines that end or begin in spaces, which whole would be one token with the break)."""
    for notes in (False, True):
        task = task_of(words, gsm8k[:1], notes=notes)
        differ = [s for s in gsm8k if task.rationale_ids(s) != words(task.text(s), add_special_tokens=False).input_ids]
        assert len(differ) == 4
        assert all(re.search(r"[^\S\n]\n|\n[^\S\n]|\n\n", task.text(s)) for s in differ)
        never_shows_the_answer(task, gsm8k)


@pytest.mark.slow
def test_smollm2s_prompts(gsm8k, words):
    task = task_of(words, gsm8k[:50], demonstrations=gsm8k[60:61])
    start, end = words.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    for s in task.train:
        ids = task.prompt_ids(s)[0]
        assert (ids.count(start), ids.count(end)) == (5, 4) and ids[-4:] == [start, *words("assistant\n").input_ids]
        text = words.decode(ids)
        assert text.count(s.prompt) == 1 and text.endswith(f"{task.instruction}<|im_end|>\n<|im_start|>assistant\n")
        whole = words.apply_chat_template([{"role": "user", "content": f"{s.prompt}\n\n{task.instruction}"}, {"role": "assistant", "content": task.text(s)}], tokenize=False)
        assert whole.endswith(words.decode(ids).rpartition("<|im_start|>user")[2] + task.text(s) + "<|im_end|>\n")
        for k in (0, 1, len(task.rationale_ids(s)) // 2):
            assert make_prefix(task, s, k).ids == ids + task.rationale_ids(s)[:k]


# ---------------------------------------------------------------- room and context


def test_room_by_hand():
    """ceil(room * hidden) + 16, never more than max_new, which is also what an output without help gets."""
    task = task_of(room=2.0, max_new=90)
    assert len(task.rationale_ids(CLIPS)) == 44
    assert [task.max_new(CLIPS, k) for k in (0, 1, 6, 7, 8, 20, 42)] == [90, 90, 90, 90, 88, 64, 20]
    assert task_of(room=1.3, max_new=90).max_new(CLIPS, 31) == 33  # 1.3 * 13 = 16.9
    assert task_of(room=1.0, max_new=256).max_new(CLIPS, 0) == 256


def test_samples_longer_than_the_context_are_dropped_and_counted():
    """To the token: prompt, rationale and max_new together. val and test hold the first of the three once more each."""
    long = replace(CLIPS, prompt="How many clips? " * 20)
    tokenizer = byte_tokenizer(CHATML)
    needs = {s.prompt: sum(map(len, (t.prompt_ids(s)[0], t.rationale_ids(s)))) + 64 for t in [task_of(tokenizer)] for s in (CLIPS, EGGS, long)}
    short = max(needs[CLIPS.prompt], needs[EGGS.prompt])
    for context, kept in ((needs[long.prompt], 3), (needs[long.prompt] - 1, 2), (short, 2)):
        task = task_of(tokenizer, [CLIPS, long, EGGS], max_new=64, context=context, dropped={"no rationale": 2})
        assert [s.id for s in task.train] == list(range(kept)) and [s.prompt for s in task.train] == [s.prompt for s in (CLIPS, long, EGGS) if needs[s.prompt] <= context]
        expected = {"no rationale": 2} | ({f"longer than the model's context of {context} tokens": 1} if kept == 2 else {})
        assert dict(task.dropped) == expected
    with pytest.raises(UserError, match=r"Task gsm8k has no train problems left \(5 longer than the model's context of 70 tokens\); raise task\.n_train, lower task\.max_new"):
        task_of(tokenizer, [CLIPS, long, EGGS], max_new=64, context=70)


def test_demonstrations_count_towards_the_context():
    """Sixteen of them, where the instruction and the template's marks are longer than what is demonstrated."""
    tokenizer = byte_tokenizer(CHATML)
    ideograms = replace(EGGS, prompt="鸡蛋" * 30)
    for demonstrations in ([EGGS] * 16, [ideograms] * 16):
        free = task_of(tokenizer, demonstrations=demonstrations)
        needed = len(free.prompt_ids(CLIPS)[0]) + len(free.rationale_ids(CLIPS)) + free.settings.max_new
        assert len(task_of(tokenizer, [CLIPS], demonstrations=demonstrations, context=needed).train) == 1
        with pytest.raises(UserError, match="longer than the model's context"):
            task_of(tokenizer, [CLIPS], demonstrations=demonstrations, context=needed - 1)


def test_no_problems_at_all():
    with pytest.raises(UserError, match=r"no train problems left \(none was there to begin with\)"):
        task_of(samples=[])


def test_a_tokenizer_that_does_not_give_back_its_text():
    from tokenizers import normalizers

    tokenizer = byte_tokenizer(CHATML)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(UserError, match="does not give back the text it was given.*use another model"):
        task_of(tokenizer)


# ---------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("output", "kind"),
    [("48/2 = 24.\n#### 72", "right"), ("#### 72.0", "right"), ("#### 73", "wrong"), ("72", "unparseable"), ("#### 72 clips", "unparseable"), ("#### 72\nso", "unparseable")],
)
def test_gsm8k_outputs(output, kind):
    assert task_of().verify(CLIPS, output).kind == kind


def test_base_7_outputs():
    sample = replace(CLIPS, rationale="33+33 = 66.\n#### 132", answer="132")
    task = task_of(samples=[sample], name="gsm8k-base7", base=7)
    assert [task.verify(sample, f"#### {n}").kind for n in ("132", "66", "72")] == ["right", "wrong", "unparseable"]  # 72 is no number in base 7


def test_boxed_outputs():
    task = task_of(samples=[BOX], name="math", boxed=True)
    try:
        assert [task.verify(BOX, f"so \\boxed{{{x}}}").kind for x in ("\\frac{1}{2}", "\\frac{1}{3}", "")] == ["right", "wrong", "unparseable"]
        assert task.verify(BOX, "#### 1/2").kind == "unparseable"
    finally:
        task.checker.close()


@pytest.mark.parametrize("template", [CHATML, None])
def test_the_rationale_itself_is_right_and_any_cut_of_it_is_completed(template):
    """What is judged is revealed part and written part together, without the end token."""
    import torch

    task = task_of(byte_tokenizer(template))
    tokenizer, ids = task.tokenizer, task.rationale_ids(CLIPS)
    for k in (0, 7, len(ids) - task.answer_tokens(CLIPS)):
        written = [*ids[k:], tokenizer.eos_token_id]
        wrong = [*ids[k:-1], *tokenizer("3").input_ids, tokenizer.eos_token_id]
        foreign = [*ids[k:-3], tokenizer.bos_token_id, *ids[-3:], tokenizer.eos_token_id]
        tokens = torch.tensor([[w + [0] * (60 - len(w)) for w in (written, wrong, foreign, written)]])
        lengths = torch.tensor([[len(written), len(wrong), len(foreign), len(written) - 1]])
        rollouts = Rollouts(tokens, torch.arange(60) < lengths[..., None], torch.tensor([[True, True, True, False]]), 0.0)
        judged = judge(task, tokenizer, [CLIPS], [k], rollouts)
        assert judged.outputs[0][0] == task.text(CLIPS)
        assert [v.kind for v in judged.verdicts[0]] == ["right", "wrong", "unparseable", "unparseable"]


# ---------------------------------------------------------------- from a configuration


def test_demonstrations_are_not_trained_on(tmp_path):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"question": f"What is {i} and {i}?", "answer": f"{i}+{i}={2 * i}\n#### {2 * i}"}) + "\n" for i in range(200)))
    settings = {"task.name": "gsm8k", "task.data": str(tmp_path), "policy.name": "some/model", "task.n_train": 10, "task.n_val": 3, "task.n_test": 3}

    def built(**more):
        return build_task(ab.make_config({**settings, **more}), byte_tokenizer(CHATML), 4096)

    task = built(**{"task.shots": 3})
    assert len(task.demonstrations) == 3 and len(task.train) == 10
    shown = [question for question, _ in task.demonstrations]
    assert not set(shown) & {s.prompt for split in (task.train, task.val, task.test) for s in split}
    text = task.tokenizer.decode(task.prompt_ids(task.val[0])[0])
    assert all(text.count(f"\n{q}\n") == 1 for q in [*shown, task.val[0].prompt]) and "assistant\n" + task.demonstrations[0][1] + "<|im_end|>" in text
    assert [s.prompt for s in built(**{"task.shots": 3}).train] == [s.prompt for s in task.train] != [s.prompt for s in built(**{"task.shots": 3, "seed": 1}).train]
    assert [s.prompt for s in built(seed=1).val] == [s.prompt for s in task.val]  # every seed is judged by the same problems
    # With as many problems as there are, the shots come out of the training problems.
    everything = built(**{"task.shots": 4, "task.n_train": 1000})
    assert len(everything.train) + 4 + len(load_gsm8k(str(tmp_path))["val"]) + len(load_gsm8k(str(tmp_path))["test"]) == 200


def test_notes_are_taken_out_of_demonstrations_too():
    task = task_of(demonstrations=[CLIPS])
    assert task.demonstrations == [(CLIPS.prompt, strip_notes(CLIPS.rationale))]
