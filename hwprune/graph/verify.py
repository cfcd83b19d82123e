"""The self-check: cut and masked network must agree, otherwise the groups that make them differ are pinned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from hwprune.graph.build import build
from hwprune.graph.channel_graph import AttributeEdit, ChannelGraph
from hwprune.graph.check import Check, Failure
from hwprune.graph.depth import skippable_groups
from hwprune.graph.groups import Structure
from hwprune.graph.labels import Pin
from hwprune.graph.repair import candidate_edits


def verified(
    structure: Structure, model: nn.Module, example: tuple[Tensor, ...], pinned: dict[str, Pin]
) -> ChannelGraph:
    """The graph whose removable groups were all proved on the example; the others are pinned with what went wrong.

    All groups are tried at once; only when that fails are the ones at fault looked for.
    """
    graph = build(structure, model, example, pinned)
    if not graph.removable:
        return graph
    check = Check(model, example, norms_without_statistics=structure.is_inexact)
    search = _Search(model, graph, check)
    names = [group.name for group in graph.removable]
    for seed in range(_PROOFS):
        names = search.run(names, seed)
    if search.graph is not graph:
        names = search.run(names, _PROOFS)
    if search.bad or search.graph is not graph:
        graph = build(structure, model, example, {**pinned, **search.bad}, search.graph.edits)
    return _with_skippable(graph, model, example, check)


def _with_skippable(graph: ChannelGraph, model: nn.Module, example: tuple[Tensor, ...], check: Check) -> ChannelGraph:
    """The graph in which groups that may lose all units are marked; those for which a proof fails are not."""
    found = skippable_groups(graph, model, example)
    marked = _mark(graph, found)
    if found and check.difference(marked, {name: [] for name in found}) is not None:
        proved = [name for name in found if check.difference(marked, {name: []}) is None]
        together = check.difference(marked, {name: [] for name in proved}) is None
        marked = _mark(graph, proved if together else ())
    return marked


def _mark(graph: ChannelGraph, names: Sequence[str]) -> ChannelGraph:
    return graph.replace(groups=tuple(replace(group, skippable=group.name in names) for group in graph.groups))


# Other units and other widths each time, and once more where attributes were changed: those are guesses.
_PROOFS = 2
# Class of the module, attribute, position in a tuple, path of the group's first producer inside the module.
_EditKind = tuple[str, str, int | None, str]


class _Search:
    """Sorts groups into good and bad with few trials. `graph` gains the attribute edits that proved right."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, check: Check) -> None:
        self.model = model
        self.graph = graph
        self.check = check
        self.seed = 0
        self.good: list[str] = []
        self.bad: dict[str, Pin] = {}

    def run(self, names: list[str], seed: int) -> list[str]:
        """The good ones of these groups, in their order.

        First all at once; then without the groups near the module that stopped, until the rest runs.
        """
        self.seed, self.good = seed, []
        rest, suspects = names, list[str]()
        failure = self._fails(self.graph, rest)
        while failure is not None and rest:
            near = self._near(failure, rest)
            if not near or len(near) == len(rest):
                break
            rest = [name for name in rest if name not in near]
            suspects += near
            failure = self._fails(self.graph, rest)
        if failure is None:
            self.good = rest
        else:
            self._halve(rest, failure)
        self._admit(suspects)
        return [name for name in names if name in self.good]

    def _fails(self, graph: ChannelGraph, names: Sequence[str]) -> Failure | None:
        return self.check(graph, names, self.seed) if names else None

    def _near(self, failure: Failure, names: Sequence[str]) -> list[str]:
        """The groups with weights in the module that stopped, or at the same place in another module of its class."""
        if failure.module is None:
            return []
        wanted = self._kind(failure.module)
        return [
            name
            for name in names
            if any(self._kind(failure.module, item.parameter) == wanted for _, item in self.graph.slices[name])
        ]

    def _kind(self, module: str, parameter: str | None = None) -> tuple[str, str] | None:
        """(class of the innermost module that is not torch's own, path inside it) for a module.

        For a parameter: the same for the module that lies as deep inside as `module` does.
        """
        modules = dict(self.model.named_modules())
        owner = module
        while owner and type(modules[owner]).__module__.startswith("torch.nn."):
            owner = owner.rpartition(".")[0]
        inner = module.removeprefix(owner).strip(".")
        if parameter is None:
            return type(modules[owner]).__qualname__, inner
        path = parameter
        while path:
            path = path.rpartition(".")[0]
            if type(modules[path]) is type(modules[owner]):
                rest = f"{parameter.removeprefix(path).strip('.')}."
                if not inner or rest.startswith(f"{inner}."):
                    return type(modules[path]).__qualname__, inner
        return None

    def _halve(self, names: list[str], failure: Failure | None = None) -> None:
        """Try by halves, each on top of what is good, so that groups which only fail together are found as well."""
        if not names:
            return
        failure = failure or self._fails(self.graph, [*self.good, *names])
        if failure is None:
            self.good += names
        elif len(names) == 1:
            self._admit_one(names[0], failure)
        else:
            self._halve(names[: len(names) // 2])
            self._halve(names[len(names) // 2 :])

    def _reject(self, name: str, failure: Failure) -> None:
        group = self.graph.group(name)
        module = failure.module or (group.producers[0] if group.producers else "")
        self.bad[name] = Pin("self-check", module, "", group.units * group.unit_channels, failure.text)

    def _admit(self, suspects: list[str]) -> None:
        """Try suspects with all the attributes changed that could follow them, else one by one.

        What proved right for one is then tried at once for the others: blocks of one class repeat.
        """
        learned: set[_EditKind] = set()
        tried: set[_EditKind] | None = None
        while suspects:
            if learned != tried:
                tried = set(learned)
                if self._accepts(suspects, self._edits(suspects, learned)) is None:
                    return
            name, suspects = suspects[0], suspects[1:]
            failure = self._accepts([name], ())
            if failure is not None:
                learned |= {self._edit_kind(name, edit) for edit in self._admit_one(name, failure)}

    def _edits(self, names: list[str], learned: set[_EditKind]) -> tuple[AttributeEdit, ...]:
        """The candidate edits of these groups, or those of the learned kinds if any were learned."""
        found = [(name, edit) for name in names for edit in candidate_edits(self.model, self.graph, name)]
        return tuple(edit for name, edit in found if not learned or self._edit_kind(name, edit) in learned)

    def _edit_kind(self, name: str, edit: AttributeEdit) -> _EditKind:
        owner = type(self.model.get_submodule(edit.module)).__qualname__
        return owner, edit.attribute, edit.index, name.removeprefix(edit.module)

    def _admit_one(self, name: str, failure: Failure) -> tuple[AttributeEdit, ...]:
        """Try a group that failed as it is with each of its edits, then all; the edits that helped, or reject it."""
        edits = candidate_edits(self.model, self.graph, name)
        attempts = [(edit,) for edit in edits]
        for attempt in (*attempts, edits) if len(edits) > 1 else attempts:
            if self._accepts([name], attempt) is None:
                return attempt
        self._reject(name, failure)
        return ()

    def _accepts(self, names: list[str], edits: tuple[AttributeEdit, ...]) -> Failure | None:
        fresh = {(edit.module, edit.attribute, edit.index): edit for edit in (*edits, *self.graph.edits)}
        graph = self.graph.replace(edits=tuple(fresh.values()))
        failure = self._fails(graph, [*self.good, *names])
        if failure is None:
            self.good += names
            self.graph = graph if edits else self.graph
        return failure
