"""Removes the prefixes that training frameworks add to the keys of a model."""

from musicgen_jax.convert.tensors import StateDict
from musicgen_jax.errors import UserError

# FSDP, torch.compile and activation checkpointing add a wrapper's name for every wrapped module.
_ANYWHERE = ("_fsdp_wrapped_module.", "_orig_mod.", "_checkpoint_wrapped_module.")
# DataParallel and Lightning modules wrap the whole model. In the middle of a key these names belong
# to the model itself.
_IN_FRONT = ("module.", "model.")


def strip_wrappers(tensors: StateDict, origin: str) -> tuple[StateDict, list[str]]:
    """Removes the prefixes of wrappers from all keys.

    A prefix at the start of a key is removed only if every key has it. Otherwise the report will
    list it as a fault.

    Args:
      tensors: the tensors of one file.
      origin: the file's name, for messages.

    Returns:
      The tensors by the model's own keys, and the prefixes that were removed.

    Raises:
      UserError: two different keys become the same.
    """
    names = {key: key for key in tensors}
    removed = []
    for word in _ANYWHERE:
        if any(word in name for name in names.values()):
            names = {key: name.replace(word, "") for key, name in names.items()}
            removed.append(word)
    while word := next((word for word in _IN_FRONT if _all_begin(names.values(), word)), None):
        names = {key: name.removeprefix(word) for key, name in names.items()}
        removed.append(word)
    stripped: StateDict = {}
    for key, name in names.items():
        if name in stripped:
            raise UserError(f"{origin} holds {name} twice: with and without a wrapper's prefix")
        stripped[name] = tensors[key]
    return stripped, removed


def _all_begin(names, prefix: str) -> bool:
    return bool(names) and all(name.startswith(prefix) for name in names)
