"""The GitHub workflows pin every action and grant only the permissions that each job needs."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

WORKFLOWS = sorted((Path(__file__).parents[2] / ".github" / "workflows").glob("*.yml"))
PINNED = re.compile(r"uses: [\w-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
class TestEveryWorkflow:
    def test_every_action_is_pinned_to_a_commit_with_its_version(self, path: Path) -> None:
        used = [line.strip() for line in path.read_text().splitlines() if "uses:" in line]
        assert used
        assert [line for line in used if not PINNED.search(line)] == []

    def test_jobs_may_at_most_read_and_get_an_id_token(self, path: Path) -> None:
        workflow = yaml.safe_load(path.read_text())
        granted = [
            workflow["permissions"],
            *(job.get("permissions", {}) for job in workflow["jobs"].values()),
        ]
        allowed = {("contents", "read"), ("id-token", "write")}
        assert {item for permissions in granted for item in permissions.items()} <= allowed

    def test_every_job_has_a_time_limit(self, path: Path) -> None:
        jobs = yaml.safe_load(path.read_text())["jobs"].values()
        assert all(0 < job["timeout-minutes"] <= 60 for job in jobs)


def test_localstack_runs_only_on_demand_and_one_step_gets_its_token() -> None:
    path = next(path for path in WORKFLOWS if path.stem == "localstack")
    # YAML 1.1 reads the key `on` as true.
    workflow: dict[Any, Any] = yaml.safe_load(path.read_text())
    assert list(workflow[True]) == ["workflow_dispatch"]
    steps = workflow["jobs"]["test"]["steps"]
    assert [step["name"] for step in steps if "secrets." in str(step)] == ["Start LocalStack"]
    (tests,) = (step for step in steps if step.get("run") == "make test")
    assert "AWS_ENDPOINT_URL" in tests["env"]


def test_an_action_has_the_same_version_everywhere() -> None:
    text = "".join(path.read_text() for path in WORKFLOWS)
    used = set(re.findall(r"uses: ([^@\s]+)@(\S+ # \S+)", text))
    assert len({action for action, _ in used}) == len(used)


def test_only_an_approved_job_gets_the_deploy_role() -> None:
    jobs = yaml.safe_load(next(path for path in WORKFLOWS if path.stem == "deploy").read_text())["jobs"]
    deploying = [name for name, job in jobs.items() if "AWS_DEPLOY_ROLE_ARN" in str(job)]
    assert deploying == ["apply"]
    assert jobs["apply"]["environment"] == "production"
    assert "terraform -chdir=terraform apply deploy.tfplan" in jobs["apply"]["steps"][-1]["run"]
