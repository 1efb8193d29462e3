"""The service `bon.v1.BestOfNService`: bytes to requests, records to answers.

    bytes ──► service ──► validate ──► parse ──► core.types.Request ──► attempt ──► record ──► respond ──► bytes

service    the handlers; the one place where errors become a status, through `serving.status`
validate   every field is checked, and every violation is reported at once, before any work
parse      defaults, tokens, the request's digest
respond    answers are built from records, so that a live answer and a replayed one are the same
feedback   RecordFeedback
builtin    health and reflection, with INVALID_ARGUMENT for bytes that are no message
"""
