"""The offline jobs, side by side: each is a command that reads logs or writes to one, and needs no server.

select/      `bon select`: a log to a training set (rejection sampling)
train/       `bon train`: a training set to a model directory that `bon serve --policy` loads
rescore/     `bon rescore`: another reward model's scores for logged candidates
importing/   `bon log import`: other people's scored samples as records
differences  what tells two runs apart, for the sentence that refuses to go on with another one

A killed job is run again with the same command and goes on where it was. Results appear whole. Every job but the import
only reads records. The same selection of the same log is the same, byte for byte.
"""
