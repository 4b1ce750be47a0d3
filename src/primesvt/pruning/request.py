"""Complete and check the config of a run, and look up the code that its names stand for."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from primesvt.calibration import CalibrationSet
from primesvt.config import Limits, Method, PruneConfig
from primesvt.importance import Criterion, find_importance, needs_inputs
from primesvt.pruning.policies import Policy, find_policy
from primesvt.recovery import Recovery, find_recovery
from primesvt.registry import CRITERIA, POLICIES, place_of

__all__ = ["Request", "request_of"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A pruning run as asked for: its complete config, and what the names in it stand for.

    Attributes:
        config: every option; pruning rates and the policy's own options are filled in.
        policy, criterion, recovery: what the names of ``config.method`` stand for.
        names: those of the importance and the recovery, as they are used.
        function_digest: of the source of an importance that was given as a function.
        from_run: folder of an earlier run whose probes are used again.
        notes: what was replaced, one sentence each.
    """

    config: PruneConfig
    policy: type[Policy]
    criterion: Criterion
    recovery: type[Recovery]
    names: Mapping[str, str]
    function_digest: str | None = None
    from_run: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def method(self) -> Method:
        """How layers are probed, chosen and cut."""
        return self.config.method

    @property
    def looks_at_inputs(self) -> bool:
        """Whether calibration inputs have a part in the result."""
        return self.recovery.needs_inputs or needs_inputs(self.criterion)

    @property
    def needs_curves(self) -> bool:
        """Whether the policy has every layer probed alone at all its rates."""
        method = self.method
        return self.policy.needs_curves(method.policy_options, exact=method.exact)

    def for_inputs(self, calibration: CalibrationSet | None) -> Request:
        """The request with what can be done without calibration inputs, where there are none."""
        if calibration is not None or not self.looks_at_inputs:
            return self
        instead, names, notes = {"recovery": "none", "importance": "l2"}, dict(self.names), []
        needed = {
            "recovery": self.recovery.needs_inputs,
            "importance": needs_inputs(self.criterion),
        }
        for part in (part for part, needs in needed.items() if needs):
            notes.append(
                f"There were no calibration inputs, so {part} is {instead[part]!r} instead of"
                f" {names[part]!r}; give calibration= for it."
            )
            names[part] = instead[part]
        return replace(
            self,
            criterion=find_importance("l2") if needed["importance"] else self.criterion,
            recovery=Recovery if needed["recovery"] else self.recovery,
            names=names,
            notes=(*self.notes, *notes),
        )


def request_of(
    config: PruneConfig | None = None,
    *,
    limits: Limits | None = None,
    data: Any = None,
    options: Mapping[str, Any] | None = None,
) -> Request:
    """Make a request from a config and keywords, which override it.

    Args:
        config: the options; the defaults when not given.
        limits: instead of the config's.
        data: what is measured on; its name is put down where it has one.
        options: single options by their names, ``preset`` and ``from_run``.

    Raises:
        ValueError: an unknown option or name, a value that is not allowed, or options that do not
            go together.

    Example:
        >>> request_of(options={"policy": "prime", "policy_options": {"reading": "B"}}).needs_curves
        True
    """
    options = dict(options or {})
    from_run, criterion = options.pop("from_run", None), options.get("importance")
    if callable(criterion):
        options["importance"] = place_of(criterion)
    if options.get("device") is not None:
        options["device"] = str(options["device"])
    config = PruneConfig() if config is None else config
    for name, given, kind in (("config", config, PruneConfig), ("constraints", limits, Limits)):
        if given is not None and not isinstance(given, kind):
            raise ValueError(f"{name} is {given!r}, but must be a primesvt.{kind.__name__}")
    if limits is not None:
        config = config.model_copy(update={"limits": limits})
    if data is not None:
        named = str(data) if isinstance(data, str | Path) else config.data
        config = config.model_copy(update={"data": named})
    config = config.with_options(**options)
    policy = find_policy(config.method.policy)
    config = _complete(config, policy)
    _check_together(config, policy)
    return Request(
        config=config,
        policy=policy,
        criterion=criterion if callable(criterion) else _criterion(config.method.importance),
        recovery=find_recovery(config.method.recovery),
        names={"importance": config.method.importance, "recovery": config.method.recovery},
        function_digest=_source_digest(criterion) if callable(criterion) else None,
        from_run=None if from_run is None else Path(from_run),
    )


def _complete(config: PruneConfig, policy: type[Policy]) -> PruneConfig:
    """The config with the policy's own options and rates filled in."""
    method = config.method
    try:
        own = policy.Options(**method.policy_options).model_dump()
    except ValueError as error:
        raise ValueError(f"policy {method.policy}: {error}") from None
    rates = policy.rates if method.rates is None else method.rates
    update = {"policy_options": own, "rates": tuple(rates)}
    return config.model_copy(update={"method": method.model_copy(update=update)})


def _source_digest(function: Any) -> str | None:
    """SHA-256 of a function's source, so that an edited one is another; ``None`` without a file."""
    try:
        return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()
    except (OSError, TypeError):
        return None


def _criterion(name: str) -> Criterion:
    """A criterion by name; one that was given as a function has to be given again."""
    if ":" in name and name not in CRITERIA.names():
        raise ValueError(
            f"importance is the function {name}, which a name alone does not bring back; give it "
            "again as importance=, or register it with primesvt.criterion"
        )
    return find_importance(name)


def _check_together(config: PruneConfig, policy: type[Policy]) -> None:
    """Raise ``ValueError`` for options that the policy cannot follow."""
    method, limits = config.method, config.limits
    if method.channel_multiple > 1 and policy.any_width:
        raise ValueError(
            f"channel_multiple does not go with policy {method.policy!r}, which takes any width; "
            "choose another policy, or leave channel_multiple out"
        )
    if limits.steers and limits.stop_at_saving and not policy.steers:
        able = " or ".join(repr(name) for name in POLICIES if find_policy(name).steers)
        raise ValueError(
            f"policy {method.policy!r} does not count max_latency and max_membrane on its way, so "
            f"it cannot stop when they hold: take policy {able}, or leave out stop_at_saving, and "
            "they are checked at the end"
        )
