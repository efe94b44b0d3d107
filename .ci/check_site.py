"""Checks of the built documentation: every public name, and the appearance in Chromium.

Usage: `pytest .ci/check_site.py`, after `mkdocs build`. `tox run -e docs` runs both.
"""

from __future__ import annotations

import functools
import html
import http.server
import inspect
import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import get_origin
from urllib.parse import unquote

import pytest

import flux0
from support.browser import Browser, Page
from support.npm import npm_install
from support.programs import skip_without

SITE = Path(__file__).parents[1] / "site"
REFERENCE = "".join(
    (page / "index.html").read_text("utf-8") for page in sorted((SITE / "reference").iterdir())
)
ANCHORS = set(re.findall(r'id="([\w.]+)"', REFERENCE))
MODULES = ("flux0", "flux0.testing", "flux0.models", "flux0.ports", "flux0.flows")
# A module without `__all__` re-exports all its names, except its submodules.
NAMES = [
    (module, name)
    for module in MODULES
    for name in getattr(import_module(module), "__all__", dir(import_module(module)))
    if name[0] != "_" and not inspect.ismodule(getattr(import_module(module), name))
]


def anchor_of(name: str) -> str | None:
    """Return the anchor of a public name, in whichever module the reference shows it."""
    found = (each for each in sorted(ANCHORS) if each.endswith(f".{name}"))
    return min(found, key=len, default=None)


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_reference_has_an_anchor_for_each_public_name(module: str, name: str) -> None:
    assert anchor_of(name), f"{module}.{name} has no heading in the reference"


def test_search_finds_each_public_name() -> None:
    index = json.loads((SITE / "search" / "search_index.json").read_text("utf-8"))
    words = " ".join(f"{entry['title']} {entry['text']}" for entry in index["docs"])
    missing = [name for _, name in NAMES if name not in words]
    assert missing == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Flux0", "stream_idle_timeout_ms"),
        ("Say", "pieces: int = 1"),
        ("ToolCall", "tool_call_id"),
        ("RetryConfig", "max_attempts"),
        ("Event", "reasoning"),
        ("TurnMessage", "tool_calls"),
        ("StreamInterrupted", "messages"),
        ("NotFoundError", "status_code"),
        ("CallOptions", "http_headers"),
        ("flux0_fake", "After a test that passed"),
    ],
)
def test_reference_shows_parameters_and_attributes(name: str, text: str) -> None:
    anchor = anchor_of(name)
    assert anchor is not None
    section = REFERENCE.partition(f'id="{anchor}"')[2].partition("<h2")[0]
    assert text in html.unescape(re.sub("<[^>]+>", "", section))


# Attributes of base classes of other libraries, and two that only flux0 uses.
OTHERS = {
    *dir(BaseException),
    *dir(ImportError),
    *dir(str),
    *dir(tuple),
    "type_in_json",
    "monotonic",
}
OTHERS |= {*dir(Mapping), *dir(Sequence)}


@pytest.mark.parametrize(("module", "name"), [each for each in NAMES if each[0] != "flux0.models"])
def test_reference_has_an_entry_for_each_public_member(module: str, name: str) -> None:
    kind = getattr(import_module(module), name)
    anchor = anchor_of(name)
    if (
        not inspect.isclass(kind)
        or get_origin(kind) is not None  # In Python 3.10, `isclass` is True for list[int].
        or anchor is None
        or f"{anchor.rpartition('.')[0]}." == "flux0.models."
    ):
        return  # A function, a type alias, or an old name.
    hidden = ("_", "attach_", "mark_relayed")
    members = {each for each in dir(kind) if not each.startswith(hidden)} - OTHERS
    assert [each for each in sorted(members) if f"{anchor}.{each}" not in ANCHORS] == []


