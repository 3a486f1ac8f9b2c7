"""Generation and scoring requests, from protobuf to the engine's dataclasses (answers go back through convert_out.py).

Every field is checked before any model work, and an error names the field. Nothing is altered silently.
"""

from __future__ import annotations

from polyhead.heads.errors import FailedPrecondition, InvalidArgument, NotFound, Unimplemented
from polyhead.heads.manifest import HeadKind, check_name
from polyhead.server.convert_prompts import completion_ids, prompt_ids
from polyhead.server.convert_sampling import sampling_params
from polyhead.server.door import Door
from polyhead.server.engine.live import ServedHead
from polyhead.server.engine.sampler import sample_seed
from polyhead.server.engine.sequence import (
    FinishReason,
    OnSwap,
    Priority,
    Request,
    RuleQuestion,
    RuleQuestions,
    Sample,
    SamplingParams,
    Sequence,
)
from polyhead.server.rules import Rule
from polyhead.v1 import generation_pb2, scoring_pb2, types_pb2

MAX_PROMPTS = 1024
MAX_SAMPLES_PER_ARM = 64
MAX_ARMS = 16
MAX_SAMPLES = 4096
MAX_HEADS = 16
MAX_RULES = 64
MAX_RULE_CHARACTERS = 2000
MAX_REPLY_BYTES = 3_500_000  # of one message, below the 4 MiB cap
MAX_STATES_TOKENS = 1 << 18  # of one request: their states are held until they are sent
SAMPLE_BYTES = 500  # of a sample on the wire, beside its tokens and stops
HEAD_BYTES, RULE_BYTES = 350, 32  # of one head's answer, and of one rule's beside its id, on the wire
DEFAULT_HEAD = "policy"


def generate_request(message: generation_pb2.GenerateRequest, door: Door, request_id: str) -> Request:
    """Check and convert a generation. Blocking: it tokenises, and may load a head version that is not active."""
    _check_count(len(message.prompts), MAX_PROMPTS, "prompts")
    arms = list(message.arms) or [generation_pb2.Arm()]
    _check_count(len(arms), MAX_ARMS, "arms")
    params = [_arm_params(arm, f"arms[{index}]", door) for index, arm in enumerate(arms)]
    heads = {_arm_head(arm, f"arms[{index}]", door): None for index, arm in enumerate(arms)}
    request = _request(message.score, list(heads), message.on_swap, message.priority, door, request_id)
    num_samples = len(message.prompts) * sum(max(1, arm.n) for arm in arms)
    if num_samples > MAX_SAMPLES:
        raise InvalidArgument(f"too many samples in one request: {num_samples}, at most {MAX_SAMPLES}", field="prompts")
    request.stream_tokens = _delivery(message, num_samples) == generation_pb2.DELIVERY_TOKENS
    request.return_states = message.return_states
    for prompt_index, prompt in enumerate(message.prompts):
        field = f"prompts[{prompt_index}]"
        ids = prompt_ids(prompt, door, field)
        for arm_index, (arm, param) in enumerate(zip(arms, params, strict=True)):
            _check_length(len(ids) + param.max_new_tokens, request, door, field)
            for index in range(max(1, arm.n)):
                seeds = arm.sampling.sample_seeds
                seed = seeds[index] if seeds else sample_seed(param.seed, prompt_index, arm_index, index)
                sequence = Sequence(list(ids), prompt.cache_salt)
                text = door.tokenizer.stream(param.stop, param.keep_stop)
                head = arm.head or DEFAULT_HEAD
                request.samples.append(
                    Sample(request, prompt_index, arm_index, index, ids, sequence, param, head_name=head, seed=seed, text=text)
                )
    if request.return_states and request.num_tokens > MAX_STATES_TOKENS:
        raise InvalidArgument(f"states of {request.num_tokens} tokens, at most {MAX_STATES_TOKENS} in one request", field="return_states")
    if _delivery(message, num_samples) == generation_pb2.DELIVERY_GROUPS:
        _check_group_size(request, sum(max(1, arm.n) for arm in arms))
    return request


