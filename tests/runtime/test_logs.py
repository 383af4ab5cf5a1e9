import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ava_core.runtime import logs

WORDS = st.text(st.characters(whitelist_categories=("Lu", "Ll", "Nd")), min_size=8, max_size=24)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://ava:hunter2@db:5432/mlflow",
        "https://hunter2@host/simple",
        "password=hunter2",
        "DB_PASSWORD = hunter2",
        "MLFLOW_TRACKING_TOKEN: hunter2",
        "AWS_SECRET_ACCESS_KEY=hunter2",
        "{'api_key': 'hunter2'}",
        '{"hf-token": "hunter2", "x": 1}',
        "GET /x?access_token=hunter2&y=1",
        "Authorization: Bearer hunter2_and_more",
    ],
)
def test_secrets_are_replaced(text):
    assert "hunter2" not in logs.redact(text)
    assert "***" in logs.redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "--set: data.shard_tokens = -1: must be > 0",
        "--set: model.num_experts_per_token = 99: must be <= 12, the number of experts",
        "params.yaml: tokenizer: unknown key: did you mean tokenizer.vocab_size?",
        "train  40%  loss 3.21  tokens/s 8,123  ETA 40 s",
        "tokens_seen=100, pad_token=<|pad|>",
        "http://127.0.0.1:5000/#/experiments/1",
    ],
)
def test_messages_about_settings_and_addresses_stay_as_they_are(text):
    assert logs.redact(text) == text


@given(user=WORDS, secret=WORDS)
def test_no_password_in_an_address_survives(user, secret):
    assert f"{secret}@" not in logs.redact(f"see postgresql://{user}:{secret}@db/x for more")


def test_the_file_gets_everything_and_the_terminal_what_the_level_lets_through(tmp_path, capsys):
    path = tmp_path / "deep" / "x.log"
    logs.configure("warning", path)
    logger = logging.getLogger("ava_core.test")
    logger.debug("quiet")
    logger.warning("loud")
    logger.error("file only", extra={"file_only": True})
    logs.configure("info")
    logging.getLogger("ava_core").handlers.clear()
    text = path.read_text()
    assert all(word in text for word in ("quiet", "loud", "file only"))
    shown = capsys.readouterr().err
    assert "loud" in shown
    assert "quiet" not in shown
    assert "file only" not in shown
