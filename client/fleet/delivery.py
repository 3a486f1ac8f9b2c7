"""What of a generation was delivered, and what is still to be asked for: the same samples, of the same seeds and the same generation.

Pure: a Generate request in, requests for what is missing out.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator

from polyhead.v1 import generation_pb2, types_pb2

__all__ = ["Delivery"]

_Key = tuple[int, int, int]  # prompt, arm, sample


class Delivery:
    """Of one call. The seed is drawn here, so that every replica draws the same samples."""

    def __init__(self, request: generation_pb2.GenerateRequest) -> None:
        self._request = generation_pb2.GenerateRequest()
        self._request.CopyFrom(request)
        if not self._request.arms:
            self._request.arms.add()
        for arm in self._request.arms:
            if not arm.sampling.HasField("seed") and not arm.sampling.sample_seeds:
                arm.sampling.seed = secrets.randbits(63)
        self._counts = [max(arm.n, 1) for arm in self._request.arms]
        self._is_whole = bool(request.score.recipe) or request.HasField("select")  # what a sample is worth depends on its prompt's others
        self._left: set[_Key] = {
            (prompt, arm, sample)
            for prompt in range(len(request.prompts))
            for arm, count in enumerate(self._counts)
            for sample in range(count)
        }
        self._held: dict[_Key, list[generation_pb2.GenerateResponse]] = {}  # samples whose states are still to come
        self._has_begun = False
        self._cut: set[_Key] = set()  # samples of which pieces were passed on

    @property
    def is_done(self) -> bool:
        return not self._left

    @property
    def can_go_on(self) -> bool:
        """Not after a part of a sample was shown: another replica may round differently, and the text would not fit."""
        return not self._cut

    def requests(self) -> list[generation_pb2.GenerateRequest]:
        """For all that is left: at first the call's own request."""
        self._held.clear()
        if not self._has_begun or len(self._left) == len(self._request.prompts) * sum(self._counts):
            return [self._request]
        prompts = sorted({prompt for prompt, _, _ in self._left})
        if self._is_whole:
            return [self._part(prompts, None)]
        found = []
        for arm in range(len(self._counts)):
            by_samples: dict[tuple[int, ...], list[int]] = {}
            for prompt in prompts:
                samples = tuple(sorted(sample for each, other, sample in self._left if (each, other) == (prompt, arm)))
                if samples:
                    by_samples.setdefault(samples, []).append(prompt)
            found += [self._part(indices, (arm, samples)) for samples, indices in by_samples.items()]
        return found

    def _part(self, prompts: list[int], samples: tuple[int, tuple[int, ...]] | None) -> generation_pb2.GenerateRequest:
        """These prompts: all of their samples, or some of one arm."""
        part = generation_pb2.GenerateRequest()
        part.CopyFrom(self._request)
        del part.prompts[:]
        part.prompts.extend(self._request.prompts[index] for index in prompts)
        part.prompt_indices[:] = prompts
        if samples is not None:
            arm_index, indices = samples
            arm = part.arms[arm_index]
            arm.index, arm.n, arm.sample_indices[:] = arm_index, len(indices), indices
            arm.sampling.sample_seeds[:] = [arm.sampling.sample_seeds[index] for index in indices] if arm.sampling.sample_seeds else []
            del part.arms[arm_index + 1 :], part.arms[:arm_index]
        return part

    def take(self, message: generation_pb2.GenerateResponse) -> Iterator[generation_pb2.GenerateResponse]:
        """What of a message is new, to be passed on: samples once, and with states when all of them are there."""
        match message.WhichOneof("event"):
            case "accepted":
                yield from self._accept(message)
            case "piece":
                self._cut.add(_key(message.piece))
                yield message
            case "sample":
                yield from self._take_sample(message)
            case "group":
                yield from self._take_group(message)
            case "states":
                yield from self._take_states(message)

    def _accept(self, message: generation_pb2.GenerateResponse) -> Iterator[generation_pb2.GenerateResponse]:
        """From here on it is this generation, whoever answers; a request that follows swaps goes on with any."""
        if not self._has_begun:
            yield message
        self._has_begun = True
        if self._request.on_swap != types_pb2.ON_SWAP_FOLLOW:
            served = message.accepted.served
            self._request.generation, self._request.history_id = served.generation, served.history_id

    def _take_sample(self, message: generation_pb2.GenerateResponse) -> Iterator[generation_pb2.GenerateResponse]:
        key = _key(message.sample)
        if key not in self._left or self._is_drained(message.sample):
            return
        if self._request.return_states and len(message.sample.prompt_token_ids) + len(message.sample.token_ids):
            self._held[key] = [message]
            return
        self._deliver([key])
        yield message

    def _take_group(self, message: generation_pb2.GenerateResponse) -> Iterator[generation_pb2.GenerateResponse]:
        keys = [key for key in self._left if key[0] == message.group.prompt_index]
        if not keys or any(map(self._is_drained, message.group.samples)):
            return
        self._deliver(keys)
        yield message

    def _take_states(self, message: generation_pb2.GenerateResponse) -> Iterator[generation_pb2.GenerateResponse]:
        key = _key(message.states)
        if key not in self._held:
            if key not in self._left:
                yield message  # of a sample of a group, which has been passed on
            return
        held = self._held[key]
        held.append(message)
        sample = held[0].sample
        if message.states.offset + message.states.states.shape[0] >= len(sample.prompt_token_ids) + len(sample.token_ids):
            self._deliver([key])
            yield from self._held.pop(key)

    def finish(self) -> Iterator[generation_pb2.GenerateResponse]:
        """A stream has ended well: what waited for states gets none."""
        waiting, self._held = self._held, {}
        self._deliver(list(waiting))
        yield from itertools.chain.from_iterable(waiting.values())

    def _deliver(self, keys: list[_Key]) -> None:
        self._left -= set(keys)
        self._cut -= set(keys)

    def _is_drained(self, sample: generation_pb2.Sample) -> bool:
        """Cut off by a server that shuts down: another one draws it anew."""
        is_aborted = sample.finish_reason == types_pb2.FINISH_REASON_ABORTED
        return is_aborted and self._request.on_swap != types_pb2.ON_SWAP_ABORT and _key(sample) not in self._cut


def _key(message: generation_pb2.Sample | generation_pb2.Piece | generation_pb2.StatesPart) -> _Key:
    return message.prompt_index, message.arm_index, message.sample_index