def score_request(message: scoring_pb2.ScoreRequest, door: Door, request_id: str) -> Request:
    """Check and convert a scoring of given completions."""
    _check_count(len(message.items), MAX_PROMPTS, "items")
    if not message.score.heads:
        raise InvalidArgument("no head to score with", field="score.heads")
    request = _request(message.score, [], message.on_swap, message.priority, door, request_id)
    if message.HasField("sampling"):
        request.score_sampling = sampling_params(message.sampling, "sampling", door)
    for index, item in enumerate(message.items):
        field = f"items[{index}]"
        ids = prompt_ids(item.prompt, door, f"{field}.prompt")
        completion = completion_ids(item, door, field)
        _check_length(len(ids) + len(completion), request, door, field)
        sample = given_sample(request, index, ids, completion, item.prompt.cache_salt)
        sample.is_terminated = item.terminated if item.HasField("terminated") else completion[-1] in door.eos_ids
        request.samples.append(sample)
    if sum(_reply_bytes(sample) for sample in request.samples) > MAX_REPLY_BYTES:
        raise InvalidArgument("the answer would not fit one message: send fewer items at a time", field="items")
    return request


def given_sample(request: Request, index: int, prompt: list[int], completion: list[int], salt: str = "") -> Sample:
    """A sample whose completion is known."""
    sample = Sample(request, index, 0, 0, prompt, Sequence([*prompt, *completion], salt), SamplingParams())
    sample.completion = completion
    sample.finish_reason = FinishReason.GIVEN
    return sample


def _arm_params(arm: generation_pb2.Arm, field: str, door: Door) -> SamplingParams:
    if arm.n > MAX_SAMPLES_PER_ARM:
        raise InvalidArgument(f"n must lie between 1 and {MAX_SAMPLES_PER_ARM}: {arm.n}", field=f"{field}.n")
    if arm.sampling.sample_seeds and len(arm.sampling.sample_seeds) != max(1, arm.n):
        raise InvalidArgument(
            f"{len(arm.sampling.sample_seeds)} sample seeds for n = {max(1, arm.n)}", field=f"{field}.sampling.sample_seeds"
        )
    return sampling_params(arm.sampling, f"{field}.sampling", door)


def _arm_head(arm: generation_pb2.Arm, field: str, door: Door) -> str:
    reference = arm.head or DEFAULT_HEAD
    head = door.resolve(reference, f"{field}.head")
    if head.manifest.kind is not HeadKind.POLICY:
        raise InvalidArgument(f"{reference} is a {head.manifest.kind.value} head and cannot generate", field=f"{field}.head")
    return reference


def _request(
    spec: types_pb2.ScoringSpec,
    sampling_heads: list[str],
    on_swap: types_pb2.OnSwap,
    priority: types_pb2.Priority,
    door: Door,
    request_id: str,
) -> Request:
    """A request without samples: its heads resolved, its rules worded."""
    if spec.recipe:
        raise Unimplemented("reward recipes are reserved", field="score.recipe")
    if len(spec.heads) > MAX_HEADS:
        raise InvalidArgument(f"too many heads: {len(spec.heads)}, at most {MAX_HEADS}", field="score.heads")
    scoring = [door.resolve(name, f"score.heads[{index}]") for index, name in enumerate(spec.heads)]
    if len(set(spec.heads)) != len(spec.heads):
        raise InvalidArgument("a head is named twice", field="score.heads")
    names = dict.fromkeys([*sampling_heads, *spec.heads])
    return Request(
        request_id=request_id,
        deliver=_nowhere,
        head_kinds={name: door.resolve(name, "head").manifest.kind for name in names},
        pinned={name: door.resolve(name, "head") for name in names if "@" in name},
        score_heads=tuple(spec.heads),
        rules=_rule_questions(spec, scoring, door),
        on_swap=_on_swap(on_swap),
        priority=_priority(priority),
    )


def _nowhere(request: Request, events: object) -> None:
    raise AssertionError("the servicer sets `deliver` before it submits")


def _rule_questions(spec: types_pb2.ScoringSpec, scoring: list[ServedHead], door: Door) -> RuleQuestions | None:
    rule_heads = [head for head in scoring if head.manifest.kind is HeadKind.RULE]
    selection = spec.rules
    is_given = bool(selection.rule_set or selection.rule_ids or selection.rules)
    if bool(rule_heads) != is_given:
        raise InvalidArgument("rules and a head of kind rule go together", field="score.rules" if rule_heads else "score.heads")
    if not rule_heads:
        return None
    for head in rule_heads:
        if head.manifest.template not in door.rules.templates:
            raise FailedPrecondition(f"{head.reference} uses a template that the server does not have: {head.manifest.template!r}")
    reference, rules = _selected_rules(selection, door)
    if len(rules) > MAX_RULES:
        raise InvalidArgument(f"too many rules: {len(rules)}, at most {MAX_RULES}", field="score.rules")
    if len({rule.rule_id for rule in rules}) != len(rules):
        raise InvalidArgument("a rule id stands twice", field="score.rules")
    worded = door.rules.suffixes(rules)
    return RuleQuestions(
        reference, {template: tuple(RuleQuestion(*question) for question in questions) for template, questions in worded.items()}
    )


