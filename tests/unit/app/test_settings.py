"""Settings: where they come from, and what is refused."""

import os
from pathlib import Path
from typing import Any

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

    def test_records_are_not_kept_for_less_than_six_months(self) -> None:
        with pytest.raises(
            ConfigurationError, match=r"TETHER_RETENTION_STEPS_DAYS \(182\).*Articles 19\(1\) and 26\(6\)"
        ):
            load_settings({"TETHER_RETENTION_STEPS_DAYS": "182"})
        assert load_settings({"TETHER_RETENTION_STEPS_DAYS": "183"}).retention_steps_days == 183

    def test_records_of_a_job_outlive_those_of_its_steps(self) -> None:
        with pytest.raises(ConfigurationError, match=r"TETHER_RETENTION_RECORDS_DAYS \(400\) is below"):
            load_settings({"TETHER_RETENTION_RECORDS_DAYS": "400"})

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("TETHER_RETENTION_RECORDS_DAYS", "99999"),
            ("TETHER_WEBHOOK_LOG_DAYS", "366"),
            ("TETHER_DELETION_GRACE_S", "1e300"),
        ],
    )
    def test_nothing_is_kept_for_longer_than_there_are_dates(self, name: str, text: str) -> None:
        with pytest.raises(ConfigurationError, match=name):
            load_settings({name: text})

    @pytest.mark.parametrize(
        "environment",
        [
            {"TETHER_CLASSIFIER_DIR": "/models/guard"},
            {"TETHER_CLASSIFIER_HARMFUL_LABELS": "unsafe"},
            {"TETHER_CLASSIFIER_DIR": "/models/guard", "TETHER_CLASSIFIER_HARMFUL_LABELS": " , "},
        ],
    )
    def test_a_classifier_and_its_labels_need_each_other(self, environment: dict[str, str]) -> None:
        with pytest.raises(ConfigurationError, match="TETHER_CLASSIFIER_DIR and TETHER_CLASSIFIER_HARMFUL"):
            load_settings(environment)

    def test_labels_of_a_classifier_stand_between_commas(self) -> None:
        settings = load_settings(
            {"TETHER_CLASSIFIER_DIR": "/models/guard", "TETHER_CLASSIFIER_HARMFUL_LABELS": "hate, LABEL_1,"}
        )
        assert settings.harmful_labels == ("hate", "LABEL_1")

    def test_lease_without_room_for_two_heartbeats_is_refused(self) -> None:
        with pytest.raises(
            ConfigurationError, match=r"TETHER_HEARTBEAT_S \(10\) is too long for TETHER_LEASE_S \(20\)"
        ):
            load_settings({"TETHER_LEASE_S": "20"})

    def test_waiting_for_a_verdict_is_not_hanging(self) -> None:
        short = {"TETHER_STALL_S": "60"}
        assert load_settings(short).stall_s == 60
        judge = {"TETHER_JUDGE_URL": "http://judge/v1", "TETHER_JUDGE_MODEL": "guard"}
        with pytest.raises(
            ConfigurationError, match=r"TETHER_STALL_S \(60\) is too short for TETHER_JUDGE_TIMEOUT_S \(60\)"
        ):
            load_settings(short | judge)

    @pytest.mark.parametrize(
        "url",
        [
            "ftp://judge/v1",
            "judge:8000",
            "http://",
            "http://user:pa55@judge/v1",
            "http://judge/v1?x=pa55",
            "http://judge/#pa55",
            "http://judge:port/v1",
            "http://[judge/v1",
            "http://ju dge/v1",
            "http://judge/v1\nHost: pa55",
        ],
    )
    def test_judge_url_is_plain_http_and_is_not_repeated(self, url: str) -> None:
        with pytest.raises(ConfigurationError, match="TETHER_JUDGE_URL is not of the form") as found:
            load_settings({"TETHER_JUDGE_URL": url, "TETHER_JUDGE_MODEL": "m"})
        assert "pa55" not in str(found.value)

    @pytest.mark.parametrize(
        "url", ["http://localhost:8001/v1", "https://judge.example/v1/", "http://[::1]:8001/v1"]
    )
    def test_judge_url_is_taken(self, url: str) -> None:
        assert load_settings({"TETHER_JUDGE_URL": url, "TETHER_JUDGE_MODEL": "m"}).judge_url == url

    @pytest.mark.parametrize("end", ["", "/"])
    def test_judge_url_is_a_base(self, end: str) -> None:
        url = f"http://h/v1/chat/completions{end}"
        with pytest.raises(ConfigurationError, match="leave /chat/completions off"):
            load_settings({"TETHER_JUDGE_URL": url, "TETHER_JUDGE_MODEL": "m"})

    @pytest.mark.parametrize("name", ["TETHER_JUDGE_URL", "TETHER_JUDGE_MODEL"])
    def test_judge_needs_url_and_model(self, name: str) -> None:
        with pytest.raises(ConfigurationError, match="set both or none"):
            load_settings({name: "http://localhost/v1"})

    @pytest.mark.parametrize("key", ["pa55 word", "pa55\r\nX: y", "pa55é"])
    def test_judge_key_that_no_header_can_carry_is_refused_and_not_repeated(self, key: str) -> None:
        with pytest.raises(ConfigurationError, match="TETHER_JUDGE_API_KEY") as found:
            load_settings({"TETHER_JUDGE_API_KEY": key})
        with pytest.raises(ValidationError) as raw:
            Settings(judge_api_key=key)  # type: ignore[arg-type]
        assert "pa55" not in str(found.value) + repr(raw.value)

    def test_private_hosts_are_a_list(self) -> None:
        text = " Hooks.internal, 127.0.0.1,::1 ,"
        found = load_settings({"TETHER_WEBHOOK_PRIVATE_HOSTS": text}).private_hosts
        assert found == {"hooks.internal", "127.0.0.1", "::1"}
        assert load_settings({}).private_hosts == set()

    @pytest.mark.parametrize(
        "text", ["http://hooks.internal", "hooks.internal:8080", "a@b", "a/b", "[::1]", "a b"]
    )
    def test_private_host_with_more_than_a_host_is_refused(self, text: str) -> None:
        with pytest.raises(ConfigurationError, match="TETHER_WEBHOOK_PRIVATE_HOSTS"):
            load_settings({"TETHER_WEBHOOK_PRIVATE_HOSTS": f"good.internal,{text}"})

    def test_override_wins_and_none_does_not(self, tmp_path: Path) -> None:
        environment = {"TETHER_HOME": str(tmp_path / "a"), "TETHER_LEASE_S": "70"}
        settings = load_settings(environment, home=tmp_path / "b", lease_s=None)
        assert (settings.home, settings.lease_s) == (tmp_path / "b", 70)

    def test_settings_are_frozen(self) -> None:
        with pytest.raises(ValidationError):
            load_settings({}).lease_s = 1  # type: ignore[misc]


