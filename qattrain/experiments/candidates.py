"""The candidates of a search: widths of a chain's open places, bits by layer, and what they cost.

A proposal that breaks a budget is not trained: all its open widths shrink by one factor, to the largest candidate that
keeps to the budgets. So most candidates use what they may, and only their proportions and bits are searched.

Proposals come from Optuna: the tree-structured Parzen estimator, over all parameters at once. Source: Bergstra et al.
2011, "Algorithms for Hyper-Parameter Optimization"; Akiba et al. 2019, "Optuna".
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import multimode
from typing import TYPE_CHECKING, Any, TypeVar

from qattrain.config import AVERAGE_BITS, QuantConfig, check_layer_bits
from qattrain.config.chain import LARGEST, PRESETS, OpenChain, PlacedLayer, Shape, parse_open_chain
from qattrain.errors import ConfigError, optional_package, pick

if TYPE_CHECKING:
    import optuna

WIDTH_BITS = range(1, 9)
USUAL_BITS = 4  # of a candidate that nobody proposed: the first of each family
USUAL_ACT_BITS = 8
MACS_PER_CYCLE = 2  # at most, on every core we measure on
RANGE = 4  # an open width is between a quarter and four times that of its family's first candidate
STEPS = 14  # halvings of an interval of factors
MOST_PROPOSALS = 300  # in vain, for one candidate
FAMILY, ACTIVATIONS = "family", "activation bits"

Made = TypeVar("Made")
Params = dict[str, Any]  # a proposal, by the names that Optuna knows

OPTIONS = {  # of the command, by the names of `Costs`
    "weight_bytes": "--bytes",
    "total_bytes": "--total-bytes",
    "macs": "--macs",
    "flash_bytes": "--flash",
    "milliseconds": "--time-ms",
}


@dataclass(frozen=True)
class Costs:
    """What a network takes. weight_bytes, total_bytes, macs: as `qattrain inspect` tells them.

    flash_bytes, milliseconds: of the exported C on a core under QEMU; None: not measured.
    """

    weight_bytes: int
    total_bytes: int
    macs: int
    flash_bytes: int | None = None
    milliseconds: float | None = None


@dataclass(frozen=True)
class Budget:
    """At most so much of each; None: as much as it takes. core: on which flash and milliseconds count, at mhz."""

    weight_bytes: int | None = None
    total_bytes: int | None = None
    macs: int | None = None
    flash_bytes: int | None = None
    milliseconds: float | None = None
    core: str | None = None
    mhz: float = 48.0

    @property
    def limits(self) -> dict[str, float]:
        """The budgets that are set, by the names of `Costs`."""
        values = {name: getattr(self, name) for name in Costs.__dataclass_fields__}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def bounds(self) -> "Budget":
        """What follows from it without asking the core: weights lie in flash, and no core is faster than that."""
        flash, cycles = self.flash_bytes, (self.milliseconds or math.inf) * self.mhz * 1000
        weights = [most for most in (self.weight_bytes, flash) if most is not None]
        macs = [most for most in (self.macs, MACS_PER_CYCLE * cycles) if most is not None and most < math.inf]
        return replace(self, weight_bytes=min(weights, default=None), macs=int(min(macs)) if macs else None)

    def broken(self, costs: Costs) -> dict[str, float]:
        """The costs that are above their budgets; those not measured are not."""
        found = {name: getattr(costs, name) for name in self.limits}
        return {name: cost for name, cost in found.items() if cost is not None and cost > self.limits[name]}


@dataclass(frozen=True)
class Candidate:
    """A network to be tried. params: the proposal that describes it exactly. model: the chain's line."""

    params: Params
    model: str
    quant: QuantConfig
    costs: Costs

    def settings(self) -> dict[str, Any]:
        """What it sets of a configuration."""
        return {"model": {"name": self.model}, "quant": self.quant.model_dump(mode="json")}

    @property
    def identity(self) -> str:
        """Equal for equal networks."""
        return identity(self.model, self.quant)

    def record(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"params": self.params, "model": self.model, "quant": self.quant.model_dump(mode="json")} | {
            "costs": asdict(self.costs)
        }

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Candidate":
        """From such a record."""
        quant = QuantConfig.model_validate(record["quant"])
        return cls(dict(record["params"]), record["model"], quant, Costs(**record["costs"]))


