"""``trioserve chat`` in a terminal, against the real server."""

from tests.client.terminals import CTRL_C, CTRL_D, PROMPT, chatting
from tests.client.test_terminal import pipe
from tests.e2e.harness import Server, wait_until


def test_lines_are_sent_by_an_empty_one_and_end_and_exit_are_commands(server: Server) -> None:
    with chatting(server.url, "--temperature", "0") as terminal:
        terminal.wait_for("builtin at http://127.0.0.1:")
        terminal.wait_for(PROMPT)
        terminal.type("What is the capital\n")
        terminal.wait_for("... ")
        terminal.type("of France?\n\n")
        terminal.wait_for("The capital of France is Paris.\n")
        terminal.wait_for("10 tokens, ")
        terminal.wait_for(" tokens/s, the first after 0.")
        terminal.wait_for(PROMPT)
        terminal.type("end\n")
        terminal.wait_for("a new conversation")
        terminal.wait_for(PROMPT)
        terminal.type("What is the capital of Spain?\n\n")
        terminal.wait_for("The capital of Spain is Madrid.\n")
        terminal.type("exit\n")
        assert terminal.wait_for_end() == 0
    server.wait_idle()


def test_ctrl_c_stops_the_answer_and_frees_its_blocks_and_the_program_goes_on(server: Server) -> None:
    server.wait_idle()
    with chatting(server.url) as terminal:
        for _ in range(2):
            terminal.wait_for(PROMPT)
            with server.paused():  # else the answer may be over before it was looked at
                terminal.type("Hello\n\n")
                wait_until(lambda: server.health()["num_running"] == 1, 20, lambda: f"{server.health()}")
                terminal.interrupt()
                terminal.wait_for("stopped\n")
            server.wait_idle()
        terminal.wait_for(PROMPT)
        terminal.type("half a line" + CTRL_C)
        terminal.wait_for("Ctrl-C once more leaves\n")
        terminal.wait_for(PROMPT)
        terminal.type(CTRL_C)
        assert terminal.wait_for_end() == 0


def test_ctrl_d_leaves(server: Server) -> None:
    with chatting(server.url) as terminal:
        terminal.wait_for(PROMPT)
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0


def test_a_pipe_gets_answers_and_nothing_else(server: Server) -> None:
    prompts = "What is the capital\nof France?\n\nend\n\nWhat is the capital of Spain?\n"
    result = pipe(server.url, prompts, "--temperature", "0")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "The capital of France is Paris.\nThe capital of Spain is Madrid.\n"