class TestMlflow:
    @pytest.mark.parametrize(
        "url", ["mlflow:5000", "ftp://mlflow", "http://user:secret@mlflow", "http://mlflow/?a=1"]
    )
    def test_address_that_is_none_is_refused_without_being_repeated(self, url: str) -> None:
        with pytest.raises(
            ConfigurationError, match="TETHER_MLFLOW_TRACKING_URI is not of the form"
        ) as found:
            load_settings({"TETHER_MLFLOW_TRACKING_URI": url})
        assert url not in found.value.message

    def test_token_that_no_header_can_carry_is_refused_without_being_repeated(self) -> None:
        with pytest.raises(ConfigurationError, match="TETHER_MLFLOW_TOKEN has characters") as found:
            load_settings({"TETHER_MLFLOW_TOKEN": "se\ncret"})
        assert "cret" not in found.value.message


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

    def test_a_trainer_is_offline_whatever_its_surroundings_say(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            monkeypatch.setenv(name, "0")
            assert load_settings({}).child_environment()[name] == "1"

    def test_judge_key_reaches_the_worker_and_only_from_the_settings(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TETHER_JUDGE_API_KEY", "of-the-environment")
        assert "TETHER_JUDGE_API_KEY" not in load_settings({}).child_environment()
        environment = load_settings({"TETHER_JUDGE_API_KEY": "sk-1"}).child_environment()
        assert environment["TETHER_JUDGE_API_KEY"] == "sk-1"

    def test_token_for_mlflow_reaches_the_worker(self) -> None:
        environment = load_settings({"TETHER_MLFLOW_TOKEN": "token-1"}).child_environment()
        assert environment["TETHER_MLFLOW_TOKEN"] == "token-1"

    def test_keys_are_not_shown(self) -> None:
        # It is Base64, which the secret of an anchor must be.
        names = ("api_key", "judge_api_key", "mlflow_token", "anchor_secret")
        secrets: dict[str, Any] = dict.fromkeys(names, "whsec_" + "opensesame++" * 3)
        settings = Settings(**secrets, anchor_url="https://example.org/")
        assert "opensesame" not in repr(settings) + settings.model_dump_json()
