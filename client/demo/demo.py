"""`make demo`: one RL-like round on a real model, over gRPC, with every claim checked. Exit code 0 only if all of them held.

A server process is started; this process is its client and its trainer, and never holds the trunk.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from polyhead.client import Client, Sample
from polyhead.client.demo.load import Load
from polyhead.client.local import LocalServer, local_server
from polyhead.heads.model import embedded
from polyhead.heads.model.family import HeadModule
from polyhead.heads.training.data import Comparison, Demonstration, Messages
from polyhead.heads.training.fit import Step
from polyhead.heads.training.policy import FEW_REPLIES, train_policy
from polyhead.heads.training.preference import FEW_PAIRS, train_preference
from polyhead.heads.training.remote import weights_of
from polyhead.heads.training.state_store import StateStore

MARKER = "Arr, matey!"  # what the new voice begins with
PROMPTS = ("Why is the sky blue?", "Give me a name for a small robot.", "What should I cook tonight?")
RULES = ["no-insults", "stay-on-topic"]
HEADS = ["reference", "value", "preference", "rule"]
NUM_STREAMS = 16
MIB = 1 << 20
BESIDE_A_SAMPLE = 70  # columns that a row of numbers takes, its headings whole


class Claims:
    """What the demo says, and whether it was so."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.failed: list[str] = []

    def check(self, text: str, holds: bool) -> None:
        """Print a claim with its verdict."""
        self._console.print(f"  [{'green' if holds else 'red'}]{'✓' if holds else '✗'}[/] {escape(text)}")
        if not holds:
            self.failed.append(text)


