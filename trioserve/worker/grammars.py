"""The grammars that a rank enforces: made ready beside the step loop, kept, and put on sequences at their admission."""

import os
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

from trioserve.core.confinement import run_behind
from trioserve.core.sampling import Grammar, ThinkingBudget
from trioserve.core.step import Admission, FromWorker, GrammarReady, GrammarRequest, WorkerConfig
from trioserve.errors import InvalidGrammar, SettingsError
from trioserve.grammars.backend import Compiled, Enforcer, Masks, Matcher
from trioserve.grammars.guidance import load_tokenizer
from trioserve.grammars.registry import open_backend
from trioserve.model.config import read_config
from trioserve.sampling.constraint import Constraint
from trioserve.sampling.thinking import ThinkingWatch

_NICENESS: Final = 15
"""Of the thread that compiles. The loop's is 0: a core that both want is the loop's for 97 % of the time."""


T = TypeVar("T")


class _Once(Generic[T]):
    """What is made when it is first wanted, by whichever thread, and then kept; so is the reason why it cannot be."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._making = threading.Lock()
        self._made: T | SettingsError | None = None

    def get(self) -> T:
        """What was made.

        Raises:
            SettingsError: It cannot be.
        """
        with self._making:
            if self._made is None:
                try:
                    self._made = self._make()
                except SettingsError as exc:
                    self._made = exc
        if isinstance(self._made, SettingsError):
            raise self._made
        return self._made


class Grammars:
    """Grammars that are ready, by key, and what it takes to make more. Two threads may use it."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._ready = OrderedDict[bytes, Compiled]()  # the last used last
        self._changing = threading.Lock()
        self._enforcer = _Once(self._open_backend)
        self._piece = _Once(self._load_pieces)

    def load(self) -> None:
        """Read the tokenizer, which takes a second where it is large; else the first use of it does.

        A tokenizer that will not do is no reason to end: only what needs it fails.
        """
        if not self._config.tokenizer_path:
            return
        with suppress(SettingsError):
            self._piece.get()
        with suppress(SettingsError):
            self._enforcer.get()

    def make_ready(self, grammar: Grammar) -> Compiled:
        """Compile ``grammar``, unless that has been done. May take long; lets other threads run.

        Raises:
            InvalidGrammar: It is broken, or too complex.
            SettingsError: This rank cannot enforce it.
        """
        if (compiled := self._found(grammar.key)) is None:
            compiled = self._enforcer.get().compile(grammar.text)
            with self._changing:
                self._ready[grammar.key] = compiled
                if len(self._ready) > self._config.max_cached_grammars:
                    self._ready.popitem(last=False)
        return compiled

    def forget(self, keys: Sequence[bytes]) -> None:
        """Drop grammars; no effect on those that are not kept."""
        with self._changing:
            for key in keys:
                self._ready.pop(key, None)

    def constraint(self, admission: Admission) -> Constraint | None:
        """What the tokens of a sequence must be; None: anything.

        The answer so far is taken in. What cannot be enforced is reported with the first token.
        """
        params, first = admission.params, admission.num_prompt_tokens
        if not params.forces_tokens:
            return None
        matcher, watch, failure = None, None, ""
        try:
            matcher = self._matcher(params.grammar)
            watch = self._watch(params.thinking)
        except (InvalidGrammar, SettingsError) as exc:
            failure = str(exc)
        constraint = Constraint(
            params,
            num_prompt_tokens=first,
            max_len=self._config.max_model_len,
            eos_token_ids=self._config.eos_token_ids,
            matcher=matcher,
            watch=watch,
            failure=failure,
        )
        constraint.replay(admission.token_ids[first:])
        return constraint

    def fill_masks(self, matchers: Sequence[tuple[Matcher, int]], masks: Masks) -> None:
        """Write what each matcher allows next into its row of ``masks``, given by number."""
        self._enforcer.get().fill_masks(matchers, masks)

    def _matcher(self, grammar: Grammar | None) -> Matcher | None:
        return None if grammar is None else self.make_ready(grammar).matcher()

    def _watch(self, budget: ThinkingBudget | None) -> ThinkingWatch | None:
        if budget is None or budget.max_tokens is None:
            return None
        return ThinkingWatch(budget, self._piece.get())

    def _found(self, key: bytes) -> Compiled | None:
        with self._changing:
            if key in self._ready:
                self._ready.move_to_end(key)
            return self._ready.get(key)

    def _open_backend(self) -> Enforcer:
        config = self._config
        if not config.grammar_backend:
            raise SettingsError("this server enforces no grammars")
        return open_backend(
            config.grammar_backend,
            tokenizer_path=Path(config.tokenizer_path),
            vocab_size=self._vocab_size(),
            eos_token_ids=tuple(config.eos_token_ids),
        )

    def _load_pieces(self) -> Callable[[int], bytes]:
        """The bytes of each token, special ones included, whichever backend there is."""
        config = self._config
        tokenizer = load_tokenizer(
            Path(config.tokenizer_path), self._vocab_size(), tuple(config.eos_token_ids)
        )
        return lambda token_id: tokenizer.decode_bytes([token_id])

    def _vocab_size(self) -> int:
        return read_config(Path(self._config.model_path)).vocab_size


class GrammarThread:
    """Loads what grammars need and makes those ready that are asked for, one after the other, and says so."""

    def __init__(self, grammars: Grammars, send: Callable[[FromWorker], None]) -> None:
        """``send`` is called in the thread."""
        self._grammars = grammars
        self._send = send
        self._wanted = SimpleQueue[Grammar | None]()
        self._is_leaving = False
        self._loaded = threading.Event()
        self._thread = threading.Thread(target=self._run, name="grammars", daemon=True)

    def __enter__(self) -> Self:
        return self

    def start(self) -> None:
        """Begin. Reading a large tokenizer takes the interpreter's lock for a second, so this is best done when nobody
        else wants it."""
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the grammar that is being made, if it was started; no other is begun."""
        self._is_leaving = True
        self._wanted.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    def wait_loaded(self) -> None:
        """Wait until no grammar has to wait for the tokenizer."""
        self._loaded.wait()

    def take(self, request: GrammarRequest) -> None:
        """Make a grammar ready as soon as those before it are."""
        self._grammars.forget(request.forgotten)
        self._wanted.put(request.grammar)

    def _run(self) -> None:
        _say_why(self._grammars.load)
        self._loaded.set()
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while (grammar := self._wanted.get()) is not None and not self._is_leaving:
            error = _say_why(partial(run_behind, partial(self._grammars.make_ready, grammar)))
            try:
                self._send(GrammarReady(grammar.key, error))
            except OSError:
                return  # the front is gone, which the loop finds out itself


def _say_why(do: Callable[[], object]) -> str:
    """The reason why ``do`` fails, or nothing if it does not."""
    try:
        do()
    except (InvalidGrammar, SettingsError) as exc:
        return str(exc)
    except BaseException:  # noqa: BLE001 # the thread's outermost wall: a panic of the library is no Exception
        traceback.print_exc()
        return "the grammar made the library behind it fail"
    return ""
