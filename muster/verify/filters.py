"""Decides by its filter policy whether an SNS subscription may get a notification.

In doubt it says yes, because it is used to avoid notifying real people. An unknown operator counts as a
match, and so does a property of a message body whose value is unknown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_UNKNOWN = object()


def may_match(subscription: Mapping[str, str], notification: Mapping[str, Any]) -> bool:
    """Return whether a subscription with these attributes may get a notification.

    `notification` is {"attributes": {name: text}, "body": {...}}; the body may lack properties.
    """
    text = subscription.get("FilterPolicy") or ""
    if not text:
        return True
    try:
        policy = json.loads(text)
    except ValueError:
        return True
    if not isinstance(policy, dict):
        return True
    if subscription.get("FilterPolicyScope") == "MessageBody":
        return _policy(policy, notification["body"], partial=True)
    return _policy(policy, notification["attributes"], partial=False)


def _policy(policy: Mapping[str, Any], values: Any, *, partial: bool) -> bool:
    """Return whether every property of a policy may match. `partial` values may lack properties."""
    if not isinstance(values, Mapping):
        return True
    for name, wanted in policy.items():
        if name == "$or":
            matches = any(_policy(each, values, partial=partial) for each in wanted)
        elif isinstance(wanted, Mapping):
            matches = _policy(wanted, values.get(name, _UNKNOWN if partial else {}), partial=partial)
        elif name not in values and partial:
            matches = True
        else:
            matches = any(_condition(each, values.get(name)) for each in wanted)
        if not matches:
            return False
    return True


def _condition(wanted: Any, value: Any) -> bool:
    """Return whether a value may match one condition of a policy. None means that the property is absent."""
    if not isinstance(wanted, Mapping):
        return bool(wanted == value)
    match dict(wanted):
        case {"exists": bool(exists)}:
            return exists == (value is not None)
        case _ if value is None:
            return False  # every other condition needs the property [SNS, filter policy constraints]
        case {"prefix": str(prefix)}:
            return not isinstance(value, str) or value.startswith(prefix)
        case {"suffix": str(suffix)}:
            return not isinstance(value, str) or value.endswith(suffix)
        case {"equals-ignore-case": str(text)}:
            return not isinstance(value, str) or value.lower() == text.lower()
        case {"anything-but": str(text)}:
            return bool(value != text)
        case {"anything-but": list(texts)}:
            return value not in texts
        case {"anything-but": {"prefix": str(prefix)}}:
            return not isinstance(value, str) or not value.startswith(prefix)
        case {"anything-but": {"suffix": str(suffix)}}:
            return not isinstance(value, str) or not value.endswith(suffix)
        case _:
            return True
