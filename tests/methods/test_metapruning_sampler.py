"""The evolution of MetaPruning on toy objectives: operators, bounds, generations, storages, kills.

Numbers in the names are those of the method's invariants; PruningNet's are in test_metapruning_invariants.py.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from hwprune.core.errors import BudgetInfeasible
from hwprune.core.widths import ChannelGroup, SearchSpace
from hwprune.methods._metapruning_genes import Gene, GeneSpace, children, mutants
from hwprune.methods._metapruning_sampler import MetaPruningSampler, SpaceExhausted, WithinBudget, ranked
from hwprune.methods._metapruning_study import open_storage, open_study, quiet
from hwprune.testing.methods import StaircaseLatency

POPULATION = 10
SPEC = {"space": "toy", "target_ms": 1.0}


class LinearLatency(StaircaseLatency):
    """Every unit of a group costs the same, 1.0 ms all together."""

    def predict_batch(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values.mean(axis=1) / 31)


def toy_space(groups: int = 6, widths: int = 31) -> SearchSpace:
    made = tuple(ChannelGroup(f"g{index}", widths) for index in range(groups))
    return SearchSpace(made, (tuple(range(1, widths + 1)),) * groups)


def toy_genes(budget: float = 0.5, *, groups: int = 6, widths: int = 31, least_use: float = 0.9) -> GeneSpace:
    return GeneSpace.within(toy_space(groups, widths), LinearLatency(), budget, least_use)


def goodness(gene: Gene) -> float:
    """A separable quadratic whose optimum differs from group to group."""
    wanted = (7, 25, 3, 18, 12, 22, 9, 15, 28, 5, 20, 11, 17)
    return -float(sum((place - best) ** 2 for place, best in zip(gene, itertools.cycle(wanted), strict=False)))


def run(study: optuna.Study, sampler: MetaPruningSampler | WithinBudget, count: int) -> list[Gene]:
    """Ask and tell until `count` trials are complete; their genes in order."""
    with quiet():
        while len(complete(study)) < count:
            trial = study.ask()
            gene = tuple(trial.suggest_int(name, 0, 30) for name in sampler.names)
            study.tell(trial, goodness(gene))
    return [gene_at(trial, sampler) for trial in complete(study)]


def complete(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def gene_at(trial: optuna.trial.FrozenTrial, sampler: MetaPruningSampler | WithinBudget) -> Gene:
    return tuple(trial.params[name] for name in sampler.names)


def ga(genes: GeneSpace, **options: Any) -> MetaPruningSampler:
    return MetaPruningSampler(genes, **{"population": POPULATION, "parents": 5, "seed": 3, **options})


def fresh(genes: GeneSpace, path: Path | None = None, url: str = "", **options: Any) -> tuple[optuna.Study, Any]:
    sampler = ga(genes, **options)
    return open_study(open_storage(path, url), SPEC, sampler, "here"), sampler


def test_1_the_grid_is_that_of_the_space_ascending_to_dense() -> None:
    genes = toy_genes()
    every = np.arange(31)[:, None].repeat(6, axis=1)
    values = genes.values(every)
    assert values.dtype == np.int64
    assert (np.diff(values, axis=0) > 0).all()
    assert genes.widths((30,) * 6) == genes.space.dense()
    assert genes.widths((0,) * 6) == genes.space.smallest()
    assert all(genes.gene(genes.widths(gene)) == gene for gene in ((0, 30, 4, 5, 6, 7), (1,) * 6))


@pytest.mark.parametrize("name", ["ga", "random", "nsga2", "tpe"])
@pytest.mark.parametrize("budget", [0.5, 0.12])
def test_9_every_candidate_keeps_the_budget_and_none_comes_twice(name: str, budget: float) -> None:
    genes = toy_genes(budget)
    stock: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "nsga2": lambda: optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=0),
        "tpe": lambda: optuna.samplers.TPESampler(seed=0),
    }
    with quiet():
        sampler = WithinBudget(stock[name](), genes, 0) if name in stock else ga(genes, evolve=name == "ga")
    study = open_study(open_storage(None, ""), SPEC, sampler, "memory")
    found = run(study, sampler, 35)
    cost_ms = genes.cost_ms(np.array(found))
    assert ((genes.low_ms <= cost_ms) & (cost_ms <= genes.high_ms)).all()
    assert genes.low_ms == pytest.approx(0.9 * budget)
    assert len(set(found)) == 35


def test_9_all_generations_have_the_size_of_the_population() -> None:
    genes = toy_genes()
    study, sampler = fresh(genes)
    run(study, sampler, 4 * POPULATION)
    stamps = [sampler.get_trial_generation(study, trial) for trial in complete(study)]
    assert stamps == [generation for generation in range(4) for _ in range(POPULATION)]


def test_10_mutation_changes_a_tenth_of_the_genes_and_never_to_themselves() -> None:
    sizes = np.array([31] * 13)
    parents = [tuple(range(13)), tuple(range(13, 26))]
    made = list(mutants(np.random.default_rng(0), parents, sizes, 0.1, 20_000))
    old = np.array([parents[item.parents[0]] for item in made])
    changed = np.array([item.gene for item in made]) != old
    rate = changed.mean()
    assert abs(rate - 0.1) < 4 * np.sqrt(0.09 / changed.size)
    assert abs((~changed).all(axis=1).mean() - 0.9**13) < 0.015
    new = np.array([item.gene for item in made])[changed]
    assert new.min() == 0
    assert new.max() == 30
    always = np.array([item.gene for item in mutants(np.random.default_rng(1), parents, sizes, 1.0, 500)])
    assert not (always == np.array(parents)[:, None]).all(axis=2).any()
    assert all(item.gene[0] == 0 for item in mutants(np.random.default_rng(0), [(0, 4)], np.array([1, 9]), 1.0, 50))


def test_10_the_genes_of_a_child_come_from_its_two_parents() -> None:
    parents = [(0,) * 13, (1,) * 13, (2,) * 13]
    made = list(children(np.random.default_rng(0), parents, 2_000))
    assert all(first != second for first, second in (item.parents for item in made))
    assert all(set(item.gene) <= {parents[place][0] for place in item.parents} for item in made)
    from_first = np.mean([np.mean(np.array(item.gene) == item.parents[0]) for item in made])
    assert abs(from_first - 0.5) < 0.02


def test_10_parents_are_the_best_of_all_generations() -> None:
    genes = toy_genes()
    study, sampler = fresh(genes)
    run(study, sampler, 3 * POPULATION + 1)
    before = [trial for trial in complete(study) if sampler.get_trial_generation(study, trial) < 3]
    best = ranked(before)[:5]
    assert {trial.number for trial in sampler.get_parent_population(study, 3)} == {trial.number for trial in best}
    assert sampler.select_parent(study, 3)[0].value == max(trial.value or 0.0 for trial in complete(study))


def test_10_half_of_a_generation_are_mutants_and_half_are_children() -> None:
    genes = toy_genes()
    study, sampler = fresh(genes)
    run(study, sampler, 3 * POPULATION)
    kinds = [sampler.made[trial.number].operator for trial in complete(study)]
    assert kinds[:POPULATION] == ["random"] * POPULATION
    for start in (POPULATION, 2 * POPULATION):
        assert kinds[start : start + 5] == ["mutation"] * 5
        assert set(kinds[start + 5 : start + 10]) <= {"crossover", "random"}
    numbers = {trial.number for trial in complete(study)}
    assert all(set(made.parents) <= numbers for made in sampler.made.values())


def test_11_the_best_never_falls_and_the_evolution_beats_random_search() -> None:
    ahead = 0
    for seed in range(2):
        best = {}
        for evolve in (True, False):
            genes = toy_genes(0.5, groups=13)
            study, sampler = fresh(genes, evolve=evolve, seed=seed)
            values = [goodness(gene) for gene in run(study, sampler, 10 * POPULATION)]
            tops = np.maximum.accumulate([max(values[i : i + POPULATION]) for i in range(0, len(values), POPULATION)])
            assert (np.diff(tops) >= 0).all()
            best[evolve] = max(values)
        ahead += best[True] > best[False]
    assert ahead == 2


@pytest.mark.parametrize("storage", ["journal", "sqlite"])
def test_12_a_search_killed_in_a_generation_goes_on_bit_for_bit(storage: str, tmp_path: Path) -> None:
    genes = toy_genes(groups=3)
    whole = run(*fresh(genes, population=6), 15)
    path = tmp_path / "study.log" if storage == "journal" else None
    url = "" if path else f"sqlite:///{tmp_path}/study.db"
    for stop in (4, 9):
        study, sampler = fresh(genes, path, url, population=6)
        found = run(study, sampler, stop)
        assert found == whole[:stop]
        torn = study.ask()  # killed between two parameters of a candidate
        torn.suggest_int(sampler.names[0], 0, 30)
        if stop == 9:
            for name in sampler.names[1:]:  # and while it was evaluated
                torn.suggest_int(name, 0, 30)
    assert run(*fresh(genes, path, url, population=6), 15) == whole


def _evolve_in_child(path: Path) -> None:
    genes = toy_genes(groups=3)
    study, sampler = fresh(genes, path)
    while True:
        trial = study.ask()
        gene = tuple(trial.suggest_int(name, 0, 30) for name in sampler.names)
        if trial.number == 17:
            os.kill(os.getpid(), signal.SIGKILL)
        study.tell(trial, goodness(gene))


def test_12_after_a_real_kill_too(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    child = multiprocessing.get_context("fork").Process(target=_evolve_in_child, args=(path,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    genes = toy_genes(groups=3)
    study, sampler = fresh(genes, path)
    assert len(complete(study)) == 17
    assert run(study, sampler, 24) == run(*fresh(genes), 24)


def test_12_two_workers_keep_the_budget_and_repeat_nothing(tmp_path: Path) -> None:
    genes = toy_genes(groups=4)
    path = tmp_path / "study.log"
    first, sampler = fresh(genes, path)
    second = optuna.load_study(study_name="metapruning", storage=open_storage(path, ""), sampler=ga(genes))
    with quiet():
        for _ in range(12):
            pending = []
            for study in (first, second):
                trial = study.ask()
                pending.append((study, trial, tuple(trial.suggest_int(name, 0, 30) for name in sampler.names)))
            for study, trial, gene in pending:
                study.tell(trial, goodness(gene))
    found = [gene_at(trial, sampler) for trial in complete(first)]
    assert len(set(found)) == len(found) == 24
    assert genes.fits(np.array(found)).all()


def test_a_failed_trial_is_made_again() -> None:
    genes = toy_genes(groups=3)
    whole = run(*fresh(genes), 24)
    study, sampler = fresh(genes)
    run(study, sampler, 14)
    trial = study.ask()
    lost = tuple(trial.suggest_int(name, 0, 30) for name in sampler.names)
    study.tell(trial, state=TrialState.FAIL)
    assert lost == whole[14]
    assert run(study, sampler, 24) == whole


def test_the_first_candidates_are_those_that_were_given() -> None:
    genes = toy_genes()
    given = genes.near_budget(np.random.default_rng(8), 3)
    study, sampler = fresh(genes, first=given)
    found = run(study, sampler, POPULATION)
    assert found[:3] == given
    assert [sampler.made[number].operator for number in range(4)] == ["baseline"] * 3 + ["random"]


def test_a_tight_budget_is_seeded_where_uniform_draws_never_fit() -> None:
    genes = toy_genes(0.06, groups=13)
    rng = np.random.default_rng(0)
    assert not genes.fits(genes.uniform(rng, 20_000)).any()
    near = genes.near_budget(rng, 50)
    assert len(set(near)) > 25
    assert (genes.cost_ms(np.array(near)) <= genes.high_ms).all()
    study, sampler = fresh(genes)
    assert len(set(run(study, sampler, 2 * POPULATION))) == 2 * POPULATION


def test_a_space_with_few_candidates_is_evaluated_to_the_last_one() -> None:
    genes = toy_genes(0.06, groups=2, widths=4, least_use=0.0)
    fitting = {gene for gene in itertools.product(range(4), repeat=2) if genes.fits(np.array([gene]))[0]}
    study, sampler = fresh(genes)
    found = []
    for _ in fitting:
        trial = study.ask()
        found.append(tuple(trial.suggest_int(name, 0, 3) for name in sampler.names))
        study.tell(trial, goodness(found[-1]))
    with pytest.raises(SpaceExhausted, match=f"{len(fitting)} genes were evaluated"):
        study.ask().suggest_int(sampler.names[0], 0, 3)
    assert set(found) == fitting


def test_a_band_that_the_grid_does_not_meet_is_widened_downwards() -> None:
    genes = toy_genes(0.5, groups=1, widths=2, least_use=0.99)
    assert genes.low_ms == pytest.approx(2 / 31)
    assert genes.fits(np.array([[0], [1]])).tolist() == [False, True]


def test_an_infeasible_budget_is_refused() -> None:
    with pytest.raises(BudgetInfeasible, match="no network of this space is predicted within"):
        toy_genes(0.01)


def test_what_does_not_fit_is_narrowed_along_its_own_way() -> None:
    genes = toy_genes(0.3)
    repaired = genes.repaired((30, 30, 15, 15, 2, 2))
    assert repaired is not None
    assert genes.fits(np.array([repaired]))[0]
    assert repaired[0] == repaired[1] >= repaired[2] == repaired[3] >= repaired[4] == repaired[5]


@pytest.mark.parametrize("name", ["nsga2", "tpe"])
@pytest.mark.parametrize(("budget", "least"), [(0.5, 0.9), (0.12, 0.25)])
def test_after_the_start_candidates_come_from_the_model(name: str, budget: float, least: float) -> None:
    """A parameter that NSGA-II mutates is no missing opinion, and a repeated gene is mutated, not thrown away."""
    genes = toy_genes(budget)
    with quiet():
        inner: dict[str, optuna.samplers.BaseSampler] = {
            "nsga2": optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=0),
            "tpe": optuna.samplers.TPESampler(seed=0),
        }
        sampler = WithinBudget(inner[name], genes, 0)
    study = open_study(open_storage(None, ""), SPEC, sampler, "memory")
    run(study, sampler, 60)
    kinds = [sampler.made[trial.number].operator for trial in complete(study)]
    assert kinds[:POPULATION] == ["random"] * POPULATION
    assert "random" not in kinds[POPULATION:]
    assert kinds[POPULATION:].count("model") >= least * (60 - POPULATION)


class Stubborn(optuna.samplers.BaseSampler):
    """Wants one gene, always."""

    def __init__(self, gene: Gene) -> None:
        self.gene = gene

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(search_space, self.gene, strict=True))

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        raise AssertionError(param_name)


@pytest.mark.parametrize("fits", [True, False])
def test_a_repeated_gene_is_mutated(fits: bool) -> None:
    genes = toy_genes(groups=13)
    wanted = genes.near_budget(np.random.default_rng(4), 1)[0] if fits else (30,) * 13
    base = wanted if fits else genes.repaired(wanted)
    assert base is not None
    sampler = WithinBudget(Stubborn(wanted), genes, 0)
    study = open_study(open_storage(None, ""), SPEC, sampler, "memory")
    found = run(study, sampler, 20)
    assert found[0] == base
    assert len(set(found)) == 20
    assert genes.fits(np.array(found)).all()
    assert [sampler.made[trial.number].operator for trial in complete(study)] == ["model"] + ["mutation"] * 19
    changed = (np.array(found[1:]) != np.array(base)).sum(axis=1)
    assert changed.min() >= 1
    assert changed.mean() < 13 / 3  # an unrelated gene shares hardly any of the 13


@pytest.mark.parametrize("kind", ["ga", "stock"])
def test_a_parameter_outside_the_space_is_refused(kind: str) -> None:
    genes = toy_genes()
    with quiet():
        stock = WithinBudget(optuna.samplers.RandomSampler(seed=0), genes, 0)
    sampler: Any = ga(genes) if kind == "ga" else stock
    study = open_study(open_storage(None, ""), SPEC, sampler, "memory")
    with pytest.raises(ValueError, match="'width' is not one of the 6 declared genes"):
        study.ask().suggest_int("width", 0, 3)


def test_the_random_numbers_depend_on_seed_generation_and_place_alone() -> None:
    genes = toy_genes()
    sequences: list[Sequence[Gene]] = [run(*fresh(genes, seed=seed), 15) for seed in (1, 1, 2)]
    assert sequences[0] == sequences[1] != sequences[2]