@pytest.mark.parametrize(
    "name", ["EventStream.status", "AsyncEventStream.answer", "Flux0.is_closed"]
)
def test_property_has_a_heading_as_a_method_has(name: str) -> None:
    text = re.sub("<wbr>", "", REFERENCE)
    assert f'doc-attribute-name">{name}</span>' in text


def test_reference_shows_no_internals() -> None:
    internals = ("field(", "HasMessageData", "Extensible", "__reduce__", "__attrs_post_init__")
    text = re.sub("<[^>]+>", "", REFERENCE)
    assert [word for word in internals if word in text] == []


def test_each_entry_and_each_attribute_in_the_reference_has_a_text() -> None:
    entries = re.split(r'(?=<h[23] id="flux0)', REFERENCE)[1:]
    bare = [
        re.findall(r'id="([\w.]+)"', entry)[0]
        for entry in entries
        if not re.search(r"<(?:p|li)>\s*\w", re.sub(r"<p>\s*(?:Bases|Attributes).*", "", entry))
    ]
    items = re.findall(r'<li class="doc-section-item[^>]*>(.*?)</li>', REFERENCE, re.DOTALL)
    texts = [re.sub(r"<[^>]+>|\s+", " ", item).partition("\u2013")[2].strip() for item in items]
    assert bare == []
    assert len(entries) > 350
    assert len(texts) > 500
    assert [item for item, text in zip(items, texts, strict=True) if len(text) < 5] == []


def text_of(anchor: str) -> str:
    """Return the text of an entry."""
    entry = re.split(r"<h[23] id=", REFERENCE.partition(f'id="{anchor}"')[2])[0]
    return html.unescape(re.sub(r"<[^>]+>|\s+", " ", entry))


def test_methods_show_each_option_of_a_call_with_its_unit() -> None:
    methods = [
        f"{anchor_of(name)}.{method.__name__}"
        for name, kind in ((name, getattr(flux0, name, None)) for name in flux0.__all__)
        if inspect.isclass(kind) and kind.__module__.startswith("flux0.client.")
        for method in filter(inspect.isfunction, vars(kind).values())
        if method.__name__ != "__init__"
        and "options" in getattr(method, "__annotations__", {})
        and not (method.__doc__ or "").startswith("The async version")
    ]
    assert len(methods) > 5
    for method in methods:
        assert "timeout_ms ( int | None" in re.sub(" +", " ", text_of(method)), method
        assert "milliseconds that the call may take" in text_of(method), method


# The classes and functions that users create or call.
USED = [
    "Flux0",
    "AgentsResource",
    "SessionsResource",
    "RetryConfig",
    "BackoffStrategy",
    "Conversation",
    "EventStream",
    "AsyncConversation",
    "AsyncEventStream",
    "MessageAccumulator",
    "BackgroundTurns",
    "BackgroundTurn",
    "MemoryTurnStore",
    "RedisTurnStore",
    "HttpxTransport",
    "RequestsTransport",
    "Urllib3Transport",
    "AiohttpTransport",
    "to_dict",
    "to_json",
    "from_dict",
    "Observer",
    "CallRequest",
    "Sleep",
    "Request",
    "RelayFormat",
    "RelayEncoder",
    "FakeTransport",
    "FakeClock",
    "Say",
    "Reason",
    "CallTool",
    "GiveResult",
    "Report",
    "Fail",
    "Pause",
    "Gate",
    "FallSilent",
    "LangChain",
    "SendChunk",
    "Respond",
    "Refuse",
    "Drop",
    "Delay",
    "Stall",
    "Truncate",
    "Split",
    "flux0_fake",
    "flux0_client",
    "TransportContract",
    "AsyncTransportContract",
    "LimitedPoolContract",
    "ByteServer",
    "http_response",
    "AiSdkFormat",
    "AgUiFormat",
    "OpenTelemetry",
    "Httpx2Transport",
]
# How the samples call the classes that users do not create themselves.
CALLS = {
    "AgentsResource": "client.agents.",
    "SessionsResource": "client.sessions.",
    "Conversation": "conversation.",
    "EventStream": "stream.",
    "AsyncConversation": "conversation.",
    "AsyncEventStream": "stream.",
    "BackgroundTurn": "turn.",
}


