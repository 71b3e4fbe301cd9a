"""What every dataset of the table must guarantee, and what the names mean."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qattrain.config import DataConfig
from qattrain.data import DATASETS, choose_dataset, is_on_disk, load_dataset, settle_data
from qattrain.data import mnist as torchvision_sets
from qattrain.data.mnist import import_torchvision_datasets
from qattrain.errors import ConfigError

pytestmark = pytest.mark.usefixtures("offline")
tables = pytest.mark.parametrize("name", DATASETS)


@pytest.fixture
def prepare(write_set, write_cifar10) -> Callable[[str, Path], Path | None]:
    """Writes the set's files, if it has any, and returns the first."""

    def write(name: str, data_dir: Path) -> Path | None:
        if name == "digits":
            return None
        fake = write_cifar10(data_dir) if name == "cifar10" else write_set(name, data_dir)
        return fake.files["train-images"]

    return write


@tables
def test_shapes_dtypes_and_labels_fit_the_class_count(name: str, tmp_path: Path, prepare) -> None:
    prepare(name, tmp_path)
    dataset = load_dataset(name, tmp_path)
    assert dataset.name == name
    assert dataset.classes == len(set(dataset.class_names)) == len(dataset.class_names)
    assert all(dataset.class_names)
    for part in (dataset.train, dataset.test):
        assert (part.images.dtype, part.labels.dtype) == (torch.uint8, torch.int64)
        assert part.images.shape == (len(part.labels), *dataset.shape)
        assert dataset.shape == ((3, 32, 32) if name == "cifar10" else (1, 28, 28))
        assert part.images.is_contiguous()
        assert part.labels.is_contiguous()
        assert part.labels.unique().tolist() == list(range(dataset.classes))


@tables
def test_class_count_is_the_published_one(name: str, tmp_path: Path, prepare) -> None:
    prepare(name, tmp_path)
    published = {"emnist-balanced": 47, "emnist-letters": 26}
    assert load_dataset(name, tmp_path).classes == published.get(name, 10)


@tables
def test_a_corrupt_file_is_a_data_error(name: str, tmp_path: Path, prepare, raises_data_error) -> None:
    path = prepare(name, tmp_path)
    if path is None:
        pytest.skip("has no files of its own: scikit-learn carries it")
    path.write_bytes(b"not an IDX file, but long enough for a header")
    found, expected = "magic number 0x6e6f7420", "expected 0x00000803"
    if name == "cifar10":
        found, expected = (
            "MD5 is d7e1f9fb1cdb5c03",
            f"expected {dict(import_torchvision_datasets().CIFAR10.train_list)[path.name]}",
        )
    with raises_data_error(path, found, expected, "delete it"):
        _ = load_dataset(name, tmp_path).train


def test_an_unknown_name_is_a_config_error_that_lists_the_allowed_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_dataset("cifar11", tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert all(name in message for name in ["'cifar11'", "auto", *DATASETS, "folder:PATH", "npz:PATH"])


@tables
@pytest.mark.parametrize(("option", "text"), [("@30x30", "--image-size 30x30"), ("@color", "--color")])
def test_images_with_a_name_are_not_prepared(name: str, option: str, text: str, tmp_path: Path, prepare) -> None:
    prepare(name, tmp_path)
    if (name, option) == ("cifar10", "@color"):
        assert load_dataset(f"{name}{option}", tmp_path).shape == (3, 32, 32)
        return
    with pytest.raises(ConfigError) as caught:
        load_dataset(f"{name}{option}", tmp_path)
    assert all(part in str(caught.value) for part in (text, name, "only for folder:PATH", "leave the option out"))


@tables
def test_options_that_say_what_a_name_says_are_not_recorded(name: str, tmp_path: Path, prepare) -> None:
    prepare(name, tmp_path)
    data = DataConfig(dataset=name, image_size="32x32" if name == "cifar10" else "28x28", color=name == "cifar10")
    assert settle_data(data, load_dataset(data.spec, tmp_path)) == DataConfig(dataset=name)


@tables
def test_what_needs_no_download_is_on_disk(name: str, tmp_path: Path, prepare) -> None:
    assert is_on_disk(name, tmp_path / "empty") == (name == "digits")
    prepare(name, tmp_path)
    assert is_on_disk(name, tmp_path)
    assert is_on_disk(f"folder:{tmp_path}@8x8", tmp_path)
    assert not is_on_disk(f"folder:{tmp_path}/nosuch", tmp_path)
    assert not is_on_disk(f"npz:{tmp_path}/nosuch.npz", tmp_path)


@pytest.mark.parametrize("spec", ["folder:", "npz:", "folder:@28x28"])
def test_images_of_ones_own_need_a_path(spec: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a path must follow, for example"):
        load_dataset(spec, tmp_path)


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


def test_importing_the_package_loads_neither_torchvision_nor_sklearn_nor_pillow() -> None:
    code = (
        "import sys, qattrain.data; print({'torchvision', 'sklearn', 'PIL'} & {m.split('.')[0] for m in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "set()"
