import logging

from ava_core.runtime import logs


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


def test_neither_the_file_nor_the_terminal_gets_a_secret(tmp_path, capsys):
    logs.configure("info", tmp_path / "x.log")
    try:
        raise ValueError("password=hunter2")
    except ValueError:
        logging.getLogger("ava_core.test").exception("at %s", "https://ava:hun/ter2@host.example/x")
    logging.getLogger("ava_core").handlers.clear()
    for text in ((tmp_path / "x.log").read_text(), capsys.readouterr().err):
        assert "hunter2" not in text and "ter2@" not in text and text.count("***") == 3