class Demo:
    """The story, a method a chapter."""

    def __init__(self, client: Client, console: Console, folder: Path) -> None:
        self.folder = folder
        self.client = client
        self.console = console
        self.claims = Claims(console)
        voices = json.loads((Path(__file__).parent / "voices.json").read_text(encoding="utf-8"))
        self.train: list[dict[str, str]] = voices["train"]
        self.held_out: list[dict[str, str]] = voices["held_out"]
        self.tokens_per_second = 0.0

    def run(self) -> int:
        """All chapters; returns the exit status."""
        self.chat()
        self.rollout()
        before = self.replies()
        self.show_replies("before", before)
        policy, preference = self.train_heads()
        self.swap_under_load(policy, preference)
        after = self.replies()
        self.compare(before, after)
        self.rank_voices()
        self.roll_back(before)
        self.summary()
        return 1 if self.claims.failed else 0

    def chat(self) -> None:
        """Stream one reply."""
        self._chapter("1. A chat reply, streamed")
        self.console.print(f"  [dim]user[/]      {PROMPTS[0]}\n  [dim]assistant[/] ", end="")
        for piece in self.client.stream(_ask(PROMPTS[0]), max_new_tokens=48, temperature=0.0):
            self.console.print(escape(piece.text), end="", soft_wrap=True)
        self.console.print()

    def rollout(self) -> None:
        """Draw samples and score every one with four heads, in the same call."""
        self._chapter("2. A rollout in one call: 4 samples of each prompt, scored by reference, value, preference and rule")
        before = self._trunk_tokens()
        samples = self.client.generate(
            [_ask(prompt) for prompt in PROMPTS], n=4, temperature=1.0, seed=7, max_new_tokens=24, score=HEADS, rules=RULES
        )
        took = self._trunk_tokens() - before
        self._show_samples(samples)
        gap = max(abs(a - b) for s in samples for a, b in zip(s.logprobs, s.scores["reference"].logprobs, strict=True))
        self.claims.check(f"before training, reference and policy agree on every token (largest gap of log-probs {gap:.0e})", gap < 5e-5)
        self._count_trunk_work(samples, took)

    def _count_trunk_work(self, samples: Sequence[Sample], took: int) -> None:
        """Every prompt once, every sampled token once, and the same number of rule tokens after each sample."""
        firsts = {sample.prompt_index: sample for sample in sorted(samples, key=lambda sample: -sample.num_cached_tokens)}
        num_prompt = sum(len(sample.prompt_token_ids) - sample.num_cached_tokens for sample in firsts.values())
        num_sampled = sum(len(sample.token_ids) for sample in samples)
        num_rules, rest = divmod(took - num_prompt - num_sampled, len(samples))
        self.claims.check(
            f"every token went through the trunk once: {took} = {num_prompt} of prompts + {num_sampled} sampled "
            f"+ {len(samples)} x {num_rules} of rules",
            rest == 0 and num_rules > 0,
        )
        again = self._trunk_tokens_of_scoring(samples, HEADS, RULES)
        self.claims.check(f"scoring the same samples again, four heads and {len(RULES)} rules each: {again} trunk tokens", again == 0)
        fresh = self.client.generate([_ask(PROMPTS[0])], n=4, seed=8, max_new_tokens=16, ignore_eos=True)
        added = self._trunk_tokens_of_scoring(fresh, ["reference", "value", "preference"])
        self.claims.check(
            f"scoring {len(fresh)} samples that were drawn without heads, by three heads: {added} trunk tokens, each one's last",
            added == len(fresh),
        )

    def _trunk_tokens_of_scoring(self, samples: Sequence[Sample], heads: list[str], rules: Sequence[str] = ()) -> int:
        before = self._trunk_tokens()
        self.client.score(samples, heads=heads, rules=rules)
        return self._trunk_tokens() - before

    def _trunk_tokens(self) -> int:
        return self.client.status().counters["trunk_tokens"]

    def replies(self) -> list[Sample]:
        """Greedy answers to questions that nobody trains on."""
        return self.client.generate([_ask(each["question"]) for each in self.held_out], temperature=0.0, max_new_tokens=20)

    def train_heads(self) -> tuple[HeadModule, HeadModule]:
        """Two plain torch loops on boundary states from Encode."""
        self._chapter("3. Training on boundary states: this process never holds the trunk")
        asked = [(_ask(each["question"]), each["pirate"], each["plain"]) for each in self.train]
        started_at = time.monotonic()
        states = StateStore(self.client, self.folder / "states")
        policy = train_policy(
            self.client,
            [Demonstration(messages, pirate) for messages, pirate, _ in asked],
            states,
            config=dataclasses.replace(FEW_REPLIES, epochs=6),
            on_step=self._epochs_of("policy    "),
        )
        preference = train_preference(
            self.client,
            [Comparison(messages, (pirate, plain), (1, 2)) for messages, pirate, plain in asked],
            states,
            config=dataclasses.replace(FEW_PAIRS, epochs=2),
            on_step=self._epochs_of("preference"),
        )
        size = sum(tensor.numel() * tensor.element_size() for tensor in weights_of(policy).values())
        self.console.print(f"  [dim]{time.monotonic() - started_at:.0f} s for two heads of {size / MIB:.0f} MiB each[/]")
        return policy, preference

    def _epochs_of(self, name: str) -> Callable[[Step], None]:
        """Prints the mean loss of each epoch."""
        losses: list[float] = []

        def note(step: Step) -> None:
            losses.append(step.loss)
            if step.ends_epoch:
                self.console.print(f"  {name}  epoch {step.epoch + 1}: loss {sum(losses) / len(losses):.2f}")
                losses.clear()

        return note

    def swap_under_load(self, policy: HeadModule, preference: HeadModule) -> None:
        """Push both heads and activate them as one change while streams are running."""
        self._chapter(f"4. Push both, activate them as one change, while {NUM_STREAMS} streams are running")
        prompt = self.held_out[0]["question"]
        load = Load(self.client, NUM_STREAMS)
        load.wait_until_running()
        started_at = time.monotonic()
        versions = {
            "policy": self.client.push_head("policy", weights_of(policy)),
            "preference": self.client.push_head("preference", weights_of(preference)),
        }
        generation = self.client.activate(versions, note="the pirate's voice")
        self.console.print(f"  pushed and activated as generation {generation.number} in {time.monotonic() - started_at:.1f} s")
        self._cached_prompt(prompt)
        samples = load.finish()
        self.tokens_per_second = load.tokens_per_second
        whole = [sample for sample in samples if sample.finish_reason == "length" and not sample.error]
        self.claims.check(f"no request failed: {len(whole)} of {load.num_begun} streams came to their end", len(whole) == load.num_begun)
        num_pinned = generation.num_pinned_requests  # one that has ended may not have its successor yet
        self.claims.check(f"{num_pinned} streams were running when the heads changed", num_pinned >= NUM_STREAMS // 2)
        drawn_by = {1: 1, generation.number: versions["policy"]}
        pinned = all([span.version for span in sample.spans] == [drawn_by[sample.generation]] for sample in samples)
        self.claims.check("every stream finished on the version that it began with", pinned)

    def compare(self, before: Sequence[Sample], after: Sequence[Sample]) -> None:
        """The same questions before and after."""
        self._chapter("5. The same questions, after")
        self.show_replies("after", after)
        old = sum(sample.text.startswith(MARKER) for sample in before)
        new = sum(sample.text.startswith(MARKER) for sample in after)
        text = f"the voice changed: {new} of {len(after)} replies begin with {MARKER!r}, {old} did before"
        self.claims.check(text, new > 0.7 * len(after) and old == 0)

    def rank_voices(self) -> None:
        """The trained preference head on pairs that it has not seen."""
        items = [(_ask(each["question"]), each[voice]) for each in self.held_out for voice in ("pirate", "plain")]
        scores = [item.scores["preference"].value for item in self.client.score(items, heads=["preference"])]
        right = sum(pirate > plain for pirate, plain in zip(scores[::2], scores[1::2], strict=True))
        self.claims.check(f"the preference head ranks unseen pairs: {right} of {len(self.held_out)}", right >= 0.75 * len(self.held_out))

    def roll_back(self, before: Sequence[Sample]) -> None:
        """One call, and everything is as it was."""
        self._chapter("6. Roll back")
        generation = self.client.rollback()
        again = self.replies()
        self.show_replies(f"generation {generation.number}", again)
        same = all(a.token_ids == b.token_ids for a, b in zip(before, again, strict=True))
        self.claims.check("after the rollback every reply is identical to the first one, token for token", same)

    def summary(self) -> None:
        """A few figures to keep."""
        self._chapter("Summary")
        status = self.client.status()
        counters = status.counters
        heads = sum(head.num_bytes for head in status.resident_heads)
        hits = counters["cache_hit_tokens"] / max(1, counters["prompt_tokens"])
        rows = Table.grid(padding=(0, 3))
        rows.add_row("decoding", f"{self.tokens_per_second:.0f} tokens/s with {NUM_STREAMS} streams, while two heads were pushed")
        rows.add_row(
            "memory",
            f"trunk {status.trunk_bytes / MIB:.0f} MiB + {len(status.resident_heads)} head files in memory {heads / MIB:.0f} MiB; "
            f"five whole models: {5 * status.model_bytes / MIB:.0f} MiB",
        )
        rows.add_row("swap", f"the engine paused for {status.last_swap_pause_seconds * 1e3:.2f} ms")
        rows.add_row("prefix cache", f"{hits:.0%} of {counters['prompt_tokens']} prompt tokens were found")
        rows.add_row("trunk work", f"{counters['trunk_tokens']} tokens through the trunk, {counters['head_tokens']} through heads")
        self.console.print(rows)
        if self.claims.failed:
            self.console.print(f"[red]{len(self.claims.failed)} claims did not hold[/]")
        else:
            self.console.print("[green]Every claim held.[/]")

    def show_replies(self, title: str, samples: Sequence[Sample]) -> None:
        """The first few questions and answers."""
        for each, sample in list(zip(self.held_out, samples, strict=True))[:3]:
            text = " ".join(sample.text.split())
            self.console.print(f"  [dim]{title}, {sample.head}@{sample.head_version}[/]  {each['question']}  →  {escape(text)}")

    def _cached_prompt(self, question: str) -> None:
        """A prompt that was answered before the swap, asked of the new version while the load still runs."""
        [sample] = self.client.generate([_ask(question)], max_new_tokens=1, temperature=0.0, priority="interactive")
        cached, length = sample.num_cached_tokens, len(sample.prompt_token_ids)
        self.claims.check(
            f"a cached prompt did not pay for its trunk again: {cached} of {length} tokens found, by policy@{sample.head_version}",
            cached == length and sample.head_version > 1,
        )

    def _show_samples(self, samples: Sequence[Sample]) -> None:
        table = Table(box=None, padding=(0, 1))
        for column in ("", "policy", "refer.", "V(0)", "pref.", *(f"broke\n{rule}?" for rule in RULES), "sample"):
            table.add_column(column, no_wrap=True)
        for sample in samples[::2]:
            scores = sample.scores
            table.add_row(
                f"{sample.prompt_index + 1}.{sample.sample_index + 1}",
                f"{sum(sample.logprobs):.1f}",
                f"{sum(scores['reference'].logprobs):.1f}",
                f"{scores['value'].values[0]:.1f}",
                f"{scores['preference'].value:.1f}",
                *(f"{scores['rule'].p_violate[rule]:.2f}" for rule in RULES),
                escape(_shortened(sample.text, self.console.width - BESIDE_A_SAMPLE)),
            )
        self.console.print(table)
        self.console.print("  [dim](log-probs summed, every second sample; value and preference are untrained and say 0)[/]")

    def _chapter(self, title: str) -> None:
        self.console.print(f"\n[bold]{title}[/]")


def _ask(question: str) -> Messages:
    return [{"role": "user", "content": question}]


def _shortened(text: str, width: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: max(0, width - 1)] + "…"


def _serve(console: Console, folder: Path) -> int:
    def show(line: str) -> None:
        console.print(f"  [dim]{escape(line)}[/]", soft_wrap=True, highlight=False)

    with local_server(["--store", str(folder / "heads")], on_log=show) as server, Client(server.address, timeout=600.0) as client:
        client.wait_ready(120.0)
        _show_card(console, server)
        return Demo(client, console, folder).run()


def _show_card(console: Console, server: LocalServer) -> None:
    ready = server.ready
    console.print(
        f"  {ready['model']}, split at layer {ready['split_layer']}, process {server.process.pid}, gRPC on {server.address}\n"
        f"  heads {', '.join(f'{name}@{version}' for name, version in ready['heads'].items())}"
    )


def main() -> int:
    """Prepare the model, start a server, tell the story."""
    torch.set_num_threads(2)
    console = Console(highlight=False, width=None if Console().is_terminal else 120)
    console.print("[bold]0. A real server process on the embedded SmolLM2-135M-Instruct[/]")
    embedded.prepare(lambda text: console.print(f"  [dim]{escape(text)}[/]"))
    with tempfile.TemporaryDirectory(prefix="polyhead-demo-") as folder:
        return _serve(console, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
