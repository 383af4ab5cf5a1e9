"""Conversations in files, as `/save` writes them: JSON with the system prompt and the messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ava_core.errors import ConfigError, first_line
from ava_core.files import parse_json, write_whole

FORMAT = "ava.conversation"


def write(path: Path, system: str, messages: list[dict[str, str]]) -> None:
    """Write a conversation; a file that holds anything else is left alone.

    Raises:
        ConfigError: it does.
    """
    if path.exists():
        read(path)
    content = {"format": FORMAT, "system": system, "messages": messages}
    write_whole(path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


def read(path: Path) -> dict[str, Any]:
    """A saved conversation.

    Raises:
        ConfigError: the file can't be read, or holds something else.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or first_line(error)}") from error
    except ValueError:
        content = None
    if not _is_conversation(content):
        raise ConfigError(f"{path}: holds no conversation that /save wrote: give another file")
    return content


def _is_conversation(content: Any) -> bool:
    if not (isinstance(content, dict) and content.get("format") == FORMAT and isinstance(content.get("system"), str)):
        return False
    messages = content.get("messages")
    if not isinstance(messages, list) or len(messages) % 2:
        return False
    roles = ("user", "assistant") * (len(messages) // 2)
    return all(
        isinstance(message, dict)
        and set(message) == {"role", "content"}
        and message["role"] == role
        and isinstance(message["content"], str)
        for message, role in zip(messages, roles, strict=True)
    )
