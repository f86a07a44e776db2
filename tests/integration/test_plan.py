"""Terraform agrees with what it made."""

from muster import Stack


def test_second_plan_finds_nothing_to_change(stack: Stack) -> None:
    """Nothing is excused: the module has no resource that the emulator misreports."""
    assert stack.plan() == []
