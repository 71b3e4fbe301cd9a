"""The training loop: the same code for the float baseline and for quantization-aware training.

`Trainer` holds the model, the optimizer and the position in the run, trains one epoch at a time, and can be saved
between any two steps: on a CPU a resumed run equals the uninterrupted one tensor for tensor. Evaluating, saving and
showing are left to `qattrain.training.session.Session`, between epochs.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qattrain.config import TrainConfig
from qattrain.data.augment import AUGMENTATIONS, augmentation
from qattrain.data.dataset import ImageSet, augmentation_seed, batch_slices, epoch_order
from qattrain.errors import TrainingError, pick
from qattrain.layers.quantized import set_compute_dtype
from qattrain.quant import Quantizer
from qattrain.quant.grid import MIN_SCALE
from qattrain.quant.native import compiled
from qattrain.training.distillation import Teacher, distilled
from qattrain.training.optimization import OPTIMIZERS, SCHEDULES, check_state, parameter_groups

STEPS_BETWEEN_CHECKS = 50  # that the loss is finite: each check synchronizes with the device


def check_names(config: TrainConfig, augment: str) -> None:
    """Raises ConfigError if the optimizer, schedule or augmentation is not in its table."""
    pick(OPTIMIZERS, config.optimizer, "train.optimizer =")
    pick(SCHEDULES, config.schedule, "train.schedule =")
    pick(AUGMENTATIONS, augment, "data.augment =")


class Observer(Protocol):
    """Watches a run. `loss` is a function, to be called only if it is shown: reading the loss synchronizes."""

    def on_step(self, epoch: int, step: int, steps: int, loss: Callable[[], float]) -> None: ...


@dataclass(frozen=True)
class EpochResult:
    """One finished epoch. seconds: of training alone, augmentation included."""

    epoch: int  # from 1
    train_loss: float
    learning_rate: float  # of the last step
    seconds: float
    images_per_second: float


class Trainer:
    """Trains `model` on `data` as `config` says; every value of the config must be settled (nothing `auto`).

    model, data (uint8 images, int64 labels) and teacher (or None): all on one device. seed: of order and augmentation.
    """

    def __init__(
        self,
        model: nn.Module,
        data: ImageSet,
        config: TrainConfig,
        augment: str,
        seed: int,
        teacher: Teacher | None = None,
        flip: bool = False,
    ) -> None:
        check_names(config, augment)
        assert config.lr != "auto", config
        assert config.batch_size != "auto", config
        assert config.weight_decay != "auto", config
        self.model, self.data, self.config, self.seed, self.teacher = model, data, config, seed, teacher
        self.augment, self.schedule = augmentation(augment, flip), SCHEDULES[config.schedule]
        self.slices = batch_slices(len(data.labels), config.batch_size)
        self.optimizer = OPTIMIZERS[config.optimizer].build(
            parameter_groups(model, config.weight_decay, config.scale_lr), config.lr, config
        )
        self.shares = [group["share"] for group in self.optimizer.param_groups]  # of the learning rate
        # What quantizers learn are scales, positive by definition; a step can take one across zero.
        self.scales = [scale for one in model.modules() if isinstance(one, Quantizer) for scale in one.parameters()]
        self.learning_rate = config.lr
        self.epoch = 0  # finished epochs
        self.step = 0  # finished steps of the current epoch
        self.seconds = 0.0  # of the current epoch
        self.generator = torch.Generator()
        self.losses = torch.zeros(len(self.slices), device=data.labels.device)

    def train_epoch(self, observer: Observer | None, should_stop: Callable[[], bool]) -> EpochResult | None:
        """Train to the end of the current epoch; None if `should_stop` became true before that.

        observer: None if nobody watches. Raises TrainingError as soon as a loss is found not to be finite.
        """
        self.model.train()
        set_compute_dtype(self.model, torch.bfloat16 if self.config.precision == "bf16" else None)
        start = time.perf_counter()
        if self.step == 0:
            self.generator.manual_seed(augmentation_seed(self.seed, self.epoch))
        order = epoch_order(len(self.data.labels), self.seed, self.epoch).to(self.data.labels.device)
        steps = len(self.slices)
        while self.step < steps:
            batch = order[self.slices[self.step]]
            # A smaller last batch runs uncompiled.
            full = len(batch) == self.config.batch_size
            with compiled(self.config.compile == "on" and full):
                loss = self._train_step(batch)
            self.losses[self.step] = loss
            self.step += 1
            if self.step % STEPS_BETWEEN_CHECKS == 0 or self.step == steps:
                self._check_finite()
            if observer is not None:
                observer.on_step(self.epoch + 1, self.step, steps, loss.item)
            if self.step < steps and should_stop():
                self._check_finite()
                self.seconds += time.perf_counter() - start
                return None
        return self._finish_epoch(start)

    def _train_step(self, batch: Tensor) -> Tensor:
        assert self.config.lr != "auto"
        step, steps = self.epoch * len(self.slices) + self.step, self.config.epochs * len(self.slices)
        lr = self.config.lr * self.schedule(step, steps, self.config.warmup)
        for group, share in zip(self.optimizer.param_groups, self.shares, strict=True):
            group["lr"] = lr * share
        self.learning_rate = lr
        images = self.augment(self.data.images.index_select(0, batch), self.generator)
        logits = self.model(images)
        # At least float32, whatever the layers multiplied in: exponentials do not fit bfloat16.
        logits = logits if logits.dtype == torch.float64 else logits.float()
        loss = F.cross_entropy(
            logits, self.data.labels.index_select(0, batch), label_smoothing=self.config.label_smoothing
        )
        if self.teacher is not None:
            answers = self.teacher.answer(images, self.epoch, self.slices[self.step], len(self.data.labels))
            loss = distilled(loss, logits, answers, self.teacher.config)
        self.optimizer.zero_grad()
        loss.backward()
        if self.config.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimizer.step()
        with torch.no_grad():
            for scale in self.scales:
                scale.clamp_(min=MIN_SCALE)
        return loss.detach()

    def _check_finite(self) -> None:
        finite = torch.isfinite(self.losses[: self.step])
        if bool(finite.all()):
            return
        step = int((~finite).nonzero()[0]) + 1
        raise self.diverged("training", self.losses[step - 1].item(), self.epoch + 1, step)

    def diverged(self, kind: str, loss: float, epoch: int, step: int) -> TrainingError:
        """The error that says when the loss stopped being finite, and what to try."""
        return TrainingError(
            f"the {kind} loss became {loss} at epoch {epoch}, step {step} of {len(self.slices)}, learning rate "
            f"{self.config.lr:g}; the last good checkpoint is kept; try a smaller --lr, --set train.grad_clip=1, or "
            "--precision fp32"
        )

    def _finish_epoch(self, start: float) -> EpochResult:
        sizes = torch.tensor([s.stop - s.start for s in self.slices], dtype=torch.float64)
        train_loss = float((self.losses.double().cpu() * sizes).sum() / sizes.sum())
        seconds = self.seconds + time.perf_counter() - start
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        return EpochResult(self.epoch, train_loss, self.learning_rate, seconds, len(self.data.labels) / seconds)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors: everything that resuming needs besides the model's own state."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.losses.cpu(),
            "optimizer": self.optimizer.state_dict(),
            "augmentation_rng": self.generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "teacher": self.teacher and self.teacher.digest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`. Raises KeyError, ValueError, RuntimeError, TypeError or AttributeError if it is not
        that of such a run.
        """
        if state.get("teacher") != (self.teacher and self.teacher.digest):  # older versions did not record it
            raise ValueError("it was trained with another teacher; restore that one, or train a new run")
        missing = {"losses", "optimizer", "augmentation_rng", "torch_rng", "epoch", "step", "seconds"} - set(state)
        if missing:
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
        epoch, step, seconds = state["epoch"], state["step"], state["seconds"]
        steps = len(self.slices)
        if (
            type(epoch) is not int
            or type(step) is not int
            or not (0 <= epoch <= self.config.epochs and 0 <= step < steps)
        ):
            raise ValueError(f"it is at epoch {epoch!r:.20}, step {step!r:.20}, of {self.config.epochs} and {steps}")
        if type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
            raise ValueError(f"its epoch took {seconds!r:.20} seconds")
        losses, own = state["losses"], self.optimizer.state_dict()
        if (losses.shape, losses.dtype) != (self.losses.shape, self.losses.dtype) or not losses[:step].isfinite().all():
            raise ValueError("its losses are not those of such an epoch")
        kept, groups = state["optimizer"]["state"], state["optimizer"]["param_groups"]
        if [group["params"] for group in groups] != [group["params"] for group in own["param_groups"]]:
            raise ValueError("its optimizer has other parameters")
        rates = [group["lr"] for group in groups]
        if not all(type(rate) is float and 0 <= rate < math.inf for rate in rates):
            raise ValueError("its optimizer has a learning rate that cannot be")
        check_state(kept, self.optimizer, OPTIMIZERS[self.config.optimizer].keeps, began=epoch > 0 or step > 0)
        # The other settings of its groups are those of the configuration.
        groups = [group | {"lr": rate} for group, rate in zip(own["param_groups"], rates, strict=True)]
        self.optimizer.load_state_dict({"state": kept, "param_groups": groups})
        self.losses.copy_(losses)
        self.generator.set_state(state["augmentation_rng"])
        torch.set_rng_state(state["torch_rng"])
        self.epoch, self.step, self.seconds = epoch, step, seconds
