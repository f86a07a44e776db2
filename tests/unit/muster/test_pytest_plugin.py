"""The pytest plugin in sessions of its own, mostly with a stack that only records what is asked of it."""

from pathlib import Path

import pytest

from tests.support.fake_terraform import FakeTerraform

pytest_plugins = ["pytester"]

# Every process of a session appends to one file. `up` takes as long as another worker needs to ask as well.
RECORDING_STACK = """
import json, pathlib, time
import muster.testing
from muster.errors import StackError

CALLS = pathlib.Path(__file__).with_name("calls")

class RecordingStack:
    def __init__(self, state_dir, *, port=None, variables=None):
        self.state_dir, self.variables = state_dir, dict(variables or {})

    def ready(self):
        path = self.state_dir / "up"
        return path.exists() and json.loads(path.read_text()) == self.variables or None

    def up(self):
        record(f"up {self.state_dir.name} {json.dumps(self.variables)}")
        FAIL
        time.sleep(0.3)
        self.state_dir.mkdir(exist_ok=True)
        (self.state_dir / "up").write_text(json.dumps(self.variables))

    def down(self):
        record(f"down {self.state_dir.name}")

def record(line):
    with CALLS.open("a") as calls:
        calls.write(line + "\\n")

muster.testing.Stack = RecordingStack
"""
TESTS = """
import pytest

@pytest.mark.parametrize("number", range(4))
def test_stack(muster_stack, number):
    assert muster_stack.state_dir.is_dir()
"""


@pytest.fixture
def session(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project whose tests use a recording stack; warnings are errors."""
    monkeypatch.setenv("MUSTER_STATE_DIR", str(pytester.path / "kept"))
    monkeypatch.setenv("TMPDIR", str(pytester.path))
    pytester.makeini("[pytest]\nfilterwarnings = error\naddopts = --strict-markers --strict-config\n")
    pytester.makepyfile(test_it=TESTS)
    pytester.makeconftest(RECORDING_STACK.replace("FAIL", ""))
    return pytester


def calls(session: pytest.Pytester) -> list[str]:
    """What was asked of the stack."""
    path = session.path / "calls"
    return path.read_text().splitlines() if path.exists() else []


def leftovers(session: pytest.Pytester) -> list[Path]:
    """The folders of sessions that were not removed."""
    return list(session.path.glob("muster-pytest-*"))


@pytest.mark.parametrize("workers", ["0", "2"])
def test_one_stack_serves_all_tests_and_ends_with_them(session: pytest.Pytester, workers: str) -> None:
    session.runpytest_subprocess("-n", workers).assert_outcomes(passed=4)
    assert calls(session) == ["up stack {}", "down stack"]
    assert leftovers(session) == []


@pytest.mark.parametrize("workers", ["0", "2"])
def test_kept_stack_is_started_once_and_never_stopped(session: pytest.Pytester, workers: str) -> None:
    for _ in range(2):
        done = session.runpytest_subprocess("-n", workers, "--muster-keep")
        done.assert_outcomes(passed=4)
        done.stdout.fnmatch_lines([f"*muster down --state-dir {session.path / 'kept'}"])
    assert calls(session) == ["up kept {}"]
    assert leftovers(session) == []


def test_interrupted_session_stops_its_stack(session: pytest.Pytester) -> None:
    session.makepyfile(test_it="def test_stack(muster_stack):\n    raise KeyboardInterrupt\n")
    session.runpytest_subprocess()
    assert calls(session) == ["up stack {}", "down stack"]
    assert leftovers(session) == []


def test_stack_gets_the_projects_variables_and_a_kept_one_when_they_change(session: pytest.Pytester) -> None:
    conftest = RECORDING_STACK.replace("FAIL", "")
    for audience_shards in (3, 3, 4):
        session.makeconftest(
            f"{conftest}\nimport pytest\n@pytest.fixture(scope='session')\n"
            f"def muster_variables():\n    return {{'audience_shards': {audience_shards}}}\n"
        )
        session.runpytest_subprocess("--muster-keep").assert_outcomes(passed=4)
    assert calls(session) == ['up kept {"audience_shards": 3}', 'up kept {"audience_shards": 4}']


@pytest.mark.parametrize("workers", ["0", "2"])
def test_start_that_fails_is_one_sentence_and_not_repeated(session: pytest.Pytester, workers: str) -> None:
    fault = 'raise StackError("No disk.", fix="Buy one.")'
    session.makeconftest(RECORDING_STACK.replace("FAIL", fault))
    done = session.runpytest_subprocess("-n", workers)
    done.assert_outcomes(errors=4)
    shown = [line for line in done.outlines if line.startswith("The local stack")]
    assert set(shown) == {"The local stack cannot start. No disk. Fix: Buy one."}
    assert "Traceback" not in done.stdout.str()
    assert calls(session) == ["up stack {}", "down stack"]
    assert leftovers(session) == []


def test_stack_that_does_not_stop_is_one_sentence(session: pytest.Pytester) -> None:
    fault = 'raise StackError("It hangs.", fix="Wait.")'
    session.makeconftest(
        RECORDING_STACK.replace("FAIL", "").replace('record(f"down', f'{fault}  # record(f"down')
    )
    done = session.runpytest_subprocess()
    done.assert_outcomes(passed=4)
    assert done.stderr.lines == ["The local stack did not stop: It hangs. Fix: Wait."]


def test_missing_terraform_is_one_sentence_with_a_fix(
    session: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    (session.path / "conftest.py").unlink()
    monkeypatch.setenv("PATH", str(session.path))
    done = session.runpytest_subprocess()
    done.assert_outcomes(errors=4)
    done.stdout.fnmatch_lines(
        ["The local stack cannot start. Terraform is not installed*. Fix: Install Terraform*"]
    )
    assert "Traceback" not in done.stdout.str()


def test_missing_emulator_is_one_sentence_with_a_fix(
    session: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.makeconftest(
        "import muster.local.emulator\nmuster.local.emulator.find_spec = lambda name: None\n"
    )
    monkeypatch.setenv("PATH", FakeTerraform(session.path / "bin").path())
    done = session.runpytest_subprocess()
    done.assert_outcomes(errors=4)
    done.stdout.fnmatch_lines(
        ["The local stack cannot start. The embedded emulator is not installed. Fix: pip*"]
    )
    assert "Traceback" not in done.stdout.str()


def test_session_that_does_not_use_it_imports_nothing(session: pytest.Pytester) -> None:
    session.makeconftest("")
    session.makepyfile(
        test_it="""
        import sys

        def test_nothing():
            slow = {"muster", "boto3", "jwt", "websockets"}
            loaded = {name for name in sys.modules if name.partition(".")[0] in slow}
            assert loaded == {"muster", "muster.pytest_plugin"}
        """
    )
    session.runpytest_subprocess("--muster-keep").assert_outcomes(passed=1)
    assert leftovers(session) == []


def test_plugin_can_be_switched_off(session: pytest.Pytester) -> None:
    session.makeconftest("")
    session.makepyfile(test_it="def test_nothing():\n    pass\n")
    session.runpytest_subprocess("-p", "no:muster").assert_outcomes(passed=1)
