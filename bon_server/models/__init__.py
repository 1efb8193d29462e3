"""Policies and reward models: from a spec to something that `core` can sample from and score with.

    config ──► starting ──┬──► vllm.policy, policy.synthetic                             a Policy
                          └──► vllm.reward, reward.transformers, reward.function, …      a RewardModel

vllm/           all that imports vLLM, but for the demo's sampling
policy/         prompts, checkpoints, adapters, and the policy without a model
reward/         reward models without vLLM: transformers, functions, ensembles, synthetic ones
starting        which class serves which spec; starts, restarts and replaces models
weights         the files of a model: found, checked, given a revision; never code or pickle of a model
tokenizer       tokenizers, loaded from the same directory
memory_plan     what all models will take of the memory, before any is loaded
dtype           which number format `auto` means on this machine

A model is loaded from the directory that `weights.find_model` returns, and fetches nothing. Heavy imports (torch,
transformers, vLLM) happen when such a model is started, so a server with synthetic models needs none of them.
"""
