"""What each topic must show, from its own run on the digits; and what all explanations have in common."""

import json
import math
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from qattrain.explain import TOPICS, Explanation, Lab, batchnorm, granularity, latent, mixed, ptq, scale
from qattrain.explain.ste import BARE, HIGH, LOW
from qattrain.quant import SURROGATES
from qattrain.report.drawing import png, svg

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Explanations by topic, each made once; the long ones with fewer epochs or points of the same experiment."""
    lab = Lab(tmp_path_factory.mktemp("no-data"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scale, "EPOCHS", 4)
        patch.setattr(latent, "EPOCHS", 3)
        patch.setattr(batchnorm, "EPOCHS", 4)
        patch.setattr(batchnorm, "BITS", (4, 2))
        patch.setattr(granularity, "EPOCHS", 3)
        patch.setattr(granularity, "BITS", (4, 3))
        patch.setattr(mixed, "EPOCHS", 4)
        patch.setattr(mixed, "CALIBRATION", "minmax")

        @cache
        def explain(topic: str) -> Explanation:
            if topic == "ptq":
                return ptq.explain(lab, ptq_bits=(8, 2), qat_bits=(8, 2))
            return TOPICS[topic].explain(lab)

        yield explain


def test_ste_bare_round_gives_no_gradient_and_both_straight_through_forms_agree_exactly(explained: Any) -> None:
    gradients = explained("ste").numbers["gradients"]
    assert gradients["points"] == 10_001
    assert gradients["bare_largest"] == 0
    assert gradients["largest_difference_of_the_two_forms"] == 0
    assert gradients["custom_largest_difference_to_what_arrived"] == 0


def test_ste_shows_every_surrogate_and_its_clip_zones(explained: Any) -> None:
    surrogates = explained("ste").numbers["surrogates"]
    assert list(surrogates) == [BARE, *SURROGATES]
    assert set(surrogates[BARE].values()) == {0}
    assert set(surrogates["identity"].values()) == {1}
    for name in ("clipped", "tanh"):
        assert (surrogates[name]["below"], surrogates[name]["above"]) == (0, 0)
        assert surrogates[name]["mean inside"] == pytest.approx(1, abs=1e-3)
    assert surrogates["polynomial"]["mean inside"] == pytest.approx(1 - 2 * 0.125 / (HIGH - LOW), abs=1e-3)
    assert surrogates["tanh"]["half"] > 1 > surrogates["tanh"]["code"] > 0


def test_ste_with_a_bare_round_training_goes_on_but_no_code_moves(explained: Any) -> None:
    training = explained("ste").numbers["training"]
    assert training[BARE]["codes_moved"] == 0
    assert training[BARE]["test_accuracy"] > 0.5
    for name in SURROGATES:
        assert training[name]["codes_moved"] > 0.3
    assert BARE not in SURROGATES


def test_scale_undivided_with_the_factor_ends_20_points_below_unless_masked(explained: Any) -> None:
    courses = explained("scale").numbers["courses"]
    last = {(c["form"], c["optimizer"], c["batch_norm"]): c["test_accuracy"][-1] for c in courses}
    assert len(last) == 12
    assert last[scale.FACTOR, "SGD", False] <= last[scale.DIVIDED, "SGD", False] - 0.2
    for masked in (("SGD", True), ("Adam", False), ("Adam", True)):
        assert abs(last[scale.FACTOR, *masked] - last[scale.DIVIDED, *masked]) < 0.1
    for course in courses:
        assert {len(course[key]) for key in ("train_loss", "weight_size", "test_accuracy")} == {4}


def test_scale_measures_the_factors_and_the_grown_weights(explained: Any) -> None:
    courses = explained("scale").numbers["courses"]
    divided, kept, dropped = (c for c in courses if (c["optimizer"], c["batch_norm"]) == ("SGD", False))
    assert kept["first_gradient"] / dropped["first_gradient"] == pytest.approx(2**scale.N, rel=1e-5)
    assert kept["first_logit"] > 10 * divided["first_logit"]
    assert kept["weight_size"][-1] > 2 * divided["weight_size"][-1]


@pytest.mark.parametrize("n", [scale.ALLOWED_N[0], scale.ALLOWED_N[-1]])
def test_scale_takes_another_n(n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "EPOCHS", 1)
    found = scale.explain(Lab(tmp_path), n)
    assert found.numbers["n"] == n
    json.dumps(found.numbers, allow_nan=False)
    _, kept, dropped = found.numbers["courses"][:3]
    assert kept["first_gradient"] / dropped["first_gradient"] == pytest.approx(2**n, rel=1e-5)
    text = " ".join(found.answer)
    assert f"is {2**n} times too large" in text
    assert f"4^n = {4**n} in all" in text
    assert f"2^{n}" in found.figure.get_suptitle()


def test_scale_needs_weights_that_are_not_all_rounded_to_0() -> None:
    torch.manual_seed(0)
    for form in scale.FORMS:
        first, second = (scale.network(form, False, 10, n=scale.ALLOWED_N[0])[index] for index in (0, 4))
        for layer in (first, second):
            assert isinstance(layer, scale.HandMadeConv2d)
            assert (layer.weight * 2**layer.n).round().count_nonzero() > 0.05 * layer.weight.numel()
        assert not (second.weight * 2 ** (scale.ALLOWED_N[0] - 1)).round().any()


def test_a_course_that_leaves_the_numbers_is_still_told() -> None:
    assert scale._finite(math.nan) is None
    assert scale._finite(math.inf) is None
    assert scale._shown(None) == "not a number"
    assert scale._shown(scale._finite(0.25)) == "0.25"


def test_ptq_at_2_bits_is_20_points_below_qat(explained: Any) -> None:
    numbers = explained("ptq").numbers
    assert numbers["ptq"]["2"] <= numbers["qat"]["2"] - 0.2
    assert abs(numbers["ptq"]["8"] - numbers["float"]) < 0.02
    assert (ptq.PTQ_BITS[0], ptq.PTQ_BITS[-1], ptq.QAT_BITS[0], ptq.QAT_BITS[-1]) == (8, 1, 8, 1)


def test_affine_errors_stay_below_half_a_step_which_doubles_with_every_bit(explained: Any) -> None:
    numbers = explained("affine").numbers
    codes = np.array(numbers["codes"])
    by_hand = np.clip(np.floor(np.array(numbers["values"]) / numbers["scale"] + numbers["zero_point"] + 0.5), 0, 7)
    assert codes.tolist() == by_hand.tolist()
    assert numbers["dequantized"][numbers["values"].index(0)] == 0
    for found in (numbers, *numbers["widths"].values()):
        assert 0 < found["largest_error"] <= found["bound"] * (1 + 1e-6)
    widths = numbers["widths"]
    assert widths["3"]["bound"] / widths["4"]["bound"] == pytest.approx(15 / 7)


def test_conv_equals_torch_in_its_output_and_all_three_gradients(explained: Any) -> None:
    numbers = explained("conv").numbers
    cases = numbers["largest_difference_to_torch"]
    assert len(cases) == 4
    assert set(cases.pop("4x4 above").values()) == {0}
    for differences in cases.values():
        assert len(differences) == 4
        assert max(differences.values()) < 1e-5
    assert numbers["output"] == [[-3, -1], [0, 0]]  # with a pencil
    assert numbers["gradients"]["bias"] == 3


def test_autograd_gradcheck_accepts_the_right_backward_and_no_other(explained: Any) -> None:
    numbers = explained("autograd").numbers
    assert list(numbers["gradcheck"].values()) == [True, True, False, False]
    assert max(numbers["largest_difference_to_torch"].values()) == 0
    assert max(numbers["largest_difference_to_finite_differences"].values()) < 1e-6
    assert (numbers["round_backward"], numbers["round_finite_difference"]) == (1, 0)
    assert numbers["computed_when_x_needs_none"] == {"arguments": 3, "gradients": 2}


def test_integer_every_layer_follows_from_the_one_before(explained: Any) -> None:
    numbers = explained("integer").numbers
    layers = numbers["layers"]
    assert [layer["layer"] for layer in layers] == ["conv1", "conv2", "fc1", "fc2"]
    for layer, following in pairwise(layers):
        assert np.ravel(layer["next_codes"]).tolist() == np.ravel(following["input_codes"]).tolist()
        example = layer["example"]
        shifted = (example["accumulator"] * example["multiplier"] + (1 << (example["shift"] - 1))) >> example["shift"]
        assert shifted == example["code"]
    assert layers[-1]["accumulators"] == layers[-1]["next_codes"] == numbers["logits"]
    assert numbers["answer"] == int(np.argmax(numbers["logits"]))


def test_integer_equals_the_exported_c_or_says_that_there_is_no_compiler(
    explained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    explanation = explained("integer")
    if explanation.numbers["c"] is not None:
        assert explanation.numbers["c"] == {"images": 360, "images_with_another_logit": 0}
    monkeypatch.setattr("shutil.which", lambda _name: None)
    lab = Lab(Path("nowhere"))
    from qattrain.config import QuantConfig
    from qattrain.explain.integer import _in_c
    from qattrain.explain.lab import MODEL
    from qattrain.integer.lowering import lower
    from qattrain.layers.network import build_model

    torch.manual_seed(0)
    model = build_model(MODEL, QuantConfig(bits=4), 10)
    model(torch.randint(0, 256, (8, 1, 28, 28), dtype=torch.uint8))  # for its scales
    sentence, counts = _in_c(lab, lower(model))
    assert counts is None
    assert "no C compiler" in sentence


def test_latent_steps_are_far_smaller_than_the_grid_and_flips_die_down_with_the_rate(explained: Any) -> None:
    numbers = explained("latent").numbers
    assert numbers["updates_below_half_a_step"] > 0.99
    assert 0 < numbers["median_update_steps"] < 0.1
    flips = [epoch["flips"] for epoch in numbers["epochs"]]
    assert flips[0] > 4 * flips[-1] > 0
    assert numbers["constant_rate"]["epochs"][-1]["flips"] > 2 * flips[-1]
    assert numbers["flips"] == sum(flips)


def test_batchnorm_cancels_the_missing_division_and_leaves_nothing_to_fold(explained: Any) -> None:
    numbers = explained("batchnorm").numbers
    naive = numbers["naive"]
    assert naive["ratio"] == pytest.approx(2**scale.N, rel=1e-3)
    assert naive["largest_difference"] < 0.02
    assert naive["undivided"][-1] <= naive["divided"][-1] - 0.2
    assert abs(naive["undivided_norm"][-1] - naive["divided_norm"][-1]) < 0.1
    assert (numbers["images"], numbers["images_with_another_logit"]) == (360, 0)
    assert numbers["hidden_codes_that_differ"] == 0
    assert numbers["accuracy"]["with"]["4"] > numbers["accuracy"]["without"]["4"] + 0.1


def test_batchnorm_a_channel_is_the_same_written_out_and_in_integers(explained: Any) -> None:
    c = explained("batchnorm").numbers["channel"]
    deviation = c["variance"] ** 0.5
    assert c["scale"] == pytest.approx(c["joint_scale"] * c["gain"] / deviation, rel=1e-6)
    assert c["bias_before_rounding"] == pytest.approx((c["shift"] - c["gain"] * c["mean"] / deviation) / c["scale"])
    assert c["bias_code"] == math.floor(c["bias_before_rounding"] + 0.5)
    assert c["multiplier"] / 2 ** c["shift_bits"] == pytest.approx(c["scale"] / c["next_scale"], rel=1e-8)
    shifted = ((c["sum"] + c["bias_code"]) * c["multiplier"] + (1 << (c["shift_bits"] - 1))) >> c["shift_bits"]
    assert shifted == c["code"] < c["largest_code"]
    assert abs(c["value"] - c["code"]) < 0.51  # half a step, and the rounding of the bias
    sums = np.arange(c["smallest_sum"], c["largest_sum"] + 1)
    real = np.clip(batchnorm.normalized(c, sums), 0, c["largest_code"])
    assert np.abs(batchnorm.integer_codes(c, sums) - real).max() < 0.51


def test_mixed_bits_are_dearest_in_the_small_layers_at_both_ends(explained: Any) -> None:
    numbers = explained("mixed").numbers
    assert numbers["weights"] == {"conv1": 200, "conv2": 3200, "fc1": 8192, "fc2": 320}
    price = numbers["rise_per_kb_saved"]
    for end in mixed.ENDS:
        assert price[end] > 2 * max(price["conv2"], price["fc1"])
    for rises in numbers["rises"].values():
        assert abs(rises["8"]) < 0.01
        assert rises["1"] > 3 * abs(rises["8"])
    sizes = [one["bytes"] for one in numbers["trained"].values()]
    assert sizes == [2978, 2978 + 6 * 520 // 8, 11912 - 6 * 520 // 8, 11912]
    for one in numbers["trained"].values():
        assert one["test_accuracy"] > 0.85


def test_granularity_a_scale_per_channel_rounds_better_in_every_layer_most_after_training(explained: Any) -> None:
    numbers = explained("granularity").numbers
    for network in granularity.NETWORKS:
        found = numbers[network]
        for bits in ("4", "3"):
            per_layer, per_channel = (found[kind][bits]["sqnr_db"] for kind in ("layer", "channel"))
            assert list(per_layer) == list(found["ranges"])
            for layer, ratio in per_layer.items():
                assert per_channel[layer] > ratio, (network, bits, layer)
        for ranges in found["ranges"].values():
            assert max(ranges["plain"]) == max(ranges["folded"]) == 1
    deep = numbers["depthwise"]
    assert deep["channel"]["3"]["ptq"] > deep["layer"]["3"]["ptq"]
    channels = [8, 8, 16, 16, 32]
    assert [len(ranges["plain"]) for ranges in deep["ranges"].values()] == channels
    assert numbers["bytes_of_more_scales"] == 5 * (sum(channels) - len(channels))


@pytest.mark.parametrize("topic", TOPICS)
def test_every_explanation_is_complete_and_points_at_files_there_are(explained: Any, topic: str) -> None:
    found = explained(topic)
    json.dumps(found.numbers, allow_nan=False)
    assert len(found.answer) >= 3
    assert "nan" not in " ".join(found.answer)
    assert re.search(r"\d{4}|PyTorch", found.paper)
    assert found.look
    for path in re.findall(r"(?:qattrain|tests)/[\w/]+\.py", " ".join(found.look)):
        assert (ROOT / path).is_file(), path
    for table in found.tables:
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}
        assert set(table.left) <= set(table.columns)


@pytest.mark.parametrize("topic", TOPICS)
def test_what_is_measured_on_data_says_on_which(explained: Any, topic: str) -> None:
    found = explained(topic)
    assert ("data" in found.numbers) == (topic not in ("affine", "conv", "autograd"))
    if "data" in found.numbers:
        assert found.numbers["data"] == "1,437 training and 360 test images of digits"
        assert any(found.numbers["data"] in table.title for table in found.tables)


@pytest.mark.parametrize("topic", TOPICS)
def test_every_picture_has_a_title_and_labelled_axes_and_is_the_same_twice(explained: Any, topic: str) -> None:
    figure = explained(topic).figure
    assert figure.get_suptitle() or figure.axes[0].get_title()
    assert png(figure).startswith(b"\x89PNG")
    assert svg(figure) == svg(figure)
    for axes in figure.axes:
        assert isinstance(axes, Axes)
        is_image, is_bar = bool(axes.images), axes.get_label() == "<colorbar>"
        if is_image:
            assert axes.get_title()
        elif is_bar:
            assert axes.get_ylabel()
    plots = [axes for axes in figure.axes if axes.lines and not axes.images and axes.get_label() != "<colorbar>"]
    if plots:
        assert any(axes.get_xlabel() for axes in plots)
        assert any(axes.get_ylabel() for axes in plots)
        assert figure.legends or all(
            axes.get_legend() or names_its_lines(axes) for axes in plots if len(axes.lines) > 1
        )


def names_its_lines(axes: Axes) -> bool:
    """Whether the name of every line stands beside it."""
    names = axes.get_legend_handles_labels()[1]
    return len(names) == len(axes.lines) and set(names) == {text.get_text() for text in axes.texts}
