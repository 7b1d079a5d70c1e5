"""``PromptCompiler``: renders prompts and compiles their grammars in a process with limits, before a quote.

Templates are programs of whoever made a model, and schemas come from strangers: either may take for ever or
fill the memory. One child process has compiled the template. For each prompt it forks a process that has
``CPU_S`` of processor time and ``MEMORY_BYTES`` beyond what it inherits, and is killed by the kernel beyond
that. So a prompt that explodes costs its sender an error, and nobody else anything. A fork takes longer than
most prompts: when nobody has asked for a while, the next process is forked before it is needed.

:func:`compile_prompt` is what runs there, pure; engines whose template is our own call it directly.
"""

from __future__ import annotations

import gc
import json
import os
import secrets
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from select import select
from subprocess import DEVNULL, PIPE
from typing import Any, BinaryIO, Final, NoReturn

import trio

from p2pnode.errors import EngineError, LocalError, ProtocolError
from p2pnode.models.answer import VERSION as READER_VERSION
from p2pnode.models.answer_grammar import answer_grammar
from p2pnode.models.compiled_prompt import PromptParts
from p2pnode.models.grammar import AnyGrammar, Grammar, GrammarError, Matcher, PackedGrammar
from p2pnode.models.prompt import Segment
from p2pnode.models.renderer import CHATML, ChatTemplate, Renderer
from p2pnode.models.text import Released, TextAssembler
from p2pnode.models.vocabulary import Vocabulary
from p2pnode.platforms import ended_well, fork, limit_this_process, own_group, require_fork
from p2pnode.protocols.inference.messages import ChatMessage, PromptBody
from p2pnode.protocols.inference.prompt_rules import check_prompt
from p2pnode.protocols.wire import decode_record, encode

CPU_S: Final = 0.1
CPU_S_PER_LETTER: Final = 20e-6
"""More, for each letter of a partial answer that is followed through its grammar. Its ids were paid for."""
MEMORY_BYTES: Final = 64 << 20
_MODULE: Final = "p2pnode.models.prompt_compiler"
_DEADLINE_S: Final = 30.0
"""On the wall's clock: other programs may have the processor."""
_ANSWER_MAX: Final = 64 << 20
_LENGTH: Final = 4
_IDS_AT_ONCE: Final = 1024
"""Ids of a prefix that are read before others get their turn."""
_AHEAD_S: Final = 1.0
"""After a prompt. By then most engines have read it: they need all cores for that, and a fork takes one."""
_HELLO: Final = PromptBody(messages=(ChatMessage.of("user", "hello"),), seed=bytes(16))


def compile_prompt(
    renderer: Renderer, body: PromptBody, *, text: str, nonce: str, letters_max: int
) -> PromptParts:
    """Render ``body`` and compile its grammar. ``text`` is that of its prefix.

    Raises ``EngineError`` with code ``bad_request`` or ``context_overflow``.
    """
    try:
        check_prompt(body)
    except ProtocolError as error:
        raise EngineError(str(error), code="bad_request") from error
    rendered = renderer.render(body, nonce, letters_max=letters_max)
    tools = body.tools and body.tool_choice != "none"
    reasons, thinking = renderer.reasons, rendered.thinking
    try:
        grammar = answer_grammar(body, renderer.form, reasons=reasons, thinking=thinking)
        if grammar is not None and text:
            grammar = _rest(grammar, text)
    except GrammarError as error:
        raise EngineError(str(error), code="bad_request") from error
    return PromptParts(
        segments=rendered.segments,
        format=f"{renderer.form}/{READER_VERSION}" if tools else "",
        reasons=reasons,
        thinking=thinking,
        grammar=grammar,
    )


def rest_of(grammar: Grammar, text: str) -> Grammar:
    """What may follow ``text``. Raises ``EngineError`` with code ``bad_request``."""
    try:
        return _rest(grammar, text)
    except GrammarError as error:
        raise EngineError(str(error), code="bad_request") from error


def _rest(grammar: Grammar, text: str) -> Grammar:
    matcher = Matcher(grammar)
    matcher.feed(text)
    return matcher.rest()


