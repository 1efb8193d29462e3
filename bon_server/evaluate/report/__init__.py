"""`bon report`: what a log shows, as one HTML file that loads nothing else.

    curve, headroom (whole log), sample ──► report ──► charts, likes ──► page

sample   some requests with their texts, always the same ones, by a digest of their id
charts   SVG pictures; figures without shared state
likes    which features and words winners have more often than the other answers to their prompts
page     the HTML; everything that comes from a log is escaped
"""
