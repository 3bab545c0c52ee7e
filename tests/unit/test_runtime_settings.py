"""Settings come out of plain environment variables, and an error about them repeats no secret."""

import pytest
from pydantic import ValidationError

from services.executor.main import Settings as ExecutorSettings
from services.runtime.settings import ServiceSettings

PASSWORD = "a-password-that-nobody-may-see"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nothing but the password of the bus."""
    for name in (*ServiceSettings.model_fields, *ExecutorSettings.model_fields):
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("NATS_PASSWORD", PASSWORD)
    return monkeypatch


def test_settings_are_read_from_names_without_a_prefix(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("NATS_URL", "nats://127.0.0.1:4333")
    environment.setenv("METRICS_PORT", "9100")
    environment.setenv("LOG_FORMAT", "console")
    environment.setenv("SOMETHING_ELSE", "x")
    settings = ServiceSettings()
    assert (settings.nats_url, settings.metrics_port, settings.log_format) == ("nats://127.0.0.1:4333", 9100, "console")
    assert settings.nats_password.get_secret_value() == PASSWORD
    assert (settings.nats_user, settings.instance, settings.metrics_host) == (None, None, "127.0.0.1")


def test_password_is_required(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("NATS_PASSWORD")
    with pytest.raises(ValidationError, match="nats_password"):
        ServiceSettings()


@pytest.mark.parametrize(
    ("name", "value"), [("METRICS_PORT", "70000"), ("METRICS_PORT", "x"), ("LOG_FORMAT", "xml"), ("LOG_LEVEL", "debug")]
)
def test_wrong_setting_is_named_and_not_repeated(environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    environment.setenv(name, value)
    with pytest.raises(ValidationError) as caught:
        ServiceSettings()
    assert name.lower() in str(caught.value)
    assert "input_value" not in str(caught.value)


def test_no_secret_is_shown_by_settings_or_by_errors_about_them(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("POSTGRES_URL", f"postgresql://x:{PASSWORD}@127.0.0.1/x")
    environment.setenv("RESULT_KEYS", PASSWORD)
    environment.setenv("MEDIA_NAME_SECRET", PASSWORD)
    environment.setenv("EXECUTOR_IDENTITY", PASSWORD)
    settings = ExecutorSettings()
    assert PASSWORD not in repr(settings)
    assert PASSWORD not in str(settings)
    assert PASSWORD not in settings.model_dump_json()
    environment.setenv("RUNNING_PER_KEY", "0")
    with pytest.raises(ValidationError) as caught:
        ExecutorSettings()
    assert "running_per_key" in str(caught.value)
    assert PASSWORD not in str(caught.value)