async def text_of_prefix(vocabulary: Vocabulary, body: PromptBody) -> tuple[str, int]:
    """The text of the prompt's prefix that is certain, and how many ids at its end still need theirs.

    A prefix may be as long as a context and nobody has paid for it: others get their turn meanwhile. Raises
    ``EngineError`` for an id that is none: such a prompt must be refused before it is paid.
    """
    if max(body.prefix, default=0) >= len(vocabulary):
        msg = f"ids of a partial answer must be from 0 to {len(vocabulary) - 1}"
        raise EngineError(msg, code="bad_request")
    assembler, released = TextAssembler(vocabulary.piece, body.sampling.stop), list[Released]()
    for first in range(0, len(body.prefix), _IDS_AT_ONCE):
        if not assembler.stopped:
            released.append(assembler.feed(body.prefix[first : first + _IDS_AT_ONCE]))
        await trio.lowlevel.checkpoint()
    known = sum(len(each.ids) for each in released)
    return "".join(each.text for each in released), len(body.prefix) - known


class PromptCompiler:
    """Compiles the prompts of one template, one at a time, in a child process that it starts when it must."""

    def __init__(self, template: ChatTemplate) -> None:
        self.template: Final = template
        self._turn = trio.Lock()
        self._process: trio.Process | None = None

    async def compile(self, body: PromptBody, *, text: str, letters_max: int) -> PromptParts:
        """As :func:`compile_prompt`. Raises ``EngineError``, also where the limits are reached."""
        answer = await self._answer(
            {"text": text, "nonce": secrets.token_hex(8), "letters_max": letters_max}, encode(body)
        )
        segments = tuple(Segment(said, of_user=of_user) for said, of_user in answer.pop("segments"))
        packed = answer.pop("grammar")
        return PromptParts(
            segments=segments, grammar=None if packed is None else PackedGrammar(*packed), **answer
        )

    async def follow(self, grammar: AnyGrammar, text: str) -> PackedGrammar:
        """As :func:`rest_of`. Raises ``EngineError``, also where the limits are reached."""
        packed = grammar if isinstance(grammar, PackedGrammar) else grammar.packed()
        answer = await self._answer({"text": text, "follow": packed.rules}, b"")
        return PackedGrammar(*answer["grammar"])

    async def _answer(self, job: dict[str, Any], body: bytes) -> dict[str, Any]:
        job["cpu_s"] = CPU_S + CPU_S_PER_LETTER * len(job["text"])
        async with self._turn:
            try:
                # Shielded: whoever cancels must not cost others a new process. The work itself is bounded.
                with trio.fail_after(_DEADLINE_S, shield=True):
                    process = self._process or await self._start()
                    answer = await _exchange(process, json.dumps(job).encode(), body)
            except (trio.BrokenResourceError, trio.TooSlowError, ValueError, EngineError) as error:
                await self._end()
                if isinstance(error, EngineError):
                    raise
                raise EngineError("the prompt's compiler failed: ask again", retry_after_s=1.0) from error
        if "error" in answer:
            raise EngineError(answer["error"], code=answer["code"])
        return answer

    async def aclose(self) -> None:
        """End the child."""
        await self._end()
        await trio.lowlevel.checkpoint()

    async def _start(self) -> trio.Process:
        process = await trio.lowlevel.open_process(
            # A session of its own: Ctrl-C in a terminal goes to a whole group, and answers must end first.
            [sys.executable, "-P", "-m", _MODULE],
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            **own_group(),
        )
        self._process = process
        ready = await _exchange(process, json.dumps(asdict(self.template)).encode())
        if "error" in ready:
            raise EngineError(ready["error"], code=ready["code"])
        return process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with trio.CancelScope(shield=True):
                process.kill()
                await process.wait()
                for stream in (process.stdin, process.stdout):
                    if stream is not None:
                        await stream.aclose()


async def _exchange(process: trio.Process, *frames: bytes) -> dict[str, Any]:
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None  # noqa: S101 - both are pipes
    assert stdout is not None  # noqa: S101
    await stdin.send_all(b"".join(len(frame).to_bytes(_LENGTH, "big") + frame for frame in frames))
    held = bytearray()
    while len(held) < _LENGTH or len(held) - _LENGTH < int.from_bytes(held[:_LENGTH], "big"):
        data = await stdout.receive_some(1 << 16)
        if not data:
            raise trio.BrokenResourceError
        held += data
    answer: dict[str, Any] = json.loads(held[_LENGTH:])
    return answer


# ---- the child