@pytest.mark.parametrize("name", USED)
def test_reference_has_an_example(name: str) -> None:
    anchor = anchor_of(name)
    assert anchor is not None
    pages = ((page / "index.html").read_text("utf-8") for page in (SITE / "reference").iterdir())
    (page,) = (page for page in pages if f'id="{anchor}" class="doc' in page)
    samples = re.findall(r'<div class="highlight"><pre>(.*?)</div>', page, re.DOTALL)
    assert any(
        CALLS.get(name, name) in html.unescape(re.sub("<[^>]+>", "", sample))
        for sample in samples
        if "import" in sample
    )


def test_example_of_a_class_is_before_its_methods() -> None:
    entries = re.split(
        r'(?=<div class="doc doc-object doc-class">|<h1|<h2 id="(?!flux0[.]))', REFERENCE
    )
    parts = ('<div class="highlight">', '<div class="doc doc-object doc-function">')
    with_both = [entry for entry in entries if all(part in entry for part in parts)]
    assert len(with_both) > 10
    for entry in with_both:
        sample, method = map(entry.index, parts)
        assert sample < method, entry[:200]


CONFIG = (Path(__file__).parents[1] / "mkdocs.yml").read_text("utf-8")
PAGES = sorted(path.parent.relative_to(SITE).as_posix() for path in SITE.rglob("index.html"))


