"""The Arduino library folder: by the specification, and its sketch, compiled with a stand-in for the IDE's header."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from integer_models import SMALL, random_images, random_model

from qattrain.export import c_export
from qattrain.export.base import Files
from qattrain.export.c_arduino import ARCHITECTURES
from qattrain.export.c_export import C_EXPORTER
from qattrain.integer import IntegerModel, ModelFacts

MODEL = random_model(widths=SMALL, classes=4)
IMAGES = random_images(6)
NAMES = ("zero", 'a"b\\c', "??/%d };", "\u00e9 1")
STRICT = ("-std=c++11", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror")
ARDUINO_H = """
#pragma once
#include <cstdint>
#include <cstdio>
extern unsigned long now;
unsigned long millis();
unsigned long micros();
struct Port {
    void begin(unsigned long);
    explicit operator bool() const { return now > 5; }
    int available();
    int read();
    void print(const char *text) { std::fputs(text, stdout); }
    void println(const char *text) { std::puts(text); }
    void println(long number) { std::printf("%ld\\n", number); }
    void println(unsigned long number) { std::printf("%lu\\n", number); }
};
extern Port Serial;
"""
# The clock advances at every look. The bytes come from the standard input, which begins with a piece of an image.
MAIN = """
#include "Arduino.h"
#include "Classify.ino"
unsigned long now = 0;
Port Serial;
static int cut = 100;
unsigned long millis() { return ++now; }
unsigned long micros() { return now += 1000; }
void Port::begin(unsigned long baud) { std::printf("%lu baud\\n", baud); }
int Port::available() { return !std::feof(stdin); }
int Port::read() {
    const int byte = std::fgetc(stdin);
    if (cut > 0 && --cut == 0) now += 2000;
    return byte;
}
int main() {
    setup();
    for (int next = std::getchar(); next != EOF; next = std::getchar()) {
        std::ungetc(next, stdin);
        loop();
    }
    return 0;
}
"""


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c_export, "measure", lambda *_: None)
    monkeypatch.setattr(c_export, "board_files", lambda *_: {})


def with_board(model: IntegerModel, layout: str = "packed", prefix: str | None = None) -> tuple[Files, Files]:
    """The exported files, and what --board adds."""
    exporter = C_EXPORTER
    if prefix is not None:
        assert exporter.with_prefix is not None
        exporter = exporter.with_prefix(prefix)
    names = NAMES if model.classes == len(NAMES) else tuple(map(str, range(model.classes)))
    files = exporter.write(model, ModelFacts("n", "d", names, None), layout)
    assert exporter.board is not None
    return files, exporter.board(files, model, IMAGES[2])


def sketch(folder: Path, files: Files, name: str) -> Path:
    """The example compiled with its library, as the IDE does it: C as C, the sketch as C++."""
    for program in ("g++", "gcc"):
        if not shutil.which(program):
            pytest.skip(f"not installed: {program}")
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    (folder / "Arduino.h").write_text(ARDUINO_H, encoding="ascii")
    (folder / "main.cpp").write_text(MAIN, encoding="ascii")
    library = f"arduino/{name}"
    source = next(path for path in files if path.startswith(f"{library}/src/") and path.endswith(".c"))
    include = ("-I.", f"-I{library}/src", f"-I{library}/examples/Classify")
    for command in (
        ("gcc", "-std=c99", "-c", source, "-o", "network.o"),
        ("g++", *STRICT, *include, "main.cpp", "network.o", "-o", "program"),
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
    return folder / "program"


@pytest.mark.parametrize(("layout", "prefix"), [("packed", None), ("int8", "cats")])
def test_the_sketch_prints_the_logits_of_its_image_and_of_those_that_arrive(
    layout: str, prefix: str | None, tmp_path: Path
) -> None:
    program = sketch(tmp_path, with_board(MODEL, layout, prefix)[1], prefix or "qattrain")
    sent = IMAGES.tobytes()[:100] + IMAGES.tobytes()  # the piece is forgotten after a pause
    done = subprocess.run([program], input=sent, capture_output=True, timeout=60, check=True)
    first, *lines = done.stdout.decode().splitlines()
    assert first == "115200 baud"
    assert lines.pop(1 + MODEL.classes) == "every logit is the expected one"
    expected = MODEL.run(np.concatenate([IMAGES[2:3], IMAGES]))
    found = [lines[start : start + 1 + MODEL.classes] for start in range(0, len(lines), 1 + MODEL.classes)]
    for (title, *logits), right in zip(found, expected, strict=True):
        assert title == f"{NAMES[int(right.argmax())]}, in microseconds: 1000"
        assert logits == [f"{name} {logit}" for name, logit in zip(NAMES, right, strict=True)]


def test_a_logit_that_differs_is_said(tmp_path: Path) -> None:
    files = with_board(MODEL)[1]
    path = "arduino/qattrain/examples/Classify/image.h"
    logits = ", ".join(map(str, MODEL.run(IMAGES[2:3])[0]))
    assert logits.encode() in files[path]
    program = sketch(tmp_path, files | {path: files[path].replace(logits.encode(), b"1, 2, 3, 4")}, "qattrain")
    done = subprocess.run([program], input=b"", capture_output=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == b"a logit is not the expected one"


@pytest.mark.parametrize("prefix", [None, "cats"])
def test_the_folder_is_a_library_by_the_specification(prefix: str | None) -> None:
    files, added = with_board(MODEL, prefix=prefix)
    name, file = prefix or "qattrain", prefix or "model"
    folder = f"arduino/{name}"
    assert sorted(added) == [
        "README.md",
        f"{folder}/examples/Classify/Classify.ino",
        f"{folder}/examples/Classify/image.h",
        f"{folder}/library.properties",
        f"{folder}/src/{file}.c",
        f"{folder}/src/{file}.h",
    ]
    assert all(added[f"{folder}/src/{file}.{end}"] == files[f"{file}.{end}"] for end in "ch")
    lines = added[f"{folder}/library.properties"].decode().splitlines()
    fields = dict(line.split("=", 1) for line in lines)
    mandatory = ("name", "version", "author", "maintainer", "sentence", "paragraph", "category", "url", "architectures")
    assert list(fields) == [*mandatory, "includes"]
    assert fields["name"] == name
    assert fields["includes"] == f"{file}.h"
    assert re.fullmatch(r"\d+\.\d+\.\d+", fields["version"])
    assert fields["architectures"] == ARCHITECTURES
    assert not {"*", "avr", "megaavr", "esp8266"} & set(ARCHITECTURES.split(","))
    arena = re.search(r"ARENA_BYTES (\d+)", files[f"{file}.h"].decode())
    assert arena is not None
    assert f"Needs {arena[1]} bytes of RAM" in fields["paragraph"]
    assert all(b"qattrain" in content for content in added.values())


def test_the_readme_says_how_to_install_it_and_for_which_boards() -> None:
    files, added = with_board(MODEL, prefix="cats")
    text = added["README.md"].decode()
    assert text.startswith(files["README.md"].decode())
    for part in ("Copy the folder `arduino/cats` into `libraries`", "File > Examples > cats > Classify", "not for AVR"):
        assert part in " ".join(text.split())
