import re

import pytest

from backendai_mgr.agent.config import SCHEMA, AgentConfig, parse_agent_config
from backendai_mgr.runtime.config import ConfigError

from ..support.samples import check_sample

#: Keys whose sample value is an example, since the default depends on the machine or is absent.
EXAMPLES = {
    ("agent", "id"),
    ("agent", "bind"),
    ("agent", "advertised-addr"),
    ("agent", "manager-ca"),
    ("agent", "data-dir"),
    ("agent", "images-dir"),
    ("logging", "file", "path"),
    ("logging", "file", "filename"),
}


def test_the_sample_shows_every_key_with_its_default():
    check_sample(SCHEMA, examples=EXAMPLES, absent=())


def test_an_empty_document_gives_the_defaults():
    assert parse_agent_config({}) == AgentConfig()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("id", "two words"),
        ("id", 7),
        ("bind", "6001"),
        ("bind", "127.0.0.1:99999"),
        ("bind", "localhost:6001"),
        ("advertised-addr", "node:6001"),
        ("advertised-addr", "0.0.0.0:6001"),
        ("advertised-addr", "10.0.0.1:0"),
        ("manager-url", "manager:8081"),
        ("manager-url", "ftp://manager"),
        ("manager-url", "https://"),
        ("manager-url", "https://manager:port"),
        ("manager-url", "https://user:secret@manager"),
        ("manager-url", "http://manager:8081"),
        ("manager-url", "https://manager/?a=b"),
        ("manager-ca", "ca.pem"),
        ("join-token", 7),
        ("data-dir", "relative/path"),
        ("data-dir", 5),
        ("report-interval", 0),
        ("report-interval", "soon"),
        ("cpu-overcommit", -1),
        ("cpu-overcommit", "2"),
        ("reserved-mem", "much"),
        ("upload-size", "huge"),
        ("upload-size", -1),
        ("session-lifetime", "12 hours"),
        ("session-lifetime", -1),
        ("images-dir", "images"),
        ("allow-unisolated", "maybe"),
        ("report_interval", 3.0),
        ("colour", "blue"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_key(key, value):
    with pytest.raises(ConfigError, match=re.escape(key)):
        parse_agent_config({"agent": {key: value}})


@pytest.mark.parametrize(("written", "seconds"), [(0, 0), (90, 90), ("90m", 5400), ("12h", 43200)])
def test_a_lifetime_is_written_like_any_duration(written, seconds):
    assert parse_agent_config({"agent": {"session-lifetime": written}}).session_lifetime == seconds


def test_an_unknown_table_is_refused_by_its_name():
    with pytest.raises(ConfigError, match="manager"):
        parse_agent_config({"manager": {}})


@pytest.mark.parametrize(
    "url", ["", "https://manager", "https://10.0.0.1:8081/", "http://127.0.0.1:8081", "http://[::1]:1"]
)
def test_urls_of_managers(url):
    assert parse_agent_config({"agent": {"manager-url": url}}).manager_url == url


def test_a_token_does_not_show():
    assert "s3cret" not in repr(parse_agent_config({"agent": {"join-token": "s3cret"}}))
