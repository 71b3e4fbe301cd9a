"""What a report's page says: its headline, what it is about, its sections.

The headline is the answer in one sentence, computed from what was measured, and never more than that. It names test
accuracies, differences on the same images, and bytes of packed weights. A difference that McNemar's test does not tell
from chance is said to be within chance.

Nothing here imports torch before there is a network: a report on a sweep does without.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qattrain.config import short_name
from qattrain.report.console import counted, percent
from qattrain.report.fit import fit_section, found_sentence
from qattrain.report.page import Section
from qattrain.report.sources import Sweep
from qattrain.report.sweeps import sweep_section

if TYPE_CHECKING:
    from qattrain.report.findings import Finding
    from qattrain.report.sections import Flags

MOST_NAMES = 4  # in the lead
CHANCE = 0.05  # p-values from here on are said to be within chance
ENOUGH = 0.005  # as a fraction: how far below a sweep's best accuracy the setting with the fewest bytes may be
SHARES = {2: "half", 3: "a third of", 4: "a quarter of", 8: "an eighth of", 16: "a sixteenth of", 32: "1/32 of"}


def page_contents(
    findings: Sequence["Finding"], sweeps: Sequence[Sweep], flags: "Flags"
) -> tuple[str, str, list[Section]]:
    """Headline, lead and sections of a report on these sweeps and networks. flags: as in `report.sections`."""
    names = [*(sweep.folder.name for sweep in sweeps), *(finding.name for finding in findings)]
    listed = ", ".join(names[:MOST_NAMES]) + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")
    subjects = _counted_all(findings, sweeps)
    datasets = dict.fromkeys(finding.facts.dataset for finding in findings)
    trained_on = f" on {', '.join(datasets)}" if datasets else ""
    sections = [
        fit_section(sweep, f"search-{n}") if sweep.is_search else sweep_section(sweep, f"sweep-{n}")
        for n, sweep in enumerate(sweeps, start=1)
    ]
    if findings:
        from qattrain.report.sections import network_sections

        sections += network_sections(findings, flags)
    return headline(findings, sweeps), f"Report on {' and '.join(subjects)}{trained_on}: {listed}.", sections


def headline(findings: Sequence["Finding"], sweeps: Sequence[Sweep]) -> str:
    """One sentence on these sweeps and networks."""
    if not findings and len(sweeps) == 1:
        text = found_sentence(sweeps[0].document) if sweeps[0].is_search else _of_sweep(sweeps[0])
    elif sweeps or any(finding.delta is None for finding in findings):  # not on the same images
        text = _of_anything(findings, sweeps)
    elif len(findings) == 1:
        text = _of_one(findings[0])
    else:
        text = _of_several(findings)
    return "Float" + text.removeprefix("float") if text.startswith("float") else text


def _of_one(finding: "Finding") -> str:
    result = finding.evaluation
    images = f"{result.total:,} {short_name(finding.facts.dataset)} test image{'' if result.total == 1 else 's'}"
    return f"{finding.label}: {percent(result.accuracy)} of {images}, {size(finding.weight_bytes)} of weights"


def _of_several(findings: Sequence["Finding"]) -> str:
    """Against the float network or, without one, against the first: the only other one, or the most accurate."""
    from qattrain.report.findings import short_names

    names = dict(zip(findings, short_names(findings), strict=True))
    base = next((finding for finding in findings if finding.label == "float"), findings[0])
    others = [finding for finding in findings if finding is not base]
    # Of several with the same accuracy the smallest.
    best = max(others, key=lambda finding: (finding.evaluation.correct, -finding.weight_bytes))
    text = f"{names[best]}: {percent(best.evaluation.accuracy)}, {_difference(best, base, names[base])}, "
    text += share(best.weight_bytes, base.weight_bytes)
    rest = [finding for finding in others if finding is not best]
    if len(rest) == 1:
        text += f"; {names[rest[0]]}: {percent(rest[0].evaluation.accuracy)}"
    elif rest:
        is_alone = all(finding.evaluation.correct < best.evaluation.correct for finding in rest)
        kind = f"{len(others)} networks beside {names[base]}"
        text += f"; the most accurate of {kind}" if is_alone else f"; none of {kind} is more accurate"
    return text


def _difference(finding: "Finding", base: "Finding", name: str) -> str:
    """`0.43 points below float`, with a remark if chance alone may explain it."""
    from qattrain.evaluation.metrics import mcnemar_p

    points = 100 * (finding.evaluation.correct - base.evaluation.correct) / base.evaluation.total
    if points == 0:
        return f"as many images right as {name}"
    amount = f"{abs(points):.2f}" if abs(points) >= 0.005 else "less than 0.01"
    text = f"{amount} points {'below' if points < 0 else 'above'} {name}"
    return text + (" (within chance)" if mcnemar_p(base.correct, finding.correct) >= CHANCE else "")


def share(part: float, whole: float) -> str:
    """How many weight bytes one network has beside another one: `an eighth of the weight bytes`."""
    if part == whole:
        return "as many weight bytes"
    if part > whole:
        factor = part / whole
        return "twice the weight bytes" if factor == 2 else f"{factor:.3g} times the weight bytes"
    for number, words in SHARES.items():
        if abs(part * number / whole - 1) < 0.002:  # bytes are rounded up layer by layer
            return f"{words} the weight bytes"
    return f"{100 * part / whole:.2g} % of the weight bytes"


def size(count: int) -> str:
    """215250 -> `215 kB`; a kB is 1000 bytes."""
    for unit, factor in (("MB", 1_000_000), ("kB", 1_000)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}" if count < 1000 * factor else f"{count / factor:,.0f} {unit}"
    return counted(count, "byte")


def _of_sweep(sweep: Sweep) -> str:
    """The setting with the fewest bytes among those nearly as accurate as the best."""
    groups: list[dict[str, Any]] = sweep.document["groups"]
    if not groups:
        return f"Sweep {sweep.folder.name}: no run has finished"
    if len({group["dataset"] for group in groups}) > 1:
        return _of_anything([], [sweep])
    best = max(group["accuracy_mean"] for group in groups)
    found = min(
        (group for group in groups if group["accuracy_mean"] >= best - ENOUGH),
        key=lambda group: (group["weight_bytes"], -group["accuracy_mean"]),
    )
    text = f"{_setting(found)}: {percent(found['accuracy_mean'])} of {short_name(found['dataset'])}"
    text += f", mean of {counted(found['n'], 'seed')}" if found["n"] > 1 else ""
    if len(groups) == 1:
        return f"{text}, {size(found['weight_bytes'])} of weights"
    floats = [group for group in groups if group["method"] == "fp32" and group["model"] == found["model"]]
    if floats and found["method"] != "fp32":
        text += f", {share(found['weight_bytes'], floats[0]['weight_bytes'])} of float"
    smallest = "the fewest weight bytes" if floats or len({group["weight_bytes"] for group in groups}) > 1 else "one"
    if found["accuracy_mean"] == best:
        return f"{text}, the best of {len(groups)} settings"
    return f"{text}; {smallest} within half a point of the best of {len(groups)} settings ({percent(best)})"


def _setting(group: dict[str, Any]) -> str:
    """`4-bit QAT (lsq)`, as the labels of networks."""
    if group["method"] == "fp32":
        return "float"
    bits = "/".join(str(bits) for bits in dict.fromkeys((group["bits"], group["act_bits"])))
    return f"{bits}-bit {group['method'].upper()} ({group['quantizer']})"


def _counted_all(findings: Sequence["Finding"], sweeps: Sequence[Sweep]) -> list[str]:
    """`2 sweeps`, `1 search`, `3 networks`: how much there is of each kind."""
    searches = sum(sweep.is_search for sweep in sweeps)
    words = {"sweep": "sweeps", "search": "searches", "network": "networks"}
    counts = zip((len(sweeps) - searches, searches, len(findings)), words.items(), strict=True)
    return [counted(count, *noun) for count, noun in counts if count]


def _of_anything(findings: Sequence["Finding"], sweeps: Sequence[Sweep]) -> str:
    """Only how much there is, and the range of all accuracies."""
    groups = [group for sweep in sweeps for group in sweep.groups]
    what = " and ".join(_counted_all(findings, sweeps))
    datasets = dict.fromkeys([*(group["dataset"] for group in groups), *(f.facts.dataset for f in findings)])
    where = short_name(next(iter(datasets))) if len(datasets) == 1 else counted(len(datasets), "dataset")
    accuracies = [*(group["accuracy_mean"] for group in groups), *(f.evaluation.accuracy for f in findings)]
    if not accuracies:
        return f"{what}: no run has finished"
    low, high = percent(min(accuracies)), percent(max(accuracies))
    return f"{what} on {where}: test accuracy {low if low == high else f'{low} to {high}'}"