def _selected_rules(selection: types_pb2.RuleSelection, door: Door) -> tuple[str, list[Rule]]:
    reference, rules = "", []
    if selection.rule_set or selection.rule_ids:
        rule_set = door.rules.find_set(selection.rule_set or "example-rules", "score.rules.rule_set")
        reference = rule_set.reference
        for index, rule_id in enumerate(selection.rule_ids or rule_set.rules):
            if rule_id not in rule_set.rules:
                raise NotFound(f"no rule {rule_id[:80]!r} in {reference}", field=f"score.rules.rule_ids[{index}]")
            rules.append(rule_set.rules[rule_id])
    for index, rule in enumerate(selection.rules):
        field = f"score.rules.rules[{index}]"
        check_name(rule.id, f"{field}.id")
        if not rule.text or len(rule.text) > MAX_RULE_CHARACTERS:
            raise InvalidArgument(f"a rule must have 1 to {MAX_RULE_CHARACTERS} characters", field=f"{field}.text")
        rules.append(Rule(rule.id, rule.text))
    return reference, rules


def _on_swap(value: types_pb2.OnSwap) -> OnSwap:
    match value:
        case types_pb2.ON_SWAP_UNSPECIFIED | types_pb2.ON_SWAP_PIN:
            return OnSwap.PIN
        case types_pb2.ON_SWAP_ABORT:
            return OnSwap.ABORT
        case types_pb2.ON_SWAP_FOLLOW:
            raise Unimplemented("on_swap FOLLOW is reserved: use PIN or ABORT", field="on_swap")
    raise InvalidArgument(f"unknown on_swap: {int(value)}", field="on_swap")


def _priority(value: types_pb2.Priority) -> Priority:
    match value:
        case types_pb2.PRIORITY_UNSPECIFIED | types_pb2.PRIORITY_BATCH:
            return Priority.BATCH
        case types_pb2.PRIORITY_INTERACTIVE:
            return Priority.INTERACTIVE
    raise InvalidArgument(f"unknown priority: {int(value)}", field="priority")


def _delivery(message: generation_pb2.GenerateRequest, num_samples: int) -> generation_pb2.Delivery:
    if message.delivery == generation_pb2.DELIVERY_UNSPECIFIED:
        return generation_pb2.DELIVERY_TOKENS if num_samples == 1 else generation_pb2.DELIVERY_SAMPLES
    if message.delivery not in generation_pb2.Delivery.values():
        raise InvalidArgument(f"unknown delivery: {int(message.delivery)}", field="delivery")
    return message.delivery


def _check_count(count: int, most: int, field: str) -> None:
    if not 1 <= count <= most:
        raise InvalidArgument(f"between 1 and {most} are allowed: {count}", field=field)


def _check_length(num_tokens: int, request: Request, door: Door, field: str) -> None:
    """The longest text that this sample can become, scoring suffixes included, must fit the context."""
    questions = request.rules.by_template.values() if request.rules else ()
    num_suffix = max((len(question.suffix) for template in questions for question in template), default=1)
    num_suffix = num_suffix if request.score_heads else 0
    if num_tokens + num_suffix > door.max_context:
        suffix = f", with {num_suffix} for scoring" if num_suffix else ""
        raise InvalidArgument(
            f"prompt and reply together have {num_tokens} tokens{suffix}; the context holds {door.max_context}", field=field
        )


def _reply_bytes(sample: Sample) -> int:
    """Most bytes that a sample and its scores take on the wire; its text is counted with four bytes a token."""
    request, params = sample.request, sample.params
    num_tokens = len(sample.sequence.tokens) + (0 if sample.is_given else params.max_new_tokens)
    own_bytes = SAMPLE_BYTES + sum(4 + len(stop.encode()) for stop in params.stop) + 5 * len(params.stop_token_ids)
    questions = max(request.rules.by_template.values(), key=len, default=()) if request.rules else ()
    rule_bytes = sum(RULE_BYTES + len(question.rule_id) for question in questions)
    num_heads = len(request.score_heads)
    return own_bytes + num_tokens * 4 * (4 + 2 * num_heads) + num_heads * (HEAD_BYTES + rule_bytes)


def _check_group_size(request: Request, num_samples: int) -> None:
    if num_samples * max(_reply_bytes(sample) for sample in request.samples) > MAX_REPLY_BYTES:
        raise InvalidArgument("a prompt's group would not fit one message: use DELIVERY_SAMPLES or fewer samples", field="delivery")


