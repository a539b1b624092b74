"""Features of the stages of a model, seen while it runs anyway: for comparing representations."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d

from xai_callbacks.access.watching import module_names

MOST_STAGES = 12
CELLS = 4  # a side, to which feature maps are averaged; of tokens as many groups as there are cells


def stages_of(module: nn.Module) -> list[str]:
    """Names of at most twelve parts of a model that follow each other, such as `layer1` to `layer4`.

    Its children with parameters; one that holds more than half of the layers is replaced by its own children. Of more
    than twelve, evenly spaced ones.
    """
    names, parts = module_names(module), [""]
    sizes = {name: _layers(part) for name, part in names.items()}
    while len(parts) < MOST_STAGES:
        large = [name for name in parts if 2 * sizes[name] > sizes[""] and any(names[name].children())]
        if not large:
            break
        place = parts.index(large[0])
        prefix = f"{large[0]}." if large[0] else ""
        inside = [f"{prefix}{name}" for name, _ in names[large[0]].named_children()]
        parts[place : place + 1] = [name for name in inside if sizes.get(name)]
    parts = [name for name in parts if name]
    if len(parts) <= MOST_STAGES:
        return parts
    return [parts[round(place * (len(parts) - 1) / (MOST_STAGES - 1))] for place in range(MOST_STAGES)]


@contextmanager
def features(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Fill a dict with what submodules return inside, `(N, D)` float32 without a graph, by name.

    Feature maps `(N, C, h, w)` or `(N, h, w, C)` are averaged to at most 4 x 4 cells, tokens `(N, T, C)` to as many
    groups. What a module returns at its last call counts; what is no such tensor is left out.
    """
    found: dict[str, Tensor] = {}
    parts = module_names(module)
    with ExitStack() as stack:
        for name in names:
            stack.callback(parts[name].register_forward_hook(partial(_see, found, name)).remove)
        yield found


def _see(found: dict[str, Tensor], name: str, module: nn.Module, given: object, returned: object) -> None:
    values = returned[0] if isinstance(returned, tuple | list) and returned else returned
    if isinstance(values, Tensor) and 2 <= values.ndim <= 4 and values.is_floating_point():
        found[name] = _pooled(values.detach().float()).flatten(1)


def _pooled(values: Tensor) -> Tensor:
    if values.ndim == 3:
        return adaptive_avg_pool1d(values.transpose(1, 2), min(values.shape[1], CELLS**2))
    if values.ndim == 4:
        channels_last = values.shape[1] == values.shape[2] != values.shape[3]
        maps = values.permute(0, 3, 1, 2) if channels_last else values
        return adaptive_avg_pool2d(maps, (min(maps.shape[2], CELLS), min(maps.shape[3], CELLS)))
    return values


def _layers(module: nn.Module) -> int:
    """Number of modules that have parameters of their own."""
    return sum(any(True for _ in part.parameters(recurse=False)) for part in module.modules())
