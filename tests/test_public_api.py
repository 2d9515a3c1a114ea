"""The public names and their signatures; a change here is a change for every plugin and host.

`python tests/test_public_api.py` writes them anew. Before 1.0 a change goes into CHANGELOG.md; what is deprecated goes
on for two minor versions.
"""

from __future__ import annotations

import enum
import inspect
from importlib import import_module
from pathlib import Path

PINNED = Path(__file__).parent / "public_api.txt"
MODULES = (
    "sdnet_core",
    "sdnet_core.bridge",
    "sdnet_core.cli.kit",
    "sdnet_core.deprecations",
    "sdnet_core.errors",
    "sdnet_core.events",
    "sdnet_core.testing",
    "sdnet_core.wire",
)


def describe(module_name: str) -> list[str]:
    """Every public name of a module, with its signature and the public methods it defines."""
    module = import_module(module_name)
    lines = []
    for name in sorted(module.__all__):
        value = getattr(module, name)
        lines.append(f"{module_name}.{name}{signature(value)}")
        if inspect.isclass(value) and not issubclass(value, enum.Enum | BaseException):
            lines += [
                f"{module_name}.{name}.{attribute}{signature(member)}"
                for attribute, member in sorted(vars(value).items())
                if not attribute.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))
            ]
        elif inspect.isclass(value) and issubclass(value, enum.Enum):
            lines += [f"{module_name}.{name}.{member.name} = {member.value!r}" for member in value]
    return lines


def signature(value: object) -> str:
    """Names, kinds and order of the parameters, and which may be left out; not their types and defaults."""
    if isinstance(value, property) or not callable(value):
        return ""
    if inspect.isclass(value) and issubclass(value, enum.Enum):
        return ""  # that of `enum.Enum`, which differs from one Python to another
    try:
        parameters = inspect.signature(value).parameters.values()
    except (ValueError, TypeError):
        return ""
    texts, keyword_only = [], False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            texts.append("*")
        star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        keyword_only = keyword_only or star == "*"
        texts.append(f"{star}{parameter.name}{'' if parameter.default is parameter.empty else '=…'}")
    return f"({', '.join(texts)})"


def current() -> str:
    """The whole public interface."""
    return "".join(f"{line}\n" for module in MODULES for line in describe(module))


def test_public_names_and_signatures_are_as_pinned() -> None:
    there, pinned = current().splitlines(), PINNED.read_text(encoding="utf-8").splitlines()
    gone, new = sorted(set(pinned) - set(there)), sorted(set(there) - set(pinned))
    assert (gone, new) == ([], []), "if that is meant: python tests/test_public_api.py, and a word in CHANGELOG.md"


def test_every_public_name_is_documented() -> None:
    undocumented = []
    for module_name in MODULES:
        module = import_module(module_name)
        for name in module.__all__:
            value = getattr(module, name)
            ours = getattr(value, "__module__", "").startswith("sdnet_core")
            if ours and (inspect.isclass(value) or inspect.isfunction(value)) and not inspect.getdoc(value):
                undocumented.append(f"{module_name}.{name}")
    assert undocumented == []


def test_what_is_deprecated_is_gone_in_time() -> None:
    """A name whose last version has come is to be removed in that release."""
    from importlib import metadata

    major, minor = map(int, metadata.version("sdnet-core").split(".")[:2])
    overdue = []
    for module_name in MODULES:
        module = import_module(module_name)
        for name in module.__all__:
            value = getattr(module, name)
            for member in (value, *(vars(value).values() if inspect.isclass(value) else ())):
                notice = getattr(member, "__deprecated__", None)
                if notice is not None and tuple(map(int, notice.gone_in.split("."))) <= (major, minor):
                    overdue.append(str(notice))
    assert overdue == []


if __name__ == "__main__":
    PINNED.write_text(current(), encoding="utf-8")
