"""Networks beside each other on a report's page: where they disagree, a row for every layer, and each one's errors."""

from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest

import torch

from qattrain.evaluation.metrics import channels_last
from qattrain.report.console import UNKNOWN, Table, counted
from qattrain.report.filters import filter_tiles, known_kernels
from qattrain.report.findings import Finding, short_names
from qattrain.report.inspection import (
    THINGS,
    confusion_table,
    hardest_tiles,
    histogram_chart,
    image_tiles,
)
from qattrain.report.page import Block, Charts, ErrorTable, Section, Tables, Text, Tile
from qattrain.report.tables import COST_NOTE, layer_table

MOST_SHOWN = 24  # images on which the networks disagree
MOST_PATTERNS = 12  # rows of the table of who is right
MOST_NAMED = 4  # networks whose answers are each named below an image
LAYER_COLUMNS = ("bits", "codes used", "SQNR (dB)", "weight bytes")
MORE_LAYER_COLUMNS = ("scale", "entropy (bits)", "clipped", "total bytes", "MACs", "sum bits")
RIGHT, WRONG = "right", "wrong"
CHECK = "\u00a0✓"  # after a right answer, on the same line


def disagreement_blocks(findings: Sequence[Finding]) -> list[Block]:
    """The images on which not all networks give the same answer. All were evaluated on the same ones."""
    names, test = short_names(findings), findings[0].test
    answers = torch.stack([finding.evaluation.predictions for finding in findings])  # (networks, N)
    differ = (answers != answers[0]).any(0).nonzero().flatten().tolist()
    if not differ:
        return [Text(f"They give the same answer on all {counted(len(test.labels), 'test image')}.")]
    is_right = (answers == test.labels).T.tolist()  # (N, networks)
    groups: dict[tuple[bool, ...], list[int]] = {}
    for index in differ:
        groups.setdefault(tuple(is_right[index]), []).append(index)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    rows = [
        [f"{len(images):,}", *(RIGHT if one else WRONG for one in pattern)]
        for pattern, images in ordered[:MOST_PATTERNS]
    ]
    title = f"Who is right on the {counted(len(differ), 'image')} with different answers, of {len(test.labels):,}"
    if len(ordered) > MOST_PATTERNS:
        title += f"; the {MOST_PATTERNS} most frequent of {len(ordered)} patterns"
    # Some of every pattern: the first image of each, then the second of each, and so on.
    mixed = [index for layer in zip_longest(*groups.values()) for index in layer if index is not None]
    shown, classes = mixed[:MOST_SHOWN], findings[0].facts.class_names
    tiles, cells = [], []
    for index in shown:
        given = [classes[answer] for answer in answers[:, index].tolist()]
        true = classes[int(test.labels[index])]
        cells.append([str(index), true, *given])
        lines = [f"true {true}", *_answer_lines(names, given, true)]
        tiles.append((channels_last(test.images[index]), Tile("", f"Test image {index}: {', '.join(lines)}", lines)))
    caption = (
        f"{len(shown):,} of the {counted(len(differ), 'image')}, some of every row of the table above; ✓ is right."
    )
    table = Table("Answers that differ", ["test image", "true", *names], cells, ["true", *names])
    return [Table(title, ["images", *names], rows, names), image_tiles("Different answers", caption, tiles, table)]


def _answer_lines(names: Sequence[str], given: Sequence[str], true: str) -> list[str]:
    """Each network's answer; of many networks how many give each answer."""
    if len(names) <= MOST_NAMED:
        pairs = list(zip(names, given, strict=True))
        return [f"{name}: {answer}{CHECK if answer == true else ''}" for name, answer in pairs]
    counts = Counter(given).most_common()
    return [f"{answer}{CHECK if answer == true else ''}: {counted(count, 'network')}" for answer, count in counts]


def layer_parts(findings: Sequence[Finding]) -> list[Section]:
    """A row for every layer and a column for every network: numbers, histograms, first-layer filters."""
    names = short_names(findings)
    notes = [f"{name}: {note}." for name, f in zip(names, findings, strict=True) for note in f.inspection.notes]
    numbers: list[Block] = [
        *map(Text, notes),
        Tables(_layer_tables(findings, LAYER_COLUMNS)),
        Tables(_layer_tables(findings, MORE_LAYER_COLUMNS), f"More tables: {', '.join(MORE_LAYER_COLUMNS)}"),
        Text(f"In these tables: {COST_NOTE}."),
    ]
    charts: dict[tuple[str, str], Charts] = {}
    for name, finding in zip(names, findings, strict=True):
        for histogram in finding.inspection.histograms:
            key, chart = (histogram.kind, histogram.layer), histogram_chart(histogram)
            table = chart.table and Table(f"{chart.title}, {name}", chart.table.columns, chart.table.rows)
            named = chart._replace(title=f"{chart.title}, {name}", table=table)
            charts[key] = Charts([*(charts[key].charts if key in charts else ()), named])
    parts = [Section("layer-numbers", "Every layer", numbers)]
    for kind, what in THINGS.items():
        if of_kind := [block for (one, _), block in charts.items() if one == kind]:
            parts.append(Section(f"layer-{kind}s", f"{what}, layer by layer", of_kind))
    filters = [
        tiles._replace(title=f"{tiles.title}, {name}")
        for name, finding in zip(names, findings, strict=True)
        for tiles in map(filter_tiles, known_kernels(finding.inspection.filters))
    ]
    return [*parts, *([Section("layer-filters", "First-layer filters", filters)] if filters else [])]


def _layer_tables(findings: Sequence[Finding], columns: Sequence[str]) -> list[Table]:
    """For each of these columns of `layer_table` a table of its own, if anything is known."""
    names, tables = short_names(findings), []
    for column in columns:
        cells = [
            {row[0]: row[1] for row in layer_table(finding.inspection.layers, ("layer", column)).rows}
            for finding in findings
        ]
        layers = dict.fromkeys(layer for known in cells for layer in known)
        rows = [[layer, *(known.get(layer, UNKNOWN) for known in cells)] for layer in layers]
        rows = [row for row in rows if set(row[1:]) != {UNKNOWN}]
        key = column.lower().replace(" ", "_")
        if key in findings[0].inspection.totals:
            rows.append(["total", *(f"{finding.inspection.totals[key]:,}" for finding in findings)])
        if rows:
            tables.append(Table(column[0].upper() + column[1:], ["layer", *names], rows))
    return tables


def error_blocks(finding: Finding) -> list[Block]:
    """The confusion matrix with images of its cells, and the hardest images."""
    confusion = finding.inspection.confusion
    if confusion is None:
        return []
    table = confusion_table(confusion)
    if not finding.wrong:
        return [table]
    numbers = {name: number for number, name in enumerate(confusion.class_names)}
    ordered = sorted(finding.wrong, key=lambda hard: (numbers[hard.true], numbers[hard.predicted]))
    tiles = hardest_tiles(ordered)
    kept, total = len(ordered), confusion.errors
    caption = f"All {counted(total, 'wrong answer')}, by true and predicted class."
    if kept < total:
        caption = f"{kept:,} of {counted(total, 'wrong answer')}, some of every kind, by true and predicted class; the "
        caption += f"other {total - kept:,} are not on this page."
    images = tiles._replace(title="Wrong answers", caption=caption)
    cells = [(numbers[hard.true], numbers[hard.predicted]) for hard in ordered]
    return [ErrorTable(table, images, cells), hardest_tiles(finding.inspection.hardest)]
