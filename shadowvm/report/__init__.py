"""One self-contained HTML page from a trace file. Files, from the bottom up:

timeline, bins          the trace as arrays; time and magnitudes cut into bins
faults, sptes           what became of each fault; from set to zap
notifiers, host         invalidations; swap, reclaim and host ptes
residency, hot          gfn by time; gfn by gfn
png, plot, html         drawing
sections_*, page        the parts of the page, and the page; template/ has its style and script
"""
