"""The section of the configuration that says what `search` tries, for how long, and how it chooses."""

from typing import ClassVar, Literal

from pydantic import Field

from pipeline.section import Section


class Search(Section):
    """What `search` tries; each trial is a training run with workers of its own."""

    prefix: ClassVar[str] = "search."
    name: str = ""
    """Name of the search, a folder below run.url; the same name goes on where it stopped; nothing: PRESET-search."""
    space: tuple[str, ...] = ("model.num_layers=choice(2,4,8)", "model.num_filters=choice(16,32)")
    """KEY=choice(a,b,...), KEY=uniform(low,high), KEY=loguniform(low,high) or KEY=randint(low,high), both ends
    included; KEY is any key of model, data or train."""
    searcher: Literal["grid", "random", "optuna"] = "grid"
    """How values are chosen: every combination, at random, or by Optuna's TPE."""
    objectives: tuple[Literal["bits_per_dim", "flops"], ...] = ("bits_per_dim",)
    """What is made small: bits_per_dim, or bits_per_dim and flops (of one image), a Pareto front."""
    num_trials: int = Field(default=12, ge=1)
    """Trials of the random and optuna searchers, no combination tried twice; members of the population of pbt."""
    budget: float = Field(default=0.0, ge=0.0, lt=1e15)
    """What each trial may train, in budget_unit; its train.steps follow; 0: train.steps of the configuration."""
    budget_unit: Literal["images", "pflop"] = "pflop"
    """images trained on, or PFLOP (1e15) spent, which is fair between small and large models."""
    scheduler: Literal["asha", "median", "pbt", "none"] = "asha"
    """What becomes of weak trials: they are stopped early by asynchronous successive halving or by the median stopping
    rule, or they go on from a strong one's checkpoint with changed values (population based training), or nothing."""
    evaluations: int = Field(default=16, ge=1)
    """Evaluations of a trial over its budget, each with a checkpoint; trials are compared and stopped there."""
    first_rung: float = Field(default=0.0625, gt=0.0, le=1.0)
    """Share of its budget that a trial gets before it may be stopped."""
    reduction_factor: float = Field(default=4.0, gt=1.0)
    """For asha: a rung comes after so many times the budget of the one before, and one of so many trials passes it."""
    perturbation_interval: float = Field(default=0.125, gt=0.0, lt=1.0)
    """For pbt: share of its budget after which a member is compared with the others again."""
    max_concurrent_trials: int = Field(default=0, ge=0)
    """Trials at the same time; 0: as many as the cluster has CPUs and GPUs for all their workers."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the random and optuna searchers."""
