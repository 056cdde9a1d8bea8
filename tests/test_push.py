"""--mode=push, against a stand-in of the hub's few routes on this machine."""

import base64
import http.server
import json
import socket
import threading

import huggingface_hub
import pytest
from huggingface_hub import constants

from kpod_jax import pipeline, push
from kpod_jax.config import defaults
from kpod_jax.utils.errors import UserError
from tests.report.test_model_card import card

TOKEN = "hf_" + "s3cret" * 5
WEIGHTS = b"weights" * 9


class Hub(http.server.ThreadingHTTPServer):
    """Keeps what is uploaded; `refuse` maps a route's end to a status and `public` is a state."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.created, self.commits, self.stored, self.asked = [], [], {}, []
        self.refuse, self.public = {}, False


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, *_):
        pass

    def answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle_any(self):
        hub, path = self.server, self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.asked.append((self.command, path, self.headers["Authorization"]))
        for end, status in hub.refuse.items():
            if path.endswith(end):
                return self.answer({"error": f"no, {TOKEN}\nnot so"}, status)
        if path.endswith("/repos/create"):
            hub.created.append(json.loads(body))
            return self.answer({"url": f"{hub.url}/me/student"})
        if path.endswith("/validate-yaml"):
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = ["lfs" if name.endswith(".safetensors") else "regular" for name in names]
            rows = [
                {"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": None}
                for name, mode in zip(names, modes, strict=True)
            ]
            return self.answer({"files": rows})
        if path.endswith("/objects/batch"):
            rows = [
                row | {"actions": {"upload": {"href": f"{hub.url}/store/{row['oid']}"}}}
                for row in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": rows})
        if path.startswith("/store/"):
            hub.stored[path.rpartition("/")[2]] = body
            return self.answer({})
        if "/commit/" in path:
            hub.commits.append([json.loads(line) for line in body.splitlines()])
            url = f"{hub.url}/me/student/commit/{'a' * 40}"
            return self.answer({"commitUrl": url, "commitOid": "a" * 40, "pullRequestUrl": None})
        if path == "/api/models/me/student":
            return self.answer({"id": "me/student", "private": not hub.public})
        return self.answer({"error": "no such route"}, 404)

    do_GET = do_POST = do_PUT = handle_any


@pytest.fixture
def hub(monkeypatch):
    with Hub() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
        server.shutdown()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A work directory whose export is made when it is asked for."""

    def export(config, workdir, mode):
        assert mode == "export"
        folder = tmp_path / "export"
        folder.mkdir(exist_ok=True)
        text, _ = card(config)
        files = {"config.json": "{}", "tokenizer.json": "{}", "README.md": text}
        for name, content in files.items():
            (folder / name).write_text(content)
        (folder / "model.safetensors").write_bytes(WEIGHTS)
        (tmp_path / "records").mkdir(exist_ok=True)
        (tmp_path / "records/train.jsonl").write_text("{}")
        return tmp_path

    monkeypatch.setattr(pipeline, "run", export)
    return tmp_path


def config(repo_id="me/student", **changes):
    made = defaults.get_config()
    made.push.update({"repo_id": repo_id} | changes)
    made.export.license = "apache-2.0"
    return made


def is_private(body):
    """Of a request that creates a repository; the client's version decides how it says so."""
    return body.get("private") is True or body.get("visibility") == "private"


def test_an_export_is_one_commit_in_a_private_repository(hub, run, capsys):
    push.push(config(), run)
    assert len(hub.created) == 1 and is_private(hub.created[0])
    assert (hub.created[0]["organization"], hub.created[0]["name"]) == ("me", "student")
    (commit,) = hub.commits
    uploaded = {row["value"]["path"]: row for row in commit if row["key"] != "header"}
    assert set(uploaded) == {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    assert uploaded["model.safetensors"]["key"] == "lfsFile"
    assert list(hub.stored.values()) == [WEIGHTS]
    keys = {key for _, path, key in hub.asked if "me/student" in path or "/repos/" in path}
    assert keys == {f"Bearer {TOKEN}"}
    assert {key for _, path, key in hub.asked if "/store/" in path} == {None}

    readme = base64.b64decode(uploaded["README.md"]["value"]["content"]).decode()
    data = huggingface_hub.ModelCard(readme).data.to_dict()
    assert (data["license"], data["metrics"]) == ("apache-2.0", ["accuracy"])
    assert data["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.25
    assert 'from_pretrained("me/student")' in readme and "DIRECTORY" not in readme
    said = capsys.readouterr().out
    assert f"push: 4 files, 0.0 MB → {hub.url}/me/student (private), commit aaaa" in said
    assert TOKEN not in said


def test_a_public_repository_is_refused_unless_it_is_meant(hub, run, capsys):
    hub.public = True
    with pytest.raises(UserError, match=r"me/student exists and is public.*push\.private=False"):
        push.push(config(), run)
    assert not hub.commits
    push.push(config(private=False), run)
    assert not is_private(hub.created[-1]) and len(hub.commits) == 1
    assert "(public)" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["train.jsonl", "results.json", "base/data.parquet", "x.py"])
def test_other_files_are_refused_before_any_request(hub, run, name):
    path = run / "export" / name
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(UserError, match=f"not part of an export, or links: {name}. Nothing was"):
        push.push(config(), run)
    assert not hub.asked


def test_links_are_refused(hub, run):
    (run / "export").mkdir()
    (run / "export/vocab.json").symlink_to(run / "records/train.jsonl")
    (run / "mine").mkdir()
    (run / "mine/config.json").write_text("{}")
    (run / "export/base").symlink_to(run / "mine")
    with pytest.raises(UserError, match=r"or links: base/config\.json, vocab\.json\. Nothing"):
        push.push(config(), run)
    assert not hub.asked


@pytest.mark.parametrize(
    ("route", "status", "said"),
    [
        ("/repos/create", 401, "401: .*hf auth login"),
        ("/repos/create", 403, "403: .*write access to this user"),
        ("/repos/create", 404, "404: .*in push.repo_id"),
        ("/commit/main", 403, "403: .*write access"),
        ("/preupload/main", 404, "404: .*in push.repo_id"),
    ],
)
def test_the_hubs_errors_are_one_line_without_the_token(hub, run, route, status, said):
    hub.refuse = {route: status}
    if route == "/repos/create":
        hub.refuse["/models/me/student"] = status
    with pytest.raises(UserError, match=said) as error:
        push.push(config(), run)
    message = str(error.value)
    assert message.startswith(f"Cannot push to {hub.url}/me/student: ")
    assert "\n" not in message and TOKEN not in message and not hub.commits


def test_no_network_is_one_line(hub, run, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        with pytest.raises(UserError, match=f"Cannot push to {url}/me/student: .*Try again") as e:
            push.push(config(), run)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["", "student", "me/../student", "a/b/c"])
def test_a_wrong_name_is_told_first(hub, run, name):
    with pytest.raises(UserError, match=r"push\.repo_id=.*hub, as USER/NAME"):
        push.push(config(name), run)
    assert not (run / "export").exists()


def test_a_missing_token_is_told_first(hub, run, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match=r"needs a token of the Hugging Face hub.*HF_TOKEN"):
        push.push(config(), run)
    assert not (run / "export").exists()
