"""Checks values of the deployment against the published schemas."""

import json
from functools import cache
from typing import Any, TypeVar

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from tests.support import ROOT

SCHEMAS = ROOT / "schemas"

T = TypeVar("T")


@cache
def _validator(name: str) -> Draft202012Validator:
    schemas = {path.name: json.loads(path.read_text()) for path in SCHEMAS.glob("*.schema.json")}
    registry: Registry[Any] = Registry().with_resources(
        (schema["$id"], Resource.from_contents(schema)) for schema in schemas.values()
    )
    return Draft202012Validator(schemas[f"{name}.schema.json"], registry=registry)


def conforming(name: str, instance: T) -> T:
    """Return `instance` if it follows `schemas/<name>.schema.json`; raise ValidationError otherwise."""
    _validator(name).validate(instance)
    return instance