def test_metadata_names_the_address_of_the_site() -> None:
    (address,) = re.findall(r"(?m)^site_url: (\S+)$", CONFIG)
    metadata = (Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8")
    assert f'Documentation = "{address}"' in metadata
    assert f"<loc>{address}tutorial/</loc>" in (SITE / "sitemap.xml").read_text("utf-8")


def test_links_of_the_readme_lead_to_pages_and_headings_of_the_site() -> None:
    (address,) = re.findall(r"(?m)^site_url: (\S+)$", CONFIG)
    readme = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    links = re.findall(rf"{re.escape(address)}([\w./-]*)(?:#([\w-]+))?", readme)
    assert len(links) > 20
    for path, anchor in links:
        file = SITE / path
        page = (file / "index.html" if path.endswith("/") or not path else file).read_text("utf-8")
        assert not anchor or f'id="{anchor}"' in page, f"{path} has no heading for #{anchor}"


@pytest.mark.parametrize("name", PAGES)
def test_links_of_a_page_lead_to_headings(name: str) -> None:
    folder = SITE / name
    text = (folder / "index.html").read_text("utf-8")
    links = re.findall(r'href="(?!\w+:)([^"#]*)#([^"]+)"', text)
    targets = {path: (folder / path).resolve() for path, _ in links}
    pages = {
        path: (target / "index.html" if target.is_dir() else target).read_text("utf-8")
        for path, target in targets.items()
    }
    missing = [
        f"{path}#{anchor}" for path, anchor in links if f'id="{unquote(anchor)}"' not in pages[path]
    ]
    assert missing == []


@pytest.mark.parametrize("name", PAGES)
def test_page_exists_as_markdown_and_in_llms_txt(name: str) -> None:
    markdown = (SITE / name / "index.md").read_text("utf-8")
    assert markdown.startswith("# ")
    assert "::: " not in markdown
    (address,) = re.findall(r"(?m)^site_url: (\S+)$", CONFIG)
    path = "" if name == "." else f"{name}/"
    assert f"({address}{path}index.md)" in (SITE / "llms.txt").read_text("utf-8")


def test_no_page_loads_anything_from_another_host() -> None:
    pattern = re.compile(r'(?:src|href)="(https?://[^"]+\.(?:js|css|woff2?))"')
    for page in SITE.rglob("*.html"):
        text = page.read_text("utf-8")
        assert pattern.findall(text) == [], page
        # With it, the script of the theme loads numbers from api.github.com.
        assert 'data-md-component="source"' not in text, page
        for link in ("", "/issues"):
            assert f'href="https://github.com/flux0-ai/flux0-client-python{link}"' in text, page


def test_only_pages_with_a_diagram_load_mermaid() -> None:
    for page in SITE.rglob("*.html"):
        text = page.read_text("utf-8")
        assert ("mermaid.tiny.js" in text) is ('class="mermaid"' in text), page


@pytest.mark.parametrize("name", PAGES)
def test_name_in_the_navigation_is_the_title_of_the_page(name: str) -> None:
    text = (SITE / name / "index.html").read_text("utf-8")
    link = re.search(
        r'<a href="\.\/?" class="md-nav__link md-nav__link--active">(.*?)</a>', text, re.S
    )
    title = re.search(r"<h1[^>]*>(.*?)<a class=\"headerlink\"", text, re.S)
    assert link is not None
    assert title is not None
    assert re.sub(r"<[^>]+>", "", link[1]).strip() == re.sub(r"<[^>]+>", "", title[1]).strip()


# Appearance: the samples fit on a laptop, and the names fit on a phone.

LAPTOP, PHONE = (1280, 800), (390, 844)
SHOW_HIDDEN_TABS = """
document.querySelectorAll(".tabbed-block").forEach((tab) => { tab.style.display = "block"; })
"""
SCROLLING_BLOCKS = """
[...document.querySelectorAll("pre:not(.mermaid) > code")]
  .filter((block) => block.scrollWidth > block.clientWidth)
  .map((block) => block.innerText)
"""
BROKEN_NAMES = """
[...document.querySelectorAll("article :not(pre) > code, article h1, article h2, article h3")]
  .flatMap((element) => {
    const nodes = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
    const broken = [];
    while (nodes.nextNode()) {
      for (const word of nodes.currentNode.data.matchAll(/\\w+/g)) {
        const range = document.createRange();
        range.setStart(nodes.currentNode, word.index);
        range.setEnd(nodes.currentNode, word.index + word[0].length);
        const lines = new Set([...range.getClientRects()].map(({ bottom }) => bottom));
        if (lines.size > 1) broken.push(word[0]);
      }
    }
    return broken;
  })
"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    skip_without("chromium")
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    with browser.page() as page:
        yield page


@pytest.fixture(scope="module")
def search_page(browser: Browser, url: str) -> Iterator[Page]:
    """A page with an empty search. Each load of a page builds the search index again."""
    with browser.page() as page:
        page.resize(*LAPTOP)
        page.open(f"{url}/?q=")
        yield page


@pytest.mark.parametrize("name", ["benchmarks", "trace", "turn"])
def test_picture_has_a_dark_variant(name: str, page: Page, url: str) -> None:
    backgrounds = []
    for color_scheme in ("light", "dark"):
        page.prefer(color_scheme)
        page.open(f"{url}/images/{name}.svg")
        color = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        backgrounds.append(color)
    assert backgrounds == ["rgb(255, 255, 255)", "rgb(30, 33, 41)"]


@pytest.mark.parametrize("name", PAGES)
def test_samples_and_names_fit(name: str, page: Page, url: str) -> None:
    # Scripts change no width, and take most of the time.
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    page.resize(*LAPTOP)
    page.open(f"{url}/{name}/")
    page.evaluate(SHOW_HIDDEN_TABS)
    assert page.evaluate(SCROLLING_BLOCKS) == []
    page.resize(*PHONE)
    assert page.evaluate(BROKEN_NAMES) == []


WIDE_TABLES = """
[...document.querySelectorAll("article table")]
  .filter((table) => table.getBoundingClientRect().right > window.innerWidth)
  .map((table) => table.innerText)
"""


@pytest.mark.parametrize(
    "name", [".", "tutorial", "turns", "command-line", "comparison", "architecture"]
)
def test_tables_need_no_sideways_scrolling_on_a_phone(name: str, page: Page, url: str) -> None:
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    page.resize(*PHONE)
    page.open(f"{url}/{name}/")
    assert page.evaluate(WIDE_TABLES) == []
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE[0]


LONGEST_PAGE = 15_000  # Pixels.
SMALLEST_TEXT = 10  # Pixels.
WIDTHS_OF_PICTURES = """
[...document.querySelectorAll("p > img[src$='.svg']")].map((e) => [e.src, e.clientWidth])
"""


@pytest.mark.parametrize("name", [".", "how-to/telemetry", "benchmarks"])
def test_text_of_pictures_is_readable_on_a_phone(name: str, page: Page, url: str) -> None:
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    page.resize(*PHONE)
    page.open(f"{url}/{name}/")
    pictures = page.evaluate(WIDTHS_OF_PICTURES)
    assert pictures
    for address, width in pictures:
        picture = (SITE / "images" / address.rpartition("/")[2]).read_text("utf-8")
        (view,) = re.findall(r'viewBox="0 0 ([\d.]+)', picture)
        smallest = min(int(size) for size in re.findall(r"font(?:-size)?: *(\d+)px", picture))
        assert smallest * width / float(view) > SMALLEST_TEXT, address


def test_diagrams_keep_their_size_on_a_phone(page: Page, url: str) -> None:
    page.call("Emulation.setScriptExecutionDisabled", value=False)
    page.resize(*PHONE)
    page.open(f"{url}/architecture/")
    page.wait_for("document.querySelector('div.mermaid')")
    assert page.evaluate("document.querySelector('div.mermaid').clientWidth") > 2 * PHONE[0]
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE[0]


@pytest.mark.parametrize("name", [name for name in PAGES if name.startswith("reference/")])
def test_reference_pages_are_short(name: str, page: Page, url: str) -> None:
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    page.resize(*LAPTOP)
    page.open(f"{url}/{name}/")
    assert page.evaluate("document.documentElement.scrollHeight") < LONGEST_PAGE


def search(query: str, page: Page) -> None:
    """Type `query` in place of the query before it, and wait for the results."""
    for value, is_done in (('""', f"!({RESULT})"), (json.dumps(query), RESULT)):
        page.evaluate(TYPE.replace("VALUE", value))
        page.wait_for(is_done)


RESULT = "document.querySelector('.md-search-result__item a')"
TYPE = """
(() => {
  const input = document.querySelector("[data-md-component=search-query]");
  input.value = VALUE;
  input.dispatchEvent(new Event("keyup"));
})()
"""


def test_query_in_an_address_is_searched(page: Page, url: str) -> None:
    page.call("Emulation.setScriptExecutionDisabled", value=False)
    page.resize(*LAPTOP)
    page.open(f"{url}/?q=flux0error")
    assert page.wait_for(f"{RESULT}?.pathname") == "/errors/"


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("agents.first", "reference/calls/#flux0.client.resources.AgentsResource.first"),
        ("stream.text", "reference/turns/#flux0.EventStream.text"),
        ("flux0_fake", "reference/testing-pytest/#flux0_pytest.flux0_fake"),
        ("Session", "reference/resources/#flux0.Session"),
        ("history", "reference/turns/#flux0.Conversation.history"),
        ("retry", "how-to/connect/#wait-longer-or-retry-more-often"),
    ],
)
def test_search_finds_an_entry_first(query: str, found: str, search_page: Page, url: str) -> None:
    search(query, search_page)
    # The first link leads to the page, and the second to the best section.
    link = search_page.wait_for(
        "document.querySelector('.md-search-result__item a[href*=\\'#\\']')?.href"
    )
    assert re.sub(r"\?h=[^#]*", "", link) == f"{url}/{found}"


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    skip_without("npm")
    folder = tmp_path_factory.mktemp("axe")
    npm_install("axe-core@4", folder=folder)
    return (folder / "node_modules/axe-core/axe.min.js").read_text("utf-8")


BARRIERS = """
axe.run({ runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"] }).then(({ violations }) =>
  violations.flatMap(({ id, nodes }) => nodes.map(({ html }) => `${id}: ${html}`)))
"""


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "name", [".", "tutorial", "how-to/web", "reliability", "reference/turns", "testing"]
)
def test_page_has_no_barriers(name: str, color_scheme: str, page: Page, url: str, axe: str) -> None:
    page.call("Emulation.setScriptExecutionDisabled", value=False)
    page.prefer(color_scheme)
    page.resize(*LAPTOP)
    page.open(f"{url}/{name}/")
    page.evaluate(axe)
    assert page.evaluate(BARRIERS) == []


PAGES_OF_RESULTS = """
[...document.querySelectorAll(".md-search-result__item")].slice(0, 3)
  .map((item) => new URL(item.querySelector("a").href).pathname.slice(1))
"""


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("faketransport", "testing/"),
        ("backgroundturns", "how-to/background-turns/"),
        ("streaminterrupted", "reference/stream-errors/"),
        ("flux0error", "errors/"),
        ("readtimeout", "reference/connection-errors/"),
        ("FakeTransport", "testing/"),
        ("cancel", "turns/"),
        ("cancelling", "turns/"),
        ("canceled", "turns/"),
        ("streaming", "turns/"),
        ("retry", "reliability/"),
        ("timeout", "reliability/"),
        ("fastapi", "how-to/web/"),
        ("langchain", "how-to/language-model/"),
        ("langgraph", "how-to/language-model/"),
        ("docker", "common-errors/"),
        ("redis", "how-to/background-turns/"),
        ("proxy", "proxies/"),
        ("tls", "how-to/connect/"),
        ("token", "how-to/connect/"),
        ("logging", "middleware/"),
        ("mcp", "how-to/mcp/"),
        ("tool", "tutorial/"),
        ("two tabs", "how-to/background-turns/"),
        ("upload", "how-to/web/"),
        ("playwright", "how-to/web/"),
        ("login", "how-to/web/"),
        ("list of chats", "how-to/web/"),
        ("rate limit", "reliability/"),
        ("cassette", "recording/"),
    ],
)
def test_page_is_among_the_first_three_results(query: str, found: str, search_page: Page) -> None:
    search(query, search_page)
    assert found in search_page.evaluate(PAGES_OF_RESULTS)


# Questions of readers who do not know the words of the pages.
@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("list of chats", "how-to/web/"),
        ("two tabs", "how-to/background-turns/"),
        ("upload", "how-to/web/"),
        ("playwright", "how-to/web/"),
        ("record", "recording/"),
        ("rate limit", "reliability/"),
        ("login", "how-to/web/"),
        ("timeout", "reliability/"),
        ("proxy", "how-to/connect/"),
        ("cancel", "turns/"),
        ("reload page", "how-to/background-turns/"),
        ("docker", "common-errors/"),
        ("stop button", "how-to/web/"),
        ("install", "tutorial/"),
        ("queue", "how-to/programs/"),
        ("resume", "when-the-connection-breaks/"),
        ("connection refused", "common-errors/"),
        ("opentelemetry", "how-to/telemetry/"),
        ("certificate", "common-errors/"),
        ("exit code", "command-line/"),
    ],
)
def test_page_is_the_first_result(query: str, found: str, search_page: Page) -> None:
    search(query, search_page)
    assert search_page.evaluate(PAGES_OF_RESULTS)[0] == found


def test_front_page_contacts_no_other_host(page: Page, url: str) -> None:
    page.call("Emulation.setScriptExecutionDisabled", value=False)
    page.open(f"{url}/")
    page.wait_for("document.querySelector('.mermaid, [data-md-component=search-result]')")
    assert page.hosts == {url.removeprefix("http://")}
