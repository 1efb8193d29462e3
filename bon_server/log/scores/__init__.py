"""Added scores: rewards that another model gave to logged candidates, beside segments that do not change.

    LOG/scores/NAME/model.json                      which reward models NAME stands for
    LOG/scores/NAME/writer=ID/FIRST-LAST.parquet    a row per request, in the order of the log

files    written by `offline.rescore` under a lock per name; rows go when erasure or retention takes their record
joined   joined to records by (writer, ordinal), which sealing does not change
"""
