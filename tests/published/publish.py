"""Published figures: from run folders into `runs/published/*.json`, from there into the tables of the Markdown pages.

    python tests/published/publish.py sizes RUNS_DIR       export the runs named in SIZES: sizes.json
    python tests/published/publish.py devices RUNS_DIR     the runs named in DEVICES on three cores: devices.json
    python tests/published/publish.py pictures             run the topics of PICTURES: explain.json and its pictures
    python tests/published/publish.py bench FILE           the output of a full `qattrain bench --json`: bench.json
    python tests/published/publish.py searches RUNS_DIR    the searches in it, with all candidates: searches.json
    python tests/published/publish.py render               rewrite the pictures of results.json

All of them rewrite the tables of PAGES. Every picture is an SVG for light and one for dark paper. A table is what
stands between `<!-- name -->` and `<!-- /name -->` in one of PAGES; the text around it is written by hand. `recipes.py`
makes results.json. `test_published.py` fails when a page and the JSON differ.
"""

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import published_results
from published_results import DEVICES_FILE, markdown
from recipes import ENVIRONMENT, RESULTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "runs" / "published"
SIZES_FILE = PUBLISHED / "sizes.json"
EXPLAIN = PUBLISHED / "explain.json"
BENCH = PUBLISHED / "bench.json"
SEARCHES = PUBLISHED / "searches.json"
README = ROOT / "README.md"
PAGES = (README, ROOT / "configs" / "README.md", *sorted(PUBLISHED.glob("*.md")))
PICTURES = ("ste", "scale", "ptq", "batchnorm", "granularity")  # of the README's "How it works" and of explain.md
# The contenders in the README's short table; benchmark.md has all.
SPEED = {
    "plain": "PyTorch, float32",
    "float": "`--bits 32`",
    "lsq-w4a4": "`--bits 4`",
    "brevitas-w4a4": "Brevitas, 4 bits",
    "brevitas-w4a4-raw-tuned": "Brevitas, tuned, raw image",
}

# (title, run name); the sizes do not depend on how long the network was trained
SIZES = (
    ("lenet, 1 bit", "lsq-1"),
    ("lenet, 2 bits", "lsq-2"),
    ("lenet, 3 bits", "lsq-3"),
    ("lenet, 4 bits", "lsq-4"),
    ("lenet, 8 bits", "lsq-8"),
    ("lenet-nano, weights 2 bits, activations 4", "nano-2-4"),
)


# Runs on microcontrollers: seed 0 of recipes, and two presets after one epoch; their cost hardly depends on the weights
DEVICES = ("b500", "b1100-m60", "b1600", "b3200-m60", "b3200-m420", "b11000-m240", "ds-cnn", "nano-4-4")
NAMES = {"b3200-m60": "pico", "nano-4-4": "lenet-nano"}


def devices(runs_dir: Path) -> dict[str, Any]:
    """What `qattrain bench --device` says of the runs in DEVICES, on every core."""
    from qattrain.export.c_devices import DEVICES as CORES

    runs = [str(runs_dir / name / "last.pt") for name in DEVICES]
    document: dict[str, Any] = {"command": "qattrain bench --device CORE CKPT... --json", "cores": {}}
    for core in CORES:
        command = [sys.executable, "-m", "qattrain", "bench", "--device", core, *runs, "--json"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        result = json.loads(done.stdout)
        for row, name in zip(result["networks"], [name for name in DEVICES for _ in range(2)], strict=True):
            row["checkpoint"] = name
        document["cores"][core] = result
    return document


def device_table(document: dict[str, Any]) -> str:
    """A row per network and layout: instructions for a multiply-accumulate on every core, the rest on a Cortex-M0."""
    cores = document["cores"]
    lines = []
    for rows in zip(*(cores[core]["networks"] for core in cores), strict=True):
        first = rows[0]
        assert {(row["checkpoint"], row["layout"]) for row in rows} == {(first["checkpoint"], first["layout"])}
        lines.append(
            [
                NAMES.get(first["checkpoint"], first["checkpoint"]),
                first["layout"],
                *(f"{row['instructions_per_mac']:.2f}" for row in rows),
                f"{first['milliseconds_low']:.1f} to {first['milliseconds_high']:.0f}",
                *(f"{first[f'{part}_bytes']:,}" for part in ("flash", "ram", "stack")),
            ]
        )
    header = ["network", "layout", *(f"instructions a MAC, {core}" for core in cores)]
    return markdown([*header, "Cortex-M0: ms at 48 MHz", "flash", "RAM", "stack"], lines)


def sizes(runs_dir: Path) -> dict[str, Any]:
    """Bytes of every export of the runs in SIZES, and flash and RAM of the C on an Arm Cortex-M0."""
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
                "float_weight_bytes": 4 * sum(layer.codes.size for layer in integers.products),
                "packed_bytes": len(EXPORTERS["packed"].write(integers, network.facts, "")["model.safetensors"]),
                "onnx_bytes": len(EXPORTERS["onnx"].write(integers, network.facts, "")["model.onnx"]),
                "c_flash_bytes": footprint.flash_bytes,
                "c_ram_bytes": footprint.ram_bytes,
            }
        )
    note = (
        "runs: qattrain train --bits N --epochs 1 --limit-train 6000 (nano: --model lenet-nano --bits 2 --act-bits 4); "
        "C: layout packed, arm-none-eabi-gcc -mcpu=cortex-m0 -mthumb -O2, linked with libgcc alone"
    )
    return {"note": note, "rows": rows}


