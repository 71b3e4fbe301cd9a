"""How to get a run again: the command lines that its recorded configuration amounts to."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from qattrain.config import FLOAT_BITS, ExperimentConfig, QuantConfig

FLOAT_RUN = "the-float-run"  # the name given to the run that a post-training quantization starts from

Flags = Mapping[tuple[str, ...], str]  # path of a setting -> the option of `train` that sets it


def command_lines(config: ExperimentConfig, flags: Flags) -> list[list[str]]:
    """Commands with their arguments, in order; they train what `config`, every value settled, describes.

    What equals its default is left out. What `auto` had become is spelled out: another machine might choose otherwise.
    The run's name is left out, too: it is taken where the run lies.
    """
    if config.ptq is None:
        return [["qattrain", "train", *_settings(config, flags)]]
    quant, ptq = config.quant, config.ptq
    if quant.layer_bits:  # `ptq` has no such option: a comparison made it
        asked = list(_settings(config.model_copy(update={"ptq": None}), flags))
        if "--quantizer" not in asked:  # train's default is not that of ptq
            asked += ["--quantizer", quant.quantizer]
        return [["qattrain", "compare", "fp32", "vs", "ptq", *asked]]
    source = config.model_copy(update={"quant": QuantConfig(bits=FLOAT_BITS, act_bits=FLOAT_BITS), "ptq": None})
    train = ["qattrain", "train", *_settings(source, flags), "--name", FLOAT_RUN]
    if ptq.source_epochs < config.train.epochs:
        train += ["--stop-after", str(ptq.source_epochs)]
    quantize = ["qattrain", "ptq", FLOAT_RUN, "--bits", str(quant.bits), "--act-bits", str(quant.act_bits)]
    quantize += ["--quantizer", quant.quantizer, "--calibration", ptq.calibration]
    return [train, [*quantize, "--calibration-images", str(ptq.images)]]


def _settings(config: ExperimentConfig, flags: Flags) -> Iterator[str]:
    default = ExperimentConfig().model_dump(mode="json")
    for path, value in leaves(config.model_dump(mode="json")):
        usual: Any = default
        for key in path:
            usual = usual[key] if usual is not None else None
        if path == ("name",) or value == usual:
            continue
        if path == ("quant", "layer_bits"):
            yield from (flags[path], _layer_bits(value))
        elif path in flags:
            yield from (flags[path], str(value))
        else:  # JSON's numbers and lists are TOML's, too
            yield from ("--set", f"{'.'.join(path)}={value if isinstance(value, str) else json.dumps(value)}")


def leaves(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every setting of a dumped configuration with its path, in order."""
    for key, value in values.items():
        if isinstance(value, dict) and key != "layer_bits":
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _layer_bits(layer_bits: dict[str, int]) -> str:
    return ",".join(f"{layer}={bits}" for layer, bits in layer_bits.items())
