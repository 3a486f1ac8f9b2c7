"""The names that users may rely on, one list a module."""

from __future__ import annotations

import inspect
import types

import polyhead.client


def test_all_lists_what_the_client_offers() -> None:
    """Every public class and function of the package is in `__all__`, is ours, and has a docstring."""
    offered = {
        name
        for name, value in vars(polyhead.client).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert offered | {"errors"} == set(polyhead.client.__all__)
    for name in polyhead.client.__all__:
        value = getattr(polyhead.client, name)
        ours = ("polyhead.client", "polyhead.heads.format")  # what both sides know of a head file
        assert getattr(value, "__module__", value.__name__).startswith(ours), name
        assert inspect.getdoc(value), name


def test_errors_are_one_tree() -> None:
    """Catching PolyheadError catches each of them."""
    errors = polyhead.client.errors
    for name in errors.__all__:
        value = getattr(errors, name)
        if inspect.isclass(value) and issubclass(value, Exception):
            assert issubclass(value, errors.PolyheadError), name