def main() -> NoReturn:
    """Serve one parent until it closes the pipe."""
    try:
        require_fork()
        renderer = Renderer(ChatTemplate(**json.loads(_read(sys.stdin.buffer))))
    except LocalError as error:
        _write(1, _error(str(error), error.code if isinstance(error, EngineError) else "internal"))
        sys.exit(1)
    _write(1, b"{}")
    # What is there by now stays. A search for garbage in a fork would touch it all, and so copy it.
    gc.disable()
    gc.freeze()
    harmless = Renderer(ChatTemplate(CHATML))
    worker: _Worker | None = None
    while True:
        # No byte of a job is in Python's buffer: the parent sends one when it has the answer to the last.
        if worker is None and not select((0,), (), (), _AHEAD_S)[0]:
            worker = _Worker(renderer, first=partial(_compile_hello, harmless))
        if not (job := _read(sys.stdin.buffer)):
            sys.exit(0)
        worker = worker or _Worker(renderer)
        _write(1, worker.answer(job, _read(sys.stdin.buffer)))
        worker.end()
        worker = None


class _Worker:
    """A process for one job, with limits. ``first`` is what it does before it waits for the job."""

    def __init__(self, renderer: Renderer, *, first: Callable[[], object] = int) -> None:
        reads, self._jobs = os.pipe()
        self._answers, writes = os.pipe()
        self._pid: int | None = fork()
        if not self._pid:
            os.close(self._jobs)
            os.close(self._answers)
            first()
            _work(reads, writes, renderer)
        os.close(reads)
        os.close(writes)

    def answer(self, job: bytes, body: bytes) -> bytes:
        """Its answer, or what became of it. Raises ``OSError`` where it ended before it had the job."""
        _write(self._jobs, job)
        _write(self._jobs, body)
        with os.fdopen(self._answers, "rb", closefd=False) as pipe:
            answer = _read(pipe)
        if answer:
            return answer
        killed = f"takes more than {json.loads(job)['cpu_s'] * 1000:.0f} ms"
        what = killed if self.end() is None else "takes more memory than it may"
        return _error(f"to compile this prompt {what}: send a smaller schema or conversation", "bad_request")

    def end(self) -> bool | None:
        """Wait for its end, which follows on its answer, once. See ``ended_well``."""
        if self._pid is None:
            return True
        well, self._pid = ended_well(self._pid), None
        os.close(self._jobs)
        os.close(self._answers)
        return well


def _work(reads: int, writes: int, renderer: Renderer) -> NoReturn:
    with os.fdopen(reads, "rb") as jobs:
        raw, body = _read(jobs), _read(jobs)
    if not raw:
        os._exit(0)  # the parent has ended
    job = json.loads(raw)
    limit_this_process(memory_bytes=MEMORY_BYTES, cpu_s=job["cpu_s"])
    try:
        made = _followed(job) if "follow" in job else _compiled(renderer, job, body)
        answer = json.dumps(made).encode()
    except EngineError as error:
        answer = _error(str(error), error.code)
    except BaseException:  # noqa: BLE001 - out of memory, above all
        os._exit(1)
    _write(writes, answer)
    os._exit(0)


def _compile_hello(harmless: Renderer) -> None:
    """Write to the memory that a prompt writes to. It is copied then, which takes longer than the prompt."""
    compile_prompt(
        harmless, decode_record(PromptBody, encode(_HELLO)), text="", nonce="n0nce", letters_max=100
    )


def _compiled(renderer: Renderer, job: dict[str, Any], body: bytes) -> dict[str, Any]:
    parts = compile_prompt(
        renderer,
        decode_record(PromptBody, body),
        text=job["text"],
        nonce=job["nonce"],
        letters_max=job["letters_max"],
    )
    return {
        "segments": [(each.text, each.of_user) for each in parts.segments],
        "format": parts.format,
        "reasons": parts.reasons,
        "thinking": parts.thinking,
        "grammar": None if parts.grammar is None else _packed(parts.grammar.unpacked()),
    }


def _followed(job: dict[str, Any]) -> dict[str, Any]:
    return {"grammar": _packed(rest_of(Grammar.of_plain(json.loads(job["follow"])), job["text"]))}


def _packed(grammar: Grammar) -> tuple[str, str]:
    packed = grammar.packed()
    return packed.rules, packed.notation


def _error(message: str, code: str) -> bytes:
    return json.dumps({"error": message, "code": code}).encode()


def _read(pipe: BinaryIO) -> bytes:
    """A frame; b"" where the pipe ends before it or in it."""
    size = int.from_bytes(pipe.read(_LENGTH), "big")
    frame = pipe.read(size)
    return frame if len(frame) == size else b""


def _write(descriptor: int, frame: bytes) -> None:
    data = memoryview(len(frame).to_bytes(_LENGTH, "big") + frame)
    while data:
        data = data[os.write(descriptor, data) :]


if __name__ == "__main__":
    main()
