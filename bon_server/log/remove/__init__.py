"""The only code that takes rows out of the log: erasure on request, retention by age and size.

erase             `bon log erase`: records, their feedback and scores, in every file of the log and in no free page
erase_published   the same for published copies: an object is replaced in one step, under its own name
expire            retention: the oldest segments go, unless a snapshot pins them
rewrite           a segment without some of its rows, in place of the old one

    note in the catalog ──► write whole under a temporary name ──► rename ──► enter

A reader meets the old file or the new one, never both and never neither. What a crash leaves, the next run finishes.
"""
