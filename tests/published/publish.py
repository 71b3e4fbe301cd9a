"""Published figures: from run folders into `runs/published/*.json`, from there into the README's tables.

    python tests/published/publish.py sizes RUNS_DIR       export the runs named in SIZES, into sizes.json
    python tests/published/publish.py pictures             run the topics of PICTURES: explain.json and PNGs
    python tests/published/publish.py bench FILE           a full run's `qattrain bench --json` into bench.json
    python tests/published/publish.py render               rewrite the README's tables, and the pictures of results.json

`tests/published/recipes.py` makes results.json.
`tests/published/test_published.py` fails when README and JSON differ.
"""

import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import published_results
from recipes import RESULTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
SIZES_FILE = ROOT / "runs" / "published" / "sizes.json"
EXPLAIN = ROOT / "runs" / "published" / "explain.json"
BENCH = ROOT / "runs" / "published" / "bench.json"
README = ROOT / "README.md"
PICTURES = ("ste", "scale", "ptq")  # of the README's "How it works"
PICTURE_COLORS = 128  # of a palette: small files

# (title, run name); what is exported does not depend on how long it was trained
SIZES = (
    ("lenet, 8 bits", "lsq-8"),
    ("lenet, 4 bits", "lsq-4"),
    ("lenet, 3 bits", "lsq-3"),
    ("lenet, 2 bits", "lsq-2"),
    ("lenet, 1 bit", "lsq-1"),
    ("lenet-nano, weights 2 bits, activations 4", "nano-2-4"),
)


def sizes(runs_dir: Path) -> dict[str, Any]:
    """Bytes of every export of the runs in SIZES, and what the C takes on an Arm Cortex-M0."""
    from qattrain.evaluation.networks import load_network
    from qattrain.export import EXPORTERS
    from qattrain.export.c_compile import EMBEDDED, measure

    rows = []
    for title, name in SIZES:
        network = load_network(runs_dir / name / "last.pt")
        integers = network.integers()
        footprint = measure(EXPORTERS["c"].write(integers, network.facts, "packed"), EMBEDDED[0])
        assert footprint is not None, f"{EMBEDDED[0].compiler} is not installed"
        rows.append(
            {
                "title": title,
                "float_weight_bytes": 4 * sum(layer.codes.size for layer in integers.layers),
                "packed_bytes": len(EXPORTERS["packed"].write(integers, network.facts, "")["model.safetensors"]),
                "onnx_bytes": len(EXPORTERS["onnx"].write(integers, network.facts, "")["model.onnx"]),
                "c_flash_bytes": footprint.flash_bytes,
                "c_ram_bytes": footprint.ram_bytes,
            }
        )
    note = (
        "runs: qattrain train --bits N --epochs 1 --limit-train 6000 (nano: --model lenet-nano --bits 2 --act-bits 4); "
        "C: layout packed, arm-none-eabi-gcc -mcpu=cortex-m0 -mthumb -Os, linked with libgcc alone"
    )
    return {"note": note, "rows": rows}


def size_table(document: dict[str, Any]) -> str:
    """The README's table, Markdown."""
    columns = ("float_weight_bytes", "packed_bytes", "onnx_bytes", "c_flash_bytes", "c_ram_bytes")
    lines = ["| network | float weights | packed file | ONNX | C: flash | C: RAM |", "|---|---|---|---|---|---|"]
    lines += [f"| {row['title']} | " + " | ".join(f"{row[c]:,}" for c in columns) + " |" for row in document["rows"]]
    return "\n".join(lines)


def pictures() -> dict[str, Any]:
    """Writes one small PNG a topic beside EXPLAIN; returns what the README says of them."""
    from qattrain.explain import TOPICS, Lab, scale

    found = {topic: TOPICS[topic].explain(Lab(ROOT, "digits")) for topic in PICTURES}
    for topic, explanation in found.items():
        save_small(topic, explanation.figure)
    courses = found["scale"].numbers["courses"]
    ptq = found["ptq"].numbers
    return {
        "note": "qattrain explain TOPIC --dataset digits, one thread, seed 0",
        "data": ptq["data"],
        "ste": found["ste"].numbers,
        "scale": [
            {
                "form": form,
                "test_accuracy": [c["test_accuracy"][-1] for c in courses if c["form"] == form],
                "weight_size": next(c["weight_size"][-1] for c in courses if c["form"] == form),
            }
            for form in scale.FORMS
        ],
        "scale_columns": ["SGD", "Adam", "SGD + batch norm", "Adam + batch norm"],
        "float": ptq["float"],
        "ptq": ptq["ptq"],
        "qat": ptq["qat"],
    }


def save_small(name: str, figure: "Figure") -> None:
    """The figure as a PNG of few colors, beside the JSON."""
    from PIL import Image

    from qattrain.report.drawing import png

    image = Image.open(io.BytesIO(png(figure))).convert("RGB").quantize(PICTURE_COLORS, dither=0)
    image.save(EXPLAIN.parent / f"{name}.png", optimize=True)


