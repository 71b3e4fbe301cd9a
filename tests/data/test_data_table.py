"""What every dataset of the table must guarantee, and what the names mean."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from qattrain.data import DATASETS, choose_dataset, load_dataset
from qattrain.data import mnist as torchvision_sets
from qattrain.data.mnist import import_torchvision_datasets
from qattrain.errors import ConfigError

pytestmark = pytest.mark.usefixtures("offline")
tables = pytest.mark.parametrize("name", DATASETS)


def prepare(name: str, data_dir: Path, write_set) -> Path | None:
    """Writes the set's files, if it has any, and returns the first."""
    return None if name == "digits" else write_set(name, data_dir).files["train-images"]


@tables
def test_shapes_dtypes_and_labels_fit_the_class_count(name: str, tmp_path: Path, write_set) -> None:
    prepare(name, tmp_path, write_set)
    dataset = load_dataset(name, tmp_path)
    assert dataset.name == name
    assert dataset.classes == len(set(dataset.class_names)) == len(dataset.class_names)
    assert all(dataset.class_names)
    for part in (dataset.train, dataset.test):
        assert (part.images.dtype, part.labels.dtype) == (torch.uint8, torch.int64)
        assert part.images.shape == (len(part.labels), 1, 28, 28)
        assert part.images.is_contiguous()
        assert part.labels.is_contiguous()
        assert part.labels.unique().tolist() == list(range(dataset.classes))


@tables
def test_class_count_is_the_published_one(name: str, tmp_path: Path, write_set) -> None:
    prepare(name, tmp_path, write_set)
    published = {"emnist-balanced": 47, "emnist-letters": 26}
    assert load_dataset(name, tmp_path).classes == published.get(name, 10)


@tables
def test_a_corrupt_file_is_a_data_error(name: str, tmp_path: Path, write_set, raises_data_error) -> None:
    path = prepare(name, tmp_path, write_set)
    if path is None:
        pytest.skip("has no files of its own: scikit-learn carries it")
    path.write_bytes(b"not an IDX file, but long enough for a header")
    with raises_data_error(path, "magic number 0x6e6f7420", "expected 0x00000803", "delete it"):
        load_dataset(name, tmp_path)


def test_an_unknown_name_is_a_config_error_that_lists_the_allowed_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_dataset("cifar10", tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert all(name in message for name in ["'cifar10'", "auto", *DATASETS])


def test_auto_is_mnist_when_its_files_are_there(tmp_path: Path, write_set) -> None:
    write_set("mnist", tmp_path)
    assert choose_dataset(tmp_path) == ("mnist", None)


def test_auto_never_hides_a_corrupt_or_incomplete_mnist(tmp_path: Path, write_set, raises_data_error) -> None:
    fake = write_set("mnist", tmp_path)
    for path in list(fake.files.values())[1:]:
        path.unlink()
    fake.files["train-images"].write_bytes(b"")
    assert choose_dataset(tmp_path) == ("mnist", None)
    with raises_data_error(fake.files["train-images"], "has 0 bytes"):
        load_dataset("mnist", tmp_path)


@pytest.mark.parametrize("made", ["", "MNIST/raw", "KMNIST/raw"])
def test_auto_is_digits_with_a_notice_when_mnist_cannot_be_had(made: str, tmp_path: Path) -> None:
    (tmp_path / made).mkdir(parents=True, exist_ok=True)
    name, notice = choose_dataset(tmp_path)
    assert name == "digits"
    assert notice is not None
    assert "\n" not in notice
    for text in (str(tmp_path), "digits", "1,437", "360", "--data-dir", "QATTRAIN_DATA_DIR", "network"):
        assert text in notice


def test_auto_gives_silent_mirrors_up_in_time(
    tmp_path: Path, silent_mirror: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision_sets, "PROBE_SECONDS", 0.5)
    monkeypatch.setattr(import_torchvision_datasets().MNIST, "mirrors", [silent_mirror] * 3)
    begin = time.monotonic()
    assert choose_dataset(tmp_path)[0] == "digits"
    assert 0.4 < time.monotonic() - begin < 2.5


def test_auto_in_a_data_dir_that_is_a_file_is_a_data_error(tmp_path: Path, raises_data_error) -> None:
    (tmp_path / "file").write_text("not a folder")
    with raises_data_error(tmp_path / "file", "cannot be read", "--data-dir"):
        choose_dataset(tmp_path / "file")


def test_importing_the_package_loads_neither_torchvision_nor_sklearn() -> None:
    code = "import sys, qattrain.data; print({'torchvision', 'sklearn'} & {m.split('.')[0] for m in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "set()"
