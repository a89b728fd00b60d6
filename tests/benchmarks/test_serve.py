"""The program as a user runs it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from benchmarks.load.summary import Report
from benchmarks.serve import main
from tests.benchmarks.scripted_server import seen

ROOT = Path(__file__).parent.parent.parent
SMALL = ("--requests", "8", "--output-tokens", "4")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "benchmarks/serve.py", *arguments]


def test_a_sweep_starts_its_server_and_leaves_a_report_to_compare_with(
    tmp_path: Path, free_port: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    at = ("--url", f"http://127.0.0.1:{free_port}")
    server = f"{sys.executable} -m hypercorn -k trio tests.benchmarks.scripted_server:app --bind 127.0.0.1:{free_port}"
    saved, again, picture = tmp_path / "run.json", tmp_path / "again.json", tmp_path / "run.svg"
    files = ("--json", str(saved), "--raw", "--plot", str(picture))
    named = ("--name", "it", "--seed", "7")
    assert main([*at, "--serve", server, "--concurrency", "1,4", *SMALL, *files, *named]) == 0
    assert "time to first token" in capsys.readouterr().out
    report = Report.read(saved)
    assert [(point.level, point.num_ok, point.output_tokens) for point in report.points] == [
        (1, 8, 32),
        (4, 8, 32),
    ]
    assert [len(records) for records in report.records] == [8, 8]
    assert (report.name, report.config["seed"], report.config["input_tokens"]) == ("it", 7, "128")
    assert (report.config["model"], report.versions["server"]) == ("scripted", "1.2.3")
    assert picture.read_text().count("<path") > 20

    assert main([*at, *SMALL]) == 2, "the server has not ended"
    capsys.readouterr()
    assert main(["--from", str(saved), "--compare", str(saved), "--json", str(again)]) == 0
    assert "it / it" in capsys.readouterr().out
    assert again.read_bytes() == saved.read_bytes()


async def test_a_failed_request_is_exit_code_1(url: str) -> None:
    faults = ("--extra-body", '{"faults": ["ok", "429", "truncated"]}', "--warmup", "0")
    arguments = command("--url", url, "--concurrency", "2", *SMALL, *faults)
    done = await trio.run_process(arguments, cwd=ROOT, capture_stdout=True, check=False)
    assert done.returncode == 1
    assert b"x truncated: ended without" in done.stdout


async def test_an_interrupt_reports_what_was_measured(url: str, tmp_path: Path) -> None:
    saved = tmp_path / "run.json"
    endless = ("--concurrency", "2", "--requests", "1000000", "--output-tokens", "6", "--json", str(saved))
    slow = ("--extra-body", '{"gap_s": 0.01}')
    process = await trio.lowlevel.open_process(
        command("--url", url, *endless, *slow), cwd=ROOT, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    while seen.count(6) < 20:  # noqa: ASYNC110 - nothing but the server tells how far another process is
        await trio.sleep(0.01)
    process.send_signal(signal.SIGINT)
    text = b"".join([data async for data in process.stdout]).decode()
    assert await process.wait() == 130, text
    assert "interrupted" in text
    report = Report.read(saved)
    assert report.was_interrupted
    assert report.points[0].num_ok > 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--url", "http://192.0.2.1:8000"], "192.0.2.1 is not a loopback address"),
        (["--concurrency", "1,0"], "0 is not above 0"),
        (["--rate", "1", "--concurrency", "1"], "not allowed with argument"),
        (["--input-tokens", "many"], "'many' is not a length: 128, 64-256 or 128~40"),
        (["--extra-body", "[]"], "[] is not a JSON object"),
        (["--plot", "picture.doc"], "does not end in .png"),
        (["--json", "/nowhere/run.json"], "there is no folder /nowhere"),
        (["--compare", "/nowhere.json"], "No such file"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert complaint in capsys.readouterr().err


def test_a_server_that_does_not_start_shows_its_last_words(
    free_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    server = f"{sys.executable} -c 'exit(print(\"sorry\"))'"
    assert main(["--url", f"http://127.0.0.1:{free_port}", "--serve", server]) == 2
    assert "ended with exit code 0 before it was ready\nsorry" in capsys.readouterr().err
