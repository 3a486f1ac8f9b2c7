"""What stands on the page of evidence beside its numbers. No number of a result is written here."""

from __future__ import annotations

QUESTION = (
    "Two questions. Does reinforcement learning on a served trunk work: against a preference alone the policy breaks a rule more often, "
    "against the rule alone it is liked less, and against both it finds replies that please both, as Sparrow's policy did? And what does "
    "freezing the lower layers (the *trunk*) cost in quality, and what does it save? A *head* is the upper layers, trained for one role: "
    "policy, value, preference or rule. The *base* is the model before any training. Two plain functions stand in for people, so that "
    "every number can be computed again. The numbers in the tables and in the brief come from the files in `docs/evidence/results`, by a "
    "script, and a test compares the two."
)
JUDGES = (
    "The judges are `client/rlhf/judges.py`. One counts words in the first person, at most 4. The other holds that the assistant must not "
    'speak of itself or its own life. They conflict: "I\'m" is liked and breaks the rule. Some replies please both, such as those with '
    '"We can" or "let me"; this page calls them the corner. A reply is kept and preferred if it has two liked words and breaks no rule. '
    "The model is SmolLM2-135M-Instruct, its lower 24 of 30 layers frozen, in float32."
)
CONFLICT = (
    "This plan was made after seed 0 of the plan before had been read, and has seeds of its own, which were fixed before they ran. There "
    "the rule head took replies of the corner for broken ones: of the base's replies few are in the first person and keep the rule, so a "
    "head that learns from replies as they come hardly sees them. Here it learns from replies in the first person before all others, as "
    "many broken as kept. All else is the same. With people in place of judges this means: people are asked about replies in the first "
    "person first."
)
LIGHTER = (
    "This plan was made when two seeds of the first plan and the first RL run of the second had been read, and has seeds of its own, which "
    "were fixed before they ran. In both the rule outweighed the preference: learned heads had the rule at twice the judges' weight. Here "
    "it has the judges' weight, and the heads learn from twice as many replies of the base, since the preference head told replies apart "
    "too weakly. Two things are changed at once: it is a try to make the mix work, and does not say which of them matters."
)
DID_NOT_WORK = (
    "Judges for and against enthusiasm, about 40 words, were tried by hand before: the preference head learned them by heart and was no "
    "better than chance on held-out questions. So both judges read a few frequent words.",
    "Heads that learned from four replies to a question taught their rule and not their preference: the mix failed with them. That run is "
    "in the [notebook](../notebook.md); the plan takes more replies because of it, and trains on replies as they were drawn.",
    "Within one epoch PPO's clip hardly ever acts, so PPO and A2C are nearly the same in these runs.",
    "An int8 trunk moves log-probs too far from the trainer's for these learning rates. All runs are in float32.",
)
LIMITS = (
    "A model of 135M parameters, at most 24 tokens a reply: nearly all replies are cut short, and at temperature 1 many of them make "
    "no sense. What it learns here is which few words to use. Nothing on this page says how a large model trades helpfulness against "
    "rules.",
    "The judges read words, not meaning. People disagree with each other and with themselves; these judges do not.",
    "Prompts are short everyday questions, 160 to train on and 40 held out, in one language and of one turn.",
    "Policies of different seeds start from the same base and see the same questions in another order: the intervals are over seeds and "
    "held-out questions, not over models, judges or tasks.",
    "KL is the log-prob of a reply's tokens minus the base's, summed over the reply; the mean over replies is an estimate, which can be "
    "below 0.",
)
COST = (
    "Plans were sized from estimates: from the seconds of single rounds, and from pilots of a few replies with seed 100. No seed below 100 "
    "was looked at to choose anything, but for the plans `conflict` and `lighter`, which answer what runs of the plans before them showed "
    "and run on other seeds.",
    "The runs were made on several days, on two x86 cores each time. Their speed, with what else ran beside, differed by more than ten "
    "times. Seconds may be compared within the chapter on freezing and within the one on sharing, whose runs followed each other on one "
    "machine that did nothing else. Elsewhere two runs shared the cores, and minutes say only what was spent; those of freezing leave out "
    "the time of measuring.",
    "When the runs had been read, a review changed how the page computes some of its numbers, and no run: the condition under which "
    "rewards are compared at equal KL, the KL of 6, one estimate of accuracy for the comparison at equal time, two rows of the tables of "
    "expected effects, rewards with another weight of the rule, and no KL for chosen replies.",
    "The round on a served trunk was measured twice on that machine. The first time showed that much of it was the checkpoint, which "
    "was copied before it was written ([notebook](../notebook.md)); the figures are of the second time, after this was mended.",
    "Seed 0 of `learned` was begun on one machine and lost with it; heads and policies of it are from a second run, on another kind of "
    "CPU, where the same seeds draw a few other tokens. What was published of the first run, heads and RL with heads that stay, had come "
    "to the same.",
    "RL against heads that learn anew was run twice in all seeds of `learned` and `conflict`. In the first runs, after the refresh, what "
    "the value head expected already was taken for a gain, which tilts the advantages within a reply ([notebook](../notebook.md)). The "
    "figures are of the second runs, after this was mended. In the first ones 1.3 % and 14.2 % of the replies pleased both judges. No "
    "other run starts from a trained value head.",
    "Three of the plans, `learned`, `freezing` and `sharing`, were to take three hours together. Scope was cut for it, not seeds: one "
    "refresh of the heads instead of two, heads that learn from 8 replies to a question instead of 16 (which the plan of the arms has), "
    "one epoch of the preference task instead of two, 8 rounds of 32 replies in the RL task instead of 10 of 48, and LoRA at one split "
    "alone.",
    "Learning rates were not searched for. Adapters have ten times the rate of full training, as Schulman et al. 2025 advise; whole "
    "models have the rate of heads, which may not be their best.",
)
COMMANDS = """```console
$ make rlhf-evidence ARGS='--budget 120'                       # three arms; goes on where it ended; finished runs are kept
$ make rlhf-evidence ARGS='--plan learned'                     # learned heads that stay, that learn anew, that choose
$ make rlhf-evidence ARGS='--plan conflict'                    # the same where the rule head learns from the conflict
$ make rlhf-evidence ARGS='--plan lighter'                     # and with the judges' weight of the rule, and more replies
$ make rlhf-evidence ARGS='--plan freezing --threads 2'        # more and less of the model trained, on a quiet machine
$ make rlhf-evidence ARGS='--plan sharing'                     # a round's tokens and time, on a quiet machine
$ make rlhf-evidence-trl                                       # TRL's rounds beside it, in an environment of its own
$ make rlhf-evidence-page ARGS='--folder runs/evidence'        # copies finished runs to docs/evidence/results, writes this page from them
```"""
