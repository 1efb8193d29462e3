"""What belongs to a policy, whichever engine samples from it, and the policy without a model.

prompts       chat template and tokeniser, on a thread off the event loop
checkpoints   the newest checkpoint of a watched folder, and whether it can take the place of the policy in use
adapter       a LoRA adapter, merged into its base's weights before an engine sees it
reference     log-probabilities by transformers, which the engine of a new checkpoint has to reproduce
synthetic     instant or paced text from a seed, for load tests and client developers
"""
