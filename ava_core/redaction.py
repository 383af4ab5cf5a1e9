"""Text without the secrets in it, for logs, messages and what is recorded.

Secrets are known by where they stand (user of an address, a header, the value of a secret's name) or by their shape
(the prefixes that services give their tokens). Every pattern begins at fixed text and never reads the same run of
characters from several starts, so the time is linear in the text's length, whatever it holds.
"""

from __future__ import annotations

import re

HIDDEN = "***"

_ADDRESS = re.compile(r"([a-zA-Z0-9+.-]{0,24})://([^\s\"<>]+)")
_HOST = re.compile(
    r"(?:[\w.-]+\.[a-zA-Z]{2,}|localhost|[\d.]{7,15}|\[[\da-fA-F:]+\]|[\w.-]+(?=:\d))(?::\d{1,5})?(?=[/?#,;)\]']|$)"
)
_PORT = re.compile(r":\d{1,5}$")
_PEM = re.compile(
    r"-----BEGIN ([A-Z ]{0,40})PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)", re.DOTALL
)

_SHAPES = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"hf_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|sk-(?=[\w-]{0,64}\d)[\w-]{16,}|[rsp]k_(?:live|test)_\w{10,}"  # OpenAI, Anthropic; Stripe
    r"|gh[opsru]_[A-Za-z0-9]{16,}|github_pat_\w{20,}|gl[a-z]{2,5}-[\w.-]{16,}"  # GitHub, GitLab
    r"|xox[a-z]-[\w-]{10,}|xapp-[\w-]{10,}"  # Slack
    r"|AIza[\w-]{30,}|ya29\.[\w.-]{16,}"  # Google
    r"|dapi[0-9a-f]{32}(?:-\d{1,2})?"  # Databricks
    r"|npm_[A-Za-z0-9]{30,}|pypi-[\w-]{40,}|nvapi-[\w-]{20,}|hvs\.[\w-]{20,}|SG\.[\w-]{16,}(?:\.[\w-]{16,})?"
    # An AWS key, and the secret that is written beside it.
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])(?:[\s:/,\"']{1,4}[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+]))?"
    r"|eyJ(?<![\w-]eyJ)[\w-]{6,}+\.[\w-]{4,}+(?:\.[\w-]*+)?"  # JSON web tokens, which begin with {"
    r")"
)

_HEADER = re.compile(
    r"(?i)\b((?:proxy-)?authorization(?:\\{0,3}[\"'])?\s{0,4}[:=]\s{0,4}(?:\\{0,3}[\"'])?)"
    r"((?:bearer|basic|token|apikey|negotiate|digest)\s{1,4})?([^\s\"'\\,]+)"
)
# `basic authentication` and `bearer tokens` are words; a credential is seldom lower-case letters alone.
_SCHEME = re.compile(r"(?i)\b(bearer|basic)(\s{1,4})(?!(?-i:[a-z'-]++)(?:[\s.,;:)]|$))[\w.~+/=-]{6,}")

_NAME = (
    r"(?:(?<!per_)(?<!bos_)(?<!eos_)(?<!pad_)(?<!unk_)(?<!sep_)(?<!cls_)(?<!mask_)(?<!next_)(?<!last_)token"
    r"|passwd|password|passphrase|secret|credentials?"
    r"|(?:api|access|secret|private|account|storage|signing|encryption|master|session|auth)[_-]?key"
    # Names that are a secret's only among the parameters of an address or of a connection string.
    r"|(?<=[?&;])(?:key|sig|sas|auth|pwd|code)|(?<=[?&;-])signature|(?<![A-Za-z0-9])sig(?==[\w%+/=-]{16}))"
)
_ASSIGNMENT = re.compile(rf"(?i)({_NAME})((?:\\{{0,3}}[\"'])?[ \t]{{0,4}}(?:=>|:=|[=:])[ \t]{{0,4}})(\\{{0,3}}[\"'])?")
_FLAG = re.compile(r"(?i)(?<![\w-])(--[a-z-]{0,40}?(?:password|token|secret|api-key)\s{1,4})(?!-)([^\s\"']+)")
# Up to a space or a quote, or to where another parameter or setting begins.
_VALUE = re.compile(r"(?:[^\s\"'&;,]|[&;,](?![\w.-]{1,64}[=:]|[\s\"']|$))+")
_QUOTED = {'"': re.compile(r"(?:\\.|[^\"\\\n])*+(?=\")"), "'": re.compile(r"(?:\\.|[^'\\\n])*+(?=')")}
_ESCAPED = re.compile(r"[^\"'\\\n]*+(?=\\)")
# What follows the colon in a message about a file or a setting of such a name, and values that say there is none.
_WORDS = re.compile(
    r"(?i)(?:no|not|none|null|nil|true|false|is|has|was|are|must|may|can|can't|cannot|could|unknown|missing|invalid|wrong"
    r"|expired|required|refused|permission|operation|input/output|file|too|empty|unset|the|a|an|and|or|to|for|in|of|as"
    r"|from|with|give|use|set|see|check|failed|error|holds|read-only|already|did|if|when|which|that|where|it|its)(?![\w-])"
)


def redact(text: str) -> str:
    """The text with `***` for credentials in addresses and headers, values of secret-looking names, and known tokens.

    Paths, digests, commits, messages about files and settings of such names, and the names themselves stay readable.
    """
    text = _PEM.sub(rf"-----BEGIN \1PRIVATE KEY----- {HIDDEN} -----END \1PRIVATE KEY-----", text)
    text = _ADDRESS.sub(lambda found: f"{found[1]}://{_without_user(found[1], found[2])}", text)
    text = _HEADER.sub(lambda found: f"{found[1]}{found[2] or ''}{HIDDEN}", text)
    text = _SCHEME.sub(rf"\1\2{HIDDEN}", text)
    text = _FLAG.sub(lambda found: found[0] if _WORDS.match(found[2]) else f"{found[1]}{HIDDEN}", text)
    return _SHAPES.sub(HIDDEN, _hide_values(text))


def redact_address(uri: str) -> str:
    """The address without user name, password, query and fragment: each of them can carry credentials."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri.partition("?")[0]
    return f"{scheme}://{re.split('[?#]', _without_user(scheme, rest), maxsplit=1)[0]}"


def _without_user(scheme: str, rest: str) -> str:
    """What follows `://`, with `***@` for a user and a password, which may hold what should have been escaped in it."""
    first = re.match(r"[^/?#]*", rest)[0]  # type: ignore[index]
    at = first.find("@")
    if at >= 0:
        candidates = [index for index in (at, first.rfind("@")) if _HOST.match(rest, index + 1)]
        if not candidates and ":" in first[:at]:
            candidates = [rest.rfind("@")]
        return f"{HIDDEN}@{rest[max(candidates, default=first.rfind('@')) + 1 :]}"
    if ":" not in first or "@" not in rest or (scheme.lower() in ("http", "https") and _PORT.search(first)):
        return rest
    return f"{HIDDEN}@{rest[rest.rfind('@') + 1 :]}"


def _hide_values(text: str) -> str:
    parts, shown = [], 0
    for found in _ASSIGNMENT.finditer(text):
        begin = found.end()
        if found.start() < shown:  # inside the value of a name before
            continue
        end = _end_of_value(text, begin, found[3] or "")
        if end > begin and not _is_message(text, found, begin):
            parts += [text[shown:begin], HIDDEN]
            shown = end
    return "".join([*parts, text[shown:]])


def _end_of_value(text: str, begin: int, quote: str) -> int:
    if quote:
        inside = (_ESCAPED if len(quote) > 1 else _QUOTED[quote]).match(text, begin)
        if inside:
            return inside.end()
    value = _VALUE.match(text, begin)
    return value.end() if value else begin


def _is_message(text: str, found: re.Match[str], begin: int) -> bool:
    """Whether what follows the name is no value: `/etc/passwd: no such file`, `password: unknown key`, `token=None`."""
    if found[3]:
        return False
    if text.startswith(HIDDEN, begin) or _WORDS.match(text, begin):
        return True
    before = text[max(0, found.start() - 64) : found.start()]
    return found[2] == ": " and bool(re.search(r"[/\\][\w.-]*$", before))
