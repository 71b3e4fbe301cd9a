"""Knowledge distillation: the logits of a trained float network as a second target beside the labels.

The teacher sees the same augmented images as the student: its answer to a digit distorted almost into another one is
what the student learns from. These images depend on the seed and not on the student, so the teacher's logits are kept
on disk, and the next student with the same seed reuses them, whatever its bits and widths: even a large teacher runs
only once. A file of them is what `numpy.save` writes, sealed with a digest; if damaged, it is made again.

Source: Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network", section 2; that teacher and student
should see the same views: Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and consistent".
"""

import hashlib
import io
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qattrain.config import DistillConfig, ExperimentConfig, bits_by_layer
from qattrain.data import Dataset
from qattrain.errors import ConfigError, TrainingError
from qattrain.files import write_atomically
from qattrain.files.kept import read_sealed, sealed
from qattrain.layers import BatchNorm
from qattrain.layers.quantized import set_compute_dtype
from qattrain.runs.checkpoint import Checkpoint, restore_model

ANSWERS_FOLDER = "answers"
MOST_HEADER_BYTES = 1024  # of a file of numpy.save; it writes 128


class Teacher:
    """A float network that is evaluated, not trained.

    source: its checkpoint, read from `path`. student: the settled configuration of the run it teaches. dataset: of that
    run; its classes and image size must be the teacher's. `digest`: SHA-256 of its weights, to recognise it when a run
    is resumed.
    Raises ConfigError if the checkpoint is quantized or was trained for other classes.
    """

    def __init__(self, source: Checkpoint, path: Path, student: ExperimentConfig, dataset: Dataset) -> None:
        if source.config.method != "float":
            bits = min(bits_by_layer(source.config.quant, source.config.model.chain).values())
            raise ConfigError(
                f"distill.teacher: {path} is quantized ({bits} bits); a teacher is a float network: train one with "
                "--bits 32"
            )
        if (source.class_names, source.input_shape) != (dataset.class_names, dataset.shape):
            what = "classes" if source.class_names != dataset.class_names else "image sizes"
            raise ConfigError(
                f"distill.teacher: {path} was trained on {source.config.data.dataset}, which has other {what}; give "
                "one trained on the same dataset"
            )
        weights = b"".join(key.encode() + value.contiguous().numpy().tobytes() for key, value in source.model.items())
        self.digest = hashlib.sha256(weights).hexdigest()
        # In training mode products may be bfloat16; dropout is off, and normalization uses the running statistics.
        self.model = restore_model(source, str(path)).to(student.train.device).train().requires_grad_(False)
        for module in self.model.modules():
            if isinstance(module, nn.Dropout | BatchNorm):
                module.eval()
        set_compute_dtype(self.model, torch.bfloat16 if student.train.precision == "bf16" else None)
        self.folder = path.parent / ANSWERS_FOLDER / _views_key(self.digest, student)
        self.config, self.classes = student.distill, dataset.classes
        self.epoch: int | None = None  # whose logits are loaded
        self.answers, self.missing = torch.empty(0), 0

    def answer(self, images: Tensor, epoch: int, place: slice, count: int) -> Tensor:
        """Logits (B, classes), float32, of images, uint8 (B, C, H, W), at `place` in the epoch of `count`."""
        if epoch != self.epoch:
            self.epoch, known = epoch, self._read(epoch, count)
            self.answers = torch.empty(count, self.classes) if known is None else known
            self.missing = count if known is None else 0
        if self.missing > 0:
            self.answers[place] = self.model(images).float().cpu()
            self.missing -= len(images)
            if self.missing == 0:  # never in an epoch resumed in the middle
                self._write(epoch)
        return self.answers[place].to(images.device)

    def _file(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch + 1}.npy"

    def _read(self, epoch: int, count: int) -> Tensor | None:
        data = read_sealed(self._file(epoch), count * self.classes * 4 + MOST_HEADER_BYTES)
        if data is None:
            return None
        try:
            found = np.load(io.BytesIO(data), allow_pickle=False)
        except Exception:  # a file that another program sealed can fail in any way
            return None
        is_array = isinstance(found, np.ndarray)  # and no file of several
        fits = is_array and found.shape == (count, self.classes) and found.dtype == np.float32
        return torch.from_numpy(found) if fits else None

    def _write(self, epoch: int) -> None:
        buffer = io.BytesIO()
        np.save(buffer, self.answers.numpy())
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file(epoch), sealed(buffer.getvalue()))
        except (OSError, TrainingError):  # without a writable folder the teacher is evaluated every time
            return


def _views_key(digest: str, student: ExperimentConfig) -> str:
    """A key that two students share if the teacher sees the same images, and computes the same numbers, for both."""
    train = student.train
    numerics = [train.precision, train.device, train.compile, train.threads]
    views = [student.seed, student.data.model_dump(exclude={"limit_test"}), train.batch_size]
    return hashlib.sha256(repr([digest, views, numerics]).encode()).hexdigest()[:16]


def distilled(loss: Tensor, logits: Tensor, answers: Tensor, config: DistillConfig) -> Tensor:
    """(1 - w) loss + w T^2 KL(softmax(answers / T) || softmax(logits / T)), a mean over the batch.

    loss: the student's cross-entropy with the labels. logits: the student's, (B, classes), float32 or wider. answers:
    the teacher's logits. T, w: temperature and weight of the config. T^2 keeps the size of the gradient.
    """
    temperature = config.temperature
    targets = F.log_softmax(answers.to(logits.dtype) / temperature, 1)
    student = F.log_softmax(logits / temperature, 1)
    divergence = F.kl_div(student, targets, reduction="batchmean", log_target=True)
    return (1 - config.weight) * loss + config.weight * temperature**2 * divergence
