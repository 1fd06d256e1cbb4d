"""Ray Tune's ways to choose values and to deal with weak trials, as config.search names them."""

import random
from typing import Any

# First, as it decides on a token, which Ray reads when it is imported.
import pipeline.ray_cluster  # noqa: F401

# isort: split
import optuna
from ray import tune
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import BasicVariantGenerator, Searcher
from ray.tune.search.optuna import OptunaSearch

from pipeline.checkpoint import newest_config
from pipeline.config import flatten
from pipeline.errors import UserError
from pipeline.learner import run_url_of
from pipeline.search.record import load_records
from pipeline.search.space import Choice, Space, is_population, member_name, rounded, trial_config, trial_name
from pipeline.search.trial import Plan

TRIES = 200
"""How often a searcher may repeat itself before there is nothing new to try."""
OBJECTIVES = {"bits_per_dim": "bits_per_dim", "flops": "gflop_per_image"}


def searching(plan: Plan, concurrent: int) -> dict[str, Any]:
    """What Tuner and TuneConfig want to know of the values: param_space, and search_alg with its limits.

    Raises:
        UserError: a population has more members than there are places.
    """
    search = plan.config.search
    if is_population(plan.config):
        if search.num_trials > concurrent:
            raise UserError(
                f"search.num_trials {search.num_trials}: a population trains together, and there are places for "
                f"{concurrent} trials at a time; lower it, or cluster.num_workers, or search on a larger cluster"
            )
        members = _members(plan)
        searcher = BasicVariantGenerator(points_to_evaluate=members, max_concurrent=concurrent)
        return {"param_space": _domains(plan.space), "search_alg": searcher, "num_samples": len(members)}
    if search.searcher == "grid":
        choices = {key: domain for key, domain in plan.space.items() if isinstance(domain, Choice)}
        space = {key: tune.grid_search(list(domain.values)) for key, domain in choices.items()}
        return {"param_space": space, "search_alg": BasicVariantGenerator(max_concurrent=concurrent)}
    return {"search_alg": _Distinct(plan), "num_samples": search.num_trials, "max_concurrent_trials": concurrent}


def scheduler(plan: Plan) -> TrialScheduler:
    """What becomes of weak trials, by progress, which is percent of the budget: equal images or equal FLOPs."""
    search = plan.config.search
    first = 100.0 * search.first_rung
    of = {"time_attr": "progress", "metric": "bits_per_dim", "mode": "min"}
    if search.scheduler == "asha":
        return ASHAScheduler(**of, max_t=100, grace_period=first, reduction_factor=search.reduction_factor)
    if search.scheduler == "median":
        return MedianStoppingRule(**of, grace_period=first)
    if search.scheduler == "pbt":
        random.seed(search.seed)  # which Tune's scheduler draws from
        return Population(
            **of,
            perturbation_interval=100.0 * search.perturbation_interval,
            hyperparam_mutations={
                key: list(domain.values) if isinstance(domain, Choice) else _domains(plan.space)[key]
                for key, domain in plan.space.items()
            },
            custom_explore_fn=lambda values: rounded(plan.space, values),
        )
    return FIFOScheduler()


class Population(PopulationBasedTraining):
    """A population whose members all have places, so that none stops to make room for another.

    Ray's stops a member that reports while another has still to start, and starts it anew later: each that goes on from
    another's checkpoint would cost the others their processes, too.
    """

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """A member trains on, unless it is to go on from another's checkpoint."""
        decision = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if decision == TrialScheduler.PAUSE else decision


def _members(plan: Plan) -> list[dict[str, Any]]:
    """The values that each member of a population begins or goes on with."""
    sampler = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=plan.config.search.seed))
    members = []
    for number in range(plan.config.search.num_trials):
        drawn = rounded(plan.space, sampler.ask(OptunaSearch.convert_search_space(_domains(plan.space))).params)
        before = newest_config(run_url_of(trial_config(plan.config, drawn, member_name(number))))
        kept = {key: flatten(before)[key] for key in plan.space} if before else {}
        members.append(drawn | kept)
    return members


class _Distinct(OptunaSearch):
    """Optuna's samplers, which here never try the same values twice; recorded trials come first."""

    def __init__(self, plan: Plan) -> None:
        search = plan.config.search
        metrics = [OBJECTIVES[objective] for objective in search.objectives]
        samplers = {"random": optuna.samplers.RandomSampler, "optuna": optuna.samplers.TPESampler}
        super().__init__(
            space=_domains(plan.space),
            metric=metrics if len(metrics) > 1 else metrics[0],
            mode=["min"] * len(metrics) if len(metrics) > 1 else "min",
            points_to_evaluate=[record.values for record in load_records(plan.url)] or None,
            sampler=samplers[search.searcher](seed=search.seed),
        )
        self._plan, self._names = plan, set[str]()

    def suggest(self, trial_id: str) -> Any:
        """Values that were not tried, or that nothing is left to try."""
        for _ in range(TRIES):
            values = super().suggest(trial_id)
            name = trial_name(rounded(self._plan.space, values))
            if name not in self._names:
                self._names.add(name)
                return values
            self._ot_study.tell(self._ot_trials.pop(trial_id), state=optuna.trial.TrialState.FAIL)
        return Searcher.FINISHED


def _domains(space: Space) -> dict[str, Any]:
    domains: dict[str, Any] = {}
    for key, domain in space.items():
        if isinstance(domain, Choice):
            domains[key] = tune.choice(list(domain.values))
        elif domain.is_whole:
            domains[key] = tune.randint(int(domain.low), int(domain.high) + 1)
        else:
            domains[key] = (tune.loguniform if domain.is_log else tune.uniform)(domain.low, domain.high)
    return domains
