"""What a program around the exported C needs: symbols of its own, memory of its own, C++."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from integer_models import SMALL, random_images, random_model

from qattrain.errors import ConfigError
from qattrain.export import EXPORTERS, c_export
from qattrain.export.base import Files, settled_prefix
from qattrain.export.c_export import C_EXPORTER, c_exporter
from qattrain.integer import IntegerModel, ModelFacts

LAYOUTS = C_EXPORTER.layouts
IMAGES = random_images(6)
STRICT = ("-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror")
MODELS = {"cats": random_model(widths=SMALL, seed=1), "Dogs_2": random_model(widths=(7, 9, 40), classes=3, seed=2)}


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c_export, "measure", lambda *_: None)


def export(model: IntegerModel, layout: str, prefix: str | None = None) -> Files:
    names = tuple(f"qattrain_{label} in model.c" for label in range(model.classes))  # which no prefix may change
    return settled_prefix(C_EXPORTER, prefix).write(model, ModelFacts("n", "d", names, None), layout)


def build(folder: Path, files: Files, *command: str) -> Path:
    if not shutil.which(command[0]):
        pytest.skip(f"not installed: {command[0]}")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    done = subprocess.run(
        [*command, "-o", "program"], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "program"


def logits_of(program: Path, images: np.ndarray) -> list[list[int]]:
    """What a program prints that reads images from its standard input and prints a line of logits for each."""
    done = subprocess.run([program], input=images.tobytes(), capture_output=True, timeout=60, check=True)
    return [[int(number) for number in line.split()] for line in done.stdout.splitlines()]


TWO = """
#include <stdio.h>
#include "cats.h"
#include "Dogs_2.h"
int main(void) {
    uint8_t image[CATS_IMAGE_BYTES];
    int32_t first[CATS_CLASSES], second[DOGS_2_CLASSES];
    while (fread(image, 1, sizeof image, stdin) == sizeof image) {
        int i, a = cats_predict(image, first), b = Dogs_2_predict(image, second);
        printf("%d %d", a, b);
        for (i = 0; i < CATS_CLASSES; i++) printf(" %ld", (long)first[i]);
        for (i = 0; i < DOGS_2_CLASSES; i++) printf(" %ld", (long)second[i]);
        printf("\\n");
    }
    return 0;
}
"""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_networks_in_one_program_give_their_own_logits(layout: str, tmp_path: Path) -> None:
    files: Files = {}
    for prefix, model in MODELS.items():
        files |= export(model, layout, prefix)
    program = build(
        tmp_path, files | {"two.c": TWO.encode()}, "gcc", "-std=c99", *STRICT, "two.c", "cats.c", "Dogs_2.c"
    )
    first, second = (model.run(IMAGES) for model in MODELS.values())
    expected = [[a.argmax(), b.argmax(), *a, *b] for a, b in zip(first, second, strict=True)]
    assert logits_of(program, IMAGES) == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_prefix_names_all_public_symbols_and_files_and_nothing_else(layout: str, tmp_path: Path) -> None:
    model = MODELS["cats"]
    plain, files = export(model, layout), export(model, layout, "cats")
    assert sorted(files) == ["README.md", "cats.c", "cats.h", "main.c"]
    names = r'"qattrain_\d in model\.c"'
    assert re.findall(names, files["main.c"].decode()) == re.findall(names, plain["main.c"].decode())
    for name, content in files.items():
        text = re.sub(r"qattrain_\d in model\.c", "", content.decode())  # the names of classes
        assert not re.search(r"qattrain_|QATTRAIN_|model\.[ch]", text), name
        assert "qattrain" in text, name
    assert 'include "cats.h"' in files["main.c"].decode()
    build(tmp_path, files, "gcc", "-O2", "cats.c", "main.c")
    object_file = build(tmp_path, files, "gcc", "-O2", "-c", "cats.c")
    symbols = subprocess.run(["nm", "-g", object_file], capture_output=True, text=True, timeout=60, check=True).stdout
    assert sorted(re.findall(r" [A-TV-Z] (\w+)", symbols)) == ["cats_predict", "cats_predict_in"]
    with C_EXPORTER.run(files) as run:
        assert np.array_equal(run(IMAGES), model.run(IMAGES))


@pytest.mark.parametrize("prefix", ["", "2nd", "a-b", "a b", "\u00e9", "_x", "a" * 32, "x;y", "cats\n"])
def test_a_prefix_that_is_no_identifier_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError, match=r"--prefix .*: allowed: a-z") as caught:
        c_exporter(prefix)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["main", "Main", "stdint", "string", "float", "image", "startup"])
def test_a_prefix_that_would_hide_another_file_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError, match=f"--prefix '{prefix}': {prefix}.c or .*choose another"):
        c_exporter(prefix)


@pytest.mark.parametrize("to", [name for name in EXPORTERS if name != "c"])
def test_only_c_has_symbols_to_name(to: str) -> None:
    assert settled_prefix(EXPORTERS[to], None) is EXPORTERS[to]
    with pytest.raises(ConfigError, match="--prefix 'cats': allowed only with --to c"):
        settled_prefix(EXPORTERS[to], "cats")


THREADS = """
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include "model.h"
enum { COUNT = 6, ROUNDS = 200 };
struct job {
    const uint8_t *images;
    int32_t logits[COUNT][QATTRAIN_CLASSES];
    int32_t arena[QATTRAIN_ARENA_BYTES / 4 + 1];
};
static void *work(void *given) {
    struct job *job = (struct job *)given;
    int i, round;
    memset(job->arena, 0xa5, sizeof job->arena);
    for (round = 0; round < ROUNDS; round++)
        for (i = 0; i < COUNT; i++)
            qattrain_predict_in(job->arena, job->images + i * QATTRAIN_IMAGE_BYTES, job->logits[i]);
    return 0;
}
enum { BYTES = QATTRAIN_IMAGE_BYTES };
static uint8_t images[COUNT * BYTES], reversed[COUNT * BYTES];
static struct job jobs[2];
int main(void) {
    pthread_t other;
    int i, k;
    if (fread(images, 1, sizeof images, stdin) != sizeof images) return 1;
    for (i = 0; i < COUNT; i++) memcpy(reversed + i * BYTES, images + (COUNT - 1 - i) * BYTES, BYTES);
    jobs[0].images = images;
    jobs[1].images = reversed;
    pthread_create(&other, 0, work, &jobs[1]);
    work(&jobs[0]);
    pthread_join(other, 0);
    for (k = 0; k < 2 * COUNT; k++) {
        for (i = 0; i < QATTRAIN_CLASSES; i++) printf("%ld ", (long)jobs[k / COUNT].logits[k % COUNT][i]);
        printf("\\n");
    }
    return 0;
}
"""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_threads_with_an_arena_each_do_not_disturb_each_other(layout: str, tmp_path: Path) -> None:
    model = MODELS["Dogs_2"]
    files = export(model, layout) | {"threads.c": THREADS.encode()}
    command = ("gcc", "-std=c99", "-O1", "-DQATTRAIN_CALLER_ARENA", "threads.c", "model.c", "-pthread")
    program = build(tmp_path, files, *command)
    expected = model.run(IMAGES).tolist()
    assert logits_of(program, IMAGES) == expected + expected[::-1]
    object_file = build(tmp_path, files, "gcc", "-DQATTRAIN_CALLER_ARENA", "-c", "model.c")
    symbols = subprocess.run(["nm", object_file], capture_output=True, text=True, timeout=60, check=True).stdout
    assert not re.search(r"\barena\b|predict$", symbols)
    assert not re.search(r" [bBD] ", symbols)  # no memory that is written to


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
@pytest.mark.parametrize("flags", [(), ("-march=native",)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_model_c_is_cpp_too(compiler: str, layout: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    model = MODELS["Dogs_2"]
    command = (compiler, "-std=c++11", *STRICT, *flags, "-x", "c++", "model.c", "main.c")
    program = build(tmp_path, export(model, layout), *command)
    for image, logits in zip(IMAGES, model.run(IMAGES), strict=True):
        done = subprocess.run([program], input=image.tobytes(), capture_output=True, timeout=60, check=True)
        assert [int(line.split()[-1]) for line in done.stdout.splitlines()[1:]] == logits.tolist()
