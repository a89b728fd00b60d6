"""trioserve: its engine with scheduler, detokenizer and rank, as the server has it, without HTTP."""

import threading
from pathlib import Path

import trio

from benchmarks.cpu.peers.face import Timeline
from trioserve.core.sampling import SamplingParams
from trioserve.core.sequence import Sequence
from trioserve.engine.checkpoint import open_model
from trioserve.engine.engine import Engine
from trioserve.engine.lifecycle import Lifecycle, ServerState
from trioserve.engine.supervisor import supervise
from trioserve.engine.works import Works
from trioserve.output.vocabulary import load_vocabulary
from trioserve.prompt.renderer import Renderer
from trioserve.settings import Settings

_UNQUANTIZED = "bfloat16"


class Ours:
    """One engine under a Trio loop in a thread, as the commands come in another."""

    def __init__(self, settings: Settings) -> None:
        model = open_model(settings)
        vocabulary = load_vocabulary(Renderer.load(model.tokenizer_path).tokenizer.backend)
        self._engine = Engine(settings, model, vocabulary, Lifecycle())
        self._settings = settings
        self._is_ready = threading.Event()
        threading.Thread(target=trio.run, args=(self._live,), daemon=True).start()
        self._is_ready.wait()
        if self._engine.lifecycle.state is not ServerState.READY:
            raise RuntimeError("the model could not be served")

    def generate(self, prompts: list[list[int]], timeline: Timeline) -> list[list[int]]:
        return trio.from_thread.run(self._generate, prompts, timeline, trio_token=self._token)

    async def _generate(self, prompts: list[list[int]], timeline: Timeline) -> list[list[int]]:
        params = SamplingParams(max_tokens=timeline.num_tokens, temperature=0.0)
        sequences = [Sequence(prompt, params) for prompt in prompts]
        answers: list[list[int]] = [[] for _ in prompts]
        with self._engine.stream(sequences) as mailbox:
            while not mailbox.is_done:
                for index, delta in await mailbox.receive():
                    answers[index] += delta.token_ids
                    timeline.tick([index] * len(delta.token_ids))
        return answers

    async def _live(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        lifecycle = self._engine.lifecycle
        async with trio.open_nursery() as nursery:
            works = Works(self._settings, self._engine.model, lifecycle)
            nursery.start_soon(lambda: supervise(self._engine, works.start, lifecycle, max_restarts=0))
            while lifecycle.state is ServerState.STARTING:
                await lifecycle.wait_changed()
            self._is_ready.set()


def open_driver(path: str, variant: str, num_threads: int) -> Ours:
    """``variant`` is bfloat16 or a value of the setting ``quantization``."""
    quantized = {} if variant == _UNQUANTIZED else {"quantization": variant}
    return Ours(Settings(model=str(Path(path)), num_threads=num_threads, **quantized))  # type: ignore[arg-type]  # checked there
