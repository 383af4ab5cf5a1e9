"""Proxies and indexes, without the secrets in their addresses."""

import os

import pytest

from ava_core.diagnosis.proxies import check_index, check_proxies


def only(findings):
    (finding,) = findings
    return finding


def test_a_proxy_that_stands_before_this_machine_itself_warns():
    finding = only(check_proxies({"HTTPS_PROXY": "http://me:secret@proxy.example:3128", "no_proxy": "corp.example"}))
    assert finding.status == "warn" and finding.way_out == "no_proxy=corp.example,localhost,127.0.0.1"
    assert "https_proxy http://***@proxy.example:3128" in finding.value and "secret" not in finding.value


@pytest.mark.parametrize("exempt", ["127.0.0.1,localhost", "*"])
def test_a_proxy_that_leaves_this_machine_alone_is_fine(exempt):
    assert only(check_proxies({"http_proxy": "http://proxy:3128", "NO_PROXY": exempt})).status == "ok"
    assert only(check_proxies({})).line() == "ok    proxy: none"


def test_a_proxy_without_a_host_fails():
    finding = only(check_proxies({"http_proxy": "http://:3128"}))
    assert finding.status == "fail" and "unset http_proxy" in finding.way_out


def test_the_index_is_that_of_the_variables_and_else_of_the_files(tmp_path):
    low, high = tmp_path / "low.conf", tmp_path / "high.conf"
    low.write_text("[global]\nindex-url = https://low.example/simple\n")
    high.write_text(
        "[global]\nindex-url = https://me:secret@high.example/simple\nextra-index-url =\n  https://a/\n  https://b/\n"
    )
    finding = only(
        check_index({"PIP_INDEX_URL": "https://u:secret@env.example/simple"}, [tmp_path / "none", low, high])
    )
    assert finding.status == "ok" and "secret" not in finding.value
    assert finding.value.startswith(
        "PIP_INDEX_URL https://***@env.example/simple, index-url of high.conf https://***@high"
    )
    assert "extra-index-url of high.conf https://a/ https://b/" in finding.value
    assert only(check_index({}, [])).value == "pip's default"


def test_a_file_of_pips_that_cannot_be_read_warns(tmp_path):
    (tmp_path / "pip.conf").write_text("no section\n")
    assert only(check_index({"PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "HOME": "/none"})).status == "warn"
    assert only(check_index({"PIP_CONFIG_FILE": os.devnull})).value == "pip's default"


def test_an_installation_without_an_index_says_so():
    assert only(check_index({"PIP_NO_INDEX": "1"}, [])).value == "none: PIP_NO_INDEX is set"
