"""A Jupyter server, and pages on it that reach nothing else. Every test in this folder is marked slow, and skipped where there is no browser."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest

from .chromium import FLAGS, find, why_none
from .page import SHORT, screenshot

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(items):
    missing = find() is None
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)
            if missing and {"page", "new_page"} & set(item.fixturenames):
                item.add_marker(pytest.mark.skip(reason=why_none()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """So that a fixture can tell whether its test failed."""
    report = yield
    if call.when == "call":
        item.failed_in_browser = report.failed
    return report


@pytest.fixture(scope="package")
def server(tmp_path_factory):
    """JupyterLab with an empty folder, see `server.folder`."""
    from .server import Server

    started = Server(tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("home"))
    yield started
    started.stop()


@pytest.fixture(scope="package")
def browser():
    """Chromium. For this folder only: Playwright leaves an event loop running in the thread, which other tests need not meet."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=find(), args=FLAGS, headless=True)
        yield started
        started.close()


@pytest.fixture
def new_page(browser, server, request):
    """`new_page()` makes a page that reaches the server and nothing else. At the end no page may have asked for anything else: it works offline."""
    elsewhere, errors, contexts = [], [], []

    def here(url: str) -> bool:
        parts = urlsplit(url)
        return parts.scheme in ("data", "blob", "about") or parts.netloc == f"127.0.0.1:{server.port}"

    def guard(route):
        if here(route.request.url):
            route.continue_()
        else:
            elsewhere.append(route.request.url)
            route.abort()

    def make():
        context = browser.new_context(viewport={"width": 1300, "height": 1000}, service_workers="block")
        contexts.append(context)
        context.route("**/*", guard)
        page = context.new_page()
        page.set_default_timeout(SHORT)
        page.on("websocket", lambda socket: here(socket.url) or elsewhere.append(socket.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        return page

    make.elsewhere, make.errors = elsewhere, errors
    yield make
    if getattr(request.node, "failed_in_browser", False):
        for n, page in enumerate(p for context in contexts for p in context.pages):
            screenshot(page, f"failed-{re.sub(r'[^a-z0-9]+', '-', request.node.name)}-{n}")
    for context in contexts:
        context.close()
    server.end_sessions()
    assert elsewhere == [], "the page asked for what is not on this machine"


@pytest.fixture
def page(new_page):
    return new_page()


@pytest.fixture
def write(server):
    """`write("a.ipynb", "code", "more code")` puts a notebook into the server's folder. Returns its path."""

    def make(name: str, *cells: str) -> Path:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in cells])
        notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, server.folder / name)
        return server.folder / name

    return make
