"""Hooks of MkDocs: headings with the name of their class, diagrams, and the search."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.utils import get_relative_url

_MEMBER = re.compile(
    r'(<h\d id="[\w.]*\.(?P<owner>[A-Z]\w*)\.\w+" class="doc doc-heading">\s*'
    r'<span class="doc doc-object-name doc-(?:function|attribute)-name">)(?=\w)'
)


# The search also finds words that begin with the words of the query, and ranks rare words higher.
# Without these factors, it shows "Streamlit" before "stream", and "Sessions" before "Session".
_BOOSTS = {
    "how-to/notebooks.md": 0.4,
    "reference/async-turns.md": 0.5,
    "reference/calls.md": 2.0,
    "reference/resources.md": 2.5,
    "reference/lists.md": 0.3,
    "reference/stream-errors.md": 0.5,
    "reference/turns.md": 2.5,
    "reliability.md": 2.0,
    "testing.md": 3.0,
    "tutorial.md": 2.6,
}
_GUIDE_BOOST = 1.3


# Words that readers search for, and that the page does not have in this form. The search has no
# stemmer, because a stemmer would change the names of classes.
_KEYWORDS = {
    "errors/": "flux0error",
    "how-to/background-turns/": "backgroundturns",
    "how-to/connect/": "api key keys certificate certificates",
    "how-to/language-model/": "langchain langgraph llm openai anthropic ollama",
    "how-to/telemetry/": "opentelemetry otel",
    "how-to/web/": "fastapi flask django starlette react",
    "moving-over/": "migrate migration migrating",
    "reliability/": "retry retries retrying timeout timeouts thread threads",
    "testing/": "fake faketransport mock mocking",
    "tutorial/": "install installation",
    "turns/": "cancel canceled cancelled canceling cancelling cancellation stream streaming",
    "when-the-connection-breaks/": "resume resuming reconnect reconnecting",
}
_KEYWORD_COUNT = 8  # A page with the word in its text has it several times.
_CLASS_NAME = re.compile(r"^[A-Z]+[a-z0-9]+[A-Z]?\w*$")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Set how the search ranks the page: guides before the reference."""
    path = page.file.src_uri
    default = 1.0 if path.startswith("reference/") else _GUIDE_BOOST
    page.meta["search"] = {"boost": _BOOSTS.get(path, default)}
    return markdown


_ATTRIBUTE = re.compile(
    r'(<li class="doc-section-item field-body">\s*<b><code>)'
    r'<autoref identifier="([\w.]+)"[^>]*>(\w+)</autoref>'
)
_CLASS = '<div class="doc doc-object doc-class">'
_MEMBERS = '<div class="doc doc-children">'
_EXAMPLE = re.compile(r'\s*<div class="highlight">.*?</div>', re.DOTALL)
# A name that is wider than a column on a phone, such as the name of a test.
_LONG_NAME = re.compile(r"(?<=<code>)[\w./]{30,}(?=</code>)")
# From the npm package @mermaid-js/tiny 11.17.2. It replaces the script that the theme would load.
_MERMAID = "javascripts/mermaid.tiny.js"
_DIAGRAM = re.compile(r'(<pre class="mermaid">.*?</pre>)', re.DOTALL)


def on_page_content(html: str, *, page: Any, **_: Any) -> str:
    """Write `Conversation.history` as the heading of a method, so that the search finds it.

    Links can lead to attributes, too, such as `#flux0.Event.id`.

    The example after a class is shown before its first method.

    Long names may break after `_` and `/`, so that a phone shows them without sideways scrolling.

    Load the script that draws diagrams only if the page has a diagram.
    """
    if _DIAGRAM.search(html):
        script = get_relative_url(_MERMAID, page.url)
        html = _DIAGRAM.sub(r'<div class="diagram">\1</div>', html)
        html += f'<script src="{script}"></script>'
    before, *classes = re.split(f"(?={_CLASS})", html)
    html = before + "".join(map(_with_example_first, classes))
    html = _ATTRIBUTE.sub(r'\1<span id="\2">\3</span>', html)
    html = _LONG_NAME.sub(lambda name: re.sub(r"[_/](?=\w)", r"\g<0><wbr>", name[0]), html)
    return _MEMBER.sub(r"\1\g<owner>.<wbr>", html)


def _with_example_first(entry: str) -> str:
    depth, end = 0, len(entry)
    for tag in re.finditer(r"<(/?)div\b[^>]*>", entry):
        depth += -1 if tag[1] else 1
        if depth == 0:
            end = tag.end()
            break
    shown, rest = entry[:end], entry[end:]
    example = _EXAMPLE.match(rest)
    if example is None or (position := shown.find(_MEMBERS)) < 0:
        return entry
    return shown[:position] + example[0] + shown[position:] + rest[example.end() :]


@event_priority(-100)  # After the search has written its index.
def on_post_build(config: Any, **_: Any) -> None:
    """Add words to the index of the search: keywords, and the names of classes in lower case.

    The search splits `FakeTransport` into two words, so it would not find `faketransport`.
    """
    path = Path(config.site_dir, "search/search_index.json")
    index = json.loads(path.read_text("utf-8"))
    for entry in index["docs"]:
        # Only names in titles: the search also finds words that begin with a word of the query.
        names = map(str.lower, _CLASS_NAME.findall(entry["title"]))
        keywords = [_KEYWORDS.get(entry["location"], "")] * _KEYWORD_COUNT
        entry["text"] = " ".join((entry["text"], *names, *keywords)).strip()
    path.write_text(json.dumps(index), "utf-8")
