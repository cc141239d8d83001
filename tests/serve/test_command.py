"""`segmint serve`, and the end of a process that serves."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from typer.testing import CliRunner

from segmint import cli
from segmint.cli import serve
from segmint.serve import run
from segmint.serve.app import create_app
from segmint.serve.models import Models
from segmint.serve.settings import Settings
from segmint.types import SegmintError

SLOW_SERVER = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import conftest
from segmint.serve.app import create_app
from segmint.serve.models import Models
from segmint.serve.run import run
from segmint.serve.settings import Settings
models = Models({"slow": conftest.run_of(Path(sys.argv[2]), conftest.Slow(classes=3))})
run(create_app(models), host="127.0.0.1", port=0, settings=Settings())
print("ended well")
"""


def test_signals_to_end_let_requests_be_answered(tmp_path: Path, png: bytes):
    command = [sys.executable, "-c", SLOW_SERVER, str(Path(__file__).parent), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(httpx.post(f"{address}/v1/segment?answer=mask", files={"image": png}, timeout=60))

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    end = time.monotonic() + 30
    while httpx.get(f"{address}/metrics").text.count("requests_in_progress 4.0") == 0:
        assert time.monotonic() < end
        time.sleep(0.02)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    for asker in askers:
        asker.join(30)
    assert [answer.status_code for answer in answers] == [200] * 3
    assert process.wait(30) == 0
    assert process.stdout.read().strip() == "ended well"
    process.stdout.close()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")


def test_it_says_where_it_listens(models: Models, monkeypatch: pytest.MonkeyPatch, capsys):
    asked: list[int] = []

    async def look_once(server: run._Server) -> None:
        asked.append(server.servers[0].sockets[0].getsockname()[1])

    monkeypatch.setattr(run._Server, "main_loop", look_once)
    before = signal.getsignal(signal.SIGTERM)
    app = create_app(models)
    run.run(app, host="127.0.0.1", port=0, settings=Settings())
    assert capsys.readouterr().out == f"http://127.0.0.1:{asked[0]}\n"
    assert signal.getsignal(signal.SIGTERM) == before
    assert app.state.service.state() == "closing"


class Called:
    """Takes the place of what would listen."""

    def __call__(self, app, *, host, port, settings):
        self.app, self.host, self.port, self.settings = app, host, port, settings


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, models: Models) -> Called:
    called = Called()
    monkeypatch.setattr(run, "run", called)
    folders = {str(model.run.folder): model.run for model in models}
    monkeypatch.setattr("segmint.serve.models.opened", lambda path: folders[str(path)])
    monkeypatch.setattr(run, "usual_device", lambda: "cpu")
    return called


def invoke(*words: str, page: tuple[str, ...] = ("--no-page",)) -> str:
    result = CliRunner().invoke(cli.app, ["serve", *words, *page])
    if isinstance(result.exception, SegmintError):
        raise result.exception
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def test_the_command_names_models_and_sets_limits(called: Called, models: Models, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET", "open sesame")
    all_, plain = (str(models[name].run.folder) for name in ("all", "plain"))
    words = ["--port", "9", "--host", "0.0.0.0", "--api-key-env", "SECRET", "--max-megabytes", "2", "--batch", "1"]
    told = invoke(all_, f"second={plain}", *words)
    assert "all (segment draws generate paint repaint), second (segment)" in told
    assert (called.host, called.port) == ("0.0.0.0", 9)
    assert (called.settings.key, called.settings.megabytes, called.settings.batch) == ("open sesame", 2.0, 1)
    assert called.app.state.service.models.names == ("all", "second")


def test_the_command_refuses_what_means_nothing(called: Called, models: Models, monkeypatch: pytest.MonkeyPatch):
    folder = str(models["all"].run.folder)
    for words, told in (
        ([folder, f"all={folder}"], "there is a model 'all' already; name one of them, NAME=RUN"),
        ([f"a/b={folder}"], "'a/b': use letters"),
        ([folder, "--api-key-env", "NOT_SET"], "NOT_SET: this environment variable is not set"),
        ([folder, "--max-megabytes", "0"], "--max-megabytes: must be more than 0"),
        ([folder, "--pairs", "x"], "--data, --pairs, --reports: are for the web page"),
    ):
        with pytest.raises(SegmintError, match=told):
            invoke(*words)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SegmintError, match=r"uvicorn is not installed, .* pip install 'segmint\[serve\]'"):
        serve.require()


def test_without_gradio_there_is_no_page_unless_it_is_asked_for(called: Called, models: Models, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    folder = str(models["all"].run.folder)
    told = invoke(folder, page=())
    assert "no web page, as Gradio is not installed: pip install 'segmint[page]'\n" in told
    assert "/page" not in [route.path for route in called.app.routes]
    for page in (("--page",), ("--reports", folder)):
        with pytest.raises(SegmintError, match="the web page needs Gradio"):
            invoke(folder, page=page)


def test_the_page_is_added_and_found_at_the_root(monkeypatch: pytest.MonkeyPatch):
    seen: list[object] = []
    page = SimpleNamespace(mount=lambda app, models, **shown: seen.append((models, shown)))
    monkeypatch.setitem(sys.modules, "segmint.serve.page", page)
    app = SimpleNamespace(add_route=lambda path, answer, **_: seen.append((path, answer(None).headers["location"])))
    serve._add_page(app, "models", pairs=None)
    assert seen == [("models", {"pairs": None}), ("/", "/page")]


def test_an_address_where_it_cannot_listen_is_told(models: Models):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for host, told in (("127.0.0.1", "in use"), ("no.such.host.invalid", "cannot listen there")):
            with pytest.raises(SegmintError, match=f"--host {host} --port {port}: .*{told}.*; choose another"):
                run.run(create_app(models), host=host, port=port, settings=Settings())
    assert run.usual_device() in ("cpu", "cuda")
