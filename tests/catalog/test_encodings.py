"""The vendored encodings are tiktoken's own."""

import base64
import threading
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from ppq_proxy.catalog import encodings

#: The names under which tiktoken keeps the files it downloaded (the SHA-1 of their address).
CACHED = {"o200k": "fb374d419588a4632f3f557e76b4b70aebbca790", "cl100k": "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tiktoken.Encoding]:
    """tiktoken's encodings, built by tiktoken from our files in place of its downloads."""
    folder = tmp_path_factory.mktemp("tiktoken")
    for name, file in CACHED.items():
        (folder / file).write_bytes(encodings.content(name))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        return {name: tiktoken.get_encoding(f"{name}_base") for name in CACHED}


@pytest.mark.parametrize("name", encodings.NAMES)
@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=200) | st.text(alphabet=" \n\t'sStaA1<|>éß漢.,", max_size=200))
def test_texts_encode_as_tiktoken_encodes_them(theirs: dict[str, tiktoken.Encoding], name: str, text: str) -> None:
    assert encodings.encoding(name).encode_ordinary(text) == theirs[name].encode_ordinary(text)


@pytest.mark.parametrize("name", encodings.NAMES)
def test_files_hold_all_ranks(name: str) -> None:
    lines = encodings.content(name).splitlines()
    assert len(lines) == {"o200k": 199_998, "cl100k": 100_256}[name]
    assert [int(line.split()[1]) for line in lines] == list(range(len(lines)))
    assert base64.b64decode(lines[0].split()[0]) == b"!"


def test_a_damaged_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "o200k_base.tiktoken.xz").write_bytes(b"not xz")
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    with pytest.raises(encodings.DamagedEncoding, match="o200k"):
        encodings.content("o200k")
    import lzma

    (tmp_path / "o200k_base.tiktoken.xz").write_bytes(lzma.compress(b"IQ== 0\n"))
    with pytest.raises(encodings.DamagedEncoding, match="another content"):
        encodings.content("o200k")


def test_threads_that_ask_at_once_get_one_encoding() -> None:
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(encodings.encoding("cl100k"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({id(one) for one in found}) == 1
