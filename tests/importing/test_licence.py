import pytest

from ava_core.importing.licence import find_licence
from ava_core.origin import Origin, carry_origin, read_origin, write_origin

APACHE = """
                                 Apache License
                           Version 2.0, January 2004
"""


def test_card_states_the_licence(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: MIT\nlanguage: en\n---\nText\n")
    (tmp_path / "LICENSE").write_text(APACHE)
    assert find_licence(tmp_path) == {"id": "mit", "stated": "README.md"}


def test_licence_with_a_name_of_its_own_keeps_it_and_its_link(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n")
    assert find_licence(tmp_path) == {"id": "other", "stated": "README.md", "name": "own", "link": "LICENSE"}


@pytest.mark.parametrize("text, name", [(APACHE, "apache-2.0"), ("MIT License\n\nCopyright", "mit")])
def test_text_is_known_by_its_beginning(tmp_path, text, name):
    (tmp_path / "LICENSE.txt").write_text(text)
    assert find_licence(tmp_path) == {"id": name, "stated": "LICENSE.txt"}


def test_what_nothing_states_is_unknown(tmp_path):
    assert find_licence(tmp_path) == {"id": "unknown", "stated": "nowhere"}
    (tmp_path / "README.md").write_text("---\nlicense: [unclosed\n---\n")
    (tmp_path / "LICENSE").write_text("You may look at it on Sundays.")
    assert find_licence(tmp_path) == {"id": "unknown", "stated": "see LICENSE"}


def test_card_that_builds_objects_builds_none(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: !!python/object/apply:os.mkdir [ran]\n---\n")
    assert find_licence(tmp_path)["id"] == "unknown"


def test_origin_is_carried_on_with_the_licence_and_its_text(tmp_path):
    source, derived = tmp_path / "source", tmp_path / "derived"
    source.mkdir(), derived.mkdir()
    origin = Origin(
        name="hub:a/b", revision="c" * 40, architecture="olmoe", files={}, licence={"id": "mit"}, changes=()
    )
    write_origin(source, origin)
    (source / "NOTICE").write_text("thanks")
    carry_origin(source, derived)
    assert read_origin(derived) == origin
    assert (derived / "NOTICE").read_text() == "thanks"
    assert str(origin) == "from hub:a/b@cccccccccccc (olmoe), licence mit"
    assert find_licence(derived) == {"id": "mit"}


def test_model_without_an_origin_gives_none(tmp_path):
    carry_origin(tmp_path, tmp_path)
    assert read_origin(tmp_path) is None and not list(tmp_path.iterdir())