def size_table(document: dict[str, Any]) -> str:
    """Bytes of every export."""
    columns = ("float_weight_bytes", "packed_bytes", "onnx_bytes", "c_flash_bytes", "c_ram_bytes")
    return markdown(
        ["network", "float weights", "packed file", "ONNX", "C: flash", "C: RAM"],
        [[row["title"], *(f"{row[column]:,}" for column in columns)] for row in document["rows"]],
    )


def pictures() -> dict[str, Any]:
    """Write the pictures of each topic beside EXPLAIN; return the numbers of their tables."""
    from qattrain.explain import TOPICS, Lab, scale

    found = {topic: TOPICS[topic].explain(Lab(ROOT, "digits")) for topic in PICTURES}
    for topic, explanation in found.items():
        save(topic, explanation.figure)
    courses = found["scale"].numbers["courses"]
    ptq, norm, scales = (found[topic].numbers for topic in ("ptq", "batchnorm", "granularity"))
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
        "batchnorm": {key: value for key, value in norm.items() if key != "data"},
        "granularity": {
            name: {key: value for key, value in scales[name].items() if key != "ranges"} for name in scales["networks"]
        },
    }


def searches(runs_dir: Path) -> list[dict[str, Any]]:
    """The finished searches in the folder: each `fit.json`, with its seed and the environment of its winner.

    Where a random search was won by one of its starts, which it did not sample, NAME-sampled is a sweep of the best
    one that it did, trained in the same way: an entry of its own, with that candidate alone.
    """
    from qattrain.experiments.kinds import FIT_KIND, SWEEP_KIND
    from qattrain.files import records

    found = []
    for path in sorted(runs_dir.glob("*/fit.json")):
        document = records.read(path, FIT_KIND)
        assert document is not None, path
        first = document["finals"][0]
        recorded = json.loads((path.parent / first["run_dir"] / "config.json").read_text())
        environment = {key: recorded["environment"][key] for key in ENVIRONMENT}
        found.append(document | {"seed": first["seed"], "environment": environment})
        starts, sampled = document["rows"][: len(document["families"])], document["rows"][len(document["families"]) :]
        if document["sampler"] == "random" and document["winner"] in [row["run_dir"] for row in starts]:
            best = min(sampled, key=lambda row: (-row["epochs"], row["loss"] or math.inf))
            sweep = records.read(runs_dir / f"{document['name']}-sampled" / "sweep.json", SWEEP_KIND)
            assert sweep is not None, document["name"]
            (group,) = sweep["groups"]
            assert group["model"] == best["model"], group
            own = {"finals": sweep["rows"], "accuracy_mean": group["accuracy_mean"]}
            own |= {"accuracy_std": group["accuracy_std"], "rows": [best], "winner": best["run_dir"]}
            found.append(found[-1] | own | {"sampler": "random, without the starts"})
    return sorted(found, key=lambda one: (one["seed"], one["sampler"]))


def search_table(documents: list[dict[str, Any]]) -> str:
    """A row for each search: its winner, its loss on held-out images, and what it reached on the test images."""
    from qattrain.report.fit import bits_words, winner_of

    lines = []
    for document in documents:
        winner = winner_of(document)
        accuracies = ", ".join(f"{100 * row['accuracy']:.2f}" for row in document["finals"])
        lines.append(
            [
                str(document["seed"]),
                document["sampler"],
                f"{winner['loss']:.4f}",
                f"{100 * document['accuracy_mean']:.2f} %",
                f"{100 * document['accuracy_std']:.2f}",
                accuracies,
                f"`{winner['model']}`, {bits_words(winner)}",
                f"{winner['weight_bytes']:,}",
                f"{winner['macs']:,}",
            ]
        )
    header = ["seed", "sampler", "held-out loss", "test mean", "deviation", "three seeds"]
    return markdown([*header, "winner, bits of weights/activations", "bytes", "MACs"], lines)


