"""`bon train`: from a training set to a model directory, by TRL's trainers, on rows that are tokens already.

    sources ──► encoding ──► examples ──► plan ──► trainer ──► model_directory

sources                   a folder of `bon select`, checked against its manifest, or a file of rows
encoding, examples        the tokens that the policy sampled, not a chat template rendered again; long rows are left out
options, defaults, plan   what was asked; learning rate and such for this model; what tells this run from others
trainer, train            TRL without its templates and cuts; the run from start to end
work_folder               checkpoints that a killed run goes on from, in a hidden sibling of the result
model_directory, curve    what `bon serve` loads; the learning curve

The result appears whole, under its own name, at the end. On several devices only the first process writes.
"""
