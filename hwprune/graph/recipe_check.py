"""Whether a recipe fits a model and says nothing that a cut cannot mean. Nothing of it is carried out before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn

from hwprune.core.errors import GraphError
from hwprune.graph.edits import Edit, own_tensors
from hwprune.graph.recipe import Recipe, Scale, check_model, damaged, layer_edits

_Dims = Mapping[int, tuple[int, ...]]


def check_recipe(recipe: Recipe, model: nn.Module) -> None:
    """Raise `GraphError` if the model is another one than the recipe was made of, or the recipe is damaged."""
    check_model(model, recipe.sizes)
    for name, _ in model.named_parameters():
        if name not in recipe.sizes:
            raise GraphError(
                f"the model has '{name}', the traced model had not", hint="use a model built like the one traced"
            )
    for name, units in recipe.keep.items():
        if not _ascends(units, 2**31):
            raise damaged(f"the units kept of group '{name}' are not ascending indices")
    _check_kept(recipe.kept, model)
    _check_edits(recipe, model)
    tensors = dict(model.named_parameters())
    for scale in recipe.scales:
        if scale.parameter not in tensors:
            raise damaged(f"it scales '{scale.parameter}', which is no parameter of the model")
        _check_scale(scale, tensors[scale.parameter], recipe.kept.get(scale.parameter, {}))


def _check_kept(kept: Mapping[str, _Dims], model: nn.Module) -> None:
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors.update(model.named_buffers(remove_duplicate=False))
    first: dict[int, _Dims] = {}
    for name, dims in kept.items():
        if name not in tensors:
            raise damaged(f"it cuts '{name}', which is no parameter or buffer of the model")
        tensor = tensors[name]
        for dim, indices in dims.items():
            if not 0 <= dim < tensor.ndim or not _ascends(indices, tensor.shape[dim]):
                raise damaged(f"the indices kept of '{name}', dimension {dim}, do not fit {tuple(tensor.shape)}")
        if first.setdefault(id(tensor), dims) != dims:
            raise damaged(f"it cuts '{name}' in two ways")
    for path, module in model.named_modules():
        _check_layer(path, module, kept)


def _check_layer(path: str, module: nn.Module, kept: Mapping[str, _Dims]) -> None:
    """The bias of one of torch's layers loses what the rows of its weight lose."""
    own = own_tensors(module)
    if not {"weight", "bias"} <= own.keys() or not _is_layer(module):
        return
    prefix = f"{path}." if path else ""
    weight, bias = (kept.get(prefix + name, {}) for name in ("weight", "bias"))
    rows = 1 if getattr(module, "transposed", False) else 0
    if own["weight"].shape[rows] == own["bias"].shape[0] and weight.get(rows) != bias.get(0):
        raise damaged(f"it cuts '{prefix}weight' and '{prefix}bias' in different ways")


def _check_edits(recipe: Recipe, model: nn.Module) -> None:
    needed = layer_edits(model, recipe.kept)
    for edit in recipe.edits:
        path, attribute, index, value = edit
        if needed.pop((path, attribute, index), None) != value:
            _check_edit(edit, model)
    for path, attribute, _ in needed:
        raise damaged(f"it does not say what '{attribute}' of module '{path}' becomes")


def _check_edit(edit: Edit, model: nn.Module) -> None:
    """A number that the user's code keeps: it may only shrink. Torch's own layers keep none but their shape."""
    path, attribute, index, value = edit
    what = f"it sets '{attribute}' of module '{path}' to {value}"
    try:
        module = model.get_submodule(path)
    except AttributeError as error:
        raise damaged(f"{what}, and there is no such module") from error
    old = vars(module).get(attribute)
    if index is not None and isinstance(old, (tuple, list)):
        old = old[index] if index < len(old) else None
    elif index is not None:
        old = None
    if attribute.startswith("_") or _is_layer(module) or type(old) is not int or not 0 <= value <= old:
        raise damaged(f"{what}, which no cut does")


def _is_layer(module: nn.Module) -> bool:
    """True for torch's own modules, without those whose numbers a cut may have to change."""
    follows = isinstance(module, (nn.MultiheadAttention, nn.Unflatten))
    return type(module).__module__.startswith("torch.nn.") and not follows


def _check_scale(scale: Scale, parameter: Tensor, kept: _Dims) -> None:
    size = parameter.shape[scale.dim] if 0 <= scale.dim < parameter.ndim else 0
    if not _ascends(scale.positions, len(kept.get(scale.dim, range(size)))) or not 0 < scale.factor <= 1:
        raise damaged(f"it scales rows of '{scale.parameter}' that are not there, or by {scale.factor}")


def _ascends(indices: Sequence[int], size: int) -> bool:
    """True for indices into a dimension of this size, in order and none twice."""
    inside = not indices or (indices[0] >= 0 and indices[-1] < size)
    return inside and all(one < other for one, other in pairwise(indices))