def identity(line: str, quant: QuantConfig) -> str:
    """Equal for equal networks. line: a chain's."""
    bits = {layer: bits for layer, bits in sorted(quant.layer_bits.items()) if bits != quant.bits}
    return f"{line}; {quant.model_copy(update={'layer_bits': bits}).model_dump_json()}"


# What a chain with these bits takes on a device as well.
Measure = Callable[[str, QuantConfig, Costs], Costs]


def preset_families() -> dict[str, OpenChain]:
    """The presets with all widths open; of those with the same layers the first."""
    found: dict[str, OpenChain] = {}
    for name in PRESETS:
        family = parse_open_chain(name)
        if family.line not in [other.line for other in found.values()]:
            found[name] = family
    return found


class Space:
    """Everything a candidate may be.

    families: the chains to choose from. quant: what is settled of all candidates; its `bits`, `act_bits` and
    `layer_bits` are kept where they are given. measure: the costs of a chain with these bits on a device, for budgets
    of flash and time. Raises ConfigError if no candidate keeps to the budgets, with what the smallest takes.
    """

    def __init__(
        self,
        families: Mapping[str, OpenChain],
        quant: QuantConfig,
        budget: Budget,
        shape: Shape,
        classes: int,
        measure: Measure | None = None,
    ) -> None:
        self.families, self.quant, self.budget = dict(families), quant, budget
        self.shape, self.classes = shape, classes
        self.measure, self.measured = measure, dict[str, Costs]()
        self.bits = [bits for bits in WIDTH_BITS if _is_allowed(quant.quantizer, bits)]
        self.usual_bits = min(self.bits, key=lambda bits: abs(bits - USUAL_BITS))
        self.smallest = {name: one for name in families if (one := self._smallest(name)) is not None}
        fitting = [name for name, one in self.smallest.items() if not self._broken(one)]
        if not fitting:
            raise ConfigError(self._nothing_fits())
        self.families = {name: self.families[name] for name in fitting}
        self.usual_widths = {name: self._usual_widths(name) for name in fitting}

    def distributions(self, family: str) -> "dict[str, optuna.distributions.BaseDistribution]":
        """What may vary in candidates of a family."""
        from optuna.distributions import CategoricalDistribution, IntDistribution

        layers = self._bit_names(family).values() if self.quant.bits is None else ()
        found: dict[str, Any] = {FAMILY: CategoricalDistribution(tuple(self.families))}
        found |= {name: IntDistribution(*ends, log=True) for name, ends in self._ranges(family).items()}
        found |= {name: IntDistribution(self.bits[0], self.bits[-1]) for name in layers}
        if self.quant.act_bits is None:
            found[ACTIVATIONS] = IntDistribution(WIDTH_BITS[0], WIDTH_BITS[-1])
        return found

    def first(self) -> list[Candidate]:
        """Where nothing is known yet: each family in its own proportions, with 4-bit weights and 8-bit activations.

        If none of these keeps to the budgets, the smallest of the family.
        """
        found = []
        for name, widths in self.usual_widths.items():
            usual = self._alike(name, 1, self.usual_bits, USUAL_ACT_BITS)
            candidate = self.fitted(usual | dict(zip(self._width_names(name), widths, strict=True)))
            found.append(candidate or self._measured(self.smallest[name]))
        return found

    def fitted(self, params: Params) -> Candidate | None:
        """The candidate of a proposal, its open widths shrunk until it keeps to the budgets; None if none does."""
        ranges = self._ranges(params[FAMILY])

        def shrunk(factor: float) -> Candidate | None:
            widths = {name: max(low, round(factor * params[name])) for name, (low, _) in ranges.items()}
            candidate = self._candidate(params | widths)
            return None if candidate is None or self._broken(candidate) else candidate

        found = shrunk(1.0) or largest(shrunk, 1.0)
        return self._measured(found) if found is not None else None

    def _ranges(self, family: str) -> dict[str, tuple[int, int]]:
        """The lowest and the highest number for each open place, by the parameter's name."""
        ends = [(max(1, width // RANGE), RANGE * width) for width in self.usual_widths[family]]
        return dict(zip(self._width_names(family), ends, strict=True))

    def _usual_widths(self, family: str) -> list[int]:
        """Those of the preset, of a chain all alike, as large as the budgets that need no device allow."""
        chain = self.families[family]
        own = [chain.chain.widths[place] if family in PRESETS else LARGEST["width"] for place in chain.places]

        def scaled(factor: float) -> list[int] | None:
            widths = [max(1, round(factor * width)) for width in own]
            params = self._alike(family, 1, self.usual_bits, USUAL_ACT_BITS)
            candidate = self._candidate(params | dict(zip(self._width_names(family), widths, strict=True)))
            fits = candidate is not None and not self.budget.bounds.broken(candidate.costs)
            return [min(width, LARGEST["width"] // RANGE) for width in widths] if fits else None

        return largest(scaled, LARGEST["width"] / max(own)) or [1] * len(own)

    def _width_names(self, family: str) -> list[str]:
        return [f"{family}: width {number}" for number, _ in enumerate(self.families[family].places, start=1)]

    def _bit_names(self, family: str) -> dict[str, str]:
        """Of the layers whose bits are not given."""
        layers = self.families[family].chain.weight_layers
        return {layer: f"{family}: {layer} bits" for layer in layers if layer not in self.quant.layer_bits}

    def _alike(self, family: str, width: int, bits: int, act_bits: int) -> Params:
        """The parameters of a candidate whose widths and whose bits are all alike."""
        widths = dict.fromkeys(self._width_names(family), width)
        params: Params = {FAMILY: family, **widths}
        if self.quant.bits is None:
            params |= dict.fromkeys(self._bit_names(family).values(), bits)
        return params if self.quant.act_bits is not None else params | {ACTIVATIONS: act_bits}

    def _candidate(self, params: Params) -> Candidate | None:
        """The candidate of these parameters, with the costs that need no device; None if its layers do not fit."""
        family = params[FAMILY]
        chain = self.families[family].filled([params[name] for name in self._width_names(family)])
        quant = self._quant_of(params)
        try:
            return Candidate(params, chain.line, quant, chain_total(chain.place(self.shape, self.classes), quant))
        except ConfigError:
            return None

    def _quant_of(self, params: Params) -> QuantConfig:
        """The usual bits as `bits`, the others as `layer_bits`."""
        update: dict[str, Any] = {"act_bits": params.get(ACTIVATIONS, self.quant.act_bits)}
        if self.quant.bits is None:
            bits = {layer: params[name] for layer, name in self._bit_names(params[FAMILY]).items()}
            usual = min(multimode(bits.values()), default=self.usual_bits)
            others = {layer: width for layer, width in bits.items() if width != usual}
            update |= {"bits": usual, "layer_bits": self.quant.layer_bits | others}
        return self.quant.model_copy(update=update)

    def _broken(self, candidate: Candidate) -> dict[str, float]:
        """The budgets it breaks; a device is asked only if it keeps to all others."""
        return self.budget.bounds.broken(candidate.costs) or self.budget.broken(self._measured(candidate).costs)

    def _measured(self, candidate: Candidate) -> Candidate:
        if self.measure is None:
            return candidate
        if candidate.identity not in self.measured:
            self.measured[candidate.identity] = self.measure(candidate.model, candidate.quant, candidate.costs)
        return replace(candidate, costs=self.measured[candidate.identity])

    def _smallest(self, family: str) -> Candidate | None:
        """One output in every open place and the fewest bits. None if the layers do not fit images of this size.

        Raises ConfigError if that is so with the only family, or if bits are given for a layer that it has not.
        """
        check_layer_bits(self.quant, self.families[family].chain)
        if len(self.families) == 1:
            self.families[family].chain.place(self.shape, self.classes)
        return self._candidate(self._alike(family, 1, self.bits[0], WIDTH_BITS[0]))

    def _nothing_fits(self) -> str:
        candidate = min(self.smallest.values(), key=lambda one: one.costs.weight_bytes)
        broken = self.budget.broken(self._measured(candidate).costs)
        asked = ", ".join(f"{OPTIONS[name]} {self.budget.limits[name]:,}" for name in broken)
        needed = ", ".join(f"{OPTIONS[name]} {math.ceil(1000 * cost) / 1000:,g}" for name, cost in broken.items())
        return f"no network keeps to {asked}: the smallest, '{candidate.model}', needs {needed}; give at least that"


def largest(make: Callable[[float], Made | None], most: float) -> Made | None:
    """What `make` gives for the largest factor, from 0 to below `most`, for which it gives something."""
    found, bottom, top = make(0.0), 0.0, most
    for _ in range(STEPS if found is not None else 0):
        middle = (bottom + top) / 2
        smaller = make(middle)
        found, bottom, top = (smaller, middle, top) if smaller is not None else (found, bottom, middle)
    return found


def chain_total(placed: Sequence[PlacedLayer], quant: QuantConfig) -> Costs:
    """What a chain on images of one size takes, but for a device. quant: with bits."""
    from qattrain.evaluation.inspection import chain_costs
    from qattrain.layers.network import packed_bytes

    assert quant.bits is not None
    bits = {one.layer.name: quant.layer_bits.get(one.layer.name, quant.bits) for one in placed if one.weight_shape}
    averages = {one.layer.name: AVERAGE_BITS for one in placed if not one.weight_shape}
    costs = chain_costs(placed, bits | averages)
    weights = sum(packed_bytes(costs[name].weights, bits[name]) for name in bits)
    total, macs = (sum(getattr(cost, key) for cost in costs.values()) for key in ("total_bytes", "macs"))
    return Costs(weights, total, macs)


def _is_allowed(quantizer: str, bits: int) -> bool:
    from qattrain.quant import weight_quantizer_name

    try:
        weight_quantizer_name(quantizer, bits)
    except ConfigError:
        return False
    return True


# --- proposals --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tried:
    """What is known of a candidate. losses: on held-out images, by the number of epochs it was trained for.

    is_complete: it was trained to the end, not passed over.
    """

    candidate: Candidate
    losses: dict[int, float]
    is_complete: bool


SAMPLERS: dict[str, dict[str, Any]] = {  # Optuna's, by its name there, and how it is made
    "tpe": {"name": "TPESampler", "multivariate": True, "group": True, "constant_liar": True},
    "random": {"name": "RandomSampler"},
}


def propose(space: Space, tried: Sequence[Tried], sampler: str, seed: int) -> Iterator[Candidate]:
    """New candidates, until nothing new is proposed any more.

    The same arguments give the same candidates: nothing else is kept from one call to the next. sampler: a key of
    SAMPLERS. Raises TrainingError if Optuna is missing.
    """
    options = dict(pick(SAMPLERS, sampler, "--sampler"))
    with optional_package("search", "fit"):
        import optuna
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        chosen = getattr(optuna.samplers, options.pop("name"))(seed=seed, **options)
    study = optuna.create_study(direction="minimize", sampler=chosen)
    try:
        study.add_trials([_trial(space, one) for one in tried])
    except (KeyError, ValueError, TypeError):
        raise ConfigError("the candidates so far are none of this search; choose another --name") from None
    known, in_vain = {one.candidate.identity for one in tried}, 0
    while in_vain < MOST_PROPOSALS:
        candidate = space.fitted(_asked(space, study.ask()))
        in_vain += 1
        if candidate is not None and candidate.identity not in known:
            known.add(candidate.identity)
            in_vain = 0
            yield candidate


def _asked(space: Space, trial: "optuna.Trial") -> Params:
    """What Optuna proposes."""
    params: Params = {FAMILY: trial.suggest_categorical(FAMILY, tuple(space.families))}
    for name, values in space.distributions(params[FAMILY]).items():
        if name != FAMILY:
            params[name] = trial.suggest_int(name, values.low, values.high, log=values.log)  # type: ignore[attr-defined]
    return params


def _trial(space: Space, tried: Tried) -> "optuna.trial.FrozenTrial":
    """A candidate as Optuna knows it."""
    from optuna.trial import TrialState, create_trial

    params = tried.candidate.params
    return create_trial(
        state=TrialState.COMPLETE if tried.is_complete else TrialState.PRUNED,
        value=tried.losses[max(tried.losses)] if tried.is_complete else None,
        params=params,
        distributions=space.distributions(params[FAMILY]),
        intermediate_values=tried.losses,
    )
