"""Reward models, but for the one on vLLM. All are a `core.protocols.RewardModel`: one completion in, one score out.

    score(prompt, completion) ──► pairs ──► batch across requests ──► classifier ──► Score
                                                                       └── prompt_states: a prompt is computed once

transformers     batches the waiting pairs of all requests, in a thread of its own
classifier       a sequence classifier with one label; a reward does not depend on what else is in its batch
prompt_states    keys and values of a prompt, shared by its completions (decoders only)
pooling          which models a vLLM engine can score with, found out before it starts
pairs            a prompt and a completion as token ids
function         `function:module:name`, the operator's own code
ensemble         mean, minimum or mean less k deviations of several models
synthetic        a fixed number for each text

What concerns one completion (too long, not finite, its function raised) is a score with that status; what concerns the
model is an exception.
"""
