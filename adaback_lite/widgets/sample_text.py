"""One visit of a sample as HTML: what was revealed is set off from what was written, by a colour and a line. Everything is escaped."""

import html

from ..outputs import Visit
from ..tasks.text import steps_of
from .rows import paragraph

REVEALED = "background:#D6E8F5;color:#111;text-decoration:underline;text-decoration-color:#0072B2;text-decoration-thickness:2px"
WRONG = "background:#FBE3D4;color:#111;outline:2px solid #D55E00"
BLOCK = "white-space:pre-wrap;overflow-wrap:anywhere;font-family:monospace;line-height:1.6;margin:0 0 8px"
WORDS = {"right": "✓ right", "wrong": "✗ wrong", "unparseable": "✗ cannot be read", "timeout": "✗ check ran out of time"}


def visit_html(visit: Visit, parity: bool) -> str:
    """The prompt, the rationale with its revealed part, and each rollout with reward and first wrong step.

    `parity`: a reasoning step is a pair of characters; else it is a line.
    """
    v, n = visit, len(visit.rewards)
    same = all(output[: v.revealed] == v.rationale[: v.revealed] for output in v.outputs)  # not where the notes were taken out of it
    legend = f'<span style="{REVEALED}">revealed</span>, then what the policy wrote; <span style="{WRONG}">first wrong step</span>'
    answer = html.escape(" | ".join(v.answer.splitlines()))
    parts = [
        paragraph(f"<b>Sample {v.id}, step {v.step}.</b> Mean reward {sum(v.rewards) / n:.2f} over {n} rollouts. {legend}."),
        paragraph("Prompt") + block(html.escape(v.prompt)),
        paragraph(f"Rationale (answer: {answer})") + block(marked(v.rationale, v.revealed if same else 0, (0, 0))),
        *(rollout_html(v, g, parity) for g in range(n)),
    ]
    return f'<div style="max-width:900px">{"".join(parts)}</div>'


def rollout_html(visit: Visit, g: int, parity: bool) -> str:
    """Rollout `g` of the visit."""
    step, why = visit.first_wrong[g], visit.why[g]
    said = [f"reward {visit.rewards[g]:g}", WORDS[visit.kinds[g]], *([f"first wrong step {step}"] if step else []), *([why] if why else [])]
    text = marked(visit.outputs[g], visit.revealed, step_span(visit.outputs[g], step, parity))
    return paragraph(f"Rollout {g + 1}: {html.escape(', '.join(said))}") + block(text)


def block(inner: str) -> str:
    return f'<div style="{BLOCK}">{inner}</div>'


def step_span(text: str, step: int | None, parity: bool) -> tuple[int, int]:
    """Where the step (counted from 1) stands in the text, as (start, end); (0, 0) where it has no place there.

    >>> step_span("0110", 2, True), step_span("a\\nbb\\n", 2, False), step_span("0110", None, True)
    ((2, 4), (2, 5), (0, 0))
    """
    if step is None:
        return 0, 0
    lengths = [2] * (len(text) // 2) if parity else [len(line) for line in steps_of(text)]
    start = sum(lengths[: step - 1])
    return (start, start + lengths[step - 1]) if step <= len(lengths) else (0, 0)


def marked(text: str, revealed: int, wrong: tuple[int, int]) -> str:
    """The text, escaped, its first `revealed` characters and the span `wrong` marked, also where they overlap."""
    ends = sorted({0, min(revealed, len(text)), *wrong, len(text)})
    parts = []
    for start, end in zip(ends, ends[1:]):
        style = ";".join(s for s, on in ((REVEALED, end <= revealed), (WRONG, wrong[0] <= start and end <= wrong[1])) if on)
        piece = html.escape(text[start:end])
        parts.append(f'<span style="{style}">{piece}</span>' if style else piece)
    return "".join(parts)
