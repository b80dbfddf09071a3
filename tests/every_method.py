"Which methods there are, as the package says, and one of each kind."
import pytest

from multiexit_nb.methods import Method, create_method, list_methods

HOOKS = ("prepare", "phases", "before_step", "after_step", "extra")


def method_class(name: str) -> type:
    return type(create_method(name, num_exits=1, num_classes=2, feature_dims=(8,)))


def overrides(name: str, *hooks: str) -> bool:
    "Does a method do something of its own at one of these?"
    cls = method_class(name)
    return any(getattr(cls, hook) is not getattr(Method, hook) for hook in hooks)


def needs_teacher(name: str) -> bool:
    return "teacher" in method_class(name).needs


def one_of_each_kind() -> set[str]:
    "The first method, by name, of all that ask the same of a training."
    kinds = {}
    for name in list_methods():
        kinds.setdefault((needs_teacher(name), *(overrides(name, hook) for hook in HOOKS)), name)
    return set(kinds.values())


def but(fast, names) -> list:
    "The names, those that are not among the fast ones marked as slow."
    return [n if n in fast else pytest.param(n, marks=pytest.mark.slow) for n in names]
