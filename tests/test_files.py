"""Plain files: modes, temporary files of living and of killed writers, what is not a regular file."""

from __future__ import annotations

import ast
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from isp import files, registry
from isp.config import read_study_file
from isp.errors import ConfigError

ROOT = Path(__file__).parent.parent

WRITER = """
import sys
from pathlib import Path
from isp.files import writing

with writing(Path(sys.argv[1])) as file:
    file.write(b"first half, ")
    file.flush()
    print("writing", flush=True)
    sys.stdin.readline()
    file.write(b"second half")
"""


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_written_file_has_the_mode_that_the_umask_leaves(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        files.write_bytes(tmp_path / "new" / "file.txt", b"text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new" / "file.txt").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o777 & ~umask


def writer(path: Path) -> subprocess.Popen[str]:
    """A process that has written the first half of a file and waits for a line."""
    command = [sys.executable, "-c", WRITER, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


@pytest.mark.process
def test_the_temporary_file_of_a_living_writer_stays(tmp_path: Path) -> None:
    path = tmp_path / "a[1].txt"
    with writer(path) as process:
        files.ready(path)
        assert [left.suffix for left in tmp_path.iterdir()] == [".partial"]
        process.communicate("\n", timeout=60)
    assert process.returncode == 0
    assert path.read_text() == "first half, second half"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.process
def test_the_temporary_file_of_a_killed_writer_is_deleted(tmp_path: Path) -> None:
    path, other = tmp_path / "a[1].txt", tmp_path / "a[1].txt.b"
    with writer(path) as process, writer(other) as of_another_file:
        process.kill()
        process.wait()
        of_another_file.kill()
        of_another_file.wait()
        assert len(list(tmp_path.iterdir())) == 2
        files.ready(path)
        assert [left.name.rpartition(".partial")[0][:-8] for left in tmp_path.iterdir()] == [".a[1].txt.b."]


def test_a_temporary_file_that_is_deleted_before_it_is_locked_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, deleted = os.open, []

    def open_and_lose(path: Path, flags: int, mode: int = 0o777) -> int:
        handle = original(path, flags, mode)
        if not deleted:
            deleted.append(path)
            os.unlink(path)
        return handle

    monkeypatch.setattr(os, "open", open_and_lose)
    files.write_bytes(tmp_path / "file.txt", b"text")
    monkeypatch.undo()
    assert len(deleted) == 1
    assert (tmp_path / "file.txt").read_bytes() == b"text"
    assert len(list(tmp_path.iterdir())) == 1


def test_links_and_fifos_under_a_temporary_name_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    (tmp_path / ".file.txt.00000000.partial").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / ".file.txt.11111111.partial")
    files.ready(tmp_path / "file.txt")
    assert (tmp_path / "target").read_text() == "mine"


def unreadable(folder: Path) -> dict[str, Path]:
    """What is in the place of a file and must be refused, by what the message says."""
    fifo, large, inside = folder / "fifo", folder / "large", folder / "inside"
    os.mkfifo(fifo)
    inside.mkdir()
    with large.open("wb") as file:
        file.truncate(2**30)  # sparse: takes no space
    return {
        "not a regular file": Path("/dev/zero"),
        "not a regular file (FIFO)": fifo,
        "Is a directory": inside,
        "must have at most 4,194,304 bytes, got 1,073,741,824": large,
        "No such file or directory": folder / "missing",
    }


def test_only_regular_files_up_to_a_size_are_read(tmp_path: Path) -> None:
    for problem, path in unreadable(tmp_path).items():
        with pytest.raises(OSError, match=problem.removesuffix(" (FIFO)")):
            files.read_text(path, limit=2**22)
    (tmp_path / "text").write_bytes("größer\r\n".encode())
    assert files.read_text(tmp_path / "text", limit=10) == "größer\n"
    with pytest.raises(OSError, match="at most 9"):
        files.read_text(tmp_path / "text", limit=9)


def test_a_study_file_that_is_none_is_refused_before_it_is_read(tmp_path: Path) -> None:
    for problem, path in unreadable(tmp_path).items():
        with pytest.raises(ConfigError, match=rf"{path}: cannot be read \({problem.removesuffix(' (FIFO)')}"):
            read_study_file(path)


def test_a_method_that_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.py")
    (tmp_path / "zero.py").symlink_to("/dev/zero")
    (tmp_path / "folder.py").mkdir()
    for name in ("fifo", "zero", "folder"):
        with pytest.raises(ConfigError, match=rf"{name}\.py': not a regular file"):
            registry.load("method", str(tmp_path / f"{name}.py"))


# --- the encoding of text does not depend on the locale ---------------------------------------------------------------


def without_encoding(source: str) -> list[int]:
    """Lines of calls that read or write text in the encoding of the locale."""
    lines = []
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        method = isinstance(call.func, ast.Attribute)
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        named = {keyword.arg for keyword in call.keywords}
        if name == "replace":  # of dataclasses, whose fields may be named so
            continue
        if name not in ("open", "fdopen", "read_text", "write_text") and named.isdisjoint(
            {"text", "universal_newlines"}
        ):
            continue
        values = [str(each.value) for arg in call.args for each in ast.walk(arg) if isinstance(each, ast.Constant)]
        binary = any(re.fullmatch("[rwax+]*b[rwax+]*", value) for value in values)
        texts = name in ("open", "fdopen") and not binary and ast.unparse(call.func) not in ("os.open", "Image.open")
        texts |= method and name in ("read_text", "write_text") and ast.unparse(call.func) != "files.read_text"
        texts |= not named.isdisjoint({"text", "universal_newlines"})
        if texts and "encoding" not in named:
            lines.append(call.lineno)
    return lines


def test_calls_without_an_encoding_are_recognised() -> None:
    bad = [
        "open(p)",
        "open(p, 'w')",
        "p.open()",
        "p.open('a+')",
        "p.read_text()",
        "p.write_text(t)",
        "os.fdopen(1, 'w')",
    ]
    bad += ["subprocess.run(c, text=True)"]
    good = ["open(p, 'rb')", "p.open('ab')", "os.open(p, 0)", "Image.open(p)", "p.read_text(encoding='utf-8')"]
    good += ["os.fdopen(1, 'wb')", "subprocess.run(c, encoding='utf-8')", "files.read_text(p)", "read_text(p)"]
    assert without_encoding("\n".join(bad)) == list(range(1, len(bad) + 1))
    assert without_encoding("\n".join(good)) == []


@pytest.mark.parametrize("folder", ["isp", "snakemake_logger_plugin_isp", "benchmarks", "workflow"])
def test_every_text_is_read_and_written_as_utf_8(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        assert without_encoding(path.read_text(encoding="utf-8")) == [], path
    for path in [*(ROOT / folder).rglob("*.smk"), *(ROOT / folder).rglob("Snakefile")]:
        assert not re.search(r"_text\(\)|\bopen\(", path.read_text(encoding="utf-8")), path


ASCII = r"""
import sys
from pathlib import Path
from isp import cli, files

assert not sys.flags.utf8_mode and sys.stdout.encoding.lower() in ("ascii", "ansi_x3.4-1968"), sys.stdout.encoding
folder = Path(sys.argv[1])
rows = [{"name": "gr\u00f6\u00dfer \u20ac"}]
files.write_csv(folder / "a.csv", rows, ["name"])
files.write_json(folder / "a.json", rows)
assert files.read_csv(folder / "a.csv", "x") == files.read_json(folder / "a.json", "x") == rows
try:
    cli.main(["list", rows[0]["name"]])
except SystemExit as end:
    print(end.code, rows[0]["name"])
"""


@pytest.mark.process
def test_a_locale_without_umlauts_is_of_no_matter(tmp_path: Path) -> None:
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    command = [sys.executable, "-c", ASCII, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == rb"2 gr\xf6\xdfer \u20ac" + b"\n"
    assert done.stderr.startswith(
        rb"isp: isp list: the kind must be one of methods, tasks, backbones, got 'gr\xf6\xdfer \u20ac'"
    )
    assert (tmp_path / "a.csv").read_bytes() == "name\ngrößer €\n".encode()
