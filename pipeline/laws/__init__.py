"""Noise laws: which labels the images of a data set carry; this is the menu."""

from __future__ import annotations

import dataclasses
from typing import Any

from numpy import ndarray as Array

from pipeline.errors import UserError
from pipeline.laws.flips import Map, Matrix, Pair, Symmetric, SymmetricInclusive
from pipeline.laws.foreign import Foreign, White
from pipeline.laws.formula import Formula
from pipeline.laws.given import Given
from pipeline.laws.law import Law, StoredArray
from pipeline.laws.shares import alpha_of_noisy_share, alpha_of_wrong_share, noisy_share, wrong_share
from pipeline.laws.structured import Structured, confusing_order
from pipeline.laws.uniform import Uniform

__all__ = [
    "LAWS",
    "Foreign",
    "Formula",
    "Given",
    "Law",
    "Map",
    "Matrix",
    "Pair",
    "StoredArray",
    "Structured",
    "Symmetric",
    "SymmetricInclusive",
    "Uniform",
    "White",
    "alpha_of_noisy_share",
    "alpha_of_wrong_share",
    "confusing_order",
    "law_array",
    "law_from_json",
    "law_to_json",
    "noisy_share",
    "wrong_share",
]

LAWS: dict[str, type[Law]] = {
    law.name: law
    for law in (Uniform, Structured, Foreign, White, Symmetric, SymmetricInclusive, Pair, Map, Matrix, Given)
}


def law_to_json(law: Law) -> dict[str, Any]:
    """Write a law as its name and parameters; an array stands there as its hash, `law_array` returns it."""
    parameters = {field.name: getattr(law, field.name) for field in _parameters(type(law))}
    hashed = {
        name: {"sha256": value.sha256} if isinstance(value, StoredArray) else value
        for name, value in parameters.items()
    }
    return {"name": law.name, **hashed}


def law_array(law: Law) -> Array | None:
    """Return the array among a law's parameters; no law has two."""
    values = [getattr(law, field.name) for field in _parameters(type(law))]
    return next((value.array for value in values if isinstance(value, StoredArray)), None)


def law_from_json(fields: dict[str, Any], array: Array | None = None) -> Law:
    """Make a law from its name and parameters, the inverse of `law_to_json`.

    Args:
        fields: What `law_to_json` wrote.
        array: What `law_array` returned.

    Raises:
        UserError: If there is no law of that name, its parameters are not the law's, or the array is not that one.
    """
    name = fields.get("name")
    if name not in LAWS:
        raise UserError(f"unknown law '{name}'; the laws are: {', '.join(LAWS)}")
    law = LAWS[name]
    parameters = {key: value for key, value in fields.items() if key != "name"}
    for key, value in parameters.items():
        if isinstance(value, dict):
            stored = None if array is None else StoredArray(array)
            if stored is None or stored.sha256 != value.get("sha256"):
                raise UserError(f"the {key} of law {name} is missing, or not the one that it was made with")
            parameters[key] = stored
    known = _parameters(law)
    required = [field.name for field in known if field.default is dataclasses.MISSING]
    if missing := [key for key in required if key not in parameters]:
        raise UserError(f"law {name} needs {' and '.join(missing)}")
    if surplus := set(parameters) - {field.name for field in known}:
        raise UserError(f"law {name} takes no {', '.join(sorted(surplus))}")
    return law(**parameters)


def _parameters(law: type[Law]) -> list[dataclasses.Field[Any]]:
    """List the fields that make a law what it is; the others say where it is used."""
    return [field for field in dataclasses.fields(law) if field.compare]  # type: ignore[arg-type]