def save(name: str, figure: "Figure") -> None:
    """Write the figure beside the JSON as `name.svg`, and as `name-dark.svg` for dark paper."""
    from qattrain.report.drawing import on_dark_paper, svg

    drawn = lean(svg(figure))
    (PUBLISHED / f"{name}.svg").write_bytes(drawn)
    (PUBLISHED / f"{name}-dark.svg").write_bytes(on_dark_paper(drawn))


def lean(drawing: bytes) -> bytes:
    """The same SVG in fewer bytes: hundredths of a point, no indentation, no metadata, nothing said twice."""
    drawing = re.sub(rb"<metadata>.*?</metadata>", b"", drawing, flags=re.S)
    drawing = re.sub(rb"\s*\n\s*", b"\n", drawing).replace(b"DejaVuSans", b"D")
    drawing = re.sub(rb' transform="translate\(([\d.]+) 0\)"', rb' x="\1"', drawing)  # of letters
    drawing = re.sub(rb' id="[a-z.]+(?:2d)?_\d+"', b"", drawing)  # of groups, to which nothing refers
    # A marker has its stroke from its definition, every letter is 1/64 of its outline.
    drawing = re.sub(rb'(<use xlink:href="#m[^>]*?)(?:; )?stroke: [^"]*"', rb'\1"', drawing).replace(b' style=""', b"")
    return re.sub(rb"(?<!\(0)(\.\d\d)\d+(?=[ \")\n])", rb"\1", drawing)


def explain_tables(document: dict[str, Any]) -> dict[str, str]:
    """The tables of the questions, by name."""

    def percents(title: str, fractions: Iterable[float]) -> list[str]:
        return [title, *(f"{100 * fraction:.1f} %" for fraction in fractions)]

    ste = document["ste"]["training"]
    bits = sorted(document["qat"], key=int)
    norm, scales = document["batchnorm"]["accuracy"], document["granularity"]
    widths = sorted(norm["with"], key=int)
    return {
        "ste": markdown(
            ["backward of the rounding", *ste],
            [
                percents("test accuracy", (found["test_accuracy"] for found in ste.values())),
                percents("convolution codes that changed", (found["codes_moved"] for found in ste.values())),
            ],
        ),
        "scale": markdown(
            ["layer", *document["scale_columns"], "mean \\|w\\|, SGD"],
            [[*percents(row["form"], row["test_accuracy"]), f"{row['weight_size']:.3g}"] for row in document["scale"]],
        ),
        "ptq": markdown(
            ["bits", *bits],
            [
                percents("post-training quantization (PTQ)", (document["ptq"][b] for b in bits)),
                percents("quantization-aware training (QAT)", (document["qat"][b] for b in bits)),
            ],
        ),
        "batchnorm": markdown(
            ["bits", *widths],
            [percents(f"{kind} batch norm", (norm[kind][b] for b in widths)) for kind in ("without", "with")],
        ),
        "granularity": markdown(
            ["network", "method", *(f"{b} bits, {kind}" for b in widths for kind in ("layer", "channel"))],
            [
                [name, *percents(method.upper(), (one[k][b][method] for b in widths for k in ("layer", "channel")))]
                for name, one in scales.items()
                for method in ("ptq", "qat")
            ],
        ),
    }


def tables() -> dict[str, str]:
    """Every table by name, Markdown, as the JSON has it."""
    return {
        **published_results.tables(json.loads(RESULTS.read_text())),
        "sizes": size_table(json.loads(SIZES_FILE.read_text())),
        "devices": device_table(json.loads(DEVICES_FILE.read_text())),
        "searches": search_table(json.loads(SEARCHES.read_text())),
        **explain_tables(json.loads(EXPLAIN.read_text())),
        **bench_tables(json.loads(BENCH.read_text())),
    }


