"""``make compat``: libraries that people use, in virtual environments of their own, against the real server."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.e2e.harness import Server, running_server

HERE = Path(__file__).parent
LLM_MODELS = """\
- model_id: builtin
  model_name: builtin
  api_base: {url}/v1
"""


def main(openai2: Path, openai3: Path) -> int:
    """Run every check; returns how many failed.

    Args:
        openai2: The Python that has the libraries which want that major version of the openai package.
        openai3: The one that has those which want this version.
    """
    checks = {openai2: (langchain, litellm, llm, generated), openai3: (instructor, pydantic_ai, agents)}
    with tempfile.TemporaryDirectory() as folder:
        with running_server(Path(folder) / "log") as server:
            failed = [
                check.__name__
                for python, those in checks.items()
                for check in those
                if not check(python, server)
            ]
            server.wait_idle()
    print(f"failed: {', '.join(failed)}" if failed else "all of them work")
    return len(failed)


def langchain(python: Path, server: Server) -> bool:
    return _run(str(python), str(HERE / "langchain_client.py"), server.url)


def litellm(python: Path, server: Server) -> bool:
    return _run(str(python), str(HERE / "litellm_client.py"), server.url)


def instructor(python: Path, server: Server) -> bool:
    return _run(str(python), str(HERE / "instructor_client.py"), server.url)


def pydantic_ai(python: Path, server: Server) -> bool:
    return _run(str(python), str(HERE / "pydantic_ai_client.py"), server.url)


def agents(python: Path, server: Server) -> bool:
    """OpenAI's SDK of that name."""
    return _run(str(python), str(HERE / "agents_client.py"), server.url)


def generated(python: Path, server: Server) -> bool:
    """What openapi-generator makes of the document."""
    return _run(str(python), str(HERE / "generated_client.py"), server.url)


def llm(python: Path, server: Server) -> bool:
    """The command-line tool of that name."""
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "extra-openai-models.yaml"
        models.write_text(LLM_MODELS.format(url=server.url), encoding="utf-8")
        command = (str(python.parent / "llm"), "-m", "builtin", "-u", "-o", "temperature", "0")
        return _run(
            *command,
            "What is the capital of France?",
            expect="The capital of France is Paris.\n",
            LLM_USER_PATH=folder,
            OPENAI_API_KEY="none",
        )


def _run(*command: str, expect: str = "", **variables: str) -> bool:
    """Whether the command succeeds and prints what is expected; what it printed is shown."""
    print(
        "$", *(Path(word).name if "/" in word and "://" not in word else word for word in command), flush=True
    )
    result = subprocess.run(
        command,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    print(result.stdout, flush=True)
    return result.returncode == 0 and result.stdout.startswith(expect)


if __name__ == "__main__":
    sys.exit(main(*(Path(python).absolute() for python in sys.argv[1:])))
