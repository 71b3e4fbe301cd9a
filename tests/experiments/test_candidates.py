"""Candidates of a search: within every budget, as large as it allows, and the same for the same seed."""

import itertools

import pytest

from qattrain.config import QuantConfig
from qattrain.config.chain import parse_open_chain
from qattrain.errors import ConfigError
from qattrain.experiments.candidates import (
    ACTIVATIONS,
    FAMILY,
    Budget,
    Candidate,
    Costs,
    Space,
    Tried,
    preset_families,
    propose,
)

pytest.importorskip("optuna", reason="the extra [search] is not installed")
MNIST = (1, 28, 28)
OWN = "conv ? 5x5 stride 2 bn, dw 3x3 bn, conv ? 1x1 bn, avgpool, fc"


def space(budget: Budget, line: str | None = None, quant: QuantConfig | None = None) -> Space:
    families = preset_families() if line is None else {"chain": parse_open_chain(line)}
    return Space(families, quant or QuantConfig(), budget, MNIST, 10)


BUDGETS = [
    Budget(weight_bytes=3200, macs=60_000),
    Budget(total_bytes=900),
    Budget(macs=9000),
    Budget(weight_bytes=200_000, total_bytes=150_000),
]


@pytest.mark.parametrize("budget", BUDGETS)
def test_all_proposals_keep_to_the_budget_and_differ(budget: Budget) -> None:
    found = space(budget)
    new = list(itertools.islice(propose(found, [], "tpe", 0), 40))
    assert len({one.identity for one in new}) == 40
    for one in [*found.first(), *new]:
        assert budget.broken(one.costs) == {}, one
        assert set(one.params) == set(found.distributions(one.params[FAMILY]))


def test_costs_are_those_that_inspect_tells() -> None:
    """Of the preset pico at 4 bits, whose bytes and multiplications are published."""
    first = {one.params[FAMILY]: one for one in space(Budget(2528, macs=60_000)).first()}
    assert set(first) == {"lenet", "pico", "ds-cnn"}
    pico = first["pico"]
    assert pico.model == "conv 1 2x2 stride 2 bn, conv 12 5x5 bn, pool 2, conv 24 3x3 bn, fc"
    assert (pico.quant.bits, pico.quant.act_bits, pico.quant.layer_bits) == (4, 8, {})
    assert pico.costs == Costs(2528, 2901, 56_272)


def test_widths_shrink_only_as_far_as_they_must() -> None:
    found = space(Budget(weight_bytes=1000), OWN)
    family = {FAMILY: "chain", "chain: width 1": 30, "chain: width 2": 60, ACTIVATIONS: 4}
    layers = ("conv1", "dw1", "conv2", "fc1")
    fitted = found.fitted(family | {f"chain: {layer} bits": 4 for layer in layers})
    assert fitted is not None
    one, two = fitted.params["chain: width 1"], fitted.params["chain: width 2"]
    assert abs(two / one - 2) < 0.2
    assert 850 < fitted.costs.weight_bytes <= 1000
    assert found.fitted(fitted.params) == fitted  # what fits stays as it is


def test_bits_that_are_given_are_kept() -> None:
    quant = QuantConfig(bits=3, act_bits=5, layer_bits={"conv1": 8})
    for one in itertools.islice(propose(space(BUDGETS[0], OWN, quant), [], "random", 1), 10):
        assert (one.quant.bits, one.quant.act_bits, one.quant.layer_bits) == (3, 5, {"conv1": 8})
        assert set(one.params) == {FAMILY, "chain: width 1", "chain: width 2"}
    ternary = space(BUDGETS[0], OWN, QuantConfig(quantizer="ternary"))
    assert {one.quant.bits for one in itertools.islice(propose(ternary, [], "tpe", 1), 10)} == {2}


def test_the_same_answers_give_the_same_proposals_and_others_give_others() -> None:
    found = space(BUDGETS[0])
    first = list(itertools.islice(propose(found, [], "tpe", 3), 12))
    tried = [Tried(one, {1: 1.0 / (1 + number)}, number > 8) for number, one in enumerate(first)]
    again = [list(itertools.islice(propose(found, tried, "tpe", 4), 6)) for _ in range(2)]
    assert again[0] == again[1]
    other = [Tried(one.candidate, {1: 1 - one.losses[1]}, one.is_complete) for one in tried]
    assert list(itertools.islice(propose(found, other, "tpe", 4), 6)) != again[0]
    assert list(itertools.islice(propose(found, tried, "tpe", 5), 6)) != again[0]
    assert not {one.identity for one in first} & {one.identity for one in again[0]}