def explain_tables(document: dict[str, Any]) -> dict[str, str]:
    """The README's tables of "How it works" by name, Markdown."""
    ste = document["ste"]["training"]
    lines = ["| backward of the rounding | " + " | ".join(ste) + " |", "|---|" + "---|" * len(ste)]
    lines += [
        f"| {title} | " + " | ".join(f"{100 * found[key]:.1f} %" for found in ste.values()) + " |"
        for title, key in (("test accuracy", "test_accuracy"), ("convolution codes that moved", "codes_moved"))
    ]
    tables = {"ste": "\n".join(lines)}
    lines = ["| layer | " + " | ".join(document["scale_columns"]) + " | mean \\|w\\|, SGD |", "|---|" + "---|" * 5]
    for row in document["scale"]:
        accuracies = " | ".join(f"{100 * accuracy:.1f} %" for accuracy in row["test_accuracy"])
        lines.append(f"| {row['form']} | {accuracies} | {row['weight_size']:.3g} |")
    tables["scale"] = "\n".join(lines)
    bits = list(document["qat"])
    lines = ["| bits | " + " | ".join(bits) + " |", "|---|" + "---|" * len(bits)]
    for name, key in (("rounded after training (PTQ)", "ptq"), ("trained with rounding (QAT)", "qat")):
        lines.append(f"| {name} | " + " | ".join(f"{100 * document[key][b]:.1f} %" for b in bits) + " |")
    return tables | {"ptq": "\n".join(lines)}


def rendered(text: str) -> str:
    """The README with its tables as the JSON has them."""
    for name, table in published_results.tables(json.loads(RESULTS.read_text())).items():
        text = with_table(text, name, table)
    text = with_table(text, "sizes", size_table(json.loads(SIZES_FILE.read_text())))
    for name, table in explain_tables(json.loads(EXPLAIN.read_text())).items():
        text = with_table(text, name, table)
    for name, table in bench_tables(json.loads(BENCH.read_text())).items():
        text = with_table(text, name, table)
    return text


def benchmark(result: dict[str, Any]) -> dict[str, Any]:
    """The document of a result of `qattrain bench --json`: nothing missing, nothing hurried, on an idle machine."""
    from qattrain.benchmark.rounds import FULL

    assert (result["repeats"], result["train_images"]) == (FULL.repeats, FULL.train_images), "not the default run"
    missing = [row["name"] for row in result["training"] + result["inference"] if row["missing"]]
    assert not missing, missing
    assert result["busy"] is False, result["other_processes_cores"]
    return {"command": "qattrain bench --json", **result}


def bench_tables(document: dict[str, Any]) -> dict[str, str]:
    """The README's tables of "Performance" by name, Markdown; the first with a line on how it was measured."""
    machine, threads = document["environment"], document["threads"]["training"]
    lines = [
        f"`{document['command']}`: medians of {document['repeats']}, {document['train_images']:,} images each; "
        f"{machine['cpu']}, {machine['cpu_cores']} cores, {threads} threads, our training in {document['precision']}, "
        f"torch {machine['versions']['torch']}; other processes used {document['other_processes_cores']['median']:.2f} "
        f"cores; {document['seconds']:.0f} s in all.",
        "",
        "| training | | images/s | lowest to highest | times `plain` | times `float` | eager | times `float` |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = {row["name"]: row for row in document["training"]}
    for name, row in rows.items():
        if not name.endswith("-eager"):
            eager = rows.get(f"{name}-eager")
            what = f"`{row['what']}`" if row["what"].startswith("qattrain") else row["what"]
            span = f"{min(row['repeats']):,.0f} to {max(row['repeats']):,.0f}"
            ratios = [f"{row['ratios'][reference]:.2f}" for reference in ("plain", "float")]
            beside = [f"{eager['images_per_second']:,.0f}", f"{eager['ratios']['float']:.2f}"] if eager else ["", ""]
            cells = [f"`{name}`", what, f"{row['images_per_second']:,.0f}", span, *ratios, *beside]
            lines.append("| " + " | ".join(cells) + " |")
    tables = {"performance": "\n".join(lines)}
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in document["inference"]:
        by_name.setdefault(row["name"], []).append(row)
    columns = [f"batch {batch:,} | times `ort-fp32` | times `ort-int8`" for batch in (1, 1000)]
    lines = ["| inference | images/s: | " + " | ".join(columns) + " |", "|---|---|" + "---|" * 6]
    for name, batches in by_name.items():
        cells = [f"`{name}`", batches[0]["what"]]
        for row in batches:
            cells += [f"{row['images_per_second']:,.0f}", *(f"{ratio:.2f}" for ratio in row["ratios"].values())]
        lines.append("| " + " | ".join(cells) + " |")
    return tables | {"inference": "\n".join(lines)}


def with_table(text: str, name: str, table: str) -> str:
    """`text` with what stands between `<!-- name -->` and `<!-- /name -->` replaced by `table`."""
    start, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
    before, _, rest = text.partition(start)
    _, marker, after = rest.partition(end)
    assert marker, f"README.md has no {start.strip()} ... {end.strip()}"
    return before + start + table + end + after


if __name__ == "__main__":
    if sys.argv[1] == "sizes":
        SIZES_FILE.write_text(json.dumps(sizes(Path(sys.argv[2])), indent=1) + "\n")
    if sys.argv[1] == "bench":
        BENCH.write_text(json.dumps(benchmark(json.loads(Path(sys.argv[2]).read_text())), indent=1) + "\n")
    if sys.argv[1] == "pictures":
        EXPLAIN.write_text(json.dumps(pictures(), indent=1) + "\n")
    if sys.argv[1] == "render":
        for name, draw in published_results.PICTURES.items():
            save_small(name, draw(json.loads(RESULTS.read_text())))
    README.write_text(rendered(README.read_text()))
