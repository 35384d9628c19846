"""Settings: where they come from, and what is refused."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.errors import ConfigurationError
from app.settings import Settings, load_settings


class TestLoadSettings:
    def test_defaults_lie_in_the_home_folder(self, tmp_path: Path) -> None:
        settings = load_settings({"TETHER_HOME": str(tmp_path)})
        assert settings.home == tmp_path
        assert settings.database_url == f"sqlite:///{tmp_path}/tether.db"
        assert settings.broker_url == f"safefs://{tmp_path}/queue"
        assert settings.storage_dir == tmp_path / "storage"

    def test_relative_home_becomes_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # Children are started from the same settings, and must find the same folder from wherever they run.
        monkeypatch.chdir(tmp_path)
        settings = load_settings({"TETHER_HOME": "state", "TETHER_STORAGE_DIR": "bytes"})
        assert settings.home == tmp_path / "state"
        assert settings.database_url == f"sqlite:///{tmp_path}/state/tether.db"
        assert settings.storage_dir == tmp_path / "bytes"

    def test_unknown_variable_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match=r"TETHER_LEASE is not a setting.*TETHER_LEASE_S"):
            load_settings({"TETHER_LEASE": "5"})

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("TETHER_MAX_FILE_BYTES", "many"),
            ("TETHER_MAX_FILE_BYTES", "0"),
            ("TETHER_LEASE_S", "-1"),
            ("TETHER_LEASE_S", "nan"),
            ("TETHER_HEARTBEAT_S", "inf"),
            ("TETHER_MAX_ATTEMPTS_WITHOUT_PROGRESS", "0"),
        ],
    )
    def test_bad_value_names_the_variable_and_the_value(self, name: str, text: str) -> None:
        with pytest.raises(ConfigurationError, match=rf"{name}: .*{text}"):
            load_settings({name: text})

    def test_empty_variable_is_no_variable(self) -> None:
        assert load_settings({"TETHER_LEASE_S": "", "TETHER_STORAGE_DIR": ""}).lease_s == 60

    def test_other_variables_are_left_alone(self) -> None:
        load_settings({"PATH": "/bin", "TETHER_URL": "http://x", "TETHER_TEST_REDIS_URL": "redis://x"})

    def test_lease_without_room_for_two_heartbeats_is_refused(self) -> None:
        with pytest.raises(
            ConfigurationError, match=r"TETHER_HEARTBEAT_S \(10\) is too long for TETHER_LEASE_S \(20\)"
        ):
            load_settings({"TETHER_LEASE_S": "20"})

    def test_override_wins_and_none_does_not(self, tmp_path: Path) -> None:
        environment = {"TETHER_HOME": str(tmp_path / "a"), "TETHER_LEASE_S": "70"}
        settings = load_settings(environment, home=tmp_path / "b", lease_s=None)
        assert (settings.home, settings.lease_s) == (tmp_path / "b", 70)

    def test_settings_are_frozen(self) -> None:
        with pytest.raises(ValidationError):
            load_settings({}).lease_s = 1  # type: ignore[misc]


class TestChildEnvironment:
    def test_child_reads_the_same_settings_without_the_key(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TETHER_API_KEY", "secret-of-the-environment")
        settings = load_settings(
            {"TETHER_API_KEY": "secret", "TETHER_LEASE_S": "70.5", "TETHER_POLICY_FILE": "/policy.toml"},
            home=tmp_path,
        )
        environment = settings.child_environment()
        child = load_settings({k: v for k, v in environment.items() if not k.startswith("TETHER_TEST_")})
        assert child == settings.model_copy(update={"api_key": None})
        assert not any("secret" in value for name, value in environment.items() if "TETHER" in name)
        assert environment["PATH"] == os.environ["PATH"]

    def test_key_is_not_shown(self) -> None:
        assert "secret" not in repr(Settings(api_key="secret"))  # type: ignore[arg-type]
