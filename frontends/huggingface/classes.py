"""The class and the config of a Hugging Face folder, from `transformers` alone unless told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from regraft.frontends.huggingface.checkpoint import CONFIG, read_json
from regraft.ir.errors import InputError, UnsupportedError


@dataclass(frozen=True, slots=True)
class Architecture:
    """What builds a model.

    Args:
        cls: The model class.
        config: Its config.
        content: The content of `config.json`.
    """

    cls: type[Any]
    config: Any
    content: Mapping[str, Any]


def read_architecture(folder: Path, *, trust_remote_code: bool = False) -> Architecture:
    """Returns the class that `config.architectures` names, with the folder's config.

    Args:
        folder: The folder.
        trust_remote_code: Whether Python files of the folder may run.

    Raises:
        InputError: When the config is not readable or names no known class.
        UnsupportedError: When the folder brings code of its own and it is not trusted.
    """
    content = read_json(folder / CONFIG)
    return architecture_of(content, folder, trust_remote_code=trust_remote_code)


def architecture_of(
    content: Mapping[str, Any], folder: Path, *, trust_remote_code: bool = False
) -> Architecture:
    """Returns the class and config of the content of a `config.json`.

    Args:
        content: The content.
        folder: Where Python files of the model's own would lie.
        trust_remote_code: Whether they may run.

    Raises:
        InputError: When it names no known class, or values are wrong.
        UnsupportedError: When code of the folder's own is needed and not trusted.
    """
    names = content.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise InputError(
            f"`{folder / CONFIG}` names no class in `architectures`",
            hint='add it, such as `"architectures": ["LlamaForCausalLM"]`',
        )
    name, own = names[0], content.get("auto_map")
    known = _class_of_transformers(name)
    if own and not trust_remote_code and known is None:
        raise UnsupportedError(
            f"`{folder}` needs code of its own for `{name}`",
            hint="read its Python files, and give --trust-remote-code to run them",
        )
    if own and trust_remote_code:
        return _remote(name, content, folder)
    cls: Any = known
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise InputError(
            f"`{folder / CONFIG}`: transformers {transformers.__version__} has no model class "
            f"`{name}`",
            hint="install the version that the folder was made with",
        )
    model_class: Any = cls
    if "model_type" not in content:
        raise InputError(
            f"`{folder / CONFIG}` has no `model_type`, which transformers asks for",
            hint=f'add `"model_type": "{model_class.config_class.model_type}"`',
        )
    try:
        config = model_class.config_class.from_dict(dict(content))
    except Exception as error:  # the validators of configs raise their own types
        words = " ".join(str(error).split()) or repr(error)
        raise InputError(
            f"`{folder / CONFIG}` is no config of `{name}`: {type(error).__name__}: {words}"
        ) from error
    return Architecture(cls, config, content)


def _class_of_transformers(name: str) -> Any:
    """Returns what `transformers` calls so, None for nothing.

    Raises:
        InputError: When it has the class and cannot import it: another package is broken.
    """
    try:
        return getattr(transformers, name, None)
    except (ImportError, RuntimeError) as error:
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        raise InputError(
            f"transformers cannot import `{name}`: {type(first).__name__}: {first}",
            hint="a package beside it is broken, such as a torchvision for another PyTorch: "
            f"`python -c 'from transformers import {name}'` shows which; reinstall or remove it",
        ) from error


def _remote(name: str, content: Mapping[str, Any], folder: Path) -> Architecture:
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    own: Mapping[str, str] = content["auto_map"]
    place = next((p for p in own.values() if str(p).endswith(f".{name}")), None)
    if place is None:
        raise InputError(
            f"`{folder / CONFIG}`: `auto_map` has no place of `{name}`",
            hint=f'add `"AutoModel": "modeling.{name}"`',
        )
    cls = get_class_from_dynamic_module(place, str(folder), local_files_only=True)
    config_cls = cls.config_class
    if "AutoConfig" in own:
        config_cls = get_class_from_dynamic_module(
            own["AutoConfig"], str(folder), local_files_only=True
        )
    return Architecture(cls, config_cls.from_dict(dict(content)), content)
