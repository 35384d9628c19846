"""Signatures, against a second implementation and against the published example."""

import base64
import time

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from app.webhooks.signing import hint_secret, make_secret, show_secret, sign

BODY = '{"id":"evt_1","text":"ü"}'.encode()


class TestSign:
    def test_example_of_the_standard(self) -> None:
        # From the test vectors of the standard's own libraries.
        secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
        headers = sign(
            [secret],
            event_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
            timestamp=1614265330,
            body=b'{"test": 2432232314}',
        )
        assert headers == {
            "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "webhook-timestamp": "1614265330",
            "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        }

    def test_second_implementation_takes_it_by_either_key(self) -> None:
        keys = [make_secret(), make_secret()]
        headers = sign(keys, event_id="evt_1", timestamp=int(time.time()), body=BODY)
        for key in keys:
            assert Webhook(show_secret(key)).verify(BODY, headers) == {"id": "evt_1", "text": "ü"}
        with pytest.raises(WebhookVerificationError):
            Webhook(show_secret(make_secret())).verify(BODY, headers)

    @pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp"])
    def test_what_is_signed_cannot_be_changed(self, name: str) -> None:
        key = make_secret()
        headers = sign([key], event_id="1", timestamp=int(time.time()), body=BODY)
        changed = {**headers, name: str(int(headers[name]) + 1)}
        for body, sent in ((BODY + b" ", headers), (BODY, changed)):
            with pytest.raises(WebhookVerificationError):
                Webhook(show_secret(key)).verify(body, sent)


class TestSecret:
    def test_is_long_and_new(self) -> None:
        made = {make_secret() for _ in range(8)}
        assert len(made) == 8
        assert {len(each) for each in made} == {32}

    def test_hint_is_a_small_part(self) -> None:
        shown, hint = show_secret(bytes(range(32))), hint_secret(bytes(range(32)))
        assert shown.startswith("whsec_")
        assert hint == "whsec_…" + shown.rstrip("=")[-4:]
