"""`bon select`: choose candidates of one or several logs and write them as a training set.

    inputs ──► plan ──► gather ──► choose ──► export ──► part-*, meta.parquet, manifest.json
                        │          │          └── exporting: fetching reads the texts again, writing writes the files
                        │          └── choosing: whole prompts, filters, then the rule
                        └── gathering: candidates that may be chosen (eligible), without texts, shuffled by prompt

select                   the stages in order
options, plan, inputs    what was asked, what is read, how it is divided; spool rows are copied to files first
eligible, rules          pure functions: why a candidate may not be chosen; which of a prompt's candidates are
rows                     what is shuffled: fixed-width rows, without texts
formats                  the formats of a line: TRL, messages, OpenAI
executors                runs tasks on threads or a Ray cluster; a task whose summary exists is not run again
manifest, output_folder  the last file to appear; a folder that is only ever replaced by the same selection

Invariants: tasks are pure functions of the plan; their number and order change no byte. Memory does not grow with the
log. Rewards of different reward models are not compared unless they were normalised. No times or machine names.
"""
