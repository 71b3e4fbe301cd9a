"""Knowledge distillation: the logits of a trained float network as a second target beside the labels.

The teacher sees the very images the student sees, after augmentation: what it says of a digit bent almost into another
one is the point. Source: Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network", section 2.
"""

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor

from qattrain.checkpoint import Checkpoint, restore_model
from qattrain.config import FLOAT_BITS, DistillConfig
from qattrain.errors import ConfigError
from qattrain.layers import set_compute_dtype
from qattrain.model import plan_layers


class Teacher:
    """A float network that is asked, not trained.

    source: its checkpoint, which `name` names in errors; `class_names` are the student's, which it must share.
    precision: bf16 or fp32, of its products; device: where it runs. `digest`: SHA-256 of its weights, to know it again.
    Raises ConfigError if the checkpoint is quantized or tells other classes apart.
    """

    def __init__(
        self,
        source: Checkpoint,
        name: str,
        class_names: tuple[str, ...],
        config: DistillConfig,
        precision: str,
        device: str,
    ) -> None:
        bits = set(plan_layers(source.config.quant).layer_bits.values())
        if bits != {FLOAT_BITS}:
            raise ConfigError(
                f"distill.teacher = {name!r} is quantized ({min(bits)} bits); a teacher is a float network: train one "
                "with --bits 32"
            )
        if source.class_names != class_names:
            raise ConfigError(
                f"distill.teacher = {name!r} was trained on {source.config.data.dataset}, which has other classes; "
                "give one trained on the same dataset"
            )
        self.config = config
        self.digest = hashlib.sha256(
            b"".join(key.encode() + tensor.contiguous().numpy().tobytes() for key, tensor in source.model.items())
        ).hexdigest()
        # A float network does the same in either mode; in training mode its products may be bfloat16.
        self.model = restore_model(source, name).to(device).train().requires_grad_(False)
        set_compute_dtype(self.model, torch.bfloat16 if precision == "bf16" else None)

    def mixed(self, loss: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        """(1 - w) loss + w T^2 KL(softmax(teacher / T) || softmax(student / T)), a mean over the batch.

        loss: the student's cross-entropy with the labels. logits: the student's, (N, classes), float32 or wider, of
        images, uint8 (N, 1, 28, 28). T, w: temperature and weight of the config. T^2 keeps the size of the gradient.
        """
        temperature, weight = self.config.temperature, self.config.weight
        targets = F.log_softmax(self.model(images).to(logits.dtype) / temperature, 1)
        student = F.log_softmax(logits / temperature, 1)
        divergence = F.kl_div(student, targets, reduction="batchmean", log_target=True)
        return (1 - weight) * loss + weight * temperature**2 * divergence
