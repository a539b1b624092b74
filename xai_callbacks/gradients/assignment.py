"""Which calls of which modules use which parameter; found by walking the autograd graph, or refused.

Every edge of the graph that leads to a parameter must lie between what went into a call and what came out of it; where
it does not, as for weights that a parent uses in the place of the module that holds them, the next larger module that
does contain it is asked.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from xai_callbacks.access.trace import Edge, gradient_edge
from xai_callbacks.access.watching import module_names, plain_name
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.gradients.calls import Axes, Call, Key

HIDDEN = (
    "inside a function with a backward pass of its own, such as `torch.utils.checkpoint` with `use_reentrant=True`, "
    "which hides the gradients of single images. Use `use_reentrant=False`, or leave those parameters out with "
    "`parameters=`."
)

_CUSTOM: type = torch.autograd.function.BackwardCFunction


def plain_parameters(root: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by name, without the parts that `torch.compile` adds; shared ones once."""
    return {plain_name(name): parameter for name, parameter in root.named_parameters()}


def assign_calls(
    root: nn.Module, chosen: Mapping[str, Tensor], calls: Sequence[Call], axes: Mapping[Key, Axes], losses: Tensor
) -> dict[str, list[Call]]:
    """For every chosen parameter the calls that use it, together with all of its edges; empty if it is unused.

    Raises a `ConfigurationError` if one is used where no call contains it, or where the graph does not show it.
    """
    graph = _Graph(root, axes)
    nodes, total = graph.walk([losses.grad_fn] if losses.grad_fn is not None else [], frozenset())
    by_module: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        by_module[call.name].append(call)
    owners: dict[int, list[str]] = defaultdict(list)
    for owner, module in module_names(root).items():
        for parameter in module._parameters.values():
            owners[id(parameter)].append(owner)
    # A function with a backward pass of its own may hide a parameter, which then looks as if nothing used it.
    custom = [node for node in nodes if isinstance(node, _CUSTOM)]
    checkpointed = any("Checkpoint" in node.name() for node in custom)
    assigned: dict[str, list[Call]] = {name: [] for name in chosen}
    for name, chosen_one in chosen.items():
        own = owners[id(chosen_one)]
        ran = [call for owner in own for call in by_module.get(owner, [])]
        without_graph = bool(ran) and not any(edge for call in ran for edge in call.outputs)
        if total[name]:
            assigned[name] = graph.containing(name, total[name], _candidates(ran, own, by_module))
        elif checkpointed or (custom and without_graph):
            raise ConfigurationError(f"Expected the autograd graph to show the use of `{name}`, but it runs {HIDDEN}")
    return assigned


def _candidates(ran: list[Call], owners: list[str], by_module: Mapping[str, list[Call]]) -> Iterator[list[Call]]:
    """Calls that may contain all uses of a parameter, smallest modules first."""
    yield ran
    levels = zip(*(owner.split(".") for owner in owners), strict=False)
    shared = [names[0] for names in takewhile(lambda names: len(set(names)) == 1, levels)]
    for length in range(len(shared), -1, -1):
        yield by_module.get(".".join(shared[:length]), [])


class _Graph:
    """The part of the autograd graph that belongs to each call."""

    def __init__(self, root: nn.Module, axes: Mapping[Key, Axes]) -> None:
        self._names = {id(parameter): name for name, parameter in plain_parameters(root).items()}
        self._axes = axes
        self._within: dict[Call, Counter[str | None]] = {}

    def walk(self, starts: Iterable[Node], ends: frozenset[Node | int]) -> tuple[set[Node], Counter[str | None]]:
        """Nodes, and number of edges to each parameter by name; None for a leaf that is no parameter."""
        seen: set[Node] = set()
        edges: Counter[str | None] = Counter()
        waiting = list(starts)
        while waiting:
            node = waiting.pop()
            if node in seen or node in ends:
                continue
            seen.add(node)
            for following, _ in node.next_functions:
                if following is not None and hasattr(following, "variable"):
                    if id(following.variable) not in ends:
                        edges[self._names.get(id(following.variable))] += 1
                elif following is not None:
                    waiting.append(following)
        return seen, edges

    def containing(self, name: str, edges: int, candidates: Iterator[list[Call]]) -> list[Call]:
        """The first calls that together contain all edges to a parameter, and whose images can be told apart."""
        for group in candidates:
            clear = group and all(call.key in self._axes and self._axes[call.key].clear() for call in group)
            if clear and sum(self._inside(call)[name] for call in group) == edges and not any(map(self._open, group)):
                return [call for call in group if self._inside(call)[name]]
        raise ConfigurationError(
            f"Expected every use of the parameter `{name}` to lie within the forward pass of one module whose images "
            "can be told apart, but it is used elsewhere, for example in the loss. Leave it out with `parameters=`."
        )

    def _inside(self, call: Call) -> Counter[str | None]:
        if call not in self._within:
            self._within[call] = self.walk([edge[0] for edge in call.outputs if edge], call.inputs)[1]
        return self._within[call]

    def _open(self, call: Call) -> bool:
        """Whether something comes in on another way than as an argument, or a parameter that is not the module's."""
        own = {self._names.get(id(parameter)) for parameter in call.module.parameters()}
        return not self._inside(call).keys() <= own - {None}


def deepest(edges: Sequence[Edge]) -> list[GradientEdge]:
    """Those of the edges from which no way leads on to another one: a gradient of theirs passes all others."""
    nodes = {node for node, _ in edges}
    leads_on: dict[Node, bool] = {}
    for start in nodes:
        waiting = [(start, False)]
        while waiting:
            node, followed = waiting.pop()
            after = [each for each, _ in node.next_functions if each is not None]
            if followed:
                leads_on[node] = any(each in nodes or leads_on[each] for each in after)
            elif node not in leads_on:
                leads_on[node] = False
                waiting += [(node, True), *((each, False) for each in after)]
    # Several outputs of one node, as of a split, are asked for together.
    return [gradient_edge(node, number) for node, number in dict.fromkeys(edges) if not leads_on[node]]
