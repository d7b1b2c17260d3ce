"""What the process that compares answers runs. A file of its own, so that this process loads sympy but not torch.

`MathChecker` in answers.py starts and stops the process, and says what the results mean.
"""

import contextlib
import logging
import signal

MEMORY = 4 * 2**30  # bytes of address space for the comparisons: a monstrous number ends in MemoryError, not with the machine's memory


def start() -> None:
    """Make this process ready: to die at once when told to, to stay small and quiet, and to have its imports behind it. Raises where it cannot compare."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a Python handler would wait for the end of 9**9**9
    with contextlib.suppress(ImportError, ValueError, OSError):  # Linux only
        import resource

        with open("/proc/self/statm") as statm:  # what is mapped already: with a caller's imports it can be a lot
            mapped = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns that its own time limit is off: ours is the harder one
    kind, why = compare("\\frac{1}{2}", "0.5")
    if kind != "right":  # better no process than one that takes every answer for wrong
        raise RuntimeError(f"math-verify does not find one half to be 0.5: {kind} {why}")


def compare(answer: str, given: str) -> tuple[str, str]:
    r"""Two contents of a \boxed{...} by math-verify: (kind, why). Kind is "right", "wrong", "unparseable", or "no gold": `answer` was not understood."""
    import math_verify
    import sympy

    try:
        gold = parsed(answer)
        if not gold:
            return "no gold", ""
        target = parsed(given)
        if not target:
            return "unparseable", "math-verify understands nothing of what is in the box"
        # 15 decimals, not the usual 6, which would take 0.0000001 for 0 and 3.142857 for 22/7
        how = {"float_rounding": 15, "timeout_seconds": None, "raise_on_error": True}
        same = math_verify.verify(gold, target, **how)
        if same and isinstance(target[0], sympy.Eq) and target[0].lhs.is_number:  # 6 = 5 is 5 to it
            same = math_verify.verify(target[0].lhs, target[0].rhs, **how)
    except Exception as error:  # sympy fails in every way there is; the verdict says so, and such verdicts are counted
        return "unparseable", f"math-verify failed with {type(error).__name__}"
    return ("right", "") if same else ("wrong", f"the answer is {answer}")


def parsed(content: str) -> list:
    """What math-verify reads in the box, as a list of one sympy expression, or of none."""
    import math_verify

    config = [math_verify.LatexExtractionConfig(boxed_match_priority=0)]
    return math_verify.parse(f"\\boxed{{{content}}}", config, fallback_mode="no_fallback", extraction_mode="first_match", parsing_timeout=None, raise_on_error=True)
