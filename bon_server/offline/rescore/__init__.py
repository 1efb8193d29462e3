"""`bon rescore`: scores logged candidates with another reward model and adds the scores under a name.

    log.read ──► rescorable: chunks of requests, completions by length ──► reward model ──► log.scores.files

A file holds the scores of a fixed range of sequence numbers, so a killed run goes on with the chunk it was at, and a
log that has grown costs only what is new. Records and segments are not touched.
"""