def test_tpe_learns_where_good_candidates_are() -> None:
    """Loss: the more bits in activations, the better. Random sampling does not move; TPE does."""
    found, means = space(Budget(macs=30_000), OWN, QuantConfig(bits=4)), {}
    for sampler in ("tpe", "random"):
        tried: list[Tried] = []
        for batch in range(6):
            new = list(itertools.islice(propose(found, tried, sampler, batch), 10))
            tried += [Tried(one, {1: 8.0 - one.params[ACTIVATIONS]}, True) for one in new]
        means[sampler] = sum(one.candidate.params[ACTIVATIONS] for one in tried[-20:]) / 20
    assert means["tpe"] > means["random"] + 1.5


def test_a_space_without_new_candidates_ends() -> None:
    found = space(Budget(weight_bytes=10_000), "conv ? 5x5, pool 2, fc", QuantConfig(bits=2, act_bits=2))
    assert 5 < len(list(propose(found, [], "random", 0))) < 500


@pytest.mark.parametrize("budget", [Budget(weight_bytes=5), Budget(total_bytes=50), Budget(macs=1000)])
def test_a_budget_that_nothing_meets_is_one_line_with_what_the_smallest_needs(budget: Budget) -> None:
    (name,), (value,) = budget.limits, budget.limits.values()
    with pytest.raises(ConfigError, match=rf"no network keeps to --[a-z-]+ {value:,}: the smallest, '.*', needs") as e:
        space(budget)
    needed = int(str(e.value).rpartition("needs ")[2].split()[1].rstrip(";").replace(",", ""))
    space(Budget(**{name: needed}))
    with pytest.raises(ConfigError):
        space(Budget(**{name: needed - 1}), "conv ? 5x5, pool 2, conv ? 5x5, pool 2, fc ?, fc")


def test_the_smallest_network_is_found_where_nothing_else_fits() -> None:
    found = space(Budget(weight_bytes=12))
    (only,) = {one.identity for one in found.first()}
    assert only.startswith("conv 1 5x5, pool 2, conv 1 5x5, pool 2, fc 1, fc; ")
    with pytest.raises(ConfigError, match=r"no layer 'fc2'"):  # of pico
        space(BUDGETS[0], quant=QuantConfig(layer_bits={"fc2": 8}))
    with pytest.raises(ConfigError, match="its 29x29 kernel does not fit"):
        space(BUDGETS[0], "conv ? 29x29, fc")


def test_a_device_is_asked_only_about_what_keeps_to_the_other_budgets_and_once() -> None:
    asked: list[str] = []

    def measure(model: str, _quant: QuantConfig, costs: Costs) -> Costs:
        asked.append(model)
        return Costs(costs.weight_bytes, costs.total_bytes, costs.macs, 4000 + costs.weight_bytes, 1.5)

    budget = Budget(weight_bytes=3000, flash_bytes=5000, core="cortex-m0")
    found = Space({"chain": parse_open_chain(OWN)}, QuantConfig(), budget, MNIST, 10, measure)
    for one in itertools.islice(propose(found, [], "tpe", 0), 5):
        assert one.costs.flash_bytes == 4000 + one.costs.weight_bytes <= 5000
    assert len(asked) == len(found.measured)


def test_a_candidate_survives_its_record() -> None:
    one = next(propose(space(BUDGETS[0]), [], "tpe", 0))
    assert Candidate.of(one.record()) == one


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("conv 8 3x3, fc", "has no open place"),
        ("conv 8 ?x?, fc", "expected a square kernel"),
        ("conv ? 3x3, pool ?, fc", "stands for a number of outputs, right after conv or fc"),
        ("conv ? 3x3 stride ?, fc", "stands for a number of outputs, right after conv or fc"),
        ("fc ?", "a chain ends in a bare fc"),
        ("leenet", "did you mean"),
        ("conv 4 5x5, conv ? 3x3 groups 2, fc", "groups must divide"),
    ],
)
def test_a_chain_that_cannot_be_searched_is_one_line(line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_open_chain(line)


def test_open_places_are_filled_in_order() -> None:
    chain = parse_open_chain("conv ?  5x5 bn, conv 7 3x3, pool 2, fc ?, fc")
    assert chain.line == "conv ? 5x5 bn, conv 7 3x3, pool 2, fc ?, fc"
    assert chain.filled([3, 9]).line == "conv 3 5x5 bn, conv 7 3x3, pool 2, fc 9, fc"
    assert parse_open_chain("pico").filled([2, 3, 4]).widths == (2, 3, 4)
