"""Terraform agrees with what it made."""

from muster import Stack


def test_second_plan_finds_nothing_to_change(stack: Stack) -> None:
    """Nothing is excused: the module has no resource that the emulator misreports."""
    assert stack.plan() == []


def test_up_again_keeps_what_is_there(stack: Stack) -> None:
    before = stack.status()

    outputs = stack.up()

    assert outputs == before.outputs
    assert stack.status() == before
    assert stack.plan() == []
