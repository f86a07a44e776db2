"""The check of MiniStack's version: every function that Muster replaces must exist with its parameters."""

import pytest
from ministack.services import apigateway, lambda_svc

from muster.local import embedded


def test_installed_emulator_fits() -> None:
    assert embedded.incompatible() == []


def test_missing_function_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(apigateway, "_invoke_ws_lambda")
    assert embedded.incompatible() == ["ministack.services.apigateway._invoke_ws_lambda differs"]


def test_function_with_other_parameters_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lambda_svc, "_emit_lambda_logs", lambda func, log_text: None)
    assert embedded.incompatible() == ["ministack.services.lambda_svc._emit_lambda_logs differs"]


def test_an_incompatible_emulator_ends_with_the_version_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(apigateway, "handle_websocket")
    monkeypatch.setattr(embedded, "install", lambda **options: pytest.fail("it was changed all the same"))
    with pytest.raises(
        SystemExit, match=r"does not fit this version of Muster: .*handle_websocket differs"
    ) as ended:
        embedded.main()
    assert "Install the version that Muster's `local` extra names." in str(ended.value)