def rendered() -> dict[Path, str]:
    """Every page with its tables as the JSON has them; each table stands in exactly one place."""
    table, placed = tables(), []

    def fill(mark: re.Match[str]) -> str:
        placed.append(mark[1])
        return f"<!-- {mark[1]} -->\n{table[mark[1]]}\n<!-- /{mark[1]} -->"

    pages = {path: re.sub(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", fill, path.read_text(), flags=re.S) for path in PAGES}
    assert sorted(placed) == sorted(table), f"in the pages: {sorted(placed)}, in the JSON: {sorted(table)}"
    return pages


def benchmark(result: dict[str, Any]) -> dict[str, Any]:
    """The document of `qattrain bench --json`: refused unless complete, with all repeats, on an idle machine."""
    from qattrain.benchmark.rounds import FULL

    assert (result["repeats"], result["train_images"]) == (FULL.repeats, FULL.train_images), "not the default run"
    missing = [row["name"] for row in result["training"] + result["inference"] if row["missing"]]
    assert not missing, missing
    assert result["busy"] is False, result["other_processes_cores"]
    return {"command": "qattrain bench --json", **result}


def bench_tables(document: dict[str, Any]) -> dict[str, str]:
    """The tables of the benchmark, by name."""
    training = {row["name"]: row for row in document["training"]}
    speed_header = [f"training on {document['environment']['cpu_cores']} cores", *SPEED.values()]
    return {
        "performance": _training_table(document, training),
        "inference": _inference_table(document["inference"]),
        "speed": markdown(speed_header, [["images/s", *(_speed(training[name]) for name in SPEED)]]),
    }


def _training_table(document: dict[str, Any], rows: dict[str, dict[str, Any]]) -> str:
    """A row per contender, below a line on how all were measured."""
    machine, threads = document["environment"], document["threads"]["training"]
    measured = (
        f"`{document['command']}`: medians of {document['repeats']}, {document['train_images']:,} images each; "
        f"{machine['cpu']}, {machine['cpu_cores']} cores, {threads} threads, our training in {document['precision']}, "
        f"torch {machine['versions']['torch']}; other processes used {document['other_processes_cores']['median']:.2f} "
        f"cores; {document['seconds']:.0f} s in total."
    )
    plain, own = "times `plain`", "times `float`"
    lines = []
    for name, row in rows.items():
        if not name.endswith("-eager"):
            eager = rows.get(f"{name}-eager")
            span = f"{min(row['repeats']):,.0f} to {max(row['repeats']):,.0f}"
            ratios = [f"{row['ratios'][reference]:.2f}" for reference in ("plain", "float")]
            beside = [_speed(eager), f"{eager['ratios']['float']:.2f}"] if eager else ["", ""]
            lines.append([f"`{name}`", _what(row), _speed(row), span, *ratios, *beside])
    table = markdown(["training", "", "images/s", "lowest to highest", plain, own, "eager", own], lines)
    return f"{measured}\n\n{table}"


def _inference_table(rows: list[dict[str, Any]]) -> str:
    """A row per contender, its batch sizes side by side."""
    header = ["inference", ""]
    for batch in (1, 1000):
        header += [f"images/s, batch {batch:,}", "times `ort-fp32`", "times `ort-int8`"]
    lines: dict[str, list[str]] = {}
    for row in rows:
        cells = lines.setdefault(row["name"], [f"`{row['name']}`", _what(row)])
        cells += [_speed(row), *(f"{ratio:.2f}" for ratio in row["ratios"].values())]
    return markdown(header, list(lines.values()))


def _what(row: dict[str, Any]) -> str:
    """What a contender is; a command line in code quotes."""
    what: str = row["what"]
    return f"`{what}`" if what.startswith("qattrain") else what


def _speed(row: dict[str, Any]) -> str:
    return f"{row['images_per_second']:,.0f}"


if __name__ == "__main__":
    if sys.argv[1] == "sizes":
        SIZES_FILE.write_text(json.dumps(sizes(Path(sys.argv[2])), indent=1) + "\n")
    elif sys.argv[1] == "devices":
        DEVICES_FILE.write_text(json.dumps(devices(Path(sys.argv[2])), indent=1) + "\n")
    elif sys.argv[1] == "bench":
        BENCH.write_text(json.dumps(benchmark(json.loads(Path(sys.argv[2]).read_text())), indent=1) + "\n")
    elif sys.argv[1] == "searches":  # a line each, as short as it goes
        lines = [json.dumps(one, separators=(",", ":")) for one in searches(Path(sys.argv[2]))]
        SEARCHES.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    elif sys.argv[1] == "pictures":
        EXPLAIN.write_text(json.dumps(pictures(), indent=1) + "\n")
    elif sys.argv[1] == "render":
        for name, draw in published_results.PICTURES.items():
            save(name, draw(json.loads(RESULTS.read_text())))
    else:
        sys.exit(f"{sys.argv[1]!r}: allowed: sizes, devices, pictures, bench, searches, render")
    for path, text in rendered().items():
        path.write_text(text)
